"""Base class of attacks that leave a class and choose for themselves which one they reach."""

from __future__ import annotations

from dataclasses import dataclass

from pyrobnn.robustness.attacks.base import Attack
from pyrobnn.robustness.attacks.losses import Loss, Margin

__all__ = ["MarginAttack"]


@dataclass(frozen=True)
class MarginAttack(Attack):
    """Base class: inputs are compared by their margin, which is positive where the prediction is wrong.

    Args:
        loss: ``"margin"``.
        targeted: False; the classes to be reached are the attack's own.
    """

    loss: str | Loss = "margin"

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        if self.targeted:
            raise ValueError(f"targeted: {name} chooses its own classes; for one class, use APGD(targeted=True).")
        if not isinstance(self.objective_loss(), Margin):
            raise ValueError(f"loss: results are compared by their 'margin' in {name}, got {self.loss!r}.")
