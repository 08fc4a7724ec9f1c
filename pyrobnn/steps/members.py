"""The training step of an ensemble by automatic differentiation, member by member."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from pyrobnn.model.divergence import Divergence, PriorTerm
from pyrobnn.model.draws import Draws
from pyrobnn.model.layout import Layout
from pyrobnn.steps.base import Step
from pyrobnn.steps.member_order import MemberOrder
from pyrobnn.steps.points import PointScore

__all__ = ["MemberStep"]


class MemberStep(Step):
    """Draws of members that may share parameters.

    Args:
        layout: The sites.
        member: The sites' values in a member, with gradients.
        score: The divergence of a member.
        order: Which members a training step visits.
        rows: All members' flat vectors from one node of the graph, which the draws of a training step share: backward
            through a row by itself fills a gradient of all rows. None where members are not the rows of one parameter.
    """

    def __init__(
        self,
        layout: Layout,
        member: Callable[[int], Mapping[str, Tensor]],
        score: PointScore,
        order: MemberOrder,
        rows: Callable[[], Sequence[Tensor]] | None = None,
    ) -> None:
        self.layout, self._member, self._score, self._order = layout, member, score, order
        self._rows, self._shared = rows, list[Tensor]()

    def num_samples(self, asked: int) -> int:
        """One for each member of a training step."""
        return self._order.per_step

    def draw(self, index: int | None, noise: Tensor | None = None, *, avoid: Tensor | None = None) -> Draws:
        """A member, with buffers of its own."""
        member = self._order.pick(index, avoid)
        component, buffers, live = self._order.member_state(member)
        if self._rows is not None and index == 0:
            self._shared = list(self._rows())
        if index is None or not self._shared:
            values = self._member(member)
        else:
            values = self.layout.constrain(self.layout.split(self._shared[member]))
        return Draws(values, buffers, component=component, live=live)

    def finish(self) -> None:
        """Forgets the rows, whose graph has been used."""
        self._shared = []

    def divergence(self, draws: Draws, priors: Mapping[str, PriorTerm]) -> Divergence:
        """``-log p`` of the member."""
        return self._score.divergence(draws, priors)
