r"""Mixed derivatives by weights and inputs: :math:`s^\top \nabla_x \nabla_\theta L(x)` for some directions s.

A gradient of the weights keeps its graph, and its product with each direction is differentiated by the inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyrobnn.core.attention import attention_under_vmap
from pyrobnn.core.batches import Batch
from pyrobnn.core.finite import weighted
from pyrobnn.curvature.log_joint import LogJoint, pulled_back
from pyrobnn.model.substitution import SubstituteMessenger

__all__ = ["input_derivatives", "refuse_constant_inputs"]


def input_derivatives(log_joint: LogJoint, batch: Batch, directions: Tensor) -> Tensor:
    """``sᵀ ∇_x ∇_θ (ω L)`` of each row, ``[S, B, *input shape]``.

    Args:
        log_joint: The model and the point.
        batch: Rows with floating-point inputs.
        directions: Directions s, ``[S, n]``.

    Raises:
        ValueError: If the outputs do not depend on the inputs by operations that can be differentiated.
    """
    with torch.enable_grad(), attention_under_vmap(directions.device):  # the fused one has no second derivative
        leaf = log_joint.point.clone().requires_grad_()
        inputs = batch.inputs.detach().clone().requires_grad_()
        with SubstituteMessenger(log_joint.moved(leaf)):
            outputs = log_joint.model.predictive(inputs)
            log_prob = log_joint.model.likelihood(outputs).log_prob(batch.targets)
        loss = -weighted(log_prob, batch.weight).sum()
        refuse_constant_inputs(loss, inputs)
        (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
        return pulled_back(gradient, inputs, directions.to(gradient))


def refuse_constant_inputs(loss: Tensor, inputs: Tensor) -> None:
    """Refuses a loss that has no derivative by the inputs.

    Raises:
        ValueError: If it has none.
    """
    (slope,) = torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True)
    if slope is None:
        raise ValueError(
            "net: its outputs do not depend on its inputs by operations that can be differentiated (does it round, "
            "take an argmax, or detach?), so there is no I_pert."
        )
