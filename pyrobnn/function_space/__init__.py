"""Function space: posteriors and priors over functions in place of weights."""

from pyrobnn.function_space.constraints import (
    Bounds,
    Constraint,
    DerivativeSign,
    ExpertAgreement,
    FairnessGap,
    Invariance,
    Monotone,
    UncertaintyOffData,
    Violations,
    violations,
)
from pyrobnn.function_space.dual import DualActivation
from pyrobnn.function_space.evidence import log_evidence
from pyrobnn.function_space.function_priors import FunctionPrior, KernelPrior, RandomNetworks
from pyrobnn.function_space.functional_elbo import FunctionalELBO
from pyrobnn.function_space.gaussians import BlockFunctions, Jitter, LowRankFunctions, functional_kl
from pyrobnn.function_space.gpytorch_kernel import gpytorch_kernel
from pyrobnn.function_space.hermite import HermiteSeries
from pyrobnn.function_space.infinite_width import InfiniteWidth, infinite_width
from pyrobnn.function_space.measurement import DataBox
from pyrobnn.function_space.nngp import kernel, kernel_diagonal

__all__ = [
    "BlockFunctions",
    "Bounds",
    "Constraint",
    "DataBox",
    "DerivativeSign",
    "DualActivation",
    "ExpertAgreement",
    "FairnessGap",
    "FunctionPrior",
    "FunctionalELBO",
    "HermiteSeries",
    "InfiniteWidth",
    "Invariance",
    "Jitter",
    "KernelPrior",
    "LowRankFunctions",
    "Monotone",
    "RandomNetworks",
    "UncertaintyOffData",
    "Violations",
    "functional_kl",
    "gpytorch_kernel",
    "infinite_width",
    "kernel",
    "kernel_diagonal",
    "log_evidence",
    "violations",
]
