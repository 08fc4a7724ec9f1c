r"""Concrete distributions: categorical and Bernoulli choices relaxed to the simplex and the unit interval.

.. math::  \alpha = \mathrm{softmax}\big((\lambda + g) / t\big), \quad g_k \sim \mathrm{Gumbel}; \qquad
           \log p = \log\Gamma(K) + (K - 1) \log t + \sum_k s_k - K \log\sum_k e^{s_k}, \quad
           s_k = \lambda_k - t \log\alpha_k.

At low temperatures t an element of α underflows to zero, where the density on the simplex is infinite or undefined.
Its logarithm never does, so densities are computed in log space (logit space for the binary case), and draws made
here have their logarithm as the attribute ``relaxed``: :func:`relaxed_of` returns it. With noise scaled by β,
:math:`\mathrm{softmax}((\theta + \beta g) / \tau)` is concrete, too, with logits θ/β and temperature τ/β.

Maddison, Mnih & Teh, *The Concrete Distribution* (2017); Jang, Gu & Poole, *Gumbel-Softmax* (2017).
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions import constraints
from torch import Tensor

__all__ = [
    "BinaryConcrete",
    "Concrete",
    "binary_log_density",
    "concrete_log_density",
    "gumbel",
    "logistic",
    "relaxed_of",
    "to_interval",
    "to_simplex",
    "with_relaxed",
]


def concrete_log_density(log_value: Tensor, logits: Tensor, temperature: Tensor | float) -> Tensor:
    """Log density in log space, ``[..., K]`` to ``[...]``.

    Of the K - 1 differences ``log α_k - log α_K``; that of α itself is larger by minus the sum of ``log α``.
    """
    num_choices = log_value.shape[-1]
    scores = logits - temperature * log_value
    constant = math.lgamma(num_choices) + (num_choices - 1) * _log(temperature)
    return scores.sum(-1) - num_choices * scores.logsumexp(-1) + constant


def binary_log_density(logit_value: Tensor, logits: Tensor, temperature: Tensor | float) -> Tensor:
    """Log density of ``logit z``, elementwise; that of z itself is larger by ``-log z(1 - z)``."""
    score = logits - temperature * logit_value
    return score - 2.0 * F.softplus(score) + _log(temperature)


def gumbel(like: Tensor, shape: torch.Size) -> Tensor:
    """Standard Gumbel noise of a shape, with the dtype and device of ``like``."""
    noise = torch.empty(shape, dtype=like.dtype, device=like.device).exponential_()
    return noise.clamp_(min=torch.finfo(noise.dtype).tiny).log_().neg_()


def logistic(like: Tensor, shape: torch.Size) -> Tensor:
    """Standard logistic noise: the difference of two Gumbels."""
    first, second = gumbel(like, torch.Size((2, *shape)))
    return first - second


def to_simplex(scores: Tensor, hard: bool = False) -> Tensor:
    """``softmax(scores)`` with its logarithm as ``relaxed``; if ``hard`` one-hot, with the gradient of the softmax."""
    log_value = scores.log_softmax(-1)
    value = log_value.exp()
    if hard:
        one_hot = F.one_hot(log_value.argmax(-1), log_value.shape[-1]).to(value.dtype)
        value = one_hot + (value - value.detach())
    return with_relaxed(value, log_value)


def to_interval(scores: Tensor, hard: bool = False) -> Tensor:
    """``sigmoid(scores)`` with its logit as ``relaxed``; if ``hard`` 0 or 1, with the gradient of the sigmoid."""
    value = scores.sigmoid()
    if hard:
        value = (scores > 0).to(value.dtype) + (value - value.detach())
    return with_relaxed(value, scores)


def with_relaxed(value: Tensor, relaxed: Tensor) -> Tensor:
    """The same tensor with ``relaxed``, its exact logarithm (or logit), as an attribute; copies do not have it."""
    value.relaxed = relaxed  # type: ignore[attr-defined]
    return value


def relaxed_of(value: Tensor, binary: bool = False) -> Tensor:
    """``log α`` (or ``logit z``) of a draw: its ``relaxed``, else that of the value, clamped away from zero."""
    relaxed = getattr(value, "relaxed", None)
    if relaxed is not None:
        return relaxed
    limits = torch.finfo(value.dtype)
    if binary:
        return value.clamp(limits.tiny, 1.0 - limits.eps).logit()
    return value.clamp_min(limits.tiny).log()


class Concrete(dist.TorchDistribution):
    """A relaxed one-hot choice among K.

    Args:
        temperature: Temperature t, a positive scalar.
        logits: Logits λ ``[..., K]`` of the choice; they need not be normalized.
        hard: Draw one-hot vectors whose gradient is that of the relaxed draw (straight-through). Their log
            density is the relaxed draw's.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = True

    def __init__(self, temperature: Tensor | float, logits: Tensor, hard: bool = False) -> None:
        self.temperature, self.logits, self.hard = temperature, logits, hard
        super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """The simplex."""
        return constraints.simplex

    @property
    def probs(self) -> Tensor:
        """Probability that each element is the largest, ``softmax(λ)``: it does not depend on the temperature."""
        return self.logits.softmax(-1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Concrete:
        """The same for a larger batch shape."""
        return Concrete(self.temperature, self.logits.expand(*batch_shape, self.logits.shape[-1]), self.hard)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws ``[*sample_shape, ..., K]`` with gradients."""
        noise = gumbel(self.logits, self.shape(sample_shape))
        return to_simplex((self.logits + noise) / self.temperature, self.hard)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of points of the simplex, ``[..., K]`` to ``[...]``."""
        log_value = relaxed_of(value)
        return concrete_log_density(log_value, self.logits, self.temperature) - log_value.sum(-1)


class BinaryConcrete(dist.TorchDistribution):
    """A relaxed choice between 0 and 1, elementwise.

    Args:
        temperature: Temperature t, a positive scalar.
        logits: Log odds λ of 1.
        hard: Draw zeros and ones whose gradient is that of the relaxed draw (straight-through).
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = True

    def __init__(self, temperature: Tensor | float, logits: Tensor, hard: bool = False) -> None:
        self.temperature, self.logits, self.hard = temperature, logits, hard
        super().__init__(logits.shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """The unit interval."""
        return constraints.unit_interval

    @property
    def probs(self) -> Tensor:
        """Probability of a value above one half, ``sigmoid(λ)``: it does not depend on the temperature."""
        return self.logits.sigmoid()

    def expand(self, batch_shape: Any, _instance: Any = None) -> BinaryConcrete:
        """The same for a larger batch shape."""
        return BinaryConcrete(self.temperature, self.logits.expand(batch_shape), self.hard)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws ``[*sample_shape, ...]`` with gradients."""
        noise = logistic(self.logits, self.shape(sample_shape))
        return to_interval((self.logits + noise) / self.temperature, self.hard)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of points of the unit interval, elementwise."""
        logit = relaxed_of(value, binary=True)
        slope = F.softplus(logit) + F.softplus(-logit)  # -log z(1 - z)
        return binary_log_density(logit, self.logits, self.temperature) + slope


def _log(temperature: Tensor | float) -> Tensor | float:
    return temperature.log() if isinstance(temperature, Tensor) else math.log(temperature)
