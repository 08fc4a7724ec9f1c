"""Abstention with a guaranteed risk."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from pyrobnn.detection import Abstention
from pyrobnn.model.likelihoods.predictions import ClassPrediction, Prediction
from tests.conformance.predictions import class_prediction, normal_prediction, overconfident


def binary(generator: torch.Generator, num_data: int) -> tuple[ClassPrediction, Tensor, Tensor]:
    """Probabilities p of class 0 between 1/2 and 1, labels that are 0 with probability p, and p."""
    p = 0.5 + 0.5 * torch.rand(num_data, generator=generator).double()
    labels = (torch.rand(num_data, generator=generator) > p).long()
    return class_prediction(torch.stack([p, 1 - p], -1).log().unsqueeze(0)), labels, p


def risk_below(threshold: float) -> float:
    """Error rate of the answers where 1 - p < threshold, p uniform on 1/2 to 1."""
    return min(threshold, 0.5) / 2


def test_the_guarantee_is_violated_no_more_often_than_stated() -> None:
    """1,000 resamples of 1,000 data at δ = 0.1, against the known risk: at most three standard errors above δ."""
    generator, violated, coverage = torch.Generator().manual_seed(0), 0, 0.0
    for _ in range(1000):
        prediction, labels, _ = binary(generator, 1000)
        rule = Abstention(0.15, 0.9).fit(prediction, labels)
        violated += risk_below(float(rule.threshold)) > 0.15
        coverage += float(rule.coverage) / 1000
    assert violated / 1000 <= 0.1 + 3 * math.sqrt(0.09 / 1000)
    assert 0.3 < coverage < 0.6  # 0.6 has a risk of exactly 0.15


def test_the_bound_is_nearly_used_where_one_coverage_is_tried() -> None:
    """With m = 1 the rule answers everything or is refused: for a risk of exactly 0.25 it passes in at most δ of 2,000.

    The binomial is discrete; against the exact share of it, within three standard errors.
    """
    from scipy.stats import binom

    generator, passed = torch.Generator().manual_seed(1), 0
    for _ in range(2000):
        prediction, labels, _ = binary(generator, 50)
        try:
            Abstention(0.25, 0.9, num_coverages=1).fit(prediction, labels)
            passed += 1
        except ValueError:
            continue
    largest = max(k for k in range(50) if binom.cdf(k, 50, 0.25) <= 0.1)
    expected = float(binom.cdf(largest, 50, 0.25))
    assert abs(passed / 2000 - expected) < 3 * math.sqrt(expected * (1 - expected) / 2000)


def test_answers_are_those_below_the_threshold_and_everything_where_all_is_right() -> None:
    prediction, labels, p = binary(torch.Generator().manual_seed(2), 2000)
    rule = Abstention(0.1).fit(prediction, labels)
    answered = rule(prediction)
    assert torch.equal(answered, 1 - p < rule.threshold)
    assert float(answered.double().mean()) == pytest.approx(float(rule.coverage))
    assert Abstention(0.05).fit(prediction, torch.zeros(2000).long()).coverage == 1.0


def test_ties_are_answered_together_or_not_at_all() -> None:
    """Half of the data have one uncertainty and are wrong: they are all left out, whatever their order."""
    p = torch.cat([torch.full((500,), 0.9), torch.full((500,), 0.6)]).double()
    labels = torch.cat([torch.zeros(500), torch.ones(500)]).long()
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(3))
    prediction = class_prediction(torch.stack([p, 1 - p], -1)[order].log().unsqueeze(0))
    rule = Abstention(0.05).fit(prediction, labels[order])
    assert float(rule.coverage) == 0.5 and torch.equal(rule(prediction), (p > 0.8)[order])


def test_a_score_of_your_own() -> None:
    held_out, labels = overconfident(0)
    rule = Abstention(0.3, score=lambda prediction: prediction.total).fit(held_out, labels)
    assert torch.equal(rule(held_out), held_out.total < rule.threshold)


def test_several_labels_of_an_input_and_saved_state() -> None:
    held_out, labels = overconfident(0, 600)
    flat = Abstention(0.3).fit(held_out, labels)
    images = class_prediction(held_out.parameters["log_probs"].reshape(3, 6, 10, 10, 4))  # type: ignore[index]
    found = Abstention(0.3).fit(images, labels.reshape(6, 10, 10))
    assert found.threshold == pytest.approx(float(flat.threshold)) and found(images).shape == (6, 10, 10)
    other = Abstention(0.3)
    other.load_state_dict(flat.state_dict())
    for restored in (other, copy.deepcopy(flat)):
        assert torch.equal(restored(held_out), flat(held_out))


def test_a_risk_that_cannot_be_promised_is_refused_with_what_it_takes() -> None:
    """Without an error 0.05 takes log(0.05 / 20) / log(0.95) = 116.8 data, so 117."""
    sure = torch.stack([torch.full((116,), 0.9), torch.full((116,), 0.1)], -1).double()
    prediction = class_prediction(sure.log().unsqueeze(0))
    with pytest.raises(
        ValueError, match=r"^risk: 0.05 cannot .* these 116 data; the least that can is 0.0503.* least 117"
    ):
        Abstention(0.05).fit(prediction, torch.zeros(116).long())
    one_more = class_prediction(torch.cat([sure, sure[:1]]).log().unsqueeze(0))
    assert Abstention(0.05).fit(one_more, torch.zeros(117).long()).coverage == 1.0
    with pytest.raises(ValueError, match=r"^risk: .*least that can is 1\."):
        Abstention(0.05).fit(prediction, torch.ones(116).long())


def test_bad_input_is_refused() -> None:
    held_out, labels = overconfident(0, 50)
    for options, name in (
        ({"risk": 0.0}, "risk"),
        ({"risk": 1.0}, "risk"),
        ({"confidence": 95}, "confidence"),
        ({"num_coverages": 0}, "num_coverages"),
    ):
        with pytest.raises(ValueError, match=rf"^{name}: "):
            Abstention(**options)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^score: "):
        Abstention(score="entropy")  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="not fitted"):
        Abstention()(held_out)
    with pytest.raises(TypeError, match=r"^prediction: expected class prob"):
        Abstention().fit(normal_prediction(torch.zeros(1, 5), torch.ones(1, 5)), torch.zeros(5))
    with pytest.raises(ValueError, match=r"^targets: "):
        Abstention().fit(held_out, labels[:-1])

    def nan(prediction: Prediction) -> Tensor:
        return prediction.total * math.nan

    for score, kind in ((nan, ValueError), (lambda p: p.mean, ValueError), (lambda p: 0.0, TypeError)):
        with pytest.raises(kind, match=r"^score: "):
            Abstention(score=score).fit(held_out, labels)  # type: ignore[arg-type]
