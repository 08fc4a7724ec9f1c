"""Ordered classes: the suite, thresholds, labels to ignore."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from pyrobnn.model.likelihoods import Likelihood, Ordinal
from tests.conformance.likelihood_suite import LikelihoodConformance
from tests.model.likelihoods.informations import assert_information, outputs_of


class TestOrdinalConformance(LikelihoodConformance):
    num_outputs = 1
    takes_missing = False

    def make(self, **options: Any) -> Likelihood:
        return Ordinal(thresholds=[-1.0, 0.25, 1.5], **options)

    def log_density(self, outputs: Tensor, y: Tensor) -> Tensor:
        cutpoints = torch.tensor([-math.inf, -1.0, 0.25, 1.5, math.inf]).double()
        cdf = torch.as_tensor(stats.logistic(outputs.numpy()).cdf(cutpoints.numpy()))
        return cdf.diff(dim=-1).gather(-1, y.unsqueeze(-1)).squeeze(-1).log()

    def refused(self, y: Tensor) -> list[tuple[type[Exception], Tensor]]:
        return [*super().refused(y), (TypeError, y.double()), (ValueError, y + 4), (ValueError, y - 4)]


class TestLearnedOrdinalConformance(LikelihoodConformance):
    """Four classes that are equally probable where the output is 0."""

    num_outputs = 1
    takes_missing = False

    def make(self, **options: Any) -> Likelihood:
        return Ordinal(4, **options)

    def log_density(self, outputs: Tensor, y: Tensor) -> Tensor:
        cutpoints = torch.tensor([-math.inf, -math.log(3.0), 0.0, math.log(3.0), math.inf]).double()
        cdf = torch.as_tensor(stats.logistic(outputs.numpy()).cdf(cutpoints.numpy()))
        return cdf.diff(dim=-1).gather(-1, y.unsqueeze(-1)).squeeze(-1).log()


@pytest.mark.parametrize("likelihood", [Ordinal(5), Ordinal(thresholds=[0.3]), Ordinal(2)], ids=repr)
def test_information_in_closed_form(likelihood: Ordinal) -> None:
    assert_information(likelihood.double(), outputs_of(1, 4))


def test_thresholds_stay_in_order_while_they_are_learned() -> None:
    likelihood = Ordinal(4)
    torch.testing.assert_close(likelihood.log_probabilities(torch.zeros(1, 1)).exp(), torch.full((1, 4), 0.25))
    optimizer = torch.optim.SGD(likelihood.parameters(), lr=1.0)
    labels = torch.tensor([0, 0, 0, 0, 0, 3, 2, 0])
    for _ in range(200):
        optimizer.zero_grad()
        (-likelihood(torch.zeros(8, 1)).log_prob(labels).mean()).backward()
        optimizer.step()
    assert bool((likelihood.thresholds().diff() > 0).all())
    probs = likelihood.log_probabilities(torch.zeros(1, 1)).exp()
    torch.testing.assert_close(probs, torch.tensor([[0.75, 0.0, 0.125, 0.125]]), atol=0.02, rtol=0)


def test_far_outputs_keep_their_digits() -> None:
    """At an output of 200 the lowest class has log probability ``-1 - 200``."""
    log_probs = Ordinal(thresholds=[-1.0, 1.0]).log_probabilities(torch.tensor([[200.0], [-200.0]]))
    torch.testing.assert_close(log_probs[:, 0], torch.tensor([-201.0, 0.0]))
    torch.testing.assert_close(log_probs[:, 2], torch.tensor([0.0, -201.0]))
    assert bool(log_probs.isfinite().all())


def test_sequences_of_labels_and_a_label_to_ignore() -> None:
    outputs, labels = torch.randn(3, 5, 1), torch.tensor([[0, 1, 2, 9, 9]] * 3)
    likelihood = Ordinal(3, ignore_index=9)
    likelihood.check_targets(outputs, labels)
    expected = likelihood.log_probabilities(outputs)[:, range(3), range(3)].sum(1)
    torch.testing.assert_close(likelihood(outputs).log_prob(labels), expected)
    assert likelihood.target_weighting == "ignore_index"
    with pytest.raises(ValueError, match=r"^y: Ordinal expects integer labels from 0 to 2"):
        Ordinal(3).check_targets(outputs, labels)


def test_what_is_no_ordinal_likelihood_is_refused() -> None:
    for wrong in ({}, {"num_classes": 3, "thresholds": [0.0]}):
        with pytest.raises(ValueError, match=r"^num_classes: give the number of classes, or their fixed thresholds"):
            Ordinal(**wrong)  # type: ignore[arg-type]
    for thresholds in ([], [1.0, 1.0], [2.0, 1.0], [math.nan], [[1.0]]):
        with pytest.raises(ValueError, match=r"^thresholds: expected increasing"):
            Ordinal(thresholds=thresholds)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^num_classes: "):
        Ordinal(1)
    with pytest.raises(ValueError, match=r"^net: Ordinal expects outputs \[B, ..., 1\]"):
        Ordinal(3)(torch.zeros(4, 3))
