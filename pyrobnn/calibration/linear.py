r"""The fit of calibrators that are linear in log probabilities: vector, matrix and Dirichlet scaling.

They minimize, with parameters :math:`\theta` that are :math:`\theta_0` for the identity,

.. math::  -\sum_i \log q_\theta(y_i) + \frac{1}{2 s^2} \lVert \theta - \theta_0 \rVert^2,

the negative log posterior under a normal prior of scale s around the identity. Without it weights diverge wherever the
data can be separated; with more data it fades. The identity is a candidate, so that the negative log likelihood of the
data is never raised.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from pyrobnn.calibration.base import ClassCalibrator, On
from pyrobnn.core.arguments import check_positive

__all__ = ["LinearCalibrator", "centered", "fitted_parameters"]


class LinearCalibrator(ClassCalibrator):
    """Base class of calibrators with a weight and a bias; a subclass implements :meth:`mapped` and :meth:`identity`.

    Args:
        on: ``"mean"`` maps the averaged probabilities, ``"draws"`` those of each draw before they are averaged.
        prior_scale: Standard deviation of a normal prior of the parameters around the identity; larger is freer.

    Raises:
        ValueError: If ``on`` is neither, or ``prior_scale`` is not positive.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, on: On = "mean", *, prior_scale: float = 1.0) -> None:
        super().__init__("weight", "bias", on=on)
        check_positive("prior_scale", prior_scale)
        self.prior_scale = prior_scale

    @staticmethod
    @abstractmethod
    def mapped(log_probs: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        """Log probabilities ``[..., C]`` under the map with these parameters."""

    @staticmethod
    @abstractmethod
    def identity(bias: Tensor) -> dict[str, Tensor]:
        """The parameters that change nothing, given a bias ``[C]`` of zeros."""

    def transform(self, log_probs: Tensor) -> Tensor:
        """Mapped and normalized."""
        return self.mapped(log_probs, {"weight": self.weight.to(log_probs), "bias": self.bias.to(log_probs)})

    def fit_to(self, log_probs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The parameters of least negative log posterior."""
        start = self.identity(torch.zeros_like(log_probs[0, 0]))
        return fitted_parameters(start, self.mapped, log_probs, labels, self.prior_scale)


def centered(log_probs: Tensor) -> Tensor:
    """Log probabilities minus their mean over classes: logits, whose shift is not known, with a shift that is."""
    return log_probs - log_probs.mean(-1, keepdim=True)


def fitted_parameters(
    start: dict[str, Tensor],
    transform: Callable[[Tensor, dict[str, Tensor]], Tensor],
    log_probs: Tensor,
    labels: Tensor,
    prior_scale: float,
) -> dict[str, Tensor]:
    """The parameters of least objective, by L-BFGS from the identity.

    Args:
        start: The parameters of the identity, by name.
        transform: Calibrated log probabilities, given log probabilities ``[..., C]`` and parameters.
        log_probs: ``[K, n, C]``.
        labels: ``[n]``.
        prior_scale: The prior's scale s.
    """
    parameters = {name: value.clone().requires_grad_() for name, value in start.items()}
    index = labels.expand(len(log_probs), -1).unsqueeze(-1)

    def objective() -> Tensor:
        by_draw = transform(log_probs, parameters).gather(-1, index).squeeze(-1)
        nll = math.log(len(log_probs)) * len(labels) - by_draw.logsumexp(0).sum()
        distance = sum((value - start[name]).square().sum() for name, value in parameters.items())
        return (nll + distance / (2 * prior_scale**2)) / len(labels)

    optimizer = torch.optim.LBFGS(
        list(parameters.values()),
        max_iter=500,
        tolerance_grad=1e-9,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective()
        loss.backward()
        return loss

    with torch.enable_grad():
        before = objective().item()
        optimizer.step(closure)
        better = objective().item() <= before
    return {name: (value if better else start[name]).detach() for name, value in parameters.items()}
