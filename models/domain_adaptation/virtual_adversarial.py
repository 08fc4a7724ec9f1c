r"""VADA's losses beside the adversary: decision boundaries stay away from data, and predictions are smooth around them.

.. math::  L = \lambda_t \bigl( E_t H[p(y \mid x)] + \mathrm{VAT}(x_t) \bigr) + \lambda_s \mathrm{VAT}(x_s), \qquad
           \mathrm{VAT}(x) = \max_{\|r\| \le \epsilon} \mathrm{KL}[p(y \mid x) \,\|\, p(y \mid x + r)].

The worst r is found by one step of the power iteration on the divergence's Hessian; no gradient goes through r or
:math:`p(y \mid x)`. Shu, Bui, Narui & Ermon, *A DIRT-T Approach to Unsupervised Domain Adaptation* (2018); Miyato et
al., *Virtual Adversarial Training* (2018).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.domain_adaptation.batches import AlignmentLoss, DomainBatch
from pyrobnn.core import schedules
from pyrobnn.core.arguments import check_non_negative, check_positive, check_positive_int

__all__ = ["VirtualAdversarial", "conditional_entropy", "virtual_adversarial_loss"]


class VirtualAdversarial(AlignmentLoss):
    """Conditional entropy and smoothness of the targets, and smoothness of the sources.

    Args:
        weight: Factor λ_t of the targets' terms, or its schedule.
        source_ratio: λ_s / λ_t.
        epsilon: Norm of the perturbation, in the inputs' units over a whole input.
        power_iterations: Steps in search of the worst direction.

    Raises:
        ValueError: If a number is out of range.
    """

    name = "virtual_adversarial"

    def __init__(
        self,
        weight: schedules.Schedule = 0.01,
        *,
        source_ratio: float = 1.0,
        epsilon: float = 1.0,
        power_iterations: int = 1,
    ) -> None:
        super().__init__(weight)
        check_non_negative("source_ratio", source_ratio)
        check_positive("epsilon", epsilon)
        check_positive_int("power_iterations", power_iterations)
        self.source_ratio, self.epsilon, self.power_iterations = source_ratio, epsilon, power_iterations

    def __call__(self, batch: DomainBatch, weight: float) -> Tensor:
        """The loss times its weight."""
        rerun = batch.rerun
        assert rerun is not None
        options = (self.epsilon, self.power_iterations)

        def logits(x: Tensor) -> Tensor:
            return rerun(x).logits

        found = conditional_entropy(batch.target.logits)
        found = found + virtual_adversarial_loss(logits, batch.target.inputs, batch.target.logits, *options)
        if self.source_ratio:
            smooth = virtual_adversarial_loss(logits, batch.source.inputs, batch.source.logits, *options)
            found = found + self.source_ratio * smooth
        return weight * found


def conditional_entropy(logits: Tensor) -> Tensor:
    """The mean entropy of predictions, in nats, from logits ``[B, C]``."""
    log_probs = logits.log_softmax(-1)
    return -(log_probs.exp() * log_probs).sum(-1).mean()


def virtual_adversarial_loss(
    network: Callable[[Tensor], Tensor], x: Tensor, logits: Tensor, epsilon: float, power_iterations: int = 1
) -> Tensor:
    """The mean divergence of predictions at the worst perturbation found.

    Args:
        network: From inputs to logits ``[B, C]``.
        x: Inputs ``[B, ...]`` of floating point.
        logits: The network's logits there ``[B, C]``.
        epsilon: Norm of the perturbation of each input.
        power_iterations: Steps in search of it, each of one gradient.

    Raises:
        TypeError: If inputs are no tensor of floating point.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"x: virtual adversarial training moves inputs; expected floats, got {type(x).__name__}.")
    target = logits.detach().log_softmax(-1)
    direction = _unit(torch.randn_like(x))
    for _ in range(power_iterations):
        with torch.enable_grad():
            moved = (1e-3 * direction).requires_grad_()
            (gradient,) = torch.autograd.grad(_divergence(target, network(x + moved)), moved)
        direction = _unit(gradient)
    return _divergence(target, network(x + epsilon * direction))


def _divergence(target: Tensor, logits: Tensor) -> Tensor:
    return (target.exp() * (target - logits.log_softmax(-1))).sum(-1).mean()


def _unit(x: Tensor) -> Tensor:
    norms = x.flatten(1).norm(dim=1).clamp(min=1e-30)
    return x / norms.reshape(-1, *[1] * (x.dim() - 1))
