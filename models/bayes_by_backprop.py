r"""The digit classifier of Blundell et al. (2015), *Weight Uncertainty in Neural Networks*.

Two hidden layers of rectified linear units under the scale-mixture prior
:math:`\pi N(0, \sigma_1^2) + (1 - \pi) N(0, \sigma_2^2)`, fitted with a mean-field Gaussian. The mixture has no
closed-form KL, so its divergence is estimated by the draw; with ``mixture=False`` the prior is one Gaussian and the KL
exact.
"""

from __future__ import annotations

import math

import pyro.distributions as dist
from torch import nn

import pyrobnn as pb

__all__ = ["bayes_by_backprop"]


def bayes_by_backprop(
    num_data: int,
    *,
    inputs: int = 784,
    hidden: int = 400,
    classes: int = 10,
    mixture: bool = True,
    pi: float = 0.5,
    sigma1: float = 1.0,
    sigma2: float = math.exp(-6.0),
) -> pb.SupervisedModel:
    """The model; pair it with ``pb.guides.MeanField(model)``.

    Args:
        num_data: Number of training data.
        inputs: Input features (images are flattened).
        hidden: Units per hidden layer; the paper uses 400, 800 and 1200.
        classes: Number of classes.
        mixture: Scale-mixture prior, else ``Normal(0, sigma1)``.
        pi: Weight of the wide component; the paper tries 1/4, 1/2, 3/4.
        sigma1: Its standard deviation; the paper tries exp(0), exp(-1), exp(-2).
        sigma2: The narrow one's; the paper tries exp(-6), exp(-7), exp(-8).
    """
    net = nn.Sequential(
        nn.Flatten(),
        nn.Linear(inputs, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, classes),
    )
    prior = pb.priors.scale_mixture(pi, sigma1, sigma2) if mixture else dist.Normal(0.0, sigma1)
    return pb.SupervisedModel(net, pb.likelihoods.Categorical(), prior, num_data=num_data)
