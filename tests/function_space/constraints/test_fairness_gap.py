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


def test_equalized_odds_by_hand() -> None:
    """Means by outcome: 1 and 5 where it is 0, 3 and 9 where it is 1; the last row has an outcome of its own."""
    x = torch.tensor([[1.0, 1.0], [3.0, 1.0], [5.0, -1.0], [8.0, -1.0], [10.0, -1.0], [99.0, 1.0]])
    outcome = torch.tensor([0, 1, 0, 1, 1, 2])
    for given in (outcome, lambda _: outcome):
        found = FairnessGap(group, x, outcome=given, tolerance=0.5).violation(functions(1, 1.0, 0.0), x)
        torch.testing.assert_close(found, torch.tensor([5.5]))
    with pytest.raises(ValueError, match="all 2 rows of a batch of the same outcome are of one group"):
        FairnessGap(group, x, outcome=lambda x: torch.arange(len(x))).violation(functions(1, 1.0, 0.0), x[1:3])
    with pytest.raises(ValueError, match="outcome: expected one for each row"):
        FairnessGap(group, x, outcome=outcome).violation(functions(1, 1.0, 0.0), x[:3])
    with pytest.raises(TypeError, match="outcome: expected a tensor of outcomes"):
        FairnessGap(group, x, outcome="y")  # type: ignore[arg-type]


def test_equalized_odds_holds_where_parity_does_not() -> None:
    """Predictions that are the outcome itself, which one group has more often."""
    x = torch.tensor([[1.0, 1.0], [1.0, 1.0], [0.0, 1.0], [1.0, -1.0], [0.0, -1.0], [0.0, -1.0]])
    found = FairnessGap(group, x, outcome=x[:, 0] > 0).violation(functions(1, 1.0, 0.0), x)
    torch.testing.assert_close(found, torch.zeros(1))
    torch.testing.assert_close(FairnessGap(group, x).violation(functions(1, 1.0, 0.0), x), torch.full((1,), 1 / 3))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda x: torch.zeros(len(x), dtype=torch.bool), "all 20 rows of a batch are of one group"),
        (lambda x: x[:, 1], "group: expected one for each row"),
        (lambda x: torch.zeros(3, dtype=torch.long), "group: expected one for each row"),
        (lambda x: None, "group: expected one for each row"),
    ],
)
def test_wrong_groups_are_refused(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FairnessGap(given, X).violation(functions(1, 1.0, 0.0), X)
