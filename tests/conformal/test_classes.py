from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pyrobnn.conformal import APS, LAC, RAPS, SAPS, ClassScore, ConformalClassifier
from pyrobnn.model.likelihoods.predictions import Prediction
from tests.conformance.conformal_suite import ConformalConformance
from tests.conformance.predictions import class_prediction


def labeled(generator: torch.Generator, num_data: int, shift: float = 0.0) -> tuple[Prediction, Tensor]:
    """Two draws of overconfident predictions of 5 classes."""
    base = torch.randn(num_data, 5, generator=generator, dtype=torch.float64)
    base[:, 0] += shift
    noise = torch.randn(2, num_data, 5, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(base.softmax(-1), 1, generator=generator).squeeze(-1)
    return class_prediction(2 * base + noise), labels


class Classes(ConformalConformance):
    score: ClassScore
    options: dict[str, Any] = {}  # noqa: RUF012

    def make(self, confidence_level: float = 0.8) -> ConformalClassifier:
        return ConformalClassifier(self.score, confidence_level=confidence_level, **self.options)

    def problem(self, generator: torch.Generator, num_data: int) -> tuple[Prediction, Tensor]:
        return labeled(generator, num_data)

    def covered(self, predictor: Any, prediction: Prediction, targets: Tensor, **given: Tensor) -> Tensor:
        return predictor.predict_set(prediction, **given).gather(-1, targets.unsqueeze(-1)).squeeze(-1)


class TestLAC(Classes):
    score = LAC()


class TestAPS(Classes):
    score = APS()
    has_ties = True  # the least probable label's score is 1


class TestRandomizedAPS(Classes):
    score = APS()
    options = {"randomized": True}  # noqa: RUF012


class TestRAPS(Classes):
    score = RAPS(0.1, 1)
    options = {"randomized": True}  # noqa: RUF012


class TestSAPS(Classes):
    score = SAPS(0.2)
    options = {"randomized": True}  # noqa: RUF012


class Broken(ClassScore):
    """Knows nothing of labels."""

    def __call__(self, probs: Tensor, u: Tensor) -> Tensor:
        return (1e4 * probs).sin() + u


class TestABrokenScore(Classes):
    """It covers all the same."""

    score = Broken()


PROBS = torch.tensor([[0.5, 0.1, 0.4], [0.2, 0.7, 0.1]]).double()
ONES = torch.ones(2, 1).double()


def test_scores_by_hand() -> None:
    half = ONES / 2
    expected = {
        LAC(): ([[0.5, 0.9, 0.6], [0.8, 0.3, 0.9]], [[0.5, 0.9, 0.6], [0.8, 0.3, 0.9]]),
        APS(): ([[0.5, 1.0, 0.9], [0.9, 0.7, 1.0]], [[0.25, 0.95, 0.7], [0.8, 0.35, 0.95]]),
        RAPS(0.1, 1): ([[0.5, 1.2, 1.0], [1.0, 0.7, 1.2]], [[0.25, 1.15, 0.8], [0.9, 0.35, 1.15]]),
        SAPS(0.2): ([[0.5, 0.9, 0.7], [0.9, 0.7, 1.1]], [[0.25, 0.8, 0.6], [0.8, 0.35, 1.0]]),
    }
    for score, (plain, randomized) in expected.items():
        torch.testing.assert_close(score(PROBS, ONES), torch.tensor(plain).double())
        torch.testing.assert_close(score(PROBS, half), torch.tensor(randomized).double())


def test_a_threshold_for_each_class_covers_each_class() -> None:
    """Over 500 resamples of about 60 data of each class, within three standard errors below the level."""
    generator = torch.Generator().manual_seed(0)
    hits: dict[int, list[Tensor]] = {c: [] for c in range(5)}
    for _ in range(500):
        predictor = ConformalClassifier(confidence_level=0.8, class_conditional=True)
        predictor.conformalize(*labeled(generator, 300, shift=1.0))
        prediction, labels = labeled(generator, 100, shift=1.0)
        inside = predictor.predict_set(prediction).gather(-1, labels[:, None]).squeeze(-1)
        for c in hits:
            hits[c].append(inside[labels == c].double())
    for found in hits.values():
        shares = torch.stack([resample.mean() for resample in found if len(resample)])
        error = float(shares.std()) / len(shares) ** 0.5
        assert 0.8 - 3 * error < float(shares.mean()) < 0.85
    prediction, labels = labeled(generator, 50)
    with pytest.raises(ValueError, match=r"^targets: .* none of 3"):
        predictor.conformalize(prediction, labels.where(labels != 3, 0))


def test_weights_undo_a_shift_of_the_labels_inputs() -> None:
    """Calibration has other shares of two kinds of inputs; weighted sets hold the level, plain ones do not."""
    generator = torch.Generator().manual_seed(0)

    def draw(num_data: int, share: float) -> tuple[Prediction, Tensor, Tensor]:
        kind = torch.rand(num_data, generator=generator) < share
        logits = torch.randn(num_data, 4, generator=generator).double() * torch.where(kind, 0.2, 4.0)[:, None]
        labels = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(-1)
        return class_prediction(logits[None]), labels, kind

    found: dict[bool, list[Tensor]] = {True: [], False: []}
    for _ in range(500):
        prediction, labels, kind = draw(200, 0.2)
        new, new_labels, new_kind = draw(100, 0.8)
        ratios = [torch.where(k, 4.0, 0.25) for k in (kind, new_kind)]
        for weighted in found:
            given = [{"weights": ratio} if weighted else {} for ratio in ratios]
            predictor = ConformalClassifier(confidence_level=0.8).conformalize(prediction, labels, **given[0])
            sets = predictor.predict_set(new, **given[1])
            found[weighted].append(sets.gather(-1, new_labels[:, None]).double().mean())
    means = {weighted: torch.stack(shares) for weighted, shares in found.items()}
    error = float(means[True].std()) / 500**0.5
    assert 0.8 - 3 * error < float(means[True].mean()) < 0.83 + 3 * error
    assert float(means[False].mean()) < 0.75


def test_equal_weights_and_one_group_change_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    held_out, new = labeled(generator, 57), labeled(generator, 30)[0]
    for level in (0.5, 0.8, 0.9, 0.95):
        plain = ConformalClassifier(confidence_level=level).conformalize(*held_out).predict_set(new)
        weighted = ConformalClassifier(confidence_level=level).conformalize(*held_out, weights=torch.ones(57) * 3)
        assert torch.equal(weighted.predict_set(new, weights=torch.ones(30) * 3), plain)
        grouped = ConformalClassifier(confidence_level=level).conformalize(*held_out, groups=torch.zeros(57).long())
        assert torch.equal(grouped.predict_set(new, groups=torch.zeros(30).long()), plain)


def test_groups_have_thresholds_of_their_own_and_an_unknown_one_gets_everything() -> None:
    generator = torch.Generator().manual_seed(0)
    (prediction, labels), new = labeled(generator, 60), labeled(generator, 4)[0]
    groups = torch.arange(60) % 2
    predictor = ConformalClassifier().conformalize(prediction, labels, groups=groups)
    scores = 1 - prediction.mean.gather(-1, labels[:, None]).squeeze(-1)
    limits = [scores[groups == g].sort().values[math.ceil(31 * 0.9) - 1] for g in (0, 1)]
    with pytest.warns(UserWarning, match="of group 7 are too few"):
        found = predictor.predict_set(new, groups=torch.tensor([0, 1, 7, 1]))
    expected = 1 - new.mean <= torch.stack([limits[0], limits[1], torch.tensor(math.inf).double(), limits[1]])[:, None]
    assert torch.equal(found, expected)
    with pytest.raises(ValueError, match=r"^groups: they were given to conformalize"):
        predictor.predict_set(new)
    for wrong, kind in ((torch.zeros(4), TypeError), (torch.zeros(3).long(), ValueError)):
        with pytest.raises(kind, match=r"^groups: "):
            predictor.predict_set(new, groups=wrong)
    for weights in (-torch.ones(60), torch.full((60,), math.nan), torch.zeros(60), torch.ones(59)):
        with pytest.raises(ValueError, match=r"^weights: "):
            predictor.conformalize(prediction, labels, weights=weights)
