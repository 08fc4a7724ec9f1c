"""The two passes over the factor of a low-rank covariance as loops in C++, each of which reads the factor once.

A training step of rank 10 spends most of its time in them. By operations of torch they take three times as long, since
each of these reads and writes memory for a handful of additions. Blocks of the factor's columns stay in the nearest
cache; products of its rows are made in tiles of four by four, whose sums stay in registers.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from pyrobnn.core.shared_library import CompilerError, shared_library
from pyrobnn.steps.flat import chunks
from pyrobnn.steps.low_rank_passes import Columns, LowRankPasses, TorchPasses

__all__ = ["CompiledPasses", "passes_for"]

_WORTH_COMPILING = 2**18  # elements of a factor
_WORTH_A_THREAD = 2**16  # elements of the flat vector
_KINDS = {torch.float32: "float", torch.float64: "double"}
_SOURCE = """
typedef {kind} real;
typedef real vec __attribute__((vector_size(64)));
const long rank = {rank}, lanes = sizeof(vec) / sizeof(real), vectors = 16, width = vectors * lanes;
const long tile = 4, tiles = (rank + tile - 1) / tile, rows = tiles * tile;
typedef real Rows[rows][width] __attribute__((aligned(64)));

static inline const vec& at(const real* values, long v) {{ return ((const vec*)values)[v]; }}

// Vectors of the next block, fetched while the present one is worked on, when memory is idle otherwise.
template <long streams>
struct Ahead {{
    const real* starts[streams];
    long done = 0;

    void fetch(long count) {{
        for (; count && done < streams * vectors; --count, ++done)
            __builtin_prefetch(starts[done / vectors] + done % vectors * lanes);
    }}
}};

// Sums of products of the rows, of which those below the diagonal are made: a vector for each pair.
struct Gram {{
    vec sums[tiles][tiles][tile][tile] = {{}};

    template <long streams>
    void add(const Rows& values, Ahead<streams> ahead) {{
        const long each = 2 * streams / (tiles * (tiles + 1)) + 1;
        for (long i = 0; i < tiles; ++i)
            for (long j = 0; j <= i; ++j) {{
                vec sum[tile][tile];
                __builtin_memcpy(sum, sums[i][j], sizeof sum);
                for (long v = 0; v < vectors; ++v) {{
                    ahead.fetch(each);
#pragma GCC unroll 4
                    for (long r = 0; r < tile; ++r)
#pragma GCC unroll 4
                        for (long c = 0; c < tile; ++c)
                            sum[r][c] += at(values[tile * i + r], v) * at(values[tile * j + c], v);
                }}
                __builtin_memcpy(sums[i][j], sum, sizeof sum);
            }}
    }}

    void move_to(double* gram) {{
        for (long i = 0; i < rank; ++i)
            for (long j = 0; j <= i; ++j) {{
                vec& sum = sums[i / tile][j / tile][i % tile][j % tile];
                for (long v = 0; v < lanes; ++v) gram[i * rank + j] += sum[v];
                sum = vec{{}};
            }}
    }}
}};

extern "C" void forward(
    long count, long stride, long, const real* factor, const real* loc, const real* scale, const real* noise,
    const real* weights, real* deviation, real* value, double* gram, double* squares
) {{
    Rows whitened = {{}};
    Gram part;
    long blocks = 0;
    for (long start = 0; start < count; start += width) {{
        const long size = count - start < width ? count - start : width;
        real inverse[width], moved[width], square = 0;
        Ahead<rank + 3> ahead = {{loc + start + width, scale + start + width, noise + start + width}};
#pragma omp simd reduction(+ : square)
        for (long i = 0; i < size; ++i) {{
            const real s = scale[start + i];
            inverse[i] = 1 / s;
            moved[i] = s * noise[start + i];
            square += s * s;
        }}
        for (long k = 0; k < rank; ++k) {{
            const real *row = factor + k * stride + start, weight = weights[k];
            ahead.starts[3 + k] = row + width;
#pragma omp simd reduction(+ : square)
            for (long i = 0; i < size; ++i) {{
                whitened[k][i] = row[i] * inverse[i];
                moved[i] += weight * row[i];
                square += row[i] * row[i];
            }}
            for (long i = size; i < width; ++i) whitened[k][i] = 0;
        }}
#pragma omp simd
        for (long i = 0; i < size; ++i) {{
            deviation[start + i] = moved[i];
            value[start + i] = loc[start + i] + moved[i];
        }}
        *squares += square;
        part.add(whitened, ahead);
        if (++blocks % 64 == 0) part.move_to(gram);  // rounding must not hide small sums
    }}
    part.move_to(gram);
}}

