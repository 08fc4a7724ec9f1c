"""Which posterior draws targets are drawn from."""

from __future__ import annotations

import torch
from torch import Tensor

from pyrobnn.core.arguments import check_positive_int

__all__ = ["draw_indices"]


def draw_indices(num_samples: int | None, draws: int, device: torch.device) -> Tensor | None:
    """Which of the posterior draws each of ``num_samples`` targets is drawn from; None: each draw once.

    Every draw is used equally often; a remainder is a random choice of them without repetition.

    Raises:
        ValueError: If ``num_samples`` is no positive int.
    """
    if num_samples is None:
        return None
    check_positive_int("num_samples", num_samples)
    whole = torch.arange(draws, device=device).repeat(num_samples // draws)
    return torch.cat([whole, torch.randperm(draws, device=device)[: num_samples % draws]])
