r"""A training step of points: one flat vector, or M of them as the members of an ensemble.

A member's own parameters receive M times the gradient of the mean over members, which is the gradient of the member's
own loss, so that learning rates do not depend on M. Members run one after another, or all in
one vectorized pass, with the same losses and gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrobnn.distributions.independent import base_distribution
from pyrobnn.model.divergence import Divergence, PriorTerm
from pyrobnn.model.draws import Draws
from pyrobnn.model.layout import Layout, Site
from pyrobnn.steps.base import GradientBuffers, Lease, Pool, Step, refuse_second_derivatives
from pyrobnn.steps.member_buffers import MemberBuffers
from pyrobnn.steps.member_order import MemberOrder
from pyrobnn.steps.member_rows import MemberRows
from pyrobnn.steps.normal_prior import FlatNormalPrior, NormalWindow
from pyrobnn.steps.vectorized import pays_off

__all__ = ["PointScore", "PointStep"]


class PointScore:
    """The divergence of a point: ``-log p``.

    Args:
        layout: The sites.
        jacobian: Whether the density in unconstrained space counts instead of the sites' own.
        centers: Rows ``[M, d]`` that members' fixed Normal priors are centered on in place of their means, if any.
        counts_prior: Whether the prior is included; without it the divergence is 0.
        reports_value: Whether the value of fixed Normal priors is computed, not only its gradient. A sampler does not
            need it, and it takes two per cent of a perceptron's step.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        jacobian: bool = False,
        centers: Callable[[], Tensor] | None = None,
        counts_prior: bool = True,
        reports_value: bool = True,
    ) -> None:
        self.layout, self.jacobian, self.centers = layout, jacobian, centers
        self.counts_prior, self.reports_value = counts_prior, reports_value

    def of_site(self, site: Site, value: Tensor, term: PriorTerm, component: Tensor | None) -> Tensor:
        """``-log p(v)``, minus the log Jacobian if ``jacobian`` is set; a scalar under the term's mask and scale."""
        if not self.counts_prior:
            return value.new_zeros(())
        if self.centers is not None:
            return -self._recentered(site, value, term, component)
        score = term.distribution.log_prob(value)
        if self.jacobian and not site.is_real:
            score = score + site.log_jacobian(site.unconstrain(value), value, value.dim() - site.event_dim)
        return term.sum(-score)

    def _recentered(self, site: Site, value: Tensor, term: PriorTerm, component: Tensor | None) -> Tensor:
        """The log density of a Normal prior around the member's own center."""
        base = base_distribution(term.distribution)
        if not isinstance(base, dist.Normal) or not term.is_plain:
            raise ValueError(
                f"site {site.name!r}: anchors need a fixed Normal prior, but it is a {type(base).__name__} now."
            )
        if component is None:
            raise ValueError(f"site {site.name!r}: which member's value it is, is unknown; pass a draw of the guide.")
        assert self.centers is not None
        center = self.centers()[component, site.window].view(*component.shape, *site.unconstrained_shape)
        return dist.Normal(center, base.scale).log_prob(value).sum()

    def divergence(self, draws: Draws, priors: Mapping[str, PriorTerm]) -> Divergence:
        """The sum over sites, by automatic differentiation."""
        terms = {n: self.of_site(self.layout[n], draws[n], t, draws.component) for n, t in priors.items()}
        return Divergence.of_sites(terms, 0.0, exact=True, name="-log prior")

    def offset(self, normal: NormalWindow, rows: Any) -> Tensor | float:
        """What is added to points, so that distances from the prior's mean become distances from the centers."""
        return 0.0 if self.centers is None else normal.loc - self.centers()[rows, normal.window]


