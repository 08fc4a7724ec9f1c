"""Objectives."""

from pyrobnn.elbo.mean_field import ELBOParts, MeanFieldELBO, NonFiniteLossError
from pyrobnn.elbo.tempering import Temperature, Tempered, linear_annealing

__all__ = ["ELBOParts", "MeanFieldELBO", "NonFiniteLossError", "Temperature", "Tempered", "linear_annealing"]
