"""Progress of loops: a bar in a terminal or a notebook, few lines in a log file.

A bar rewrites its line, which in a file makes one endless line. Where standard error is no terminal, progress is
reported in lines instead: at most one for each unit of a loop (an epoch, a batch) and about a hundred for all of it,
the first and the last among them.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

import tqdm as bars

from pyrobnn.core.batches import num_batches

__all__ = ["LineProgress", "progress_bar"]

_LINES = 100
_SECONDS = 10.0  # between lines of a loop without a known end


def progress_bar(
    iterable: Iterable[Any] | None = None,
    *,
    total: int | None = None,
    initial: int = 0,
    shown: bool = True,
    unit: str = "step",
    title: str | None = None,
    leave: bool = True,
) -> Any:
    """What shows how far a loop is: an object of ``tqdm``, or a :class:`LineProgress` with the members used here.

    Args:
        iterable: What is looped over, if the bar is to be the iterator.
        total: Number of units; that of the iterable if None.
        initial: Units that are done already.
        shown: Whether anything is shown.
        unit: What is counted.
        title: What is under way.
        leave: Whether a bar stays when the loop is over.
    """
    if total is None:
        total = num_batches(iterable)
    if shown and not _is_terminal() and not _is_notebook():
        return LineProgress(iterable, total=total, initial=initial, unit=unit, title=title)
    kind: Any = bars.tqdm
    if shown and _is_notebook() and importlib.util.find_spec("ipywidgets") is not None:
        from tqdm.notebook import tqdm_notebook

        kind = tqdm_notebook
    return kind(iterable, total=total, initial=initial, disable=not shown, unit=unit, desc=title, leave=leave)


class LineProgress:
    """Reports of a loop in lines, for files.

    Args:
        iterable: What is looped over, if this is to be the iterator.
        total: Number of units, if it is known.
        initial: Units that are done already.
        unit: What is counted.
        title: What is under way.
    """

    def __init__(
        self,
        iterable: Iterable[Any] | None = None,
        *,
        total: int | None = None,
        initial: int = 0,
        unit: str = "step",
        title: str | None = None,
    ) -> None:
        self.iterable, self.total, self.unit, self.title = iterable, total, unit, title
        self.count, self.text = initial, ""
        self._started = self._last = time.monotonic()
        self._next = initial + 1

    def __iter__(self) -> Iterator[Any]:
        for entry in () if self.iterable is None else self.iterable:
            yield entry
            self.update()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def set_postfix_str(self, text: str) -> None:
        """What the next line says beside the count."""
        self.text = text

    def set_postfix(self, values: Mapping[str, Any]) -> None:
        """The same of named values."""
        self.text = ", ".join(f"{name}={value}" for name, value in values.items())

    def update(self, count: int = 1) -> None:
        """Adds finished units, and writes a line if one is due."""
        self.count += count
        now = time.monotonic()
        if self.total is None:
            if now - self._last < _SECONDS:
                return
        elif self.count < min(self._next, self.total):
            return
        self._last = now
        self._next = self.count + max(1, (self.total or 0) // _LINES)
        title = "" if self.title is None else f"{self.title}: "
        of = "" if self.total is None else f"/{self.total}"
        text = f": {self.text}" if self.text else ""
        print(f"{title}{self.unit} {self.count}{of} ({now - self._started:.0f} s){text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing is left to be done."""


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _is_notebook() -> bool:
    """Whether this process is the kernel of a notebook, whose front end shows widgets and carriage returns."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"
