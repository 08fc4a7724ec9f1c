"""Regions of high predictive density: coverage, the normal's and a mixture's ends, and refusals."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyrobnn.conformal import ConformalRegressor, DensityScore
from tests.conformal.test_real import Intervals, measured
from tests.conformance.predictions import class_prediction, normal_prediction


class TestDensity(Intervals):
    score = DensityScore()


def wide(loc: list[float], scale: list[float]) -> tuple[Tensor, Tensor]:
    """Draws of one input."""
    return torch.tensor(loc).double().unsqueeze(1), torch.tensor(scale).double().unsqueeze(1)


def test_a_normal_has_a_symmetric_interval() -> None:
    """The density falls to that at two standard deviations, far out and near the peak."""
    prediction = normal_prediction(*wide([1.0], [0.5]))
    normal = torch.distributions.Normal(1.0, 0.5)
    for deviations in (0.1, 2.0, 6.0):
        limit = -normal.log_prob(torch.tensor(1.0 + deviations * 0.5)).double().reshape(1)
        low, high = DensityScore().interval(prediction, limit)
        assert float(low) == pytest.approx(1.0 - deviations * 0.5, abs=1e-5)
        assert float(high) == pytest.approx(1.0 + deviations * 0.5, abs=1e-5)


def test_two_peaks_are_held_by_one_interval() -> None:
    """From the left of the first to the right of the second; a peak that is too low is left out."""
    prediction = normal_prediction(*wide([-3.0, 3.0], [0.5, 0.5]))
    limit = DensityScore().score(prediction, torch.tensor([3.5]).double())
    low, high = DensityScore().interval(prediction, limit)
    assert (float(low), float(high)) == pytest.approx((-3.5, 3.5), abs=1e-4)
    uneven = normal_prediction(*wide([-3.0, 3.0, 3.0], [4.0, 0.5, 0.5]))
    limit = DensityScore().score(uneven, torch.tensor([3.5]).double())
    low, high = DensityScore().interval(uneven, limit)
    assert (float(low), float(high)) == pytest.approx((2.5, 3.5), abs=0.05)


def test_limits_that_hold_nothing_or_everything() -> None:
    prediction = normal_prediction(*wide([1.0], [0.5]))
    low, high = DensityScore().interval(prediction, torch.tensor([-100.0]).double())
    assert float(low) == float(high) == pytest.approx(1.0, abs=0.02)
    low, high = DensityScore().interval(prediction, torch.tensor([torch.inf]).double())
    assert (float(low), float(high)) == (-torch.inf, torch.inf)


def test_what_has_no_density_of_one_target_is_refused() -> None:
    generator = torch.Generator().manual_seed(0)
    classes = class_prediction(torch.rand(3, 5, 4, generator=generator).softmax(-1))
    with pytest.raises(TypeError, match="needs one of real-valued targets"):
        DensityScore().score(classes, torch.zeros(5))
    two = normal_prediction(torch.zeros(3, 5, 2), torch.ones(3, 5, 2))
    with pytest.raises(ValueError, match=r"one target per input, got 2.*PITScore"):
        DensityScore().score(two, torch.zeros(5, 2))
    with pytest.raises(ValueError, match="num_points"):
        DensityScore(0)


def test_it_serves_the_regressor() -> None:
    prediction, y = measured(torch.Generator().manual_seed(0), 200)
    low, high = ConformalRegressor(DensityScore()).conformalize(prediction, y).predict_interval(prediction)
    assert bool((low < high).all())
