"""Objectives: sums of named terms over draws of a guide."""

from pyrobnn.elbo.adversarial import AdversarialELBO, AdversarialTerm
from pyrobnn.elbo.mean_field import MeanFieldELBO
from pyrobnn.elbo.objective import Objective
from pyrobnn.elbo.parts import NonFiniteLossError, Parts
from pyrobnn.elbo.regularized import DisagreementTerm, RegularizedELBO, perturbed
from pyrobnn.elbo.tempering import Tempered
from pyrobnn.elbo.terms import DivergenceTerm, Evaluation, LogLikelihoodTerm, Run, Term

__all__ = [
    "AdversarialELBO",
    "AdversarialTerm",
    "DisagreementTerm",
    "DivergenceTerm",
    "Evaluation",
    "LogLikelihoodTerm",
    "MeanFieldELBO",
    "NonFiniteLossError",
    "Objective",
    "Parts",
    "RegularizedELBO",
    "Run",
    "Tempered",
    "Term",
    "perturbed",
]
