"""Plots, reports and the description of a model."""
