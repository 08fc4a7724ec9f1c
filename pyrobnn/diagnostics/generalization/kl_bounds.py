r"""Bounds on a risk from an observed one: the inverse of the binary KL, and what PAC-Bayes puts into it.

.. math::  \mathrm{kl}(q \,\|\, p) = q \ln\frac qp + (1 - q) \ln\frac{1 - q}{1 - p}, \qquad
           \mathrm{kl}^{-1}(q, c) = \max\{p : \mathrm{kl}(q \,\|\, p) \le c\}.

For a prior P fixed before the n data, a posterior Q with :math:`D = \mathrm{KL}(Q \,\|\, P)` and a loss in [0, 1], each
of these holds with probability :math:`1 - \delta` for all Q at once, r being the risk on the data and R the true one:

* Maurer (2004), for n of at least 8: :math:`R \le \mathrm{kl}^{-1}\big(r, (D + \ln(2\sqrt n / \delta)) / n\big)`;
* McAllester (1999), with Maurer's constant: :math:`R \le r + \sqrt{(D + \ln(2\sqrt n / \delta)) / 2n}`, never smaller;
* Catoni (2007), for a C fixed beforehand,
  :math:`R \le \big(1 - e^{-C r - (D + \ln(1/\delta)) / n}\big) / (1 - e^{-C})`. The best C depends on the data, so
  the bound is taken for each of m values that are fixed, with :math:`\delta / m` each (union bound).

The minimum over all C of Catoni's expression is the inverse of the KL with the same constant.
"""

from __future__ import annotations

import math

from pyrobnn.core.arguments import check_non_negative, check_number
from pyrobnn.core.explanations import explained

__all__ = ["CATONI_GRID", "binary_kl", "catoni_bound", "kl_inverse", "maurer_bound", "mcallester_bound"]

CATONI_GRID = tuple(0.05 * 400.0 ** (index / 63) for index in range(64))
"""The values of C, from 0.05 to 20, in steps of 10 %."""
_HALVINGS = 100
FEWEST = 8
"""Data from which Maurer's inequality holds."""


def binary_kl(q: float, p: float) -> float:
    """``kl(q ‖ p)`` in nats; infinite if p excludes what q allows."""
    total = 0.0
    for a, b in ((q, p), (1.0 - q, 1.0 - p)):
        if a > 0.0:
            total += a * math.log(a / b) if b > 0.0 else math.inf
    return max(total, 0.0)


@explained
def kl_inverse(q: float, c: float) -> float:
    """The largest p with ``kl(q ‖ p)`` of at most ``c`` nats, by bisection; rounded upward.

    Raises:
        ValueError: If ``q`` is not from 0 to 1, or ``c`` is below 0.
    """
    check_number("q", q, 0.0, 1.0)
    if c != math.inf:
        check_non_negative("c", c)
    low, high = q, 1.0
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        if binary_kl(q, middle) > c:
            high = middle
        else:
            low = middle
    return high


def maurer_bound(risk: float, divergence: float, count: int, delta: float) -> float:
    """Maurer's bound of the true risk, from the risk on ``count`` data and the KL in nats."""
    return kl_inverse(risk, _complexity(divergence, count, delta))


def mcallester_bound(risk: float, divergence: float, count: int, delta: float) -> float:
    """McAllester's bound; at most 1."""
    return min(risk + math.sqrt(_complexity(divergence, count, delta) / 2.0), 1.0)


def catoni_bound(
    risk: float, divergence: float, count: int, delta: float, grid: tuple[float, ...] = CATONI_GRID
) -> tuple[float, float]:
    """Catoni's bound with a union over ``grid``, at most 1, and the C at which it is smallest."""
    complexity = (divergence + math.log(len(grid) / delta)) / count
    found = [(-math.expm1(-c * risk - complexity) / -math.expm1(-c), c) for c in grid]
    bound, best = min(found)
    return min(bound, 1.0), best


def _complexity(divergence: float, count: int, delta: float) -> float:
    return (divergence + math.log(2.0 * math.sqrt(count) / delta)) / count
