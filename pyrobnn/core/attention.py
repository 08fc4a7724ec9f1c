"""Attention as training computes it, also in evaluation mode.

In evaluation mode without gradients ``nn.TransformerEncoder`` and ``nn.MultiheadAttention`` take a fast path of torch.
It returns zeros where inputs are padding, other values than training does, and :func:`torch.func.vmap` has no rule for
it. On a CPU torch's fused attention has none either.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["attention_as_trained", "attention_under_vmap"]

_lock = threading.Lock()
_blocks = 0  # that are open in all threads; the switch is one for the process
_before = True


@contextmanager
def attention_as_trained() -> Iterator[None]:
    """Without torch's fast path in the block, which several threads may be in; the setting before it is restored."""
    global _blocks, _before
    with _lock:
        if not _blocks:
            _before = torch.backends.mha.get_fastpath_enabled()
            torch.backends.mha.set_fastpath_enabled(False)
        _blocks += 1
    try:
        yield
    finally:
        with _lock:
            _blocks -= 1
            if not _blocks:
                torch.backends.mha.set_fastpath_enabled(_before)


@contextmanager
def attention_under_vmap(device: torch.device) -> Iterator[None]:
    """Attention by plain products on a CPU, which vmap knows; elsewhere as torch chooses."""
    with sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext():
        yield
