r"""Step-size schedules: functions from the index of a step to its step size.

A constant step size is just a number. Any function will do as a schedule; those here can be printed and compared, which
a resumed run does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pyrobnn.arguments import check_positive, check_positive_int

__all__ = ["CosineCycles", "PolynomialDecay"]


@dataclass(frozen=True)
class PolynomialDecay:
    r""":math:`\varepsilon_t = \varepsilon_0 (1 + t / b)^{-\gamma}` (Welling & Teh 2011).

    Args:
        initial: :math:`\varepsilon_0`, the first step size.
        delay: b, the number of steps after which it has fallen to :math:`2^{-\gamma}` of that.
        power: γ in (0.5, 1], for which the sum of the steps diverges and that of their squares does not.

    Raises:
        ValueError: If an argument is out of its range.
    """

    initial: float
    delay: float
    power: float = 0.55

    def __post_init__(self) -> None:
        check_positive("initial", self.initial)
        check_positive("delay", self.delay)
        if not 0.5 < self.power <= 1:
            raise ValueError(
                f"power: expected a number above 0.5 and up to 1, so that the chain keeps moving but its error "
                f"vanishes, got {self.power!r}."
            )

    def __call__(self, step: int) -> float:
        """The size of step ``step``."""
        return self.initial * (1.0 + step / self.delay) ** -self.power


@dataclass(frozen=True)
class CosineCycles:
    r""":math:`\varepsilon_t = \tfrac{\varepsilon_0}{2} (1 + \cos(\pi (t \bmod L) / L))` (Zhang et al. 2020).

    Args:
        initial: :math:`\varepsilon_0`, at the beginning of each cycle.
        cycle_length: Steps L of a cycle.

    Raises:
        ValueError: If an argument is not positive.
    """

    initial: float
    cycle_length: int

    def __post_init__(self) -> None:
        check_positive("initial", self.initial)
        check_positive_int("cycle_length", self.cycle_length)

    def __call__(self, step: int) -> float:
        """The size of step ``step``."""
        return 0.5 * self.initial * (1.0 + math.cos(math.pi * (step % self.cycle_length) / self.cycle_length))
