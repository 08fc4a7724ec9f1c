r"""Preconditioned SGLD: Langevin steps in the metric of RMSprop (Li, Chen, Carlson & Carin 2016).

.. math::  V_t = \alpha V_{t-1} + (1 - \alpha)\, \nabla\hat U(\theta_t)^2, \qquad
           G_t = \left( \lambda + \sqrt{V_t / (1 - \alpha^{t+1})} \right)^{-1},

.. math::  \theta_{t+1} = \theta_t - \frac{\varepsilon_t}{2} G_t \nabla\hat U(\theta_t) + N(0, \varepsilon_t T G_t),

element by element. V starts at zero and is corrected for it, as Adam's is. The exact scheme has the further drift
:math:`\tfrac{\varepsilon}{2} T\, \Gamma`, :math:`\Gamma_i = \partial G_{ii} / \partial\theta_i`. **It is left out**
here, as in the paper's experiments. By default G is therefore adapted during warmup only: held fixed from there on it
is a constant matrix, Γ is zero, and nothing is missing. Adapted for ever, draws are biased unless the squared gradients
are mostly minibatch noise: with full gradients the variances of a linear regression came out up to twice too large.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pyrobnn.core.arguments import check_number, check_positive, check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.sampling.kernels.base import Diffusion

__all__ = ["PreconditionedSGLD"]


@explained
@dataclass(frozen=True)
class PreconditionedSGLD(Diffusion):
    r"""pSGLD: ``Δθ = -(ε/2) G ∇U + N(0, εTG)`` with RMSprop's G, without the term Γ.

    Args:
        step_size: ε, or a schedule of it. It is measured in the metric: ∇U is of order N, so that G is of order 1/N and
            ε need not shrink with the data as SGLD's has to.
        temperature: T.
        decay: α, the memory of the squared gradients.
        damping: λ, in units of ∇U (nats per unit of a weight): the slope below which directions are no longer scaled
            up.
        adaptation: ``"warmup"``, ``"always"``, or the number of steps after which G is held fixed.

    Raises:
        ValueError: If an argument is out of its range.
    """

    decay: float = 0.99
    damping: float = 0.1
    adaptation: int | Literal["warmup", "always"] = "warmup"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("decay", self.decay, 0.0, 1.0, above=True, below=True)
        check_positive("damping", self.damping)
        if self.adaptation not in ("warmup", "always"):
            check_positive_int("adaptation", self.adaptation)

    def start(self, flat: Tensor, warmup_steps: int) -> dict[str, Tensor]:
        """The squared gradients' mean V, and how many steps it is adapted.

        Raises:
            ValueError: If it is to be adapted during warmup, and there is none.
        """
        if self.adaptation == "warmup" and warmup_steps < 1:
            raise ValueError(
                "warmup_steps: the preconditioner is adapted during warmup, so expected some steps of it; or pass "
                "adaptation='always' to PreconditionedSGLD."
            )
        steps = {"warmup": warmup_steps, "always": -1}.get(str(self.adaptation), self.adaptation)
        return {"squares": torch.zeros_like(flat), "adaptation": torch.tensor(steps)}

    def advance(
        self,
        flat: Tensor,
        gradient: Tensor,
        state: dict[str, Tensor],
        step: int,
        noise: Callable[[], Tensor],
        step_size: float,
        temperature: float,
    ) -> None:
        """One step."""
        squares, last = state["squares"], int(state["adaptation"])
        if last < 0 or step < last:
            squares.mul_(self.decay).addcmul_(gradient, gradient, value=1.0 - self.decay)
        seen = step + 1 if last < 0 else min(step + 1, last)
        metric = squares.div(1.0 - self.decay**seen).sqrt_().add_(self.damping).reciprocal_()
        flat.addcmul_(gradient, metric, value=-0.5 * step_size)
        if temperature > 0:
            flat.addcmul_(noise(), metric.sqrt_(), value=math.sqrt(step_size * temperature))
