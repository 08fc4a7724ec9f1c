r"""Continuous ranked probability score (CRPS), in the target's units.

.. math::  \mathrm{CRPS}(F, y) = \int (F(t) - [y \le t])^2\, dt = E|X - y| - \tfrac12 E|X - X'|, \quad X, X' \sim F

It is proper: the true distribution minimizes it in expectation. For a point prediction it is the absolute error. Here
are the score of draws from any distribution, and closed forms for mixtures, whose components come first, as draws of a
posterior do. Of a prediction, ``prediction.crps(y)`` takes the closed form where there is one.

Sources: Gneiting and Raftery (2007), "Strictly proper scoring rules, prediction, and estimation"; Grimit et al. (2006)
for Gaussian mixtures; Jordan, Krüger and Lerch (2019), "Evaluating probabilistic forecasts with scoringRules".
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from pyro.ops.stats import crps_empirical
from torch import Tensor

from pyrobnn.core.explanations import explained
from pyrobnn.metrics._checks import Reduction, check_float, check_regression, check_same_shape, reduced

__all__ = [
    "crps",
    "gaussian_crps",
    "gaussian_mixture_crps",
    "gaussian_mixtures",
    "laplace_mixture_crps",
    "laplace_mixtures",
    "log_normal_mixture_crps",
    "log_normal_mixtures",
]

_NEAR = 1e-5  # relative difference of two scales below which a difference quotient has fewer digits than a derivative


@explained
def crps(
    draws: Tensor, y: Tensor, *, fair: bool = True, reduction: Reduction = "mean", weight: Tensor | None = None
) -> Tensor:
    """The score from predictive draws.

    The draws must include the observation noise: with draws of the mean alone, the score judges a noise-free forecast.

    With ``fair`` the second expectation runs over the ``S (S - 1)`` pairs of distinct draws, which makes the
    score an unbiased estimate of the predictive distribution's CRPS whatever ``S`` is (single values can be
    negative; Ferro, "Fair scores for ensemble forecasts", 2014). Without, it runs over all ``S²`` pairs and
    scores the empirical distribution of the draws, which is larger by ``E|X - X'| / (2 S)`` on average.
    Time is ``O(S log S)``.

    Args:
        draws: Predictive draws ``[S, ...]``; ``S >= 2`` if ``fair``.
        y: Targets ``[...]``.
        fair: Whether to remove the bias of finitely many draws.
        reduction: ``"mean"`` or ``"none"``.
        weight: Weights of the examples ``[N]`` in the mean.

    Returns:
        0-d mean, or the shape of ``y``. For one draw and ``fair=False`` this is the absolute error.

    Raises:
        TypeError: Not floating-point tensors.
        ValueError: Shapes that do not fit, values that are not finite, one draw with ``fair``, or wrong weights.
    """
    draws = check_float(draws, "draws", finite=True)
    y = check_float(y, "y", finite=True)
    if draws.ndim < 1:
        raise ValueError("draws: expected shape [S, ...] (draws first), got a scalar.")
    check_same_shape(y, "y", draws.shape[1:], "draws [S, ...]")
    empirical = crps_empirical(draws, y)
    if not fair:
        return reduced(empirical, reduction, weight)
    num_samples = draws.shape[0]
    if num_samples < 2:
        raise ValueError("draws: the fair score needs at least 2 draws, got 1. Draw more, or pass fair=False.")
    absolute_error = (draws - y).abs().mean(0)
    half_spread = absolute_error - empirical
    return reduced(absolute_error - half_spread * (num_samples / (num_samples - 1)), reduction, weight)


@explained
def gaussian_crps(
    mean: Tensor, std: Tensor, y: Tensor, reduction: Reduction = "mean", *, weight: Tensor | None = None
) -> Tensor:
    """The score of a Gaussian prediction.

    ``σ [ z (2 Φ(z) - 1) + 2 φ(z) - 1/√π ]`` with ``z = (y - μ) / σ``; Gneiting et al., 2005.

    Args:
        mean: Predictive mean ``μ``, any shape.
        std: Predictive standard deviation ``σ > 0`` of the same shape, observation noise included.
        y: Targets of the same shape.
        reduction: ``"mean"`` or ``"none"``.
        weight: Weights of the examples ``[N]`` in the mean.

    Returns:
        0-d mean, or the shape of ``y``.

    Raises:
        TypeError: Not floating-point tensors.
        ValueError: Shapes differ, values are not finite, ``std`` is not positive, or wrong weights.
    """
    mean, std, y = check_regression(mean=mean, std=std, y=y)
    _check_positive("std", std, "a standard deviation")
    score = gaussian_distance(y - mean, std) - std / math.sqrt(math.pi)
    return reduced(score, reduction, weight)


@explained
def gaussian_mixture_crps(
    loc: Tensor,
    scale: Tensor,
    y: Tensor,
    shares: Tensor | None = None,
    reduction: Reduction = "mean",
    *,
    weight: Tensor | None = None,
) -> Tensor:
    """The score of a mixture of Gaussians, in closed form; time is ``O(K²)``.

    Args:
        loc: Means of K components ``[K, ...]``.
        scale: Standard deviations of the same shape.
        y: Targets ``[...]``.
        shares: Probabilities of the components, of the same shape as ``loc``; None: all ``1 / K``.
        reduction: ``"mean"`` or ``"none"``.
        weight: Weights of the examples ``[N]`` in the mean.

    Returns:
        0-d mean, or the shape of ``y``.

    Raises:
        TypeError: Not floating-point tensors.
        ValueError: Shapes differ, values are not finite, a scale is not positive, shares do not sum to 1, or wrong
            weights.
    """
    return _of_mixture(gaussian_mixtures, loc, scale, y, shares, reduction, weight)


@explained
def laplace_mixture_crps(
    loc: Tensor,
    scale: Tensor,
    y: Tensor,
    shares: Tensor | None = None,
    reduction: Reduction = "mean",
    *,
    weight: Tensor | None = None,
) -> Tensor:
    """The score of a mixture of Laplace distributions, in closed form; arguments as :func:`gaussian_mixture_crps`.

    Args:
        loc: Locations of K components ``[K, ...]``.
        scale: Scales b of the same shape.
        y: Targets ``[...]``.
        shares: Probabilities of the components, of the same shape as ``loc``; None: all ``1 / K``.
        reduction: ``"mean"`` or ``"none"``.
        weight: Weights of the examples ``[N]`` in the mean.

    Returns:
        0-d mean, or the shape of ``y``.

    Raises:
        TypeError, ValueError: As :func:`gaussian_mixture_crps`.
    """
    return _of_mixture(laplace_mixtures, loc, scale, y, shares, reduction, weight)


@explained
def log_normal_mixture_crps(
    loc: Tensor,
    scale: Tensor,
    y: Tensor,
    shares: Tensor | None = None,
    reduction: Reduction = "mean",
    *,
    weight: Tensor | None = None,
) -> Tensor:
    """The score of a mixture of log-normal distributions, in closed form.

    Args:
        loc: Means of the logarithm, of K components ``[K, ...]``.
        scale: Standard deviations of the logarithm, of the same shape.
        y: Targets ``[...]``.
        shares: Probabilities of the components, of the same shape as ``loc``; None: all ``1 / K``.
        reduction: ``"mean"`` or ``"none"``.
        weight: Weights of the examples ``[N]`` in the mean.

    Returns:
        0-d mean, or the shape of ``y``.

    Raises:
        TypeError, ValueError: As :func:`gaussian_mixture_crps`.
    """
    return _of_mixture(log_normal_mixtures, loc, scale, y, shares, reduction, weight)


# ------------------------------------------------------------------- unchecked, [K, ...] in double precision


def gaussian_mixtures(loc: Tensor, scale: Tensor, shares: Tensor, y: Tensor) -> Tensor:
    r""":math:`\sum_k \pi_k A(y - \mu_k, \sigma_k) - \tfrac12 \sum_{kl} \pi_k \pi_l A(\mu_k - \mu_l, \sigma_{kl})`.

    With :math:`A(m, s) = E|m + s Z|` and :math:`\sigma_{kl}^2 = \sigma_k^2 + \sigma_l^2`.
    """

    def of_pairs(k: int) -> Tensor:
        return gaussian_distance(loc[k:] - loc[k], torch.hypot(scale[k:], scale[k]))

    return (shares * gaussian_distance(y - loc, scale)).sum(0) - _half_spread(shares, of_pairs)


def laplace_mixtures(loc: Tensor, scale: Tensor, shares: Tensor, y: Tensor) -> Tensor:
    r"""As :func:`gaussian_mixtures`, with :math:`E|m + b L| = |m| + b e^{-|m| / b}` for one variable L.

    For two, of scales b and c, it is :math:`|m| + (b^3 e^{-|m| / b} - c^3 e^{-|m| / c}) / (b^2 - c^2)`.
    """

    def of_pairs(k: int) -> Tensor:
        return _laplace_pair((loc[k:] - loc[k]).abs(), scale[k:], scale[k].expand_as(scale[k:]))

    distance = (y - loc).abs()
    first = distance + scale * (-distance / scale).exp()
    return (shares * first).sum(0) - _half_spread(shares, of_pairs)


def log_normal_mixtures(loc: Tensor, scale: Tensor, shares: Tensor, y: Tensor) -> Tensor:
    r"""By :math:`E|X - X'| = m (2 Φ(a) - 1) + m' (2 Φ(a') - 1)`, :math:`a = (\mu - \mu' + \sigma^2) / \sigma_{kl}`.

    Sums are of tail probabilities, since :math:`m = e^{\mu + \sigma^2 / 2}` may be far larger than the score.
    """
    log_mean = loc + scale.square() / 2
    positive = y > 0
    z = (torch.where(positive, y, 1.0).log() - loc) / scale
    upper = (log_mean + torch.special.log_ndtr(z - scale)).exp()  # E[X; X <= y]
    total = torch.where(positive, y * (2.0 * torch.special.ndtr(z) - 1.0) - 2.0 * upper, -y)
    for k in range(len(loc)):
        a = (loc - loc[k] + scale.square()) / torch.hypot(scale, scale[k])
        total = total + 2.0 * shares[k] * (log_mean + torch.special.log_ndtr(-a)).exp()
    return (shares * total).sum(0)


def gaussian_distance(mean: Tensor, std: Tensor) -> Tensor:
    """``E|X|`` of a Gaussian, ``m (2 Φ(m/s) - 1) + 2 s φ(m/s)``."""
    z = mean / std
    return mean * torch.erf(z / math.sqrt(2)) + std * math.sqrt(2 / math.pi) * torch.exp(-z.square() / 2)


def _laplace_pair(distance: Tensor, first: Tensor, second: Tensor) -> Tensor:
    near = (first - second).abs() <= _NEAR * torch.maximum(first, second)
    other = torch.where(near, 2.0 * first, second)  # of another scale than the first
    quotient = first**3 * (-distance / first).exp() - other**3 * (-distance / other).exp()
    quotient = quotient / ((first - other) * (first + other))
    middle = (first + second) / 2
    derivative = (3.0 * middle + distance) / 2 * (-distance / middle).exp()
    return distance + torch.where(near, derivative, quotient)


def _half_spread(shares: Tensor, of_pairs: Callable[[int], Tensor]) -> Tensor:
    """``E|X - X'| / 2``, where ``of_pairs(k)`` are the distances of component ``k`` to those from k on."""
    total = torch.zeros_like(shares[0])
    for k in range(len(shares)):
        found = shares[k:] * of_pairs(k)
        total = total + shares[k] * (found.sum(0) - found[0] / 2)
    return total


