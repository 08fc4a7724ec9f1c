"""Frozen weights and their rounding."""

from __future__ import annotations

import torch

from pyrobnn.exporting.weights import FrozenTensors


def test_whole_numbers_have_a_scale_for_each_output_of_each_draw() -> None:
    """The largest weight of each output is exact; others are within half a step of 1/127 of it."""
    torch.manual_seed(0)
    weight = torch.randn(2, 3, 50) * torch.tensor([1.0, 100.0]).reshape(2, 1, 1)
    frozen = FrozenTensors({"weight": weight, "bias": weight[:, :, 0]}, "int8", leading=1)
    assert {name: value.dtype for name, value in frozen.named_buffers()} == {
        "value_0": torch.int8,
        "scale_0": torch.float32,
        "value_1": torch.float32,
    }
    found = frozen()
    torch.testing.assert_close(found["bias"], weight[:, :, 0], rtol=0, atol=0)
    peak = weight.abs().amax(2, keepdim=True)
    error = (found["weight"] - weight).abs()
    assert bool((error <= peak / 254 * 1.0001).all())
    assert float((error / peak).max()) > 0.9 / 254  # it is rounded at all
    torch.testing.assert_close(found["weight"].abs().amax(2, keepdim=True), peak)


def test_sixteen_bits_and_names_that_are_kept_exact() -> None:
    value = torch.tensor([1.0 + 2.0**-9, 3.0])
    frozen = FrozenTensors({"a": value, "b": value, "index": torch.tensor([7])}, "bfloat16", exact={"b"})
    found = frozen()
    assert found["a"].tolist() == [1.0, 3.0]  # eight bits after the leading one, ties to even
    assert found["b"].tolist() == value.tolist()
    assert found["index"].tolist() == [7]
    assert found["a"].dtype == torch.float32


def test_an_output_without_weights_stays_zero() -> None:
    assert FrozenTensors({"a": torch.zeros(2, 3)}, "int8")()["a"].tolist() == torch.zeros(2, 3).tolist()
