"""Errors that name an argument of the wrong kind, and which values fit which annotations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.core.explanations import explained, fits


@explained
def halved(count: int, *, names: Sequence[str] = (), device: torch.device | str | None = None) -> list[str]:
    """Fails in Python's words where an argument is of the wrong kind."""
    if count == 7:
        raise ValueError("count: seven is refused by the function itself.")
    if count == 8:
        raise RuntimeError("a failure of something else")
    torch.empty(2, device=device)
    return [name[: len(name) // 2] for name in names] * (count // 2)


def test_a_call_that_succeeds_is_the_function() -> None:
    assert halved(4, names=["abcd"]) == ["ab", "ab"]
    assert halved.__name__ == "halved" and "Python's words" in (halved.__doc__ or "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": "four"}, r"^count: expected int, got 'four'\.$"),
        ({"count": None}, r"^count: expected int, got None\.$"),
        ({"count": 2, "names": [3]}, r"^names: expected Sequence\[str\], got \[3\]\.$"),
        ({"count": 2, "device": "nonsense"}, r"^device: expected torch.device \| str \| None, got 'nonsense'\.$"),
    ],
)
def test_the_argument_is_named_and_the_cause_kept(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message) as caught:
        halved(**arguments)
    assert caught.value.__cause__ is not None


def test_other_failures_are_left_alone() -> None:
    with pytest.raises(ValueError, match=r"^count: seven"):
        halved(7)
    with pytest.raises(RuntimeError, match=r"^a failure of something else$"):
        halved(8, names=["a"])
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        halved()  # type: ignore[call-arg]


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
def test_inputs_of_another_kind_than_the_weights(dtype: torch.dtype) -> None:
    model = pb.SupervisedModel(nn.Linear(3, 1), pb.likelihoods.Normal(0.3), num_data=4)
    guide, x, y = pb.guides.MAP(model), torch.ones(4, 3, dtype=dtype), torch.zeros(4, 1)
    message = r"^inputs: .* than its weights, torch\.float32 \(.*\); convert the inputs, as by x\.float\(\)"
    with pytest.raises(TypeError, match=message):
        pb.predict(model, guide, x, 2)
    with pytest.raises(TypeError, match=message):
        pb.fit(model, guide, [(x, y)], epochs=1, progress=False)


def test_generators_and_constructors() -> None:
    @explained
    def counted(stop: int) -> Iterator[int]:
        yield from range(stop)

    assert list(counted(2)) == [0, 1]
    with pytest.raises(TypeError, match=r"^stop: expected int, got 'a'"):
        list(counted("a"))  # type: ignore[arg-type]

    @explained
    class Scaled:
        def __init__(self, scale: float) -> None:
            self.scale = 1.0 / scale

    assert Scaled(2.0).scale == 0.5
    with pytest.raises(TypeError, match=r"^scale: expected float, got 'a'"):
        Scaled("a")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("hint", "good", "bad"),
    [
        (int, [0, -3], [True, 1.0, "1", None]),
        (float, [0, 1.5, np.float32(2.0)], [True, float("nan"), float("inf"), "1", None]),
        (bool, [True, 0, "a", None], [torch.zeros(2), np.zeros(2)]),
        (str | None, ["a", None], [3, b"a"]),
        (Literal["a", 1], ["a", 1], ["b", True, 1.0]),
        (Sequence[int], [[1], (2, 3), []], ["ab", 3, [1.0]]),
        (Mapping[str, Tensor], [{"a": torch.zeros(1)}, {}], [{"a": 1}, [("a", 1)], {3: torch.zeros(1)}]),
        (tuple[str, int], [("a", 1)], [("a",), ("a", "b"), ["a", 1]]),
        (tuple[int, ...], [(), (1, 2)], [("a",), [1]]),
        (Callable[[int], int], [abs, nn.ReLU()], [3, "abs"]),
        (torch.device | str | None, ["cpu", torch.device("cpu"), None], ["nonsense", 3]),
        (Any, [3, None, "a"], []),
        (nn.Module, [nn.ReLU()], [nn.ReLU, None]),
    ],
)
def test_what_fits(hint: Any, good: list[Any], bad: list[Any]) -> None:
    assert all(fits(value, hint) for value in good)
    assert not any(fits(value, hint) for value in bad)
