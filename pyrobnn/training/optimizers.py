"""Optimizers of the parameters of guide and model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from typing import TypeAlias

import torch
from pyro.optim import PyroOptim
from torch import nn
from torch.optim import Optimizer

from pyrobnn.core.arguments import check_non_negative
from pyrobnn.core.explanations import explained
from pyrobnn.guides.base import Guide

__all__ = ["OptimizerSpec", "make_optimizer", "refuse_closures", "trainable_parameters"]

OptimizerSpec: TypeAlias = Callable[..., Optimizer] | Optimizer | PyroOptim | None


@explained
def make_optimizer(
    model: nn.Module,
    guide: Guide,
    optimizer: OptimizerSpec = None,
    lr: float = 1e-3,
    scale_lr: float | None = None,
    exclude: Collection[nn.Parameter] = (),
) -> Optimizer | PyroOptim:
    """The optimizer that :func:`pyrobnn.fit` uses.

    Args:
        model: The model; its deterministic parameters are trained too.
        guide: The guide.
        optimizer: None for Adam, a function ``(parameter groups, lr=...) -> optimizer``, or a ready one,
            which is returned as it is.
        lr: Learning rate.
        scale_lr: Learning rate of the guide's scale parameters, which then are a parameter group of their
            own; ``lr`` if None.
        exclude: Parameters that other optimizers move.

    Raises:
        TypeError: If ``optimizer`` is of another kind, or one that evaluates the objective itself (L-BFGS).
        ValueError: If a ready optimizer lacks a parameter or cannot take ``scale_lr``, or a Pyro optimizer
            asks for parameters' names, or a learning rate is no number of at least 0.
    """
    if isinstance(optimizer, Optimizer | PyroOptim):
        _check_ready(model, guide, optimizer, scale_lr, exclude)
        return optimizer
    if optimizer is not None and not callable(optimizer):
        raise TypeError(
            "optimizer: expected None, a function of parameter groups such as torch.optim.SGD, a torch optimizer or "
            f"one of pyro.optim, got {type(optimizer).__name__}."
        )
    check_non_negative("lr", lr, "learning rate")
    if scale_lr is not None:
        check_non_negative("scale_lr", scale_lr, "learning rate")
    others = {id(parameter) for parameter in exclude}
    parameters = [p for p in trainable_parameters(model, guide) if id(p) not in others]
    owned = guide.scale_parameters() if scale_lr is not None else []
    scales = {id(p) for p in owned}
    groups = [{"params": [p for p in parameters if id(p) not in scales], "lr": lr}]
    if scales:
        groups.append({"params": [p for p in parameters if id(p) in scales], "lr": scale_lr})
    if optimizer is not None:
        try:
            made = optimizer(groups, lr=lr)
        except TypeError as error:
            raise TypeError(f"optimizer: called with parameter groups and lr it failed: {error}") from error
        if not isinstance(made, Optimizer):
            raise TypeError(f"optimizer: it made a {type(made).__name__}, expected an optimizer of torch.")
        refuse_closures(made)
        return made
    fused = all(p.device.type in ("cpu", "cuda") and p.dtype in (torch.float32, torch.float64) for p in parameters)
    return torch.optim.Adam(groups, lr=lr, fused=fused)


def refuse_closures(optimizer: Optimizer) -> None:
    """Refuses an optimizer whose steps evaluate the objective several times.

    Raises:
        TypeError: If it is one.
    """
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise TypeError(
            f"optimizer: a step of {type(optimizer).__name__} evaluates the objective several times, for which the "
            "objective of a batch and of a draw is too noisy; take one of gradients alone, such as torch.optim.Adam."
        )


def trainable_parameters(model: nn.Module, guide: nn.Module) -> list[nn.Parameter]:
    """Parameters of guide and model that require gradients."""
    return [p for module in (guide, model) for p in module.parameters() if p.requires_grad]


def _check_ready(
    model: nn.Module,
    guide: Guide,
    optimizer: Optimizer | PyroOptim,
    scale_lr: float | None,
    exclude: Collection[nn.Parameter],
) -> None:
    if scale_lr is not None:
        raise ValueError(
            "scale_lr: a ready optimizer has its own learning rates; put guide.scale_parameters() into a parameter "
            "group of its own, or pass a function of parameter groups as optimizer."
        )
    if isinstance(optimizer, PyroOptim):
        if callable(optimizer.pt_optim_args) or callable(optimizer.pt_clip_args):
            raise ValueError(
                "optimizer: Pyro finds a parameter's own options by its name in the global parameter store, where "
                "modules' own parameters are not; pass options for all parameters, or a torch optimizer."
            )
        return
    refuse_closures(optimizer)
    known = {id(p) for group in optimizer.param_groups for p in group["params"]} | {id(p) for p in exclude}
    missing = [n for m in (guide, model) for n, p in m.named_parameters() if p.requires_grad and id(p) not in known]
    if missing:
        raise ValueError(
            f"optimizer: it does not hold the parameter {missing[0]!r} ({len(missing)} in all); build it over the "
            "parameters of both the guide and the model, or pass a function of parameter groups."
        )
