"""Errors of export, which name the module or operator that cannot be exported."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

__all__ = ["ExportError", "Watch", "operator_in"]

_OPERATOR = re.compile(r"\b(?:aten|prims|torchvision|quantized)[.:]+[a-z]\w*(?:\.[A-Za-z]\w*)?")


class ExportError(ValueError):
    """What was to be exported cannot be: the message names the module or operator, and what to do instead."""


class Watch:
    """Knows which module of a network runs, for the message if it cannot be traced.

    Args:
        network: The network; :meth:`on` adds hooks to it for a block.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._running: list[str] = []

    @contextmanager
    def on(self) -> Iterator[None]:
        """Watches for the block."""
        self._running = []
        handles: list[Any] = []
        for name, module in self.network.named_modules():
            handles.append(module.register_forward_pre_hook(self._entering(name)))
            handles.append(module.register_forward_hook(self._left))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @property
    def place(self) -> str:
        """The innermost module that was entered and not left, in words."""
        if not self._running:
            return "the likelihood, or the arithmetic around the network"
        name = self._running[-1]
        kind = type(self.network.get_submodule(name)).__name__
        return f"the module {name!r} ({kind})" if name else f"the network ({kind})"

    def _entering(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            self._running.append(name)

        return hook

    def _left(self, module: nn.Module, args: Any, output: Any) -> None:
        self._running.pop()


def operator_in(error: BaseException) -> str | None:
    """The first operator that the messages of an error and its causes name."""
    seen: BaseException | None = error
    while seen is not None:
        if found := _OPERATOR.search(str(seen)):
            return found.group().replace("::", ".")
        seen = seen.__cause__ or seen.__context__
    return None
