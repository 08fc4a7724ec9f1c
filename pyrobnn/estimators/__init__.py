"""How a draw enters a layer: estimators of the ELBO's gradient, for all sites or chosen by site."""

from pyrobnn.estimators.base import Estimator, EstimatorSpec, SharedDraw, active_estimators, by_site, resolve, use
from pyrobnn.estimators.coverage import coverage
from pyrobnn.estimators.flipout import Flipout
from pyrobnn.estimators.local_reparameterization import LocalReparameterization
from pyrobnn.estimators.path_derivative import PathDerivative
from pyrobnn.estimators.per_example import PerExample
from pyrobnn.estimators.per_group import PerGroup
from pyrobnn.estimators.weight import GaussianWeight

__all__ = [
    "Estimator",
    "EstimatorSpec",
    "Flipout",
    "GaussianWeight",
    "LocalReparameterization",
    "PathDerivative",
    "PerExample",
    "PerGroup",
    "SharedDraw",
    "active_estimators",
    "by_site",
    "coverage",
    "resolve",
    "use",
]
