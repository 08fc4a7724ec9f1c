r"""What ensembles share: M members as a mixture of point masses, :math:`q(w) = \frac1M \sum_m \delta(w - w_m)`.

The entropy of such a mixture is a constant and is dropped, so the objective is the mean over members of
``-log p(D | w_m) - log p(w_m)``. A step visits every member once, in order. Parameters that belong to one member
receive M times their gradient of that mean, which is the gradient of the member's own loss: learning rates then mean
what they mean for one network, whatever M. Parameters that members share receive the gradient of the mean.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from pyrobnn.arguments import check_int, check_positive_int
from pyrobnn.guides.base import Site
from pyrobnn.guides.draws import Draws
from pyrobnn.guides.member_buffers import MemberBuffers
from pyrobnn.guides.point import Point, PointMass

__all__ = ["Ensemble", "MixtureOfDeltas"]


class Ensemble(Point):
    """Base of mixtures of points; subclasses implement :meth:`member` and :meth:`stacked`.

    Args:
        model: The Pyro model.
        num_members: Number M of members.
        members_per_step: Members that a training step visits, chosen at random; all of them if None. The
            gradients of the chosen are scaled by M / k, so that they are unbiased.
        example: Arguments of one run, for models whose sites are not known without data.
        only: Names of the sites that the guide is for; all of them if None.

    Raises:
        ValueError: If ``num_members`` is not positive or ``members_per_step`` not between 1 and it.
    """

    transient: ClassVar[frozenset[str]] = Point.transient | {"_member"}

    def __init__(
        self,
        model: Callable[..., Any],
        num_members: int,
        *,
        members_per_step: int | None = None,
        example: tuple[Any, ...] | None = None,
        only: Collection[str] | None = None,
    ) -> None:
        super().__init__(model, example=example, only=only)
        check_positive_int("num_members", num_members)
        each = num_members if members_per_step is None else members_per_step
        check_int("members_per_step", each, 1, num_members)
        self.num_members = num_members
        self.members_per_step = members_per_step
        self.buffers_by_member = MemberBuffers(model, num_members)
        self._order: list[int] = list(range(num_members))  # the members of this step
        self._member: int | None = None  # the member of this particle
        self._drawn = 0  # the member drawn last
        self._visited: Sequence[int] = ()  # the members of the step that it was drawn in, if it was in one

    def extra_repr(self) -> str:
        """Sizes."""
        return f"{super().extra_repr()}, num_members={self.num_members}"

    @property
    def own_buffers(self) -> MemberBuffers:
        """The members' running statistics, read past Pyro's attribute hooks."""
        return self._modules["buffers_by_member"]  # type: ignore[return-value]

    # ------------------------------------------------------------------ what a family of ensembles implements

    def member(self, index: int) -> dict[str, Tensor]:
        """The sites' values in one member, with gradients."""
        raise NotImplementedError

    def stacked(self, members: Tensor) -> dict[str, Tensor]:
        """Copies of the sites' values, ``{site: [K, *site shape]}``, for members ``[K]``; no gradients."""
        raise NotImplementedError

    # ---------------------------------------------------------------------------------------- training steps

    def num_particles(self, asked: int) -> int:
        """One for each member of a step, whatever the objective asks for."""
        return self.members_per_step or self.num_members

    @contextlib.contextmanager
    def particle(self, model: Callable[..., Any], index: int) -> Iterator[None]:
        """Surrounds one member's run: its own buffers are in the model, and keep what a run with gradients writes."""
        if index == 0 and self.members_per_step is not None:
            self._order = torch.randperm(self.num_members)[: self.members_per_step].tolist()
        self._member = self._order[index % len(self._order)]
        try:
            with self.with_buffers(model, self._member, keep=torch.is_grad_enabled(), freeze_others=index > 0):
                yield
        finally:
            self._member = None

    def with_buffers(
        self, model: Callable[..., Any], member: int, *, keep: bool, freeze_others: bool = False
    ) -> contextlib.AbstractContextManager[None]:
        """Surrounds a run of the model by the buffers of one member, which keep what the run writes if asked."""
        return self.own_buffers.installed(model, member, keep=keep, freeze_others=freeze_others)

    def pick(self) -> int:
        """The member of the particle under way, outside of particles a random one."""
        if self._member is None:
            self._drawn, self._visited = int(torch.randint(self.num_members, ())), ()
        else:
            self._drawn, self._visited = self._member, self._order
        return self._drawn

    def scaled(self, own: Tensor) -> Tensor:
        """A member's own parameters in this draw: the gradient that arrives counts M times."""
        if own.requires_grad and self.num_members > 1:
            own.register_hook(lambda gradient: gradient * self.num_members)
        return own

    # ------------------------------------------------------------------------------------------------- draws

    def draw(self) -> dict[str, Tensor]:
        """The member of this particle (else a random one), with gradients."""
        return self.member(self.pick())

    def sample(self, num_samples: int) -> Draws:
        """Members in order from a random one on, over and over: with K = M each of them once.

        Returns:
            ``{site: [num_samples, *site shape]}`` with the members' own buffers; each draw by itself is uniform over
            the members.
        """
        return next(self.sample_blocks([num_samples]))

    def sample_blocks(self, sizes: Iterable[int]) -> Iterator[Draws]:
        """:meth:`sample` in pieces, which together are as balanced as one call."""
        start = int(torch.randint(self.num_members, ()))
        for size in sizes:
            members = (start + torch.arange(size)) % self.num_members
            start = (start + size) % self.num_members
            self._drawn = int(members[-1])
            with torch.no_grad():  # left before the caller goes on
                block = Draws(self.stacked(members), self.own_buffers.stacked(members))
            yield block

    def divergence(self, site: Site, value: Tensor, prior: dist.Distribution) -> tuple[Tensor, bool]:
        """``-log p(v)`` of one member: a term of the average over members, exact where there is but one."""
        return super().divergence(site, value, prior)[0], self.num_members == 1

    def factor(self, site: Site) -> dist.Distribution:
        """The mixture of point masses, which can be sampled and has moments but no density."""
        with torch.no_grad():
            return MixtureOfDeltas(self.stacked(torch.arange(self.num_members))[site.name])

    def point_mass(self, site: Site, value: Tensor) -> dist.Distribution:
        """The point mass of one member, as Pyro's objectives see it."""
        if site.is_real:
            return dist.Delta(value, event_dim=site.event_dim)
        log_jacobian = self.log_jacobian(site, site.transform.inv(value), value)
        return PointMass(value, -log_jacobian, event_dim=site.event_dim)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Pyro's view: the sites of one random member."""
        self.announce_parameters()
        values = self.draw()
        return {name: self._sample_site(site, self.point_mass(site, values[name])) for name, site in self.sites.items()}


class MixtureOfDeltas(TorchDistribution):
    """Point masses of equal weight at ``points [M, *shape]``; a mixture of Deltas has no density."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real

    def __init__(self, points: Tensor) -> None:
        self.points = points
        super().__init__(torch.Size(), points.shape[1:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Mean of the points."""
        return self.points.mean(0)

    @property
    def variance(self) -> Tensor:
        """Variance of the mixture, by element (divided by M)."""
        return self.points.var(0, correction=0)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Points at random."""
        return self.points[torch.randint(len(self.points), tuple(sample_shape))]

    def log_prob(self, value: Tensor) -> Tensor:
        """Refused: there is no density.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("a mixture of Deltas has no density.")
