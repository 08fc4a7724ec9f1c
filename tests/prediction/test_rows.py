"""Inputs are cut between rows that do not see each other, and nowhere else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyrobnn.prediction.rows import Part, RowCutter, bytes_of_part, join_outputs, measured, refuse_squeezed

ROOMY = 2**26


def bytes_of_row(net: nn.Module, x: Any) -> int:
    with torch.no_grad():
        return measured(net, x[:32], net)[1] // 32


def parts(net: nn.Module, x: Any, batch_size: int | None = None, max_bytes: int = ROOMY) -> list[Part]:
    torch.manual_seed(0)
    with torch.no_grad():
        return RowCutter(net, batch_size, max_bytes).parts(x, net)


class Function(nn.Module):
    """A network that is any function."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.layer, self.function = nn.Linear(3, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer(x))


INDEPENDENT = {
    "linear": (nn.Linear(3, 2), (600, 3)),
    "batch_norm": (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval(), (600, 3)),
    "convolution": (nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten()), (600, 1, 6, 6)),
    "attention_within_rows": (nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval(), (600, 3, 4)),
    "squeezed": (nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)), (600, 3)),
    "constant_inputs": (nn.Linear(3, 2), None),
}


@pytest.mark.parametrize("name", INDEPENDENT)
def test_rows_that_are_independent_are_cut(name: str) -> None:
    net, shape = INDEPENDENT[name]
    x = torch.ones(600, 3) if shape is None else torch.randn(shape)
    found = parts(net, x, max_bytes=250 * bytes_of_row(net, x))
    assert [part.rows for part in found] == [200, 200, 200]
    assert torch.equal(torch.cat([part.inputs for part in found]), x)


ADJACENCY = torch.randn(600, 600)
INTERACTING = {
    "mean": lambda h: h - h.mean(0),
    "weak_mean": lambda h: h + 1e-3 * h.mean(0),
    "batch_norm": nn.BatchNorm1d(3, track_running_stats=False),
    "maximum": lambda h: h / h.amax(0),
    "attention": lambda h: (h @ h.T).softmax(-1) @ h,
    "neighbor": lambda h: h + h.roll(1, 0),
    "along_rows": lambda h: h.cumsum(0),
    "first_row": lambda h: h - h[0],
    "graph": lambda h: ADJACENCY @ h,
    "other_rows": lambda h: h.T,
    "one_number": lambda h: h.sum(),
}


@pytest.mark.parametrize("name", INTERACTING)
@pytest.mark.parametrize("flat", [False, True], ids=["", "mostly zero"])
def test_rows_that_interact_are_not_cut(name: str, flat: bool) -> None:
    x = torch.randn(600, 3)
    if flat:  # rows that look as if they had nothing to tell each other
        x[:-7] = 0.0
    net = Function(INTERACTING[name])
    (only,) = parts(net.eval(), x, max_bytes=1)
    assert only.inputs is x
    assert only.rows is None


def test_labels_of_rows_are_not_disturbed() -> None:
    """Whole numbers are used as they are: an index stays one."""
    ids = torch.arange(600) % 7
    budget = 250 * bytes_of_row(nn.Embedding(7, 2), ids)
    assert len(parts(nn.Embedding(7, 2), ids, max_bytes=budget)) == 3
    assert len(parts(nn.Sequential(nn.Embedding(7, 2), Function2()), ids, max_bytes=1)) == 1
    assert len(parts(nn.Embedding(7, 2), torch.zeros(600).long(), max_bytes=1)) == 1, "equal rows tell nothing"


