r"""A Dirichlet prior network: a classifier that says how much evidence it has, and that it has none far from the data.

.. math::  \gamma(x) = e^{f_w(x)}, \qquad
           \min_w \; \sum_{i=1}^N \mathrm{KL}[\mathrm{Dir}(\gamma(x_i)) \| \mathrm{Dir}(1 + 100\, \delta_{y_i})]
           + N\, E_{\tilde x}\, \mathrm{KL}[\mathrm{Dir}(\gamma(\tilde x)) \| \mathrm{Dir}(1)] - \log p(w)

(Malinin & Gales 2018, 2019), with outliers :math:`\tilde x` of another data set. With ``evidential=True`` it is
evidential deep learning (Sensoy, Kaplan & Kandemir 2018): :math:`\gamma = \max(f, 0) + 1` and squared errors, without
outliers by default. The weights may have any posterior; that of a point is the papers'.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

import pyrobnn as pb

__all__ = ["dirichlet_prior_network", "lenet", "objective"]


def dirichlet_prior_network(
    num_data: int,
    *,
    classes: int = 10,
    channels: int = 1,
    width: int = 16,
    evidential: bool = False,
    prior: pb.priors.PriorSpec | None = None,
) -> pb.SupervisedModel:
    """The model, a small LeNet of images ``[B, channels, H, W]``; pair it with any guide::

        guide = pb.guides.MAP(model)
        pb.fit(model, guide, loader, elbo=objective(outliers))
        pb.predict(model, guide, images).alpha0  # low where the network does not know

    Args:
        num_data: Number of training data.
        classes: Number of classes.
        channels: Channels of the images.
        width: Channels of the first convolution.
        evidential: Evidence of at least 0 plus one, instead of an exponential.
        prior: Prior of the weights; the default if None.
    """
    likelihood = pb.likelihoods.Dirichlet("relu" if evidential else "exp")
    return pb.SupervisedModel(lenet(classes, channels, width), likelihood, prior, num_data=num_data)


def lenet(classes: int, channels: int = 1, width: int = 16) -> nn.Sequential:
    """A small LeNet of images ``[B, channels, H, W]`` with ``classes`` outputs."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(32 * width, 8 * width),
        nn.ReLU(),
        nn.Linear(8 * width, classes),
    )


def objective(
    outliers: Iterable[Any] | None = None, *, evidential: bool = False, annealing_steps: int = 1000
) -> pb.objectives.DirichletELBO:
    """What it is trained with.

    Args:
        outliers: Batches of inputs without evidence for any class.
        evidential: Squared errors, and what evidence there is for wrong classes.
        annealing_steps: Training steps until that evidence counts in full.
    """
    if not evidential:
        return pb.objectives.DirichletELBO("reverse", evidence=100.0, outliers=outliers)
    annealed = pb.schedules.Linear(0.0, 1.0, annealing_steps, hold=True)
    return pb.objectives.DirichletELBO("squared", outliers=outliers, misleading_weight=annealed)
