from __future__ import annotations

import pytest
import torch

from pyrobnn.calibration import ClassCalibrator, TemperatureScaling
from tests.conformance.calibrator_suite import CalibratorConformance
from tests.conformance.predictions import class_prediction, overconfident


class TestTemperatureOfTheMean(CalibratorConformance):
    def make(self) -> ClassCalibrator:
        return TemperatureScaling()


class TestTemperatureOfDraws(CalibratorConformance):
    def make(self) -> ClassCalibrator:
        return TemperatureScaling(on="draws")


def labeled(num_data: int, temperature: float, num_draws: int = 1, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits ``[K, N, 5]`` and labels that the mean of their scaled draws is right about."""
    generator = torch.Generator().manual_seed(seed)
    base, *spread = 4 * torch.randn(num_draws + 1, num_data, 5, generator=generator, dtype=torch.float64)
    logits = base + 0.3 * torch.stack(spread)
    probs = (logits / temperature).softmax(-1).mean(0)
    return logits, torch.multinomial(probs, 1, generator=generator).squeeze(-1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5, 8.0])
@pytest.mark.parametrize(("on", "num_draws"), [("mean", 1), ("draws", 1), ("draws", 3)])
def test_a_known_temperature_is_recovered(temperature: float, on: str, num_draws: int) -> None:
    """Within 2 %, from 50,000 labels (the estimate's standard error is at most 0.7 %)."""
    logits, labels = labeled(50_000, temperature, num_draws)
    found = TemperatureScaling(on=on).fit(class_prediction(logits), labels)  # type: ignore[arg-type]
    assert float(found.temperature) == pytest.approx(temperature, rel=0.02)


def test_the_derivative_is_zero_at_the_minimum() -> None:
    """At the maximum-likelihood T the mean logit of the label is that expected under the calibrated probabilities."""
    logits, labels = labeled(300, 2.0)
    prediction = class_prediction(logits)
    scaler = TemperatureScaling().fit(prediction, labels)
    observed = logits[0].gather(-1, labels[:, None]).mean()
    expected = (scaler(prediction).mean * logits[0]).sum(-1).mean()
    torch.testing.assert_close(observed, expected, rtol=0, atol=1e-5)


def test_votes_and_predicted_classes_stay() -> None:
    prediction, labels = overconfident(0)
    of_mean = TemperatureScaling().fit(prediction, labels)(prediction)
    assert torch.equal(of_mean.predicted, prediction.predicted)
    of_draws = TemperatureScaling(on="draws").fit(prediction, labels)(prediction)
    assert of_draws.draws is not None and prediction.draws is not None
    assert torch.equal(of_draws.draws.argmax(-1), prediction.draws.argmax(-1))
    assert torch.equal(of_draws.variation_ratio, prediction.variation_ratio)  # type: ignore[arg-type]


def test_a_mean_and_its_draws_are_scaled_alike_only_if_there_is_one_draw() -> None:
    logits, labels = labeled(500, 2.0)
    one = class_prediction(logits)
    by = {on: TemperatureScaling(on=on).fit(one, labels)(one) for on in ("mean", "draws")}  # type: ignore[arg-type]
    torch.testing.assert_close(by["mean"].mean, by["draws"].mean)
    several = class_prediction(labeled(500, 2.0, 4)[0])
    means = []
    for on in ("mean", "draws"):
        scaler = TemperatureScaling(on=on)  # type: ignore[arg-type]
        scaler.store(1, temperature=torch.tensor(2.0))
        means.append(scaler(several).mean)
    assert several.draws is not None
    by_hand = several.draws.sqrt() / several.draws.sqrt().sum(-1, keepdim=True)
    torch.testing.assert_close(means[1], by_hand.mean(0))
    root = several.mean.sqrt()
    torch.testing.assert_close(means[0], root / root.sum(-1, keepdim=True))
    assert not torch.allclose(means[0], means[1], atol=1e-3)


def test_scaling_twice_is_scaling_by_the_product() -> None:
    prediction, _ = overconfident(0, 50)
    for on in ("mean", "draws"):
        scalers = [TemperatureScaling(on=on) for _ in range(3)]  # type: ignore[arg-type]
        for scaler, value in zip(scalers, (2.0, 3.0, 6.0), strict=True):
            scaler.store(1, temperature=torch.tensor(value, dtype=torch.float64))
        torch.testing.assert_close(scalers[1](scalers[0](prediction)).mean, scalers[2](prediction).mean)


def test_where_no_temperature_is_best_it_stays_one() -> None:
    """All right: the colder the better. All wrong: the hotter the better."""
    logits = torch.tensor([[[2.0, 0.0], [0.0, 3.0], [1.0, 0.0]]])
    prediction = class_prediction(logits)
    for labels, what in (([0, 1, 0], "sharper"), ([1, 0, 1], "softer")):
        with pytest.warns(UserWarning, match=rf"the {what} the predictions"):
            scaler = TemperatureScaling().fit(prediction, torch.tensor(labels))
        assert float(scaler.temperature) == 1.0


def test_one_class_is_enough_and_draws_must_be_kept() -> None:
    logits, _ = labeled(100, 1.0)
    two = torch.arange(100) % 2  # of five
    TemperatureScaling().fit(class_prediction(logits), two)
    with pytest.raises(ValueError, match=r"^prediction: on='draws' needs"):
        TemperatureScaling(on="draws").fit(class_prediction(logits, keep=False), torch.zeros(100).long())
    with pytest.raises(ValueError, match=r"^on: expected 'mean' or 'draws'"):
        TemperatureScaling(on="logits")  # type: ignore[arg-type]
