"""A potential compiled from loops in C++: its value and gradient, and trajectories of all chains."""

from __future__ import annotations

import ctypes
import math
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, fx

from pyrobnn.core.shared_library import shared_library
from pyrobnn.sampling.hmc.native.loops import Loops
from pyrobnn.sampling.hmc.native.values import KINDS

__all__ = ["CompiledPotential"]

State = tuple[Tensor, Tensor, Tensor, Tensor]
"""Positions ``[C, d]``, momenta ``[C, d]``, gradients ``[C, d]`` and potentials ``[C]``."""

_ALIGNMENT = 64  # bytes
_WORTH_THREADS = 5e-4  # seconds of a call from which several threads pay
_FUNCTIONS = ("cos", "erf", "exp", "expm1", "log", "log1p", "sin", "tanh")
_SCALAR_FUNCTIONS = ("lgamma",)
_SOURCE = """
#define VECTORIZED __attribute__((simd("notinbranch"), const, nothrow))
extern "C" {{
{declarations}
}}
typedef {kind} real;
typedef real vec __attribute__((vector_size(64)));
const long lanes = sizeof(vec) / sizeof(real);

template <int rows, int vectors>
static inline void tile(const real* a, long to_row, long to_column, const real* b, real* c, long inner, long width) {{
    vec sum[rows][vectors] = {{}};
    for (long k = 0; k < inner; ++k) {{
#pragma GCC unroll 4
        for (int r = 0; r < rows; ++r) {{
            const real factor = a[r * to_row + k * to_column];
#pragma GCC unroll 2
            for (int v = 0; v < vectors; ++v) sum[r][v] += factor * *(const vec*)(b + k * width + v * lanes);
        }}
    }}
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) *(vec*)(c + r * width + v * lanes) = sum[r][v];
}}

// c [rows, width] = a [rows, inner] b [inner, width]
static void product(
    const real* a, long to_row, long to_column, const real* b, real* c, long rows, long inner, long width
) {{
    for (long j = 0; j < width; j += 2 * lanes) {{
        const bool two = width - j > lanes;
        long i = 0;
        for (; i + 4 <= rows; i += 4) {{
            const real* row = a + i * to_row;
            if (two) tile<4, 2>(row, to_row, to_column, b + j, c + i * width + j, inner, width);
            else tile<4, 1>(row, to_row, to_column, b + j, c + i * width + j, inner, width);
        }}
        for (; i < rows; ++i) {{
            const real* row = a + i * to_row;
            if (two) tile<1, 2>(row, to_row, to_column, b + j, c + i * width + j, inner, width);
            else tile<1, 1>(row, to_row, to_column, b + j, c + i * width + j, inner, width);
        }}
    }}
}}

static void evaluate(const real* q, real* value, real* gradient, const void* const* constants, char* work) {{
{loops}
}}

extern "C" void values_and_gradients(
    long chains, const real* q, real* value, real* gradient, const void* const* constants, char* work
) {{
    for (long c = 0; c < chains; ++c) evaluate(q + c * {size}, value + c, gradient + c * {size}, constants, work);
}}

extern "C" void leapfrogs(
    long chains, long count, real* q, real* p, real* gradient, real* value,
    const real* step_size, const real* inverse_mass, const void* const* constants, char* work
) {{
    for (long c = 0; c < chains; ++c, q += {size}, p += {size}, gradient += {size}) {{
        const real step = step_size[c], half = (real)0.5 * step;
        for (long n = 0; n < count; ++n) {{
#pragma omp simd
            for (long i = 0; i < {size}; ++i) {{
                p[i] -= half * gradient[i];
                q[i] += step * inverse_mass[i] * p[i];
            }}
            evaluate(q, value + c, gradient, constants, work);
#pragma omp simd
            for (long i = 0; i < {size}; ++i) p[i] -= half * gradient[i];
        }}
    }}
}}
"""


