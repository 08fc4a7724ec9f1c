"""CRPS of mixtures over draws: closed forms, quadrature, sums over counts, and what predictions do with them."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn import likelihoods, metrics
from pyrobnn.calibration import QuantileRecalibration
from pyrobnn.distributions import with_cdf
from pyrobnn.model.likelihoods.crps import mixture_crps, points_per_draw
from pyrobnn.model.likelihoods.gaussian_prediction import GaussianPrediction

GENERATOR = torch.Generator().manual_seed(0)
LOC, SCALE = torch.randn(3, 4, generator=GENERATOR).double(), torch.rand(3, 4, generator=GENERATOR).double() + 0.2
Y = torch.tensor([-2.0, 0.1, 0.8, 30.0], dtype=torch.float64)


def with_other_type(each: Any) -> Any:
    """The same distribution of a class whose closed form is not known, so that quadrature is used."""
    kind = type(each)
    each.__class__ = type("Other", (kind,), {})
    return each


@pytest.mark.parametrize("kind", [dist.Normal, dist.Laplace, dist.LogNormal])
def test_quadrature_agrees_with_closed_forms(kind: Any) -> None:
    closed, other = kind(LOC, SCALE), with_other_type(kind(LOC, SCALE))
    inside = 1.0 if kind is dist.LogNormal else 0.0
    assert points_per_draw(closed) == 1 < points_per_draw(other)
    torch.testing.assert_close(mixture_crps(other, Y, inside), mixture_crps(closed, Y, inside), rtol=1e-7, atol=1e-7)


def test_single_distributions_are_those_of_scoringrules() -> None:
    rules = pytest.importorskip("scoringrules")
    loc, scale = LOC[:1], SCALE[:1]
    df, counts = 2.1 + 4.0 * scale, Y.abs().floor()
    rate = 10.0 * scale
    for found, expected in (
        (
            mixture_crps(with_cdf.StudentT(df, loc, scale), Y, 0.0),
            rules.crps_t(Y.numpy(), df[0].numpy(), loc[0].numpy(), scale[0].numpy()),
        ),
        (
            mixture_crps(dist.Gamma(scale, rate), Y.abs(), 1.0),
            rules.crps_gamma(Y.abs().numpy(), scale[0].numpy(), rate[0].numpy()),
        ),
        (mixture_crps(with_cdf.Poisson(rate.log()), counts, 0.0), rules.crps_poisson(counts.numpy(), rate[0].numpy())),
        (
            mixture_crps(with_cdf.NegativeBinomial(rate, logits=loc), counts, 0.0),
            rules.crps_negbinom(counts.numpy(), rate[0].numpy(), (-loc[0]).sigmoid().numpy()),
        ),
    ):
        torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-6, atol=1e-7)


def test_counts_are_summed() -> None:
    """Two Poisson draws: the sum of squared errors of the mixture's distribution function over 0 to 199."""
    rate, y = torch.tensor([[0.5, 20.0], [4.0, 40.0]]).double(), torch.tensor([3.0, 75.0]).double()
    k = torch.arange(200, dtype=torch.float64)[:, None]
    cdf = torch.special.gammaincc(k.unsqueeze(1) + 1.0, rate).mean(1)
    expected = (cdf - (k >= y).double()).square().sum(0)
    torch.testing.assert_close(mixture_crps(with_cdf.Poisson(rate.log()), y, 0.0), expected, rtol=1e-8, atol=1e-8)


def predicted(likelihood: Any, outputs: int, targets: Tensor | None = None) -> Any:
    torch.manual_seed(0)
    model = pb.SupervisedModel(nn.Linear(2, outputs), likelihood, dist.Normal(0.0, 1.0), num_data=8)
    return pb.predict(model, pb.guides.MeanField(model, init_scale=0.3), torch.randn(6, 2), 5, seed=0)


