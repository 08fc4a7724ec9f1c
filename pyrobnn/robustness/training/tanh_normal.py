r"""A distribution over perturbations of the elements of an input: tanh of a normal variable, times a radius.

.. math::  \delta = \epsilon \tanh(u), \qquad u = m + \sigma r, \quad r \sim N(0, 1)

has the log density

.. math::  -\log p(\delta) = \tfrac12 r^2 + \tfrac12 \log 2\pi + \log \sigma + \log(1 - \tanh^2 u) + \log \epsilon,

so that the entropy is :math:`\tfrac12 \log 2\pi e + \log\sigma + \log\epsilon + E \log(1 - \tanh^2 u)`, whose last part
has no closed form: it is estimated by a draw, or computed by Gauss-Hermite quadrature.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["TanhNormal"]

_HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)


class TanhNormal:
    """Independent perturbations, one for each element of a tensor.

    Args:
        loc: Means m, of any shape.
        raw_scale: Numbers s of the same shape; the standard deviation is ``softplus(s)``.
        epsilon: The radius.
    """

    def __init__(self, loc: Tensor, raw_scale: Tensor, epsilon: float) -> None:
        self.loc, self.scale, self.epsilon = loc, F.softplus(raw_scale), epsilon

    def rsample(self, noise: Tensor) -> Tensor:
        """The perturbation made from standard normals of the shape of ``loc``, in the graph of the parameters."""
        return self.epsilon * torch.tanh(self.loc + self.scale * noise)

    def negative_log_prob(self, noise: Tensor) -> Tensor:
        """Minus the log density of that perturbation, by element; its mean is the entropy."""
        return 0.5 * noise.square() + _HALF_LOG_TWO_PI + self._log_slope(noise)

    def entropy_at(self, noise: Tensor) -> Tensor:
        """An estimate of the entropy by element with what has a closed form in closed form, of less variance."""
        return 0.5 + _HALF_LOG_TWO_PI + self._log_slope(noise)

    def entropy(self, num_nodes: int = 64) -> Tensor:
        """The entropy by element, by Gauss-Hermite quadrature."""
        nodes, weights = (found.to(self.loc) for found in _rule(num_nodes))
        spread = self.loc.unsqueeze(-1) + self.scale.unsqueeze(-1) * nodes
        expected = (_log_one_minus_square_of_tanh(spread) * weights).sum(-1)
        return 0.5 + _HALF_LOG_TWO_PI + self.scale.log() + math.log(self.epsilon) + expected

    def _log_slope(self, noise: Tensor) -> Tensor:
        """Log of the derivative of the perturbation by the noise."""
        u = self.loc + self.scale * noise
        return self.scale.log() + math.log(self.epsilon) + _log_one_minus_square_of_tanh(u)


def _log_one_minus_square_of_tanh(u: Tensor) -> Tensor:
    return 2.0 * (math.log(2.0) - u - F.softplus(-2.0 * u))


@lru_cache(maxsize=4)
def _rule(num_nodes: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights for an expectation under the standard normal."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(num_nodes)
    return torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())
