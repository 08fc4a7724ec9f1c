"""Priors over a network's parameters, and the rules that hand them out."""

from pyrobnn.model.priors.assignment import assign
from pyrobnn.model.priors.base import FixedPrior, Prior
from pyrobnn.model.priors.hierarchical import HorseshoePrior, LatentScalePrior, LearnedScalePrior, from_spec
from pyrobnn.model.priors.rules import (
    NORM_LAYERS,
    Pattern,
    PriorRule,
    PriorSpec,
    centered,
    default,
    fan_in_and_out,
    glorot,
    he,
    horseshoe,
    last_layer,
    latent_scale,
    learned_scale,
    lecun,
    scale_mixture,
)
from pyrobnn.model.priors.structure import BinaryConcretePrior, ConcretePrior

__all__ = [
    "NORM_LAYERS",
    "BinaryConcretePrior",
    "ConcretePrior",
    "FixedPrior",
    "HorseshoePrior",
    "LatentScalePrior",
    "LearnedScalePrior",
    "Pattern",
    "Prior",
    "PriorRule",
    "PriorSpec",
    "assign",
    "centered",
    "default",
    "fan_in_and_out",
    "from_spec",
    "glorot",
    "he",
    "horseshoe",
    "last_layer",
    "latent_scale",
    "learned_scale",
    "lecun",
    "scale_mixture",
]
