"""Cross-conformal intervals and sets."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pyrobnn.conformal import (
    APS,
    LAC,
    CrossConformalClassifier,
    CrossConformalRegressor,
    NormalizedResidual,
)
from pyrobnn.conformal.real_scores import AbsoluteResidual, RealScore
from pyrobnn.model.likelihoods.predictions import Prediction
from tests.conformance.predictions import class_prediction, normal_prediction


def of_means(means: Tensor, scale: float = 1.0) -> Prediction:
    return normal_prediction(means.unsqueeze(0), torch.full_like(means, scale).unsqueeze(0))


def slope(x: Tensor, y: Tensor) -> Tensor:
    """Least squares through the origin."""
    return (x * y).sum() / x.square().sum()


def regression(generator: torch.Generator, num_data: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(num_data, generator=generator).double()
    return x, 2 * x + torch.randn(num_data, generator=generator).double()


def crossed(x: Tensor, y: Tensor, new: Tensor, folds: int) -> tuple[list[Prediction], list[Tensor], list[Prediction]]:
    """Predictions of own folds, their targets, and those of new inputs, by models without each fold."""
    of, targets, at_new = [], [], []
    for fold in range(folds):
        own = torch.arange(len(x)) % folds == fold
        weight = slope(x[~own], y[~own])
        of.append(of_means(weight * x[own]))
        targets.append(y[own])
        at_new.append(of_means(weight * new))
    return of, targets, at_new


def by_definition(x: Tensor, y: Tensor, new: Tensor, folds: int, level: float) -> tuple[Tensor, Tensor]:
    low, high = [], []
    for index in range(len(x)):
        without = torch.arange(len(x)) % folds != index % folds
        weight = slope(x[without], y[without])
        residual = (y[index] - weight * x[index]).abs()
        low.append(weight * new - residual)
        high.append(weight * new + residual)
    rank = math.ceil((len(x) + 1) * level - 1e-9)
    return torch.stack(low).sort(0).values[len(x) - rank], torch.stack(high).sort(0).values[rank - 1]


@pytest.mark.parametrize("folds", [3, 20])
def test_intervals_are_those_of_the_definition(folds: int) -> None:
    """Of CV+ with 3 folds, and of the jackknife+, which has a fold for each datum."""
    generator = torch.Generator().manual_seed(0)
    (x, y), (new, _) = regression(generator, 20), regression(generator, 7)
    of, targets, at_new = crossed(x, y, new, folds)
    found = CrossConformalRegressor(confidence_level=0.8).conformalize(of, targets).predict_interval(at_new)
    for ours, theirs in zip(found, by_definition(x, y, new, folds, 0.8), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("score", [AbsoluteResidual(), NormalizedResidual()])
def test_intervals_cover_about_the_level_and_never_less_than_the_guarantee(score: RealScore) -> None:
    """500 resamples of 25 data, 5 new ones each: above 1 - 2α, and the level itself within five standard errors."""
    generator, shares = torch.Generator().manual_seed(1), []
    for _ in range(500):
        (x, y), (new, targets) = regression(generator, 25), regression(generator, 5)
        of, own, at_new = crossed(x, y, new, 5)
        lower, upper = (
            CrossConformalRegressor(score, confidence_level=0.8).conformalize(of, own).predict_interval(at_new)
        )
        shares.append(((lower <= targets) & (targets <= upper)).double().mean())
    coverage, error = float(torch.stack(shares).mean()), float(torch.stack(shares).std()) / 500**0.5
    assert coverage > 0.6 + 3 * error
    assert abs(coverage - math.ceil(26 * 0.8) / 26) < 0.03 + 3 * error


def classes(generator: torch.Generator, num_data: int) -> tuple[Tensor, Tensor]:
    logits = 2 * torch.randn(num_data, 4, generator=generator).double()
    return logits, torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(-1)


@pytest.mark.parametrize("score", [LAC(), APS()])
def test_sets_are_those_of_the_definition_and_cover(score: Any) -> None:
    """Against counting by hand; 500 resamples of 30 data are covered above 1 - 2α and near the level."""
    generator, shares = torch.Generator().manual_seed(2), []
    for resample in range(500):
        (logits, labels), (new, targets) = classes(generator, 30), classes(generator, 4)
        shifts = [0.3 * torch.randn(4, generator=generator).double() for _ in range(3)]  # the models differ
        of = [class_prediction((logits[k::3] + shift).unsqueeze(0)) for k, shift in enumerate(shifts)]
        own = [labels[k::3] for k in range(3)]
        at_new = [class_prediction((new + shift).unsqueeze(0)) for shift in shifts]
        sets = CrossConformalClassifier(score, confidence_level=0.8).conformalize(of, own).predict_set(at_new)
        shares.append(sets.gather(1, targets[:, None]).double().mean())
        if resample < 3:
            below = torch.zeros(4, 4)
            for k in range(3):
                scores = score(of[k].mean, torch.ones(10, 1).double()).gather(1, own[k][:, None])
                below += (scores.unsqueeze(-1) < score(at_new[k].mean, torch.ones(4, 1).double())).sum(0)
            assert torch.equal(sets, below < 0.8 * 31)
    coverage, error = float(torch.stack(shares).mean()), float(torch.stack(shares).std()) / 500**0.5
    assert coverage > 0.6 + 3 * error and abs(coverage - 0.8) < 0.05 + 3 * error


def test_too_few_data_cover_everything_and_say_so() -> None:
    of, targets, at_new = crossed(torch.ones(6).double(), torch.ones(6).double(), torch.ones(2).double(), 2)
    with pytest.warns(UserWarning, match="6 data are too few .* at least 9"):
        predictor = CrossConformalRegressor().conformalize(of, targets)
    lower, upper = predictor.predict_interval(at_new)
    assert bool((lower == -math.inf).all()) and bool((upper == math.inf).all())
    three = [class_prediction(torch.zeros(1, 3, 4)) for _ in range(2)]
    with pytest.warns(UserWarning, match="too few"):
        sets = CrossConformalClassifier().conformalize(three, [torch.zeros(3).long()] * 2).predict_set(three)
    assert bool(sets.all())


def test_a_state_dict_restores_it_and_several_targets_have_thresholds_of_their_own() -> None:
    generator = torch.Generator().manual_seed(3)
    (x, y), (new, _) = regression(generator, 30), regression(generator, 5)
    of, targets, at_new = crossed(x, y, new, 3)
    predictor = CrossConformalRegressor(confidence_level=0.8).conformalize(of, targets)
    other = CrossConformalRegressor(confidence_level=0.8)
    other.load_state_dict(predictor.state_dict())
    lower, upper = predictor.predict_interval(at_new)
    for restored in (other, copy.deepcopy(predictor)):
        assert torch.equal(restored.predict_interval(at_new)[0], lower)
    pairs = [of_means(torch.stack([p.mean, 3 * p.mean], 1)) for p in of]
    both = [of_means(torch.stack([p.mean, 3 * p.mean], 1)) for p in at_new]
    twice = CrossConformalRegressor(confidence_level=0.8)
    twice.conformalize(pairs, [torch.stack([t, 3 * t], 1) for t in targets])
    torch.testing.assert_close(twice.predict_interval(both)[1], torch.stack([upper, 3 * upper], 1))


def test_bad_input_is_refused() -> None:
    generator = torch.Generator().manual_seed(4)
    (x, y), (new, _) = regression(generator, 30), regression(generator, 5)
    of, targets, at_new = crossed(x, y, new, 3)
    predictor = CrossConformalRegressor()
    with pytest.raises(RuntimeError, match="not fitted"):
        predictor.predict_interval(at_new)
    with pytest.raises(TypeError, match=r"^score: "):
        CrossConformalRegressor(LAC())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^score: "):
        CrossConformalClassifier(AbsoluteResidual())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^confidence_level: "):
        CrossConformalRegressor(confidence_level=1.0)
    with pytest.raises(TypeError, match=r"^predictions: expected a list"):
        predictor.conformalize(of[0], targets)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^predictions: expected those of at least two"):
        predictor.conformalize(of[:1], targets[:1])
    for wrong in (targets[:2], torch.cat(targets)):
        with pytest.raises(ValueError, match=r"^targets: expected a list"):
            predictor.conformalize(of, wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^targets: the prediction came without"):
        predictor.conformalize(of)
    predictor.conformalize(of, targets)
    with pytest.raises(ValueError, match=r"^predictions: expected one of each of the 3"):
        predictor.predict_interval(at_new[:2])
    with pytest.raises(ValueError, match=r"^predictions: the models must predict the same"):
        predictor.predict_interval([*at_new[:2], of[0]])
    with pytest.raises(TypeError, match=r"^prediction: "):
        CrossConformalClassifier().conformalize(of, targets)
