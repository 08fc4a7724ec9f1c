"""Distillation of Markov chains into a generator of weights."""

from pyrobnn.distillation.offline import distill
from pyrobnn.distillation.online import online_distill
from pyrobnn.distillation.wgan import CriticHistory, DistillationDivergedError

__all__ = ["CriticHistory", "DistillationDivergedError", "distill", "online_distill"]
