"""A training step whose divergence is estimated without the score of q (:mod:`pyrobnn.estimators.path_derivative`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pyro.distributions as dist
from torch import Tensor

from pyrobnn.estimators.path_derivative import path_log_density
from pyrobnn.model.divergence import Divergence, PriorTerm
from pyrobnn.model.draws import Draws
from pyrobnn.steps.base import Step

__all__ = ["PathDerivativeStep"]


class PathDerivativeStep(Step):
    """Draws of another step, with ``log q - log p`` of each draw in place of its divergence.

    Args:
        step: The inner step, whose draws are differentiable functions of the parameters.
        marginal: The guide's distribution of a site; sites are independent.
    """

    def __init__(self, step: Step, marginal: Callable[[str], dist.Distribution]) -> None:
        self.layout, self._step, self._marginal = step.layout, step, marginal

    def num_samples(self, asked: int) -> int:
        """That of the inner step."""
        return self._step.num_samples(asked)

    def draw(self, index: int | None, noise: Tensor | None = None, *, avoid: Tensor | None = None) -> Draws:
        """A draw of the inner step."""
        return self._step.draw(index, noise, avoid=avoid)

    def divergence(self, draws: Draws, priors: Mapping[str, PriorTerm]) -> Divergence:
        """``log q - log p`` of the draw, whose gradient takes the path through the draw alone."""
        terms = {}
        for name, term in priors.items():
            value = draws[name]
            terms[name] = term.sum(path_log_density(self._marginal(name), value) - term.distribution.log_prob(value))
        return Divergence.of_sites(terms, 0.0, exact=False)

    def finish(self) -> None:
        """Ends the inner step."""
        self._step.finish()

    def restart(self, remaining: int | None = None) -> None:
        """Restarts the inner step."""
        self._step.restart(remaining)
