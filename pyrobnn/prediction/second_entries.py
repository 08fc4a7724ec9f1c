"""Whether the second entry of a batch ``(x, y)`` can be targets: a mask or a table there would silently be ignored."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from pyrobnn.model.bayesianize import BayesianModule
from pyrobnn.model.likelihoods import ClassLikelihood, Likelihood
from pyrobnn.model.supervised import SupervisedModel

__all__ = ["check_rows", "check_second_entry"]


def check_rows(y: Any, outputs: Tensor) -> None:
    """Refuses targets of which there are not as many as rows of outputs ``[N, ...]``.

    Raises:
        ValueError: If there are not.
    """
    if isinstance(y, Tensor) and y.dim() and len(y) != len(outputs):
        raise ValueError(
            f"data: a batch has {len(y)} targets, but the network returned {len(outputs)} rows of outputs for it; the "
            "outputs must have one row for each target."
        )


def check_second_entry(
    model: nn.Module, x: Any, y: Any, shape: torch.Size, likelihood: Likelihood | None, argument: str = "data"
) -> None:
    """Refuses a second entry that cannot be targets, if the network could take it as a further input.

    Args:
        model: The model.
        x: The first entry, taken as inputs.
        y: The second entry, taken as targets.
        shape: The shape of targets at these inputs.
        likelihood: What the outputs mean.
        argument: What errors name.

    Raises:
        ValueError: If it is such a one, so that what is meant is not known.
    """
    if not isinstance(y, Tensor):
        return
    is_class = isinstance(likelihood, ClassLikelihood)
    are_targets = y.shape == shape and y.dtype != torch.bool and not (is_class and y.is_floating_point())
    if are_targets or not _takes_more(model, x):
        return
    raise ValueError(
        f"{argument}: a batch of two entries is read as (x, y), but the second, of shape {list(y.shape)} and "
        f"{y.dtype}, cannot be targets, which are {'labels' if is_class else 'numbers'} of shape {list(shape)} here, "
        "and the network takes further inputs; pass batch=lambda raw: (tuple(raw), None) if it is one of them, or "
        "batch=lambda raw: (raw[0], None) to leave it out."
    )


def _takes_more(model: nn.Module, x: Any) -> bool:
    """Whether the network has further positional parameters after these inputs."""
    if not isinstance(model, SupervisedModel):
        return False
    net: Any = model.net.network if isinstance(model.net, BayesianModule) else model.net
    if isinstance(x, Mapping):
        return False
    try:
        parameters = inspect.signature(net.forward).parameters.values()
    except (TypeError, ValueError):  # a function without a signature, as of a compiled module
        return False
    given = len(x) if isinstance(x, tuple | list) and not isinstance(x, PackedSequence) else 1
    named = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(named) > given
