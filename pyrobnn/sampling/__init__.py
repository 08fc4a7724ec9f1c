"""Markov chain Monte Carlo: kernels for :func:`pyrobnn.sample`."""

from pyrobnn.elbo.parts import NonFiniteLossError
from pyrobnn.sampling.cyclical import Cyclical
from pyrobnn.sampling.distillation import distill
from pyrobnn.sampling.hmc import HMC
from pyrobnn.sampling.kernel import ChainResult, FullBatchKernel, Kernel, StochasticGradientKernel
from pyrobnn.sampling.nuts import NUTS, PyroKernel
from pyrobnn.sampling.online_distillation import online_distill
from pyrobnn.sampling.preconditioned_sgld import PreconditionedSGLD
from pyrobnn.sampling.sample import SamplingDivergedWarning, sample
from pyrobnn.sampling.sghmc import SGHMC
from pyrobnn.sampling.sgld import SGLD
from pyrobnn.sampling.sgnht import SGNHT
from pyrobnn.sampling.wasserstein import CriticHistory, DistillationDivergedError

__all__ = [
    "HMC",
    "NUTS",
    "SGHMC",
    "SGLD",
    "SGNHT",
    "ChainResult",
    "CriticHistory",
    "Cyclical",
    "DistillationDivergedError",
    "FullBatchKernel",
    "Kernel",
    "NonFiniteLossError",
    "PreconditionedSGLD",
    "PyroKernel",
    "SamplingDivergedWarning",
    "StochasticGradientKernel",
    "distill",
    "online_distill",
    "sample",
]
