r"""What a Dirichlet distribution over class probabilities :math:`z \sim \mathrm{Dir}(\alpha)` says of its uncertainty.

With :math:`\alpha_0 = \sum_c \alpha_c` and :math:`p = \alpha / \alpha_0`, the entropy of the label is what the label
leaves open if :math:`z` is known and what :math:`z` would tell of it,

.. math::  H[p] = \underbrace{E\, H[z]}_{\text{aleatoric}} + \underbrace{I[y; z]}_{\text{distributional}}, \qquad
           E\, H[z] = \psi(\alpha_0 + 1) - \sum_c p_c\, \psi(\alpha_c + 1)

(Malinin & Gales 2018). All are computed in double precision, since they are small differences of large numbers. Where
a concentration is large, its large terms are left out, which cancel: with r and s of
:mod:`pyrobnn.core.stirling` the differential entropy is :math:`\sum_c f_1(\alpha_c) - f_C(\alpha_0)`,

.. math::  f_n(a) = \ln \Gamma(a) - (a - n)\, \psi(a) + a
                  = (n - \tfrac12) \ln a + \tfrac12 \ln 2 \pi + \frac{a - n}{2 a} + r(a) + (a - n)\, s(a),

and :math:`I[y; z] = \sum_c p_c\, g(\alpha_c) - g(\alpha_0)` with
:math:`g(a) = \psi(a + 1) - \ln a = 1 / (2 a) - s(a)`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyrobnn.core.explanations import explained
from pyrobnn.core.stirling import LARGE, digamma_remainder, log_gamma_remainder
from pyrobnn.metrics._checks import check_float

__all__ = ["DirichletMeasures", "dirichlet_measures", "measures_of_log"]

_LIMIT = 690.0  # e^690, its sums and their reciprocals are numbers in double precision


class DirichletMeasures(NamedTuple):
    """Measures of Dirichlet distributions, each ``[...]``, entropies in nats."""

    alpha0: Tensor
    """Total concentration (evidence)."""
    total: Tensor
    """Entropy of the expected probabilities: ``aleatoric + distributional``."""
    aleatoric: Tensor
    """Expected entropy of the probabilities."""
    distributional: Tensor
    """Mutual information of the label and its probabilities."""
    differential_entropy: Tensor
    """Of the density on the simplex, with respect to its first C - 1 coordinates; at most that of Dir(1)."""


@explained
def dirichlet_measures(concentrations: Tensor) -> DirichletMeasures:
    """Total concentration, entropy and its two parts, and differential entropy, in closed form.

    Args:
        concentrations: ``[..., C]``, positive.

    Returns:
        Each ``[...]``.

    Raises:
        TypeError: ``concentrations`` is not a floating-point tensor.
        ValueError: It has no class dimension of at least two, or a value is not positive and finite.
    """
    concentrations = check_float(concentrations, "concentrations", finite=True)
    if concentrations.ndim < 1 or concentrations.shape[-1] < 2:
        raise ValueError(
            f"concentrations: expected shape [..., C] of at least two classes, got {list(concentrations.shape)}."
        )
    if concentrations.numel() and (smallest := concentrations.detach().min()) <= 0:
        raise ValueError(f"concentrations: expected positive values, got {smallest.item():.4g}.")
    return measures_of_log(concentrations.double().log(), concentrations.dtype)


def measures_of_log(log_alpha: Tensor, dtype: torch.dtype | None = None) -> DirichletMeasures:
    """The same from log concentrations ``[..., C]``, unchecked, in their dtype or another."""
    dtype = log_alpha.dtype if dtype is None else dtype
    log_alpha = log_alpha.double()
    log_alpha0, log_p = log_alpha.logsumexp(-1), log_alpha.log_softmax(-1)
    alpha, p = log_alpha.clamp(-_LIMIT, _LIMIT).exp(), log_p.exp()
    alpha0 = alpha.sum(-1)
    total = -(p * log_p).sum(-1)
    # One part is computed, and the other is the rest; which of both is accurate depends on the concentration.
    expected = torch.digamma(alpha0 + 1.0) - (p * torch.digamma(alpha + 1.0)).sum(-1)
    told = (p * _digamma_excess(alpha, log_alpha)).sum(-1) - _digamma_excess(alpha0, log_alpha0)
    is_large = alpha0 > LARGE
    distributional = torch.where(is_large, told, total - expected).clamp_min(0.0)  # rounding alone makes it negative
    aleatoric = torch.where(is_large, total - told, expected)
    density = _entropy_part(alpha, log_alpha, 1).sum(-1) - _entropy_part(alpha0, log_alpha0, alpha.shape[-1])
    found = (log_alpha0.exp(), total, aleatoric, distributional, density)
    return DirichletMeasures(*(value.to(dtype) for value in found))


def _digamma_excess(a: Tensor, log_a: Tensor) -> Tensor:
    """g."""
    large = a > LARGE
    big = a.clamp_min(LARGE)
    return torch.where(large, 0.5 / big - digamma_remainder(big), torch.digamma(a.clamp_max(LARGE) + 1.0) - log_a)


def _entropy_part(a: Tensor, log_a: Tensor, n: int) -> Tensor:
    """``f_n``; of a small number from Γ and ψ of the next, so that a logarithm may be below that of any number."""
    large = a > LARGE
    big, small = a.clamp_min(LARGE), a.clamp_max(LARGE)
    remainders = log_gamma_remainder(big) + (big - n) * digamma_remainder(big)
    series = (n - 0.5) * log_a + 0.5 * math.log(2.0 * math.pi) + 0.5 * (1.0 - n / big) + remainders
    direct = torch.lgamma(small + 1.0) - log_a - (small - n) * torch.digamma(small + 1.0) + 1.0 - n / small + small
    return torch.where(large, series, direct)
