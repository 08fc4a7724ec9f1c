"""Names of torch that are not public still do what the library needs them for."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import torch
from torch import Tensor

from pyrobnn.core.torch_compat import OperatorMode, from_functional, functionalized, to_functional

_SEEN = """
import sys
import torch
from pyrobnn.core.torch_compat import OperatorMode

class Counted(OperatorMode):
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))

with Counted() as mode:
    torch.ones(2).add(1.0)
assert mode.count == 2, mode.count
print([name for name in ("torch._dynamo", "torch._inductor", "sympy") if name in sys.modules])
"""


def in_new_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_mode_sees_operators_without_importing_the_compiler() -> None:
    assert in_new_process(_SEEN) == "[]"


def test_writing_into_a_functional_tensor_computes_a_new_one() -> None:
    names: list[str] = []

    class Named(OperatorMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            names.append(str(func))
            return func(*args, **(kwargs or {}))

    original = torch.zeros(3)
    with Named(), functionalized():
        tensor = to_functional(original)
        tensor[1:] = 2.0
        tensor.add_(1.0)
        result = from_functional(tensor)
    assert original.tolist() == [0.0, 0.0, 0.0]
    assert result.tolist() == [1.0, 3.0, 3.0]
    assert "aten.add.Tensor" in names
    assert not any("_." in name for name in names), names


def test_functional_tensors_take_gradients() -> None:
    original = torch.tensor([1.0, 2.0])
    with functionalized():
        tensor = to_functional(original).requires_grad_()
        gradient = torch.autograd.grad(tensor.square().sum(), tensor)[0]
        held = from_functional(gradient)
    assert held.tolist() == [2.0, 4.0]
    assert not original.requires_grad


def test_other_tensors_are_returned_as_they_are() -> None:
    tensor: Tensor = torch.ones(2)
    assert from_functional(tensor) is tensor
