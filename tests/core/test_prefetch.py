"""Blocks made ahead: order, errors, an early end."""

from __future__ import annotations

import threading

import pytest

from pyrobnn.core.prefetch import prefetched


def test_blocks_come_in_order_from_another_thread() -> None:
    made = []

    def make(size: int) -> tuple[int, str]:
        made.append(size)
        return size, threading.current_thread().name

    blocks = list(prefetched(make, [3, 1, 2]))
    assert [size for size, _ in blocks] == made == [3, 1, 2]
    assert all(name.startswith("pyrobnn-draws") for _, name in blocks)
    assert not [t for t in threading.enumerate() if t.name.startswith("pyrobnn-draws")]


@pytest.mark.parametrize("sizes", [[], [4]])
def test_none_or_one(sizes: list[int]) -> None:
    assert list(prefetched(lambda size: size, sizes)) == sizes


def test_an_error_is_raised_where_its_block_is_asked_for() -> None:
    blocks = prefetched(lambda size: 1 // size, [1, 0, 1])
    assert next(blocks) == 1
    with pytest.raises(ZeroDivisionError):
        next(blocks)


def test_an_early_end_leaves_no_thread() -> None:
    blocks = prefetched(lambda size: size, [1, 2, 3])
    assert next(blocks) == 1
    blocks.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name.startswith("pyrobnn-draws")]
