"""Refusals of arguments, loaders and batches that training would only turn into wrong numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sized
from typing import Any

import torch
from pyro.optim import PyroOptim
from torch import Tensor

from pyrobnn import random_state
from pyrobnn.bayesianize import evaluating, frozen_buffers
from pyrobnn.guides.base import Guide

__all__ = ["check_arguments", "check_batch", "check_loader", "check_optimizer", "check_rows", "check_targets", "unpack"]


def check_arguments(
    model: Any,
    guide: Any,
    loader: Any,
    epochs: int,
    patience: int | None,
    clip_norm: float | None,
    validation: Any,
    checkpoint: Any,
    resume: bool,
) -> None:
    """What can be told before the first batch."""
    if not isinstance(guide, Guide):
        raise TypeError(
            f"guide: expected one of pyrobnn.guides, got {type(guide).__name__}; fit a guide from elsewhere "
            "with "
            "pyro.infer.SVI(model, guide, optimizer, pyrobnn.elbo.MeanFieldELBO())."
        )
    for name, count in (("epochs", epochs), ("patience", patience)):
        if isinstance(count, bool) or not (
            (isinstance(count, int) and count > 0) or (count is None and name == "patience")
        ):
            raise ValueError(f"{name}: expected a positive int, got {count!r}.")
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"clip_norm: expected a positive norm, got {clip_norm!r}.")
    if patience is not None and validation is None:
        raise ValueError("patience: early stopping needs validation batches; pass validation=.")
    if resume and checkpoint is None:
        raise ValueError("resume: nothing to resume from; pass checkpoint= the directory of the earlier run.")
    check_loader(model, loader, epochs)
    if validation is not None:
        _check_repeatable("validation", validation, epochs)


def check_loader(model: Any, loader: Any, epochs: int) -> None:
    """What can be told of a loader before the first batch.

    Raises:
        TypeError: If it is an iterator, which is used up after one pass.
        ValueError: If its data set is not of the model's size.
    """
    _check_repeatable("loader", loader, epochs)
    data, num_data = getattr(loader, "dataset", None), getattr(model, "num_data", None)
    if num_data is not None and isinstance(data, Sized) and len(data) != num_data:
        raise ValueError(
            f"num_data: the model was told of {num_data} data, but the loader's data set has {len(data)}; "
            "the KL would be "
            "weighed wrongly. Build the model with num_data=len(loader.dataset)."
        )


def _check_repeatable(name: str, batches: Any, epochs: int) -> None:
    if isinstance(batches, Iterator) and epochs > 1:
        raise TypeError(
            f"{name}: a {type(batches).__name__} is used up after one epoch; pass a DataLoader or a list of batches."
        )


def check_optimizer(optimizer: Any, scheduler: Any, checkpoint: Any) -> None:
    """What only torch optimizers can do."""
    if isinstance(optimizer, PyroOptim):
        if scheduler is not None:
            raise TypeError(
                "scheduler: a pyro.optim optimizer brings its own schedule; pass a torch optimizer instead."
            )
        if checkpoint is not None:
            raise TypeError(
                "checkpoint: the state of a pyro.optim optimizer cannot be saved, for it is kept under names "
                "in Pyro's "
                "global parameter store; pass a torch optimizer instead."
            )


def check_rows(num_data: int | None, loader: Any, rows: int) -> None:
    """A loader without a data set shows its size only once it has been read."""
    counted_before = isinstance(getattr(loader, "dataset", None), Sized)
    if num_data is not None and not counted_before and rows != num_data:
        raise ValueError(
            f"num_data: the model was told of {num_data} data, but the loader yielded {rows} rows in one "
            "pass; build the "
            f"model with num_data={rows}."
        )


def unpack(batch: Any, device: torch.device | str | None) -> tuple[Any, Tensor]:
    """``(x, y)`` on ``device``."""
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        kind = type(batch).__name__
        if isinstance(batch, tuple | list | dict):
            kind += f" of length {len(batch)}"
        raise TypeError(f"loader: expected batches (x, y), got a {kind}; wrap the data set so that it yields pairs.")
    x, y = batch
    if not isinstance(y, Tensor):
        raise TypeError(f"loader: the targets y of a batch are a {type(y).__name__}, expected a tensor.")
    if y.dim() == 0:
        raise ValueError("loader: the targets y of a batch are a single number; wrap the data set in a DataLoader.")
    return (x, y) if device is None else (_move(x, device), y.to(device))


def _move(x: Any, device: torch.device | str) -> Any:
    if isinstance(x, dict):
        return {key: _move(value, device) for key, value in x.items()}
    if isinstance(x, tuple | list):
        return type(x)(_move(value, device) for value in x)
    return x.to(device) if isinstance(x, Tensor) else x


def check_batch(x: Any, index: int) -> None:
    """One sum per batch: any NaN or infinity shows in it, at a tenth of the price of a look at each element."""
    for value in x.values() if isinstance(x, dict) else x if isinstance(x, tuple | list) else (x,):
        if isinstance(value, Tensor) and value.is_floating_point() and not math.isfinite(value.sum()):
            rows = (~value.isfinite()).reshape(len(value), -1).any(1).nonzero().flatten().tolist()
            if rows:
                raise ValueError(
                    f"x: batch {index} holds NaN or infinite inputs in {len(rows)} rows (the first is row "
                    f"{rows[0]}); nothing "
                    "was changed by this batch. Clean or impute the data."
                )


def check_targets(model: Any, x: Any, y: Tensor) -> None:
    """Shape, dtype and range of the targets, for a model that has a likelihood of this library."""
    likelihood = getattr(model, "likelihood", None)
    if likelihood is None or not hasattr(model, "predictive"):
        return
    with torch.no_grad(), random_state.kept(y.device), evaluating(model), frozen_buffers(model):
        likelihood.check_targets(model.predictive(x), y)