class PointStep(Step):
    """Draws of points that are trained.

    Args:
        layout: The sites.
        loc: The unconstrained point ``[d]``, or members ``[M, d]``.
        score: The divergence.
        model: The model, for the decision of ``vmap="auto"``.
        buffers: The buffers of each member.
        members_per_step: Members that a training step visits, at random; all if None.
        vmap: Whether a training step runs all members in one vectorized pass; ``"auto"`` does where that is faster and
            possible (:mod:`pyrobnn.steps.vectorized`).

    Attributes:
        vectorized: Whether it does now.
        must_vectorize: Whether vmap was requested explicitly, so that falling back to a loop is an error.
    """

    def __init__(
        self,
        layout: Layout,
        loc: nn.Parameter,
        score: PointScore,
        *,
        model: Any = None,
        buffers: MemberBuffers | None = None,
        members_per_step: int | None = None,
        vmap: bool | Literal["auto"] = "auto",
    ) -> None:
        self.layout, self.loc, self.score = layout, loc, score
        self.must_vectorize = vmap is True
        self._order = MemberOrder(len(loc), members_per_step, buffers) if loc.dim() == 2 else None
        can = self._order is not None and members_per_step is None and not (buffers and len(buffers))
        self.vectorized = can and (vmap is True or (vmap == "auto" and pays_off(model, loc)))
        self.compiles = self._order is None
        self._gradients: Pool[GradientBuffers] = Pool(lambda: GradientBuffers(loc))
        self._place: tuple[Any, ...] = ()
        self._views: list[Tensor] = []
        self._zero = torch.zeros(())
        self._rows: MemberRows | None = None
        self._prior: FlatNormalPrior | None = None

    def num_samples(self, asked: int) -> int:
        """One for each member of a training step; one for all of them in a vectorized pass."""
        return asked if self._order is None else 1 if self.vectorized else self._order.per_step

    def draw(self, index: int | None, noise: Tensor | None = None, *, avoid: Tensor | None = None) -> Draws:
        """The point; or a member, with buffers of its own; or all members."""
        if self._rows is not None:
            self._rows.discard() if index == 0 else self._rows.collect(self.add_prior)
        if self._order is None or (self.vectorized and index is not None):
            return self._whole(None if self._order is None else len(self.loc))
        member = self._order.pick(index, avoid)
        component, buffers, live = self._order.member_state(member)
        if not torch.is_grad_enabled():
            values = self.layout.split(self.loc.detach()[member])
            return Draws(self.layout.constrain(values), buffers, component=component, live=live)
        if self._rows is None or not self._rows.fits(self.loc):
            self._rows = MemberRows(self.layout, self.loc)
        token, values = self._rows.leaves(member)
        record = _Record(member, self._rows), token
        return Draws(self.layout.constrain(values), buffers, component=component, record=record, live=live)

    def _whole(self, size: int | None) -> Draws:
        loc = self.loc
        if self._place != (loc.data_ptr(), loc.dtype, loc.device):
            self._place = loc.data_ptr(), loc.dtype, loc.device
            self._views, self._zero = list(self.layout.split(loc.detach()).values()), loc.detach().new_zeros(())
        record = _Record(slice(None) if size is not None else None, self._gradients.take())
        token, *pieces = _Node.apply(self.loc, self, record)
        values = self.layout.constrain(dict(zip(self.layout, pieces, strict=True)))
        component = None if size is None else torch.arange(size)
        return Draws(values, component=component, record=(record, token), size=size)

    def pieces(self) -> tuple[Tensor, ...]:
        """A token, and views of the parameter by site."""
        return (self._zero.detach(), *[view.detach() for view in self._views])

    def divergence(self, draws: Draws, priors: Mapping[str, PriorTerm]) -> Divergence:
        """``-log p`` of the draw, of several their mean: of fixed Normal priors on flat vectors, else by site."""
        if draws.record is None or not self.score.counts_prior:
            return self.score.divergence(draws, priors)
        record, token = draws.record
        prior = self._prior = FlatNormalPrior.of(self._prior, self.layout, priors, self.loc)
        record.normals = prior.windows
        terms = {
            name: self.score.of_site(self.layout[name], draws[name], term, draws.component)
            for name, term in priors.items()
            if name not in prior.names
        }
        total = sum(terms.values(), start=token + self._flat_score(record))

        def by_site() -> Mapping[str, Tensor]:
            return self.score.divergence(draws, priors).by_site

        return Divergence(torch.as_tensor(total), 0.0, True, "-log prior", by_site)

    @torch.no_grad()
    def _flat_score(self, record: _Record) -> Tensor | float:
        """The value for fixed Normal priors; its gradient is the node's or the rows'."""
        total: Tensor | float = 0.0
        if not self.score.reports_value:
            return total
        for normal in record.normals:
            if record.member is None:
                squares = normal.half_squares(self.loc[normal.window])
            else:
                points = self._points(normal, record.member)
                rows = [normal.half_squares(row) for row in (points if points.dim() == 2 else points.unsqueeze(0))]
                squares = rows[0] if len(rows) == 1 else torch.stack(rows).mean()
            squares += normal.log_normalizer
            total = squares if isinstance(total, float) else total + squares
        return total

    def _points(self, normal: NormalWindow, member: Any) -> Tensor:
        point = self.loc.detach()[member, normal.window]
        return point if self.score.centers is None else point + self.score.offset(normal, member)

    def add_prior(self, gradient: Tensor, normals: Sequence[NormalWindow], member: Any, weight: float) -> None:
        """Adds ``weight`` times the gradient of the flat score at a member, or at all of them, to ``gradient``."""
        if not weight:
            return
        for normal in normals:
            point = self.loc.detach()[normal.window] if member is None else self._points(normal, member)
            normal.add_gradient(gradient[..., normal.window], point, weight)

    def stop_vectorizing(self, error: Exception) -> None:
        """From now on members run one after another.

        Raises:
            ValueError: If vmap was requested explicitly.
        """
        if self.must_vectorize:
            raise ValueError(f"vmap: this model cannot be run vectorized ({error}); use vmap=False.") from error
        self.vectorized = False

    def finish(self) -> None:
        """Adds the gradients of members that ran one after another to the parameter."""
        if self._rows is not None:
            self._rows.deliver(self.add_prior)

    def restart(self, remaining: int | None = None) -> None:
        """Does nothing: no state is kept between epochs."""


