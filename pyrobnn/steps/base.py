"""The base class of training steps, and the memory that steps reuse.

A step makes draws for training. Their gradients reach the guide's parameters by autograd, so hooks, clipping, gradient
scaling and accumulation work as usual. The objective holds the step; the guide has no state of its training.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from pyrobnn.model.divergence import Divergence, PriorTerm
from pyrobnn.model.draws import Draws
from pyrobnn.model.layout import Layout

__all__ = ["GradientBuffers", "Lease", "Pool", "Step", "refuse_second_derivatives"]

Memory = TypeVar("Memory")


class Step(ABC):
    """Makes draws for training, and computes the divergence of the distribution that is trained.

    This is not always the one that is sampled later: a Laplace approximation is trained as a point.

    Attributes:
        layout: The sites.
        vectorized: Whether :meth:`draw` makes all members of an ensemble at once (draws with a ``size``).
        differentiated: Whether such a pass has been differentiated, after which errors of it are not caught.
        compiles: Whether a draw is a function of the guide's parameters and of :meth:`noise` alone, or of random
            numbers of torch's that it draws by itself, so that training steps can be compiled.
    """

    layout: Layout
    vectorized: bool = False
    differentiated: bool = False
    compiles: bool = False

    def num_samples(self, asked: int) -> int:
        """Number of draws in a training step of an objective with ``num_particles=asked``."""
        return asked

    @abstractmethod
    def draw(self, index: int | None, noise: Tensor | None = None, *, avoid: Tensor | None = None) -> Draws:
        """A draw for one run of the model.

        Args:
            index: Its position in the training step, from 0; None for an additional draw, of an objective's term.
            noise: Standard normals to make it from, ``[noise_size]``; fresh ones if None.
            avoid: A component of a mixture that is not drawn, if there is another.
        """

    def noise(self, index: int) -> Tensor | None:
        """The noise that :meth:`draw` would make the next draw from, where it keeps noise between draws; else None.

        Args:
            index: Position of the draw in the training step. The next call may overwrite what this one returned.
        """
        return None

    @abstractmethod
    def divergence(self, draws: Draws, priors: Mapping[str, PriorTerm]) -> Divergence:
        """The divergence of the trained distribution over the sites in ``priors``, at a draw of this step.

        Args:
            draws: The draw.
            priors: Priors as the run of the model under this draw applied them.
        """

    def stop_vectorizing(self, error: Exception) -> None:
        """Called when vmap cannot run the model: from now on members run one after another.

        Args:
            error: The error that vmap raised.

        Raises:
            ValueError: If vectorized passes were requested explicitly.
        """
        self.vectorized = False

    def finish(self) -> None:  # noqa: B027 (most steps have nothing left to do)
        """Ends a training step: adds gradients that were collected outside of the graph to the parameters."""

    def restart(self, remaining: int | None = None) -> None:  # noqa: B027 (most steps keep nothing)
        """Begins an epoch: drops unused noise, so that later draws depend on the random state alone.

        Args:
            remaining: How many training steps are to come, None if it is not known.

        Raises:
            ValueError: If a schedule of the guide ends before that.
        """


def refuse_second_derivatives() -> None:
    """Raises in a backward pass that is itself differentiated; for backward passes that work in place.

    Raises:
        RuntimeError: If the gradient is to be differentiated again.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(
            "gradients of a training step cannot be differentiated again (create_graph=True); use "
            "differentiable_loss() of the objective, or guide.step(model, sequential=False)."
        )


class Lease(Generic[Memory]):
    """A memory in use by a draw, until the backward pass releases it or the lease is garbage-collected."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.is_over = False

    def in_use(self) -> Memory:
        """The memory, as long as it is this draw's.

        Raises:
            RuntimeError: If it was released: it may hold something else by now.
        """
        if self.is_over:
            raise RuntimeError(
                "this draw of a training step was differentiated before and its memory has been used again; call "
                "backward once for each draw, or use differentiable_loss() of the objective."
            )
        return self.memory

    def release(self) -> None:
        """The memory may be used by another draw."""
        self.is_over = True


class Pool(Generic[Memory]):
    """Reusable memory for draws: one item after another, and more items while several draws are in use.

    Args:
        make: Makes a memory.
        *parameters: What it is for; after they were moved or cast, memory is made anew.
    """

    _KEPT = 2  # one for the step's draws, one for an additional draw

    def __init__(self, make: Callable[[], Memory], *parameters: nn.Parameter) -> None:
        self._make, self._parameters = make, parameters
        self._places: list[tuple[int, torch.dtype, torch.device]] = []
        self._taken: list[tuple[Memory, weakref.ref[Lease[Memory]]]] = []

    def take(self) -> Lease[Memory]:
        """A memory that no draw uses now."""
        places = [(p.data_ptr(), p.dtype, p.device) for p in self._parameters]
        if places != self._places:
            self.clear()
            self._places = places
        for position, (memory, reference) in enumerate(self._taken):
            last = reference()
            if last is None or last.is_over:
                lease = Lease(memory)
                self._taken[position] = memory, weakref.ref(lease)
                return lease
        lease = Lease(self._make())
        if len(self._taken) < self._KEPT:
            self._taken.append((lease.memory, weakref.ref(lease)))
        return lease

    def clear(self) -> None:
        """Drops all memory."""
        self._taken.clear()


class GradientBuffers:
    """Memory for a parameter's gradient that autograd uses as ``parameter.grad`` without a copy.

    A backward pass that returns such a buffer makes it ``parameter.grad``. While it is, the next backward pass (of
    accumulated gradients) needs another buffer.
    """

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter = parameter
        self._buffers: list[Tensor] = []

    def free(self) -> Tensor:
        """A buffer of the parameter's shape that is not ``parameter.grad`` now."""
        like, gradient = self.parameter, self.parameter.grad
        taken = None if gradient is None else gradient.data_ptr()
        for buffer in self._buffers:
            if buffer.data_ptr() != taken and buffer.dtype == like.dtype and buffer.device == like.device:
                return buffer
        buffer = torch.zeros_like(like, requires_grad=False, memory_format=torch.contiguous_format)
        self._buffers = [*self._buffers[-1:], buffer]
        return buffer
