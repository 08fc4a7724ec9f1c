"""Gaussian noise that depends on the input: the suite, the floor, and what outputs it needs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from pyrobnn.guides import DeltaMixture, MeanField
from pyrobnn.model.likelihoods import HeteroscedasticNormal, Likelihood
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.prediction import predict
from pyrobnn.training import fit
from tests.conformance.likelihood_suite import LikelihoodConformance
from tests.model.likelihoods.informations import assert_information, outputs_of


class TestHeteroscedasticNormalConformance(LikelihoodConformance):
    def make(self, **options: Any) -> Likelihood:
        return HeteroscedasticNormal(0.01, **options)

    def log_density(self, outputs: Tensor, y: Tensor) -> Tensor:
        mean, raw = outputs.numpy()[:, :2], outputs[:, 2:]
        scale = (1 + raw.exp()).log().numpy() + 0.01
        return torch.as_tensor(stats.norm(mean, scale).logpdf(y.numpy())).sum(-1)

    def refused(self, y: Tensor) -> list[tuple[type[Exception], Tensor]]:
        return [
            *super().refused(y),
            (TypeError, y.long()),
            (ValueError, y * math.nan),
            (ValueError, torch.cat([y, y], 1)),
        ]


class TestOptionsOfTrainingConformance(TestHeteroscedasticNormalConformance):
    """β and a warm-up, which evaluation does not see."""

    def make(self, **options: Any) -> Likelihood:
        return HeteroscedasticNormal(0.01, beta=0.5, warmup=3, **options).eval()


class TestNaturalConformance(LikelihoodConformance):
    """Outputs are mean times precision, and raw precisions."""

    def make(self, **options: Any) -> Likelihood:
        return HeteroscedasticNormal(0.1, parametrization="natural", **options)

    def log_density(self, outputs: Tensor, y: Tensor) -> Tensor:
        precision = ((1 + outputs[:, 2:].exp()).log() + 1e-6).numpy()
        scale = (1 / precision + 0.01) ** 0.5
        return torch.as_tensor(stats.norm(outputs[:, :2].numpy() / precision, scale).logpdf(y.numpy())).sum(-1)


@pytest.mark.parametrize("parametrization", ["moments", "natural"])
def test_information_in_closed_form(parametrization: Any) -> None:
    assert_information(HeteroscedasticNormal(0.1, parametrization=parametrization), outputs_of(4))


def test_beta_weighs_log_densities_without_a_gradient_of_the_weight() -> None:
    """With 1 the mean has the gradient of squared errors; densities of evaluation and predictions are plain."""
    outputs, y = outputs_of(4).requires_grad_(), outputs_of(2)
    scale = HeteroscedasticNormal().parameters_of(outputs)["scale"]
    plain = torch.distributions.Normal(outputs[:, :2], scale).log_prob(y)
    for beta in (0.5, 1.0):
        likelihood = HeteroscedasticNormal(beta=beta)
        found = likelihood(outputs).log_prob(y)
        torch.testing.assert_close(found, (scale ** (2 * beta) * plain).sum(1))
        gradient = torch.autograd.grad(found.sum(), outputs, retain_graph=True)[0]
        weighted = torch.autograd.grad((scale.detach() ** (2 * beta) * plain).sum(), outputs, retain_graph=True)[0]
        torch.testing.assert_close(gradient, weighted)
        torch.testing.assert_close(likelihood.eval()(outputs).log_prob(y), plain.sum(1))
    torch.testing.assert_close(gradient[:, :2], y - outputs[:, :2].detach())


def test_warmup_holds_the_scale_at_the_errors_of_the_batch() -> None:
    outputs, y = outputs_of(4, 9).requires_grad_(), outputs_of(2, 9)
    likelihood = HeteroscedasticNormal(warmup=2)
    rms = (y - outputs[:, :2]).square().mean(0).sqrt().detach()
    expected = torch.distributions.Normal(outputs[:, :2], rms).log_prob(y).sum(1)
    plain = likelihood.eval()(outputs).log_prob(y)
    likelihood.train()
    for _ in range(2):
        found = likelihood(outputs).log_prob(y)
        torch.testing.assert_close(found, expected)
        assert bool((torch.autograd.grad(found.sum(), outputs)[0][:, 2:] == 0).all())
    torch.testing.assert_close(likelihood(outputs).log_prob(y), plain)
    restored = HeteroscedasticNormal(**likelihood.config())
    restored.load_state_dict(likelihood.state_dict())
    torch.testing.assert_close(restored(outputs).log_prob(y), plain)  # the warm-up is over


def test_missing_targets_take_no_part_in_the_warmup() -> None:
    outputs, y = outputs_of(2, 5).requires_grad_(), outputs_of(1, 5)
    y[1] = math.nan
    found = HeteroscedasticNormal(warmup=1, beta=0.5, missing=True)(outputs).log_prob(y)
    known = [0, 2, 3, 4]
    rms = (y[known] - outputs[known, :1]).square().mean().sqrt().detach()
    expected = rms * torch.distributions.Normal(outputs[:, :1], rms).log_prob(y.nan_to_num())[:, 0]
    torch.testing.assert_close(found[known], expected[known])
    assert found[1] == 0


@pytest.mark.parametrize("family", [MeanField, lambda model: DeltaMixture(model, 3, init="prior")])
def test_a_warmup_counts_evaluations_in_training(family: Any) -> None:
    """Also of members that run in one pass, which is one evaluation; prediction counts none."""
    x = torch.linspace(-1, 1, 16).unsqueeze(1)
    model = SupervisedModel(nn.Linear(1, 2), HeteroscedasticNormal(warmup=3, beta=0.5), num_data=16)
    guide = family(model)
    fit(model, guide, [(x, 2 * x)], epochs=5, lr=0.01, progress=False)
    assert model.likelihood.evaluations == 5
    assert bool(predict(model, guide, x, 4).log_prob(2 * x).isfinite().all())
    assert model.likelihood.evaluations == 5


@pytest.mark.parametrize(
    ("name", "value"), [("beta", -0.1), ("beta", 1.5), ("beta", "a"), ("warmup", -1), ("warmup", 2.5)]
)
def test_options_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name}: "):
        HeteroscedasticNormal(**{name: value})
    with pytest.raises(ValueError, match=r"^parametrization: expected 'moments' or 'natural'"):
        HeteroscedasticNormal(parametrization=value)


@pytest.mark.parametrize("floor", [-0.1, math.nan])
def test_a_negative_floor_is_refused(floor: float) -> None:
    with pytest.raises(ValueError, match="floor: expected a standard deviation of at least 0"):
        HeteroscedasticNormal(floor)


def test_the_floor_bounds_the_scale() -> None:
    scale = HeteroscedasticNormal(0.1).parameters_of(torch.tensor([[0.0, -100.0]]))["scale"]
    assert scale.item() == pytest.approx(0.1)


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 2, 1)])
def test_means_and_scales_need_an_even_number_of_outputs(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError, match=r"net: HeteroscedasticNormal expects outputs \[B, 2 D\].*two outputs per target"
    ):
        HeteroscedasticNormal()(torch.zeros(shape))


def test_images_have_means_and_scales_in_channels() -> None:
    torch.manual_seed(0)
    outputs, y = torch.randn(2, 6, 4, 5), torch.randn(2, 3, 4, 5)
    scale = (1 + outputs[:, 3:].exp()).log() + 0.01
    expected = torch.distributions.Normal(outputs[:, :3], scale).log_prob(y).sum((1, 2, 3))
    for dim in (1, -3):
        likelihood = HeteroscedasticNormal(0.01, dim=dim)
        likelihood.check_targets(outputs, y)
        torch.testing.assert_close(likelihood(outputs).log_prob(y), expected)
        assert likelihood.config()["dim"] == dim


def test_targets_that_fit_along_another_dimension_say_which() -> None:
    with pytest.raises(ValueError, match=r"dim: y of shape \(2, 1, 4, 4\) fits .*pass HeteroscedasticNormal\(dim=1\)"):
        HeteroscedasticNormal().check_targets(torch.zeros(2, 2, 4, 4), torch.zeros(2, 1, 4, 4))
    with pytest.raises(ValueError, match=r"pass dim= .* \(1 for images"):
        HeteroscedasticNormal().check_targets(torch.zeros(2, 3, 5, 5), torch.zeros(2, 1, 5, 5))


@pytest.mark.parametrize("dim", [0, True, 1.0, None])
def test_a_dimension_that_is_none_is_refused(dim: Any) -> None:
    with pytest.raises(ValueError, match="dim: expected an int"):
        HeteroscedasticNormal(dim=dim)
