"""Standard normals from torch's generator, at a fifth of the cost of ``Tensor.normal_`` on a CPU.

Torch takes one number after another from its Mersenne Twister. Here the same numbers are made in blocks, as vectors of
the processor, by a small library compiled at run time. They are torch's to rounding (2e-6), and the generator is left
in the same state, so that results with and without a compiler differ by rounding only. Where there is no compiler, for
other types and devices, and if a first comparison with torch fails, ``normal_`` itself is called.

Matsumoto & Nishimura, *Mersenne Twister* (1998); Box & Muller (1958); polynomials of the Cephes library.
"""

from __future__ import annotations

import ctypes
import functools

import torch
from torch import Tensor

from pyrobnn.core.shared_library import CompilerError, shared_library

__all__ = ["fill_standard_normals"]

_WORTH_CALLING = 2**14  # elements; for fewer, reading and writing the generator's state takes as long
_SOURCE = """
#include <cmath>
#include <cstdint>
#include <cstring>

typedef uint32_t word;

// The part of a generator's state that torch documents as its legacy layout.
struct State {
    uint64_t seed;
    int32_t left, is_seeded;
    uint64_t next, words[624];
};

static inline word bits(float x) { word i; std::memcpy(&i, &x, 4); return i; }
static inline float number(word i) { float x; std::memcpy(&x, &i, 4); return x; }

static inline word twist(word upper, word lower, word other) {
    return other ^ (((upper & 0x80000000u) | (lower & 0x7fffffffu)) >> 1) ^ (-(lower & 1u) & 0x9908b0dfu);
}

static void advance(word* state) {
    word next[624];
    for (int i = 0; i < 227; ++i) next[i] = twist(state[i], state[i + 1], state[i + 397]);
#pragma GCC ivdep
    for (int i = 227; i < 623; ++i) next[i] = twist(state[i], state[i + 1], next[i - 227]);
    next[623] = twist(state[623], next[0], next[396]);
    std::memcpy(state, next, sizeof next);
}

static inline float uniform(word y) {
    y ^= y >> 11;
    y ^= (y << 7) & 0x9d2c5680u;
    y ^= (y << 15) & 0xefc60000u;
    y ^= y >> 18;
    return (float)(int32_t)(y & 0xffffffu) * 0x1p-24f;
}

// The logarithm of a number in (0, 1].
static inline float logarithm(float x) {
    const word shifted = bits(x) + (0x3f800000u - 0x3f3504f3u);  // so that the mantissa is in [sqrt(1/2), sqrt(2))
    const float exponent = (float)((int32_t)(shifted >> 23) - 127);
    const float m = number((shifted & 0x7fffffu) + 0x3f3504f3u) - 1.0f, square = m * m;
    float p = 7.0376836292e-2f;
    p = p * m - 1.1514610310e-1f;
    p = p * m + 1.1676998740e-1f;
    p = p * m - 1.2420140846e-1f;
    p = p * m + 1.4249322787e-1f;
    p = p * m - 1.6668057665e-1f;
    p = p * m + 2.0000714765e-1f;
    p = p * m - 2.4999993993e-1f;
    p = p * m + 3.3333331174e-1f;
    return m + (p * m * square - 2.12194440e-4f * exponent - 0.5f * square) + 0.693359375f * exponent;
}

// From groups of eight first and eight second uniform numbers to sixteen normals.
static void transform(float* values, long groups) {
    float first[8 * 40], second[8 * 40];
    for (long g = 0; g < groups; ++g) {
        std::memcpy(first + 8 * g, values + 16 * g, 32);
        std::memcpy(second + 8 * g, values + 16 * g + 8, 32);
    }
#pragma omp simd
    for (long i = 0; i < 8 * groups; ++i) {
        const float radius = sqrtf(-2.0f * logarithm(1.0f - first[i])), turn = 4.0f * second[i];
        const word quarter = (word)(int32_t)(turn + 0.5f);
        const float x = (turn - (float)(int32_t)quarter) * 1.57079632679f, z = x * x;
        const float sine = ((-1.9515295891e-4f * z + 8.3321608736e-3f) * z - 1.6666654611e-1f) * z * x + x;
        const float even = (2.4433157118e-5f * z - 1.3887316255e-3f) * z + 4.1666645683e-2f;
        const float cosine = even * z * z - 0.5f * z + 1.0f;
        const bool is_odd = quarter & 1u;
        first[i] = number(bits(radius * (is_odd ? sine : cosine)) ^ (((quarter + 1u) & 2u) << 30));
        second[i] = number(bits(radius * (is_odd ? cosine : sine)) ^ ((quarter & 2u) << 30));
    }
    for (long g = 0; g < groups; ++g) {
        std::memcpy(values + 16 * g, first + 8 * g, 32);
        std::memcpy(values + 16 * g + 8, second + 8 * g, 32);
    }
}

struct Engine {
    word words[624];
    int next;

    // Numbers from a multiple of sixteen on; their rest, of less than sixteen, stays uniform.
    void fill(float* values, long count) {
        for (long done = 0, ready = 0; done < count;) {
            if (next == 624) {
                advance(words);
                next = 0;
            }
            const long part = count - done < 624 - next ? count - done : 624 - next;
            for (long i = 0; i < part; ++i) values[done + i] = uniform(words[next + i]);
            done += part;
            next += (int)part;
            transform(values + ready, (done - ready) / 16);
            ready = done - done % 16;
        }
    }
};

extern "C" void standard_normals(State* state, float* values, long count) {
    Engine engine;
    for (int i = 0; i < 624; ++i) engine.words[i] = (word)state->words[i];
    engine.next = state->left == 1 ? 624 : (int)state->next;
    engine.fill(values, count);
    if (count % 16) engine.fill(values + count - 16, 16);
    for (int i = 0; i < 624; ++i) state->words[i] = engine.words[i];
    state->left = 625 - engine.next;
    state->next = engine.next;
}
"""


