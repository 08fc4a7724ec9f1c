"""Training against attacks: objectives whose inputs an inner player makes worse."""

from pyrobnn.robustness.training.explicit import ExplicitDistribution
from pyrobnn.robustness.training.objective import AdversarialTraining
from pyrobnn.robustness.training.perturbation import Perturbation
from pyrobnn.robustness.training.tanh_normal import TanhNormal

__all__ = ["AdversarialTraining", "ExplicitDistribution", "Perturbation", "TanhNormal"]
