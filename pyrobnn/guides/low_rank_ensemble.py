r"""An ensemble whose members share their weights up to low-rank factors (BatchEnsemble, Wen et al. 2020).

.. math::  w_m = W \circ (A_m B_m), \qquad A_m \in \mathbb{R}^{o \times r},\; B_m \in \mathbb{R}^{r \times i k^2},

for every weight matrix, and every convolution kernel read as the matrix ``[o, i k²]``; rank 1 with factors of signs is
BatchEnsemble, the form with Gaussian factors around one is that of BayesAdapter (Deng et al. 2020). With M members a
layer stores :math:`o\,i k^2 + M r (o + i k^2)` numbers instead of :math:`M\,o\,i k^2`. Vectors (biases) and sites with
constrained support are small and stay each member's own.

What members do to the outputs adds up over the layers, so they scatter less in a deep network. The factors start so
that they scatter around W by a standard deviation s relative to each weight: entries of mean :math:`\mu = r^{-1/2}`
and variance :math:`v = (\sqrt{1 + r s^2} - 1) / r` give :math:`E[AB] = r \mu^2 = 1` and
:math:`\mathrm{Var}[AB] = r\,(2 \mu^2 v + v^2) = s^2`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.core.arguments import check_positive, check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.guides.ensembles.base import Ensemble
from pyrobnn.model.initialization import Init, initial_values
from pyrobnn.model.layout import Layout, Site

__all__ = ["LowRankEnsemble"]

WIDEST, SPREAD = 0.2, 0.8
"""Relative spread of the members by default: at most, and to be divided by the number of matrices."""


@explained
class LowRankEnsemble(Ensemble):
    """Members that differ in low-rank factors of shared weights.

    Each member is scored as a point, by ``-log p(w_m)``, under gradients as in any
    :class:`~pyrobnn.guides.ensembles.base.Ensemble`: shared weights follow the average member, factors their own.

    Args:
        model: The Pyro model.
        num_members: Number M of members.
        rank: Rank r of the factors.
        spread: Standard deviation s of the members around the shared weights at the start, relative to each weight;
            0.8 divided by the number of weight matrices and kernels if None, at most 0.2.
        init: Where the shared weights start, as for :class:`~pyrobnn.guides.MeanField`.
        members_per_step: Members that a step visits, at random; all if None.
        jacobian: Score the density in unconstrained space, as :class:`~pyrobnn.guides.MAP` does.
        example: Arguments of one run, for models whose sites are not known without data.
        sites: Names of the sites that the guide is for; all of them if None.

    Raises:
        ValueError: If ``rank`` or ``spread`` is not positive, no site is a matrix, or a starting value does not fit.
    """

    sizes = ("num_members", "rank")

    def __init__(
        self,
        model: Callable[..., Any],
        num_members: int = 5,
        rank: int = 1,
        *,
        spread: float | None = None,
        init: Init = None,
        members_per_step: int | None = None,
        jacobian: bool = False,
        example: tuple[Any, ...] | None = None,
        sites: Collection[str] | None = None,
    ) -> None:
        super().__init__(model, num_members, members_per_step=members_per_step, example=example, sites=sites)
        check_positive_int("rank", rank)
        if spread is not None:
            check_positive("spread", spread, "standard deviation")
        self.rank = rank
        self.jacobian = jacobian
        self._matrices = Layout(site for site in self.layout.values() if _is_matrix(site))
        self._vectors = Layout(site for site in self.layout.values() if not _is_matrix(site))
        if not self._matrices:
            raise ValueError(
                f"model: none of its sites ({', '.join(list(self.layout)[:8])}) is a weight matrix, so members have "
                "nothing to share; use DeltaMixture."
            )
        if spread is None:
            spread = min(WIDEST, SPREAD / len(self._matrices))
        start = initial_values(model, self.layout, init)
        self.shared = nn.Parameter(self._matrices.join(start))
        scale = math.sqrt((math.sqrt(1.0 + rank * spread**2) - 1.0) / rank)
        num_factors = sum(sum(self._factor_sizes(site)) for site in self._matrices.values())
        noise = torch.randn(num_members, num_factors, dtype=self.flat_shared.dtype, device="cpu").to(self.flat_shared)
        self.factors = nn.Parameter(rank**-0.5 + scale * noise)
        if self._vectors:
            own = self._vectors.join(start)
            self.own = nn.Parameter(
                own * (1.0 + spread * torch.randn(num_members, len(own), dtype=own.dtype, device="cpu").to(own))
            )

    @property
    def flat_shared(self) -> nn.Parameter:
        """The shared weights of all matrices ``[sum of o i k²]``, read past Pyro's attribute hooks."""
        return self._parameters["shared"]  # type: ignore[return-value]

    @property
    def flat_factors(self) -> nn.Parameter:
        """The members' factors ``[M, sum of r (o + i k²)]``: A, then B of each matrix."""
        return self._parameters["factors"]  # type: ignore[return-value]

    @property
    def flat_own(self) -> nn.Parameter | None:
        """The members' own vectors ``[M, ...]``, None if there are none."""
        return self._parameters.get("own")

    def scale_parameters(self) -> list[nn.Parameter]:
        """The factors, which scale the shared weights: what distinguishes members may learn faster than those do."""
        return [self.flat_factors]

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {
            "num_members": self.num_members,
            "rank": self.rank,
            "members_per_step": self.members_per_step,
            "jacobian": self.jacobian,
        }

    def member(self, index: int) -> dict[str, Tensor]:
        """The sites' values in one member."""
        own = None if self.flat_own is None else self.scaled(self.flat_own[index])
        return self.layout.constrain(self._values(self.scaled(self.flat_factors[index]), own))

    def stacked(self, members: Tensor) -> dict[str, Tensor]:
        """Copies of members ``[K]``."""
        with torch.no_grad():
            chosen = members.to(self.flat_factors.device)
            own = None if self.flat_own is None else self.flat_own[chosen]
            return self.layout.constrain(self._values(self.flat_factors[chosen], own))

    def _values(self, factors: Tensor, own: Tensor | None) -> dict[str, Tensor]:
        """Unconstrained values from the parameters of one member or of several, ``[..., *]``."""
        lead = factors.shape[:-1]
        found = {} if own is None else self._vectors.split(own)
        sizes = [size for site in self._matrices.values() for size in self._factor_sizes(site)]
        pieces, shared = iter(factors.split(sizes, -1)), self._matrices.split(self.flat_shared)
        for name, site in self._matrices.items():
            left, right = next(pieces), next(pieces)
            product = left.reshape(*lead, -1, self.rank) @ right.reshape(*lead, self.rank, -1)
            found[name] = shared[name] * product.reshape(lead + site.unconstrained_shape)
        return {name: found[name] for name in self.layout}

    def _factor_sizes(self, site: Site) -> tuple[int, int]:
        """Numbers in A and in B."""
        rows = site.unconstrained_shape[0]
        return self.rank * rows, self.rank * (site.numel // rows)


def _is_matrix(site: Site) -> bool:
    """Whether members share the site's values: a plain weight matrix or kernel."""
    return site.is_real and len(site.unconstrained_shape) > 1
