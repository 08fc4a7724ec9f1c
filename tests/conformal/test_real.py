from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pyrobnn.conformal import (
    AbsoluteResidual,
    ConformalRegressor,
    NormalizedResidual,
    PITScore,
    QuantileResidual,
    RealScore,
)
from pyrobnn.model.likelihoods.predictions import Prediction
from tests.conformance.conformal_suite import ConformalConformance
from tests.conformance.predictions import normal_prediction


def measured(generator: torch.Generator, num_data: int) -> tuple[Prediction, Tensor]:
    """Three draws whose noise is half of what it is."""
    mean = torch.randn(num_data, generator=generator, dtype=torch.float64)
    loc = mean + 0.3 * torch.randn(3, num_data, generator=generator, dtype=torch.float64)
    noise = 0.2 + torch.rand(num_data, generator=generator, dtype=torch.float64)
    y = mean + 2 * noise * torch.randn(num_data, generator=generator, dtype=torch.float64)
    return normal_prediction(loc, noise.expand(3, -1)), y


class Intervals(ConformalConformance):
    score: RealScore

    def make(self, confidence_level: float = 0.8) -> ConformalRegressor:
        return ConformalRegressor(self.score, confidence_level=confidence_level)

    def problem(self, generator: torch.Generator, num_data: int) -> tuple[Prediction, Tensor]:
        return measured(generator, num_data)

    def covered(self, predictor: Any, prediction: Prediction, targets: Tensor, **given: Tensor) -> Tensor:
        lower, upper = predictor.predict_interval(prediction, **given)
        return (lower <= targets) & (targets <= upper)


class TestAbsoluteResidual(Intervals):
    score = AbsoluteResidual()


class TestNormalizedByTheStd(Intervals):
    score = NormalizedResidual()


class TestNormalizedByTheEpistemicPart(Intervals):
    score = NormalizedResidual("epistemic", floor=0.1)


class TestQuantiles(Intervals):
    score = QuantileResidual(0.8)


class TestProbabilityIntegralTransform(Intervals):
    score = PITScore()


class Broken(RealScore):
    """Knows nothing of the prediction."""

    def center(self, prediction: Prediction) -> tuple[Tensor, Tensor, Tensor | float]:
        far = 3 + (1e4 * prediction.mean).sin()
        return far, far, 1.0


class TestABrokenScore(Intervals):
    """It covers all the same."""

    score = Broken()


def test_an_interval_by_hand() -> None:
    """Nine residuals 0.1 … 0.9 and the level 0.8: the eighth of them."""
    y = torch.arange(1, 10).double() / 10
    held_out = normal_prediction(torch.zeros(1, 9).double(), torch.ones(1, 9).double() * 2)
    lower, upper = ConformalRegressor(confidence_level=0.8).conformalize(held_out, y).predict_interval(held_out)
    torch.testing.assert_close(lower, torch.full((9,), -0.8).double())
    torch.testing.assert_close(upper, torch.full((9,), 0.8).double())
    normalized = ConformalRegressor(NormalizedResidual(), confidence_level=0.8).conformalize(held_out, y)
    wide = normal_prediction(torch.ones(1, 1).double(), torch.ones(1, 1).double() * 4)
    torch.testing.assert_close(normalized.predict_interval(wide)[1], torch.tensor([1 + 0.4 * 4]).double())


def test_an_interval_that_shrinks_below_nothing_is_its_middle() -> None:
    held_out = normal_prediction(torch.zeros(1, 19).double(), torch.ones(1, 19).double())
    predictor = ConformalRegressor(QuantileResidual(0.99)).conformalize(held_out, torch.zeros(19).double())
    narrow = normal_prediction(torch.ones(1, 1).double(), torch.ones(1, 1).double() / 100)
    lower, upper = predictor.predict_interval(narrow)
    torch.testing.assert_close(lower, torch.ones(1).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(upper, torch.ones(1).double(), atol=1e-6, rtol=0)


def test_targets_of_an_input_have_thresholds_of_their_own() -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, y = measured(generator, 40)
    two = normal_prediction(
        torch.stack([prediction.draws, prediction.draws], -1),  # type: ignore[list-item]
        torch.ones(3, 40, 2).double(),
    )
    targets = torch.stack([y, 10 * y], -1)
    lower, upper = ConformalRegressor().conformalize(two, targets).predict_interval(two)
    for column in (0, 1):
        one = ConformalRegressor().conformalize(prediction, targets[:, column]).predict_interval(prediction)
        torch.testing.assert_close((lower[:, column], upper[:, column]), one)
    with pytest.raises(ValueError, match=r"^prediction: calibration had targets of shape"):
        ConformalRegressor().conformalize(two, targets).predict_interval(prediction)


def test_scores_refuse_what_has_no_unit() -> None:
    with pytest.raises(ValueError, match=r"^floor: expected a positive number for by='epistemic'"):
        NormalizedResidual("epistemic")
    with pytest.raises(ValueError, match=r"^by: "):
        NormalizedResidual("aleatoric")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^level: "):
        QuantileResidual(1.0)
    with pytest.raises(TypeError, match=r"^score: "):
        ConformalRegressor("absolute")  # type: ignore[arg-type]


def test_the_pit_score_gives_central_intervals() -> None:
    """The interval of scores up to a quarter is the central one of probability a half, infinite from a half on."""
    prediction, _ = measured(torch.Generator().manual_seed(0), 5)
    low, high = PITScore().interval(prediction, torch.full((5,), 0.25))
    expected = prediction.interval(0.5)
    torch.testing.assert_close(low, expected[0])
    torch.testing.assert_close(high, expected[1])
    torch.testing.assert_close(PITScore().score(prediction, high), torch.full((5,), 0.25).double(), atol=1e-6, rtol=0)
    low, high = PITScore().interval(prediction, torch.full((5,), 0.5))
    assert bool((low == -torch.inf).all()) and bool((high == torch.inf).all())
