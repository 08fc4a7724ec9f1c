"""The gap of two groups' mean predictions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pyrobnn.function_space import FairnessGap
from tests.function_space.constraints.constraint_suite import ConstraintConformance, functions

X = torch.rand(20, 2, generator=torch.Generator().manual_seed(1)) * 2 - 1


def group(x: Tensor) -> Tensor:
    return x[:, 1] > 0


class TestFairnessGap(ConstraintConformance):
    further_terms = frozenset({"fairness_gap"})

    def constraint(self, **options: Any) -> FairnessGap:
        x = torch.tensor([[1.0, -1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 1.0, 1.0], [0.0, -1.0, 1.0]]).double()
        return FairnessGap(**{"group": group, "inputs": x, "output": 1, **options})

    def of_regression(self, **options: Any) -> FairnessGap:
        return FairnessGap(**{"group": group, "inputs": X, **options})


def test_the_gap_by_hand() -> None:
    x = torch.tensor([[1.0, 1.0], [3.0, 1.0], [5.0, -1.0], [7.0, -1.0]])
    found = FairnessGap(group, x, tolerance=0.5).violation(functions(1, 1.0, 0.0), x)
    torch.testing.assert_close(found, torch.tensor([3.5]))
    three = FairnessGap(lambda x: torch.tensor([0, 1, 2, 2]), x).violation(functions(1, 1.0, 0.0), x)
    torch.testing.assert_close(three, torch.tensor([5.0]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda x: torch.zeros(len(x), dtype=torch.bool), "all 20 rows of a batch are of one group"),
        (lambda x: x[:, 1], "group: expected a group for each row"),
        (lambda x: torch.zeros(3, dtype=torch.long), "group: expected a group for each row"),
        (lambda x: None, "group: expected a group for each row"),
    ],
)
def test_wrong_groups_are_refused(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FairnessGap(given, X).violation(functions(1, 1.0, 0.0), X)
