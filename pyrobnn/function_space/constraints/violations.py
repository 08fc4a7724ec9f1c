"""violations(): how well a posterior keeps a constraint at inputs that it was not trained with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from pyrobnn.core import random_state
from pyrobnn.core.arguments import check_non_negative, check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.core.gradient_modes import gradients_enabled
from pyrobnn.core.trees import is_empty
from pyrobnn.function_space.constraints.base import Constraint, predictions_of
from pyrobnn.guides.base import Guide, check_guide
from pyrobnn.model.bayesianize import evaluating, frozen_buffers
from pyrobnn.model.draws import Draws

__all__ = ["Violations", "violations"]


@dataclass(frozen=True)
class Violations:
    """Violations of a constraint by functions of a posterior.

    Attributes:
        values: The violations, one row for each function ``[K, ...]``, in the units of the predictions.
        tolerance: What does not count as one.
    """

    values: Tensor
    tolerance: float

    @property
    def rate(self) -> float:
        """Share of violations above the tolerance, over functions and inputs."""
        return float((self.values > self.tolerance).double().mean())

    @property
    def rate_error(self) -> float:
        """Its Monte Carlo standard error over functions; NaN for one function."""
        shares = (self.values > self.tolerance).double().flatten(1).mean(1)
        return float(shares.std() / math.sqrt(len(shares))) if len(shares) > 1 else math.nan

    @property
    def by_input(self) -> Tensor:
        """Probability of a violation at each input ``[...]``."""
        return (self.values > self.tolerance).double().mean(0)

    @property
    def size(self) -> float:
        """Mean violation, counting 0 where there is none."""
        return float(self.values.clamp_min(0.0).mean())

    def __str__(self) -> str:
        return f"violated at a rate of {self.rate:.4f} (± {self.rate_error:.4f}), by {self.size:.3g} in the mean"


@explained
def violations(
    model: Any,
    guide: Guide,
    constraint: Constraint,
    inputs: Any,
    num_samples: int = 100,
    *,
    tolerance: float = 1e-6,
    seed: int | None = None,
) -> Violations:
    """Evaluates a constraint under draws of a posterior.

    Functions are the network's under draws of the weights; where a constraint compares several, sets of them.

    Args:
        model: The model.
        guide: The posterior.
        constraint: The constraint; neither its inputs, weight nor form matter.
        inputs: Where: a batch of inputs ``[B, ...]``.
        num_samples: Number K of functions; of a point, one.
        tolerance: Violations up to this do not count, in the units of the predictions.
        seed: Fixes the draws, and leaves torch's random state alone; None uses that.

    Returns:
        The violations, with their rate and mean size.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If there are no inputs, ``tolerance`` is negative, or the guide is another model's.
    """
    if not isinstance(constraint, Constraint):
        raise TypeError(f"constraint: expected one of pyrobnn.function_space, got {type(constraint).__name__}.")
    constraint.check_model(model)
    if not isinstance(guide, Guide):
        raise TypeError(f"guide: expected a guide of pyrobnn.guides, got {type(guide).__name__}.")
    check_guide(model, guide, argument="guide")
    check_positive_int("num_samples", num_samples)
    check_non_negative("tolerance", tolerance, "in the units of the predictions")
    if not isinstance(inputs, Tensor | tuple | Mapping | PackedSequence):
        raise TypeError(
            f"inputs: expected a tensor, tuple or dict of tensors, got {type(inputs).__name__}; join the batches of a "
            "loader with torch.cat."
        )
    if is_empty(inputs):
        raise ValueError("inputs: there are none.")
    compared = constraint.num_functions
    with random_state.local(seed), torch.no_grad():
        draws = Draws.of(guide.sample(compared * num_samples))
    found = []
    with gradients_enabled(), evaluating(model), frozen_buffers(model):
        for k in range(num_samples):
            functions = [predictions_of(model, draws.at(compared * k + j)) for j in range(compared)]
            found.append(constraint.violation(functions, inputs).detach())
    return Violations(torch.stack(found), tolerance)
