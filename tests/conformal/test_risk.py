"""Conformal risk control."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from pyrobnn import likelihoods
from pyrobnn.conformal import ConformalRegressor, RiskControl, missed_labels
from pyrobnn.model.likelihoods.predictions import ClassPrediction, Prediction
from tests.conformance.predictions import normal_prediction


def labels(generator: torch.Generator, num_data: int, count: int = 6) -> tuple[ClassPrediction, Tensor]:
    """Binary labels ``[N, count]`` and probabilities that are not theirs."""
    logits = 2 * torch.randn(num_data, count, generator=generator).double()
    y = (torch.rand(num_data, count, generator=generator) < logits.sigmoid()).double()
    reduction = likelihoods.Bernoulli().reduction(1, keep=True, max_bytes=1)
    shifted = logits - 0.7
    reduction.add({"log_probs": torch.stack([-shifted, shifted], -1).div(2).log_softmax(-1).unsqueeze(0)})
    found = reduction.finish(None)
    assert isinstance(found, ClassPrediction)
    return found, y


def not_covered(prediction: Prediction, targets: Tensor, threshold: float) -> Tensor:
    return ((targets - prediction.mean).abs() > threshold).double()


def test_the_loss_of_not_being_covered_gives_split_conformal_prediction() -> None:
    y = torch.randn(60, generator=torch.Generator().manual_seed(0)).double()
    held_out = normal_prediction(torch.zeros(1, 60).double(), torch.ones(1, 60).double())
    grid = y.abs().sort().values
    found = RiskControl(not_covered, risk=0.2, thresholds=grid).conformalize(held_out, y).threshold
    upper = ConformalRegressor(confidence_level=0.8).conformalize(held_out, y).predict_interval(held_out)[1]
    assert found == float(upper[0])


def test_the_expected_loss_is_at_most_the_risk() -> None:
    """400 resamples of 50 held-out and 20 new data: within three standard errors below, and not far below."""
    generator, losses = torch.Generator().manual_seed(1), []
    for _ in range(400):
        control = RiskControl(missed_labels, risk=0.15).conformalize(*labels(generator, 50))
        losses.append(missed_labels(*labels(generator, 20), control.threshold).mean())
    mean, error = float(torch.stack(losses).mean()), float(torch.stack(losses).std()) / 400**0.5
    assert mean < 0.15 + 3 * error
    assert mean > 0.15 - 2 / 51 - 3 * error


def test_by_hand() -> None:
    """Losses 1 - λ, n = 9, B = 1, α = 0.5: (9 (1 - λ) + 1) / 10 <= 0.5 from λ = 5 / 9 on."""
    prediction = normal_prediction(torch.zeros(1, 9), torch.ones(1, 9))
    control = RiskControl(lambda p, t, at: torch.full((9,), 1 - at), risk=0.5).conformalize(prediction, torch.zeros(9))
    assert control.threshold == pytest.approx(0.556)
    halves = RiskControl(lambda p, t, at: torch.full((9,), 10 * (1 - at)), risk=5.0, bound=10.0)
    assert halves.conformalize(prediction, torch.zeros(9)).threshold == pytest.approx(0.556)


def test_missed_labels_by_hand() -> None:
    prediction, _ = labels(torch.Generator().manual_seed(0), 3, 2)
    prediction.mean[..., 1] = torch.tensor([[0.9, 0.2], [0.4, 0.6], [0.1, 0.1]]).double()
    y = torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
    assert missed_labels(prediction, y, 0.5).tolist() == [0.5, 0.0, 0.0]
    assert missed_labels(prediction, y, 0.3).tolist() == [0.5, 1.0, 0.0]
    assert missed_labels(prediction, y, 0.8).tolist() == [0.0, 0.0, 0.0]


def test_a_risk_that_cannot_be_promised_is_refused_and_the_least_is_said() -> None:
    prediction, y = labels(torch.Generator().manual_seed(2), 8)
    with pytest.raises(
        ValueError, match=r"^risk: 0.1 cannot be promised from these 8 data; the least that can is 0.1111"
    ):
        RiskControl(missed_labels, risk=0.1).conformalize(prediction, y)
    RiskControl(missed_labels, risk=0.1).conformalize(*labels(torch.Generator().manual_seed(2), 9))
    with pytest.raises(ValueError, match=r"^risk: .*no loss at all would take 19 data"):
        RiskControl(missed_labels, risk=0.05, thresholds=[0.1, 0.2]).conformalize(prediction, y)


def test_a_state_dict_restores_it() -> None:
    control = RiskControl(missed_labels, risk=0.2).conformalize(*labels(torch.Generator().manual_seed(3), 40))
    other = RiskControl(missed_labels, risk=0.2)
    other.load_state_dict(control.state_dict())
    assert other.threshold == copy.deepcopy(control).threshold == control.threshold


def test_bad_input_is_refused() -> None:
    prediction, y = labels(torch.Generator().manual_seed(4), 20)
    with pytest.raises(TypeError, match=r"^loss: "):
        RiskControl("missed")  # type: ignore[arg-type]
    for risk in (0.0, -0.1, 1.0, 2.0, math.nan):
        with pytest.raises(ValueError, match=r"^risk: "):
            RiskControl(missed_labels, risk)
    with pytest.raises(ValueError, match=r"^bound: "):
        RiskControl(missed_labels, bound=0.0)
    for grid in ([], [0.2, 0.1], [0.1, 0.1], [0.0, math.inf]):
        with pytest.raises(ValueError, match=r"^thresholds: "):
            RiskControl(missed_labels, thresholds=grid)
    with pytest.raises(RuntimeError, match="not fitted"):
        _ = RiskControl(missed_labels).threshold
    with pytest.raises(TypeError, match=r"^prediction: "):
        RiskControl(missed_labels).conformalize(prediction.mean, y)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^targets: the prediction came without"):
        RiskControl(missed_labels).conformalize(prediction)
    with pytest.raises(ValueError, match=r"^targets: expected binary labels"):
        RiskControl(missed_labels).conformalize(prediction, y[:, :3])
    for loss, message in (
        (lambda p, t, at: torch.full((20,), at), "rises with the threshold"),
        (lambda p, t, at: torch.full((20,), 2.0), "losses from 0 to bound"),
        (lambda p, t, at: torch.full((20,), math.nan), "losses from 0 to bound"),
        (lambda p, t, at: torch.zeros(()), "expected shape"),
    ):
        with pytest.raises(ValueError, match=rf"^loss: .*{message}"):
            RiskControl(loss).conformalize(prediction, y)
    with pytest.raises(TypeError, match=r"^loss: expected a tensor"):
        RiskControl(lambda p, t, at: 0.1).conformalize(prediction, y)  # type: ignore[arg-type, return-value]
