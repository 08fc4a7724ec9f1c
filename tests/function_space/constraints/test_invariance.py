"""Symmetries: even and odd functions."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pyrobnn.function_space import Invariance
from tests.function_space.constraints.constraint_suite import SIX, ConstraintConformance, functions

X = torch.rand(20, 2, generator=torch.Generator().manual_seed(1)) * 2 - 1


class TestInvariance(ConstraintConformance):
    further_terms = frozenset({"invariance"})

    def constraint(self, **options: Any) -> Invariance:
        return Invariance(**{"transform": torch.neg, "inputs": SIX, **options})

    def of_regression(self, **options: Any) -> Invariance:
        return Invariance(**{"transform": torch.neg, "inputs": X, **options})


def test_an_odd_function_changes_and_an_even_one_does_not() -> None:
    odd = Invariance(torch.neg, X, tolerance=0.1).violation(functions(1, 1.0, 0.0), X)
    torch.testing.assert_close(odd, 2 * X[:, 0].abs() - 0.1)
    even = Invariance(torch.neg, X).violation([lambda x: x.square()], X)
    assert not bool(even.any())


def test_images_keep_the_rows() -> None:
    with pytest.raises(ValueError, match="it must keep the rows"):
        Invariance(lambda x: x[:3], X).violation(functions(1, 1.0, 0.0), X)
    with pytest.raises(TypeError, match="transform: expected a function"):
        Invariance(X, X)  # type: ignore[arg-type]
