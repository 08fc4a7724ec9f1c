"""A weight that is zero at first: of what is made by a network that has to be trained before others learn from it."""

from __future__ import annotations

from dataclasses import dataclass

from pyrobnn.core.arguments import check_non_negative, check_positive_int

__all__ = ["LateRamp", "published_ramp"]


@dataclass(frozen=True)
class LateRamp:
    r""":math:`e \min(\max((t - t_0) / T, 0), 1)`: zero up to an epoch, then in equal steps to e, where it stays.

    Attributes:
        end: e, the value that is reached.
        start: :math:`t_0`, the last epoch of weight zero.
        steps: T, the epochs of the rise.

    Raises:
        ValueError: If ``end`` or ``start`` is negative, or ``steps`` is no positive int.
    """

    end: float
    start: int
    steps: int

    def __post_init__(self) -> None:
        check_non_negative("end", self.end)
        check_non_negative("start", self.start)
        check_positive_int("steps", self.steps)

    def __call__(self, epoch: int) -> float:
        """The value at an epoch."""
        return self.end * min(max((epoch - self.start) / self.steps, 0.0), 1.0)


published_ramp = LateRamp(0.025, 100, 750)
"""The weight of generated samples in the classifier's loss in the authors' code for SVHN, of 1,000 epochs."""
