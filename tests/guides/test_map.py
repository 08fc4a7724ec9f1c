"""The point estimate: the conformance suite, weight decay, ridge regression, and modes in both spaces."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import nn

from pyrobnn import likelihoods
from pyrobnn.guides import MAP
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.objectives import ELBO
from tests.conformance.conjugate import ConjugateRegression
from tests.conformance.guide_suite import GuideConformance
from tests.guides.test_base import Sites


class TestMapConformance(GuideConformance):
    """What every guide must do."""

    has_density = False
    is_point = True

    def make_guide(self, model: nn.Module, **options: Any) -> MAP:
        return MAP(model, **options)


def test_sample_repeats_the_network_it_started_from() -> None:
    net = nn.Linear(3, 2)
    guide = MAP(SupervisedModel(net, likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=4))
    draws = guide.sample(3)
    assert torch.equal(draws["net.weight"], net.weight.detach().expand(3, 2, 3))
    assert torch.equal(draws["net.bias"], net.bias.detach().expand(3, 2))


def test_a_point_has_no_density() -> None:
    guide = MAP(Sites(w=dist.Normal(0.0, 1.0)), example=())
    with pytest.raises(NotImplementedError, match="MAP has no density of the site 'w'"):
        guide.log_prob(guide.sample(1))


@pytest.mark.parametrize("batch_size", [32, 8])
def test_gradient_is_weight_decay(batch_size: int) -> None:
    """Prior variance 1 / (λN) is weight decay λ on the mean loss, for full batches and minibatches."""
    num_data, decay = 32, 0.05
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    prior = dist.Normal(0.0, (decay * num_data) ** -0.5)
    model = SupervisedModel(net, likelihoods.Categorical(), prior, num_data=num_data).double()
    guide = MAP(model)
    x, y = torch.randn(batch_size, 4).double(), torch.randint(3, (batch_size,))
    ELBO().backward(model, guide, (x, y), scale=1.0 / num_data)
    F.cross_entropy(net(x), y).backward()
    found = guide.layout.split(guide.flat_loc.grad)
    for name, weight in net.named_parameters():
        # The prior's scale is a single-precision number; 1e-6 is its rounding.
        torch.testing.assert_close(found[f"net.{name}"], weight.grad + decay * weight.detach(), rtol=1e-6, atol=1e-7)


def test_ridge_regression_is_a_stationary_point_and_the_optimum() -> None:
    data = ConjugateRegression()
    model = data.model()
    guide = MAP(model).double()
    optimizer = torch.optim.LBFGS(guide.parameters(), max_iter=50, line_search_fn="strong_wolfe")
    elbo = ELBO()

    def closure() -> float:
        optimizer.zero_grad()
        return elbo.loss_and_grads(model, guide, data.x, data.y)

    optimizer.step(closure)
    torch.testing.assert_close(guide.flat_loc.detach(), data.mean, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        guide.flat_loc.copy_(data.mean)
    closure()
    assert float(guide.flat_loc.grad.abs().max()) < 1e-5 * float(data.precision.max())


def test_loss_is_the_negative_log_joint() -> None:
    data = ConjugateRegression()
    model = data.model()
    guide = MAP(model).double()
    weights = guide.flat_loc.detach()
    log_prior = dist.Normal(0.0, data.prior_scale).log_prob(weights).sum()
    log_likelihood = dist.Normal(data.features @ weights, data.noise).log_prob(data.y.squeeze(-1)).sum()
    elbo = ELBO()
    assert elbo.loss(model, guide, data.x, data.y) == pytest.approx(-float(log_prior + log_likelihood), rel=1e-6)
    assert elbo.parts is not None
    assert float(elbo.parts.divergence) == pytest.approx(-float(log_prior), rel=1e-6)


MODES = {
    # family, mode of the density of the value, mode of the density of its logarithm
    "LogNormal": (dist.LogNormal(0.4, 0.6), 0.4 - 0.36, 0.4),
    "Gamma": (dist.Gamma(3.0, 2.0), torch.tensor(1.0).log().item(), torch.tensor(1.5).log().item()),
}


@pytest.mark.parametrize("jacobian", [False, True])
@pytest.mark.parametrize("family", MODES)
@pytest.mark.parametrize("objective", [ELBO, Trace_ELBO, TraceMeanField_ELBO])
def test_known_modes(family: str, jacobian: bool, objective: type) -> None:
    """The gradient vanishes at the known mode, from the right side, under every objective."""
    prior, *log_modes = MODES[family]
    log_mode = log_modes[jacobian]
    model = Sites(s=prior.expand([2]).to_event(1))
    for offset, sign in ((0.0, 0.0), (0.5, 1.0), (-0.5, -1.0)):
        init = {"s": torch.full((2,), log_mode + offset).exp()}
        guide = MAP(model, init, jacobian=jacobian, example=())
        objective().loss_and_grads(model, guide)
        gradient = dict(guide.named_parameters())["loc"].grad
        if sign == 0.0:
            torch.testing.assert_close(gradient, torch.zeros(2), rtol=0.0, atol=1e-5)
        else:
            assert bool((gradient * sign > 0.05).all())


def test_jacobian_changes_nothing_for_real_sites() -> None:
    data = ConjugateRegression()
    model = data.model()
    losses = {ELBO().loss(model, MAP(model, jacobian=j).double(), data.x, data.y) for j in (False, True)}
    assert len(losses) == 1


@pytest.mark.parametrize("jacobian", [False, True])
@pytest.mark.parametrize("shape", [(), (3,)], ids=str)
def test_simplex_and_matrix_supports(shape: tuple[int, ...], jacobian: bool) -> None:
    """Transforms that change dimension: our objective against Pyro's, which scores the point mass itself."""
    model = Sites(p=dist.Dirichlet(torch.tensor([2.0, 3.0, 4.0])).expand(shape).to_event(), c=dist.LKJCholesky(3, 2.0))
    guide = MAP(model, example=(), jacobian=jacobian)
    assert ELBO().loss(model, guide) == pytest.approx(Trace_ELBO().loss(model, guide), rel=1e-5, abs=1e-5)
