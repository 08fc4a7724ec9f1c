"""Memory that steps reuse: gradients that autograd takes over, leases of draws."""

from __future__ import annotations

import torch
from torch import nn

from pyrobnn.steps.base import GradientBuffers, Pool


def test_a_buffer_that_is_the_gradient_is_not_handed_out() -> None:
    """Gradients add up through buffers that are used again."""
    parameter = nn.Parameter(torch.zeros(2))
    buffers = GradientBuffers(parameter)
    for value, total in ((1.0, 1.0), (10.0, 11.0), (100.0, 111.0)):
        buffer = buffers.free()
        assert parameter.grad is None or buffer.data_ptr() != parameter.grad.data_ptr()
        buffer.fill_(value)
        parameter.backward(buffer)
        assert parameter.grad is not None
        assert parameter.grad.tolist() == [total, total]


def test_one_buffer_serves_all_steps_that_begin_without_a_gradient() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    buffers = GradientBuffers(parameter)
    first = buffers.free()
    parameter.grad = first
    assert buffers.free().data_ptr() != first.data_ptr()
    parameter.grad = None
    assert buffers.free().data_ptr() == first.data_ptr()


def test_a_cast_parameter_gets_a_buffer_of_its_kind() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    buffers = GradientBuffers(parameter)
    buffers.free()
    parameter.data = parameter.data.double()
    assert buffers.free().dtype == torch.float64


def test_memory_is_used_again_when_its_draw_is_over() -> None:
    made: list[int] = []

    def make() -> int:
        made.append(len(made))
        return made[-1]

    pool = Pool(make)
    first = pool.take()
    assert pool.take().memory == 1  # the first is alive; this one is not kept by anybody
    first.release()
    again = pool.take()
    assert again.memory == 0 and first.is_over and not again.is_over
    del again
    assert pool.take().memory == 0
    pool.clear()
    assert pool.take().memory == 2
