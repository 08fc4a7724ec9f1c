"""The network of an estimator: the default perceptron, a copy of a given module, or what a function builds."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TypeAlias

from torch import nn

from pyrobnn.core.arguments import check_positive_int
from pyrobnn.model.network_copy import copied

__all__ = ["NetworkSpec", "default_widths", "network"]

NetworkSpec: TypeAlias = nn.Module | Callable[[int, int], nn.Module] | None
"""A network, or a function of the numbers of inputs and outputs that builds one."""


def network(
    spec: NetworkSpec, hidden_layer_sizes: Sequence[int] | int | None, num_inputs: int, num_outputs: int, num_rows: int
) -> nn.Module:
    """The network of an estimator.

    Args:
        spec: A network, which is copied; a function ``(num_inputs, num_outputs) -> network``; or None for a perceptron
            of ReLU units.
        hidden_layer_sizes: Widths of the perceptron's hidden layers; None for :func:`default_widths`.
        num_inputs: Number of columns of the inputs.
        num_outputs: Number of outputs.
        num_rows: Number of rows of the training data.

    Raises:
        TypeError: If ``spec`` is neither, or the function builds no module.
        ValueError: If a width is no positive int, or both a network and widths are given.
    """
    if spec is None:
        widths = default_widths(num_rows) if hidden_layer_sizes is None else _widths(hidden_layer_sizes)
        sizes = (num_inputs, *widths)
        hidden = [(nn.Linear(first, second), nn.ReLU()) for first, second in itertools.pairwise(sizes)]
        return nn.Sequential(*itertools.chain.from_iterable(hidden), nn.Linear(sizes[-1], num_outputs))
    if hidden_layer_sizes is not None:
        raise ValueError("hidden_layer_sizes: they are those of the default network; leave them out beside net=.")
    if isinstance(spec, nn.Module):
        return copied(spec)
    if not callable(spec):
        raise TypeError(
            f"net: expected a module, a function (num_inputs, num_outputs) -> module or None, got {spec!r}."
        )
    built = spec(num_inputs, num_outputs)
    if not isinstance(built, nn.Module):
        raise TypeError(f"net: the function returned a {type(built).__name__}; it must return a torch module.")
    return built


def default_widths(num_rows: int) -> tuple[int, int]:
    """Widths of the two hidden layers of the default network: 50, from 5,000 rows on 100, from 50,000 rows on 200."""
    width = 50 if num_rows < 5_000 else 100 if num_rows < 50_000 else 200
    return width, width


def _widths(sizes: Sequence[int] | int) -> tuple[int, ...]:
    if isinstance(sizes, str) or not isinstance(sizes, Sequence | int):
        raise TypeError(f"hidden_layer_sizes: expected widths such as (50, 50), got {sizes!r}.")
    widths = (sizes,) if isinstance(sizes, int) else tuple(sizes)
    for width in widths:
        check_positive_int("hidden_layer_sizes", width)
    return widths
