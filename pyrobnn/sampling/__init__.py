"""Markov chain Monte Carlo: kernels for :func:`pyrobnn.sample`."""

from pyrobnn.objectives.parts import NonFiniteLossError
from pyrobnn.sampling.kernels.base import ChainResult, FullBatchKernel, Kernel, StochasticGradientKernel
from pyrobnn.sampling.kernels.cyclical import Cyclical
from pyrobnn.sampling.kernels.hmc import HMC
from pyrobnn.sampling.kernels.nuts import NUTS
from pyrobnn.sampling.kernels.preconditioned_sgld import PreconditionedSGLD
from pyrobnn.sampling.kernels.pyro_kernel import PyroKernel
from pyrobnn.sampling.kernels.sghmc import SGHMC
from pyrobnn.sampling.kernels.sgld import SGLD
from pyrobnn.sampling.kernels.sgnht import SGNHT
from pyrobnn.sampling.sample import sample
from pyrobnn.sampling.sgmcmc.run import SamplingDivergedWarning

__all__ = [
    "HMC",
    "NUTS",
    "SGHMC",
    "SGLD",
    "SGNHT",
    "ChainResult",
    "Cyclical",
    "FullBatchKernel",
    "Kernel",
    "NonFiniteLossError",
    "PreconditionedSGLD",
    "PyroKernel",
    "SamplingDivergedWarning",
    "StochasticGradientKernel",
    "sample",
]