class Function2(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


def test_few_rows_are_one_part_without_a_look() -> None:
    calls = []
    (only,) = RowCutter(nn.Linear(3, 2), None, ROOMY).parts(torch.ones(256, 3), calls.append)
    assert only.rows is None
    assert not calls


def test_the_look_is_taken_once_for_a_shape() -> None:
    calls: list[Tensor] = []
    net = nn.Linear(3, 2)

    def run(x: Tensor) -> Tensor:
        calls.append(x)
        return net(x)

    cutter = RowCutter(net, None, ROOMY)
    for rows in (600, 601, 300):
        cutter.parts(torch.randn(rows, 3), run)
    assert [len(x) for x in calls] == [32, 16, 16]


@pytest.mark.parametrize(
    "x",
    [
        (torch.randn(600, 3), torch.randn(600, 3)),
        {"x": torch.randn(600, 3), "table": torch.randn(600, 3)},
        nn.utils.rnn.pack_sequence([torch.randn(4, 3)] * 600),
        "text",
        torch.tensor(3.0),
    ],
    ids=["tuple", "mapping", "packed", "object", "number"],
)
def test_what_is_not_one_tensor_is_not_touched(x: Any) -> None:
    calls = []
    (only,) = RowCutter(nn.Linear(3, 2), None, 1).parts(x, calls.append)
    assert only.inputs is x
    assert not calls


def test_one_tensor_in_a_container_is_cut() -> None:
    class Named(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    net = Named()  # run through no layer by position: 24 bytes a row
    found = RowCutter(net, None, 6_000).parts({"x": torch.randn(600, 3)}, lambda tree: net(**tree))
    assert [len(part.inputs["x"]) for part in found] == [200, 200, 200]


def test_a_tight_budget_makes_parts_shorter() -> None:
    """A layer of 3 + 97 numbers takes twice 400 bytes a row: 10 rows in 8,000 bytes."""
    found = parts(nn.Linear(3, 97), torch.randn(600, 3), max_bytes=8_000)
    assert {part.rows for part in found} == {10}
    assert {part.rows for part in parts(nn.Linear(3, 97), torch.randn(600, 3), max_bytes=1)} == {4}


def test_on_a_cpu_parts_are_no_longer_than_is_fast_whatever_the_budget() -> None:
    """8 MiB: 32 rows of a layer with inputs and outputs of 64 KiB a row, which count twice."""
    assert bytes_of_part(2**40, torch.device("cuda")) == 2**40
    assert bytes_of_part(1000, torch.device("cpu")) == 1000
    budget = bytes_of_part(2**40, torch.device("cpu"))
    assert budget == 8 * 2**20
    assert {part.rows for part in parts(nn.Identity(), torch.randn(480, 2**14), max_bytes=budget)} == {32}


def test_declared_rows_are_cut_as_declared() -> None:
    x, mask = torch.randn(10, 3), torch.ones(10, 3)
    found = parts(nn.Linear(3, 2), (x, mask, None, 2.0), batch_size=4)
    assert [part.rows for part in found] == [3, 3, 4]
    assert torch.equal(torch.cat([part.inputs[0] for part in found]), x)
    assert [part.inputs[2:] for part in found] == [(None, 2.0)] * 3
    assert [part.rows for part in parts(nn.Linear(3, 2), x, batch_size=10)] == [10]


def test_declared_rows_that_are_none_are_refused() -> None:
    for x in ((torch.randn(10, 3), torch.randn(4, 3)), (torch.randn(10, 3), "text")):
        with pytest.raises(ValueError, match=r"^batch_size: .*cannot be cut.* Leave batch_size out"):
            parts(nn.Linear(3, 2), x, batch_size=4)
    with pytest.raises(ValueError, match=r"^batch_size: expected a positive int, got 0"):
        RowCutter(nn.Linear(3, 2), 0, 1)
    with pytest.raises(TypeError, match=r"^batch_size: expected a positive int or None, got '4'"):
        RowCutter(nn.Linear(3, 2), "4", 1)  # type: ignore[arg-type]


def test_outputs_of_parts_have_their_rows() -> None:
    two, one = Part(torch.ones(2), 2), Part(torch.ones(1), None)
    assert join_outputs([torch.ones(2, 3), torch.ones(1, 3)], [two, one]).shape == (3, 3)
    with pytest.raises(
        ValueError, match=r"^net: it returned outputs of shape \[3\] for a part of 2 rows; .*batch_size"
    ):
        join_outputs([torch.ones(3)], [two])
    with pytest.raises(ValueError, match=r"^net: it returned one number .*squeeze\(-1\)"):
        join_outputs([torch.tensor(1.0)], [one])


def test_a_squeezed_row_is_told_from_time_that_comes_first() -> None:
    x = torch.randn(1, 3)
    squeezed, time_first = (lambda x: (x * 2).squeeze()), (lambda x: x.sum(0))
    with pytest.raises(ValueError, match=r"^net: it returned outputs of shape \[3\] for one row.*squeeze"):
        refuse_squeezed(x, squeezed(x), squeezed)
    refuse_squeezed(x, time_first(x), time_first)
    refuse_squeezed(x, x, lambda x: x)


def test_memory_of_a_part_is_that_of_its_largest_layer() -> None:
    """Twice the 3 + 5 numbers of 4 bytes, of each row."""
    net = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 1))
    assert measured(net, torch.ones(10, 3), net)[1] == 10 * 64
    assert measured(net, torch.ones(20, 3), net)[1] == 20 * 64
