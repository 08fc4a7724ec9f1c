"""Objectives: sums of named terms over draws of a guide."""

from pyrobnn.objectives.adversarial import AdversarialELBO, AdversarialTerm
from pyrobnn.objectives.auxiliary import AuxiliaryTerm, OutlierTerm
from pyrobnn.objectives.consistency import ConsistencyTerm, PiModel, TemporalEnsembling
from pyrobnn.objectives.dirichlet import DirichletELBO, DirichletOutliers, DirichletTerm, MisleadingEvidence
from pyrobnn.objectives.elbo import ELBO
from pyrobnn.objectives.mean_teacher import MeanTeacher
from pyrobnn.objectives.objective import Objective
from pyrobnn.objectives.outliers import OutlierExposure
from pyrobnn.objectives.parts import NonFiniteLossError, Parts
from pyrobnn.objectives.regularized import DisagreementTerm, RegularizedELBO, perturbed
from pyrobnn.objectives.tempering import Tempered
from pyrobnn.objectives.terms import DivergenceTerm, Evaluation, LogLikelihoodTerm, Run, Term
from pyrobnn.objectives.unlabeled import UnlabeledLoader

__all__ = [
    "ELBO",
    "AdversarialELBO",
    "AdversarialTerm",
    "AuxiliaryTerm",
    "ConsistencyTerm",
    "DirichletELBO",
    "DirichletOutliers",
    "DirichletTerm",
    "DisagreementTerm",
    "DivergenceTerm",
    "Evaluation",
    "LogLikelihoodTerm",
    "MeanTeacher",
    "MisleadingEvidence",
    "NonFiniteLossError",
    "Objective",
    "OutlierExposure",
    "OutlierTerm",
    "Parts",
    "PiModel",
    "RegularizedELBO",
    "Run",
    "Tempered",
    "TemporalEnsembling",
    "Term",
    "UnlabeledLoader",
    "perturbed",
]
