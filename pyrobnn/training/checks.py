"""Checks of arguments, loaders and batches that would silently give wrong results."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import Any

import torch
from pyro.optim import PyroOptim
from torch import Tensor
from torch.utils.data import DistributedSampler, RandomSampler, WeightedRandomSampler

from pyrobnn.core import random_state
from pyrobnn.core.arguments import check_device, check_positive, check_positive_int
from pyrobnn.core.batches import Batch, Reader
from pyrobnn.core.files import check_directory
from pyrobnn.core.gradient_modes import refuse_inference_tensors
from pyrobnn.core.precision import refuse_float16
from pyrobnn.core.trees import leaves
from pyrobnn.guides.base import check_guide
from pyrobnn.model.bayesianize import evaluating, frozen_buffers
from pyrobnn.model.declarations import declared_num_data
from pyrobnn.objectives import Objective
from pyrobnn.training.players import Player

__all__ = [
    "check_arguments",
    "check_loader",
    "check_optimizer",
    "check_options",
    "check_rows",
    "check_targets",
    "stated_rows",
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
) -> None:
    """Checks that need no batch."""
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
    check_loader(model, loader, epochs, reader)
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
    model: Any, loader: Any, epochs: int | None, reader: Reader | None = None, argument: str = "loader"
) -> None:
    """Checks of a loader that need no batch.

    Raises:
        TypeError: If it is an iterator, which is used up after one pass, or its reader is no function.
        ValueError: If its data set or sampler is not of the model's size.
    """
    _check_repeatable(argument, loader, epochs)
    if reader is not None and not callable(reader):
        raise TypeError(f"batch: expected a function from a batch to (inputs, targets), got {reader!r}.")
    if reader is None:  # which may make other rows of what the data set has
        _check_stated_rows(declared_num_data(model), loader)


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


def check_rows(num_data: int | None, loader: Any, rows: int, reader: Reader | None = None) -> None:
    """Checks the number of rows that a loader yielded against ``num_data``, if it could not be checked before."""
    if num_data is None or (reader is None and stated_rows(loader)) or rows == num_data:
        return
    if num_data not in _possible_rows(loader):
        raise ValueError(
            f"num_data: the model was built for {num_data} data, but the loader yielded {rows} rows in one pass; build "
            f"the model with num_data={rows}."
        )


def _check_stated_rows(num_data: int | None, loader: Any) -> None:
    stated = stated_rows(loader)
    if num_data is None or not stated or num_data in stated:
        return
    owner = "sampler" if len(stated) == 1 and stated != _possible_rows(loader) else "data set"
    raise ValueError(
        f"num_data: the model was built for {num_data} data, but the loader's {owner} has {stated[0]}; the KL "
        f"would have the wrong weight. Build the model with num_data={stated[0]}, or set model.num_data."
    )


def _possible_rows(loader: Any) -> tuple[int, ...]:
    data = getattr(loader, "dataset", None)
    return (len(data),) if isinstance(data, Sized) else ()


def stated_rows(loader: Any) -> tuple[int, ...]:
    """The numbers of data N that the loader's data set and sampler are consistent with; empty if it has neither.

    A sampler of a subset determines N by its length. For samplers that draw with replacement or that give each
    process a part, the length of the data set does. For weighted sampling it may be either.
    """
    data, sampler = _possible_rows(loader), getattr(loader, "sampler", None)
    batch_sampler = getattr(loader, "batch_sampler", None)
    if batch_sampler is not None:  # then the loader's own may be one that it does not use
        sampler = getattr(batch_sampler, "sampler", None)
        if sampler is None:
            return ()
    if not isinstance(sampler, Sized) or isinstance(sampler, RandomSampler | DistributedSampler):
        return data
    if isinstance(sampler, WeightedRandomSampler):
        return tuple(dict.fromkeys((len(sampler), *data)))
    return (len(sampler),)


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
    likelihood = getattr(model, "likelihood", None)
    if likelihood is None or not hasattr(model, "predictive"):
        return
    with torch.no_grad(), random_state.preserved(batch.device), evaluating(model), frozen_buffers(model):
        likelihood.check_targets(model.predictive(batch.inputs), batch.targets)
