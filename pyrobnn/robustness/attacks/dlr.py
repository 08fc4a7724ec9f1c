r"""The difference of logits ratio, a loss without scale, and its targeted form.

.. math::  \mathrm{DLR}(x, y) = -\frac{z_y - \max_{j \ne y} z_j}{z_{\pi_1} - z_{\pi_3}}, \qquad
           \mathrm{DLR}_t(x, y) = -\frac{z_y - z_t}{z_{\pi_1} - \tfrac12 (z_{\pi_3} + z_{\pi_4})}

with :math:`z_{\pi_1} \ge z_{\pi_2} \ge \dots`. Logits times a constant have the same loss, so that a network cannot
hide its gradient by large logits. Here z are log mean probabilities under the posterior; with one draw these are the
logits, up to a shift that cancels. DLR is positive where the prediction is wrong. Croce & Hein, "Reliable evaluation of
adversarial robustness with an ensemble of diverse parameter-free attacks", 2020.
"""

from __future__ import annotations

from torch import Tensor

from pyrobnn.core.explanations import explained
from pyrobnn.robustness.attacks.losses import ClassLoss, margins
from pyrobnn.robustness.attacks.per_class import PairLoss

__all__ = ["DLR", "TargetedDLR"]

_TINY = 1e-12


@explained
class DLR(ClassLoss):
    """The margin over the difference of the first and the third log probability; of several labels, the mean.

    Raises:
        ValueError: When it is evaluated, if there are fewer than three classes.
    """

    def value(self, pooled: Tensor, targets: Tensor | None) -> Tensor:
        """The loss of each input."""
        assert targets is not None
        ranked = _ranked(pooled, 3, "DLR")
        found = margins(pooled, targets) / (ranked[..., 0] - ranked[..., 2] + _TINY)
        return found.reshape(len(pooled), -1).mean(1)

    def __repr__(self) -> str:
        return "DLR()"


class TargetedDLR(PairLoss):
    """The form for a class that is to be reached; targets are pairs ``[N, 2]`` of the true class and that one.

    Raises:
        ValueError: When it is evaluated, if there are fewer than four classes.
    """

    def value(self, pooled: Tensor, targets: Tensor | None) -> Tensor:
        """The loss of each input."""
        assert targets is not None
        ranked = _ranked(pooled, 4, "targeted DLR")
        own, other = pooled.gather(-1, targets.long()).unbind(-1)
        return (other - own) / (ranked[..., 0] - 0.5 * (ranked[..., 2] + ranked[..., 3]) + _TINY)


def _ranked(pooled: Tensor, least: int, name: str) -> Tensor:
    if pooled.shape[-1] < least:
        raise ValueError(
            f"loss: {name} compares {least} classes, but there are {pooled.shape[-1]}; use loss='margin' for so few."
        )
    return pooled.topk(least, -1).values
