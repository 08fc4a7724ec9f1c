r"""Flat vectors as sites: one draw, one closed-form divergence, gradients by hand.

A mean-field step is dominated by memory traffic and by per-site Python, so families keep all sites in one flat
vector. :class:`Leaves` lets a model compute with views of such a vector and hands back the loss's gradient as one
flat vector; :class:`FlatNormalPrior` holds the Normal priors of the sites in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrobnn.guides.base import Site, by_site
from pyrobnn.independent import base_distribution

__all__ = ["FlatNormalPrior", "Leaves", "accumulate", "flat_normal_prior", "independent_normal", "release"]


class Leaves:
    """Leaf tensors viewing one flat vector, and the flat gradient of what was computed with them.

    Args:
        flat: The vector; writing into it changes the leaves.
        sites: The sites in flat order.
        gradient: Memory for the flat gradient; its own if None.

    Attributes:
        values: Unconstrained leaf tensors by site, ``requires_grad`` on.
        gradient: The flat gradient, valid after :meth:`collect`.
        slots: Its parts by site; a leaf's gradient that is written there is not copied.
    """

    def __init__(self, flat: Tensor, sites: Sequence[Site], gradient: Tensor | None = None) -> None:
        self.flat = flat.detach()
        self.gradient = torch.zeros_like(self.flat) if gradient is None else gradient
        self.values = {name: piece.requires_grad_() for name, piece in by_site(self.flat, sites).items()}
        self.slots = by_site(self.gradient, sites)

    def gradient_of(self, loss: Tensor) -> Tensor:
        """The flat gradient of a loss of the values; nothing is accumulated anywhere."""
        leaves = list(self.values.values())
        slopes = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        return torch.cat([slope.reshape(-1) for slope in slopes])

    def forget(self) -> None:
        """Drops gradients that nobody collected, those of a step that was broken off."""
        for leaf in self.values.values():
            leaf.grad = None

    def collect(self) -> Tensor:
        """Moves the leaves' gradients into the flat one; a leaf the loss does not depend on counts zero."""
        moved = []
        for leaf, slot in zip(self.values.values(), self.slots.values(), strict=True):
            if leaf.grad is None or leaf.grad.data_ptr() != slot.data_ptr():
                moved.append((slot, torch.zeros_like(slot) if leaf.grad is None else leaf.grad))
            leaf.grad = None
        if len(moved) == len(self.slots):
            torch.cat([part.reshape(-1) for _, part in moved], out=self.gradient)
        else:
            for slot, part in moved:
                slot.copy_(part)
        return self.gradient


class FlatNormalPrior:
    """The fixed Normal priors at the head of the flat order, as scalars where they are all one, else as vectors.

    Attributes:
        size: How many leading elements of the flat vector they cover.
        names: The sites they belong to.
        loc, precision: Prior means and inverse variances, floats or vectors ``[size]``.
        log_scale_sum: Sum of the log standard deviations.
    """

    def __init__(self, sites: Sequence[Site], like: Tensor) -> None:
        self.sites = [site for site in sites if site.is_flat_normal]
        self.kind = (like.dtype, like.device)
        self.size = sum(site.numel for site in self.sites)
        self.names = frozenset(site.name for site in self.sites)
        bases = [base_distribution(site.prior) for site in self.sites]
        self.loc = _flat([base.loc for base in bases], like)
        scale = _flat([base.scale for base in bases], like)
        if isinstance(scale, float):
            self.precision: float | Tensor = scale**-2
            self.log_scale_sum = self.size * float(torch.tensor(scale, dtype=torch.float64).log())
        else:
            self.precision = scale**-2
            self.log_scale_sum = float(scale.double().log().sum())

    @property
    def log_normaliser(self) -> float:
        """The part of ``-log p`` that does not depend on the value."""
        return self.log_scale_sum + 0.5 * self.size * math.log(2.0 * math.pi)

    def matches(self, priors: dict[str, dist.Distribution]) -> bool:
        """Whether a run of the model used exactly these priors."""
        return all(priors.get(site.name) is site.prior for site in self.sites)

    def half_squares(self, loc: Tensor) -> Tensor:
        r""":math:`\tfrac12 \sum_i (\mu_i - m_i)^2 / s_i^2` over the covered elements."""
        centred = loc if isinstance(self.loc, float) and self.loc == 0.0 else loc - self.loc
        if isinstance(self.precision, float):
            return centred.dot(centred) * (0.5 * self.precision)
        return (centred * centred).dot(self.precision) * 0.5

    def add_pull(self, gradient: Tensor, loc: Tensor, weight: float) -> None:
        """Adds ``weight`` times the gradient of :meth:`half_squares` with respect to ``loc``."""
        if isinstance(self.precision, float):
            gradient.add_(loc, alpha=weight * self.precision)
            if not (isinstance(self.loc, float) and self.loc == 0.0):
                gradient.sub_(self.loc * (weight * self.precision))
            return
        centred = loc if isinstance(self.loc, float) and self.loc == 0.0 else loc - self.loc
        gradient.addcmul_(centred, self.precision, value=weight)


def independent_normal(site: Site, loc: Tensor, scale: Tensor) -> Any:
    """Independent Gaussians over a site's unconstrained elements, pushed to the site's support."""
    base = dist.Normal(loc, scale)
    if site.is_real:
        return base.to_event(site.event_dim)
    transformed = dist.TransformedDistribution(base, [site.transform])
    return transformed.to_event(site.event_dim - site.transform.codomain.event_dim)


def flat_normal_prior(sites: Sequence[Site], like: Tensor) -> FlatNormalPrior | None:
    """The sites' fixed Normal priors, None if there is none."""
    return FlatNormalPrior(sites, like) if any(site.is_flat_normal for site in sites) else None


def release(parameter: nn.Parameter, buffer: Tensor) -> None:
    """Moves a gradient that is still being accumulated out of a buffer about to be overwritten."""
    if parameter.grad is buffer:
        parameter.grad = buffer.clone()


def accumulate(parameter: nn.Parameter, gradient: Tensor) -> None:
    """``parameter.grad += gradient``, taking the buffer itself where there is no gradient yet."""
    if parameter.grad is None:
        parameter.grad = gradient
    else:
        parameter.grad.add_(gradient)


def _flat(tensors: list[Tensor], like: Tensor) -> float | Tensor:
    """One float if all elements of all tensors are one number, else their concatenation."""
    firsts = {float(t.reshape(-1)[0]) for t in tensors if t.numel()}
    constant = all(all(s == 0 or n == 1 for s, n in zip(t.stride(), t.shape, strict=True)) for t in tensors)
    if constant and len(firsts) == 1:
        return firsts.pop()
    if not tensors:
        return 0.0
    return torch.cat([t.reshape(-1) for t in tensors]).to(like).detach()
