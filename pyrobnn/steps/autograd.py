"""A step by plain automatic differentiation: what a family needs that has no faster one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from pyrobnn.estimators.base import Estimator
from pyrobnn.estimators.weight import GaussianWeight
from pyrobnn.model.divergence import Divergence, PriorTerm
from pyrobnn.model.draws import Draws
from pyrobnn.model.layout import Layout
from pyrobnn.steps.base import Step

__all__ = ["AutogradStep"]

Gaussians = Callable[[str], tuple[Tensor, Tensor]]


class AutogradStep(Step):
    """Draws and divergences of a guide in one graph with its parameters.

    Args:
        layout: The sites.
        rsample: Makes a draw, from the given noise or fresh one.
        divergence: The divergence of what is trained.
        estimators: Estimators by site, for the layers that draw.
        gaussian: Mean and standard deviation of a site that an estimator is for.
        begin: Called before the first draw of a training step.
        restart: Called at the start of an epoch with the number of steps to come, None if it is not known.
    """

    def __init__(
        self,
        layout: Layout,
        rsample: Callable[[Tensor | None], Draws],
        divergence: Callable[[Draws, Mapping[str, PriorTerm]], Divergence],
        estimators: Mapping[str, Estimator] | None = None,
        gaussian: Gaussians | None = None,
        *,
        begin: Callable[[], None] | None = None,
        restart: Callable[[int | None], None] | None = None,
    ) -> None:
        self.layout = layout
        self._rsample, self._divergence = rsample, divergence
        self._estimators, self._gaussian = dict(estimators or {}), gaussian
        self._begin, self._restart = begin, restart

    def draw(self, index: int | None, noise: Tensor | None = None, *, avoid: Tensor | None = None) -> Draws:
        """A reparameterized draw, with distributions in place of values at the sites that have an estimator."""
        if index == 0 and self._begin is not None:
            self._begin()
        # A draw that no site would use must not take random numbers that the layers' own would follow.
        is_replaced = noise is None and len(self._estimators) == len(self.layout)
        draw = Draws(dict.fromkeys(self.layout, torch.empty(0))) if is_replaced else self._rsample(noise)
        for name, estimator in self._estimators.items():
            assert self._gaussian is not None
            loc, scale = self._gaussian(name)
            draw[name] = GaussianWeight.of(loc, scale, estimator)
        return draw

    def divergence(self, draws: Draws, priors: Mapping[str, PriorTerm]) -> Divergence:
        """That of the guide."""
        return self._divergence(draws, priors)

    def restart(self, remaining: int | None = None) -> None:
        """Tells the guide's schedules how long the training is."""
        if self._restart is not None:
            self._restart(remaining)
