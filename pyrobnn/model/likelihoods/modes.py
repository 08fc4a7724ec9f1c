r"""Local maxima of a mixture of Gaussians in one dimension, by the mean-shift iteration.

.. math::  y \leftarrow \frac{\sum_j w_j(y)\, \mu_j / \sigma_j^2}{\sum_j w_j(y) / \sigma_j^2}, \qquad
           w_j(y) \propto \pi_j N(y; \mu_j, \sigma_j^2),

which never lowers the density (Carreira-Perpiñán 2000). It starts at the highest points of a grid on and between the
components' means.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor

__all__ = ["Modes", "mixture_modes"]

_STEPS, _BETWEEN = 200, 4
_MAX_ELEMENTS = 2**22


class Modes(NamedTuple):
    """Modes, the highest first.

    Attributes:
        values: Where they are, ``[M, N, …]``; NaN where there are fewer than M.
        log_density: The log density there; minus infinity where there are fewer.
    """

    values: Tensor
    log_density: Tensor


@torch.no_grad()
def mixture_modes(each: dist.MixtureSameFamily, max_modes: int) -> Modes:
    """The modes of the equal mixture of K mixtures of Gaussians, batch shape ``[K, N, ...]``."""
    shape = each.batch_shape[1:]
    components = each.component_distribution
    count = each.batch_shape[0] * components.batch_shape[-1]

    def flat(part: Tensor) -> Tensor:
        """``[N * ..., K * components]``."""
        return part.movedim(0, -2).reshape(-1, count).double()

    log_share = flat(each.mixture_distribution.logits) - math.log(each.batch_shape[0])
    loc, scale = flat(components.loc), flat(components.scale)
    rows = max(1, _MAX_ELEMENTS // (_BETWEEN * count**2))
    parts = [
        _modes(log_share[i : i + rows], loc[i : i + rows], scale[i : i + rows], max_modes)
        for i in range(0, len(loc), rows)
    ]
    values, log_density = (torch.cat(part).T.reshape(max_modes, *shape) for part in zip(*parts, strict=True))
    return Modes(values.to(each.mean.dtype), log_density.to(each.mean.dtype))


def _modes(log_share: Tensor, loc: Tensor, scale: Tensor, max_modes: int) -> tuple[Tensor, Tensor]:
    def terms(y: Tensor) -> Tensor:
        z = (y.unsqueeze(-1) - loc.unsqueeze(1)) / scale.unsqueeze(1)
        return (log_share - scale.log()).unsqueeze(1) - 0.5 * z.square() - 0.5 * math.log(2 * math.pi)

    means = loc.sort(1).values
    parts = torch.linspace(0.0, 1.0, _BETWEEN + 1, dtype=loc.dtype, device=loc.device)[:-1]
    between = means[:, :-1, None] + parts * means.diff(dim=1).unsqueeze(-1)
    starts = torch.cat([between.flatten(1), means[:, -1:]], 1)
    density = terms(starts).logsumexp(-1)
    low = torch.full_like(density[:, :1], -math.inf)
    higher = (density >= torch.cat([low, density[:, :-1]], 1)) & (density >= torch.cat([density[:, 1:], low], 1))
    candidates = density.masked_fill(~higher, -math.inf).topk(min(4 * max_modes, density.shape[1]), 1)
    y = starts.gather(1, candidates.indices)
    for _ in range(_STEPS):
        weight = terms(y).softmax(-1) / scale.square().unsqueeze(1)
        y = (weight * loc.unsqueeze(1)).sum(-1) / weight.sum(-1)
    reached = terms(y)
    log_density = reached.logsumexp(-1).masked_fill(candidates.values.isinf(), -math.inf)
    # Two starts have come to the same mode if they are nearer than a hundredth of the narrowest component there.
    width = 0.01 * (reached.softmax(-1) * scale.unsqueeze(1)).sum(-1)
    order = log_density.argsort(1, descending=True)
    y, log_density, width = (part.gather(1, order) for part in (y, log_density, width))
    near = (y.unsqueeze(2) - y.unsqueeze(1)).abs() < torch.minimum(width.unsqueeze(2), width.unsqueeze(1))
    log_density = log_density.masked_fill(near.tril(-1).any(2), -math.inf)
    best = log_density.topk(min(max_modes, log_density.shape[1]), 1)
    values = y.gather(1, best.indices).masked_fill(best.values.isinf(), math.nan)
    missing = max_modes - values.shape[1]
    pad = torch.nn.functional.pad
    return pad(values, (0, missing), value=math.nan), pad(best.values, (0, missing), value=-math.inf)
