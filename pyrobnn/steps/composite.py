"""The training step of a composite guide: the steps of its parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add

import torch
from torch import Tensor

from pyrobnn.model.divergence import Divergence, PriorTerm
from pyrobnn.model.draws import Draws
from pyrobnn.model.layout import Layout
from pyrobnn.steps.base import Step

__all__ = ["CompositeStep"]


class CompositeStep(Step):
    """Draws and divergences of several steps, each for its own sites.

    Args:
        layout: All sites in the model's order.
        steps: The parts' steps.
        noise_sizes: How many standard normals make a draw of each part, None where draws are made otherwise.
    """

    def __init__(self, layout: Layout, steps: Sequence[Step], noise_sizes: Sequence[int | None]) -> None:
        self.layout, self._steps, self._noise_sizes = layout, list(steps), list(noise_sizes)

    def num_samples(self, asked: int) -> int:
        """The number that a part fixes (an ensemble), else ``asked``."""
        return next((count for step in self._steps if (count := step.num_samples(asked)) != asked), asked)

    def draw(self, index: int | None, noise: Tensor | None = None, *, avoid: Tensor | None = None) -> Draws:
        """A draw of each part."""
        sizes = [size or 0 for size in self._noise_sizes]
        pieces = [None] * len(sizes) if noise is None else list(noise.split(sizes))
        drawn = [step.draw(index, piece, avoid=avoid) for step, piece in zip(self._steps, pieces, strict=True)]
        return Draws.merged(drawn, self.layout, drawn)

    def divergence(self, draws: Draws, priors: Mapping[str, PriorTerm]) -> Divergence:
        """The sum over parts."""
        found = []
        for step, own in zip(self._steps, draws.record, strict=True):
            if counted := {name: priors[name] for name in step.layout if name in priors}:
                found.append(step.divergence(own, counted))
        return reduce(add, found) if found else Divergence(torch.zeros(()))

    def finish(self) -> None:
        """Ends the parts' steps."""
        for step in self._steps:
            step.finish()

    def restart(self, remaining: int | None = None) -> None:
        """Restarts the parts' steps."""
        for step in self._steps:
            step.restart(remaining)
