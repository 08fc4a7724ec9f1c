r"""A deep ensemble as a posterior: a mixture of M point masses (Lakshminarayanan et al. 2017).

.. math::  q(w) = \frac1M \sum_m \delta(w - w_m), \qquad
           L = \frac1M \sum_m \left[ -\log p(D \mid w_m) - \log p_m(w_m) \right].

Three strategies differ in :math:`p_m`. ``"regularized"``: the prior, so that each member is a MAP estimate.
``"free"``: no prior at all, the maximum-likelihood members of the paper. ``"anchored"``: the Normal prior centered
instead on a draw from it that is the member's own, :math:`a_m \sim p`, which spreads members where the data say
little (randomized MAP, Pearce et al. 2020). For a linear model with noise σ and posterior precision Λ, anchored
members have the posterior mean and the covariance :math:`\Lambda^{-1} S^{-1} \Lambda^{-1}`, S being the prior's:
smaller than :math:`\Lambda^{-1}`, from which only noise on the targets, too, would close the gap.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, get_args

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrobnn.core.explanations import explained
from pyrobnn.estimators.base import Estimator
from pyrobnn.guides.components.point import point_mass
from pyrobnn.guides.ensembles.base import Ensemble
from pyrobnn.guides.ensembles.initialization import MemberInit, member_initialization
from pyrobnn.model.bayesianize import bayesian_modules
from pyrobnn.model.divergence import PriorTerm
from pyrobnn.model.draws import Draws
from pyrobnn.model.initialization import network_of
from pyrobnn.model.layout import Site
from pyrobnn.steps.base import Step
from pyrobnn.steps.member_buffers import MemberBuffers
from pyrobnn.steps.member_order import MemberOrder
from pyrobnn.steps.members import MemberStep
from pyrobnn.steps.normal_prior import is_fixed_normal
from pyrobnn.steps.points import PointScore, PointStep

__all__ = ["DeltaMixture"]

Strategy = Literal["regularized", "free", "anchored"]


@explained
class DeltaMixture(Ensemble):
    """A deep ensemble: M members, each a point in weight space.

    All members see the same batches. Parameters of the model that are no sites (those of norm layers, unless a prior
    rule names them) are shared by all members; the networks' buffers, such as running statistics, are each member's
    own. :func:`pyrobnn.fit` trains all members at once.

    Args:
        model: The Pyro model.
        num_members: Number M of members.
        init: How members are initialized. None: the first is the network as it was given, the others are copies whose
            modules' ``reset_parameters()`` ran anew (initializations that a network does elsewhere, in its own
            constructor say, are not repeated: pass a list of freshly built networks then). ``"prior"``: prior draws. A
            network, state dict or dict of site values, or a guide that is a point: all start there, with noise of
            ``spread``. A list of M of them. Any other guide: a draw each (of an ensemble, M of its members); or draws,
            at least M. A function ``(site name, prior) -> value``, called for each member. Sites that are no weights
            start at the center of their prior.
        spread: With one common start: standard deviation of the noise that distinguishes members, as a fraction of
            the root mean square of each site.
        strategy: ``"regularized"``, ``"free"`` or ``"anchored"``. Pyro's own objectives see the last two right
            where priors are fixed.
        members_per_step: Members that a step visits, at random; all if None. Those chosen count M / k times, which
            keeps gradients unbiased.
        vmap: Whether a step runs all members in one vectorized pass; ``"auto"`` does where that is faster and
            possible (:mod:`pyrobnn.steps.vectorized`).
        jacobian: Score the density in unconstrained space, as :class:`~pyrobnn.guides.MAP` does.
        example: Arguments of one run, for models whose sites are not known without data.
        sites: Names of the sites that the guide is for; all of them if None.

    Raises:
        TypeError: If ``init`` is of another kind.
        ValueError: If an argument is out of range, ``init`` does not fit, members would start equal, or
            ``"anchored"`` is used with a prior that is no fixed Normal.
    """

    sizes = ("num_members",)

    def __init__(
        self,
        model: Callable[..., Any],
        num_members: int = 5,
        init: MemberInit = None,
        *,
        spread: float = 0.1,
        strategy: Strategy = "regularized",
        members_per_step: int | None = None,
        vmap: bool | Literal["auto"] = "auto",
        jacobian: bool = False,
        example: tuple[Any, ...] | None = None,
        sites: Collection[str] | None = None,
    ) -> None:
        super().__init__(model, num_members, members_per_step=members_per_step, example=example, sites=sites)
        if strategy not in get_args(Strategy):
            raise ValueError(f"strategy: expected one of {', '.join(map(repr, get_args(Strategy)))}, got {strategy!r}.")
        if vmap not in (True, False, "auto"):
            raise ValueError(f"vmap: expected True, False or 'auto', got {vmap!r}.")
        if vmap is True and (members_per_step is not None or len(self.own_buffers)):
            what = "members_per_step" if members_per_step is not None else "buffers, such as running statistics"
            raise ValueError(f"vmap: a vectorized step visits all members and cannot have {what}; use vmap='auto'.")
        self.strategy = strategy
        self.jacobian = jacobian
        loc, buffers = member_initialization(self.layout, model, init, num_members, spread)
        self.loc = nn.Parameter(loc)
        for index, own in enumerate(buffers):
            self.own_buffers.write(index, own)
        if strategy == "anchored":
            self.register_buffer("anchors", torch.stack([self._anchor() for _ in range(num_members)]).to(loc))
        self.vmap = vmap

    @classmethod
    @explained
    def from_draws(cls, model: Callable[..., Any], draws: Mapping[str, Tensor], **options: Any) -> DeltaMixture:
        """The ensemble of given draws, of MCMC or another guide.

        Args:
            model: The model.
            draws: ``{site: [M, *site shape]}``.
            **options: Further arguments of the constructor.

        Raises:
            ValueError: If a site is missing or unknown, or draws do not fit.
        """
        counts = {name: len(value) for name, value in draws.items()}
        if len(set(counts.values())) != 1:
            raise ValueError(f"draws: expected as many draws of each site, at least one, got {counts}.")
        draws, num_members = Draws.of(draws), next(iter(counts.values()))
        guide = cls(model, num_members, init=[draws.at(index) for index in range(num_members)], **options)
        if missing := [name for name in guide.layout if name not in draws]:
            raise ValueError(f"draws: they lack the site {missing[0]!r}; name the sites you have with sites=.")
        return guide

    @classmethod
    @explained
    def from_networks(
        cls, model: Callable[..., Any], networks: Sequence[nn.Module | Mapping[str, Tensor]], **options: Any
    ) -> DeltaMixture:
        """The ensemble of networks that were trained elsewhere, with their running statistics.

        Args:
            model: The model.
            networks: Networks of the model's architecture, or their state dicts.
            **options: Further arguments of the constructor.

        Raises:
            ValueError: If there is none, one does not fit, or they differ in a parameter that the model has no prior
                for: there is one of it only.
        """
        if not networks:
            raise ValueError("networks: expected at least one.")
        converted = bayesian_modules(model) if isinstance(model, nn.Module) else []
        for network in networks if len(converted) == 1 else ():
            network_of(converted[0], network, "networks", own_buffers=True)
        return cls(model, len(networks), init=list(networks), **options)

    @property
    def flat_loc(self) -> nn.Parameter:
        """The members' flat vectors ``[M, d]``, read past Pyro's attribute hooks."""
        return self._parameters["loc"]  # type: ignore[return-value]

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {
            "num_members": self.num_members,
            "init": "prior",  # any start will do, the members come from the state dict
            "strategy": self.strategy,
            "members_per_step": self.members_per_step,
            "vmap": self.vmap,
            "jacobian": self.jacobian,
        }

    def member(self, index: int) -> dict[str, Tensor]:
        """The sites' values in one member."""
        return self.layout.constrain(self.layout.split(self.scaled(self.flat_loc[index])))

    def _rows(self) -> list[Tensor]:
        """All members' flat vectors, with one node of the graph for all."""
        # Views of the rows, since hooks of what unbind returns are called without a gradient for rows not used.
        return [self.scaled(row.view_as(row)) for row in self.flat_loc.unbind()]

    def only(self, model: Callable[..., Any], index: int) -> DeltaMixture:
        """A copy with one of the members, its buffers and its anchor, to be trained by itself."""
        one = copy.deepcopy(self)
        one.num_members, one.members_per_step = 1, None
        one.loc = nn.Parameter(self.flat_loc.detach()[index : index + 1].clone())
        one.buffers_by_member = MemberBuffers(model, 1).to(self.flat_loc.device)
        one.own_buffers.write(0, self.own_buffers.copies(index))
        if self.strategy == "anchored":
            one.register_buffer("anchors", self.anchors[index : index + 1].clone())
        return one

    def stacked(self, members: Tensor) -> dict[str, Tensor]:
        """Copies of members ``[K]``."""
        return self.layout.constrain(self.layout.split(self.flat_loc.detach()[members.to(self.flat_loc.device)]))

    # ------------------------------------------------------------------------------------------ training

    def score(self) -> PointScore:
        """``-log p_m``."""
        return PointScore(
            self.layout,
            jacobian=self.jacobian,
            centers=(lambda: self.anchors) if self.strategy == "anchored" else None,
            counts_prior=self.strategy != "free",
        )

    def step(
        self,
        model: Callable[..., Any] | None,
        estimators: Mapping[str, Estimator] | None = None,
        *,
        sequential: bool = True,
        vectorize: bool = True,
    ) -> Step:
        """Rows of one matrix, one after another or all in one vectorized pass."""
        if not sequential:
            order = MemberOrder(self.num_members, self.members_per_step, self.own_buffers)
            return MemberStep(self.layout, self.member, self.score(), order, self._rows)
        return PointStep(
            self.layout,
            self.flat_loc,
            self.score(),
            model=model,
            buffers=self.own_buffers,
            members_per_step=self.members_per_step,
            vmap=self.vmap if vectorize else False,
        )

    def point_mass(self, site: Site, value: Tensor, component: Tensor | None) -> dist.Distribution:
        """The point mass of one member; its log density turns the prior's into that of the strategy."""
        if self.strategy == "regularized":
            return super().point_mass(site, value, component)
        log_prior = site.prior.log_prob(value)
        score = self.score().of_site(site, value, PriorTerm(site.prior), component)
        return point_mass(site, value, log_prior + score)

    def _anchor(self) -> Tensor:
        for site in self.layout.values():
            if not is_fixed_normal(site, PriorTerm(site.prior)):
                raise ValueError(
                    f"strategy: anchors need fixed Normal priors, but site {site.name!r} has the prior "
                    f"{type(site.prior).__name__} (or one that changes); use another strategy, or leave the site to a "
                    "guide of its own."
                )
        return self.layout.join({name: site.prior.sample() for name, site in self.layout.items()})
