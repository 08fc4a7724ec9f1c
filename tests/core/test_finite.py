"""Rows of weight 0, whatever their values."""

from __future__ import annotations

import torch

from pyrobnn.core.finite import weighted


def test_rows_of_weight_zero_are_left_out() -> None:
    values = torch.tensor([1.0, -torch.inf, torch.nan, 4.0, -torch.inf])
    weight = torch.tensor([2.0, 0.0, 0.0, 0.5, 1.0])
    assert weighted(values, weight).tolist() == [2.0, 0.0, 0.0, 2.0, -torch.inf]
    assert weighted(values, None) is values
