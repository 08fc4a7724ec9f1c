"""Collapse: networks on scikit-learn's digits, and M in closed form."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pyro.distributions as dist
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from pyrobnn import likelihoods, priors
from pyrobnn.diagnostics import CheckReport, check
from pyrobnn.guides import MAP, Guide, MeanField
from pyrobnn.model.priors import PriorSpec
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.training import fit
from tests.diagnostics.models import Conjugate, set_parameters, small_network

NORMAL = dist.Normal(0.0, 1.0)


@cache
def digits(num_data: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:num_data]
    return torch.as_tensor(images / 16.0, dtype=torch.float32)[chosen], torch.as_tensor(labels)[chosen]


def digits_model(num_data: int, prior: PriorSpec | None, hidden: nn.Module | None = None) -> SupervisedModel:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), hidden or nn.ReLU(), nn.Linear(64, 10))
    return SupervisedModel(net, likelihoods.Categorical(), prior, num_data=num_data)


def pull(model: SupervisedModel, x: Tensor, y: Tensor) -> float:
    found = check(model, MAP(model), [(x, y)], num_samples=25)["zero is no mode"].value
    assert found is not None
    return found


@pytest.mark.filterwarnings("ignore:after 300 of 300 epochs the fit is no better than a constant")
@pytest.mark.parametrize("family", [MAP, MeanField])
@pytest.mark.parametrize("num_data", [50, 100])
def test_digits_collapse_under_a_narrow_prior_and_the_report_says_so(
    num_data: int, family: Callable[[SupervisedModel], Guide]
) -> None:
    (x, y), model = digits(num_data), digits_model(num_data, priors.he())
    guide = family(model)
    fit(model, guide, [(x, y)], epochs=300, lr=2e-2, seed=0, progress=False)
    report = check(model, guide, [(x, y)], num_samples=25)
    assert not report.ok
    for name in ("better than a constant", "predictions that vary", "zero is no mode"):
        assert report[name].status == "fail", str(report)
        assert all(word in report[name].reason for word in ("prior", "Standardizer", "epochs", "temperature"))
    assert report["better than a constant"].value == pytest.approx(0.0, abs=0.023)  # 1 % of the entropy


@pytest.mark.parametrize("family", [MAP, MeanField])
@pytest.mark.parametrize("num_data", [50, 100])
def test_digits_are_learned_under_the_default_prior(num_data: int, family: Callable[[SupervisedModel], Guide]) -> None:
    (x, y), model = digits(num_data), digits_model(num_data, None)
    guide = family(model)
    fit(model, guide, [(x, y)], epochs=300, lr=1e-2, seed=0, progress=False)
    report = check(model, guide, [(x, y)], num_samples=25)
    for name in ("better than a constant", "predictions that vary", "zero is no mode"):
        assert report[name].status == "pass", str(report)


@pytest.mark.parametrize(("num_data", "narrow", "wide"), [(50, 0.45, 13.6), (100, 0.87, 26.0)])
def test_pull_of_digits(num_data: int, narrow: float, wide: float) -> None:
    """Means of three subsets against those of another program and other subsets."""
    for prior, expected in ((priors.he(), narrow), (NORMAL, wide)):
        model = digits_model(num_data, prior)
        found = sum(pull(model, *digits(num_data, seed)) for seed in range(3)) / 3
        assert found == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize(("slope", "hidden"), [(0.0, nn.ReLU()), (0.2, nn.LeakyReLU(0.2)), (1.0, nn.Identity())])
def test_pull_of_one_input_is_known(slope: float, hidden: nn.Module) -> None:
    """Without hidden biases a unit of weight ±1 has ``G = s₁ s₂ Σ r φ(±x)``, ``r = (y - mean of y) / σ²``."""
    x = torch.linspace(-1.0, 1.0, 40)[:, None]
    y = x.abs() + 0.3 * x
    first, second, sigma = 0.3, 2.0, 0.5
    net = nn.Sequential(nn.Linear(1, 5, bias=False), hidden, nn.Linear(5, 1))
    rules = [("0.weight", dist.Normal(0.0, first)), ("2.*", dist.Normal(0.0, second))]
    model = SupervisedModel(net, likelihoods.Normal(sigma), rules, num_data=40)
    residual = (y - y.mean()) / sigma**2
    sides = [(residual * torch.where(side > 0, side, slope * side)).sum().abs() for side in (x, -x)]
    expected = first * second * max(sides).item()
    assert pull(model, x, y) == pytest.approx(expected, rel=1e-5)
    # In batches, with weights, and with more data declared than were read.
    weight = torch.full((40,), 2.0)
    model = SupervisedModel(net, likelihoods.Normal(sigma), rules, num_data=120)
    batches = [(x[:30], y[:30], weight[:30]), (x[30:], y[30:], weight[30:])]
    found = check(model, MAP(model), batches, num_samples=25)["zero is no mode"].value
    assert found == pytest.approx(6 * expected, rel=1e-5)


class Functional(nn.Module):
    """Its hidden units are no module."""

    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.second, self.first, self.activation = nn.Linear(6, 1), nn.Linear(2, 6), activation

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.activation(self.first(x)))


def test_pull_of_a_network_of_any_form() -> None:
    x, y = torch.randn(30, 2, generator=torch.Generator().manual_seed(0)), torch.linspace(-1, 1, 30)[:, None]
    net = nn.Sequential(nn.Flatten(), nn.Linear(2, 6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 1))
    models = [
        SupervisedModel(net, likelihoods.Normal(1.0), NORMAL, num_data=30)
        for net in (net, Functional(torch.relu), nn.Sequential(nn.Linear(2, 9), nn.ReLU(), nn.Linear(9, 1)))
    ]
    found = [pull(model, x, y) for model in models]
    assert found == pytest.approx([found[0]] * 3, rel=1e-3)


def cases_without_pull() -> dict[str, SupervisedModel]:
    two = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 1))
    three = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 1))
    both = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 2))
    normal = likelihoods.Normal(1.0)
    return {
        "tanh": SupervisedModel(Functional(torch.tanh), normal, NORMAL, num_data=20),
        "three layers": SupervisedModel(three, normal, NORMAL, num_data=20),
        "Student-t": SupervisedModel(two, normal, priors.he(family="student_t"), num_data=20),
        "not around zero": SupervisedModel(two, normal, dist.Normal(0.5, 1.0), num_data=20),
        "learned scale": SupervisedModel(two, normal, priors.learned_scale(), num_data=20),
        "likelihood": SupervisedModel(both, likelihoods.HeteroscedasticNormal(), NORMAL, num_data=20),
        "sum": SupervisedModel(Residual(), normal, NORMAL, num_data=20),
        "linear": SupervisedModel(nn.Linear(2, 1), normal, NORMAL, num_data=20),
    }


class Residual(nn.Module):
    """Its outputs are not those of the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 6), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu()) + x[:, :1]


