r"""The space in which a generator learns: standardized weights, or their principal components.

Draws :math:`w` are standardized weight by weight, :math:`u = (w - m) / s`. A chain of a network with many thousands of
weights moves in far fewer directions than it has weights: with the draws' leading principal axes as the rows of B,

.. math::  u \approx c B, \qquad B B^\top \propto I.

Distances between draws along the axes are, but for one factor, distances between their coordinates c, and so is the
Wasserstein distance: a generator of coordinates is trained as a generator of weights, restricted to where the draws
are, at a cost that does not depend on the number of weights. It need not learn what they never do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrobnn.core.moments import RunningMoments
from pyrobnn.model.layout import Layout

__all__ = ["PrincipalAxes", "Standards", "principal_axes"]

_ALIKE = 1e-6  # spread of draws, relative to their size, that is but rounding
_ROUNDING = 1e-6  # variance of an axis, relative to that of the first, that is but rounding


@dataclass(frozen=True)
class Standards:
    """Means and standard deviations of draws; calling it standardizes others.

    Attributes:
        loc, scale: Mean and standard deviation ``[P]``; the latter is zero where all draws are alike.
        count: Number of draws.
    """

    loc: Tensor
    scale: Tensor
    count: int

    @classmethod
    @torch.no_grad()
    def of(cls, blocks: Iterator[Tensor], layout: Layout) -> Standards:
        """Those of all draws in ``blocks``, which ``layout`` can split into sites.

        Raises:
            ValueError: If a draw is not finite, or no weight differs between draws.
        """
        moments = RunningMoments(torch.float64)
        for block in blocks:
            if not bool(block.isfinite().all()):
                raise ValueError(
                    f"guide: a draw of the site {_non_finite(block, layout)!r} is not finite; check the "
                    "sampler that made it."
                )
            moments.add(block)
        loc, scale = moments.mean.to(block), moments.std().to(block)
        scale[scale <= _ALIKE * loc.abs()] = 0.0
        if not bool((scale > 0).any()):
            raise ValueError(f"guide: its {moments.count} draws are all alike, so there is nothing to distil.")
        return cls(loc, scale, moments.count)

    def __call__(self, flat: Tensor) -> Tensor:
        """Standardized draws ``[K, P]``; 0 where the scale is."""
        return torch.where(self.scale > 0, (flat - self.loc) / self.scale, 0.0)


def _non_finite(block: Tensor, layout: Layout) -> str:
    return next(name for name, values in layout.split(block).items() if not bool(values.isfinite().all()))


@dataclass(frozen=True)
class PrincipalAxes:
    """The leading principal axes of standardized draws.

    Attributes:
        basis: Orthogonal rows ``[C, P]`` of one length, chosen so that coordinates have about unit size.
        coordinates: The draws' coordinates ``[S, C]``, of mean zero.
        explained: Share of the draws' variance along the axes.
    """

    basis: Tensor
    coordinates: Tensor
    explained: float


@torch.no_grad()
def principal_axes(
    blocks: Callable[[], Iterator[Tensor]], standards: Standards, count: int, most_rows: int
) -> PrincipalAxes:
    """Finds the axes of at most ``count`` leading principal components.

    Args:
        blocks: Gives all draws ``[S, P]`` in blocks, the same at each call.
        standards: Those of all draws.
        count: The number of components; fewer where the draws span fewer.
        most_rows: Draws, evenly spaced, from which the axes are found (or one more than ``count``, if that is more);
            all are projected on them.
    """
    stride, kept, start = -(-standards.count // max(most_rows, count + 1)), [], 0
    for block in blocks():
        kept.append(standards(block[-start % stride :: stride]))
        start += len(block)
    rows = torch.cat(kept)
    of_draws = len(rows) < rows.shape[1]  # the smaller of the two Gram matrices has the same eigenvalues
    values, vectors = torch.linalg.eigh((rows @ rows.T if of_draws else rows.T @ rows).double())
    values, vectors = values.flip(0)[:count], vectors.flip(1)[:, :count]
    values, vectors = (part[..., values > _ROUNDING * values[0]] for part in (values, vectors))
    axes = (vectors.T.to(rows) @ rows) if of_draws else vectors.T.to(rows)
    axes = axes / axes.norm(dim=1, keepdim=True)
    unit = (values.mean() / len(rows)).sqrt().to(rows)  # typical size of a coordinate along an axis of length one
    projected = rows @ axes.T if stride == 1 else torch.cat([standards(block) @ axes.T for block in blocks()])
    explained = float(values.sum() / rows.double().square().sum())
    return PrincipalAxes(axes * unit, projected / unit, explained)
