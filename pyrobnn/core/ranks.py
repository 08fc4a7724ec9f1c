"""The processes of a group that train one posterior together: sums, copies, and errors that reach all of them.

Every operation is entered by all processes, or none gets past it. Errors of one process are therefore told to the
others at fixed points (:meth:`Ranks.together`), and a process that has died ends the others' wait with an error.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as group
from torch import Tensor

from pyrobnn.core.first_line import first_line

__all__ = ["RankFailedError", "RankLostError", "Ranks", "mixed_seed"]

Result = TypeVar("Result")

_LARGE = 2**18  # numbers from which a tensor is summed where it lies, instead of in one with others


class RankLostError(RuntimeError):
    """Another process of the group died, or no longer answers."""


class RankFailedError(RuntimeError):
    """Another process of the group raised an error; the message repeats it."""


class Ranks:
    """The processes of the default group of ``torch.distributed``; one process without a group.

    Args:
        device: Where tensors are that are summed.
        argument: What errors name.
        alone: Whether this process goes by itself, whatever group there is.

    Attributes:
        size: Number R of processes.
        rank: The number of this one, from 0.
    """

    def __init__(self, device: torch.device, argument: str = "data_parallel", *, alone: bool = False) -> None:
        self.is_grouped = not alone and group.is_available() and group.is_initialized() and group.get_world_size() > 1
        self.size = group.get_world_size() if self.is_grouped else 1
        self.rank = group.get_rank() if self.is_grouped else 0
        self.device, self.argument = device, argument

    @property
    def is_first(self) -> bool:
        """Whether this is the process that reports and writes."""
        return self.rank == 0

    # --------------------------------------------------------------------------------------------- sums and copies

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums of a few numbers over the processes, in double precision."""
        if not self.is_grouped:
            return list(values)
        kind = torch.float32 if self.device.type == "mps" else torch.float64
        total = torch.tensor(values, dtype=kind, device=self.device)
        self._collective(lambda: group.all_reduce(total))
        return total.tolist()

    def sum_tensors(self, tensors: Sequence[Tensor]) -> None:
        """Replaces tensors by their sums over the processes; small ones travel together."""
        if not self.is_grouped:
            return
        small: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            if tensor.numel() >= _LARGE and tensor.is_contiguous():
                self._collective(lambda tensor=tensor: group.all_reduce(tensor))  # type: ignore[misc]
            else:
                small.setdefault(tensor.dtype, []).append(tensor)
        for several in small.values():
            joined = torch.cat([tensor.reshape(-1) for tensor in several])
            self._collective(lambda joined=joined: group.all_reduce(joined))  # type: ignore[misc]
            for tensor, piece in zip(several, joined.split([t.numel() for t in several]), strict=True):
                tensor.copy_(piece.view_as(tensor))

    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Overwrites tensors by those of the first process."""
        for tensor in tensors if self.is_grouped else ():
            same = tensor.detach().contiguous()
            self._collective(lambda same=same: group.broadcast(same, 0))  # type: ignore[misc]
            if same.data_ptr() != tensor.data_ptr():
                tensor.detach().copy_(same)

    def gather(self, value: Any) -> list[Any]:
        """An object of each process, which can be pickled, in the order of the processes."""
        if not self.is_grouped:
            return [value]
        found: list[Any] = [None] * self.size
        self._collective(lambda: group.all_gather_object(found, value))
        return found

    def agree(self, what: str, tensors: Sequence[Tensor] = (), value: Any = None) -> None:
        """Refuses to go on if the processes have other numbers of something.

        Args:
            what: The message.
            tensors: What is compared.
            value: What else is.

        Raises:
            ValueError: If they differ.
        """
        digest = hashlib.sha256(repr(value).encode())
        for tensor in tensors:
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        if len(set(self.gather(digest.hexdigest()))) > 1:
            raise ValueError(what)

    # ------------------------------------------------------------------------------------------------------- errors

    @contextlib.contextmanager
    def together(self, where: str) -> Iterator[None]:
        """A block that ends for all processes alike: if one raises an error in it, the others do at its end.

        The block itself must not wait for other processes.

        Raises:
            RankFailedError: If another process raised an error.
        """
        try:
            yield
        except Exception as error:
            with contextlib.suppress(RankLostError):
                self.report(error, where)
            raise
        self.report(None, where)

    def report(self, error: Exception | None, where: str) -> None:
        """Tells the others of an error, and raises theirs.

        Raises:
            RankFailedError: If another process reports one, and this one does not.
        """
        if self.sum([float(error is not None)])[0]:
            self.explain(error, where)

    def explain(self, error: Exception | None, where: str) -> None:
        """What follows where some processes are known to have failed: the others raise what these say."""
        said = self.gather(None if error is None else f"{type(error).__name__}: {error}")
        if error is None:
            rank = next(index for index, one in enumerate(said) if one is not None)
            raise RankFailedError(f"{self.argument}: process {rank} of {self.size} failed {where}: {said[rank]}")

    def first(self, function: Callable[[], Result]) -> Result:
        """What a function returns in the first process, in all of them; its error is raised in all of them.

        Raises:
            RankFailedError: In the other processes, if it failed.
        """
        if not self.is_grouped:
            return function()
        found: list[Any] = [None, None]
        failure: Exception | None = None
        if self.is_first:
            try:
                found[0] = function()
            except Exception as error:
                failure, found[1] = error, f"{type(error).__name__}: {error}"
        self._collective(lambda: group.broadcast_object_list(found, 0))
        if failure is not None:
            raise failure
        if found[1] is not None:
            raise RankFailedError(f"{self.argument}: process 0 of {self.size} failed: {found[1]}")
        result: Result = found[0]
        return result

    def _collective(self, operation: Callable[[], object]) -> None:
        try:
            operation()
        except RuntimeError as error:
            reason = first_line(error)
            raise RankLostError(
                f"{self.argument}: a process of the {self.size} died, or no longer answers ({reason}). This process "
                "cannot go on alone: start all of them again."
            ) from error


def mixed_seed(*numbers: int) -> int:
    """A seed of 63 bits from several numbers, such as a seed, an epoch and a rank."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
