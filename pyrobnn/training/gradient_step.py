"""One gradient step on an objective: the gradients, their clipping, the optimizer."""

from __future__ import annotations

from typing import Any

from pyro.optim import PyroOptim
from torch import nn
from torch.optim import Optimizer

from pyrobnn.guides.base import Guide
from pyrobnn.objectives import Objective, Parts
from pyrobnn.objectives.compiled import CompiledObjective
from pyrobnn.training.optimizers import trainable_parameters

__all__ = ["moved_parameters", "take_step", "train_step"]


def train_step(
    model: nn.Module,
    guide: Guide,
    elbo: Objective | CompiledObjective,
    optimizer: Optimizer | PyroOptim,
    args: tuple[Any, ...],
    clip_norm: float | None = None,
    kwargs: dict[str, Any] | None = None,
) -> Parts:
    """One gradient step on the objective per datum; what :func:`pyrobnn.fit` does with each batch.

    Args:
        model: The model.
        guide: The guide.
        elbo: The objective.
        optimizer: The optimizer (:func:`~pyrobnn.training.optimizers.make_optimizer`).
        args: Arguments of the model, ``(x, y)``.
        clip_norm: Largest norm of the gradient of the objective per datum.
        kwargs: Keyword arguments of the model.

    Returns:
        The parts of the objective before the step, in sum units.

    Raises:
        NonFiniteLossError: If the objective is NaN or infinite; no step has been taken then.
    """
    parameters = moved_parameters(model, guide, optimizer)
    for parameter in parameters:
        parameter.grad = None
    parts = elbo.backward(model, guide, args, kwargs, scale=None)
    take_step(optimizer, parameters, clip_norm)
    return parts


def moved_parameters(model: nn.Module, guide: Guide, optimizer: Optimizer | PyroOptim) -> list[nn.Parameter]:
    """The parameters that an optimizer moves."""
    if isinstance(optimizer, PyroOptim):
        return trainable_parameters(model, guide)
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def take_step(optimizer: Optimizer | PyroOptim, parameters: list[nn.Parameter], clip_norm: float | None) -> None:
    """Clips gradients, and moves the parameters along them."""
    if clip_norm is not None:
        nn.utils.clip_grad_norm_(parameters, clip_norm)
    if isinstance(optimizer, PyroOptim):
        optimizer(parameters)
    else:
        optimizer.step()
