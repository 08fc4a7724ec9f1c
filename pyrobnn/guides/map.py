r"""Maximum a posteriori: the posterior as a point.

.. math::  \hat w = \arg\max_w \log p(D \mid w) + \log p(w).

With Normal priors of variance :math:`1 / (\lambda N)` this is training with weight decay λ on the mean loss. The
optimization runs in unconstrained space :math:`u`, ``w = t(u)``. Which mode is found depends on the space whose
density is maximized: by default that of ``w`` itself (as Pyro's ``AutoDelta``); with ``jacobian=True`` that of
``u``, whose log density has the extra term :math:`\log|\det \partial t / \partial u|`. The two differ only for
sites with constrained supports.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrobnn.core.explanations import explained
from pyrobnn.guides.components.point import TrainedAsPoint
from pyrobnn.model.divergence import Divergence, PriorTerm
from pyrobnn.model.draws import Draws
from pyrobnn.model.initialization import Init, initial_values

__all__ = ["MAP"]


@explained
class MAP(TrainedAsPoint):
    """A point estimate of every latent site.

    Args:
        model: The Pyro model.
        init: Where to start, as for :class:`~pyrobnn.guides.MeanField`.
        jacobian: Maximize the density in unconstrained space instead of the sites' own.
        example: Arguments of one run, for models whose sites are not known without data.
        sites: Names of the sites that the guide is for; all of them if None.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        init: Init = None,
        *,
        jacobian: bool = False,
        example: tuple[Any, ...] | None = None,
        sites: Collection[str] | None = None,
    ) -> None:
        super().__init__(model, example=example, sites=sites)
        self.loc = nn.Parameter(self.layout.join(initial_values(model, self.layout, init)))
        self.jacobian = jacobian

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {"jacobian": self.jacobian}

    def marginal(self, name: str) -> dist.Distribution:
        """A point mass."""
        return self.point_marginal(name)

    def rsample(self, noise: Tensor | None = None) -> Draws:
        """The point, with gradients."""
        return self.point()

    @torch.no_grad()
    def sample(self, num_samples: int) -> Draws:
        """The point, ``num_samples`` times: one copy of it, expanded."""
        return Draws({name: value.clone().expand(num_samples, *value.shape) for name, value in self.point().items()})

    def divergence(self, draws: Draws, priors: Mapping[str, PriorTerm]) -> Divergence:
        """``-log p`` of the point; no KL exists for a point mass."""
        return self.point_divergence(draws, priors)
