r"""Maximum a posteriori: the posterior as a point.

.. math::  \hat w = \arg\max_w \log p(D \mid w) + \log p(w).

With Normal priors of variance :math:`1 / (\lambda N)` this is training with weight decay λ on the mean loss. The
optimisation runs in unconstrained space :math:`u`, ``w = t(u)``. Which mode is found depends on the space whose
density is maximised: by default that of ``w`` itself (as Pyro's ``AutoDelta``); with ``jacobian=True`` that of
``u``, whose log density has the extra term :math:`\log|\det \partial t / \partial u|`. The two differ only for
sites with constrained supports.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrobnn.guides.base import Init, Site, initial_values
from pyrobnn.guides.flat import FlatNormalPrior, Leaves, accumulate, flat_normal_prior, release
from pyrobnn.guides.point import Point, PointMass

__all__ = ["Map"]


class Map(Point):
    """A point estimate of every latent site.

    Args:
        model: The Pyro model.
        init: Where to start, as for :class:`~pyrobnn.guides.MeanField`.
        jacobian: Maximise the density in unconstrained space instead of the sites' own.
        example: Arguments of one run, for models whose sites are not known without data.
        only: Names of the sites that the guide is for; all of them if None.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        init: Init = None,
        *,
        jacobian: bool = False,
        example: tuple[Any, ...] | None = None,
        only: Collection[str] | None = None,
    ) -> None:
        super().__init__(model, example=example, only=only)
        self.loc = nn.Parameter(self.join(initial_values(model, self.sites, init)))
        self.jacobian = jacobian
        self.flat_prior = flat_normal_prior(self.flat_order, self.flat_loc.detach())
        self._leaves: Leaves | None = None
        self._counted: FlatNormalPrior | None = None

    @property
    def flat_loc(self) -> nn.Parameter:
        """The flat vector, read past Pyro's attribute hooks."""
        return self._parameters["loc"]  # type: ignore[return-value]

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {"jacobian": self.jacobian}

    def factor(self, site: Site) -> dist.Distribution:
        """A point mass."""
        unconstrained = self.flat_loc[site.offset : site.offset + site.numel].view(site.unconstrained_shape)
        if site.is_real:
            return dist.Delta(unconstrained).to_event(site.event_dim)
        value = site.transform(unconstrained)
        return PointMass(value, -self.log_jacobian(site, unconstrained, value), event_dim=site.event_dim)

    def draw(self) -> dict[str, Tensor]:
        """The point, with gradients."""
        return self.constrain(self.split(self.flat_loc))

    @torch.no_grad()
    def sample(self, num_samples: int) -> dict[str, Tensor]:
        """The point, ``num_samples`` times: one copy of it, expanded."""
        return {name: value.clone().expand(num_samples, *value.shape) for name, value in self.draw().items()}

    # ------------------------------------------------------------------------------ training steps

    def begin_step(self) -> None:
        """Forgets what a step that was broken off has left."""
        if self._leaves is not None:
            self._leaves.forget()

    def write_draw(self) -> tuple[dict[str, Tensor], Tensor | float]:
        """The point as leaf tensors, and ``-log p`` of the sites that ``flat_prior`` covers."""
        loc = self.flat_loc
        if self._leaves is None or self._leaves.flat.data_ptr() != loc.data_ptr():
            self._leaves = Leaves(loc, self.flat_order)
        if self.flat_prior is not None and self.flat_prior.kind != (loc.dtype, loc.device):
            self.flat_prior = None  # the objective rebuilds it from the moved model
        score: Tensor | float = 0.0
        self._counted = self.flat_prior  # the one whose density is counted here, whatever the model shows later
        if (prior := self._counted) is not None and self.scores_prior:
            with torch.no_grad():
                score = prior.half_squares(loc[: prior.size]) + prior.log_normaliser
        return self.constrain(self._leaves.values), score

    def pull_back(self, weight: float) -> None:
        """Adds the gradients of the loss, and of ``weight`` times the flat ``-log p``, to the parameter."""
        assert self._leaves is not None, "write_draw comes before pull_back"
        with torch.no_grad():
            release(self.flat_loc, self._leaves.gradient)
            gradient = self._leaves.collect()
            if (prior := self._counted) is not None:
                prior.add_pull(gradient[: prior.size], self.flat_loc[: prior.size], weight)
            accumulate(self.flat_loc, gradient)

    def discard_counted(self) -> None:
        """Takes the flat score of the last draw out of the coming :meth:`pull_back`: the model has other priors now."""
        self._counted = None
