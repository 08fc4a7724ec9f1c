"""Elementwise operators in C++ and decompositions, against torch's operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pyrobnn.sampling.hmc.native.operators import DECOMPOSITIONS, EXPRESSIONS
from tests.core.test_shared_library import needs_gcc
from tests.sampling.hmc.native.programs import assert_computed

pytestmark = needs_gcc

_aten = torch.ops.aten
ONE_ARGUMENT = [
    operator
    for operator in EXPRESSIONS
    if str(operator).endswith(".default")
    and [argument.name for argument in operator._schema.arguments if not argument.has_default_value()]
    in (["self"], ["input"])
]
NUMBERS = torch.tensor(
    [-2.5, -1.0, -0.3, -1e-4, 0.0, 1e-4, 0.4, 1.0, 1.7, 3.0, 25.0, 90.0, -90.0, torch.inf, torch.nan]
)
POSITIVE = torch.tensor([1e-6, 0.1, 0.5, 1.0, 1.5, 2.0, 7.0, 90.0])

_CASES: dict[str, Callable[[Tensor], list[Tensor]]] = {
    "add, sub, rsub": lambda x: [
        torch.add(x, x.exp(), alpha=2.0),
        torch.sub(x, x.exp(), alpha=0.5),
        torch.rsub(x, 2.0, alpha=3.0),
        torch.rsub(x, x.exp(), alpha=3.0),
        _aten.add.Scalar(x, 2.0, 3.0),
        _aten.sub.Scalar(x, 2.0),
        x + 1.0,
        1.0 - x,
    ],
    "mul, div, pow": lambda x: [
        x * 2.0,
        _aten.mul.Scalar(x, 2.0),
        x / 3.0,
        _aten.div.Scalar(x, 3.0),
        1.0 / x,
        2.0**x,
        x.abs() ** x,
        x**2,
        x**3,
        x.abs() ** 0.5,
        x**-1,
        x**-2,
        x.abs() ** 1.7,
        x * 0.1 * torch.inf,
    ],
    "comparisons": lambda x: [
        *(compare(x, 0.4) for compare in (torch.eq, torch.ne, torch.lt, torch.le, torch.gt, torch.ge)),
        *(compare(x, -x) for compare in (torch.eq, torch.ne, torch.lt, torch.le, torch.gt, torch.ge)),
        (x > 0) & (x < 1),
        (x > 0) | (x < -1),
        ~(x > 0),
        (x > 0).logical_not(),
    ],
    "choices": lambda x: [
        torch.maximum(x, -x),
        torch.minimum(x, -x),
        torch.maximum(-x, x.new_full((len(x),), 0.4)),
        x.clamp(min=0.4),
        x.clamp(max=0.4),
        x.clamp(-1.0, 0.4),
        _aten.clamp_min.default(x, 0.1),
        _aten.clamp_max.default(x, 0.1),
        torch.where(x > 0, x, -2.0),
        torch.where(x > 0, 3.0, x),
        torch.where(x > 0, x, x.exp()),
        x.masked_fill(x > 1, 7.0),
        x.masked_fill(x > 1, x.new_tensor(7.0)),
    ],
    "activations": lambda x: [
        torch.nn.functional.elu(x, 0.7),
        torch.nn.functional.selu(x),
        torch.nn.functional.leaky_relu(x),
        torch.nn.functional.leaky_relu(x, 0.3),
        torch.nn.functional.softplus(x),
        torch.nn.functional.softplus(x, 2.0, 3.0),
        torch.nn.functional.gelu(x),
        torch.nn.functional.logsigmoid(x),
    ],
    "backward": lambda x: [
        _aten.tanh_backward(x, x.tanh()),
        _aten.sigmoid_backward(x, x.sigmoid()),
        _aten.threshold_backward(x.exp(), x, 0.0),
        _aten.leaky_relu_backward(x.exp(), x, 0.2, False),
        _aten.softplus_backward(x.cos(), x, 2.0, 3.0),
        _aten.silu_backward(x.cos(), x),
        _aten.gelu_backward(x.cos(), x),
        _aten.elu_backward(x.cos(), 0.7, 1.1, 1.0, False, x),
        _aten.log_sigmoid_backward(x.cos(), x, (-x.abs()).exp()),
    ],
    "others": lambda x: [
        torch.addcmul(x, x, x.exp(), value=0.5),
        torch.xlogy(x, x.abs()),
        torch.xlogy(x.new_zeros(len(x)), x),
        torch.nn.functional.binary_cross_entropy_with_logits(x, (x > 0).to(x.dtype), reduction="none"),
    ],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_functions_of_one_argument(dtype: torch.dtype) -> None:
    assert len(ONE_ARGUMENT) > 20
    with_nan = [operator for operator in ONE_ARGUMENT if operator not in (_aten.bitwise_not.default, _aten.sgn.default)]
    finite = NUMBERS[:-2].to(dtype)
    assert_computed(lambda x: [operator(x) for operator in with_nan if "sign" not in str(operator)], NUMBERS.to(dtype))
    assert_computed(lambda x: [operator(x) for operator in with_nan] + [x.sgn()], finite)
    assert_computed(lambda x: [operator(x) for operator in with_nan], POSITIVE.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", _CASES)
def test_functions_of_several_arguments(name: str, dtype: torch.dtype) -> None:
    numbers = NUMBERS[:-2] if name in ("backward", "activations", "others", "mul, div, pow") else NUMBERS
    if name == "backward":  # torch's own formulas overflow further out
        numbers = numbers[:-2]
    assert_computed(_CASES[name], numbers.to(dtype))


def test_tail_probabilities_are_not_lost() -> None:
    x = torch.tensor([-60.0, -30.0, -10.0, 30.0, 60.0])
    assert_computed(lambda x: [torch.nn.functional.logsigmoid(x), x.logsumexp(0), x.log_softmax(0)], x)
    assert_computed(lambda x: [x.logsumexp(0)], torch.full((3,), -torch.inf))


@pytest.mark.parametrize("rows", [1, 5])
def test_softmax_and_its_gradients(rows: int) -> None:
    target = torch.arange(rows) % 3

    def function(flat: Tensor) -> list[Tensor]:
        x = flat.view(rows, 3)
        y, weights = x.log_softmax(-1), x.softmax(-1)
        return [
            y,
            weights,
            x.logsumexp(-1),
            x.logsumexp(0, keepdim=True),
            x.mean(),
            x.mean(0),
            x.amax(1),
            x.amax(0),
            _aten._log_softmax_backward_data(x, y, -1, x.dtype),
            _aten._softmax_backward_data(x, weights, -1, x.dtype),
            torch.nn.functional.nll_loss(y, target, reduction="none"),
            _aten.nll_loss_backward(x[:, 0].contiguous(), y, target, None, 0, -100, x[0, 0]),
        ]

    assert_computed(function, torch.randn(3 * rows))


def test_elements_by_their_index() -> None:
    index = torch.tensor([3, 0, 0, -1])
    table = torch.tensor([[1, 0], [2, 2], [0, 1]])

    def function(x: Tensor) -> list[Tensor]:
        square = x.square()
        return [
            square[index],
            square.index_put((index,), x[:4], accumulate=True),
            square.view(3, 3).gather(1, table),
            square.view(3, 3).t().gather(0, table.t()),
            square.view(3, 3).scatter_add(1, table, x[:6].view(3, 2)),
        ]

    assert_computed(function, torch.randn(9))


def test_decompositions_leave_what_they_do_not_know() -> None:
    x, target = torch.randn(4, 3), torch.tensor([0, 1, 2, -100])
    refused: list[Any] = [
        DECOMPOSITIONS[_aten.gelu.default](x, approximate="tanh"),
        DECOMPOSITIONS[_aten.gelu_backward.default](x, x, approximate="tanh"),
        DECOMPOSITIONS[_aten.addmm.default](x[0], x, x, beta=2.0),
        DECOMPOSITIONS[_aten.nll_loss_forward.default](x, target, None, 0, -100),
        DECOMPOSITIONS[_aten.nll_loss_forward.default](x, target[:3], None, 1, -100),
        DECOMPOSITIONS[_aten.binary_cross_entropy_with_logits.default](x, x, x, None, 0),
        DECOMPOSITIONS[_aten.index.Tensor](x, [target]),
        DECOMPOSITIONS[_aten.index_put.default](x[0], [target], x[0], False),
    ]
    assert all(result is NotImplemented for result in refused)
