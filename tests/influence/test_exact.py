"""The exact forms against closed forms and against retraining."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn import influence
from pyrobnn.guides import MAP, DeltaMixture, Laplace, MeanField
from tests.influence.problems import Problem, classifier, logistic, regression


def with_ones(x: Tensor) -> Tensor:
    return torch.cat([x, x.new_ones(len(x), 1)], 1)


def test_both_formulas_of_conjugate_regression() -> None:
    """I_up and I_pert in closed form, to rounding."""
    exact, own = regression()
    method = influence.Exact(own.model, own.guide, own.loader)
    features, tests, noise = exact.features, with_ones(own.test_x), exact.noise**2
    residual = (features @ exact.mean - own.y[:, 0]) / noise
    solved = torch.linalg.solve(exact.precision, (tests * ((tests @ exact.mean - own.test_y[:, 0]) / noise)[:, None]).T)
    found = method.upweighting(own.test_x, own.test_y)
    torch.testing.assert_close(found, -(solved.T @ (features * residual[:, None]).T))
    # d/dx of (phi r) s = w (phi s) / noise + r s, for the entries of x
    weights, row = exact.mean[:3], 25
    mixed = weights[None] * (features[row] @ solved)[:, None] / noise + residual[row] * solved.T[:, :3]
    torch.testing.assert_close(method.perturbation(own.test_x, own.test_y, [row])[:, 0], -mixed)
    assert method.gradient_norm() < 1e-10


def test_the_leverage_form_is_leave_one_out_in_a_linear_model() -> None:
    """Parameters without rows in closed form; the change of the loss to first order in them, and itself."""
    exact, own = regression()
    method = influence.Exact(own.model, own.guide, own.loader)
    tests, groups = with_ones(own.test_x), [[4], [0, 11, 29], [7]]

    def loss(weights: Tensor) -> Tensor:
        return 0.5 * ((tests @ weights - own.test_y[:, 0]) / exact.noise).square()

    linear, whole = [], []
    for group in groups:
        kept = torch.ones(30, dtype=torch.bool)
        kept[group] = False
        design = exact.features[kept]
        precision = design.T @ design / exact.noise**2 + torch.eye(4).double() / exact.prior_scale**2
        without = torch.linalg.solve(precision, design.T @ own.y[kept, 0] / exact.noise**2)
        gradient = tests * ((tests @ exact.mean - own.test_y[:, 0]) / exact.noise**2)[:, None]
        linear.append(gradient @ (without - exact.mean))
        whole.append(loss(without) - loss(exact.mean))
    x, y = own.test_x, own.test_y
    torch.testing.assert_close(method.removal(x, y, groups, form="leverage"), torch.stack(linear, 1))
    torch.testing.assert_close(method.removal(x, y, groups, form="newton"), torch.stack(whole, 1))


def agreement(predicted: Tensor, true: Tensor) -> tuple[float, float]:
    """Correlation, and the slope of the truth on the prediction through zero."""
    a, b = predicted.flatten(), true.flatten()
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1]), float((a * b).sum() / a.square().sum())


def retrained(own: Problem, rows: list[int]) -> Tensor:
    def losses(guide: MAP) -> Tensor:
        point = guide.starting_point()
        logits = own.test_x @ point["net.weight"].T + point["net.bias"]
        return F.binary_cross_entropy_with_logits(logits, own.test_y, reduction="none")[:, 0]

    before = losses(own.guide)
    refits = [influence.refit(own.model, own.guide, own.loader, without=[row]) for row in rows]
    return torch.stack([losses(guide) - before for guide in refits], 1)


def test_it_is_leave_one_out_retraining_of_logistic_regression() -> None:
    """Digits 3 and 8, N = 100, prior N(0, 0.3²): the twelve most influential rows and eight others.

    The first-order form has the right order and 6 % too small a slope; the leverage form has both.
    """
    own = logistic(100, 0.3)
    method = influence.Exact(own.model, own.guide, own.loader)
    rows = [*method.self_influence().argsort(descending=True)[:12].tolist(), *range(0, 16, 2)]
    true = retrained(own, rows)
    for form, low, high in (("first_order", 1.0, 1.1), ("leverage", 0.98, 1.02), ("newton", 0.98, 1.02)):
        correlation, slope = agreement(method.removal(own.test_x, own.test_y, form=form)[:, rows], true)  # type: ignore
        assert correlation > 0.99 and low < slope < high, (form, correlation, slope)


def test_where_rows_decide_much_only_the_newton_form_holds() -> None:
    """A wider prior, N(0, 1), N = 100: first order is a quarter too small."""
    own = logistic(100, 1.0)
    method = influence.Exact(own.model, own.guide, own.loader)
    rows = method.self_influence().argsort(descending=True)[:12].tolist()
    true = retrained(own, rows)
    _, first = agreement(method.removal(own.test_x, own.test_y)[:, rows], true)
    correlation, newton = agreement(method.removal(own.test_x, own.test_y, form="newton")[:, rows], true)
    assert first > 1.15
    assert correlation > 0.999 and abs(newton - 1.0) < 0.02


def test_perturbation_is_what_retraining_gives() -> None:
    """A network's whole weights: a central difference of refits with one input moved, to 1 %."""
    own = classifier()
    method = influence.Exact(own.model, own.guide, own.loader)
    found = method.perturbation(own.test_x, own.test_y, [3])[:, 0, 1]
    losses = []
    for step in (1e-2, -1e-2):
        x = own.x.clone()
        x[3, 1] += step
        guide = influence.refit(own.model, own.guide, [(x, own.y)], tolerance=1e-7)
        losses.append(-pb.predict(own.model, guide, own.test_x, 1, return_draws=True).log_prob(own.test_y))
    slope = (losses[0] - losses[1]) / 2e-2
    torch.testing.assert_close(found, slope.double(), rtol=0.02, atol=0.02 * float(slope.abs().max()))


