r"""Regression by a conditional normalizing flow: a density of any form, jointly for several targets.

One target: the network's outputs are the parameters of a monotonic spline (Durkan et al. 2019), so that a posterior of
the weights is one of the whole density. Several: the network's outputs are features that an autoregressive or coupling
flow with weights of its own reads (Papamakarios et al. 2017; Dinh et al. 2017). Needs the extra ``flows``.
"""

from __future__ import annotations

from typing import Any

import pyrobnn as pb
from models.heteroscedastic import tanh_network

__all__ = ["flow_regression"]


def flow_regression(
    num_data: int,
    *,
    inputs: int = 1,
    targets: int = 1,
    hidden: int = 50,
    features: int = 32,
    **options: Any,
) -> pb.SupervisedModel:
    """The model, for targets of unit scale (``pb.Standardizer``); pair it with any guide.

    Args:
        num_data: Number of training data.
        inputs: Input features.
        targets: Targets of a row.
        hidden: Units of each of two hidden layers.
        features: Number of features that the flow of several targets is given.
        options: Further ones of :class:`~pyrobnn.likelihoods.ConditionalFlow`, such as ``bins`` or ``coupling``.
    """
    likelihood = pb.likelihoods.ConditionalFlow(targets, None if targets == 1 else features, **options)
    net = tanh_network(inputs, likelihood.num_outputs, hidden)
    return pb.SupervisedModel(net, likelihood, num_data=num_data)
