"""Posterior families, one file each."""

from pyrobnn.guides.base import Guide
from pyrobnn.guides.chains import Chains
from pyrobnn.guides.composite import Composite
from pyrobnn.guides.concrete_structure import ConcreteStructure
from pyrobnn.guides.delta_mixture import DeltaMixture
from pyrobnn.guides.generator import Generator
from pyrobnn.guides.laplace import Laplace
from pyrobnn.guides.low_rank_ensemble import LowRankEnsemble
from pyrobnn.guides.low_rank_normal import LowRankNormal
from pyrobnn.guides.map import MAP
from pyrobnn.guides.mc_dropout import MCDropout
from pyrobnn.guides.mean_field import MeanField
from pyrobnn.guides.normalizing_flow import NormalizingFlow
from pyrobnn.guides.swag import SWAG
from pyrobnn.model.layout import Layout, Site

__all__ = [
    "MAP",
    "SWAG",
    "Chains",
    "Composite",
    "ConcreteStructure",
    "DeltaMixture",
    "Generator",
    "Guide",
    "Laplace",
    "Layout",
    "LowRankEnsemble",
    "LowRankNormal",
    "MCDropout",
    "MeanField",
    "NormalizingFlow",
    "Site",
]
