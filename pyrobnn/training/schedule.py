"""Schedules of learning rates: whether a run advances them after each gradient step or after each epoch."""

from __future__ import annotations

from typing import Any, Literal

from pyro.optim import PyroOptim
from pyro.optim.lr_scheduler import PyroLRScheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

__all__ = ["LearningRates", "SchedulerPer", "check_scheduler_per"]

SchedulerPer = Literal["step", "epoch"] | None
_PER_STEP = (OneCycleLR, CyclicLR)  # whose documentation counts batches


def check_scheduler_per(scheduler: Any, per: Any) -> None:
    """Refuses what is no unit of a schedule, or one of a schedule that was not given.

    Raises:
        ValueError: If it is one.
    """
    if per not in (None, "step", "epoch"):
        raise ValueError(f"scheduler_per: expected 'step', 'epoch' or None, got {per!r}.")
    if per is not None and scheduler is None:
        raise ValueError("scheduler_per: there is no schedule; pass scheduler= a function from the optimizer to one.")


class LearningRates:
    """The learning-rate schedule of one run.

    Args:
        scheduler: A function from the optimizer to a schedule, or None.
        optimizer: The optimizer; one of Pyro's may have a schedule of its own.
        per: Whether it advances after each ``"step"`` or ``"epoch"``; None: after each step if it is a
            ``OneCycleLR`` or ``CyclicLR``, else after each epoch.

    Attributes:
        scheduler: torch's schedule, None if there is none.
        per_step: Whether it advances after each step.

    Raises:
        TypeError: If the function makes no schedule.
        ValueError: If a ``ReduceLROnPlateau``, which watches a value of each epoch, is to advance after each step.
    """

    def __init__(self, scheduler: Any, optimizer: Optimizer | PyroOptim, per: SchedulerPer = None) -> None:
        self.optimizer = optimizer
        self.scheduler: LRScheduler | None = None
        if scheduler is not None:
            made = scheduler(optimizer)
            if not isinstance(made, LRScheduler):
                raise TypeError(
                    f"scheduler: it made a {type(made).__name__}, expected a schedule of torch.optim.lr_scheduler."
                )
            if per == "step" and isinstance(made, ReduceLROnPlateau):
                raise ValueError("scheduler_per: ReduceLROnPlateau watches a value of each epoch; leave it None.")
            self.scheduler = made
        self.is_stated = per is not None
        self.per_step = per == "step" if self.is_stated else issubclass(self.kind, _PER_STEP)

    @property
    def kind(self) -> type:
        """The class of the schedule."""
        if isinstance(self.optimizer, PyroLRScheduler):
            made = self.optimizer.pt_scheduler_constructor
            return made if isinstance(made, type) else type(None)
        return type(self.scheduler)

    def check(self, epochs: int, num_batches: int | None) -> None:
        """Refuses a schedule of a fixed number of steps other than the run's; a longer one may be stated on purpose.

        Args:
            epochs: Epochs of the whole run.
            num_batches: Batches of each; None if that is unknown.

        Raises:
            ValueError: If it is of another length.
        """
        total = self._total()
        if total is None or num_batches is None:
            return
        unit = "steps" if self.per_step else "epochs"
        planned = epochs * num_batches if self.per_step else epochs
        if total < planned or (total > planned and not self.is_stated):
            raise ValueError(
                f"scheduler: the {self.kind.__name__} is for {total} {unit}, but the run has {planned} ({epochs} "
                f"epochs of {num_batches} batches); pass total_steps={planned}."
            )

    def after_step(self) -> None:
        """Advances a schedule of steps."""
        if self.per_step:
            self._advance(None)

    def after_epoch(self, quality: float) -> None:
        """Advances a schedule of epochs; ``quality`` (higher is better) is negated where a loss is expected."""
        if not self.per_step:
            self._advance(quality)

    def _advance(self, quality: float | None) -> None:
        if isinstance(self.optimizer, PyroLRScheduler):
            self.optimizer.step()
        if isinstance(self.scheduler, ReduceLROnPlateau) and quality is not None:
            self.scheduler.step(-quality if self.scheduler.mode == "min" else quality)
        elif self.scheduler is not None:
            total = self._total()
            if total is None or self.scheduler.last_epoch + 1 < total:  # past its last rate a cosine rises again
                self.scheduler.step()

    def _total(self) -> int | None:
        return self.scheduler.total_steps if isinstance(self.scheduler, OneCycleLR) else None
