"""Recordings are graphs of what a function did to tensors; random numbers come from outside, in the same order."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyrobnn.core.compilation import NotRecordableError, has_compiler, prefers_channels_last, record


def replayed(function: object, *inputs: Tensor) -> tuple[Tensor, ...]:
    """A function's results from its recording, at the random state that is now."""
    state = torch.get_rng_state()
    recording = record(function, [tensor.clone() for tensor in inputs])  # type: ignore[arg-type]
    torch.set_rng_state(state)
    return recording.graph(*inputs, *[draw() for draw in recording.draws])


def test_gradients_are_part_of_it() -> None:
    def slope(x: Tensor) -> tuple[Tensor]:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            return (torch.autograd.grad(leaf.sin().sum(), leaf)[0],)

    x = torch.randn(5)
    torch.testing.assert_close(replayed(slope, x)[0], x.cos())
    torch.testing.assert_close(record(slope, [torch.zeros(5)]).graph(x)[0], x.cos())


def test_inputs_are_written_to() -> None:
    def counted(x: Tensor, total: Tensor) -> tuple[Tensor]:
        total.add_(x.sum())
        return (total * 2.0,)

    recording = record(counted, [torch.ones(3), torch.zeros(())])
    total = torch.tensor(1.0)
    assert float(recording.graph(torch.ones(3), total)[0]) == 8.0
    assert float(total) == 4.0


def test_random_numbers_are_those_of_the_function_in_its_order() -> None:
    def noisy(x: Tensor) -> tuple[Tensor, ...]:
        first = F.dropout(x, 0.3)
        second = torch.randn_like(x) + torch.rand(x.shape)
        third = F.dropout(x, 0.7)
        return first, second, third, x.new_empty(x.shape).normal_()

    x = torch.ones(20)
    torch.manual_seed(3)
    expected = noisy(x)
    torch.manual_seed(3)
    recording = record(noisy, [x.clone()])
    assert len(recording.draws) == 5
    torch.manual_seed(3)
    for right, found in zip(expected, replayed(noisy, x), strict=True):
        torch.testing.assert_close(found, right)


def test_random_numbers_that_depend_on_values_stay_in_the_graph() -> None:
    def chosen(p: Tensor) -> tuple[Tensor]:
        return (torch.bernoulli(p),)

    recording = record(chosen, [torch.full((50,), 0.5)])
    assert recording.draws == []
    assert float(recording.graph(torch.ones(50))[0].sum()) == 50.0


WEIGHT = nn.Parameter(torch.ones(3))


def with_value(x: Tensor) -> tuple[Tensor]:
    return (x * float(x.sum()),)


def with_shape(x: Tensor) -> tuple[Tensor]:
    return (x[x > 0].sum(),)


def with_parameter(x: Tensor) -> tuple[Tensor]:
    return (x * WEIGHT.detach(),)


def with_python(x: Tensor) -> tuple[Tensor]:
    return (x * random.random(),)


def with_numpy(x: Tensor) -> tuple[Tensor]:
    return (x * np.random.rand(),)  # noqa: NPY002


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (with_value, "value out of a tracing tensor"),
        (with_shape, "the shape of a tensor depends on values"),
        (with_parameter, "past the module that holds it"),
        (with_python, "Python's or NumPy's"),
        (with_numpy, "Python's or NumPy's"),
    ],
)
def test_what_is_no_graph_is_refused(function: object, reason: str) -> None:
    with pytest.raises(NotRecordableError, match=reason):
        record(function, [torch.ones(3)], fixed=[WEIGHT])  # type: ignore[arg-type]


def test_the_layout_of_images_is_chosen_by_the_channels() -> None:
    cpu = torch.device("cpu")
    assert prefers_channels_last(nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 32, 3)), cpu)
    assert not prefers_channels_last(nn.Sequential(nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)), cpu)
    assert not prefers_channels_last(nn.Linear(2, 2), cpu)


def test_a_gpu_brings_its_compiler() -> None:
    assert has_compiler(torch.device("cuda"))
