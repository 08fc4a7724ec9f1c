"""Several processes of ``torch.distributed``: what does not synchronize them refuses to run in a group.

Every process would train on its own share of the data as if it were all of it, with draws of its own, and end with
another posterior, none of which is right.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed
from torch import nn

__all__ = ["are_independent", "independent_processes", "refuse_process_group", "refuse_wrapped"]

_blocks: list[None] = []


@contextmanager
def independent_processes() -> Iterator[None]:
    """Declares that each process of a group makes posteriors of its own; a context manager.

    What trains or samples raises an error under an initialized process group of several processes, since it does not
    synchronize them. In this block it runs: for members of an ensemble or chains by process, say. It is up to you that

    * each process reads all data, not the share that a ``DistributedSampler`` gives it;
    * calls have another ``seed=`` in each process;
    * only one process writes to a directory (``checkpoint=``, ``directory=``).

    Example:
        >>> with pyrobnn.independent_processes():
        ...     pyrobnn.fit(model, guide, loader, seed=torch.distributed.get_rank())
    """
    _blocks.append(None)
    try:
        yield
    finally:
        _blocks.pop()


def are_independent() -> bool:
    """Whether this is in a block of :func:`independent_processes`."""
    return bool(_blocks)


def refuse_process_group(function: str, advice: str = "") -> None:
    """Refuses to go on in a group of several processes, but for blocks of :func:`independent_processes`.

    Args:
        function: What was called, as the message names it.
        advice: What else to do, for the message.

    Raises:
        RuntimeError: If the default process group of ``torch.distributed`` has several processes.
    """
    if _blocks or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return
    if (size := torch.distributed.get_world_size()) > 1:
        raise RuntimeError(
            f"{function}: the process group of torch.distributed has {size} processes, which it does not synchronize: "
            "each would end with a posterior of its own, given its share of the data. Call it in one process without "
            "a group; or, where each process is to have a posterior of its own given all data, in a block `with "
            f"pyrobnn.independent_processes():`{advice}."
        )


def refuse_wrapped(**modules: Any) -> None:
    """Refuses networks, models and guides that are wrapped for several devices or processes.

    Args:
        **modules: By the name of the argument that they are.

    Raises:
        TypeError: If one of them is, or contains, such a wrapper.
    """
    for argument, module in modules.items():
        for name, inner in module.named_modules() if isinstance(module, nn.Module) else ():
            if (said := _wrapper(inner)) is not None:
                raise TypeError(f"{argument}: {f'the module {name!r}' if name else 'it'} is {said}.")


def _wrapper(module: nn.Module) -> str | None:
    """What wraps a module for several devices or processes, and what to pass instead; None if nothing does."""
    kind = type(module).__name__
    if kind == "_FabricModule":
        return "set up by Fabric; pass it as it was before fabric.setup(), which fit(fabric=...) does not need"
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return f"a {kind}; pass the network inside it (its .module)"
    fsdp = sys.modules.get("torch.distributed.fsdp")  # importing it takes long
    sharded = tuple(getattr(fsdp, name) for name in ("FullyShardedDataParallel", "FSDPModule") if hasattr(fsdp, name))
    if isinstance(module, sharded):
        return f"sharded over processes (a {kind}); pass the network as it was before it was sharded"
    return None
