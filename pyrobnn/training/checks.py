"""Checks of arguments, loaders and batches that would silently give wrong results."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from pyro.optim import PyroOptim
from torch import Tensor

from pyrobnn.core import random_state
from pyrobnn.core.arguments import check_device, check_positive, check_positive_int
from pyrobnn.core.batches import Batch, Reader
from pyrobnn.core.files import check_directory
from pyrobnn.core.gradient_modes import refuse_inference_tensors
from pyrobnn.core.precision import refuse_float16
from pyrobnn.core.trees import leaves
from pyrobnn.guides.base import check_guide
from pyrobnn.model.bayesianize import evaluating, frozen_buffers
from pyrobnn.model.declarations import declared_likelihood, declared_num_data, declared_outputs
from pyrobnn.model.num_data import check_stated_rows
from pyrobnn.model.stochastic import at_stored_values
from pyrobnn.objectives import Objective
from pyrobnn.training.players import Player

__all__ = [
    "check_arguments",
    "check_loader",
    "check_optimizer",
    "check_options",
    "check_targets",
]


def check_arguments(
    model: Any,
    guide: Any,
    loader: Any,
    epochs: int | None,
    patience: int | None,
    clip_norm: float | None,
    validation: Any,
    early_stopping: Any,
    checkpoint: Any,
    resume: bool,
    reader: Reader | None = None,
    draws: str | None = None,
) -> None:
    """Checks that need no batch; what several processes have is counted when they are known (``draws`` is not None)."""
    advice = "; fit any other guide with pyro.infer.SVI(model, guide, optimizer, pyrobnn.objectives.ELBO())"
    check_guide(model, guide, advice=advice)
    refuse_inference_tensors(model=model, guide=guide)
    refuse_float16("guide", next(guide.parameters()))
    for name, count in (("epochs", epochs), ("patience", patience)):
        if count is not None:
            check_positive_int(name, count)
    if not isinstance(early_stopping, bool):
        raise TypeError(f"early_stopping: expected True or False, got {early_stopping!r}; patience= is its length.")
    if clip_norm is not None and clip_norm != math.inf:
        check_positive("clip_norm", clip_norm, "norm")
    if not any(parameter.requires_grad for parameter in guide.parameters()):
        raise ValueError(
            "guide: it is frozen, none of its parameters requires a gradient, so that nothing would be fitted; call "
            "guide.requires_grad_()."
        )
    if patience is not None and validation is None and not early_stopping:
        raise ValueError("patience: early stopping needs validation batches; pass validation=, or early_stopping=True.")
    if resume and checkpoint is None:
        raise ValueError("resume: nothing to resume from; pass checkpoint= the directory of the earlier run.")
    check_loader(model, loader, epochs, reader, counts=draws is None)
    if validation is not None:
        _check_repeatable("validation", validation, epochs)


def check_options(elbo: Any, scheduler: Any, players: Any, callbacks: Any, checkpoint: Any, device: Any) -> None:
    """Refuses options of the wrong kind, of which most would be used only after the first epoch.

    Raises:
        TypeError: If one is of another kind.
        ValueError: If there is no such device, or the path is empty.
    """
    if elbo is not None and not isinstance(elbo, Objective):
        raise TypeError(f"elbo: expected an objective, such as pyrobnn.objectives.ELBO(), got {elbo!r}.")
    if scheduler is not None and not callable(scheduler):
        raise TypeError(f"scheduler: expected a function from the optimizer to a schedule, got {scheduler!r}.")
    for name, entries in (("players", players), ("callbacks", callbacks)):
        if isinstance(entries, str) or not isinstance(entries, Sequence):
            raise TypeError(f"{name}: expected a list of them, got {entries!r}.")
    for player in players:
        if not isinstance(player, Player):
            raise TypeError(f"players: expected objects pyrobnn.training.Player(...), got {player!r}.")
    for callback in callbacks:
        if not callable(callback) or isinstance(callback, type):
            raise TypeError(f"callbacks: expected functions of the history, got {callback!r}.")
    if checkpoint is not None:
        check_directory("checkpoint", checkpoint)
    check_device("device", device)


def check_loader(
    model: Any,
    loader: Any,
    epochs: int | None,
    reader: Reader | None = None,
    argument: str = "loader",
    *,
    counts: bool = True,
) -> None:
    """Checks of a loader that need no batch; of its size, if ``counts``.

    Raises:
        TypeError: If it is an iterator, which is used up after one pass, or its reader is no function.
        ValueError: If its data set or sampler is not of the model's size.
    """
    _check_repeatable(argument, loader, epochs)
    if reader is not None and not callable(reader):
        raise TypeError(f"batch: expected a function from a batch to (inputs, targets), got {reader!r}.")
    if counts:
        check_stated_rows(declared_num_data(model), loader, reader, argument)


def _check_repeatable(name: str, batches: Any, epochs: int | None) -> None:
    if isinstance(batches, str | type) or not (isinstance(batches, Iterable) or hasattr(batches, "__getitem__")):
        raise TypeError(f"{name}: expected a DataLoader or a list of batches, got {batches!r}.")
    if isinstance(batches, Iterator) and epochs != 1:
        raise TypeError(
            f"{name}: a {type(batches).__name__} is used up after one epoch; pass a DataLoader or a list of batches."
        )


def check_optimizer(optimizer: Any, scheduler: Any, checkpoint: Any) -> None:
    """Refuses arguments that only torch optimizers support, if the optimizer is one of Pyro."""
    if isinstance(optimizer, PyroOptim):
        if scheduler is not None:
            raise TypeError("scheduler: a pyro.optim optimizer has its own schedule; pass a torch optimizer instead.")
        if checkpoint is not None:
            raise TypeError(
                "checkpoint: the state of a pyro.optim optimizer cannot be saved, for it is kept under names in Pyro's "
                "global parameter store; pass a torch optimizer instead."
            )


def check_targets(model: Any, batch: Batch) -> None:
    """Shape, dtype and range of the targets, for a model that has a likelihood of this library.

    Raises:
        TypeError: If the dtype of the targets is wrong.
        ValueError: If their shape or a value is, or a tensor of the batch was made under ``inference_mode``.
    """
    if any(isinstance(leaf, Tensor) and leaf.is_inference() for leaf in leaves((batch.args, batch.kwargs))):
        raise ValueError(
            "batch: it holds a tensor made under torch.inference_mode(), which no gradient can be computed with; make "
            "it under torch.no_grad(), or pass its clone()."
        )
    likelihood, outputs_of = declared_likelihood(model), declared_outputs(model)
    if likelihood is None or outputs_of is None:
        return
    # At the weights that the network was converted with: draws from the prior take time, and memory for all weights.
    kept = random_state.preserved(batch.device), evaluating(model), frozen_buffers(model), at_stored_values(model)
    with torch.no_grad(), contextlib.ExitStack() as stack:
        for context in kept:
            stack.enter_context(context)
        likelihood.check_targets(outputs_of(batch.inputs), batch.targets)
