"""How guides are trained: draws whose gradients reach the parameters, and the divergence of what is trained."""

from pyrobnn.steps.autograd import AutogradStep
from pyrobnn.steps.base import Step
from pyrobnn.steps.composite import CompositeStep
from pyrobnn.steps.low_rank import LowRankStep
from pyrobnn.steps.mean_field import MeanFieldStep
from pyrobnn.steps.members import MemberStep
from pyrobnn.steps.path_derivative import PathDerivativeStep
from pyrobnn.steps.points import PointScore, PointStep

__all__ = [
    "AutogradStep",
    "CompositeStep",
    "LowRankStep",
    "MeanFieldStep",
    "MemberStep",
    "PathDerivativeStep",
    "PointScore",
    "PointStep",
    "Step",
]
