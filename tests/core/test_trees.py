"""Trees of tensors keep their containers, and are counted, cut and joined by rows or refused."""

from __future__ import annotations

from collections import OrderedDict, UserDict, defaultdict, namedtuple
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from pyrobnn.core.trees import join_rows, leaves, map_leaves, num_rows, take_rows, to_device

Pair = namedtuple("Pair", "a b")


class Encoding(UserDict):
    """A mapping with an attribute of its own, as Hugging Face's BatchEncoding is."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.note = "kept"


class Graph:
    """An input that is no container and knows how to move."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = device

    def to(self, device: torch.device | str) -> Graph:
        return Graph(str(device))


def packed() -> PackedSequence:
    """Two sequences of three features, of lengths 4 and 2."""
    return pack_sequence([torch.randn(4, 3), torch.randn(2, 3)])


@pytest.mark.parametrize(
    "tree",
    [
        torch.arange(3.0),
        (torch.arange(3.0), [torch.ones(3), None]),
        Pair(torch.arange(3.0), {"c": torch.ones(3)}),
        OrderedDict(a=torch.ones(3)),
        defaultdict(list, a=torch.ones(3)),
        Encoding(a=torch.ones(3), b=None),
    ],
    ids=lambda tree: type(tree).__name__,
)
def test_containers_keep_their_kind(tree: Any) -> None:
    kept = [leaf.clone() for leaf in leaves(tree)]
    doubled = map_leaves(lambda leaf: 2 * leaf, tree)
    assert type(doubled) is type(tree)
    assert all(torch.equal(a, 2 * b) for a, b in zip(leaves(doubled), kept, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(leaves(tree), kept, strict=True)), "the given tree is left alone"


def test_what_a_mapping_has_beside_its_entries_is_kept() -> None:
    assert map_leaves(lambda leaf: leaf, Encoding(a=torch.ones(3))).note == "kept"
    assert map_leaves(lambda leaf: leaf, defaultdict(list, a=1)).default_factory is list


def test_none_stays_and_a_mapping_that_cannot_be_changed_becomes_a_dict() -> None:
    assert map_leaves(lambda leaf: 0, (None, [None], {"a": None})) == (None, [None], {"a": None})
    assert map_leaves(lambda leaf: leaf + 1, MappingProxyType({"a": 1})) == {"a": 2}


def test_everything_that_can_moves() -> None:
    table = torch.ones(2)
    tree = {"x": (table, None, 3), "again": table, "graph": Graph(), "name": "n"}
    moved = to_device(tree, "meta")
    assert moved["x"][0].device.type == "meta"
    assert moved["again"] is moved["x"][0], "one tensor in two places is moved once"
    assert moved["graph"].device == "meta"
    assert moved["x"][1:] == (None, 3)
    assert to_device(tree, None) is tree
    assert isinstance(to_device(packed(), "cpu"), PackedSequence)


def test_rows_are_counted() -> None:
    assert num_rows(torch.ones(4, 2)) == 4
    assert num_rows((torch.ones(4, 2), {"mask": torch.ones(4), "scale": torch.tensor(2.0), "none": None})) == 4
    assert num_rows(packed()) == 2
    for tree in ((torch.ones(4), torch.ones(3)), (), None, 3.0, torch.tensor(1.0)):
        with pytest.raises(ValueError, match="the same number of rows"):
            num_rows(tree)


@pytest.mark.parametrize("index", [slice(1, 3), torch.tensor([1, 2]), torch.tensor([False, True, True, False])])
def test_rows_are_taken(index: Any) -> None:
    x = torch.arange(8.0).view(4, 2)
    found = take_rows(Pair(x, {"m": x[:, 0], "flag": True, "none": None, "t": torch.tensor(5.0)}), index, 4)
    assert torch.equal(found.a, x[1:3])
    assert torch.equal(found.b["m"], x[1:3, 0])
    assert (found.b["flag"], found.b["none"], float(found.b["t"])) == (True, None, 5.0)


@pytest.mark.parametrize("other", [torch.ones(3, 3), packed(), Graph(), "text"], ids=lambda other: type(other).__name__)
def test_what_has_no_rows_is_not_cut(other: Any) -> None:
    with pytest.raises(ValueError, match=r"^batch: it cannot be cut into parts, since a .* the 4 rows; use it whole"):
        take_rows((torch.ones(4, 2), other), slice(2), 4)


def test_rows_are_joined() -> None:
    def tree(x: Tensor) -> Any:
        return Pair(x, {"m": x[:, 0], "none": None, "flag": True})

    x = torch.randn(5, 2)
    found = join_rows([tree(x[:2]), tree(x[2:])])
    assert torch.equal(found.a, x)
    assert torch.equal(found.b["m"], x[:, 0])
    assert (found.b["none"], found.b["flag"]) == (None, True)


def test_what_cannot_be_joined_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rows have different shapes, \[\[2\], \[3\]\], .*pad them"):
        join_rows([torch.ones(4, 2), torch.ones(4, 3)])
    with pytest.raises(ValueError, match="packed sequences cannot be joined"):
        join_rows([packed(), packed()])
    with pytest.raises(TypeError, match="not made alike"):
        join_rows([(torch.ones(2), torch.ones(2)), (torch.ones(2), None)])
