r"""The mixture density network of Bishop (1994): :math:`p(y \mid x) = \sum_k \pi_k(x)\, N(y; \mu_k(x), \Sigma_k(x))`.

Where one input has several answers, as in inverse problems, the mean lies between them: read the modes of the
prediction (``pb.predict(...).modes()``), or draw from it.
"""

from __future__ import annotations

from typing import Literal

import pyrobnn as pb
from models.heteroscedastic import tanh_network

__all__ = ["mixture_density"]


def mixture_density(
    num_data: int,
    *,
    inputs: int = 1,
    targets: int = 1,
    hidden: int = 50,
    components: int = 5,
    covariance: Literal["diagonal", "full"] = "diagonal",
    floor: float = 1e-3,
) -> pb.SupervisedModel:
    """The model, for targets of unit scale (``pb.Standardizer``); pair it with any guide.

    Args:
        num_data: Number of training data.
        inputs: Input features.
        targets: Targets of a row.
        hidden: Units of each of two hidden layers.
        components: Number of components, of which as many means start apart as the network's weights make them.
        covariance: Of each component.
        floor: Smallest standard deviation.
    """
    per_component = 1 + 2 * targets + (targets * (targets - 1) // 2 if covariance == "full" else 0)
    likelihood = pb.likelihoods.MixtureDensity(components, floor, covariance=covariance)
    net = tanh_network(inputs, components * per_component, hidden)
    return pb.SupervisedModel(net, likelihood, num_data=num_data)
