"""Lightning Fabric as the source of a training run's processes, device and precision (extra ``lightning``)."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed
from torch import nn

from pyrobnn.core.extras import import_extra

__all__ = ["check_fabric"]


def check_fabric(fabric: Any, model: nn.Module, guide: nn.Module, device: Any) -> torch.device:
    """Refuses what a run cannot take over from Fabric.

    Args:
        fabric: The object.
        model: The model.
        guide: The guide.
        device: The argument ``device`` of :func:`pyrobnn.fit`.

    Returns:
        The device of this process.

    Raises:
        ImportError: If Lightning is not installed.
        TypeError: If it is no ``Fabric``, or its strategy is another than data parallel or a single device.
        ValueError: If the model is on another device, or the precision is float16, which needs scaled losses.
        RuntimeError: If it has not started its processes.
    """
    lightning = import_extra("fabric", "lightning.fabric", "lightning", "lightning")
    strategies = import_extra("fabric", "lightning.fabric.strategies", "lightning", "lightning")
    if not isinstance(fabric, lightning.Fabric):
        raise TypeError(f"fabric: expected a lightning.fabric.Fabric, got {fabric!r}.")
    strategy = fabric.strategy
    sharded = tuple(
        getattr(strategies, name) for name in ("FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy")
    )
    if isinstance(strategy, sharded):
        raise TypeError(
            f"fabric: its {type(strategy).__name__} shards parameters over processes, but a guide's are a few flat "
            "vectors that every draw needs whole, so nothing would be saved; use strategy='ddp'. Of a network that "
            "does not fit into one device, make only some layers Bayesian."
        )
    if not isinstance(strategy, strategies.SingleDeviceStrategy | strategies.DDPStrategy):
        raise TypeError(f"fabric: its strategy is a {type(strategy).__name__}; use strategy='ddp', or a single device.")
    if fabric.world_size > 1 and not torch.distributed.is_initialized():
        raise RuntimeError("fabric: it has not started its processes; call fabric.launch() first.")
    if getattr(strategy.precision, "scaler", None) is not None:
        raise ValueError(
            "fabric: precision '16-mixed' needs losses that are scaled against overflow, which sums over data do not "
            "stand; use precision='bf16-mixed'."
        )
    wanted: torch.device = fabric.device
    if device is not None and not _are_same(torch.device(device), wanted):
        raise ValueError(f"device: {device!r} was given, but fabric computes on {str(wanted)!r}; leave device= out.")
    for name, module in (("model", model), ("guide", guide)):
        tensor = next(iter((*module.parameters(), *module.buffers())))
        if not _are_same(tensor.device, wanted):
            raise ValueError(
                f"fabric: it computes on {str(wanted)!r}, but the {name} is on {str(tensor.device)!r}; call "
                f"model.to(fabric.device) and guide.to(fabric.device) first."
            )
    return wanted


def _are_same(first: torch.device, second: torch.device) -> bool:
    """Whether two devices are one; a device without a number is the first of its kind."""
    return first.type == second.type and (first.index or 0) == (second.index or 0)
