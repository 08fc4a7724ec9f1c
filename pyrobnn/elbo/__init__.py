"""Objectives."""

from pyrobnn.elbo.mean_field import MeanFieldELBO
from pyrobnn.elbo.parts import ELBOParts, NonFiniteLossError
from pyrobnn.elbo.tempering import Temperature, Tempered, linear_annealing

__all__ = ["ELBOParts", "MeanFieldELBO", "NonFiniteLossError", "Temperature", "Tempered", "linear_annealing"]
