"""Scores of predictions of real-valued targets: of one prediction, and of a model over a loader."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn import likelihoods, metrics
from pyrobnn.metrics import RegressionScores
from pyrobnn.prediction import regression_scores

N = 40
torch.manual_seed(0)
X, WEIGHT = torch.randn(N, 2), torch.rand(N) + 0.1
LEVELS = [0.5, 0.8, 0.9]


def built(likelihood: Any, outputs: int) -> Any:
    torch.manual_seed(1)
    model = pb.SupervisedModel(nn.Linear(2, outputs), likelihood, dist.Normal(0.0, 1.0), num_data=N)
    return model, pb.guides.MeanField(model, init_scale=0.2)


def loader(y: Tensor, size: int = 13) -> list[tuple[Tensor, Tensor, Tensor]]:
    return list(zip(X.split(size), y.split(size), WEIGHT.split(size), strict=True))


def test_scores_are_those_of_the_single_functions() -> None:
    model, guide = built(likelihoods.HeteroscedasticNormal(), 2)
    y = torch.randn(N, 1)
    prediction = pb.predict(model, guide, X, 6, seed=0)
    found = regression_scores(prediction, y, WEIGHT, levels=LEVELS, level=0.8, num_bins=5)
    ends = [prediction.interval(level) for level in LEVELS]
    lower, upper = (torch.stack(part) for part in zip(*ends, strict=True))
    below, at = prediction.pit(y)
    double = WEIGHT.double()
    expected = {
        "num_targets": N,
        "rmse": metrics.rmse(prediction.mean, y, weight=WEIGHT),
        "r2": metrics.r2(prediction.mean, y, weight=WEIGHT),
        "nll": -(double * prediction.log_prob(y)).sum() / double.sum(),
        "crps": (double * prediction.crps(y)[:, 0]).sum() / double.sum(),
        "level": 0.8,
        "picp": metrics.interval_coverage(lower[1], upper[1], y, weight=WEIGHT),
        "mpiw": metrics.interval_width(lower[1], upper[1], weight=WEIGHT),
        "interval_score": metrics.interval_score(lower[1], upper[1], y, 0.8, weight=WEIGHT),
        "cwce": metrics.cwce(lower, upper, y, LEVELS, weight=WEIGHT),
        "epiw": metrics.epiw(lower, upper, weight=WEIGHT),
        "r_cwce": metrics.r_cwce(prediction.mean, lower, upper, y, LEVELS, weight=WEIGHT),
        "pinball": sum(
            metrics.pinball(end[j], y, (1 + sign * level) / 2, weight=WEIGHT)
            for sign, end in ((-1, lower), (1, upper))
            for j, level in enumerate(LEVELS)
        )
        / 6,
    }
    assert found.as_dict() == pytest.approx({name: float(value) for name, value in expected.items()}, rel=1e-5)
    histogram = metrics.pit_histogram(at, 5, below=below, weight=WEIGHT)
    torch.testing.assert_close(found.pit.share, histogram.share, rtol=1e-5, atol=1e-6)
    assert found.pit.count == pytest.approx(histogram.count, rel=1e-5)
    quantiles = metrics.quantile_calibration(at, weight=WEIGHT)
    torch.testing.assert_close(found.quantiles.observed, quantiles.observed, rtol=1e-5, atol=1e-6)
    assert "rmse" in str(found)


@pytest.mark.parametrize(
    ("likelihood", "outputs", "y"),
    [
        (likelihoods.Normal(0.5), 1, torch.randn(N, 1)),
        (likelihoods.HeteroscedasticNormal(missing=True), 4, torch.randn(N, 2)),
        (likelihoods.Poisson(), 1, torch.poisson(torch.ones(N, 1))),
        (likelihoods.MixtureDensity(2), 6, torch.randn(N, 1)),
    ],
)
def test_batches_give_what_all_data_give(likelihood: Any, outputs: int, y: Tensor) -> None:
    """Sums, whatever the batches; the energy score of two targets is sampled, with an error below 5 % (z > 4.5)."""
    if likelihood.missing:
        y = y.clone()
        y[3, 0] = y[5] = torch.nan
    model, guide = built(likelihood, outputs)
    together = regression_scores(pb.predict(model, guide, X, 5, seed=0), y, WEIGHT, num_targets=500)
    torch.manual_seed(2)
    by_batch = pb.regression_report(model, guide, loader(y), 5, num_targets=500, seed=0)
    expected, found = together.as_dict(), by_batch.as_dict()
    assert found.keys() == expected.keys()
    assert ("energy" in found) == (y.shape[1] > 1)
    if "energy" in found:
        assert found.pop("energy") == pytest.approx(expected.pop("energy"), rel=0.05)
    assert found == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(by_batch.pit.share, together.pit.share)
    torch.testing.assert_close(by_batch.coverage, together.coverage)
    assert by_batch.num_targets == int((~y.isnan()).sum())


def test_what_was_not_observed_enters_no_score() -> None:
    """Rows without any target, and targets of several of which one is missing."""
    model, guide = built(likelihoods.Normal(0.5, missing=True), 1)
    y = torch.randn(N, 1)
    some = torch.where(torch.arange(N)[:, None] < 25, y, torch.nan)
    prediction = pb.predict(model, guide, X, 5, seed=0)
    first = pb.predict(model, guide, X[:25], 5, seed=0)
    assert regression_scores(prediction, some).as_dict() == pytest.approx(
        regression_scores(first, y[:25]).as_dict(), rel=1e-5
    )


class WithoutCdf(likelihoods.Likelihood):
    """Gaussian noise whose marginals are not declared."""

    def parameters_of(self, outputs: Tensor) -> dict[str, Tensor]:
        return {"loc": outputs}

    def distribution(self, parameters: Any) -> Any:
        return dist.Normal(parameters["loc"], 1.0)

    def marginal(self, parameters: Any) -> Any:
        raise NotImplementedError


def test_without_a_cdf_targets_are_sampled() -> None:
    """4,000 targets of each input; scores within 3 % of those of the same density with a cdf."""
    y = torch.randn(N, 1)
    scores = []
    for likelihood in (WithoutCdf(), likelihoods.Normal(1.0)):
        model, guide = built(likelihood, 1)
        torch.manual_seed(3)
        prediction = pb.predict(model, guide, X, 5, seed=0)
        scores.append(regression_scores(prediction, y, num_targets=4000))
    for name in ("crps", "interval_score", "epiw", "mpiw", "pinball", "nll", "rmse"):
        assert getattr(scores[0], name) == pytest.approx(getattr(scores[1], name), rel=0.03)
    assert (scores[0].quantiles.observed - scores[1].quantiles.observed).abs().max() < 0.06


def test_constant_targets_leave_r2_undefined() -> None:
    model, guide = built(likelihoods.Normal(0.5), 1)
    prediction = pb.predict(model, guide, X, 5, seed=0)
    with pytest.warns(UserWarning, match="y: R² and R-CWCE are undefined, since a target is constant"):
        found = regression_scores(prediction, torch.full((N, 1), 0.1))
    assert math.isnan(found.r2)
    assert math.isnan(found.r_cwce)
    assert math.isfinite(found.cwce)


def test_raw_arrays_stream() -> None:
    """Means and ends of intervals of any model; torchmetrics' ``compute`` has the single numbers."""
    y, mean = torch.randn(N), torch.randn(N)
    lower, upper = (mean - 1).expand(2, N), (mean + 1).expand(2, N)
    scores = RegressionScores([0.5, 0.8])
    for rows in torch.arange(N).split(7):
        scores.update(mean[rows], y[rows], lower[:, rows], upper[:, rows])
    found = scores.compute()
    assert float(found["rmse"]) == pytest.approx(float(metrics.rmse(mean, y)))
    assert float(found["r2"]) == pytest.approx(float(metrics.r2(mean, y)), abs=1e-6)
    assert float(found["cwce"]) == pytest.approx(float(metrics.cwce(lower, upper, y, [0.5, 0.8])))
    report = scores.report()
    assert report.crps is report.nll is report.pit is report.energy is None
    scores.reset()
    with pytest.raises(ValueError, match="y: no target was observed"):
        scores.report()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y": torch.full((4,), torch.nan)}, "y: expected finite"),
        ({"y": torch.zeros(4, 1)}, r"y: expected shape \[4\]|observed"),
        ({"lower": torch.zeros(3, 4)}, r"lower: expected shape \[2, 4\]"),
        ({"lower": torch.full((2, 4), 2.0)}, "lower: expected lower <= upper"),
        ({"crps": torch.zeros(3)}, r"crps: expected shape \[4\]"),
        ({"log_prob": torch.zeros(4, 1)}, r"log_prob: expected shape \[4\]"),
        ({"energy": torch.full((4,), torch.nan)}, "energy: expected no NaN"),
        ({"pit": torch.full((4,), 1.2)}, "pit: expected probabilities, got values from 1.2 to 1.2"),
        ({"pit": torch.full((4,), 0.2), "below": torch.full((4,), 0.3)}, "below: expected .* of at most pit"),
        ({"weight": torch.zeros(4)}, "weight: .*only zeros"),
    ],
)
def test_raw_arrays_that_do_not_fit_are_refused_and_not_counted(changes: dict[str, Tensor], message: str) -> None:
    scores, refused = RegressionScores([0.5, 0.8]), RegressionScores([0.5, 0.8])
    y = torch.tensor([0.0, 0.5, 1.0, 2.0])
    given = {"mean": torch.zeros(4), "y": y, "lower": torch.zeros(2, 4), "upper": torch.ones(2, 4)}
    with pytest.raises(ValueError, match=message):
        refused.update(**given | changes)
    for one in (scores, refused):
        one.update(**given, pit=y / 4)
    assert refused.compute() == scores.compute()
    assert torch.equal(refused.report().pit.share, scores.report().pit.share)  # type: ignore[union-attr]


def test_targets_of_another_shape_than_before_are_refused() -> None:
    scores = RegressionScores([0.5])
    scores.update(torch.zeros(4), torch.ones(4), torch.zeros(1, 4), torch.ones(1, 4))
    with pytest.raises(ValueError, match=r"y: .*as in earlier batches, got \[2\]"):
        scores.update(torch.zeros(4, 2), torch.ones(4, 2), torch.zeros(1, 4, 2), torch.ones(1, 4, 2))


def test_wrong_calls_are_refused() -> None:
    model, guide = built(likelihoods.Normal(0.5), 1)
    for data, message in [(X, "data: expected a loader"), ([], "data: it holds no inputs"), ([X], "data: ")]:
        with pytest.raises((TypeError, ValueError), match=message):
            pb.regression_report(model, guide, data, 3)
    with pytest.raises(ValueError, match="level: expected one of levels"):
        pb.regression_report(model, guide, loader(X[:, :1]), 3, level=0.77)
    classes, posterior = built(likelihoods.Categorical(), 3)
    with pytest.raises(TypeError, match="prediction: expected a prediction of real-valued targets"):
        pb.regression_report(classes, posterior, [(X, torch.zeros(N, dtype=torch.long))], 3)
