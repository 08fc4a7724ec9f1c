"""Objectives."""

from pyrobnn.elbo.adversarial import AdversarialELBO
from pyrobnn.elbo.mean_field import MeanFieldELBO
from pyrobnn.elbo.parts import ELBOParts, NonFiniteLossError
from pyrobnn.elbo.regularized import RegularizedELBO, perturbed
from pyrobnn.elbo.tempering import Tempered

__all__ = [
    "AdversarialELBO",
    "ELBOParts",
    "MeanFieldELBO",
    "NonFiniteLossError",
    "RegularizedELBO",
    "Tempered",
    "perturbed",
]
