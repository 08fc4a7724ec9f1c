"""Another step with random numbers that are given to it, so that a graph of it can take them as inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from pyrobnn.model.draws import Draws
from pyrobnn.steps.base import Step

__all__ = ["GivenNoiseStep"]


class GivenNoiseStep(Step):
    """A step whose draws are made from given noise.

    Args:
        step: Makes the draws.
        noises: The noise of each draw; None where it takes its random numbers itself.
    """

    def __init__(self, step: Step, noises: Sequence[Tensor | None]) -> None:
        self.layout, self._step, self._noises = step.layout, step, noises

    def num_samples(self, asked: int) -> int:
        """That of the step."""
        return self._step.num_samples(asked)

    def draw(self, index: int | None, noise: Tensor | None = None, *, avoid: Tensor | None = None) -> Draws:
        """The draw of that index."""
        return self._step.draw(index, self._noises[index] if noise is None and index is not None else noise)

    def divergence(self, draws: Draws, priors: Mapping[str, Any]) -> Any:
        """That of the step."""
        return self._step.divergence(draws, priors)
