r"""The base class of ensembles: M members as a mixture of point masses, :math:`q(w) = \frac1M \sum_m \delta(w - w_m)`.

The entropy of such a mixture is a constant and is dropped, so the objective is the mean over members of
``-log p(D | w_m) - log p(w_m)``. A step visits every member once, in order. Parameters of one member
receive M times their gradient of that mean, which is the gradient of the member's own loss, so that learning rates do
not depend on M. Parameters that members share receive the gradient of the mean.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from pyrobnn.core.arguments import check_int, check_positive_int
from pyrobnn.estimators.base import Estimator
from pyrobnn.guides.base import Guide, sample_site
from pyrobnn.guides.components.point import point_mass
from pyrobnn.model.divergence import Divergence, PriorTerm
from pyrobnn.model.draws import Draws
from pyrobnn.model.facts import Facts
from pyrobnn.model.layout import Site
from pyrobnn.steps.base import Step
from pyrobnn.steps.member_buffers import MemberBuffers
from pyrobnn.steps.member_order import MemberOrder
from pyrobnn.steps.members import MemberStep
from pyrobnn.steps.points import PointScore

__all__ = ["Ensemble", "MixtureOfDeltas"]


class Ensemble(Guide):
    """Base of mixtures of points; subclasses implement :meth:`member` and :meth:`stacked`.

    Args:
        model: The Pyro model.
        num_members: Number M of members.
        members_per_step: Members that a training step visits, chosen at random; all of them if None. The
            gradients of the chosen are scaled by M / k, so that they are unbiased.
        example: Arguments of one run, for models whose sites are not known without data.
        sites: Names of the sites that the guide is for; all of them if None.

    Raises:
        ValueError: If ``num_members`` is not positive or ``members_per_step`` not between 1 and it.
    """

    jacobian: bool = False

    def __init__(
        self,
        model: Callable[..., Any],
        num_members: int,
        *,
        members_per_step: int | None = None,
        example: tuple[Any, ...] | None = None,
        sites: Collection[str] | None = None,
    ) -> None:
        super().__init__(model, example=example, sites=sites)
        check_positive_int("num_members", num_members)
        each = num_members if members_per_step is None else members_per_step
        check_int("members_per_step", each, 1, num_members)
        self.num_members = num_members
        self.members_per_step = members_per_step
        self.buffers_by_member = MemberBuffers(model, num_members)

    def extra_repr(self) -> str:
        """Sizes."""
        return f"{super().extra_repr()}, num_members={self.num_members}"

    @property
    def own_buffers(self) -> MemberBuffers:
        """The members' running statistics, read past Pyro's attribute hooks."""
        return self._modules["buffers_by_member"]  # type: ignore[return-value]

    # ------------------------------------------------------------------ what a family of ensembles implements

    @abstractmethod
    def member(self, index: int) -> dict[str, Tensor]:
        """The sites' values in one member, with gradients."""

    @abstractmethod
    def stacked(self, members: Tensor) -> dict[str, Tensor]:
        """Copies of the sites' values, ``{site: [K, *site shape]}``, for members ``[K]``; no gradients."""

    # ---------------------------------------------------------------------------------------- training

    def score(self) -> PointScore:
        """The divergence of a member, ``-log p``."""
        return PointScore(self.layout, jacobian=self.jacobian)

    def step(
        self,
        model: Callable[..., Any] | None,
        estimators: Mapping[str, Estimator] | None = None,
        *,
        sequential: bool = True,
        vectorize: bool = True,
    ) -> Step:
        """Member by member."""
        order = MemberOrder(self.num_members, self.members_per_step, self.own_buffers)
        return MemberStep(self.layout, self.member, self.score(), order)

    def scaled(self, own: Tensor) -> Tensor:
        """A member's own parameters in this draw: the gradient that arrives counts M times."""
        if own.requires_grad and self.num_members > 1:
            own.register_hook(lambda gradient: gradient * self.num_members)
        return own

    # ------------------------------------------------------------------------------------------------- draws

    @property
    def facts(self) -> Facts:
        """Equally likely points; the sites of a point depend on each other."""
        names = frozenset(self.layout)
        return Facts(
            sites=names,
            independent=(names,),
            num_points=self.num_members,
            num_components=self.num_members,
            num_training_draws=self.members_per_step or self.num_members,
        )

    def rsample(self, noise: Tensor | None = None) -> Draws:
        """A random member with its buffers, with gradients."""
        member = int(torch.randint(self.num_members, (), device="cpu"))
        return Draws(self.member(member), self.own_buffers.copies(member), component=torch.tensor(member))

    def starting_point(self) -> Draws:
        """The first member, where a guide of one point starts: the mean of several modes is none."""
        with torch.no_grad():
            return self.atoms(torch.zeros(1, dtype=torch.long)).at(0)

    def sample(self, num_samples: int) -> Draws:
        """Members in order from a random one on, over and over: with K = M each of them once.

        Returns:
            ``{site: [num_samples, *site shape]}`` with the members' own buffers; each draw by itself is uniform over
            the members.
        """
        return next(iter(self.sample_blocks([num_samples])))

    def sample_blocks(self, sizes: Iterable[int], *, reuse_memory: bool = False) -> Iterator[Draws]:
        """:meth:`sample` in pieces, which together are as balanced as one call."""
        start = int(torch.randint(self.num_members, (), device="cpu"))
        for size in sizes:
            members = (start + torch.arange(size)) % self.num_members
            start = (start + size) % self.num_members
            with torch.no_grad():  # entered here, since a generator must not leave it on for the caller
                block = self.atoms(members)
            yield block

    def atoms(self, members: Tensor) -> Draws:
        """Members ``[K]`` as draws."""
        return Draws(self.stacked(members), self.own_buffers.stacked(members), component=members)

    def divergence(self, draws: Draws, priors: Mapping[str, PriorTerm]) -> Divergence:
        """``-log p`` of one member: a term of the average over members."""
        found = self.score().divergence(draws, priors)
        return Divergence(found.total, found.joint, self.num_members == 1, found.name, lambda: found.by_site)

    def write_buffers(self, component: Tensor | None, buffers: Mapping[str, Tensor]) -> None:
        """Sets the buffers that a member has of its own, by their name in the model."""
        assert component is not None
        self.own_buffers.write(int(component), buffers)

    def marginal(self, name: str) -> dist.Distribution:
        """The mixture of point masses, which can be sampled and has moments but no density."""
        with torch.no_grad():
            return MixtureOfDeltas(self.stacked(torch.arange(self.num_members))[name])

    def point_mass(self, site: Site, value: Tensor, component: Tensor | None) -> dist.Distribution:
        """The point mass of one member, as Pyro's objectives see it."""
        if site.is_real or not self.jacobian:
            return point_mass(site, value)
        log_jacobian = site.log_jacobian(site.unconstrain(value), value, value.dim() - site.event_dim)
        return point_mass(site, value, -log_jacobian)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The guide as Pyro calls it: the sites of one random member."""
        self.announce_parameters()
        draw = self.rsample()
        return {
            name: sample_site(site, self.point_mass(site, draw[name], draw.component))
            for name, site in self.layout.items()
        }


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
        return self.points[torch.randint(len(self.points), tuple(sample_shape), device="cpu")]

    def log_prob(self, value: Tensor) -> Tensor:
        """Refused: there is no density.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("a mixture of Deltas has no density.")
