"""Objectives: sums of named terms over draws of a guide."""

from pyrobnn.objectives.adversarial import AdversarialELBO, AdversarialTerm
from pyrobnn.objectives.elbo import ELBO
from pyrobnn.objectives.objective import Objective
from pyrobnn.objectives.parts import NonFiniteLossError, Parts
from pyrobnn.objectives.regularized import DisagreementTerm, RegularizedELBO, perturbed
from pyrobnn.objectives.tempering import Tempered
from pyrobnn.objectives.terms import DivergenceTerm, Evaluation, LogLikelihoodTerm, Run, Term

__all__ = [
    "ELBO",
    "AdversarialELBO",
    "AdversarialTerm",
    "DisagreementTerm",
    "DivergenceTerm",
    "Evaluation",
    "LogLikelihoodTerm",
    "NonFiniteLossError",
    "Objective",
    "Parts",
    "RegularizedELBO",
    "Run",
    "Tempered",
    "Term",
    "perturbed",
]
