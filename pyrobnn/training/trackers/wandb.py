"""Weights & Biases."""

from __future__ import annotations

from typing import Any, Self

from pyrobnn.core.explanations import explained
from pyrobnn.core.extras import import_wandb

__all__ = ["WandbTracker"]


@explained
class WandbTracker:
    """Logs to a run of Weights & Biases that it begins, and that :meth:`close` finishes.

    A run that you began yourself needs no adapter: ``fit(..., trackers=[wandb.init(...)])``.

    Args:
        project: Name of the project; that of wandb's settings if None.
        options: Further arguments of ``wandb.init``, such as ``name``, ``config`` and ``mode="offline"``.

    Attributes:
        run: The run.

    Raises:
        ImportError: If ``wandb`` is not installed.
    """

    def __init__(self, project: str | None = None, **options: Any) -> None:
        if project is not None and not isinstance(project, str):
            raise TypeError(f"project: expected the name of a project, got {project!r}.")
        self.run: Any = import_wandb("WandbTracker").init(project=project, **options)

    def log(self, values: dict[str, float], step: int) -> None:
        """Logs all values in one call."""
        self.run.log(values, step=step)

    def close(self) -> None:
        """Finishes the run."""
        self.run.finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        self.run.finish(exit_code=0 if kind is None else 1)
