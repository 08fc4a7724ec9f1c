r"""What a Dirichlet distribution over class probabilities :math:`z \sim \mathrm{Dir}(\alpha)` says of its uncertainty.

With :math:`\alpha_0 = \sum_c \alpha_c` and :math:`p = \alpha / \alpha_0`, the entropy of the label is what the label
leaves open if :math:`z` is known and what :math:`z` would tell of it,

.. math::  H[p] = \underbrace{E\, H[z]}_{\text{aleatoric}} + \underbrace{I[y; z]}_{\text{distributional}}, \qquad
           E\, H[z] = \psi(\alpha_0 + 1) - \sum_c p_c\, \psi(\alpha_c + 1)

(Malinin & Gales 2018). All are computed in double precision, since they are small differences of large numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyrobnn.core.explanations import explained
from pyrobnn.metrics._checks import check_float

__all__ = ["DirichletMeasures", "dirichlet_measures", "measures_of_log"]


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
    alpha = log_alpha.exp()
    alpha0 = alpha.sum(-1)
    p, log_p = alpha / alpha0.unsqueeze(-1), log_alpha.log_softmax(-1)
    total = -(p * log_p).sum(-1)
    aleatoric = torch.digamma(alpha0 + 1.0) - (p * torch.digamma(alpha + 1.0)).sum(-1)
    # ln B(α) + (α0 - C) ψ(α0) - Σ (α_c - 1) ψ(α_c)
    shifted = (alpha - 1.0) * torch.digamma(alpha)
    log_beta = torch.lgamma(alpha).sum(-1) - torch.lgamma(alpha0)
    density = log_beta + (alpha0 - alpha.shape[-1]) * torch.digamma(alpha0) - shifted.sum(-1)
    found = (alpha0, total, aleatoric, (total - aleatoric).clamp_min(0.0), density)  # rounding alone makes it negative
    return DirichletMeasures(*(value.to(dtype) for value in found))