def fill_standard_normals(values: Tensor, generator: torch.Generator) -> Tensor:
    """Overwrites a tensor by standard normals, as ``values.normal_(generator=generator)`` does.

    Args:
        values: The tensor, without gradients.
        generator: Where they come from; no other thread may draw from it meanwhile.

    Returns:
        The tensor itself.
    """
    suits = values.dtype == torch.float32 and values.device.type == "cpu" and values.is_contiguous()
    if not suits or values.numel() < _WORTH_CALLING or (library := _library()) is None:
        return values.normal_(generator=generator)
    _fill(library, values, generator)
    torch.autograd.graph.increment_version(values)
    return values


def _fill(library: ctypes.CDLL, values: Tensor, generator: torch.Generator) -> None:
    state = generator.get_state()
    addresses = ctypes.c_void_p(state.data_ptr()), ctypes.c_void_p(values.data_ptr())
    library.standard_normals(*addresses, ctypes.c_long(values.numel()))
    generator.set_state(state)


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The compiled library, if there is a compiler and torch's generator is what the library takes it for."""
    try:
        library = shared_library(_SOURCE)
    except (CompilerError, OSError):
        return None
    return library if _agrees(library) else None


def _agrees(library: ctypes.CDLL) -> bool:
    """Whether numbers and the state after them are torch's, from two positions in the generator's cycle."""
    ours, torchs = (torch.Generator().manual_seed(20_261_130) for _ in range(2))
    if ours.get_state().nbytes < 24 + 8 * 624:
        return False
    for count in (1_003, 1_600):
        values = torch.empty(count)
        _fill(library, values, ours)
        expected = torch.empty(count).normal_(generator=torchs)
        if not (torch.allclose(values, expected, atol=1e-5) and torch.equal(ours.get_state(), torchs.get_state())):
            return False
    return True
