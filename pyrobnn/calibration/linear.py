r"""The fit of calibrators that are linear in log probabilities: vector, matrix and Dirichlet scaling.

They minimize, with parameters :math:`\theta` that are :math:`\theta_0` for the identity,

.. math::  -\sum_i \log q_\theta(y_i) + \frac{1}{2 s^2} \lVert \theta - \theta_0 \rVert^2,

the negative log posterior under a normal prior of scale s around the identity. Without it weights diverge wherever the
data can be separated; with more data it fades. The identity is a candidate, so that the negative log likelihood of the
data is never raised.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["centered", "fitted_parameters"]


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
