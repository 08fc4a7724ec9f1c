r"""Stochastic differential equations with diagonal noise, solved on a fixed grid of times.

.. math::  dh_t = f(t, h_t)\, dt + g(t, h_t) \circ dW_t, \qquad 0 \le t \le T,

in Itô's sense, with :math:`\Delta = T / S` and increments :math:`\Delta W \sim N(0, \Delta)` of the Brownian path:

* ``"euler"`` (Euler–Maruyama): :math:`h' = h + f \Delta + g\, \Delta W`, of strong order 1/2, and of strong order 1
  where g does not depend on h;
* ``"milstein"``, without derivatives (Kloeden & Platen 1992, section 11.1): beside these terms
  :math:`\frac{g(t, \bar h) - g(t, h)}{2 \sqrt\Delta} (\Delta W^2 - \Delta)` at
  :math:`\bar h = h + f \Delta + g \sqrt\Delta`, one more evaluation of g. It is of strong order 1 where each
  :math:`g_i` depends on t and :math:`h_i` alone; where components mix, integrals of two Brownian motions would be
  needed, and the order is 1/2.

Without noise both are Euler's method, of order 1. Gradients are those of the discrete solution, by backpropagation
through its steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from pyrobnn.core.arguments import check_positive, check_positive_int
from pyrobnn.core.explanations import explained

__all__ = ["Field", "SDESolution", "Scheme", "brownian_increments", "solve_sde"]

Field: TypeAlias = Callable[[float, Tensor], Tensor]
"""Drift or diffusion: from a time and a state to a tensor of the state's shape."""
Scheme: TypeAlias = Literal["euler", "milstein"]


class SDESolution(NamedTuple):
    r"""A solution of :func:`solve_sde`.

    Attributes:
        state: :math:`h_T`, of the shape of the start.
        variation: Quadratic variation :math:`\sum g^2 \Delta`, the noise that the state has taken up, likewise.
        path: All states ``[S + 1, *shape]``, the start first; None if they were not kept.
    """

    state: Tensor
    variation: Tensor
    path: Tensor | None


@explained
def solve_sde(
    drift: Field,
    diffusion: Field | None,
    start: Tensor,
    steps: int,
    *,
    duration: float = 1.0,
    method: Scheme = "euler",
    increments: Tensor | None = None,
    antithetic: bool = False,
    keep_path: bool = False,
) -> SDESolution:
    """Solves a stochastic differential equation from time 0 to ``duration`` in steps of equal length.

    Args:
        drift: f, called as ``drift(t, h)``.
        diffusion: g, likewise; None for an ordinary differential equation.
        start: The state at time 0, of any shape; with antithetic paths, the first dimension holds paths.
        steps: Number S of steps.
        duration: The time T.
        method: ``"euler"`` or ``"milstein"``.
        increments: Those of the Brownian path, ``[S, *shape]``, of variance T / S; drawn if None.
        antithetic: Draw mirrored increments for the second half of the paths, see :func:`brownian_increments`.
        keep_path: Return the states at all times.

    Raises:
        TypeError: If a field is not callable, or ``start`` is no floating-point tensor.
        ValueError: If ``steps`` or ``duration`` is not positive, ``method`` is unknown, ``increments`` or what a field
            returns has a wrong shape, or antithetic paths are asked for beside increments.
    """
    _check_fields(drift, diffusion)
    if not isinstance(start, Tensor) or not start.is_floating_point():
        kind = start.dtype if isinstance(start, Tensor) else type(start).__name__
        raise TypeError(f"start: expected a floating-point tensor, the state at time 0, got {kind}.")
    check_positive_int("steps", steps)
    check_positive("duration", duration, "time")
    if method not in ("euler", "milstein"):
        raise ValueError(f"method: expected 'euler' or 'milstein', got {method!r}.")
    if increments is not None and antithetic:
        raise ValueError("antithetic: increments are given, and with them whether paths are mirrored; leave one out.")
    step = duration / steps
    if diffusion is not None and increments is None:
        increments = brownian_increments(steps, start.shape, duration=duration, antithetic=antithetic, like=start)
    if increments is not None and (not isinstance(increments, Tensor) or increments.shape != (steps, *start.shape)):
        given = list(increments.shape) if isinstance(increments, Tensor) else type(increments).__name__
        raise ValueError(f"increments: expected a tensor of shape {[steps, *start.shape]}, got {given}.")

    state, variation = start, torch.zeros_like(start)
    path = [state]
    for index in range(steps):
        time = index * step
        moved = state + _value("drift", drift, time, state) * step
        if diffusion is not None:
            assert increments is not None
            noise, scale = increments[index], _value("diffusion", diffusion, time, state)
            variation = variation + scale.square() * step
            if method == "milstein":
                slope = (diffusion(time, moved + scale * step**0.5) - scale) / (2.0 * step**0.5)
                moved = moved + slope * (noise.square() - step)
            moved = moved + scale * noise
        state = moved
        if keep_path:
            path.append(state)
    return SDESolution(state, variation, torch.stack(path) if keep_path else None)


@explained
def brownian_increments(
    steps: int,
    shape: Sequence[int],
    *,
    duration: float = 1.0,
    antithetic: bool = False,
    like: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Increments of Brownian paths over S steps of equal length, ``[S, *shape]``, each of variance T / S.

    Args:
        steps: Number S of steps.
        shape: Shape of a state.
        duration: The time T.
        antithetic: The first dimension of ``shape`` holds R paths, of which the last ``R // 2`` are the mirror images
            -W of the first ones. Each path has the right distribution; what is odd in the noise cancels in means over
            paths.
        like: A tensor that has their dtype and device; those of torch's defaults if None.
        generator: Where the random numbers come from; torch's own generator if None.

    Raises:
        ValueError: If ``steps`` or ``duration`` is not positive, ``shape`` is no shape, or there is no dimension that
            could hold antithetic paths.
    """
    check_positive_int("steps", steps)
    check_positive("duration", duration, "time")
    if isinstance(shape, str | bytes) or not all(isinstance(size, int) and size >= 0 for size in shape):
        raise ValueError(f"shape: expected the sizes of a state, such as (8, 2), got {shape!r}.")
    if antithetic and not len(shape):
        raise ValueError("antithetic: expected a first dimension that holds paths, got a state without dimensions.")
    drawn = (steps, *shape)
    if antithetic:
        drawn = (steps, -(-shape[0] // 2), *shape[1:])
    found = torch.randn(
        drawn,
        dtype=None if like is None else like.dtype,
        device=None if like is None else like.device,
        generator=generator,
    )
    found = found * (duration / steps) ** 0.5
    return torch.cat([found, -found[:, : shape[0] // 2]], 1) if antithetic else found


def _check_fields(drift: object, diffusion: object) -> None:
    for name, field in (("drift", drift), ("diffusion", diffusion)):
        if field is None and name == "diffusion":
            continue
        if not callable(field) or isinstance(field, type):
            given = f"the class {field.__name__}" if isinstance(field, type) else type(field).__name__
            raise TypeError(f"{name}: expected a function of time and state, got {given}.")


def _value(name: str, field: Field, time: float, state: Tensor) -> Tensor:
    found = field(time, state)
    if not isinstance(found, Tensor) or found.shape != state.shape:
        given = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(
            f"{name}: expected it to return a tensor of the state's shape {list(state.shape)}, got {given}."
        )
    return found