extern "C" void backward(
    long count, long stride, long result_stride, const real* factor, const real* gradient, const real* deviation,
    real* scale, real* by_factor, const real* mixing, const real* precision, long step_of_precision, double given_weight
) {{
    const real weight = given_weight;
    real mixed[rows][rank + 1] = {{}};
    for (long k = 0; k < rank; ++k)
        for (long l = 0; l <= rank; ++l) mixed[k][l] = mixing[k * (rank + 1) + l];
    Rows inner = {{}}, products;
    real outer[width] __attribute__((aligned(64))) = {{}};
    for (long start = 0; start < count; start += width) {{
        const long size = count - start < width ? count - start : width;
        real inverse[width], decay[width], total[width];
#pragma omp simd
        for (long i = 0; i < size; ++i) {{
            const real variance = scale[start + i] * scale[start + i];
            inverse[i] = 1 / variance;
            decay[i] = weight * precision[step_of_precision * (start + i)];
            outer[i] = gradient[start + i];
            total[i] = outer[i] * deviation[start + i] + decay[i] * variance - weight;
        }}
        Ahead<2 * rank + 3> ahead = {{gradient + start + width, deviation + start + width, scale + start + width}};
        for (long k = 0; k < rank; ++k) {{
            const real* row = factor + k * stride + start;
            ahead.starts[3 + 2 * k] = row + width;
            ahead.starts[4 + 2 * k] = by_factor + k * result_stride + start + width;
#pragma omp simd
            for (long i = 0; i < size; ++i) inner[k][i] = row[i] * inverse[i];
        }}
        for (long k = 0; k < rows; k += tile)
            for (long v = 0; v < vectors; v += 2) {{
                vec sum[tile][2];
#pragma GCC unroll 4
                for (long r = 0; r < tile; ++r)
                    for (long c = 0; c < 2; ++c) sum[r][c] = mixed[k + r][rank] * at(outer, v + c);
                for (long l = 0; l < rank; ++l) {{
                    ahead.fetch((4 * rank + 6) / (rank * tiles) + 1);
#pragma GCC unroll 4
                    for (long r = 0; r < tile; ++r)
#pragma GCC unroll 2
                        for (long c = 0; c < 2; ++c) sum[r][c] += mixed[k + r][l] * at(inner[l], v + c);
                }}
#pragma GCC unroll 4
                for (long r = 0; r < tile; ++r)
                    for (long c = 0; c < 2; ++c) ((vec*)products[k + r])[v + c] = sum[r][c];
            }}
        for (long k = 0; k < rank; ++k) {{
            const real* row = factor + k * stride + start;
            real* result = by_factor + k * result_stride + start;
#pragma omp simd
            for (long i = 0; i < size; ++i) {{
                total[i] -= row[i] * products[k][i];
                result[i] = products[k][i] + decay[i] * row[i];
            }}
        }}
#pragma omp simd
        for (long i = 0; i < size; ++i) scale[start + i] = total[i];
    }}
}}
"""


class CompiledPasses(LowRankPasses):
    """Loops in C++, in as many threads as torch uses.

    Args:
        rank: r.
        dtype: That of all arguments but ``gram``.

    Raises:
        CompilerError: If they cannot be compiled.
        OSError: If they cannot be loaded.
    """

    def __init__(self, rank: int, dtype: torch.dtype) -> None:
        self._library = shared_library(_SOURCE.format(kind=_KINDS[dtype], rank=rank))

    def forward(self, columns: Columns, weights: Tensor, gram: Tensor) -> Tensor:
        """Each thread has sums of its own."""
        parts = _shares(len(columns))
        grams, squares = gram.new_zeros((len(parts), *gram.shape)), gram.new_zeros(len(parts))

        def run(index: int) -> None:
            own = columns.at(parts[index])
            tensors = own.factor, own.loc, own.scale, own.noise, weights, own.deviation, own.value
            self._library.forward(*_sizes(own), *_addresses(*tensors, grams[index], squares[index]))

        _each(run, len(parts))
        gram += grams.sum(0)
        return squares.sum().to(weights.dtype)

    def backward(self, columns: Columns, mixing: Tensor, precision: Tensor, weight: float) -> None:
        """Each thread has columns of its own."""
        parts, is_one = _shares(len(columns)), len(precision) == 1

        def run(index: int) -> None:
            own, prior = columns.at(parts[index]), precision if is_one else precision[parts[index]]
            tensors = own.factor, own.value, own.deviation, own.scale, own.by_factor, mixing, prior
            options = ctypes.c_long(not is_one), ctypes.c_double(weight)
            self._library.backward(*_sizes(own), *_addresses(*tensors), *options)

        _each(run, len(parts))


def passes_for(factor: Tensor) -> LowRankPasses:
    """The fastest passes for a factor ``[r, d]``."""
    if factor.device.type == "cpu" and factor.dtype in _KINDS and factor.numel() >= _WORTH_COMPILING:
        with contextlib.suppress(CompilerError, OSError):
            return CompiledPasses(len(factor), factor.dtype)
    return TorchPasses()


def _shares(count: int) -> list[slice]:
    """Parts of the elements for the threads."""
    size = max(-(-count // torch.get_num_threads()), _WORTH_A_THREAD)
    return list(chunks(slice(0, count), size))


def _each(run: Callable[[int], None], count: int) -> None:
    if count > 1:
        with ThreadPoolExecutor(count) as threads:
            list(threads.map(run, range(count)))
    elif count:
        run(0)


def _sizes(columns: Columns) -> tuple[ctypes.c_long, ...]:
    """Number of elements, and distances of rows in memory."""
    return tuple(map(ctypes.c_long, (len(columns), columns.factor.stride(0), columns.by_factor.stride(0))))


def _addresses(*tensors: Tensor) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]