@pytest.mark.parametrize("case", list(cases_without_pull()))
def test_there_is_no_pull_elsewhere(case: str) -> None:
    model = cases_without_pull()[case]
    _, x, y = small_network()
    report = check(model, MAP(model), [(x, y)], num_samples=25)
    assert "zero is no mode" not in [result.name for result in report.checks]


# ---------------------------------------------------------------------------------------------- against a constant


def test_gain_is_that_of_a_known_predictor() -> None:
    """A point estimate of a line: its log density minus that of the mean, in closed form."""
    x = torch.linspace(-1.0, 1.0, 50)[:, None]
    y = 2.0 * x + 0.3 * torch.randn(50, 1, generator=torch.Generator().manual_seed(0))
    model = SupervisedModel(nn.Linear(1, 1), likelihoods.Normal(0.7), NORMAL, num_data=50)
    guide = MAP(model, init={"net.weight": torch.full((1, 1), 1.5), "net.bias": torch.zeros(1)})
    expected = ((y - y.mean()).square() - (y - 1.5 * x).square()).mean() / (2 * 0.7**2)
    report = check(model, guide, [(x[:20], y[:20]), (x[20:], y[20:])], num_samples=25)
    assert report["better than a constant"].value == pytest.approx(expected.item(), rel=1e-4)
    line = (1.5 * x).var().item()
    assert report["predictions that vary"].value == pytest.approx(line / (line + 0.7**2), rel=1e-4)


