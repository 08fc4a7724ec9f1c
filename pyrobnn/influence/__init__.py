"""Influence functions: what test losses owe to training data, at a mode or under a posterior."""

from pyrobnn.influence.base import Influence
from pyrobnn.influence.conjugate_gradient import ConjugateGradient
from pyrobnn.influence.datamodeling import DatamodelingScore, linear_datamodeling_score
from pyrobnn.influence.ekfac import EKFAC
from pyrobnn.influence.exact import Exact
from pyrobnn.influence.laplace_curvature import LaplaceCurvature
from pyrobnn.influence.lissa import LiSSA
from pyrobnn.influence.point import PointInfluence
from pyrobnn.influence.poisoning import Poisoned, poison
from pyrobnn.influence.posterior_covariance import PosteriorCovariance
from pyrobnn.influence.random_projection import RandomProjection
from pyrobnn.influence.refitting import refit

__all__ = [
    "EKFAC",
    "ConjugateGradient",
    "DatamodelingScore",
    "Exact",
    "Influence",
    "LaplaceCurvature",
    "LiSSA",
    "PointInfluence",
    "Poisoned",
    "PosteriorCovariance",
    "RandomProjection",
    "linear_datamodeling_score",
    "poison",
    "refit",
]
