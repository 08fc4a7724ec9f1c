"""Gradients of the potential for all chains, by the step that trains points and ensembles of them.

Chains are a point, or rows of a matrix, in unconstrained space with Jacobians; small networks run all chains in one
vectorized pass, large ones one after another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor, nn

from pyrobnn.core.handlers import validation_enabled
from pyrobnn.model.layout import Layout
from pyrobnn.objectives import ELBO
from pyrobnn.steps import PointScore, PointStep

__all__ = ["PotentialGradient"]


class PotentialGradient:
    """The gradient of U at the chains' present values.

    Args:
        model: The model, as it is to be evaluated.
        layout: Its sites.
        start: Starting points ``[C, P]``.
        vmap: Whether all chains go in one vectorized pass, as for :class:`~pyrobnn.guides.DeltaMixture`.

    Attributes:
        flat: The chains' values ``[C, P]``; write into it.
    """

    def __init__(
        self, model: Callable[..., Any], layout: Layout, start: Tensor, vmap: bool | Literal["auto"] = "auto"
    ) -> None:
        self.model, self.layout = model, layout
        single = len(start) == 1
        self._parameter = nn.Parameter(start[0].clone() if single else start.clone())
        self.flat = self._parameter.data.view(start.shape)
        # Statistics are the model's own and frozen: the chains have one posterior. Nothing reads the prior's value.
        score = PointScore(layout, jacobian=True, reports_value=False)
        self._step = PointStep(layout, self._parameter, score, model=model, vmap=False if single else vmap)
        self._objective = ELBO()

    def __call__(self, args: tuple[Any, ...]) -> Tensor:
        """The gradient ``[C, P]`` that one batch gives, in a buffer that the next call overwrites.

        Raises:
            NonFiniteLossError: If the potential is NaN or infinite in a chain.
        """
        parameter = self._parameter
        parameter.grad = None
        try:
            self._objective.backward(self.model, self._step, args)
        except ValueError:  # Pyro's validation may refuse NaN before the objective is found to be non-finite
            parameter.grad = None
            with validation_enabled(False):
                self._objective.backward(self.model, self._step, args)
            raise
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None
        return gradient.view(self.flat.shape)