@pytest.mark.parametrize("likelihood", [likelihoods.Normal(1.0), likelihoods.Poisson(), likelihoods.Bernoulli()])
def test_a_constant_fails(likelihood: likelihoods.Likelihood) -> None:
    x = torch.randn(60, 1, generator=torch.Generator().manual_seed(0))
    y = (x > 0).float()
    model = SupervisedModel(nn.Linear(1, 1), likelihood, NORMAL, num_data=60)
    guide = MAP(model, init={"net.weight": torch.zeros(1, 1), "net.bias": torch.zeros(1)})
    report = check(model, guide, [(x, y)], num_samples=25)
    assert report["better than a constant"].status == report["predictions that vary"].status == "fail"
    assert ("noise scale" in report["better than a constant"].reason) == isinstance(likelihood, likelihoods.Normal)


def test_rare_classes_are_judged_by_their_entropy() -> None:
    """One per cent of ones has an entropy of 0.056 nats, most of which a good network explains."""
    x = torch.zeros(1000, 1)
    x[:10] = 1.0
    model = SupervisedModel(nn.Linear(1, 1), likelihoods.Bernoulli(), NORMAL, num_data=1000)
    guide = MAP(model, init={"net.weight": torch.full((1, 1), 10.0), "net.bias": torch.full((1,), -6.0)})
    assert check(model, guide, [(x, x)], num_samples=25)["better than a constant"].status == "pass"


def test_functions_of_the_prior_warn_and_those_of_the_posterior_do_not() -> None:
    model, x, y = small_network(hidden=30)
    guide = MeanField(model)
    at_prior = set_parameters(guide, torch.zeros(guide.layout.size), torch.ones(guide.layout.size))
    found = check(model, at_prior, [(x, y)], num_samples=100)["functions at the prior"]
    assert found.status == "warn"
    # 100 and 50 draws: relative errors of variances of 0.14 and 0.2 at most, shared by 20 rows; |z| < 4
    assert found.value == pytest.approx(1.0, abs=0.98)
    case = Conjugate()
    # A linear model: the variance of f(x) is Σ x_j² v_j, under the prior |x|²
    spread = (case.x.square() / case.precision).sum(1).mean() / case.x.square().sum(1).mean()
    report: CheckReport = check(case.model, case.guide(), case.loader(), num_samples=400)
    # 400 and 50 draws of three weights: relative errors 0.04 and 0.12; |z| < 4
    assert report["functions at the prior"].value == pytest.approx(spread.item(), rel=0.5)


def test_rows_of_weight_zero_count_nothing_whatever_their_density() -> None:
    """Padding holds any numbers, of which the log density may be minus infinity."""
    torch.manual_seed(0)
    model = SupervisedModel(nn.Linear(2, 1), likelihoods.Normal(0.5), NORMAL, num_data=20)
    guide, x, y, weight = MeanField(model), torch.randn(20, 2), torch.randn(20, 1), torch.ones(20)
    weight[3], found = 0.0, []
    for padding in (0.0, 1e30):
        y[3] = padding
        torch.manual_seed(1)
        found.append(check(model, guide, [(x, y, weight)], num_samples=25)["better than a constant"].value)
    assert found[0] is not None
    assert found[1] == pytest.approx(found[0], rel=1e-5)
