"""The memory of a mean-field training step: noise in antithetic groups, leaves, and weights that layers draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from pyrobnn.estimators import Estimator, GaussianWeight, SharedDraw
from pyrobnn.estimators.weight import Places
from pyrobnn.guides.base import Site, by_site
from pyrobnn.guides.flat import FlatNormalPrior, Leaves

__all__ = ["Step"]

_SHARED = SharedDraw()
_GROUP = 8  # training draws that share one block of random numbers


class Step:
    """The buffers of :class:`~pyrobnn.guides.MeanField`, which one step after the other uses.

    Args:
        loc: The means, ``[d]``.
        sites: The sites in flat order.

    Attributes:
        noise, scale, value: ε, σ and the draw ``μ + σε``; σ gives way to σ² where layers draw by variances.
        by_log_scale: Room for the gradient by ``log σ``.
        leaves: The sites' parts of the draw.
        locs, variances: Those of μ and σ², for steps whose draws are made by layers.
        weights: The distributions that such a step hands out.
        prior: The flat prior that the step counts.
        is_layerwise: Whether layers make the step's draw.
        has_variance: Whether variances have taken the memory of σ.
        turn: Position of the coming draw in its antithetic group.
    """

    def __init__(self, loc: Tensor, sites: Sequence[Site]) -> None:
        like, self.sites = loc.detach(), sites
        self.noise, self.scale, self.value, self.by_log_scale = (torch.empty_like(like) for _ in range(4))
        self.leaves = Leaves(self.value, sites)
        self.locs: Leaves | None = None  # until layers make a draw
        self.variances = Leaves(self.scale, sites, self.by_log_scale)
        self.weights: dict[str, GaussianWeight] = {}
        self.prior: FlatNormalPrior | None = None
        self.is_layerwise = self.has_variance = self._has_noise = False
        self.turn = 0
        self._quarters, self._noises = self.noise.tensor_split(4), by_site(self.noise, sites)
        self._made_for: tuple[Mapping[str, Estimator], bool] | None = None  # the weights

    def follow(self, loc: Tensor) -> Leaves:
        """The leaves of the means, where they lie now."""
        if self.locs is None or self.locs.flat.data_ptr() != loc.data_ptr():
            self.locs, self._made_for = Leaves(loc, self.sites), None
        return self.locs

    def forget(self) -> None:
        """Drops gradients that nobody collected, those of a step that was broken off."""
        for leaves in (self.leaves, self.locs, self.variances):
            if leaves is not None:
                leaves.forget()

    # ----------------------------------------------------------------------------------------- one draw for all

    def refresh_noise(self, antithetic: bool) -> None:
        """The noise of the next draw: new, or the last one with other signs, which costs a tenth of drawing."""
        if self.turn == 0:
            self.noise.normal_()
        elif self.turn % 2:
            self.noise.neg_()
        else:
            for quarter in (0, 2) if self.turn == 4 else (0, 1):
                self._quarters[quarter].neg_()
        self.turn = (self.turn + 1) % _GROUP if antithetic else 0

    # ------------------------------------------------------------------------------------- draws made by layers

    def weights_under(self, estimators: Mapping[str, Estimator], antithetic: bool) -> dict[str, GaussianWeight]:
        """The sites' distributions, whose means and standard deviations lie in this memory, at the start of a step."""
        self.has_variance = self._has_noise = False
        if self._made_for != (estimators, antithetic):
            assert self.locs is not None, "follow comes before weights_under"
            scales, rooms = by_site(self.scale, self.sites), by_site(self.value, self.sites)
            for site in self.sites:
                name, by = site.name, estimators.get(site.name, _SHARED)
                places = Places(
                    rooms[name],
                    self.locs.slots[name],
                    self.variances.slots[name],
                    partial(self._variance_of, name),
                    lambda: self.has_variance,
                    partial(self._noise_of, name) if by.shares_noise and antithetic else None,
                )
                self.weights[name] = GaussianWeight.of(self.locs.values[name], scales[name], by, places)
            self._made_for = estimators, antithetic
        for weight in self.weights.values():
            weight.renew()
        return self.weights

    def _noise_of(self, name: str) -> Tensor:
        """A site's part of a draw in an antithetic group, which is made when one first asks in a step."""
        if not self._has_noise:
            self.refresh_noise(antithetic=True)
            self._has_noise = True
        return self._noises[name]

    def _variance_of(self, name: str) -> Tensor:
        """A site's variances as a leaf; when one first asks in a step, all take the memory of the scale."""
        if not self.has_variance:
            self.scale.square_()
            self.has_variance = True
        return self.variances.values[name]