def _of_mixture(
    formula: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    loc: Tensor,
    scale: Tensor,
    y: Tensor,
    shares: Tensor | None,
    reduction: Reduction,
    weight: Tensor | None,
) -> Tensor:
    loc, scale = check_regression(loc=loc, scale=scale)
    _check_positive("scale", scale, "a standard deviation, not its logarithm")
    if not loc.dim():
        raise ValueError("loc: expected shape [K, ...] (components first), got a scalar.")
    y = check_float(y, "y", finite=True)
    check_same_shape(y, "y", loc.shape[1:], "loc [K, ...]")
    if shares is None:
        shares = torch.full_like(loc, 1.0 / len(loc), dtype=torch.float64)
    else:
        shares = check_float(shares, "shares", finite=True)
        check_same_shape(shares, "shares", loc.shape, "loc")
        if bool((shares < 0).any()) or bool(((shares.sum(0) - 1).abs() > 1e-3).any()):
            raise ValueError("shares: expected probabilities that sum to 1 over the components; apply softmax(0).")
    found = formula(loc.double(), scale.double(), shares.double(), y.double())
    return reduced(found.to(y.dtype), reduction, weight)


def _check_positive(name: str, value: Tensor, what: str) -> None:
    if (smallest := value.detach().min()) <= 0:
        raise ValueError(f"{name}: expected values > 0, got {smallest.item():.4g}. Pass {what}.")
