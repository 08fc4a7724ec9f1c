"""Training against attacks: objectives whose inputs an inner player makes worse."""

from pyrobnn.robustness.training.amortized import AmortizedDistribution, GeneratedPerturbation
from pyrobnn.robustness.training.explicit import ExplicitDistribution
from pyrobnn.robustness.training.feature_scattering import FeatureScattering
from pyrobnn.robustness.training.generators import PerturbationEncoder, PerturbationGenerator
from pyrobnn.robustness.training.gradient_steps import FastGradient, ProjectedGradient
from pyrobnn.robustness.training.implicit import ImplicitDistribution
from pyrobnn.robustness.training.logit_pairing import LogitPairing
from pyrobnn.robustness.training.objective import AdversarialTraining
from pyrobnn.robustness.training.perturbation import Perturbation
from pyrobnn.robustness.training.sinkhorn import transport_plan
from pyrobnn.robustness.training.tanh_normal import TanhNormal
from pyrobnn.robustness.training.trades import TRADES

__all__ = [
    "TRADES",
    "AdversarialTraining",
    "AmortizedDistribution",
    "ExplicitDistribution",
    "FastGradient",
    "FeatureScattering",
    "GeneratedPerturbation",
    "ImplicitDistribution",
    "LogitPairing",
    "Perturbation",
    "PerturbationEncoder",
    "PerturbationGenerator",
    "ProjectedGradient",
    "TanhNormal",
    "transport_plan",
]
