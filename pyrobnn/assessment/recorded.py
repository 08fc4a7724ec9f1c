"""Scores of a regression that remember their rows, for bootstrap intervals."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyrobnn.metrics.streaming_regression import RegressionScores

__all__ = ["RecordedScores"]


class RecordedScores(RegressionScores):
    """Scores that also remember what they had of each target."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, Tensor]] = []

    def update(self, mean: Tensor, y: Tensor, lower: Tensor, upper: Tensor, **found: Any) -> None:
        """Adds a batch and remembers it."""
        super().update(mean, y, lower, upper, **found)
        mask = found["observed"]
        mask = torch.ones_like(y, dtype=torch.bool) if mask is None else mask
        rows = {"mean": mean, "y": y, "lower": lower[-1], "upper": upper[-1], "crps": found["crps"], "mask": mask}
        rows["nll"] = -found["log_prob"]
        self.rows.append({name: value.detach().cpu() for name, value in rows.items()})
