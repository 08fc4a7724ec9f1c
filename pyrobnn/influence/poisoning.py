r"""Data poisoning: training inputs that are moved until a test prediction is wrong.

.. math::  x \leftarrow \mathrm{clip}\big(x + \alpha\, \mathrm{sign}\, \textstyle\sum_t I_{pert}(x, z_t)\big),

after each of which the model is fitted again. Koh & Liang (2017), who move one image and fit the last layer of a
network; with ``sites`` the same here. It shows on which few rows a prediction hangs, and what somebody who may change
them can do.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyrobnn.core.arguments import check_non_negative, check_positive, check_positive_int
from pyrobnn.core.batches import Batch, Reader
from pyrobnn.core.explanations import explained
from pyrobnn.guides.base import Guide
from pyrobnn.guides.map import MAP
from pyrobnn.influence.exact import Exact
from pyrobnn.influence.refitting import refit
from pyrobnn.influence.training_rows import TrainingRows, read_test
from pyrobnn.model.bayesianize import evaluating, frozen_buffers
from pyrobnn.model.substitution import SubstituteMessenger
from pyrobnn.model.supervised import SupervisedModel

__all__ = ["Poisoned", "poison"]


@dataclass(frozen=True)
class Poisoned:
    """What poisoning came to.

    Attributes:
        inputs: The rows' inputs at the end, ``[R, *input shape]``.
        guide: The model fitted to them.
        losses: Losses of the test data before the first step and after each, ``[steps + 1, T]``.
        batches: The training data with the poisoned rows.
    """

    inputs: Tensor
    guide: MAP
    losses: Tensor
    batches: list[Batch]


@explained
def poison(
    model: SupervisedModel,
    guide: Guide,
    loader: Iterable[Any],
    x: Any,
    y: Any,
    rows: Sequence[int],
    *,
    step_size: float,
    steps: int = 20,
    epsilon: float | None = None,
    clip: tuple[float, float] | None = None,
    enough: float | None = None,
    sites: Collection[str] | None = None,
    damping: float = 0.0,
    tolerance: float = 1e-4,
    batch: Reader | None = None,
) -> Poisoned:
    """Moves inputs of training rows so that the losses of test data rise.

    Args:
        model: The model that was fitted.
        guide: A point; it is left as it is, and so are the data.
        loader: Training data in a fixed order.
        x: Inputs of the test data that are attacked.
        y: Their true targets.
        rows: The training rows that are moved; their targets stay.
        step_size: α, in the inputs' units.
        steps: Most steps.
        epsilon: Largest distance from the first inputs in any entry; None for no limit.
        clip: Smallest and largest input allowed.
        enough: Loss at which to stop, once all test data have reached it; ``math.log(2)`` is a wrong prediction of two
            classes.
        sites: The weights that are fitted again, such as those of the last layer; all weights of the network if None.
        damping: As for :class:`Exact`, whose Hessian is used.
        tolerance: Of each :func:`refit`.
        batch: How to read batches.

    Returns:
        The poisoned rows, the model fitted to them, and the losses on the way.

    Raises:
        TypeError: If inputs are no floating-point tensors.
        ValueError: If a number is out of range, inputs are, or the Hessian is not positive definite.
    """
    check_positive("step_size", step_size)
    check_positive_int("steps", steps)
    if epsilon is not None:
        check_positive("epsilon", epsilon)
    if enough is not None:
        check_non_negative("enough", enough, "loss")
    low, high = _range(clip)
    data = TrainingRows(model, loader, batch)
    numbers, test = data.check_rows(rows), read_test(model, x, y)
    fitted = refit(model, guide, data.batches, sites=sites, tolerance=tolerance)
    first = moved = _inputs(data, numbers)
    if bool(((first < low) | (first > high)).any()):
        raise ValueError(
            f"clip: the rows' inputs reach from {float(first.min()):.4g} to {float(first.max()):.4g}, beyond {clip}; "
            "pass the range of your inputs."
        )
    batches, losses = data.batches, [_losses(model, fitted, test)]
    for _ in range(steps):
        if enough is not None and bool((losses[-1] >= enough).all()):
            break
        influence = Exact(model, fitted, batches, damping=damping, sites=sites)
        direction = influence.perturbation(x, y, numbers).sum(0).sign()
        moved = (moved + step_size * direction).clamp(low, high)
        if epsilon is not None:
            moved = torch.minimum(torch.maximum(moved, first - epsilon), first + epsilon)
        batches = _replaced(data, numbers, moved)
        fitted = refit(model, fitted, batches, sites=sites, tolerance=tolerance)
        losses.append(_losses(model, fitted, test))
    return Poisoned(moved, fitted, torch.stack(losses), batches)


def _range(clip: Any) -> tuple[float, float]:
    if clip is None:
        return -math.inf, math.inf
    if not (isinstance(clip, tuple | list) and len(clip) == 2 and clip[0] < clip[1]):
        raise ValueError(f"clip: expected (smallest, largest), got {clip!r}.")
    return float(clip[0]), float(clip[1])


def _inputs(data: TrainingRows, rows: list[int]) -> Tensor:
    inputs = data.part(rows).inputs
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        kind = str(inputs.dtype) if isinstance(inputs, Tensor) else type(inputs).__name__
        raise TypeError(f"loader: its inputs are a {kind}, which cannot be moved; pass a floating-point tensor.")
    return inputs.detach().clone()


def _replaced(data: TrainingRows, rows: list[int], inputs: Tensor) -> list[Batch]:
    """The batches with other inputs of some rows."""
    found, start = [], 0
    for own in data.batches:
        places = [index for index, row in enumerate(rows) if start <= row < start + own.rows]
        if places:
            changed = own.inputs.clone()
            changed[[rows[index] - start for index in places]] = inputs[places]
            own = replace(own, inputs=changed, args=(changed, *own.args[1:]))
        found.append(own)
        start += own.rows
    return found


@torch.no_grad()
def _losses(model: SupervisedModel, guide: MAP, test: Batch) -> Tensor:
    with evaluating(model), frozen_buffers(model), SubstituteMessenger(guide.starting_point()):
        return -model.likelihood(model.predictive(test.inputs)).log_prob(test.targets)
