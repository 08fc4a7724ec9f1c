r"""Leapfrog trajectories of several chains at once, compiled where that is possible and worthwhile.

One leapfrog with step size ε and inverse mass matrix :math:`M^{-1}` (diagonal) is

.. math::
    p \leftarrow p - \tfrac{ε}{2} \nabla U(q), \qquad q \leftarrow q + ε M^{-1} p, \qquad
    p \leftarrow p - \tfrac{ε}{2} \nabla U(q):

reversible, volume-preserving, with an energy error of order ε² over a trajectory of given length. On a CPU trajectories
are loops in C++ (:mod:`pyrobnn.sampling.hmc.native`), made from the recorded potential of one chain; chains are shared
out between torch's threads. Where that cannot be done (an operator without loops, a GPU, another compiler than GCC), a
block of several leapfrogs of all chains is one graph of tensor operations for ``torch.compile``. A trajectory is a row
of blocks then; where its length is no multiple of theirs, the leapfrogs left over have step size zero, which moves
nothing.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pyrobnn.core.compilation import NO_COMPILER, compiling, has_compiler
from pyrobnn.core.first_line import first_line
from pyrobnn.core.shared_library import CompilerError
from pyrobnn.sampling.hmc.native.compiled import CompiledPotential, State
from pyrobnn.sampling.hmc.native.operators import DECOMPOSITIONS
from pyrobnn.sampling.hmc.native.values import NotExpressibleError
from pyrobnn.sampling.hmc.potential import Potential, ValueAndGrad
from pyrobnn.sampling.hmc.tracing import FUSIBLE, trace

__all__ = ["Compile", "Leapfrogs", "State", "check_compile"]

Compile = bool | Literal["auto"]

_WORTHWHILE = 5_000  # leapfrogs in a run from which compiling loops in C++ (0.3 to 1 s) pays
_FUSED_WORTHWHILE = 20_000  # and with torch.compile (5 to 10 s)
_LONG = 200_000  # leapfrogs in a run from which compiling for longer (10 to 20 s) pays
_LARGEST_BLOCK = {False: 4, True: 8}  # of runs that are long: compiling takes longer with each leapfrog of a block


class Leapfrogs:
    """Runs trajectories for chains like ``like [C, d]``.

    Args:
        potential: The potential.
        like: Flat vectors of all chains.
        num_leapfrog: The usual length of a trajectory, to which blocks are cut.
        total: Leapfrogs that are planned in all, by which ``"auto"`` decides.
        compile: True, False, or ``"auto"``: where a compiler is found, the model's potential can be recorded, and the
            run is long enough.

    Attributes:
        block: Leapfrogs in a block for ``torch.compile``.
        is_compiled: Whether leapfrogs are compiled.

    Raises:
        RuntimeError: If ``compile`` is True and it cannot be done.
    """

    def __init__(
        self, potential: Potential, like: Tensor, *, num_leapfrog: int, total: int, compile: Compile = "auto"
    ) -> None:
        self.potential = potential
        self.value_and_grad: ValueAndGrad = potential.recorded(like)
        self.is_compiled = False
        self.block = 1
        self._loops: CompiledPotential | None = None
        if compile is False or (compile == "auto" and not self._pays(like, total, _WORTHWHILE)):
            return
        if not potential.is_recorded(like):
            raise RuntimeError(
                "compile: the model's potential cannot be recorded as a graph (it branches on values, or does "
                "something that torch.func cannot transform); use compile=False."
            )
        if like.device.type == "cpu":
            self._loops = _as_loops(potential, like)
        if self._loops is not None:
            self.is_compiled = True
        elif compile is True or self._pays(like, total, _FUSED_WORTHWHILE):
            self._fuse(like, num_leapfrog, total, compile)

    def __call__(self, state: State, num_leapfrog: int, step_size: Tensor, inverse_mass: Tensor) -> State:
        """A trajectory.

        Args:
            state: Where it starts.
            num_leapfrog: Its length.
            step_size: Step sizes ``[C, 1]``; negative ones lead back.
            inverse_mass: The diagonal of the inverse mass matrix ``[d]``.
        """
        if self._loops is not None:
            return self._loops.leapfrogs(state, num_leapfrog, step_size, inverse_mass)
        if not self.is_compiled:
            kick, drift = 0.5 * step_size, step_size * inverse_mass
            repeated = (tensor.expand(num_leapfrog, -1, -1) for tensor in (kick, drift))
            return _leapfrogs(self.value_and_grad, state, *repeated)
        steps = step_size.repeat(self.block, 1, 1)
        for done in range(0, num_leapfrog, self.block):
            if (left := num_leapfrog - done) < self.block:
                steps = steps.clone()
                steps[left:] = 0.0
            state = self._run_block(*state, steps, inverse_mass)
        return state

    def _pays(self, like: Tensor, total: int, least: int) -> bool:
        return total >= least and has_compiler(like.device) and self.potential.is_recorded(like)

    def _fuse(self, like: Tensor, num_leapfrog: int, total: int, compile: Compile) -> None:
        """Has ``torch.compile`` make blocks of leapfrogs."""
        self.block = _block_size(num_leapfrog, _LARGEST_BLOCK[total >= _LONG])
        try:
            with compiling():
                self._run_block = self._compile(like, is_long=total >= _LONG)
            self.is_compiled = True
        except Exception as error:  # a compiler has many ways to fail
            reason = first_line(error)
            if compile is True:
                cause = reason if has_compiler(like.device) else NO_COMPILER
                raise RuntimeError(f"compile: torch.compile failed ({cause}); use compile=False.") from error
            warnings.warn(f"leapfrogs run uncompiled, because torch.compile failed ({reason}).", stacklevel=3)
            self.block = 1

    def _compile(self, like: Tensor, *, is_long: bool) -> Callable[..., State]:
        def block(q: Tensor, p: Tensor, gradient: Tensor, value: Tensor, steps: Tensor, inverse_mass: Tensor) -> State:
            return _leapfrogs(self.value_and_grad, (q, p, gradient, value), 0.5 * steps, steps * inverse_mass)

        steps = like.new_zeros(self.block, len(like), 1)
        inputs = (like, like.clone(), like.clone(), like.new_zeros(len(like)), steps, like.new_ones(like.shape[-1]))
        on_cpu = like.device.type == "cpu"
        recorded: Any = trace(block, *inputs, decompositions=FUSIBLE if on_cpu else {})
        options: dict[str, Any] = {"size_asserts": False}
        if on_cpu:
            # Written with exp, tanh takes half the time; its error, 1e-7, is that of single precision elsewhere.
            # Calls between kernels in C++ instead of Python save a quarter of a single chain's time.
            options |= {"cpp.use_decompose_tanh": like.dtype == torch.float32, "cpp_wrapper": is_long}
        function = recorded.forward  # past what modules do at each call
        try:
            compiled: Any = torch.compile(function, fullgraph=True, dynamic=False, options=options)
        except RuntimeError:  # another version of torch lacks an option
            compiled = torch.compile(function, fullgraph=True, dynamic=False)
        with torch.no_grad():  # as in every run: another mode would be compiled for anew
            compiled(*inputs)  # compilation happens at the first call
        return compiled


def _as_loops(potential: Potential, like: Tensor) -> CompiledPotential | None:
    """The potential as loops in C++; None if it has operators for which there are none, or there is no GCC."""
    graph = potential.graph(like[0], DECOMPOSITIONS)
    try:
        return None if graph is None else CompiledPotential(graph)
    except (NotExpressibleError, CompilerError, OSError):
        return None


def _leapfrogs(value_and_grad: ValueAndGrad, state: State, kicks: Tensor, drifts: Tensor) -> State:
    """Leapfrogs with kicks ``[n, C, 1]`` (half the step size) and drifts ``[n, C, d]`` (it times the inverse mass)."""
    q, p, gradient, value = state
    for kick, drift in zip(kicks.unbind(), drifts.unbind(), strict=True):
        p = torch.addcmul(p, kick, gradient, value=-1)
        q = torch.addcmul(q, drift, p)
        value, gradient = value_and_grad(q)
        p = torch.addcmul(p, kick, gradient, value=-1)
    return q, p, gradient, value


def _block_size(num_leapfrog: int, largest: int) -> int:
    """The size that wastes the fewest leapfrogs of a trajectory, the largest of those."""
    return min(range(1, largest + 1), key=lambda size: (math.ceil(num_leapfrog / size) * size, -size))


def check_compile(compile: object) -> None:
    """Refuses what is no way to compile.

    Raises:
        ValueError: If it is not True, False or ``"auto"``.
    """
    if not (isinstance(compile, bool) or compile in get_args(Literal["auto"])):
        raise ValueError(f"compile: expected True, False or 'auto', got {compile!r}.")
