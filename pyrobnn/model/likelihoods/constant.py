r"""The best constant predictor: outputs that are the same for every input, the most a network without inputs can do.

.. math::  \hat c = \arg\max_c \sum_i \omega_i \log p(y_i \mid c).

A fit that is no better has learned nothing from its inputs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyrobnn.core.finite import weighted

if TYPE_CHECKING:
    from pyrobnn.model.likelihoods.base import Likelihood

__all__ = ["mean_target", "optimized_constant"]

_STEPS = 100


def mean_target(likelihood: Likelihood, y: Tensor, weight: Tensor | None) -> Tensor:
    """The weighted mean over rows of the targets that were observed ``[1, ...]``; 0 where none was."""
    seen = torch.ones_like(y) if (mask := likelihood.observed_mask(y)) is None else mask.to(y.dtype)
    if weight is not None:
        seen = seen * weight.to(y.dtype).reshape(-1, *[1] * (y.dim() - 1))
    total = y.where(seen > 0, 0.0).mul(seen).sum(0, keepdim=True)
    return total / seen.sum(0, keepdim=True).clamp_min(torch.finfo(y.dtype).tiny)


def optimized_constant(likelihood: Likelihood, outputs: Tensor, y: Tensor, weight: Tensor | None) -> Tensor | None:
    """The constant by L-BFGS in double precision from zero, for likelihoods without a closed form.

    Args:
        likelihood: The likelihood.
        outputs: Outputs of any rows ``[B, ...]``, for their shape.
        y: Targets ``[N, ...]``.
        weight: Weights of the rows ``[N]``, or None.

    Returns:
        Outputs ``[1, ...]``; None if the log likelihood is not finite at zero or where the search ends.
    """
    constant = torch.zeros_like(outputs[:1], dtype=torch.float64).requires_grad_()
    optimizer = torch.optim.LBFGS([constant], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        score = likelihood(constant.expand(len(y), *constant.shape[1:])).log_prob(y).double()
        value = -weighted(score, weight).mean()
        if value.requires_grad:
            (constant.grad,) = torch.autograd.grad(value, [constant])
        return value

    with torch.enable_grad():
        if not math.isfinite(loss().item()):
            return None
        optimizer.step(loss)
        is_finite = bool(constant.isfinite().all()) and math.isfinite(loss().item())
    return constant.detach().to(outputs.dtype) if is_finite else None
