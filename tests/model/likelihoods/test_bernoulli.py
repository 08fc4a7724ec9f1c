"""Binary targets: the suite, digits, and labels that vary together."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pyrobnn.model.likelihoods import Bernoulli, Likelihood
from tests.conformance.likelihood_suite import LikelihoodConformance

OUTPUTS = torch.tensor([[0.3, -1.2, 2.0, 0.1], [0.0, 0.7, -0.4, -2.0], [1.0, 1.5, 0.2, 0.4]])


class TestBernoulliConformance(LikelihoodConformance):
    def make(self, **options: Any) -> Likelihood:
        return Bernoulli(**options)

    def log_density(self, outputs: Tensor, y: Tensor) -> Tensor:
        return -F.binary_cross_entropy_with_logits(outputs, y, reduction="none").sum(-1)

    def refused(self, y: Tensor) -> list[tuple[type[Exception], Tensor]]:
        return [*super().refused(y), (TypeError, y.long()), (ValueError, y + 0.5), (ValueError, y * math.nan)]


def test_both_probabilities_of_a_bernoulli_keep_their_digits() -> None:
    logits = torch.tensor([[0.0], [60.0], [-60.0]])
    probabilities = Bernoulli().probabilities(logits)
    assert probabilities.shape == (3, 1, 2)
    torch.testing.assert_close(probabilities[0, 0], torch.tensor([0.5, 0.5]))
    assert probabilities[1, 0, 0].item() == pytest.approx(math.exp(-60.0), rel=1e-5, abs=0.0), "not 1 - 1 = 0"
    assert probabilities[2, 0, 1].item() == pytest.approx(math.exp(-60.0), rel=1e-5, abs=0.0)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_binary_targets_of_another_kind_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=rf"y: Bernoulli expects floating-point targets that are 0 or 1.*{dtype}"):
        Bernoulli().check_targets(OUTPUTS, torch.ones_like(OUTPUTS).to(dtype))


@pytest.mark.parametrize("wrong", [0.5, -1.0, 2.0, math.nan])
def test_binary_targets_of_another_value_are_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match=r"y: Bernoulli expects floating-point targets that are 0 or 1"):
        Bernoulli().check_targets(OUTPUTS, torch.full_like(OUTPUTS, wrong))


def test_missing_labels_leave_the_others() -> None:
    y = torch.tensor([[0.0, math.nan, 1, 0], [math.nan] * 4, [0, 0, 0, 1]])
    found = Bernoulli(missing=True)(OUTPUTS).log_prob(y)
    by_label = -F.binary_cross_entropy_with_logits(OUTPUTS, y.nan_to_num(), reduction="none")
    torch.testing.assert_close(found, (by_label * ~y.isnan()).sum(-1))
