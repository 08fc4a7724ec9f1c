r"""BatchNorm statistics under the posterior.

Running statistics collected in training belong to the draws of that time, and an average over draws is not
the statistics of any of them. :func:`recalibrate_batch_norm` estimates them afresh, as the plain average over
batches and posterior draws, each batch under a new draw (as SWA re-estimates them for its averaged weights,
Izmailov et al. 2018). The members of an ensemble have statistics of their own, each taken under its own weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.arguments import check_positive_int
from pyrobnn.guides.base import Guide
from pyrobnn.guides.draws import Draws
from pyrobnn.guides.ensemble import Ensemble
from pyrobnn.guides.member_buffers import MemberBuffers
from pyrobnn.prediction.runners import model_outputs, to_device
from pyrobnn.substitution import Substitution

__all__ = ["BATCH_NORMS", "recalibrate_batch_norm"]

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
"""Layers that normalise by the statistics of a batch."""


@torch.no_grad()
def recalibrate_batch_norm(model: nn.Module, guide: Guide, loader: Iterable[Any], *, num_draws: int = 1) -> None:
    """Re-estimates the running statistics of every BatchNorm layer, in place.

    Args:
        model: The model; only its BatchNorm buffers change.
        guide: The posterior to draw weights from. Of an ensemble, whose members have buffers of their own, it is
            these that change: the loader is gone through once per member.
        loader: Yields inputs or pairs ``(x, y)``; each batch should be as large as in training.
        num_draws: Posterior draws per batch.

    Raises:
        TypeError: If the guide is a composition one part of which is such an ensemble.
        ValueError: If the model has no BatchNorm layer with running statistics, or the loader is empty.
            Whatever goes wrong, the statistics are then as they were before.
    """
    layers: list[Any] = [m for m in model.modules() if isinstance(m, BATCH_NORMS) and m.track_running_stats]
    if not layers:
        raise ValueError("model: it has no BatchNorm layer with running statistics, so nothing can be recalibrated.")
    check_positive_int("num_draws", num_draws)
    if isinstance(guide, Ensemble) and len(guide.own_buffers):
        _by_member(model, layers, guide, loader, num_draws)
        return
    if any(isinstance(module, MemberBuffers) and len(module) for module in guide.modules()):
        raise TypeError(
            f"guide: a part of this {type(guide).__name__} is an ensemble whose members have running statistics of "
            "their own, which cannot be recalibrated together with other parts; train on for a few epochs instead."
        )
    _recalibrate(model, layers, lambda: Draws.of(guide.sample(1)).at(0), loader, num_draws)


def _by_member(model: nn.Module, layers: list[Any], guide: Ensemble, loader: Iterable[Any], num_draws: int) -> None:
    """Each member's own statistics; all of them as before if one fails."""
    before = {name: buffer.clone() for name, buffer in guide.own_buffers.named_buffers()}
    try:
        for member in range(guide.num_members):
            draw = Draws(guide.stacked(torch.tensor([member]))).at(0)
            with guide.with_buffers(model, member, keep=True):
                _recalibrate(model, layers, lambda draw=draw: draw, loader, num_draws)  # type: ignore[misc]
    except BaseException:
        guide.own_buffers.load_state_dict(before)
        raise


def _recalibrate(
    model: nn.Module, layers: list[Any], draw: Callable[[], Mapping[str, Tensor]], loader: Iterable[Any], num_draws: int
) -> None:
    """The layers' statistics under the draws that ``draw`` makes; as before if something fails."""
    before = [{name: buffer.clone() for name, buffer in layer.named_buffers()} for layer in layers]
    try:
        _average(model, layers, draw, loader, num_draws)
    except BaseException:
        for layer, buffers in zip(layers, before, strict=True):
            layer.load_state_dict(buffers, strict=False)
        raise
    for layer, buffers in zip(layers, before, strict=True):
        count = layer.num_batches_tracked
        count.copy_(torch.maximum(count, buffers["num_batches_tracked"]))


def _average(
    model: nn.Module, layers: list[Any], draw: Callable[[], Mapping[str, Tensor]], loader: Iterable[Any], num_draws: int
) -> None:
    """The plain average over all passes, which is what ``momentum=None`` means."""
    device = next(model.parameters()).device
    modes = [(module, module.training) for module in model.modules()]
    momenta = [layer.momentum for layer in layers]
    passes = 0
    try:
        model.eval()
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None
            layer.train()
        for batch in loader:
            x = to_device(batch[0] if isinstance(batch, tuple | list) else batch, device)
            for _ in range(num_draws):
                with Substitution(draw()):
                    model_outputs(model, x)
            passes += num_draws
        if passes == 0:
            raise ValueError("loader: it yielded no batch to take statistics of.")
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for module, training in modes:
            module.training = training
