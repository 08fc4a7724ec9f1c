"""The contract of a training step, and the memory that steps reuse.

A step makes draws for training. Their gradients reach the guide's parameters by autograd, so hooks, clipping, gradient
scaling and accumulation see them as they see any other. The training loop owns the step; the guide keeps no state of
it.
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
    """Draws for training, and the divergence of what is trained.

    What is trained is not always what is sampled: a Laplace approximation is trained as a point.

    Attributes:
        layout: The sites.
        vectorized: Whether :meth:`draw` makes all members of an ensemble at once (draws with a ``size``).
    """

    layout: Layout
    vectorized: bool = False

    def num_samples(self, asked: int) -> int:
        """How many draws a training step makes if the objective requests ``asked``."""
        return asked

    @abstractmethod
    def draw(self, index: int | None, noise: Tensor | None = None, *, avoid: Tensor | None = None) -> Draws:
        """A draw for one run of the model.

        Args:
            index: Its position in the training step, which the first draw begins; None for an additional draw.
            noise: Standard normals to make it from, ``[noise_size]``; fresh ones if None.
            avoid: A component of a mixture that it shall not be, if there is another.
        """

    @abstractmethod
    def divergence(self, draws: Draws, priors: Mapping[str, PriorTerm]) -> Divergence:
        """The divergence of what is trained, of the sites in ``priors``, at a draw of this step.

        Args:
            draws: The draw.
            priors: Priors as the run of the model under this draw applied them.
        """

    def stop_vectorizing(self, error: Exception) -> None:
        """Told that vmap cannot run the model; from now on draws are made one by one.

        Raises:
            ValueError: If vectorized passes were demanded.
        """
        self.vectorized = False

    def finish(self) -> None:  # noqa: B027 (most steps have nothing left to do)
        """Ends a training step: delivers gradients that were collected outside of the graph."""

    def restart(self, remaining: int | None = None) -> None:  # noqa: B027 (most steps keep nothing)
        """Begins an epoch: forgets unused noise, so that the random state alone fixes what follows.

        Args:
            remaining: How many training steps are to come, None if it is not known.

        Raises:
            ValueError: If a schedule of the guide ends before that.
        """


def refuse_second_derivatives() -> None:
    """Called in backward passes that are computed in place.

    Raises:
        RuntimeError: If the gradient is to be differentiated again.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(
            "gradients of a training step cannot be differentiated again (create_graph=True); use "
            "differentiable_loss() of the objective, or guide.step(model, sequential=False)."
        )


class Lease(Generic[Memory]):
    """The right to use a memory; it ends with the backward pass, or when nobody holds it any more."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.is_over = False

    def release(self) -> None:
        """The memory may be used by another draw."""
        self.is_over = True


class Pool(Generic[Memory]):
    """Memory that one draw after another uses, and more of it while several draws are in use.

    Args:
        make: Makes a memory.
    """

    _KEPT = 2  # one for the step's draws, one for an additional draw

    def __init__(self, make: Callable[[], Memory]) -> None:
        self._make = make
        self._taken: list[tuple[Memory, weakref.ref[Lease[Memory]]]] = []

    def take(self) -> Lease[Memory]:
        """A memory that no living draw uses."""
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
        """Forgets all memory, such as that of another device."""
        self._taken.clear()


class GradientBuffers:
    """Memory for a parameter's gradient that autograd takes over instead of copying it.

    A backward pass that returns such a buffer makes it ``parameter.grad``. While it is that, the next backward pass
    needs another one, to be added to it.
    """

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter = parameter
        self._buffers: list[Tensor] = []

    def free(self) -> Tensor:
        """A buffer of the parameter's shape that is not its gradient now; the same one as long as it is not."""
        like, gradient = self.parameter, self.parameter.grad
        taken = None if gradient is None else gradient.data_ptr()
        for buffer in self._buffers:
            if buffer.data_ptr() != taken and buffer.dtype == like.dtype and buffer.device == like.device:
                return buffer
        buffer = torch.zeros_like(like, requires_grad=False, memory_format=torch.contiguous_format)
        self._buffers = [*self._buffers[-1:], buffer]
        return buffer
