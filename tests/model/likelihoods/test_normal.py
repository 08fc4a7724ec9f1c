"""Gaussian noise: the suite, and a scale that is fixed, learned or latent."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from scipy import stats
from torch import Tensor

from pyrobnn.model.likelihoods import Likelihood, Normal
from pyrobnn.model.substitution import SubstituteMessenger
from tests.conformance.likelihood_suite import LikelihoodConformance

OUTPUTS = torch.tensor([[0.3, -1.2, 2.0, 0.1], [0.0, 0.7, -0.4, -2.0], [1.0, 1.5, 0.2, 0.4]])


class TestNormalConformance(LikelihoodConformance):
    def make(self, **options: Any) -> Likelihood:
        return Normal(0.7, **options)

    def log_density(self, outputs: Tensor, y: Tensor) -> Tensor:
        return torch.as_tensor(stats.norm(outputs.numpy(), 0.7).logpdf(y.numpy())).sum(-1)

    def refused(self, y: Tensor) -> list[tuple[type[Exception], Tensor]]:
        return [*super().refused(y), (TypeError, y.long()), (ValueError, y * math.nan), (ValueError, y / 0.0)]


class TestLearnedNormalConformance(TestNormalConformance):
    def make(self, **options: Any) -> Likelihood:
        return Normal(0.7, learn_scale=True, **options)


class TestUnstatedNormalConformance(TestNormalConformance):
    """Learned from targets of this deviation on."""

    def make(self, **options: Any) -> Likelihood:
        likelihood = Normal(**options)
        likelihood.initialize(0.7 * torch.tensor([-(0.5**0.5), 0.5**0.5]))
        return likelihood


SCALES = [0.2, 0.7, 1.5, 3.0]


class TestNormalPerOutputConformance(TestNormalConformance):
    """One standard deviation for each output."""

    def make(self, **options: Any) -> Likelihood:
        return Normal(torch.tensor(SCALES), **options)

    def log_density(self, outputs: Tensor, y: Tensor) -> Tensor:
        return torch.as_tensor(stats.norm(outputs.numpy(), SCALES).logpdf(y.numpy())).sum(-1)


class TestLearnedNormalPerOutputConformance(TestNormalPerOutputConformance):
    def make(self, **options: Any) -> Likelihood:
        return Normal(SCALES, learn_scale=True, **options)


def gaussian(y: Tensor, mean: Tensor, scale: Tensor | float) -> Tensor:
    """Log density per datum, summed over the other dimensions."""
    scale = torch.as_tensor(scale)
    log_density = -0.5 * ((y - mean) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)
    return log_density.reshape(len(y), -1).sum(-1)


def test_the_learned_noise_has_the_gradient_of_the_log_density() -> None:
    """d/d log σ of Σ log N(y; f, σ²) is Σ ((y - f)²/σ² - 1)."""
    likelihood = Normal(0.5, learn_scale=True)
    y = OUTPUTS + 0.3
    likelihood(OUTPUTS).log_prob(y).sum().backward()
    ((name, parameter),) = likelihood.named_parameters()
    assert name == "noise.log_scale"
    torch.testing.assert_close(parameter.grad, torch.tensor(12 * (0.09 / 0.25 - 1)))


def test_the_fixed_noise_is_not_trained() -> None:
    likelihood = Normal(0.5)
    assert list(likelihood.parameters()) == []
    assert likelihood.noise_scale().item() == pytest.approx(0.5)


@pytest.mark.parametrize(
    "prior",
    [
        dist.LogNormal(0.0, 1.0),
        dist.HalfNormal(1.0),
        dist.HalfCauchy(1.0),
        dist.Gamma(2.0, 1.0),
        dist.Uniform(0.0, 2.0),
    ],
)
def test_the_latent_noise_is_a_site_with_its_prior(prior: dist.Distribution) -> None:
    likelihood = Normal(prior)
    trace = poutine.trace(likelihood).get_trace(OUTPUTS)
    node = trace.nodes["scale"]
    assert not node["is_observed"]
    torch.testing.assert_close(node["fn"].log_prob(node["value"]), prior.log_prob(node["value"]))
    with SubstituteMessenger({"scale": torch.tensor(0.4)}):
        log_density = likelihood(OUTPUTS).log_prob(OUTPUTS + 1)
        variance = likelihood.distribution(likelihood.parameters_of(OUTPUTS)).variance
    torch.testing.assert_close(log_density, gaussian(OUTPUTS + 1, OUTPUTS, 0.4))
    torch.testing.assert_close(variance, torch.full_like(OUTPUTS, 0.16))
    assert likelihood.sample_latents().keys() == {"scale"}


@pytest.mark.parametrize("prior", [dist.Normal(0.0, 1.0), dist.Uniform(-1.0, 1.0), dist.Laplace(0.0, 1.0)])
def test_a_noise_prior_off_the_positive_reals_is_refused(prior: dist.Distribution) -> None:
    with pytest.raises(ValueError, match=r"scale: its prior must have support on the positive reals .*got"):
        Normal(prior)


def test_a_noise_prior_of_several_numbers_is_one_site_of_that_shape() -> None:
    likelihood = Normal(dist.LogNormal(torch.zeros(4), 1.0))
    scale = torch.tensor(SCALES)
    with SubstituteMessenger({"scale": scale}) as run:
        log_density = likelihood(OUTPUTS).log_prob(OUTPUTS + 1)
    torch.testing.assert_close(log_density, gaussian(OUTPUTS + 1, OUTPUTS, scale))
    prior = run.latent[0]["fn"]
    torch.testing.assert_close(prior.log_prob(scale), dist.LogNormal(0.0, 1.0).log_prob(scale).sum())


def test_a_noise_of_each_channel() -> None:
    images, scale = torch.randn(2, 3, 4, 5), torch.tensor([0.1, 1.0, 4.0])
    found = Normal(scale.reshape(3, 1, 1))(images).log_prob(images + 0.3)
    torch.testing.assert_close(found, gaussian(images + 0.3, images, scale.reshape(3, 1, 1)))


@pytest.mark.parametrize("shape", [(2,), (1, 2), (2, 2, 2)])
def test_a_noise_that_would_broadcast_along_the_data_is_refused(shape: tuple[int, ...]) -> None:
    """Two data of one output each: two scales are not one for each datum."""
    with pytest.raises(ValueError, match=rf"scale: its shape \({shape[0]},.*does not fit the outputs of a datum, \(\)"):
        Normal(torch.ones(shape))(torch.zeros(2))


def test_noise_in_single_precision_beside_outputs_in_double() -> None:
    parameters = Normal(0.5).parameters_of(OUTPUTS.double())
    assert parameters["scale"].dtype == torch.float64
    found = Normal(0.5).closed_form(OUTPUTS.double(), torch.eye(4).double().expand(3, 4, 4), 10)
    assert found is not None
    assert found.aleatoric.dtype == found.total.dtype == torch.float64


@pytest.mark.parametrize("scale", ["1", True, [[1.0], [1.0, 2.0]], object()])
def test_a_noise_that_is_no_number_is_refused(scale: Any) -> None:
    with pytest.raises(TypeError, match="scale: expected a standard deviation, a tensor of them, or a distribution"):
        Normal(scale)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf, [0.5, 0.0], []])
def test_a_noise_that_is_not_positive_is_refused(scale: Any) -> None:
    with pytest.raises(ValueError, match=r"scale: expected a positive standard deviation, got"):
        Normal(scale)


def test_noise_is_inferred_or_learned_but_not_both() -> None:
    with pytest.raises(ValueError, match=r"scale: .*not both"):
        Normal(dist.LogNormal(0.0, 1.0), learn_scale=True)


def test_the_closed_form_is_of_this_class_only() -> None:
    """A subclass may have another density."""

    class Other(Normal):
        pass

    covariance = torch.eye(4).expand(3, 4, 4)
    found = Normal(0.5).closed_form(OUTPUTS, covariance, 10)
    assert found is not None
    torch.testing.assert_close(found.total, torch.full_like(OUTPUTS, 1.25))
    assert Other(0.5).closed_form(OUTPUTS, covariance, 10) is None


def test_missing_targets_of_a_joint_gaussian_are_integrated_out() -> None:
    torch.manual_seed(0)
    root = torch.randn(3, 4, 4)
    found = Normal(0.5, missing=True).closed_form(OUTPUTS, root @ root.mT, 10)
    assert found is not None
    y = OUTPUTS + torch.randn(3, 4)
    y[0, 1], y[1] = math.nan, math.nan
    log_prob = found.log_prob(y)
    known = torch.tensor([0, 2, 3])
    covariance = (root @ root.mT)[0][known][:, known] + 0.25 * torch.eye(3)
    expected = dist.MultivariateNormal(OUTPUTS[0, known], covariance).log_prob(y[0, known])
    torch.testing.assert_close(log_prob[0], expected)
    assert log_prob[1].item() == pytest.approx(0.0, abs=1e-5)


# ------------------------------------------------------------------------------------ a scale that is not stated


def started(targets: Tensor, **options: Any) -> Tensor:
    likelihood = Normal(**options)
    likelihood.initialize(targets)
    return likelihood.noise_scale().detach()


def test_an_unstated_noise_is_learned_and_starts_at_the_deviation_of_the_targets() -> None:
    likelihood = Normal()
    assert likelihood.learn_scale
    assert [name for name, _ in likelihood.named_parameters()] == ["noise.log_scale"]
    assert likelihood.untrained
    assert likelihood.noise_scale().item() == 1.0
    y = torch.tensor([[3.0], [5.0], [10.0]])
    likelihood.initialize(y)
    torch.testing.assert_close(likelihood.noise_scale().detach(), y.std())
    assert not likelihood.untrained
    likelihood.initialize(100 * y)  # not again
    torch.testing.assert_close(likelihood.noise_scale().detach(), y.std())


def test_one_noise_of_several_outputs_starts_at_the_root_mean_square_of_their_deviations() -> None:
    """Each output varies about its own mean, wherever that is."""
    y = torch.randn(7, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2.0, 30.0]) + 50
    torch.testing.assert_close(started(y), y.var(0).mean().sqrt())
    torch.testing.assert_close(started(y, shape=(3,)), y.std(0))
    images = torch.randn(6, 2, 4, 5, generator=torch.Generator().manual_seed(1)) * torch.tensor([[[1.0]], [[9.0]]])
    expected = images.var(0).mean((1, 2), keepdim=True).sqrt()
    torch.testing.assert_close(started(images, shape=(2, 1, 1)), expected)


def test_missing_targets_say_nothing_about_the_start() -> None:
    y = torch.tensor([[1.0, 2.0], [4.0, math.nan], [2.0, math.nan], [math.nan, 9.0]])
    expected = torch.stack([y[:3, 0].std(), y[[0, 3], 1].std()])
    torch.testing.assert_close(started(y, shape=(2,), missing=True), expected)
    pooled = ((2 * expected[0] ** 2 + expected[1] ** 2) / 3).sqrt()  # by degrees of freedom
    torch.testing.assert_close(started(y, missing=True), pooled)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ([[7.0], [7.0], [7.0]], 7.0),  # constant: their size
        ([[0.1], [0.1], [0.1]], 0.1),  # whose deviation is not exactly zero in floating point
        ([[-3.0]], 3.0),  # a single one
        ([[0.0], [0.0]], 1.0),  # which have no size either
        ([[math.nan], [math.inf]], 1.0),  # nothing was observed
    ],
)
def test_targets_without_a_deviation_still_give_a_positive_start(targets: list[list[float]], expected: float) -> None:
    found = started(torch.tensor(targets), missing=True)
    torch.testing.assert_close(found, torch.tensor(expected))


def test_a_start_that_does_not_fit_is_left_to_the_model_to_refuse() -> None:
    assert started(torch.randn(5, 2), shape=(3,)).tolist() == [1.0] * 3
    assert started(torch.randn(5), shape=(3,)).tolist() == [1.0] * 3


@pytest.mark.parametrize("likelihood", [Normal(0.5), Normal(0.5, learn_scale=True), Normal(dist.LogNormal(0.0, 1.0))])
def test_a_stated_noise_stays_as_it_was_stated(likelihood: Normal) -> None:
    before = [value.clone() for value in likelihood.state_dict().values()]
    likelihood.initialize(torch.tensor([[100.0], [300.0]]))
    assert not likelihood.untrained
    assert all(torch.equal(u, v) for u, v in zip(before, likelihood.state_dict().values(), strict=True))


def test_a_trained_noise_is_not_started_anew_after_its_state_was_loaded() -> None:
    trained, fresh = Normal(), Normal()
    trained.initialize(torch.tensor([[100.0], [300.0]]))
    fresh.load_state_dict(trained.state_dict())
    fresh.initialize(torch.tensor([[1.0], [2.0]]))
    assert torch.equal(fresh.noise_scale(), trained.noise_scale())


@pytest.mark.parametrize("shape", [3, "3", (0,), (2.0,), (True,), (-1,)])
def test_a_shape_that_is_none_is_refused(shape: Any) -> None:
    with pytest.raises(ValueError, match="shape: expected the shape of the scale"):
        Normal(shape=shape)


def test_contradictions_about_the_noise_are_refused() -> None:
    with pytest.raises(ValueError, match=r"scale: state the standard deviation that is not to be learned"):
        Normal(learn_scale=False)
    with pytest.raises(ValueError, match=r"shape: it is that of a scale that is not stated"):
        Normal(0.5, shape=(2,))
    with pytest.raises(TypeError, match=r"learn_scale: expected True, False or None"):
        Normal(learn_scale="yes")  # type: ignore[arg-type]
