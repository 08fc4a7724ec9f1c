"""Names of torch that are not public, for recording graphs; ``tests/core/test_torch_compat.py``.

What other modules need of Pyro and torch is in :mod:`pyrobnn.core.pyro_compat`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["OperatorMode", "from_functional", "functionalized", "to_functional"]


class OperatorMode(TorchDispatchMode):
    """A mode whose ``__torch_dispatch__`` sees every operator, and that does not import torch's compiler.

    By default torch keeps its compiler out of the method, for which it imports it: a second.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


@contextmanager
def functionalized() -> Iterator[None]:
    """In the block, writing into tensors of :func:`to_functional` computes new ones, and operators see only that."""
    functions: Any = torch
    functions._enable_functionalization(reapply_views=True)
    try:
        yield
    finally:
        functions._disable_functionalization()


def to_functional(tensor: Tensor) -> Tensor:
    """The tensor as one that may be written to within :func:`functionalized`."""
    functions: Any = torch
    return functions._to_functional_tensor(tensor)


def from_functional(tensor: Tensor) -> Tensor:
    """What such a tensor holds; other tensors are returned as they are."""
    functions: Any = torch
    if not functions._is_functional_tensor(tensor):
        return tensor
    functions._sync(tensor)
    return functions._from_functional_tensor(tensor)
