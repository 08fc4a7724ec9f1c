"""Sets and intervals of TorchCP 1.2.1 and MAPIE 1.6.0 on the same predictions: their numbers, to 1e-5."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyrobnn.conformal import (
    APS,
    LAC,
    RAPS,
    SAPS,
    AbsoluteResidual,
    ClassScore,
    ConformalClassifier,
    ConformalRegressor,
    CrossConformalRegressor,
)
from tests.conformal.test_cross import crossed, of_means, slope
from tests.conformance.predictions import class_prediction


def logits(first: int, last: int) -> Tensor:
    """Of five classes, without random numbers."""
    row = torch.arange(first, last).double()[:, None]
    return 2 * torch.sin(1.7 * row + 2.3 * torch.arange(5).double().square())


def labels(first: int, last: int) -> Tensor:
    """The class at which the cumulated probability passes a number of the golden-ratio sequence."""
    uniform = (0.6180339887 * torch.arange(first, last).double()) % 1
    return (logits(first, last).softmax(-1).cumsum(-1) < uniform[:, None]).sum(-1).clamp_max(4)


@pytest.mark.parametrize(
    ("score", "level", "threshold", "members"),
    [
        (LAC(), 0.6, 0.743994, [14, 13, 13, 11, 16]),
        (LAC(), 0.8, 0.852720, [18, 20, 17, 16, 20]),
        (LAC(), 0.9, 0.913063, [23, 22, 22, 21, 23]),
        (APS(), 0.6, 0.803064, [11, 10, 14, 11, 13]),
        (APS(), 0.8, 0.951141, [21, 22, 18, 14, 21]),
        (APS(), 0.9, 0.971324, [24, 24, 23, 21, 24]),
        (RAPS(0.1, 1), 0.6, 0.903064, [11, 10, 14, 11, 13]),
        (RAPS(0.1, 1), 0.8, 1.103015, [22, 22, 14, 11, 22]),
        (RAPS(0.1, 1), 0.9, 1.256128, [24, 22, 27, 28, 23]),
        (SAPS(0.2), 0.6, 0.755631, [12, 13, 13, 10, 14]),
        (SAPS(0.2), 0.8, 0.872413, [14, 21, 18, 14, 19]),
        (SAPS(0.2), 0.9, 1.086572, [31, 22, 24, 27, 26]),
    ],
)
def test_sets_are_those_of_torchcp(score: ClassScore, level: float, threshold: float, members: list[int]) -> None:
    """Its thresholds from 60 rows, and how many of 40 new sets hold each class; MAPIE has the same figures for LAC."""
    held_out, new = (class_prediction(logits(*rows).unsqueeze(0)) for rows in ((0, 60), (60, 100)))
    found = ConformalClassifier(score, confidence_level=level).conformalize(held_out, labels(0, 60)).predict_set(new)
    assert found.sum(0).tolist() == members
    assert torch.equal(found, score(new.mean, torch.ones(40, 1).double()) <= threshold + 1e-5)
    near = (score(new.mean, torch.ones(40, 1).double()) - threshold).abs()
    assert float(near.min()) > 2e-5, "the rounding of the threshold decides nothing"


X = torch.sin(1.3 * torch.arange(24).double()) + 0.1
Y = 2 * X + torch.sin(5.1 * torch.arange(24).double())
NEW = torch.tensor([-1.0, 0.2, 0.7]).double()


@pytest.mark.parametrize(
    ("level", "lower", "upper"),
    [
        (0.6, [-2.6649443, -0.4166456, 0.5201455], [-1.0822202, 1.1660785, 2.1028696]),
        (0.8, [-2.8281593, -0.5798607, 0.3569304], [-0.9190051, 1.3292936, 2.2660847]),
        (0.9, [-2.8600469, -0.6117482, 0.3250428], [-0.8871175, 1.3611812, 2.2979722]),
    ],
)
def test_split_intervals_are_those_of_mapie(level: float, lower: list[float], upper: list[float]) -> None:
    """``SplitConformalRegressor`` with absolute residuals."""
    weight = slope(X, Y)
    predictor = ConformalRegressor(AbsoluteResidual(), confidence_level=level).conformalize(of_means(weight * X), Y)
    for found, expected in zip(predictor.predict_interval(of_means(weight * NEW)), (lower, upper), strict=True):
        torch.testing.assert_close(found, torch.tensor(expected).double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("folds", "level", "lower", "upper"),
    [
        (3, 0.6, [-2.7047891, -0.3935787, 0.5355301], [-1.0935445, 1.1815576, 2.1473238]),
        (3, 0.8, [-2.8502624, -0.6030182, 0.3320715], [-0.8895369, 1.3403244, 2.3158529]),
        (3, 0.9, [-2.9615816, -0.7385900, 0.1404668], [-0.6679009, 1.4418354, 2.4079932]),
        (24, 0.6, [-2.6716916, -0.4408728, 0.4886350], [-1.0463397, 1.1844791, 2.1139869]),
        (24, 0.8, [-2.8374715, -0.5800009, 0.3564543], [-0.9183274, 1.3350047, 2.2930378]),
        (24, 0.9, [-2.8823022, -0.6966832, 0.2014482], [-0.7403271, 1.4151883, 2.3133197]),
    ],
)
def test_cross_intervals_are_those_of_mapie(folds: int, level: float, lower: list[float], upper: list[float]) -> None:
    """``CrossConformalRegressor(method="plus")`` of three folds, and of one for each row: the jackknife+."""
    of, targets, at_new = crossed(X, Y, NEW, folds)
    found = CrossConformalRegressor(confidence_level=level).conformalize(of, targets).predict_interval(at_new)
    for ours, expected in zip(found, (lower, upper), strict=True):
        torch.testing.assert_close(ours, torch.tensor(expected).double(), rtol=0, atol=1e-5)
