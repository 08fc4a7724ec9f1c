r"""The path derivative ("sticking the landing"): leave the score of q out of the gradient.

The Monte Carlo KL is :math:`\log q_\phi(w_\phi(\varepsilon)) - \log p(w)`. Its gradient has a path part, through
:math:`w`, and the score :math:`\partial_\phi \log q_\phi(w)` at fixed :math:`w`, whose mean is zero. Without the
score the gradient is still unbiased, and as q approaches the posterior its variance goes to zero, where that of the
exact KL does not. Roeder, Wu & Duvenaud, *Sticking the Landing* (2017).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from pyrobnn.estimators.base import Estimator

__all__ = ["PathDerivative", "path_log_density"]


class PathDerivative(Estimator):
    """Monte Carlo KL whose gradient takes the path through the draw alone."""

    name = "path_derivative"
    layerwise: ClassVar[bool] = False
    path_derivative: ClassVar[bool] = True


def path_log_density(factor: Any, value: Tensor) -> Tensor:
    """``log q(value)``, whose gradient is the one with respect to ``value`` only."""
    point = value.detach().requires_grad_()
    with torch.enable_grad():
        log_density = factor.log_prob(point)
        (slope,) = torch.autograd.grad(log_density.sum(), point)
    move = (slope * (value - value.detach())).reshape(*log_density.shape, -1).sum(-1)  # zero, with the right gradient
    return log_density.detach() + move
