r"""A deep ensemble as a posterior: a mixture of M point masses (Lakshminarayanan et al. 2017).

.. math::  q(w) = \frac1M \sum_m \delta(w - w_m), \qquad
           L = \frac1M \sum_m \left[ -\log p(D \mid w_m) - \log p_m(w_m) \right].

Three strategies differ in :math:`p_m`. ``"regularised"``: the prior, so that each member is a MAP estimate.
``"free"``: no prior at all, the maximum-likelihood members of the paper. ``"anchored"``: the Normal prior centred
instead on a draw from it that is the member's own, :math:`a_m \sim p`, which spreads members where the data say
little (randomised MAP, Pearce et al. 2020). For a linear model with noise σ and posterior precision Λ, anchored
members have the posterior mean and the covariance :math:`\Lambda^{-1} S^{-1} \Lambda^{-1}`, S being the prior's:
smaller than :math:`\Lambda^{-1}`, from which only noise on the targets, too, would close the gap.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, get_args

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrobnn.guides.base import Site
from pyrobnn.guides.draws import Draws
from pyrobnn.guides.ensemble import Ensemble
from pyrobnn.guides.flat import FlatNormalPrior, flat_normal_prior
from pyrobnn.guides.member_starts import MemberInit, check_shared, member_starts
from pyrobnn.guides.point import PointMass
from pyrobnn.guides.together import MemberLeaves, evaluate_together, pays_off
from pyrobnn.independent import base_distribution

__all__ = ["DeltaMixture"]

Strategy = Literal["regularised", "free", "anchored"]


class DeltaMixture(Ensemble):
    """A deep ensemble: M members, each a point in weight space.

    All members see the same batches. Parameters of the model that are no sites (those of norm layers, unless a prior
    rule names them) are shared by all members; the networks' buffers, such as running statistics, are each member's
    own. :func:`pyrobnn.fit` trains all members at once.

    Args:
        model: The Pyro model.
        num_members: Number M of members.
        init: How members start apart. None: the first is the network as it was given, the others are copies whose
            modules' ``reset_parameters()`` ran anew (initialisations that a network does elsewhere, in its own
            constructor say, are not repeated: pass a list of freshly built networks then). ``"prior"``: prior draws. A
            network, state dict or dict of site values: all start there, apart by ``spread``. A list of M of them. A
            function ``(site name, prior) -> value``, called for each member. Sites that are no weights start at the
            centre of their prior.
        spread: With one common start: standard deviation of the noise that tells members apart, as a fraction of
            the root mean square of each site.
        strategy: ``"regularised"``, ``"free"`` or ``"anchored"``. Pyro's own objectives see the last two right
            where priors are fixed.
        members_per_step: Members that a step visits, at random; all if None. Those chosen count M / k times, which
            keeps gradients unbiased.
        vmap: Whether a step runs all members in one vectorised pass; ``"auto"`` does where that is faster and
            possible (:mod:`pyrobnn.guides.together`).
        jacobian: Score the density in unconstrained space, as :class:`~pyrobnn.guides.Map` does.
        example: Arguments of one run, for models whose sites are not known without data.
        only: Names of the sites that the guide is for; all of them if None.

    Raises:
        TypeError: If ``init`` is of another kind.
        ValueError: If an argument is out of range, ``init`` does not fit, members would not start apart, or
            ``"anchored"`` meets a prior that is no fixed Normal.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        num_members: int = 5,
        init: MemberInit = None,
        *,
        spread: float = 0.1,
        strategy: Strategy = "regularised",
        members_per_step: int | None = None,
        vmap: bool | Literal["auto"] = "auto",
        jacobian: bool = False,
        example: tuple[Any, ...] | None = None,
        only: Collection[str] | None = None,
    ) -> None:
        super().__init__(model, num_members, members_per_step=members_per_step, example=example, only=only)
        if strategy not in get_args(Strategy):
            raise ValueError(f"strategy: expected one of {', '.join(map(repr, get_args(Strategy)))}, got {strategy!r}.")
        if vmap not in (True, False, "auto"):
            raise ValueError(f"vmap: expected True, False or 'auto', got {vmap!r}.")
        if vmap is True and (members_per_step is not None or len(self.own_buffers)):
            what = "members_per_step" if members_per_step is not None else "buffers, such as running statistics"
            raise ValueError(f"vmap: a vectorised step visits all members and cannot have {what}; use vmap='auto'.")
        self.strategy = strategy
        self.jacobian = jacobian
        loc, buffers = member_starts(self, model, init, num_members, spread)
        self.loc = nn.Parameter(loc)
        for index, own in enumerate(buffers):
            self.own_buffers.write(index, own)
        if strategy == "anchored":
            self.register_buffer("anchors", torch.stack([self._anchor() for _ in range(num_members)]).to(loc))
        self.flat_prior = flat_normal_prior(self.flat_order, loc)
        self.vmap = vmap
        self._runs_together: bool | None = None  # found out at the first step
        self._step: MemberLeaves | None = None
        self._counted: FlatNormalPrior | None = None

    @classmethod
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
        if missing := [name for name in guide.sites if name not in draws]:
            raise ValueError(f"draws: they lack the site {missing[0]!r}; name the sites you have with only=.")
        for index in range(num_members):
            guide.own_buffers.write(index, draws.at(index).buffers)
        return guide

    @classmethod
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
        for network in networks:
            check_shared(model, network)
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
        return self.constrain(self.split(self.scaled(self.flat_loc[index])))

    def stacked(self, members: Tensor) -> dict[str, Tensor]:
        """Copies of members ``[K]``."""
        return self.constrain(self.split(self.flat_loc.detach()[members.to(self.flat_loc.device)]))

    # ------------------------------------------------------------------------------------------ the prior term

    def divergence(self, site: Site, value: Tensor, prior: dist.Distribution) -> tuple[Tensor, bool]:
        """``-log p_m(v)`` for the member drawn last: a term of the average over members."""
        if self.strategy == "free":
            return value.new_zeros(()), True
        if self.strategy == "anchored":
            anchor = self.split(self.anchors[self._drawn])[site.name]
            return -dist.Normal(anchor, _normal(site, prior).scale).log_prob(value).sum(), True
        return super().divergence(site, value, prior)

    def point_mass(self, site: Site, value: Tensor) -> dist.Distribution:
        """The point mass of one member; its log density turns the prior's into that of the strategy."""
        if self.strategy == "regularised":
            return super().point_mass(site, value)
        log_prior = site.prior.log_prob(value)
        return PointMass(value, log_prior + self.divergence(site, value, site.prior)[0], event_dim=site.event_dim)

    def _anchor(self) -> Tensor:
        for site in self.flat_order:
            if not site.is_flat_normal:
                raise ValueError(
                    f"strategy: anchors need fixed Normal priors, but site {site.name!r} has the prior "
                    f"{type(site.prior).__name__} (or one that changes); use another strategy, or leave the site to a "
                    "guide of its own."
                )
        return torch.cat([site.prior.sample().reshape(-1) for site in self.flat_order])

    # ------------------------------------------------------------------------------ training steps

    def begin_step(self) -> None:
        """Forgets what a step that was broken off has left."""
        if self._step is not None:
            self._step.forget()

    def write_draw(self) -> tuple[dict[str, Tensor], Tensor | float]:
        """The member of this particle as leaf tensors, and its ``-log p_m`` of what ``flat_prior`` covers."""
        member = self.pick()
        leaves, prior = self._prepare()
        score: Tensor | float = 0.0
        if prior is not None and self.scores_prior:
            score = prior.half_squares(self._from_centre(prior, member)) + prior.log_normaliser
        return self.constrain(leaves.values(member)), score

    def pull_back(self, weight: float) -> None:
        """Adds M times the gradients of the loss, and of ``weight`` times the flat ``-log p_m``, to the member."""
        self._pull(self._drawn, weight * self.num_members, self._visited)

    def discard_counted(self) -> None:
        """Takes the flat score of the last draw out of the coming :meth:`pull_back`: the model has other priors now."""
        self._counted = None

    def backward_together(
        self, model: Callable[..., Any], evaluate: Callable[[dict[str, Tensor]], Any], scale: float, temperature: float
    ) -> Any:
        """A whole step in one vectorised pass, with the loss and the gradients of the loop over members.

        Args:
            model: The model.
            evaluate: Runs the model under one member's values and gives its :class:`~pyrobnn.elbo.parts.Particle`.
            scale: Factor of the objective.
            temperature: Weight of the divergence.

        Returns:
            The members' average, or None if nothing was done and the loop is to do it: where it is faster, where
            vmap cannot run the network, or where the loss is not finite (the loop knows who is to blame).

        Raises:
            ValueError: If vmap was demanded and cannot run the network.
        """
        if self._runs_together is None:
            can = self.members_per_step is None and not len(self.own_buffers) and self.vmap is not False
            self._runs_together = can and (self.vmap is True or pays_off(model, self.flat_loc))
        if not self._runs_together:
            return None
        leaves, prior = self._prepare()
        if prior is None and self.strategy == "anchored":
            return None
        try:
            found = evaluate_together(leaves.values(None), self.constrain, evaluate)
        except ValueError:  # it is for the loop to complain of the data
            return None
        except RuntimeError as error:
            if self.vmap is True:
                raise ValueError(f"vmap: this model cannot be run vectorised ({error}); use vmap=False.") from error
            self._runs_together = False
            return None
        if self._counted is not prior:  # the model has other priors now, which the next step will know
            return None
        if prior is not None and self.scores_prior:
            rows = self._from_centre(prior, slice(None))
            squares = torch.stack([prior.half_squares(row) for row in rows])
            found.covered = squares.mean() + prior.log_normaliser
        if not found.is_finite:
            return None
        if (loss := found.graph_loss).requires_grad:
            (loss * scale).backward()
        self._pull(None, scale * temperature, range(self.num_members))
        return found

    def _prepare(self) -> tuple[MemberLeaves, FlatNormalPrior | None]:
        """The leaves, and the flat prior that this step counts."""
        loc = self.flat_loc
        if self._step is None or not self._step.fit(loc):
            self._step, self._runs_together = MemberLeaves(loc, self.flat_order), None
        if self.flat_prior is not None and self.flat_prior.kind != (loc.dtype, loc.device):
            self.flat_prior = None  # the objective rebuilds it from the moved model
        self._counted = None if self.strategy == "free" else self.flat_prior
        return self._step, self._counted

    def _pull(self, member: int | None, weight: float, visited: Collection[int]) -> None:
        assert self._step is not None, "write_draw comes before pull_back"
        index = slice(None) if member is None else member
        with torch.no_grad():
            gradient, added_to = self._step.collect(self.flat_loc, member, self.num_members, visited)
            if (prior := self._counted) is not None:
                prior.add_pull(gradient[..., : prior.size], self._from_centre(prior, index), weight)
            if added_to is not None:
                added_to.add_(gradient)

    def _from_centre(self, prior: FlatNormalPrior, index: int | slice) -> Tensor:
        """The covered part of members, moved by what stands between their anchors and the prior's mean."""
        point = self.flat_loc.detach()[index, : prior.size]
        return point - self.anchors[index, : prior.size] + prior.loc if self.strategy == "anchored" else point


def _normal(site: Site, prior: Any) -> dist.Normal:
    prior = base_distribution(prior)
    if not isinstance(prior, dist.Normal):
        raise ValueError(f"site {site.name!r}: anchors need a Normal prior, but it is a {type(prior).__name__} now.")
    return prior