class _Record:
    """State of a draw until its backward pass, without its token: the node must not hold its own output."""

    def __init__(self, member: Any, holder: Any) -> None:
        self.member, self.holder = member, holder
        self._normals: Sequence[NormalWindow] = []

    @property
    def normals(self) -> Sequence[NormalWindow]:
        """The fixed Normal priors that the divergence included."""
        return self._normals

    @normals.setter
    def normals(self, found: Sequence[NormalWindow]) -> None:
        self._normals = found
        if isinstance(self.holder, MemberRows):
            self.holder.record(self.member, found)


class _Node(torch.autograd.Function):
    """From the parameter to a token (:mod:`pyrobnn.steps.mean_field`) and the sites' unconstrained values."""

    @staticmethod
    def forward(ctx: Any, loc: Tensor, step: PointStep, record: _Record) -> tuple[Tensor, ...]:
        ctx.step, ctx.record = step, record
        ctx.set_materialize_grads(False)
        return step.pieces()

    @staticmethod
    def backward(ctx: Any, weight: Tensor | None, *by_values: Tensor | None) -> tuple[Tensor, None, None]:
        refuse_second_derivatives()
        step, record = ctx.step, ctx.record
        lease: Lease[GradientBuffers] = record.holder
        gradient = lease.memory.free()
        lead = gradient.shape[:-1]
        parts = [
            gradient.new_zeros(*lead, site.numel) if part is None else part.reshape(*lead, -1)
            for site, part in zip(step.layout.values(), by_values, strict=True)
        ]
        torch.cat(parts, -1, out=gradient)
        if record.member is not None:
            gradient.mul_(len(gradient))
        if weight is not None:
            step.add_prior(gradient, record.normals, record.member, float(weight))
        lease.release()
        return gradient.detach(), None, None
