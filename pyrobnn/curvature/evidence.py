r"""Type-II maximum likelihood: the multiplier of the prior precision under which the data are most probable.

With :math:`P \to m P` the mode held, the Laplace log evidence is a sum over the blocks' eigenvalues
(:meth:`pyrobnn.curvature.Block.log_evidence_at`). At its maximum :math:`m = \gamma / \sum_i P_i (w_i - \mu_i)^2`,
with γ the number of directions that the data determine (MacKay 1992).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pyrobnn.curvature.blocks import Block

__all__ = ["best_multiplier", "tune_multipliers"]

_REACH = math.log(1e8)
_GRID = 201  # there may be several maxima; steps of a factor 1.2 resolve them


def best_multiplier(blocks: Sequence[Block]) -> float:
    """The multiplier, the same for all ``blocks``, that maximizes the evidence: the best of a grid, refined.

    Args:
        blocks: Fitted blocks.

    Returns:
        A number between 1e-8 and 1e8; at an end of this range if the evidence has no maximum within.
    """
    from scipy.optimize import minimize_scalar

    spectra = [block.spectrum() for block in blocks]  # once: those of a dense block take a decomposition

    def evidence(log_multiplier: Tensor) -> Tensor:
        m = log_multiplier.exp()
        return torch.stack([b.log_evidence_at(m, s) for b, s in zip(blocks, spectra, strict=True)]).sum(0)

    grid = torch.linspace(-_REACH, _REACH, _GRID, dtype=torch.float64, device=spectra[0].device)
    best = int(evidence(grid).argmax())
    bounds = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, _GRID - 1)])
    found = minimize_scalar(
        lambda log_multiplier: -float(evidence(grid.new_tensor(log_multiplier))),
        bounds=bounds,
        method="bounded",
        options={"xatol": 1e-8},
    )
    return math.exp(found.x)


def tune_multipliers(blocks: Sequence[Block], *, separately: bool) -> list[float]:
    """Sets the blocks' multipliers to those that maximize the evidence.

    Args:
        blocks: Fitted blocks.
        separately: One multiplier for each block instead of one for all.

    Returns:
        The multipliers that were found.
    """
    found = []
    for part in [[block] for block in blocks] if separately else [list(blocks)]:
        found.append(best_multiplier(part))
        for block in part:
            block.multiplier.fill_(found[-1])
    return found
