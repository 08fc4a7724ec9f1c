"""Mean teacher: predictions of unlabeled inputs should agree with those of averaged parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyrobnn.core import schedules
from pyrobnn.core.explanations import explained
from pyrobnn.guides.base import Guide
from pyrobnn.model.bayesianize import evaluating
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.objectives.auxiliary import Auxiliary
from pyrobnn.objectives.consistency import Augmentation, ConsistencyTerm, squared_distances
from pyrobnn.objectives.teacher import AveragingTeacher
from pyrobnn.objectives.terms import Evaluation
from pyrobnn.objectives.unlabeled import UnlabeledLoader

__all__ = ["MeanTeacher"]

_PREFIX = "teacher."


@explained
class MeanTeacher(ConsistencyTerm):
    r"""Mean teacher: a prediction should agree with that of a teacher, whose parameters are averages of the student's.

    Before each step :math:`\bar\phi \leftarrow \alpha \bar\phi + (1 - \alpha)\, \phi` for all parameters of guide and
    model (means and scales of a posterior alike), beginning with the student's own. The teacher predicts under a draw
    from its own posterior and another augmentation; no gradient goes to it. Its running statistics are the student's.
    The teacher is part of the checkpoints of ``fit``.

    Args:
        unlabeled: Unlabeled inputs, as for :class:`~pyrobnn.objectives.ConsistencyTerm`.
        weight: As there.
        augment: As there.
        decay: The factor α.

    Raises:
        TypeError: If an argument is of the wrong kind; at the first step, if the objective was given no guide.
        ValueError: If ``weight`` is negative or ``decay`` is not from 0 to below 1.
    """

    name = "mean_teacher"

    def __init__(
        self,
        unlabeled: Auxiliary | UnlabeledLoader,
        weight: schedules.Schedule = 1.0,
        *,
        augment: Augmentation = None,
        decay: float = 0.99,
    ) -> None:
        super().__init__(unlabeled, weight, augment=augment)
        self._teacher = AveragingTeacher(decay)

    @property
    def decay(self) -> float:
        """The factor α."""
        return self._teacher.decay

    @property
    def teacher(self) -> tuple[SupervisedModel, Guide] | None:
        """Model and guide with the averaged parameters, to predict with; None before the first step."""
        made = self._teacher.teacher
        return None if made is None else (made.model, made.guide)

    def distance(self, x: Any, index: Tensor | None, evaluation: Evaluation) -> Tensor:
        """From the teacher's prediction."""
        if not isinstance(evaluation.guide, Guide):
            raise TypeError(
                "guide: the mean teacher averages the parameters of model and guide; pass the objective a guide, got "
                f"{type(evaluation.guide).__name__}."
            )
        teacher = self._teacher.follow(evaluation.model, evaluation.guide)
        with torch.no_grad(), evaluating(teacher.model):
            target = self.probabilities(teacher.model, teacher.step.draw(None), x)
        found = self.probabilities(evaluation.model, evaluation.step.draw(None), x)
        return squared_distances(found, target).mean()

    def state(self) -> dict[str, Tensor]:
        """The teacher's parameters, and the position among the rows."""
        return super().state() | {f"{_PREFIX}{name}": value for name, value in self._teacher.parameters().items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continues there."""
        super().load_state(state)
        kept = {name: value for name, value in state.items() if name.startswith(_PREFIX)}
        self._teacher.restore({name.removeprefix(_PREFIX): value for name, value in kept.items()})
