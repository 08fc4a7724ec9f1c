"""Teachers: who says which class a target is, and how sure that is.

The paper of CAT takes an average of earlier students; its code takes the student itself. A posterior's average knows
what the weights leave open, so that gates and clusters wait where draws disagree: no paper has it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pyrobnn.core.arguments import check_number, check_positive_int
from pyrobnn.model.bayesianize import evaluating
from pyrobnn.model.draws import Draws
from pyrobnn.objectives.teacher import AveragingTeacher, Teacher
from pyrobnn.objectives.terms import Evaluation

__all__ = ["MeanTeacher", "PosteriorTeacher", "StudentTeacher", "TargetTeacher", "TemporalTeacher"]

Probabilities = Callable[[Any, Draws, Any], Tensor]
"""Class probabilities ``[B, C]`` of a model, under a draw, of inputs."""


class TargetTeacher(ABC):
    """Gives class probabilities of targets; no gradient goes through them."""

    needs_rows = False
    """Whether it must know which rows a batch holds."""

    @abstractmethod
    def probabilities(
        self, evaluation: Evaluation, x: Any, index: Tensor | None, student: Tensor, predict: Probabilities
    ) -> Tensor:
        """Probabilities ``[B, C]`` of targets.

        Args:
            evaluation: Model, guide and step of the student.
            x: The targets' inputs.
            index: Which rows they are ``[B]``, None if that is not known.
            student: The student's probabilities ``[B, C]``.
            predict: Runs a model under a draw.
        """

    def state(self) -> dict[str, Tensor]:
        """What checkpoints must keep; nothing by default."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027 (most remember nothing)
        """Restores what :meth:`state` returned."""


class StudentTeacher(TargetTeacher):
    """The student itself, under the draw of the step: what the published code of CAT does."""

    def probabilities(
        self, evaluation: Evaluation, x: Any, index: Tensor | None, student: Tensor, predict: Probabilities
    ) -> Tensor:
        """The student's."""
        return student.detach()


class MeanTeacher(TargetTeacher):
    """Exponential averages of the student's parameters.

    Args:
        decay: The factor of what they were.

    Raises:
        ValueError: If ``decay`` is not from 0 to below 1.
    """

    def __init__(self, decay: float = 0.99) -> None:
        self._teacher = AveragingTeacher(decay)

    @property
    def teacher(self) -> Teacher | None:
        """Model and guide with the averages; None before the first step."""
        return self._teacher.teacher

    def probabilities(
        self, evaluation: Evaluation, x: Any, index: Tensor | None, student: Tensor, predict: Probabilities
    ) -> Tensor:
        """Those of the averaged parameters."""
        made = self._teacher.follow(evaluation.model, evaluation.guide)
        with torch.no_grad(), evaluating(made.model):
            return predict(made.model, made.step.draw(None), x)

    def state(self) -> dict[str, Tensor]:
        """The averages."""
        return self._teacher.parameters()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continues with them."""
        self._teacher.restore(state)


class TemporalTeacher(TargetTeacher):
    r"""The average of a row's earlier predictions, :math:`Z \leftarrow a Z + (1 - a) p`, corrected for its start at 0.

    Before the first visit of a row its prediction is the student's.

    Args:
        momentum: The factor a.

    Raises:
        ValueError: If ``momentum`` is not from 0 to below 1.
    """

    needs_rows = True

    def __init__(self, momentum: float = 0.6) -> None:
        check_number("momentum", momentum, 0.0, 1.0, below=True)
        self.momentum = momentum
        self._averages: dict[int, Tensor] = {}
        self._visits: dict[int, int] = {}

    def probabilities(
        self, evaluation: Evaluation, x: Any, index: Tensor | None, student: Tensor, predict: Probabilities
    ) -> Tensor:
        """The averages with this prediction, which are kept unless the value alone is computed."""
        assert index is not None
        found = []
        for row, now in zip(index.tolist(), student.detach(), strict=True):
            visits = self._visits.get(row, 0) + 1
            average = (1.0 - self.momentum) * now + self.momentum * self._averages.get(row, torch.zeros_like(now))
            found.append(average / (1.0 - self.momentum**visits))
            if torch.is_grad_enabled():
                self._averages[row], self._visits[row] = average, visits
        return torch.stack(found)

    def state(self) -> dict[str, Tensor]:
        """The averages of the rows that were visited."""
        if not self._visits:
            return {}
        rows = sorted(self._visits)
        return {
            "rows": torch.tensor(rows),
            "visits": torch.tensor([self._visits[row] for row in rows]),
            "averages": torch.stack([self._averages[row] for row in rows]),
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continues with them."""
        rows = state["rows"].tolist() if "rows" in state else []
        self._visits = dict(zip(rows, state["visits"].tolist(), strict=True)) if rows else {}
        self._averages = dict(zip(rows, state["averages"].clone(), strict=True)) if rows else {}


class PosteriorTeacher(TargetTeacher):
    """The average over draws of the student's posterior: its confidence falls where the weights are uncertain.

    Args:
        num_samples: Number of draws.

    Raises:
        ValueError: If ``num_samples`` is no positive int.
    """

    def __init__(self, num_samples: int = 8) -> None:
        check_positive_int("num_samples", num_samples)
        self.num_samples = num_samples

    def probabilities(
        self, evaluation: Evaluation, x: Any, index: Tensor | None, student: Tensor, predict: Probabilities
    ) -> Tensor:
        """The posterior predictive."""
        with torch.no_grad():
            return sum(
                (predict(evaluation.model, draws, x) for draws in self._draws(evaluation)), torch.zeros_like(student)
            ) / float(self.num_samples)

    def _draws(self, evaluation: Evaluation) -> list[Draws]:
        drawn = evaluation.guide.sample(self.num_samples)
        return [drawn.at(index) for index in range(self.num_samples)]
