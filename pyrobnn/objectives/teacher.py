r"""A teacher: copies of model and guide whose parameters are exponential averages of a student's.

.. math::  \bar\phi \leftarrow \alpha \bar\phi + (1 - \alpha)\, \phi

(Tarvainen & Valpola, *Mean teachers are better role models*, 2017). Its running statistics are the student's.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.core.arguments import check_number
from pyrobnn.core.module_state import fill_tensors
from pyrobnn.guides.base import Guide
from pyrobnn.model.supervised import SupervisedModel

__all__ = ["AveragingTeacher", "Teacher"]


class Teacher:
    """Copies of a model and its guide whose parameters follow theirs.

    Args:
        model: The student's model.
        guide: Its guide.
        parameters: Parameters to begin with by name; if empty, the student's.
    """

    def __init__(self, model: SupervisedModel, guide: Guide, parameters: Mapping[str, Tensor]) -> None:
        self._student = weakref.ref(model), weakref.ref(guide)
        self.model, self.guide = copy.deepcopy((model, guide))
        self.parameters = dict(_both(self.model, self.guide).named_parameters())
        if parameters:
            with torch.no_grad():
                device = next(iter(self.parameters.values())).device
                fill_tensors(self.parameters, {name: value.to(device) for name, value in parameters.items()})
        self.step = self.guide.step(self.model)

    def is_of(self, model: SupervisedModel, guide: Guide) -> bool:
        """Whether these are the student."""
        return self._student[0]() is model and self._student[1]() is guide

    @torch.no_grad()
    def follow(self, model: SupervisedModel, guide: Guide, rate: float) -> None:
        """Moves the parameters toward the student's."""
        for name, parameter in _both(model, guide).named_parameters():
            self.parameters[name].lerp_(parameter, rate)

    @torch.no_grad()
    def take_buffers(self, model: SupervisedModel, guide: Guide) -> None:
        """Copies running statistics, and whatever else is no parameter."""
        pairs = zip(_both(self.model, self.guide).buffers(), _both(model, guide).buffers(), strict=True)
        for own, buffer in pairs:
            own.copy_(buffer)


class AveragingTeacher:
    """The teacher of whichever student it is asked for, made at the first request; its parameters can be kept.

    Args:
        decay: The factor α.

    Attributes:
        teacher: The present one; None before the first step.
    """

    def __init__(self, decay: float) -> None:
        check_number("decay", decay, 0.0, 1.0, below=True)
        self.decay = decay
        self.teacher: Teacher | None = None
        self._restored: Mapping[str, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        """The state without the teacher's networks; copies make their own from its parameters."""
        return self.__dict__ | {"teacher": None, "_restored": self.parameters()}

    def follow(self, model: SupervisedModel, guide: Guide) -> Teacher:
        """The teacher of this step. Where the value alone is computed, it is not updated.

        Args:
            model: The student's model.
            guide: Its guide.
        """
        made = self.teacher
        if made is None or not made.is_of(model, guide):
            made = Teacher(model, guide, self._restored if made is None else {})
        made.take_buffers(model, guide)
        if torch.is_grad_enabled():
            made.follow(model, guide, 1.0 - self.decay)
            self.teacher, self._restored = made, {}
        return made

    def parameters(self) -> dict[str, Tensor]:
        """Copies of the teacher's parameters; none before the first step."""
        named = self._restored if self.teacher is None else self.teacher.parameters
        return {name: value.detach().clone() for name, value in named.items()}

    def restore(self, parameters: Mapping[str, Tensor]) -> None:
        """Continues with parameters that :meth:`parameters` returned."""
        self.teacher, self._restored = None, {name: value.clone() for name, value in parameters.items()}


def _both(model: nn.Module, guide: nn.Module) -> nn.ModuleList:
    return nn.ModuleList([model, guide])