def test_only_the_named_sites_move() -> None:
    """The last layer's weights: the same as of logistic regression on its inputs."""
    own = classifier()
    sites = ["net.4.weight", "net.4.bias"]
    method = influence.Exact(own.model, own.guide, own.loader, sites=sites)
    assert [site.name for site in method.sites] == sites
    own.model.eval()
    point = own.guide.starting_point()
    hidden = nn.Sequential(*[own.model.net.network[i] for i in range(1, 3)])

    def features(x: Tensor) -> Tensor:
        return hidden(x @ point["net.0.weight"].T + point["net.0.bias"]).detach()

    top = pb.SupervisedModel(nn.Linear(4, 3), pb.likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=24).double()
    guide = MAP(top, init={"net.weight": point["net.4.weight"], "net.bias": point["net.4.bias"]})
    other = influence.Exact(top, guide, [(features(own.x), own.y)])
    expected = other.upweighting(features(own.test_x), own.test_y)
    torch.testing.assert_close(method.upweighting(own.test_x, own.test_y), expected)
    own.model.train()


def test_damping_is_a_wider_diagonal() -> None:
    """The same as a prior of more precision at the same point."""
    exact, own = regression()
    method = influence.Exact(own.model, own.guide, own.loader, damping=2.5)
    vector = torch.ones(1, 4).double()
    expected = torch.linalg.solve(exact.precision + 2.5 * torch.eye(4).double(), vector[0])
    torch.testing.assert_close(method.solve(vector)[0], expected)


def test_a_fitted_laplace_guide_is_its_mode() -> None:
    own = logistic(60)
    laplace = Laplace(own.model, init=own.guide).fit(own.model, own.loader)
    first = influence.Exact(own.model, own.guide, own.loader).upweighting(own.test_x, own.test_y)
    assert torch.equal(influence.Exact(own.model, laplace, own.loader).upweighting(own.test_x, own.test_y), first)
    before = Laplace(own.model, init=own.guide)
    assert torch.equal(influence.Exact(own.model, before, own.loader).upweighting(own.test_x, own.test_y), first)
    alone = DeltaMixture(own.model, 1, init=own.guide)
    assert torch.equal(influence.Exact(own.model, alone, own.loader).upweighting(own.test_x, own.test_y), first)


def test_an_indefinite_hessian_is_refused_with_a_damping_that_is_enough() -> None:
    own = classifier()
    point = {name: torch.full_like(value, 0.3) for name, value in own.guide.starting_point().items()}
    guide = MAP(own.model, init=point)
    y = (own.y + 1) % 3  # wrong labels, far from any maximum
    loader = [(own.x, y)]
    for kind in (influence.Exact, influence.ConjugateGradient):
        with pytest.raises(ValueError, match=r"^damping: with 0 .* smallest eigenvalue is -") as caught:
            kind(own.model, guide, loader).upweighting(own.test_x, own.test_y)
    enough = float(str(caught.value).split("damping=")[1].split(" ")[0])
    with pytest.warns(UserWarning, match=r"^guide: .* gradient has norm .* nats"):
        found = influence.Exact(own.model, guide, loader, damping=2 * enough).upweighting(own.test_x, own.test_y)
    assert bool(found.isfinite().all())


def test_what_it_cannot_do_is_refused() -> None:
    own = classifier()
    loader = own.loader
    with pytest.raises(ValueError, match=r"^guide: a MeanField is no point"):
        influence.Exact(own.model, MeanField(own.model), loader)
    with pytest.raises(TypeError, match=r"^guide: "):
        influence.Exact(own.model, 3, loader)  # type: ignore[arg-type]
    for sites, kind in (("net.0.weight", TypeError), ([], ValueError), (["net.7"], ValueError)):
        with pytest.raises(kind, match=r"^sites: "):
            influence.Exact(own.model, own.guide, loader, sites=sites)  # type: ignore[arg-type]
    for damping in (-1.0, math.nan, "a"):
        with pytest.raises((TypeError, ValueError), match=r"^damping: "):
            influence.Exact(own.model, own.guide, loader, damping=damping)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^matrix: "):
        influence.Exact(own.model, own.guide, loader, matrix="fisher")  # type: ignore[arg-type]
    method = influence.Exact(own.model, own.guide, loader)
    with pytest.raises(ValueError, match=r"^form: "):
        method.removal(own.test_x, own.test_y, form="second")  # type: ignore[arg-type]
    large = pb.SupervisedModel(nn.Linear(100, 60), pb.likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=2)
    with pytest.raises(ValueError, match=r"^sites: the matrix of 6,060 weights"):
        influence.Exact(large, MAP(large), [(torch.zeros(2, 100), torch.tensor([0, 1]))])


class Rounded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.detach().round())


def test_a_network_that_does_not_differentiate_its_inputs_is_refused() -> None:
    model = pb.SupervisedModel(Rounded(), pb.likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=6)
    x, y = torch.randn(6, 2, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3
    guide = influence.refit(model, MAP(model), [(x, y)])
    for method in (
        influence.Exact(model, guide, [(x, y)]),
        influence.PosteriorCovariance(model, MeanField(model), [(x, y)], num_samples=3),
    ):
        with pytest.raises(ValueError, match=r"^net: its outputs do not depend on its inputs"):
            method.perturbation(x, y, [0])
