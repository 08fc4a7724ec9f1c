"""Standard normals for each step, drawn one step ahead in a thread of their own.

Random numbers come from one processor core however many there are. Torch's (2.4 to 3.5 ns a weight) cost more than half
of a perceptron's forward and backward pass, those of :mod:`pyrobnn.core.standard_normals` less than a quarter of that.
Either way the interpreter is released, so the next step's noise is drawn while the network runs on this step's batch.
The numbers are the same with and without the thread: they come from a generator that nothing else draws from.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from pyrobnn.core import random_state
from pyrobnn.core.standard_normals import fill_standard_normals

__all__ = ["Noise"]

_SMALLEST_AHEAD = 50_000  # numbers a step; below it a second thread costs more than it saves


class Noise:
    """Fresh standard normals at each call.

    Args:
        like: A tensor of the shape, dtype and device of what a call returns.
        ahead: Whether to draw one call ahead; None does where that is worth it.

    Attributes:
        generator: Where they come from, seeded from torch's global random state.
    """

    def __init__(self, like: Tensor, ahead: bool | None = None) -> None:
        self.generator = torch.Generator(like.device).manual_seed(random_state.fresh_seed())
        if ahead is None:
            ahead = like.device.type == "cpu" and like.numel() >= _SMALLEST_AHEAD
        self._buffers = [torch.empty_like(like) for _ in range(2 if ahead else 1)]
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pyrobnn-noise") if ahead else None
        self._pending: Future[Tensor] | None = None
        self._before: Tensor | None = None  # the generator's state before what is pending

    def __call__(self) -> Tensor:
        """Standard normals, in memory that is the caller's until the next call."""
        if self._thread is None:
            return self._fill(self._buffers[0])
        filled = (self._pending or self._submit()).result()
        self._submit()
        return filled

    def read(self) -> Tensor:
        """The state of the generator from which the coming calls' numbers follow."""
        if self._pending is not None:
            self._pending.result()  # a state read while a thread draws would be torn
            assert self._before is not None
            return self._before
        return self.generator.get_state()

    def write(self, state: Tensor) -> None:
        """Goes back to a state that :meth:`read` gave."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None
        self.generator.set_state(state)

    def close(self) -> None:
        """Ends the thread; a later call draws by itself."""
        state = self.read()
        self.write(state)
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None

    def _submit(self) -> Future[Tensor]:
        assert self._thread is not None
        self._before = self.generator.get_state()
        self._buffers.reverse()
        self._pending = self._thread.submit(self._fill, self._buffers[0])
        return self._pending

    def _fill(self, buffer: Tensor) -> Tensor:
        return fill_standard_normals(buffer, self.generator)
