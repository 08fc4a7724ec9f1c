"""What theory says of generalization: PAC-Bayes bounds, and how stable outputs are under changes of the inputs."""

from pyrobnn.diagnostics.generalization.input_stability import (
    InputStability,
    input_curvature,
    input_stability,
    local_lipschitz,
)
from pyrobnn.diagnostics.generalization.kl_bounds import kl_inverse
from pyrobnn.diagnostics.generalization.lipschitz import LipschitzBound, lipschitz_bound
from pyrobnn.diagnostics.generalization.pac_bayes import PACBayesBound, pac_bayes_bound

__all__ = [
    "InputStability",
    "LipschitzBound",
    "PACBayesBound",
    "input_curvature",
    "input_stability",
    "kl_inverse",
    "lipschitz_bound",
    "local_lipschitz",
    "pac_bayes_bound",
]
