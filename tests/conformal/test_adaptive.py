"""Adaptive conformal inference."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from pyrobnn.conformal import (
    AdaptiveConformalRegressor,
    ConformalRegressor,
    DensityScore,
    NormalizedResidual,
    PITScore,
)
from pyrobnn.conformal.real_scores import RealScore
from pyrobnn.model.likelihoods.moment_prediction import MomentPrediction
from tests.conformance.predictions import class_prediction, normal_prediction


def series(num_data: int, growth: float = 0.0, seed: int = 0) -> tuple[MomentPrediction, Tensor]:
    """Predictions N(0, 1) of targets whose spread grows from 1 to 1 + growth."""
    generator = torch.Generator().manual_seed(seed)
    spread = 1 + growth * torch.linspace(0, 1, num_data).double()
    zeros = torch.zeros(1, num_data).double()
    return normal_prediction(zeros, zeros + 1), spread * torch.randn(num_data, generator=generator).double()


def missed(interval: tuple[Tensor, Tensor], y: Tensor) -> float:
    lower, upper = interval
    return float(((y < lower) | (y > upper)).double().mean())


def test_by_hand() -> None:
    """Scores 1 to 4 and the level 0.8 of step 0.3: the fourth score, then the miss widens to everything."""
    y = torch.tensor([1.0, 2.0, 3.0, 4.0]).double()
    predictor = AdaptiveConformalRegressor(confidence_level=0.8, step=0.3)
    predictor.conformalize(normal_prediction(torch.zeros(1, 4).double(), torch.ones(1, 4).double()), y)
    new = normal_prediction(torch.zeros(1, 3).double(), torch.ones(1, 3).double())
    lower, upper = predictor.follow(new, torch.tensor([5.0, 100.0, 0.0]).double())
    # alpha: 0.2 -> miss -> 0.2 + 0.3 (0.2 - 1) = -0.04: everything -> covered -> 0.02: rank 7 of 6 scores: everything
    assert upper.tolist() == [4.0, math.inf, math.inf] and lower.tolist() == [-4.0, -math.inf, -math.inf]
    assert float(predictor.level) == pytest.approx(0.08)
    assert len(predictor.scores) == 7


@pytest.mark.parametrize("growth", [0.0, 9.0])
@pytest.mark.parametrize("step", [0.005, 0.05])
def test_the_share_of_misses_is_within_its_bound_for_any_series(growth: float, step: float) -> None:
    """(max(α, 1 - α) + γ) / (γ T), no probability about it; and a fixed threshold misses more when targets spread."""
    prediction, y = series(3000, growth)
    for scores in (y, y.abs().sort().values, y * torch.where(torch.arange(3000) % 500 < 250, 5.0, 0.1)):
        predictor = AdaptiveConformalRegressor(step=step).conformalize(*series(200, seed=1))
        share = missed(predictor.follow(prediction, scores), scores)
        assert abs(share - 0.1) <= (0.9 + step) / (step * 3000)
    if growth:
        fixed = ConformalRegressor().conformalize(*series(200, seed=1))
        assert missed(fixed.predict_interval(prediction), y) > 0.4


def test_a_target_in_a_column_of_its_own_is_followed_like_one_without() -> None:
    """What a network of one output predicts, [N, 1], has the same intervals, of its shape."""
    (held, y_held), (prediction, y) = series(80, seed=1), series(100, 3.0)

    def column(given: MomentPrediction) -> MomentPrediction:
        return normal_prediction(given.mean[None, :, None], torch.ones(1, len(given), 1).double())

    plain = AdaptiveConformalRegressor(window=60).conformalize(held, y_held)
    columns = AdaptiveConformalRegressor(window=60).conformalize(column(held), y_held[:, None])
    pairs = [(plain.follow(prediction, y), columns.follow(column(prediction), y[:, None]))]
    pairs.append((plain.predict_interval(prediction), columns.predict_interval(column(prediction))))
    for expected, found in pairs:
        for one, other in zip(expected, found, strict=True):
            assert other.shape == (100, 1) and torch.equal(one, other[:, 0])
    assert torch.equal(plain.scores, columns.scores) and torch.equal(plain.level, columns.level)


def test_following_in_parts_is_following_at_once() -> None:
    prediction, y = series(300, 3.0)
    whole, parts = (AdaptiveConformalRegressor(window=50).conformalize(*series(80, seed=1)) for _ in range(2))
    lower, upper = whole.follow(prediction, y)
    pieces = [
        parts.follow(prediction.rows(rows), y[rows]) for rows in (slice(0, 100), slice(100, 101), slice(101, 300))
    ]
    assert torch.equal(torch.cat([low for low, _ in pieces]), lower)
    assert torch.equal(torch.cat([high for _, high in pieces]), upper)
    assert len(whole.scores) == 50 and torch.equal(whole.scores, y[-50:].abs())
    later, _ = series(5, seed=3)
    assert torch.equal(whole.predict_interval(later)[1], parts.predict_interval(later)[1])


def test_before_any_step_it_is_the_split_interval() -> None:
    held_out, new = series(80), series(5, seed=1)[0]
    score = NormalizedResidual()
    split = ConformalRegressor(score, confidence_level=0.8).conformalize(*held_out).predict_interval(new)
    adaptive = AdaptiveConformalRegressor(score, confidence_level=0.8).conformalize(*held_out).predict_interval(new)
    assert torch.equal(split[0], adaptive[0]) and torch.equal(split[1], adaptive[1])


@pytest.mark.parametrize("score", [None, NormalizedResidual(), PITScore(), DensityScore()])
def test_a_level_of_one_or_more_has_empty_intervals(score: RealScore | None) -> None:
    """Of every score the middle or the peak, here 0."""
    predictor = AdaptiveConformalRegressor(score, confidence_level=0.5, step=2.0).conformalize(*series(50))
    prediction, _ = series(2)
    lower, upper = predictor.follow(prediction, torch.zeros(2).double())  # 0.5, then 0.5 + 2 * 0.5 = 1.5
    assert float(upper[0]) > 0
    assert abs(float(lower[1])) < 1e-9 and abs(float(upper[1])) < 1e-9
    assert float(predictor.level) == pytest.approx(0.5)  # it counted as a miss: 1.5 - 2 * 0.5


def test_a_state_dict_restores_it() -> None:
    predictor = AdaptiveConformalRegressor().conformalize(*series(100))
    predictor.follow(*series(50, 2.0, seed=1))
    other = AdaptiveConformalRegressor()
    other.load_state_dict(predictor.state_dict())
    new = series(20, seed=2)
    for restored in (other, copy.deepcopy(predictor)):
        assert torch.equal(restored.follow(*new)[0], copy.deepcopy(predictor).follow(*new)[0])


def test_bad_input_is_refused() -> None:
    prediction, y = series(20)
    for options, name in (
        ({"confidence_level": 1.0}, "confidence_level"),
        ({"step": 0.0}, "step"),
        ({"step": math.nan}, "step"),
        ({"window": 0}, "window"),
    ):
        with pytest.raises(ValueError, match=rf"^{name}: "):
            AdaptiveConformalRegressor(**options)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^score: "):
        AdaptiveConformalRegressor(0.9)  # type: ignore[arg-type]
    predictor = AdaptiveConformalRegressor()
    for call in (lambda: predictor.follow(prediction, y), lambda: predictor.predict_interval(prediction)):
        with pytest.raises(RuntimeError, match="not fitted"):
            call()
    with pytest.raises(TypeError, match=r"^prediction: "):
        predictor.conformalize(class_prediction(torch.zeros(1, 5, 3)), torch.zeros(5).long())
    with pytest.raises(ValueError, match=r"^targets: "):
        predictor.conformalize(prediction, y[:-1])
    several = normal_prediction(torch.zeros(1, 20, 2).double(), torch.ones(1, 20, 2).double())
    with pytest.raises(ValueError, match=r"^prediction: expected one target"):
        predictor.conformalize(several, torch.zeros(20, 2).double())
