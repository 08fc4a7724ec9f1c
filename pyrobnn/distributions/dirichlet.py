r"""The Kullback–Leibler divergence of two Dirichlet distributions, for training.

.. math::  \mathrm{KL}[\mathrm{Dir}(\alpha) \| \mathrm{Dir}(\beta)] = \ln \frac{\Gamma(\alpha_0)}{\Gamma(\beta_0)}
           + \sum_c \ln \frac{\Gamma(\beta_c)}{\Gamma(\alpha_c)}
           + \sum_c (\alpha_c - \beta_c) \big(\psi(\alpha_c) - \psi(\alpha_0)\big).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["dirichlet_kl", "dirichlet_kl_to_uniform"]


def dirichlet_kl(alpha: Tensor, beta: Tensor) -> Tensor:
    """The divergence of Dir(α) from Dir(β), ``[...]``, in double precision: its terms are large and cancel.

    Args:
        alpha: Concentrations ``[..., C]``.
        beta: Concentrations of a shape that broadcasts with it.
    """
    alpha, beta = torch.broadcast_tensors(alpha.double(), beta.double())
    alpha0, beta0 = alpha.sum(-1), beta.sum(-1)
    normalizers = torch.lgamma(alpha0) - torch.lgamma(beta0) + (torch.lgamma(beta) - torch.lgamma(alpha)).sum(-1)
    slopes = torch.digamma(alpha) - torch.digamma(alpha0).unsqueeze(-1)
    return normalizers + ((alpha - beta) * slopes).sum(-1)


def dirichlet_kl_to_uniform(alpha: Tensor) -> Tensor:
    """The divergence of Dir(α) from Dir(1), the uniform distribution on the simplex, whose log gammas are known."""
    alpha = alpha.double()
    alpha0 = alpha.sum(-1)
    normalizers = torch.lgamma(alpha0) - torch.lgamma(alpha).sum(-1) - math.lgamma(alpha.shape[-1])
    return normalizers + ((alpha - 1.0) * (torch.digamma(alpha) - torch.digamma(alpha0).unsqueeze(-1))).sum(-1)
