"""Batches of unlabeled inputs that know which rows they are, beside the labeled batches of ``fit``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from pyrobnn.core.arguments import check_positive_int
from pyrobnn.core.batches import inputs_of
from pyrobnn.core.explanations import explained
from pyrobnn.core.trees import leaves, refuse_arrays, take_rows

__all__ = ["UnlabeledLoader"]


@explained
class UnlabeledLoader:
    """Batches of unlabeled inputs, pass after pass, each row once in a pass.

    The loader of ``fit`` yields labeled batches; the term of the objective takes one unlabeled batch a step from here,
    whatever the sizes of both. Iterating yields the input batches of one further pass.

    Args:
        inputs: All unlabeled inputs: a tensor ``[U, ...]``, a tree of such tensors, or a data set of inputs or of pairs
            ``(x, y)``, which lose their ``y``. Labeled inputs may be among them.
        batch_size: Rows of a batch; the last of a pass may have fewer.
        shuffle: Whether each pass has an order of its own, drawn from torch's global random state.

    Raises:
        TypeError: If inputs hold no tensors.
        ValueError: If there are no rows, tensors have different numbers of them, or ``batch_size`` is no positive int.
    """

    def __init__(self, inputs: Any, batch_size: int = 100, *, shuffle: bool = True) -> None:
        check_positive_int("batch_size", batch_size)
        if not isinstance(shuffle, bool):
            raise TypeError(f"shuffle: expected True or False, got {shuffle!r}.")
        self.inputs, self.batch_size, self.shuffle = inputs, batch_size, shuffle
        self.num_rows = _num_rows(inputs)
        self._order, self._position = torch.arange(self.num_rows), self.num_rows

    def __len__(self) -> int:
        """Batches of a pass."""
        return -(-self.num_rows // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        """The input batches of one pass, which :meth:`next_batch` does not notice."""
        for index in self._new_order().split(self.batch_size):
            yield self._take(index)

    def next_batch(self) -> tuple[Any, Tensor]:
        """The next inputs, and the indices of their rows ``[B]``; a new pass begins when one has ended."""
        if self._position >= self.num_rows:
            self._order, self._position = self._new_order(), 0
        index = self._order[self._position : self._position + self.batch_size]
        self._position += len(index)
        return self._take(index), index

    def state(self) -> dict[str, Tensor]:
        """Order and position of the pass, from which it can be continued."""
        return {"order": self._order.clone(), "position": torch.tensor(self._position)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continues where :meth:`state` was called.

        Raises:
            ValueError: If there were other numbers of rows.
        """
        if state["order"].shape != (self.num_rows,):
            raise ValueError(
                f"unlabeled: the run to resume had {len(state['order'])} unlabeled rows, but now there are "
                f"{self.num_rows}."
            )
        self._order, self._position = state["order"].cpu().clone(), int(state["position"])

    def _new_order(self) -> Tensor:
        return torch.randperm(self.num_rows) if self.shuffle else torch.arange(self.num_rows)

    def _take(self, index: Tensor) -> Any:
        if isinstance(self.inputs, Dataset):
            return inputs_of(default_collate([self.inputs[int(row)] for row in index]), "inputs")[0]
        return take_rows(self.inputs, index, self.num_rows)


def _num_rows(inputs: Any) -> int:
    if isinstance(inputs, Dataset):
        rows = len(inputs)  # type: ignore[arg-type]
    else:
        refuse_arrays(inputs, "inputs: the unlabeled inputs")
        tensors = [leaf for leaf in leaves(inputs) if isinstance(leaf, Tensor) and leaf.dim()]
        if not tensors:
            raise TypeError(f"inputs: expected a tensor with a row for each input, got {type(inputs).__name__}.")
        lengths = sorted({len(tensor) for tensor in tensors})
        if len(lengths) > 1:
            raise ValueError(f"inputs: its tensors have different numbers of rows, {lengths}.")
        rows = lengths[0]
    if not rows:
        raise ValueError("inputs: there are no unlabeled rows.")
    return rows
