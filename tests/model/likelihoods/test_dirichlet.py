"""Dirichlet networks: the suite for each link, the three parts of the entropy, clamping, images, calibration."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyrobnn.calibration import TemperatureScaling
from pyrobnn.guides import MAP, MeanField
from pyrobnn.metrics import dirichlet_measures
from pyrobnn.model.likelihoods import Categorical, ClassLikelihood, Dirichlet, Likelihood
from pyrobnn.model.likelihoods.dirichlet import DirichletPrediction, Link
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.prediction import ClassPrediction, predict
from tests.conformance.likelihood_suite import LikelihoodConformance
from tests.conformance.monte_carlo import z_of_mean
from tests.model.likelihoods.informations import assert_information, outputs_of

LINKS: tuple[Link, ...] = ("exp", "softplus", "relu")


def concentrations(link: str, outputs: Tensor) -> Tensor:
    """By formula."""
    return {"exp": outputs.exp(), "softplus": 2 - 1 + (1 + outputs.exp()).log(), "relu": 1 + outputs.clamp_min(0)}[link]


class TestDirichletConformance(LikelihoodConformance):
    takes_missing = False
    link: Link = "exp"

    def make(self, **options: Any) -> Likelihood:
        return Dirichlet(self.link, **options)

    def log_density(self, outputs: Tensor, y: Tensor) -> Tensor:
        alpha = concentrations(self.link, outputs)
        return (alpha / alpha.sum(-1, keepdim=True)).gather(-1, y.unsqueeze(-1)).squeeze(-1).log()

    def refused(self, y: Tensor) -> list[tuple[type[Exception], Tensor]]:
        return [*super().refused(y), (TypeError, y.double()), (ValueError, y + 4), (ValueError, y - 4)]

    def expected_entropy(self, likelihood: ClassLikelihood, outputs: Tensor) -> Tensor:
        alpha = concentrations(self.link, outputs)
        share = alpha / alpha.sum(-1, keepdim=True)
        return torch.digamma(alpha.sum(-1) + 1) - (share * torch.digamma(alpha + 1)).sum(-1)


class TestEvidentialConformance(TestDirichletConformance):
    link: Link = "softplus"


class TestRectifiedConformance(TestDirichletConformance):
    """With a label to ignore, whose outputs are along ``class_dim``."""

    link: Link = "relu"

    def make(self, **options: Any) -> Likelihood:
        return Dirichlet("relu", class_dim=1, ignore_index=9, **options)


def kept(outputs: Tensor, link: Link = "exp") -> DirichletPrediction:
    """The prediction of K draws with outputs ``[K, N, ..., C]``."""
    reduction = Dirichlet(link).reduction(len(outputs), keep=True, max_bytes=1)
    reduction.add({n: torch.stack(v) for n, v in _by_name([reduction.summary(output) for output in outputs]).items()})
    found = reduction.finish(None)
    assert isinstance(found, DirichletPrediction)
    return found


def _by_name(summaries: list[dict[str, Tensor]]) -> dict[str, list[Tensor]]:
    return {name: [summary[name] for summary in summaries] for name in summaries[0]}


@pytest.mark.parametrize("link", LINKS)
def test_the_three_parts_add_up_and_are_those_of_their_definitions(link: Link) -> None:
    torch.manual_seed(0)
    outputs = 2 * torch.randn(5, 7, 4, dtype=torch.float64)
    found, alpha = kept(outputs, link), concentrations(link, outputs)
    each, probs = dirichlet_measures(alpha), alpha / alpha.sum(-1, keepdim=True)
    entropy = torch.special.entr(probs).sum(-1)
    torch.testing.assert_close(found.mean, probs.mean(0))
    torch.testing.assert_close(found.total, torch.special.entr(probs.mean(0)).sum(-1))
    torch.testing.assert_close(found.aleatoric, each.aleatoric.mean(0))
    torch.testing.assert_close(found.distributional, (entropy - each.aleatoric).mean(0))
    torch.testing.assert_close(found.between_draws, found.total - entropy.mean(0))
    torch.testing.assert_close(found.epistemic, found.distributional + found.between_draws)
    torch.testing.assert_close(found.total, found.aleatoric + found.distributional + found.between_draws)
    torch.testing.assert_close(found.alpha0, alpha.sum(-1).mean(0))
    torch.testing.assert_close(found.differential_entropy, each.differential_entropy.mean(0))
    assert found.concentrations is not None
    torch.testing.assert_close(found.concentrations, alpha)
    torch.testing.assert_close(torch.stack(found.by_draw()), torch.stack(each))


@pytest.mark.statistical
def test_parts_are_information_of_labels_and_probabilities_that_are_drawn() -> None:
    """20,000 draws of the probabilities under each of 5 draws of the weights, within z = 4."""
    torch.manual_seed(1)
    found = kept(torch.randn(5, 3, 4, dtype=torch.float64))
    assert found.concentrations is not None
    z = torch.distributions.Dirichlet(found.concentrations).sample((20_000,)).clamp_min(1e-300)
    own = found.concentrations / found.concentrations.sum(-1, keepdim=True)
    assert z_of_mean(torch.special.entr(z).sum(-1).mean(1), found.aleatoric) < 4
    assert z_of_mean((z * (z / own).log()).sum(-1).mean(1), found.distributional) < 4
    assert z_of_mean((z * (z / found.mean).log()).sum(-1).mean(1), found.epistemic) < 4


def test_a_point_has_a_distributional_part_and_no_other() -> None:
    found = kept(torch.randn(1, 6, 3, dtype=torch.float64))
    torch.testing.assert_close(found.between_draws, torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-12)
    assert bool((found.distributional > 0).all())


def test_exp_is_the_softmax_in_value_and_gradient() -> None:
    torch.manual_seed(0)
    outputs, y = torch.randn(8, 5, requires_grad=True), torch.randint(5, (8,))
    both = [likelihood(outputs).log_prob(y).sum() for likelihood in (Dirichlet(), Categorical())]
    assert torch.equal(*both)
    torch.testing.assert_close(*(torch.autograd.grad(value, outputs) for value in both))


def test_class_weights_and_ignored_labels_count_as_for_categorical() -> None:
    outputs, y = torch.randn(2, 3, 4, 5), torch.randint(4, (2, 4, 5))
    y = torch.where(y == 3, 9, y)
    options: dict[str, Any] = {"class_dim": 1, "ignore_index": 9, "class_weight": [0.5, 1.0, 2.0]}
    found, expected = (kind(**options)(outputs).log_prob(y) for kind in (Dirichlet, Categorical))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("clamp", [None, 1.0])
def test_information_in_closed_form(link: Link, clamp: float | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_information(Dirichlet(link, clamp=clamp).double(), outputs_of(4))


def test_information_of_pixels_is_placed_by_its_index() -> None:
    outputs = outputs_of(2 * 3 * 2).reshape(3, 3, 2, 2)
    found, expected = (kind(class_dim=1).fisher_information(outputs) for kind in (Dirichlet, Categorical))
    assert torch.equal(found.index, expected.index)
    torch.testing.assert_close(found.matrices(), expected.matrices())


# ------------------------------------------------------------------------------------------------------------ clamping


def test_concentrations_are_clamped_and_have_no_gradient_there() -> None:
    outputs = torch.tensor([[-30.0, 0.5, 30.0]], requires_grad=True)
    likelihood = Dirichlet()
    alpha = likelihood.concentrations(outputs)
    torch.testing.assert_close(alpha, torch.tensor([[math.exp(-10.0), math.exp(0.5), math.exp(10.0)]]))
    (slope,) = torch.autograd.grad(alpha.sum(), outputs)
    torch.testing.assert_close(slope, torch.tensor([[0.0, math.exp(0.5), 0.0]]))
    assert torch.equal(Dirichlet(clamp=None).concentrations(outputs), outputs.exp())
    torch.testing.assert_close(Dirichlet("relu").concentrations(1e9 * torch.ones(1, 2)), torch.full((1, 2), math.e**10))


@pytest.mark.parametrize("link", LINKS)
def test_clamping_is_reported_once_with_its_share(link: Link) -> None:
    outputs = torch.zeros(5, 4)
    outputs[0, 0] = 1e6
    match = r"^likelihood: 0\.05 of the concentrations of Dirichlet are clamped, to 4\.54e-05 or 2\.2e\+04"
    in_prediction, in_training = Dirichlet(link), Dirichlet(link)
    reduction = in_prediction.reduction(1, keep=False, max_bytes=1)
    summary = {name: value.unsqueeze(0) for name, value in reduction.summary(outputs).items()}
    with pytest.warns(UserWarning, match=match):
        reduction.add(summary)
    with pyro.validation_enabled(True), pytest.warns(UserWarning, match=match):
        in_training(outputs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reduction.add(summary)
        with pyro.validation_enabled(True):
            in_training(outputs)
        Dirichlet(link).reduction(1, keep=False, max_bytes=1).add({n: v[:, 1:] for n, v in summary.items()})


# ---------------------------------------------------------------------------------------------------------- use of it


def model_of(guide: type[MAP] | type[MeanField]) -> tuple[SupervisedModel, Any, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4))
    model = SupervisedModel(net, Dirichlet(), dist.Normal(0.0, 1.0), num_data=12)
    options = {"init_scale": 0.5} if guide is MeanField else {}
    return model, guide(model, **options), torch.randn(12, 3)


def test_a_bayesian_network_has_both_epistemic_parts() -> None:
    model, guide, x = model_of(MeanField)
    found = predict(model, guide, x, 20, seed=0)
    assert isinstance(found, DirichletPrediction)
    assert bool((found.between_draws > 0).all()) and bool((found.distributional > 0).all())
    plain = found.without_draws()
    assert isinstance(plain, DirichletPrediction) and plain.concentrations is None
    with pytest.raises(ValueError, match=r"^by_draw: it needs what each of the 20 draws predicts"):
        plain.by_draw()
    one = predict(*model_of(MAP))
    assert isinstance(one, DirichletPrediction) and float(one.between_draws.max()) < 1e-5


def test_batches_join_with_all_fields() -> None:
    model, guide, x = model_of(MeanField)
    whole, parts = (predict(model, guide, data, 6, seed=0, return_draws=True) for data in (x, [*x.split(5)]))
    for name in ("distributional", "alpha0", "differential_entropy", "concentrations"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name))


def test_pixels_have_distributions_of_their_own() -> None:
    outputs = torch.randn(2, 4, 3, 5).double()
    likelihood = Dirichlet(class_dim=1)
    reduction = likelihood.reduction(1, keep=False, max_bytes=1)
    reduction.add({name: value.unsqueeze(0) for name, value in reduction.summary(outputs).items()})
    found = reduction.finish(None)
    assert isinstance(found, DirichletPrediction)
    assert found.alpha0.shape == found.total.shape == (2, 3, 5)
    torch.testing.assert_close(found.alpha0, outputs.exp().sum(1))


@pytest.mark.parametrize("on", ["mean", "draws"])
def test_calibrated_probabilities_have_no_concentrations(on: Any) -> None:
    """A map of probabilities says nothing of concentrations: the result is an ordinary prediction of classes."""
    model, guide, x = model_of(MeanField)
    found = predict(model, guide, x, 6, seed=0, return_draws=True)
    y = torch.where(torch.arange(12) < 3, torch.arange(12), found.predicted)
    calibrated = TemperatureScaling(on=on).fit(found, y)(found)
    assert type(calibrated) is ClassPrediction
    torch.testing.assert_close(calibrated.total, calibrated.aleatoric + calibrated.epistemic)


def test_what_is_no_dirichlet_likelihood_is_refused() -> None:
    for wrong in ("log", None, 3):
        with pytest.raises(ValueError, match=r"^link: expected 'exp', 'softplus' or 'relu'"):
            Dirichlet(wrong)  # type: ignore[arg-type]
    for wrong in (0.0, -1.0, math.inf, math.nan, "a"):
        with pytest.raises(ValueError, match=r"^clamp: expected a positive number"):
            Dirichlet(clamp=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^net: Dirichlet expects outputs \[B, C\]"):
        Dirichlet()(torch.zeros(4))
