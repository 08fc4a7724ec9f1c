"""The training step by automatic differentiation, for families without a faster one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from pyrobnn.estimators.base import Estimator
from pyrobnn.estimators.uses import in_one_run
from pyrobnn.estimators.weight import GaussianWeight
from pyrobnn.model.divergence import Divergence, PriorTerm
from pyrobnn.model.draws import Draws
from pyrobnn.model.layout import Layout
from pyrobnn.steps.base import Step

__all__ = ["AutogradStep"]

Gaussians = Callable[[str], tuple[Tensor, Tensor]]


class AutogradStep(Step):
    """Draws and divergences as ordinary differentiable functions of the guide's parameters.

    Args:
        layout: The sites.
        rsample: Makes a draw from given noise, or from new noise if it is None.
        divergence: The divergence of the distribution that is trained.
        estimators: Estimators by site, for sites whose draws are made in the layers.
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
        self.compiles = not self._estimators and begin is None and restart is None

    def draw(self, index: int | None, noise: Tensor | None = None, *, avoid: Tensor | None = None) -> Draws:
        """A reparameterized draw, with distributions in place of values at the sites that have an estimator.

        Given noise makes values at all sites: layers would draw noise of their own.
        """
        if index == 0 and self._begin is not None:
            self._begin()
        # No random numbers are drawn if all sites are drawn in the layers: seeds then give the layers' draws alone.
        estimators = self._estimators if noise is None else {}
        is_replaced = bool(estimators) and len(estimators) == len(self.layout)
        draw = Draws(dict.fromkeys(self.layout, torch.empty(0))) if is_replaced else self._rsample(noise)
        weights = {}
        for name, estimator in estimators.items():
            assert self._gaussian is not None
            loc, scale = self._gaussian(name)
            draw[name] = weights[name] = GaussianWeight.of(loc, scale, estimator)
        if weights:
            draw.contexts = (*draw.contexts, in_one_run(weights))
        return draw

    def divergence(self, draws: Draws, priors: Mapping[str, PriorTerm]) -> Divergence:
        """That of the guide."""
        return self._divergence(draws, priors)

    def restart(self, remaining: int | None = None) -> None:
        """Gives the guide's schedules the number of training steps to come."""
        if self._restart is not None:
            self._restart(remaining)
