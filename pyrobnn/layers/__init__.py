"""Modules to build networks of."""
