"""The flow guide: the conformance suite, its density, a conjugate posterior."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.guides import MAP, Composite, MeanField, NormalizingFlow
from pyrobnn.model.layout import Layout
from tests.conformance.conjugate import ConjugateRegression
from tests.conformance.guide_suite import GuideConformance
from tests.conformance.monte_carlo import Z, z_of_mean
from tests.guides.test_base import Sites

if importlib.util.find_spec("zuko") is None:
    pytest.skip("needs zuko, of the extra flows", allow_module_level=True)


class TestNormalizingFlowConformance(GuideConformance):
    """What every guide must do."""

    is_joint = True
    exact = False

    def make_guide(self, model: nn.Module, **options: Any) -> NormalizingFlow:
        return NormalizingFlow(model, 2, transform="affine", hidden=(4,), **options)


def scattered(guide: NormalizingFlow) -> NormalizingFlow:
    guide.double()
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return guide


@pytest.mark.parametrize("transform", ["spline", "affine"])
@pytest.mark.parametrize("size", [1, 3])
def test_the_density_of_a_draw_is_that_of_autograd(size: int, transform: Any) -> None:
    """log N(z) minus the log determinant of the whole map; the density of given values is that of their draw."""
    torch.manual_seed(0)
    model = Sites(w=dist.Normal(0.0, 1.0).expand([size]).to_event(1))
    guide = scattered(NormalizingFlow(model, 3, transform=transform, hidden=(8,), init_scale=0.5, example=()))
    for _ in range(3):
        z = torch.randn(size).double()
        jacobian = torch.autograd.functional.jacobian(lambda noise: guide.rsample(noise)["w"], z)
        expected = dist.Normal(0.0, 1.0).log_prob(z).sum() - torch.linalg.slogdet(jacobian).logabsdet
        draw = guide.rsample(z)
        torch.testing.assert_close(draw.record, expected)
        value = draw["w"].detach().unsqueeze(0)
        torch.testing.assert_close(guide.log_prob({"w": value})[0], expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(guide.marginal("w").log_prob(value)[0], expected, rtol=1e-6, atol=1e-6)


def test_a_positive_site_has_its_jacobian() -> None:
    torch.manual_seed(0)
    model = Sites(s=dist.LogNormal(0.0, 1.0), w=dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    guide = scattered(NormalizingFlow(model, 2, hidden=(4,), init_scale=0.5, example=()))
    draws = guide.sample(5)
    flat = torch.cat([draws["s"].log().unsqueeze(-1), draws["w"]], -1)
    names = list(guide.layout)
    ordered = flat if names[0] == "s" else flat.roll(-1, 1)
    expected = guide.joint().log_prob(ordered) - draws["s"].log()
    torch.testing.assert_close(guide.log_prob(draws), expected)
    with pytest.raises(NotImplementedError, match=r"^site 'w': its density alone is not known"):
        guide.marginal("w").log_prob(draws["w"])


def fitted(guide: NormalizingFlow, log_joint: Callable[[Tensor], Tensor], steps: int) -> NormalizingFlow:
    """Trained by the ELBO of 128 draws at once; ``log_joint`` is that of flat vectors."""
    optimizer = torch.optim.Adam(guide.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        flat, log_q = guide.joint().drawn((128,))
        optimizer.zero_grad()
        (log_q - log_joint(flat)).mean().backward()
        optimizer.step()
        schedule.step()
    return guide


@pytest.mark.statistical
def test_a_conjugate_posterior() -> None:
    """Mean within 0.15 standard deviations, covariance within 15% of the largest variance."""
    torch.manual_seed(0)
    data = ConjugateRegression()
    made = NormalizingFlow(data.model(), 2, transform="affine", hidden=(8,), init_scale=0.2).double()

    def log_joint(flat: Tensor) -> Tensor:
        error = (data.y.T - flat @ data.features.T) / data.noise
        return -0.5 * error.square().sum(-1) - 0.5 * (flat / data.prior_scale).square().sum(-1)

    guide = fitted(made, log_joint, 800)
    with torch.no_grad():
        flat = guide.layout.join(guide.sample(20_000))
    covariance = torch.linalg.inv(data.precision)
    deviation = covariance.diagonal().sqrt()
    assert float(((flat.mean(0) - data.mean) / deviation).abs().max()) < 0.15
    correlated = covariance / (deviation.unsqueeze(0) * deviation.unsqueeze(1))
    found = flat.T.cov() / (deviation.unsqueeze(0) * deviation.unsqueeze(1))
    torch.testing.assert_close(found, correlated, rtol=0, atol=0.15)


def test_too_many_elements_are_refused_and_the_last_layer_of_a_composite_is_not() -> None:
    net = nn.Sequential(nn.Linear(3, 40), nn.Tanh(), nn.Linear(40, 1))
    model = pb.SupervisedModel(net, pb.likelihoods.Normal(0.1), dist.Normal(0.0, 1.0), num_data=4)
    with pytest.raises(ValueError, match=r"^max_latents: the flow would have 201 .*more than 100; .*Composite"):
        NormalizingFlow(model, max_latents=100)
    guide = Composite(model, [("net.2.*", NormalizingFlow), ("*", MeanField)])
    pb.fit(model, guide, [(torch.randn(4, 3), torch.randn(4, 1))], epochs=2, progress=False)
    assert guide.sample(3)["net.2.weight"].shape == (3, 1, 40)
    assert isinstance(MAP(model, init=guide).layout, Layout)


def test_a_start_is_a_gaussian() -> None:
    """20,000 draws, means and variances within z = 5."""
    torch.manual_seed(0)
    guide = NormalizingFlow(Sites(w=dist.Normal(0.0, 1.0).expand([4]).to_event(1)), init_scale=0.5, example=())
    draws = guide.sample(20_000)["w"]
    center = guide.starting_point()["w"]
    assert z_of_mean(draws, center) < Z
    assert z_of_mean((draws - center).square(), torch.full((4,), 0.25)) < Z


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"num_transforms": 0}, "num_transforms"),
        ({"hidden": (0,)}, "hidden"),
        ({"hidden": 3}, "hidden"),
        ({"transform": "radial"}, "transform"),
        ({"init_scale": 0.0}, "init_scale"),
        ({"max_latents": 0}, "max_latents"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], argument: str) -> None:
    with pytest.raises(ValueError, match=f"^{argument}: "):
        NormalizingFlow(Sites(w=dist.Normal(0.0, 1.0)), example=(), **options)
