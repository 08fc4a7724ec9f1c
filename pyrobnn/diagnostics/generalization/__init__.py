"""What theory says of generalization: PAC-Bayes bounds, fits of random labels, double descent, stability, evidence."""

from pyrobnn.diagnostics.generalization.annealing import AnnealedEvidence, annealed_importance_sampling
from pyrobnn.diagnostics.generalization.double_descent import DoubleDescent, network_sweep, random_feature_sweep
from pyrobnn.diagnostics.generalization.evidence import Evidence, evidence_estimates
from pyrobnn.diagnostics.generalization.input_stability import (
    InputStability,
    input_curvature,
    input_stability,
    local_lipschitz,
)
from pyrobnn.diagnostics.generalization.kl_bounds import kl_inverse
from pyrobnn.diagnostics.generalization.lipschitz import LipschitzBound, lipschitz_bound
from pyrobnn.diagnostics.generalization.pac_bayes import PACBayesBound, pac_bayes_bound
from pyrobnn.diagnostics.generalization.random_labels import RandomLabelFit, random_label_fit

__all__ = [
    "AnnealedEvidence",
    "DoubleDescent",
    "Evidence",
    "InputStability",
    "LipschitzBound",
    "PACBayesBound",
    "RandomLabelFit",
    "annealed_importance_sampling",
    "evidence_estimates",
    "input_curvature",
    "input_stability",
    "kl_inverse",
    "lipschitz_bound",
    "local_lipschitz",
    "network_sweep",
    "pac_bayes_bound",
    "random_feature_sweep",
    "random_label_fit",
]