@pytest.mark.parametrize(
    ("likelihood", "outputs"),
    [
        (likelihoods.Normal(0.3), 1),
        (likelihoods.HeteroscedasticNormal(), 4),
        (likelihoods.MixtureDensity(2), 6),
        (likelihoods.Laplace(), 2),
        (likelihoods.LogNormal(), 2),
        (likelihoods.StudentT(), 2),
        (likelihoods.Poisson(), 1),
        (likelihoods.ZeroInflatedPoisson(), 2),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, int) else "",
)
def test_predictions_score_as_their_samples_do(likelihood: Any, outputs: int) -> None:
    """The fair score of 4,000 targets from the mixture; its error is below 0.1 of the mixture's spread (z > 4.5)."""
    prediction = predicted(likelihood, outputs)
    torch.manual_seed(1)
    y, draws = prediction.sample(1)[0], prediction.sample(4000)
    found, expected = prediction.crps(y), metrics.crps(draws, y, reduction="none")
    assert found.shape == y.shape
    assert found.dtype == torch.float32
    assert ((found - expected).abs() < 0.1 * draws.std(0) + 1e-6).all()
    below, at = prediction.pit(y)
    share = (draws <= y).float().mean(0)
    assert ((at - share).abs() < 4.5 * 0.5 / 4000**0.5).all()
    is_count = likelihood.distribution(prediction.parameters).support.is_discrete
    assert torch.equal(below, at) != is_count


def test_missing_targets_score_zero_and_leave_the_others_alone() -> None:
    prediction = predicted(likelihoods.HeteroscedasticNormal(missing=True), 4)
    y = torch.randn(6, 2)
    some = y.clone()
    some[1, 0] = some[4] = torch.nan
    expected = prediction.crps(y).masked_fill(some.isnan(), 0.0)
    torch.testing.assert_close(prediction.crps(some), expected)


def test_a_gaussian_prediction_has_the_closed_form() -> None:
    mean, covariance = torch.tensor([[0.5], [2.0]]), torch.tensor([[[4.0]], [[0.25]]])
    total = covariance[..., 0]
    likelihood = likelihoods.Normal(0.1, missing=True)
    prediction = GaussianPrediction(mean, total, total, total, 3, likelihood, covariance=covariance)
    y = torch.tensor([[1.5], [torch.nan]])
    expected = metrics.gaussian_crps(mean[:1], total[:1].sqrt(), y[:1])
    torch.testing.assert_close(prediction.crps(y), torch.stack([expected, torch.tensor(0.0)])[:, None])


def test_a_recalibrated_prediction_is_scored_as_such() -> None:
    """Against the fair score of 4,000 of its own targets; its error is below 0.1 of their spread (z > 4.5)."""
    torch.manual_seed(0)
    x = torch.randn(60, 2)
    model = pb.SupervisedModel(nn.Linear(2, 1), likelihoods.Normal(0.3), dist.Normal(0.0, 1.0), num_data=60)
    prediction = pb.predict(model, pb.guides.MeanField(model), x, 4, seed=0)
    y = prediction.mean + 2.0 * torch.randn(60, 1)
    recalibrated = QuantileRecalibration(5).fit(prediction, y)(prediction)
    draws = recalibrated.sample(4000)
    found, expected = recalibrated.crps(y), metrics.crps(draws, y, reduction="none")
    assert ((found - expected).abs() < 0.1 * draws.std(0)).all()
    assert (found - prediction.crps(y)).abs().max() > 0.05


def test_classes_have_no_crps() -> None:
    prediction = predicted(likelihoods.Categorical(), 3)
    with pytest.raises(ValueError, match="crps: it is defined for real-valued targets"):
        prediction.crps(torch.zeros(6))


def test_targets_of_another_shape_are_refused() -> None:
    prediction = predicted(likelihoods.Normal(0.3), 1)
    for score in (prediction.crps, prediction.pit):
        with pytest.raises(ValueError, match=r"y: expected targets of shape \(6, 1\), got \(6,\)"):
            score(torch.zeros(6))
