"""Which rows of the training data each of several processes reads.

A ``DataLoader`` of the whole data set is cut: of every batch of B rows process r of R reads the rows r, r + R, … So the
union of what the processes read in a step is the batch that one process would read, whatever R is, in the last,
shorter batch as well, and no row is read twice. Any other loader is taken to yield this process's own share.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from pyrobnn.core import random_state
from pyrobnn.core.batches import Reader, loader_options
from pyrobnn.core.ranks import Ranks, mixed_seed
from pyrobnn.core.trees import leaves
from pyrobnn.model.num_data import stated_rows

__all__ = ["SharedBatches", "Shares"]

_ORDER = 1  # distinguishes the seeds of orders from those of draws


class SharedBatches:
    """A batch sampler's batches, of which a process gets its share.

    Args:
        batches: The batch sampler of one process.
        ranks: The processes.

    Attributes:
        sampler: The sampler of rows.
        batch_size: That of the union.
    """

    def __init__(self, batches: Any, ranks: Ranks) -> None:
        self.batches, self.ranks = batches, ranks
        self.sampler = getattr(batches, "sampler", None)
        self.batch_size = getattr(batches, "batch_size", None)
        self._indices: list[list[int]] = []

    def begin(self, seed: int) -> None:
        """Draws the order of an epoch, the same in all processes.

        Raises:
            ValueError: If it is not, since samplers have generators of their own in other states.
        """
        with random_state.seeded(seed, torch.device("cpu")):
            self._indices = [list(batch) for batch in self.batches]
        self.ranks.agree(
            "loader: its sampler yields other rows in each process; give it a generator with the same seed in all of "
            "them, or none.",
            value=self._indices,
        )

    def __iter__(self) -> Iterator[list[int]]:
        return (own for batch in self._indices if (own := batch[self.ranks.rank :: self.ranks.size]))

    def __len__(self) -> int:
        return len(self.batches)


class Shares:
    """The loader of one process, and what is known of it.

    Args:
        loader: What the user passed.
        ranks: The processes.
        num_data: The model's N, which is that of the whole data set.
        reader: How batches are read.

    Attributes:
        loader: What this process iterates over.
        rows: The numbers of data that the loaders of all processes state together; empty if only a pass would tell.

    Raises:
        ValueError: If the data of all processes are not N rows, or each has a data set of its own.
    """

    def __init__(self, loader: Iterable[Any], ranks: Ranks, num_data: int, reader: Reader | None) -> None:
        self.loader, self.ranks = loader, ranks
        self._shared: SharedBatches | None = None
        stated = () if reader is not None else stated_rows(loader)
        sampler: Any = getattr(getattr(loader, "batch_sampler", None), "sampler", None)
        self._sampler = sampler if isinstance(sampler, DistributedSampler) else None
        if self._sampler is not None:
            if self._sampler.num_replicas != ranks.size:
                raise ValueError(
                    f"loader: its DistributedSampler has num_replicas={self._sampler.num_replicas}, but there are "
                    f"{ranks.size} processes."
                )
            self.rows = stated
            self._check(num_data, stated)
            return
        together = ranks.gather(stated)
        if _can_be_cut(loader) and (reader is not None or all(num_data in rows for rows in together)):
            self.rows = stated
            self._cut(loader)
            return
        if not all(together):
            self.rows = ()
            return
        self.rows = (sum(rows[0] for rows in together),)
        self._check(num_data, self.rows)

    def begin(self, seed: int, epoch: int) -> None:
        """Prepares an epoch."""
        if self._shared is not None:
            self._shared.begin(mixed_seed(seed, epoch, _ORDER))
        if self._sampler is not None:
            self._sampler.set_epoch(epoch)

    def _check(self, num_data: int, rows: tuple[int, ...]) -> None:
        if rows and num_data not in rows:
            raise ValueError(
                f"num_data: the model was built for {num_data} data, but the loaders of {self.ranks.size} processes "
                f"have {rows[0]} rows in all; num_data is that of the whole data set, however many processes share it, "
                "and each process is given the whole data set's DataLoader, or batches of its own share."
            )

    def _cut(self, loader: Any) -> None:
        if loader.batch_size is not None and loader.batch_size < self.ranks.size:
            raise ValueError(
                f"loader: batches of {loader.batch_size} rows cannot be shared by {self.ranks.size} processes; "
                "batch_size is that of all processes together."
            )
        self.ranks.agree(
            "loader: its data set is another one in each process, though each has as many rows as the model's "
            "num_data, which is that of the whole data set: pass every process the DataLoader of the whole data set, "
            "or build the model with the number of rows of all processes.",
            value=_digest(loader.dataset),
        )
        self._shared = SharedBatches(loader.batch_sampler, self.ranks)
        self.loader = DataLoader(
            loader.dataset,
            batch_sampler=self._shared,
            generator=loader.generator,
            **loader_options(loader),
        )


def _can_be_cut(loader: Any) -> bool:
    return (
        type(loader) is DataLoader
        and not isinstance(loader.dataset, IterableDataset)
        and loader.batch_sampler is not None
    )


def _digest(dataset: Any) -> str:
    """The first row, as its numbers; nothing where it is none, or differs from one reading to the next."""
    with random_state.seeded(0, torch.device("cpu")):
        try:
            found = [leaf for leaf in leaves(dataset[0]) if isinstance(leaf, Tensor | int | float)]
        except Exception:  # reading rows is the loader's business
            return ""
    said = [leaf.detach().cpu().tolist() if isinstance(leaf, Tensor) else leaf for leaf in found]
    return hashlib.sha256(repr(said).encode()).hexdigest()
