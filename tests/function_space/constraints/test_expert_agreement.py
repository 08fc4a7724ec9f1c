"""Agreement with a known function."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pyrobnn.function_space import ExpertAgreement
from tests.function_space.constraints.constraint_suite import SIX, ConstraintConformance, functions

X = torch.rand(20, 2, generator=torch.Generator().manual_seed(1)) * 2 - 1


def certain(x: Tensor) -> Tensor:
    """Always class 0 of three."""
    return torch.eye(3, dtype=x.dtype)[:1].expand(len(x), -1)


class TestExpertAgreement(ConstraintConformance):
    further_terms = frozenset({"expert_agreement"})

    def constraint(self, **options: Any) -> ExpertAgreement:
        return ExpertAgreement(**{"expert": certain, "inputs": SIX, **options})

    def of_regression(self, **options: Any) -> ExpertAgreement:
        return ExpertAgreement(**{"expert": lambda x: x[:, :1] * 0 + 0.5, "inputs": X, **options})


def test_distances_beyond_the_tolerance_where_the_expert_speaks() -> None:
    def expert(x: Tensor) -> Tensor:
        return torch.where(x[:, :1] > 0, 0.5 * x[:, :1], torch.nan)

    found = ExpertAgreement(expert, X, tolerance=0.1).violation(functions(1, 1.0, 0.0), X)
    expected = torch.where(X[:, 0] > 0, 0.5 * X[:, 0], 0.0) - 0.1
    torch.testing.assert_close(found, expected)


def test_predictions_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expert: expected predictions of shape \[20, 1\], got shape \[20\]"):
        ExpertAgreement(lambda x: x[:, 0], X).violation(functions(1, 1.0, 0.0), X)
    with pytest.raises(TypeError, match="expert: expected a function"):
        ExpertAgreement(0.5, X)  # type: ignore[arg-type]
