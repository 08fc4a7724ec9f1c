r"""FAB: the closest input with another prediction, by projections to linearized decision boundaries.

For a class t, with :math:`f = \log\bar p_t - \log\bar p_y` and its linearization at the iterate :math:`x_i`, project
both :math:`x_i` and the clean input :math:`x` to the plane :math:`f = 0` inside the range, by the least change in the
norm:

.. math::  x_{i+1} = \mathrm{clip}\big((1 - \alpha)(x_i + \eta\, \delta_i) + \alpha (x + \eta\, \delta)\big), \qquad
           \alpha = \min\Big(\frac{\|\delta_i\|}{\|\delta_i\| + \|\delta\|},\; 0.1\Big), \quad \eta = 1.05.

Where :math:`x_{i+1}` is misclassified and closer than before it is kept, and the search goes on from :math:`(1 - \beta)
x + \beta x_{i+1}`, :math:`\beta = 0.9`. The targeted form takes the most probable other classes in turn, with one
gradient and one evaluation a step; successes outside of the ball count nothing. Croce & Hein, "Minimally distorted
adversarial examples with a fast adaptive boundary attack", 2020.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyrobnn.core.arguments import check_number, check_positive
from pyrobnn.core.explanations import explained
from pyrobnn.robustness.attacks.balls import Clip, column
from pyrobnn.robustness.attacks.per_class import PairLoss, PerClassAttack
from pyrobnn.robustness.attacks.problem import Problem

__all__ = ["FAB", "project_to_plane"]

_TINY = 1e-12


@explained
@dataclass(frozen=True)
class FAB(PerClassAttack):
    """Targeted FAB: the closest misclassified inputs that are found, of those in the ball.

    ::

        adversarial = FAB(epsilon=0.3, clip=(0.0, 1.0))(model, guide, x, y)

    Args:
        epsilon: Radius of the ball, in the inputs' units.
        norm: ``"linf"`` or ``"l2"``.
        clip: Smallest and largest input allowed.
        loss: ``"margin"``, by which results are compared.
        targeted: False; the classes to be reached are the attack's own.
        steps: Number of steps toward each class.
        num_classes: How many classes, in the order of their probability at the clean input.
        bias: Largest weight α of the clean input.
        overshoot: The factor η.
        backward: The factor β.

    Raises:
        TypeError: If an option is of the wrong kind; at the call, if the likelihood has no classes.
        ValueError: If one is out of its range; at the call, if there are several labels for an input.
    """

    bias: float = 0.1
    overshoot: float = 1.05
    backward: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("bias", self.bias, 0.0, 1.0)
        check_number("backward", self.backward, 0.0, 1.0)
        check_positive("overshoot", self.overshoot)

    @property
    def label(self) -> str:
        """As in the paper of AutoAttack."""
        return "FAB-T"

    def pair_loss(self) -> _Gap:
        """The difference of log probabilities."""
        return _Gap()

    def toward(self, problem: Problem, rank: int) -> Tensor:
        """The closest inputs in the ball of the class, the clean ones where there are none."""
        ball, x = problem.ball, problem.x
        shape = column(x)
        current, best = x, x
        closest = torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
        for _ in range(self.steps):
            gap, gradient = problem.objective_and_gradient(current)
            gap = gap.to(x.dtype)
            at_clean = gap + ((x - current) * gradient).flatten(1).sum(1)
            own, other = (
                project_to_plane(point, gradient, level, self.norm, self.clip)
                for point, level in ((current, gap), (x, at_clean))
            )
            lengths = [ball.distance(start, start + change) for start, change in ((current, own), (x, other))]
            share = (lengths[0] / (lengths[0] + lengths[1]).clamp_min(_TINY)).clamp_max(self.bias).reshape(shape)
            moved = (1.0 - share) * (current + self.overshoot * own) + share * (x + self.overshoot * other)
            current = ball.clipped(moved)
            reached, distance = problem.objective(current) > 0, ball.distance(x, current)
            closer = reached & (distance < closest)
            closest = torch.where(closer, distance, closest)
            best = torch.where((closer & (distance <= ball.epsilon)).reshape(shape), current, best)
            current = torch.where(reached.reshape(shape), x + self.backward * (current - x), current)
        return best


class _Gap(PairLoss):
    """``log p_t - log p_y`` of pairs of the true class y and the class t."""

    def value(self, pooled: Tensor, targets: Tensor | None) -> Tensor:
        assert targets is not None
        own, other = pooled.gather(-1, targets.long()).unbind(-1)
        return other - own


def project_to_plane(x: Tensor, gradient: Tensor, value: Tensor, norm: str, clip: Clip) -> Tensor:
    r"""The least change of each input, inside the range, that brings a linear function to zero.

    With :math:`f(x + \delta) = v + g^\top \delta`: in the maximum norm all entries move by one amount along the sign of
    their gradient, in the Euclidean norm along the gradient, until they reach the end of the range; the amount is found
    exactly from the sorted points where entries stop. Where the plane does not meet the range, all entries go to the
    end.

    Args:
        x: Inputs ``[N, ...]`` in the range.
        gradient: Gradients g, of the same shape.
        value: Values v, ``[N]``.
        norm: ``"linf"`` or ``"l2"``.
        clip: Smallest and largest entry; None for no limits.

    Returns:
        The changes δ, of the shape of ``x``.
    """
    points, slopes = x.flatten(1), gradient.flatten(1)
    slopes = slopes * -value.sign().unsqueeze(1)  # of |v|, downward
    needed = value.abs()
    direction = slopes.sign() if norm == "linf" else slopes
    gains = direction * slopes  # how much each entry gives for a unit of the amount
    if clip is None:
        room = torch.full_like(points, torch.inf)
    else:
        room = torch.where(direction > 0, clip[1] - points, points - clip[0]) / direction.abs().clamp_min(1e-30)
    room = torch.where(gains > 0, room, 0.0)
    stops, order = room.sort(1)
    sorted_gains = gains.gather(1, order)
    finite = torch.where(stops.isfinite(), stops, 0.0)
    done = (sorted_gains * finite).cumsum(1) - sorted_gains * finite  # of entries that stopped before each stop
    left = sorted_gains.flip(1).cumsum(1).flip(1)  # of those that still move before it
    amounts = (needed.unsqueeze(1) - done) / left.clamp_min(1e-30)
    fits = (amounts <= stops) & (left > 0)
    first = fits.to(torch.int8).argmax(1, keepdim=True)
    amount = torch.where(fits.any(1, keepdim=True), amounts.gather(1, first), torch.inf)
    moved = torch.minimum(amount, room).nan_to_num(posinf=0.0) * direction
    return moved.reshape(x.shape)
