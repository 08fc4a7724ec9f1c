"""Comparison of a program that was read back from its file with what :func:`pyrobnn.predict` computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from pyrobnn.core.trees import join_rows, leaves, num_rows
from pyrobnn.exporting.errors import ExportError
from pyrobnn.model.standardization import Standardizer
from pyrobnn.prediction.predictor import Predictor

__all__ = ["check_differences", "doubled", "largest_differences", "reference_outputs"]

_TOLERANCE = 1e-4
"""Largest difference of a program in the network's own precision, for numbers of size 1: deep networks round more."""


def reference_outputs(
    predictor: Predictor, x: Any, levels: Sequence[float], scaler: Standardizer | None
) -> tuple[Tensor, ...]:
    """What a program of this predictor should return, on the CPU.

    Args:
        predictor: The predictor, with the program's draws.
        x: Inputs.
        levels: Levels of quantiles.
        scaler: Units of inputs and targets.
    """
    found = predictor(x if scaler is None else scaler.inputs(x))
    found = found if scaler is None else scaler.undo(found)
    outputs = [found.mean, found.total, found.aleatoric, found.epistemic]
    if levels:
        outputs.append(found.quantile(list(levels)))
    return tuple(value.detach().cpu() for value in outputs)


def largest_differences(
    names: Sequence[str], found: Sequence[Tensor], expected: Sequence[Tensor]
) -> dict[str, tuple[float, float]]:
    """By output, the largest absolute difference and the largest absolute value that is expected.

    Raises:
        ExportError: If the program returned another shape, as one does that was fixed to a size of batches.
    """
    differences = {}
    for name, ours, theirs in zip(names, found, expected, strict=True):
        if ours.shape != theirs.shape:
            raise ExportError(
                f"model: the program returned {name} of shape {list(ours.shape)} where predict returns "
                f"{list(theirs.shape)}; the network's code fixes a size, such as that of a batch, by a Python number."
            )
        differences[name] = (float((ours - theirs).abs().max()), float(theirs.abs().max()))
    return differences


def check_differences(differences: dict[str, tuple[float, float]]) -> None:
    """Refuses a program that does not compute what the network does.

    Raises:
        ExportError: If an output differs by more than rounding.
    """
    for name, (difference, size) in differences.items():
        if not difference <= _TOLERANCE * max(1.0, size):
            raise ExportError(
                f"model: {name} of the program differs by {difference:.2g} from that of predict on the example; the "
                "network's code draws random numbers in evaluation mode, or decides by values of its inputs, of which "
                "the program has one case."
            )


def doubled(x: Any) -> Any:
    """The inputs twice, one after the other, to try another size; as they are where they have no common rows."""
    try:
        num_rows(x)
    except ValueError:
        return x
    return join_rows([x, x]) if any(isinstance(leaf, Tensor) and leaf.dim() for leaf in leaves(x)) else x