class CompiledPotential:
    """Compiles the graph of a potential and its gradient for one chain.

    Args:
        recorded: From a flat vector ``[d]`` to value and gradient, recorded with the decompositions of
            :mod:`pyrobnn.sampling.hmc.native.operators`; its dtype is that of all arguments below.

    Raises:
        NotExpressibleError: If the graph has an operator for which there are no loops.
        CompilerError: If it cannot be compiled.
    """

    def __init__(self, recorded: fx.GraphModule) -> None:
        (flat,) = recorded.graph.find_nodes(op="placeholder")
        self.dtype: torch.dtype = flat.meta["dtype"]
        loops = Loops(recorded, "q", ("value", "gradient"))
        self._constants = loops.constants
        self._pointers = (ctypes.c_void_p * len(self._constants))(*(c.data_ptr() for c in self._constants))
        self._size = loops.size + _ALIGNMENT
        self._works: list[Tensor] = []  # of each thread
        self._threads: ThreadPoolExecutor | None = None
        self._seconds = math.inf  # of one evaluation, the fastest seen
        self._library = shared_library(_source(loops, flat.meta["shape"][0], KINDS[self.dtype]))

    def value_and_grad(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Values ``[C]`` and gradients ``[C, d]`` at ``flat [C, d]``."""
        q = flat.contiguous()
        value, gradient = q.new_empty(len(q)), torch.empty_like(q)
        self._run(self._library.values_and_gradients, 1, (), (q, value, gradient), ())
        return value, gradient

    def leapfrogs(self, state: State, count: int, step_size: Tensor, inverse_mass: Tensor) -> State:
        """Trajectories of all chains.

        Args:
            state: Where they start.
            count: Leapfrogs of each.
            step_size: Step sizes ``[C, 1]``, which may be negative.
            inverse_mass: The diagonal of the inverse mass matrix ``[d]``.
        """
        q, p, gradient, value = (part.clone(memory_format=torch.contiguous_format) for part in state)
        step_size = step_size.to(self.dtype).expand(len(q), 1).contiguous()
        inverse_mass = inverse_mass.to(self.dtype).expand(q.shape[1]).contiguous()
        settings = (ctypes.c_long(count),)
        self._run(self._library.leapfrogs, count, settings, (q, p, gradient, value, step_size), (inverse_mass,))
        return q, p, gradient, value

    def _run(
        self, function: Any, count: int, settings: tuple[Any, ...], chains: tuple[Tensor, ...], all_: tuple[Tensor, ...]
    ) -> None:
        """Calls a function, with ``count`` evaluations of each chain, for the rows of ``chains``.

        They are shared out between threads once it is known that this pays.
        """
        evaluations = len(chains[0]) * max(count, 1)
        pays = not math.isinf(self._seconds) and evaluations * self._seconds >= _WORTH_THREADS
        parts = min(torch.get_num_threads(), len(chains[0])) if pays else 1
        while len(self._works) < parts:
            self._works.append(torch.zeros(self._size, dtype=torch.uint8))

        def call(work: Tensor, rows: tuple[Tensor, ...]) -> None:
            start = -(-work.data_ptr() // _ALIGNMENT) * _ALIGNMENT
            addresses = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (*rows, *all_)]
            function(ctypes.c_long(len(rows[0])), *settings, *addresses, self._pointers, ctypes.c_void_p(start))

        start = time.perf_counter()
        if parts == 1:
            call(self._works[0], chains)
        else:
            self._threads = self._threads or ThreadPoolExecutor(torch.get_num_threads())
            shares = zip(*(tensor.tensor_split(parts) for tensor in chains), strict=True)
            list(self._threads.map(call, self._works, shares))
        self._seconds = min(self._seconds, (time.perf_counter() - start) * parts / evaluations)


def _source(loops: Loops, size: int, kind: str) -> str:
    names = [f"{name}{suffix}" for name in _FUNCTIONS for suffix in ("f", "")]
    lines = [f"VECTORIZED {_declared(name, 1)}" for name in names]
    lines += [f"VECTORIZED {_declared(name, 2)}" for name in ("powf", "pow")]
    lines += [_declared(f"{name}{suffix}", 1) for name in _SCALAR_FUNCTIONS for suffix in ("f", "")]
    arrays = [
        f"const {KINDS[constant.dtype]}* const c{i} = (const {KINDS[constant.dtype]}*)constants[{i}];"
        for i, constant in enumerate(loops.constants)
    ]
    return _SOURCE.format(declarations="\n".join(lines), kind=kind, size=size, loops="\n".join(arrays + loops.lines))


def _declared(name: str, arguments: int) -> str:
    kind = "float" if name.endswith("f") and name != "erf" else "double"
    return f"{kind} {name}({', '.join([kind] * arguments)});"
