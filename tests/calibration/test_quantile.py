"""Quantile recalibration."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pyrobnn import likelihoods
from pyrobnn.calibration import QuantileRecalibration, RecalibratedPrediction
from pyrobnn.model.likelihoods import Likelihood
from pyrobnn.model.likelihoods.gaussian_prediction import GaussianPrediction
from pyrobnn.model.likelihoods.moment_prediction import MomentPrediction
from pyrobnn.model.likelihoods.predictions import Prediction
from tests.conformance.predictions import class_prediction, normal_prediction

LOC, SCALE = 1.0, 2.0  # of the targets, where N(0, 1) is predicted


def shifted(seed: int, num_data: int = 5000, draws: int = 1) -> tuple[MomentPrediction, Tensor]:
    """Predictions N(0, 1) of targets of N(1, 4)."""
    generator = torch.Generator().manual_seed(seed)
    zeros = torch.zeros(draws, num_data, dtype=torch.float64)
    y = LOC + SCALE * torch.randn(num_data, generator=generator, dtype=torch.float64)
    return normal_prediction(zeros, zeros + 1), y


def mixture(num_data: int = 5) -> MomentPrediction:
    """Two narrow draws far apart and a wide one; means differ between inputs."""
    loc = torch.tensor([[-4.0], [0.0], [6.0]], dtype=torch.float64) + torch.arange(num_data)
    return normal_prediction(loc, torch.tensor([[0.1], [1.0], [0.1]], dtype=torch.float64).expand(3, num_data))


def uneven(seed: int = 0) -> QuantileRecalibration:
    """A curve far from the diagonal: targets of the mixture with the tails thinned out."""
    torch.manual_seed(seed)
    held_out = mixture(2000)
    y = held_out.sample(1)[0]
    kept = torch.rand(2000) < held_out.cdf(y)
    return QuantileRecalibration(8).fit(held_out.rows(kept), y[kept])


def test_what_was_trained_on_stays_known_and_what_is_missing_has_no_probability() -> None:
    calibrator = uneven()
    assert not calibrator(mixture()).is_of_training_data
    assert calibrator(replace(mixture(), is_of_training_data=True)).is_of_training_data
    found = calibrator(mixture()).cdf(torch.tensor([torch.nan, 0.0, 1.0, 2.0, 3.0], dtype=torch.float64))
    assert found.isnan().tolist() == [True, False, False, False, False]


def test_a_wrong_location_and_scale_are_mended() -> None:
    """5,000 held-out data and as many new ones; in each twentieth a share of 1/20 within four standard errors."""
    calibrator = QuantileRecalibration().fit(*shifted(0))
    new, y = shifted(1)
    found = calibrator(new)
    assert isinstance(found, RecalibratedPrediction)
    counts = torch.histc(found.cdf(y), 20, 0.0, 1.0) / len(y)
    error = math.sqrt(2 * 0.05 * 0.95 / len(y))  # of the curve and of the new data
    assert float((counts - 0.05).abs().max()) < 4 * error
    low, high = found.interval(0.9)
    assert float(((y > low) & (y < high)).double().mean()) == pytest.approx(0.9, abs=4 * math.sqrt(2 * 0.09 / len(y)))
    assert float(found.mean[0]) == pytest.approx(LOC, abs=0.1)  # pieces of a twentieth have coarse tails
    assert float(found.std[0]) == pytest.approx(SCALE, rel=0.1)
    assert float(found.log_prob(y).mean()) > float(new.log_prob(y).mean()) + 0.5


def test_at_the_levels_of_the_curve_the_share_is_exact_for_exchangeable_data() -> None:
    """j / m over 3,000 resamples of 19 held-out data and one new one, within four standard errors."""
    resamples = 3000
    prediction, y = shifted(2, 20 * resamples)
    u = torch.special.ndtr(y).reshape(resamples, 20)
    columns = normal_prediction(torch.zeros(1, 19, resamples).double(), torch.ones(1, 19, resamples).double())
    calibrator = QuantileRecalibration(4).fit(columns, y.reshape(resamples, 20)[:, :19].T.contiguous())
    assert calibrator.levels.shape == (5, resamples)
    for piece in (1, 2, 3):
        share = float((u[:, 19] <= calibrator.levels[piece]).double().mean())
        assert abs(share - piece / 4) < 4 * math.sqrt(piece / 4 * (1 - piece / 4) / resamples)
    assert len(prediction) == 20 * resamples


def test_what_is_calibrated_stays() -> None:
    """Each level is within four standard errors of the diagonal, n = 5,000."""
    prediction, y = shifted(3)
    levels = QuantileRecalibration(10).fit(prediction, (y - LOC) / SCALE).levels
    even = torch.linspace(0, 1, 11, dtype=torch.float64)
    assert bool(((levels - even).abs() <= 4 * (even * (1 - even) / len(y)).sqrt() + 1e-12).all())


def test_quantile_and_cdf_are_inverse_and_the_density_is_their_derivative() -> None:
    found = uneven()(mixture())
    q = torch.tensor([0.001, 0.03, 0.26, 0.55, 0.77, 0.999], dtype=torch.float64)
    y = found.quantile(q)
    torch.testing.assert_close(found.cdf(y), q[:, None].expand(6, 5), rtol=0, atol=1e-9)
    torch.testing.assert_close(found.quantile(0.26), y[2])
    step = 1e-6
    for at in (y[1], y[3], y[4]):
        slope = (found.cdf(at + step) - found.cdf(at - step)) / (2 * step)
        torch.testing.assert_close(found.log_prob(at).exp(), slope, rtol=1e-5, atol=0)


def test_moments_are_those_of_the_distribution() -> None:
    """Against the midpoint rule over 20,000 quantiles."""
    found = uneven()(mixture())
    levels = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    y = found.quantile(levels)
    torch.testing.assert_close(found.mean, y.mean(0), rtol=0, atol=2e-3)
    torch.testing.assert_close(found.total, y.var(0, correction=0), rtol=2e-3, atol=0)
    torch.testing.assert_close(found.total, found.aleatoric + found.epistemic)
    before = mixture()
    torch.testing.assert_close(found.epistemic / found.total, before.epistemic / before.total)
    assert found.draws is None and found.noise is None


def test_a_straight_curve_changes_nothing() -> None:
    calibrator = QuantileRecalibration(2)
    calibrator.store(1, levels=torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
    before, after = mixture(), calibrator(mixture())
    torch.testing.assert_close(after.mean, before.mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(after.total, before.total, rtol=1e-6, atol=0)
    y = before.quantile(0.3)
    torch.testing.assert_close(after.quantile(0.3), y)
    torch.testing.assert_close(after.log_prob(y), before.log_prob(y))


def test_samples_follow_it_and_keep_the_dependence_of_targets() -> None:
    """20,000 draws of two targets that are equal up to noise: Kolmogorov distance below 1.95 / sqrt(n), p = 0.001."""
    torch.manual_seed(0)
    shared = torch.randn(20, 1, 1, dtype=torch.float64)
    prediction = normal_prediction(shared.expand(20, 1, 2), torch.full((20, 1, 2), 0.01).double())
    calibrator = QuantileRecalibration(2)
    calibrator.store(1, levels=torch.tensor([[0.0, 0.0], [0.2, 0.5], [1.0, 1.0]], dtype=torch.float64))
    found = calibrator(prediction)
    y = found.sample(20_000)
    assert y.shape == (20_000, 1, 2)
    u = found.cdf(y)[:, 0].sort(0).values
    even = torch.arange(1, 20_001, dtype=torch.float64)[:, None] / 20_000
    assert float((u - even).abs().max()) < 1.95 / math.sqrt(20_000)
    ranks = y[:, 0].argsort(0).argsort(0).double()
    assert float(torch.corrcoef(ranks.T)[0, 1]) > 0.99
    torch.testing.assert_close(found.log_prob(y[0]), prediction.log_prob(y[0]) + _log_slopes(prediction, y[0]))


def _log_slopes(prediction: MomentPrediction, y: Tensor) -> Tensor:
    u = prediction.cdf(y)[:, 0]
    return torch.where(u < 0.2, 0.5 / 0.2, 0.5 / 0.8).log()


def of(likelihood: Likelihood, num_data: int = 200, draws: int = 3, **parameters: float) -> MomentPrediction:
    reduction = likelihood.reduction(draws, keep=True, max_bytes=1)
    reduction.add({name: torch.full((draws, num_data), value).double() for name, value in parameters.items()})
    found = reduction.finish(None)
    assert isinstance(found, MomentPrediction)
    return found


def test_positive_targets_stay_positive() -> None:
    prediction = of(likelihoods.LogNormal(), log_loc=0.0, log_scale=0.5)
    torch.manual_seed(0)
    y = (0.3 + torch.randn(200, dtype=torch.float64)).exp()
    found = QuantileRecalibration(5).fit(prediction, y)(prediction)
    assert float(found.quantile(1e-6).min()) > 0 and float(found.sample(10).min()) > 0
    levels = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    assert float(found.mean[0]) == pytest.approx(float(found.quantile(levels)[:, 0].mean()), rel=1e-2)


def test_missing_targets_are_left_out() -> None:
    prediction, y = shifted(4, 500)
    prediction = replace(prediction, likelihood=likelihoods.Normal(missing=True))
    gone = torch.arange(500) % 3 == 0
    kept = normal_prediction(torch.zeros(1, 333).double(), torch.ones(1, 333).double())
    expected = QuantileRecalibration(5).fit(kept, y[~gone])
    calibrator = QuantileRecalibration(5).fit(prediction, y.masked_fill(gone, math.nan))
    torch.testing.assert_close(calibrator.levels, expected.levels)
    log_prob = calibrator(prediction).log_prob(y.masked_fill(gone, math.nan))
    assert bool((log_prob[gone] == 0).all()) and bool((log_prob[~gone] != 0).all())


def test_it_is_a_pure_function_whose_state_can_be_saved_and_whose_predictions_can_be_joined() -> None:
    calibrator, given = uneven(), mixture()
    before = copy.deepcopy(given)
    found = calibrator(given)
    assert torch.equal(given.mean, before.mean) and torch.equal(given.total, before.total)
    fresh = QuantileRecalibration(8)
    fresh.load_state_dict(calibrator.state_dict())
    assert torch.equal(fresh(given).mean, found.mean)
    joined = Prediction.join([found, found])
    torch.testing.assert_close(joined.quantile(0.2), torch.cat([found.quantile(0.2)] * 2))
    meters = found.rescaled(torch.tensor(3.0), torch.tensor(10.0))
    torch.testing.assert_close(meters.quantile(0.2), 3 + 10 * found.quantile(0.2))


def test_it_has_the_prediction_s_precision() -> None:
    prediction, y = shifted(5, 100)
    prediction = normal_prediction(torch.zeros(1, 100), torch.ones(1, 100))
    found = QuantileRecalibration(5).fit(prediction, y.float())(prediction)
    assert {value.dtype for value in (found.mean, found.total, found.quantile(0.5), found.cdf(y.float()))} == {
        torch.float32
    }
    assert found.sample(3).dtype == found.log_prob(y.float()).dtype == torch.float32


def test_targets_beyond_all_predictions_have_finite_density_elsewhere() -> None:
    """Probabilities that are 0 or 1 in floating point make no piece empty."""
    prediction = normal_prediction(torch.zeros(1, 40).double(), torch.ones(1, 40).double())
    found = QuantileRecalibration(5).fit(prediction, torch.full((40,), 100.0).double())(prediction)
    assert bool(found.log_prob(torch.zeros(40).double()).isfinite().all())
    assert bool(found.mean.isfinite().all()) and float(found.mean[0]) > 1


def test_a_gaussian_predictive_needs_no_draws() -> None:
    """The closed form of a linearized posterior gives what the mixture of one draw gives."""
    prediction, y = shifted(6, 300)
    gaussian = GaussianPrediction(
        mean=prediction.mean, total=prediction.total, aleatoric=0.5 * prediction.total,
        epistemic=0.5 * prediction.total, num_samples=7, likelihood=prediction.likelihood,
        covariance=torch.ones(300, 1, 1).double(),
    )  # fmt: skip
    expected = QuantileRecalibration(8).fit(prediction, y)(prediction)
    found = QuantileRecalibration(8).fit(gaussian, y)(gaussian)
    for name in ("mean", "total"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))
    torch.testing.assert_close(found.quantile(0.3), expected.quantile(0.3))
    torch.testing.assert_close(found.log_prob(y), expected.log_prob(y))
    torch.testing.assert_close(found.epistemic, 0.5 * found.total)
    assert found.sample(3).shape == (3, 300)


def test_bad_input_is_refused() -> None:
    prediction, y = shifted(0, 50)
    calibrator = QuantileRecalibration(5)
    with pytest.raises(RuntimeError, match="not fitted"):
        calibrator(prediction)
    with pytest.raises(ValueError, match=r"^num_pieces: "):
        QuantileRecalibration(1)
    with pytest.raises(ValueError, match=r"^targets: 20 pieces need at least 19 held-out data, got 18"):
        QuantileRecalibration().fit(*shifted(0, 18))
    QuantileRecalibration().fit(*shifted(0, 19))
    with pytest.raises(ValueError, match=r"^targets: .*NaN"):
        calibrator.fit(prediction, torch.full((50,), math.nan))
    with pytest.raises(TypeError, match=r"^prediction: expected a prediction of real"):
        calibrator.fit(class_prediction(torch.zeros(1, 50, 3)), torch.zeros(50).long())
    with pytest.raises(ValueError, match=r"^prediction: counts"):
        calibrator.fit(of(likelihoods.Poisson(), 50, log_rate=1.0), torch.full((50,), 2.0).double())
    with pytest.raises(ValueError, match=r"^cdf: it needs what each"):
        calibrator.fit(prediction.without_draws(), y)
    calibrator.fit(prediction, y)
    with pytest.raises(ValueError, match=r"^prediction: it is recalibrated already"):
        calibrator(calibrator(prediction))
    with pytest.raises(ValueError, match=r"^prediction: it is recalibrated already"):
        calibrator.fit(calibrator(prediction), y)
    with pytest.raises(ValueError, match=r"^prediction: the curve was fitted"):
        calibrator(normal_prediction(torch.zeros(1, 5, 2), torch.ones(1, 5, 2)))
    with pytest.raises(ValueError, match=r"^entropy_split: "):
        calibrator(prediction).entropy_split()
    with pytest.raises(ValueError, match=r"^joint_entropy_split: "):
        calibrator(prediction).joint_entropy_split()
    with pytest.raises(ValueError, match=r"^q: "):
        calibrator(prediction).quantile(1.5)
