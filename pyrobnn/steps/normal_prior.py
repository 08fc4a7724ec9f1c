"""The fixed Normal priors of a layout as numbers over windows of the flat vector, for divergences in a few passes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrobnn.distributions.independent import base_distribution
from pyrobnn.model.divergence import PriorTerm
from pyrobnn.model.layout import Layout, Site, is_trained

__all__ = ["FlatNormalPrior", "NormalWindow", "is_fixed_normal"]

_LARGE = 2**14  # elements from which a site whose prior differs from its neighbors' has a window of its own


def is_fixed_normal(site: Site, term: PriorTerm) -> bool:
    """Whether a prior is a constant Normal outside of plates, without scale or mask."""
    return (
        site.is_static
        and not site.plates
        and term.is_plain
        and isinstance(base_distribution(term.distribution), dist.Normal)
        and not is_trained(term.distribution)
    )


@dataclass(frozen=True)
class NormalWindow:
    """Neighboring sites with Normal priors: scalars where they are all one, else vectors.

    Attributes:
        window: Their elements of the flat vector.
        loc, precision: Prior means and inverse variances, floats or vectors.
        log_scale_sum: Sum of the log standard deviations.
    """

    window: slice
    loc: float | Tensor
    precision: float | Tensor
    log_scale_sum: float

    @classmethod
    def of(cls, window: slice, bases: list[dist.Normal], like: Tensor) -> NormalWindow:
        """The priors of neighboring sites."""
        loc, scale = (_flat([getattr(base, name) for base in bases], like) for name in ("loc", "scale"))
        if isinstance(scale, float):
            log_scale_sum = (window.stop - window.start) * float(torch.tensor(scale, dtype=torch.float64).log())
            return cls(window, loc, scale**-2, log_scale_sum)
        return cls(window, loc, scale**-2, float(scale.double().log().sum()))

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.window.stop - self.window.start

    @property
    def log_normalizer(self) -> float:
        """The part of ``-log p`` that does not depend on the value."""
        return self.log_scale_sum + 0.5 * self.size * math.log(2.0 * math.pi)

    def half_squares(self, loc: Tensor) -> Tensor:
        r""":math:`\tfrac12 \sum_i (\mu_i - m_i)^2 / s_i^2` over the window's elements ``loc [size]``."""
        centered = loc if isinstance(self.loc, float) and self.loc == 0.0 else loc - self.loc
        if isinstance(self.precision, float):
            return centered.dot(centered) * (0.5 * self.precision)
        return (centered * centered).dot(self.precision) * 0.5

    def add_gradient(self, gradient: Tensor, loc: Tensor, weight: float) -> None:
        """Adds ``weight`` times the gradient of :meth:`half_squares` with respect to ``loc [..., size]``."""
        if isinstance(self.precision, float):
            gradient.add_(loc, alpha=weight * self.precision)
            if not (isinstance(self.loc, float) and self.loc == 0.0):
                gradient.sub_(self.loc * (weight * self.precision))
            return
        centered = loc if isinstance(self.loc, float) and self.loc == 0.0 else loc - self.loc
        gradient.addcmul_(centered, self.precision, value=weight)


class FlatNormalPrior:
    """The constant Normal priors of a run of the model.

    Args:
        layout: The sites.
        priors: The priors of that run.
        like: The flat vector, for dtype and device.

    Attributes:
        names: Sites with such priors.
        windows: Their windows of the flat vector.
        gaps: The other windows.
    """

    def __init__(self, layout: Layout, priors: Mapping[str, PriorTerm], like: Tensor) -> None:
        self._kind = (like.dtype, like.device)
        static = {name: priors.get(name) for name, site in layout.items() if site.is_static}
        self._static = [(name, term and term.distribution, term and term.is_plain) for name, term in static.items()]
        self.names = frozenset(n for n, term in static.items() if term and is_fixed_normal(layout[n], term))
        self.windows: list[NormalWindow] = []
        self.gaps: list[slice] = []
        for window, names in _runs(layout, self.names):
            if names[0] not in self.names:
                self.gaps.append(window)
                continue
            bases = {name: base_distribution(priors[name].distribution) for name in names}
            for group in _groups(layout, bases):
                window = slice(layout[group[0]].offset, layout[group[-1]].window.stop)
                self.windows.append(NormalWindow.of(window, [bases[name] for name in group], like))

    @classmethod
    def of(
        cls, known: FlatNormalPrior | None, layout: Layout, priors: Mapping[str, PriorTerm], like: Tensor
    ) -> FlatNormalPrior:
        """``known``, if it is of these priors, else new numbers: finding them takes longer than a small network."""
        return known if known is not None and known.matches(priors, like) else cls(layout, priors, like)

    def matches(self, priors: Mapping[str, PriorTerm], like: Tensor) -> bool:
        """Whether another run of the model applied the same static priors."""
        if self._kind != (like.dtype, like.device):
            return False
        for name, distribution, is_plain in self._static:
            term = priors.get(name)
            if term is None:
                if distribution is not None:
                    return False
            elif term.distribution is not distribution or term.is_plain is not is_plain:
                return False
        return True


def _runs(layout: Layout, names: frozenset[str]) -> Iterator[tuple[slice, list[str]]]:
    """Windows of neighboring sites that are all among ``names`` or all not."""
    run: list[str] = []
    for name in layout:
        if run and (name in names) != (run[0] in names):
            yield slice(layout[run[0]].offset, layout[run[-1]].window.stop), run
            run = []
        run = [*run, name]
    if run:
        yield slice(layout[run[0]].offset, layout[run[-1]].window.stop), run


def _groups(layout: Layout, bases: Mapping[str, dist.Normal]) -> list[list[str]]:
    """Neighboring sites that one window is for: those with the same two numbers, and small sites with any.

    A vector of precisions takes memory and time of its own, which a large site's window with one number does without.
    """
    groups: list[list[str]] = []
    last: tuple[tuple[float, float] | None, bool] | None = None
    for name, base in bases.items():
        loc, scale = _number([base.loc]), _number([base.scale])
        numbers = None if loc is None or scale is None else (loc, scale)
        is_apart = numbers is not None and layout[name].numel >= _LARGE
        if last is not None and numbers is not None and numbers == last[0]:
            groups[-1].append(name)
            last = numbers, last[1] or is_apart
        elif last is None or is_apart or last[1]:
            groups.append([name])
            last = numbers, is_apart
        else:
            groups[-1].append(name)
            last = None, False
    return groups


def _number(tensors: list[Tensor]) -> float | None:
    """The number that all elements of all tensors are, as far as their strides show it; else None."""
    firsts = {float(t.reshape(-1)[0]) for t in tensors if t.numel()}
    constant = all(all(s == 0 or n == 1 for s, n in zip(t.stride(), t.shape, strict=True)) for t in tensors)
    return firsts.pop() if constant and len(firsts) == 1 else None


def _flat(tensors: list[Tensor], like: Tensor) -> float | Tensor:
    """One float if all elements of all tensors are one number, else their concatenation."""
    number = _number(tensors)
    if number is not None:
        return number
    if not tensors:
        return 0.0
    return torch.cat([t.reshape(-1) for t in tensors]).to(like).detach()
