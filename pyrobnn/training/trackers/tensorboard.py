"""TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from pyrobnn.core.explanations import explained
from pyrobnn.core.extras import import_tensorboard
from pyrobnn.core.files import check_directory

__all__ = ["TensorBoardTracker"]


@explained
class TensorBoardTracker:
    """Writes event files that ``tensorboard --logdir`` shows.

    It is a context manager, which closes the file. Without it the last numbers are written when Python ends.

    Args:
        directory: Where the files go; it is made. Each run needs one of its own.

    Attributes:
        writer: torch's ``SummaryWriter``, for figures and text of your own.

    Raises:
        ImportError: If ``tensorboard`` is not installed.
        TypeError: If ``directory`` is no path.
    """

    def __init__(self, directory: str | Path) -> None:
        path = check_directory("directory", directory)
        self.writer: Any = import_tensorboard("TensorBoardTracker").SummaryWriter(str(path), flush_secs=10)

    def log(self, values: dict[str, float], step: int) -> None:
        """Adds a point to the curve of each name."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Writes what is left."""
        self.writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
