"""The protocol of trackers, and when a training loop calls them.

``tracker.log(values, step)`` receives numbers by name and the number of gradient steps (of a game, rounds) so far:

* after each epoch its entries of the history, such as ``"elbo"`` and ``"validation"``, and ``"epoch"``;
* with ``log_every=n`` after each n-th step the values of that step alone, as ``"step/elbo"`` and so on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from pyrobnn.core.arguments import check_positive_int

__all__ = ["FunctionTracker", "Tracker", "TrackerCalls"]


@runtime_checkable
class Tracker(Protocol):
    """Anything with a method ``log(values, step)``; a run of Weights & Biases is one as it is.

    What a tracker raises ends the training, as an error of a callback does.
    """

    def log(self, values: dict[str, float], step: int) -> Any:
        """Takes numbers.

        Args:
            values: Numbers by name.
            step: Gradient steps, or rounds of a game, so far; it never decreases.
        """
        ...


class FunctionTracker:
    """A function as a tracker: with ``log_every=1`` a callback after each step.

    Args:
        function: Called as ``function(values, step)``.

    Raises:
        TypeError: If it is no function.
    """

    def __init__(self, function: Callable[[dict[str, float], int], Any]) -> None:
        if not callable(function) or isinstance(function, type):
            raise TypeError(f"function: expected a function of values and step, got {function!r}.")
        self.function = function

    def log(self, values: dict[str, float], step: int) -> None:
        """Calls the function."""
        self.function(values, step)


class TrackerCalls:
    """The calls of one training run.

    Args:
        trackers: The trackers.
        log_every: Steps between two calls with the values of single steps; None: epochs only.

    Raises:
        TypeError: If one of ``trackers`` has no method ``log``.
        ValueError: If ``log_every`` is no positive int.
    """

    def __init__(self, trackers: Sequence[Tracker], log_every: int | None) -> None:
        if isinstance(trackers, str) or not isinstance(trackers, Sequence):
            raise TypeError(f"trackers: expected a list of them, got {trackers!r}.")
        for tracker in trackers:
            if isinstance(tracker, type) or not isinstance(tracker, Tracker):
                raise TypeError(
                    f"trackers: expected objects with a method log(values, step), got {tracker!r}; wrap a function in "
                    "pyrobnn.training.trackers.FunctionTracker."
                )
        if log_every is not None:
            check_positive_int("log_every", log_every)
        self.trackers, self.log_every = list(trackers), log_every

    def after_step(self, values: Mapping[str, float | Tensor], step: int) -> None:
        """Passes on the values of a step, if its turn has come; tensors are read only then."""
        if self.log_every is None or not self.trackers or step % self.log_every:
            return
        self._log({f"step/{name}": float(value) for name, value in values.items()}, step)

    def after_epoch(self, values: Mapping[str, float], epoch: int, step: int) -> None:
        """Passes on the values of an epoch."""
        self._log({**values, "epoch": float(epoch)}, step)

    def _log(self, values: dict[str, float], step: int) -> None:
        for tracker in self.trackers:
            tracker.log(dict(values), step)
