r"""ADT-EXP: adversarial distributional training with an explicit distribution for each input.

The inner player is a distribution over perturbations, with a bonus for its entropy,

.. math::  \min_\theta \frac1n \sum_i \max_{m_i, s_i} E_{p(\delta \mid m_i, s_i)}[L(x_i + \delta)] + \lambda H(p),
           \qquad \delta = \epsilon \tanh(u),\quad u \sim N(m_i, \mathrm{softplus}(s_i)^2)

(:class:`TanhNormal`), so that training sees many bad inputs and not only the worst. For each batch :math:`(m, s)` start
at 0 and take a few steps of Adam with gradients averaged over a few draws; the network is then trained at one further
draw. Dong, Deng, Pang, Zhu & Su, *Adversarial Distributional Training for Robust Deep Learning* (2020).

Differences between the paper and the code published with it are options. The entropy of an input is the *sum* over its
elements; the code takes the *mean*, with which :math:`\lambda = 0.01` gave its results. The code adds the gradients of
all draws and never clears them, so that each step sees the sum over all steps before (``accumulate_gradients``). With
betas (0, 0) Adam steps by the sign of the gradient, whatever its scale. ``clip`` cuts perturbed inputs, and no gradient
passes where it did.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pyrobnn.core.arguments import check_non_negative, check_number, check_positive, check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.robustness.attacks.balls import Clip
from pyrobnn.robustness.training.attacked import AttackedNetwork
from pyrobnn.robustness.training.perturbation import Perturbation
from pyrobnn.robustness.training.tanh_normal import TanhNormal

__all__ = ["EntropyUnit", "ExplicitDistribution", "check_entropy_unit", "per_input"]

EntropyUnit = Literal["mean", "sum"]
"""How the entropy of an input is made of those of its elements: ``"sum"`` is its entropy; ``"mean"`` is by element."""


@explained
class ExplicitDistribution(Perturbation):
    """A distribution over perturbations in the maximum norm for each input, fitted to each batch (ADT-EXP).

    A training step costs ``num_steps * num_draws + 1`` forward and backward passes of the network.

    Args:
        epsilon: Radius of the ball in the maximum norm, in the inputs' units.
        clip: Smallest and largest input allowed; None for no limits.
        num_steps: Steps of Adam on (m, s).
        num_draws: Draws in each step.
        step_size: Learning rate of these steps.
        entropy_weight: Weight λ of the entropy.
        entropy: Whether an input's entropy is the ``"sum"`` over its elements, as in the paper, or the ``"mean"``, as
            in the published code and its results.
        accumulate_gradients: Never clear the gradients of (m, s) within a batch, as the published code.
        betas: Adam's betas; (0, 0) steps by the sign.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        epsilon: float,
        *,
        clip: Clip = None,
        num_steps: int = 7,
        num_draws: int = 5,
        step_size: float = 0.3,
        entropy_weight: float = 0.01,
        entropy: EntropyUnit = "mean",
        accumulate_gradients: bool = False,
        betas: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        super().__init__(epsilon, clip)
        check_positive_int("num_steps", num_steps)
        check_positive_int("num_draws", num_draws)
        check_positive("step_size", step_size)
        check_non_negative("entropy_weight", entropy_weight)
        check_entropy_unit(entropy)
        for beta in betas:
            check_number("betas", beta, 0.0, 1.0, below=True)
        self.num_steps, self.num_draws, self.step_size = num_steps, num_draws, step_size
        self.entropy_weight, self.entropy = entropy_weight, entropy
        self.accumulate_gradients, self.betas = accumulate_gradients, betas

    def perturbed(self, network: AttackedNetwork, x: Tensor, y: Tensor, *, keep: bool) -> Tensor:
        """One draw of the distributions that were fitted to the batch."""
        fitted = self.fitted(network, x, y)
        return self.ball.clipped(x + fitted.rsample(torch.randn_like(x)).detach())

    def fitted(self, network: AttackedNetwork, x: Tensor, y: Tensor) -> TanhNormal:
        """The distributions of the batch's perturbations.

        Args:
            network: The attacked network.
            x: Inputs ``[B, ...]``.
            y: Targets ``[B, ...]``.
        """
        parameters = [torch.zeros_like(x).requires_grad_() for _ in range(2)]  # m and s
        optimizer = torch.optim.Adam(parameters, lr=self.step_size, betas=self.betas)
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        for _ in range(self.num_steps):
            if not self.accumulate_gradients:
                optimizer.zero_grad(set_to_none=False)
            for _ in range(self.num_draws):
                slopes = torch.autograd.grad(-self.gain(network, x, y, *parameters).sum(), parameters)
                for parameter, slope in zip(parameters, slopes, strict=True):
                    assert parameter.grad is not None
                    parameter.grad.add_(slope, alpha=1.0 / self.num_draws)
            optimizer.step()
        return TanhNormal(parameters[0].detach(), parameters[1].detach(), self.epsilon)

    def gain(self, network: AttackedNetwork, x: Tensor, y: Tensor, loc: Tensor, raw_scale: Tensor) -> Tensor:
        """What the inner player maximizes, for each input ``[B]``, estimated with one draw.

        Args:
            network: The attacked network.
            x: Inputs ``[B, ...]``.
            y: Targets ``[B, ...]``.
            loc: The parameters m, of the shape of ``x``.
            raw_scale: The parameters s, likewise.
        """
        noise, distribution = torch.randn_like(x), TanhNormal(loc, raw_scale, self.epsilon)
        loss = network.losses(self.ball.clipped(x + distribution.rsample(noise)), y)
        return loss + self.entropy_weight * per_input(distribution.entropy_at(noise), self.entropy)


def check_entropy_unit(entropy: object) -> None:
    """Refuses what is neither.

    Raises:
        ValueError: If it is neither.
    """
    if entropy not in ("mean", "sum"):
        raise ValueError(f"entropy: expected 'mean' or 'sum', got {entropy!r}.")


def per_input(by_element: Tensor, entropy: EntropyUnit) -> Tensor:
    """The entropy of each input ``[B]`` from those of its elements ``[B, ...]``."""
    flat = by_element.flatten(1)
    return flat.mean(1) if entropy == "mean" else flat.sum(1)
