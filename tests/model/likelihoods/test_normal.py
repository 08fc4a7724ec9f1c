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


@pytest.mark.parametrize("scale", [None, "1", True, [[1.0], [1.0, 2.0]], object()])
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
