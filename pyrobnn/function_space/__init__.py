"""Function space: posteriors and priors over functions in place of weights."""

from pyrobnn.function_space.function_priors import FunctionPrior, KernelPrior, RandomNetworks
from pyrobnn.function_space.functional_elbo import FunctionalELBO
from pyrobnn.function_space.gaussians import BlockFunctions, Jitter, LowRankFunctions, functional_kl
from pyrobnn.function_space.measurement import DataBox

__all__ = [
    "BlockFunctions",
    "DataBox",
    "FunctionPrior",
    "FunctionalELBO",
    "Jitter",
    "KernelPrior",
    "LowRankFunctions",
    "RandomNetworks",
    "functional_kl",
]
