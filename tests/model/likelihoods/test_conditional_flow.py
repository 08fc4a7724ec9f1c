"""Conditional flows: the suite, splines by hand, maps against autograd and quadrature, refusals."""

from __future__ import annotations

import importlib.util
import math
import subprocess
import sys
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyrobnn.guides import MAP, Laplace, MeanField
from pyrobnn.model.likelihoods import ConditionalFlow, Likelihood
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.prediction import predict
from pyrobnn.sampling import SGLD, sample
from pyrobnn.training import fit
from tests.conformance.likelihood_suite import LikelihoodConformance

if importlib.util.find_spec("zuko") is None:
    pytest.skip("needs zuko, of the extra flows", allow_module_level=True)

KINDS: list[dict[str, Any]] = [
    {"transform": transform, "coupling": coupling} for transform in ("spline", "affine") for coupling in (False, True)
]


def spline_by_hand(raw: Tensor, x: float, bins: int) -> tuple[float, float]:
    """Value and derivative of a rational-quadratic spline (Durkan et al. 2019, equations 4 and 5), by loops."""
    if not -5.0 < x < 5.0:
        return x, 1.0
    size = math.log(1e-3)
    widths, heights, slopes = raw.split([bins, bins, bins - 1])
    widths = (widths / (1 + (2 * widths / size).abs())).softmax(-1) * 10
    heights = (heights / (1 + (2 * heights / size).abs())).softmax(-1) * 10
    inner = (slopes / (1 + (slopes / size).abs())).exp().tolist()
    slope = [1.0, *inner, 1.0]
    left = bottom = -5.0
    for k in range(bins):
        width, height = float(widths[k]), float(heights[k])
        if x <= left + width or k == bins - 1:
            t, s = (x - left) / width, height / width
            low, high = slope[k], slope[k + 1]
            below = s + (high + low - 2 * s) * t * (1 - t)
            value = bottom + height * (s * t * t + low * t * (1 - t)) / below
            return value, s * s * (high * t * t + 2 * s * t * (1 - t) + low * (1 - t) ** 2) / below**2
        left, bottom = left + width, bottom + height
    raise AssertionError


class TestConditionalFlowConformance(LikelihoodConformance):
    """One target, whose flow is the network's outputs."""

    num_outputs = 2 + 11

    def make(self, **options: Any) -> Likelihood:
        return ConditionalFlow(bins=4, floor=0.05, num_nodes=64, **options)

    def log_density(self, outputs: Tensor, y: Tensor) -> Tensor:
        found = torch.zeros(len(y)).double()
        for row, output in enumerate(outputs.double()):
            scale = math.log1p(math.exp(output[1])) + 0.05
            x = float(y[row, 0] - output[0]) / scale
            log_slope = -math.log(scale)
            x, slope = spline_by_hand(output[2:], x, 4)
            log_slope += math.log(slope)
            found[row] = -0.5 * x * x - 0.5 * math.log(2 * math.pi) + log_slope
        return found


def trained(likelihood: ConditionalFlow, size: float = 0.2) -> ConditionalFlow:
    """Random weights of the flow's own networks, location and scale, the same for every call."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in likelihood.parameters():
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
    return likelihood


class TestFlowOfSeveralTargetsConformance(LikelihoodConformance):
    """Two targets, and a flow with weights of its own."""

    num_outputs = 4
    has_cdf = False
    takes_missing = False

    def make(self, **options: Any) -> Likelihood:
        made = ConditionalFlow(
            2, 4, transform="affine", coupling=True, num_transforms=2, hidden=(8,), num_nodes=64, **options
        )
        return trained(made)

    def log_density(self, outputs: Tensor, y: Tensor) -> Tensor:
        """By loops over layers: each leaves one target and shifts and scales the other, given that and the context."""
        with torch.no_grad():
            state = {name: value.double() for name, value in self.make().state_dict().items()}
        x = (y - state["flow.loc"]) / state["flow.log_scale"].exp()
        log_slope = -state["flow.log_scale"].sum().expand(len(y))
        for layer, kept in ((0, 0), (1, 1)):
            prefix = f"flow.maps.transform.transforms.{layer}.hyper"
            hidden = torch.cat([x[:, kept : kept + 1], outputs], 1)
            hidden = torch.relu(hidden @ state[f"{prefix}.0.weight"].T + state[f"{prefix}.0.bias"])
            shift, log_scale = (hidden @ state[f"{prefix}.2.weight"].T + state[f"{prefix}.2.bias"]).unbind(-1)
            log_scale = log_scale / (1 + (log_scale / math.log(1e-3)).abs())
            columns = list(x.unbind(-1))
            columns[1 - kept] = columns[1 - kept] * log_scale.exp() + shift
            x, log_slope = torch.stack(columns, -1), log_slope + log_scale
        found: Tensor = (-0.5 * x.square() - 0.5 * math.log(2 * math.pi)).sum(-1) + log_slope
        return found


@torch.no_grad()
@pytest.mark.parametrize("options", [{"num_transforms": 2}, {"context": 3}, {"context": 3, "transform": "affine"}])
def test_the_density_of_one_target_integrates_to_one(options: dict[str, Any]) -> None:
    """By the trapezoidal rule; and its cdf is the running integral."""
    likelihood = trained(ConditionalFlow(hidden=(8,), num_nodes=2048, **options)).double()
    outputs = torch.randn(3, likelihood.num_outputs, generator=torch.Generator().manual_seed(1)).double()
    found = likelihood.distribution(likelihood.parameters_of(outputs))
    axis = torch.linspace(-30.0, 30.0, 60_001, dtype=torch.float64).reshape(-1, 1, 1)
    density, step = found.log_prob(axis).exp(), 60.0 / 60_000
    torch.testing.assert_close(density.sum(0) * step, torch.ones(3, 1).double(), rtol=0, atol=1e-4)
    running = (density.cumsum(0) - density / 2)[::6000] * step
    torch.testing.assert_close(found.cdf(axis)[::6000], running, rtol=0, atol=2e-4)
    mean = (density * axis).sum(0) * step
    variance = (density * (axis - mean).square()).sum(0) * step
    torch.testing.assert_close(found.mean, mean, rtol=0, atol=3e-3)
    torch.testing.assert_close(found.variance, variance, rtol=5e-3, atol=0)


@pytest.mark.parametrize("options", KINDS)
def test_the_joint_density_integrates_to_one(options: dict[str, Any]) -> None:
    likelihood = trained(ConditionalFlow(2, 3, hidden=(8,), **options)).double()
    outputs = torch.randn(1, 3, generator=torch.Generator().manual_seed(1)).double()
    found = likelihood(outputs)
    axis = torch.linspace(-7.5, 7.5, 601, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis).unsqueeze(1)
    with torch.no_grad():
        total = found.log_prob(points).exp().sum(0) * (axis[1] - axis[0]) ** 2
    torch.testing.assert_close(total, torch.ones(1).double(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", KINDS)
def test_maps_are_inverted_and_their_determinants_are_autograds(options: dict[str, Any], dtype: torch.dtype) -> None:
    likelihood = trained(ConditionalFlow(3, 2, hidden=(8,), **options)).to(dtype)
    context = torch.randn(2, generator=torch.Generator().manual_seed(1)).to(dtype)
    found = likelihood.distribution(likelihood.parameters_of(context.expand(20, 2)))
    z = torch.randn(20, 3, generator=torch.Generator().manual_seed(2)).to(dtype)
    with torch.no_grad():
        x = found.transform.inverse(z)
        back, ladj = found.transform.call_and_ladj(x)
    assert float((back - z).abs().max()) < (1e-4 if dtype == torch.float32 else 1e-9)
    one = likelihood.distribution(likelihood.parameters_of(context.expand(1, 2))).transform
    for row in range(3):
        jacobian = torch.autograd.functional.jacobian(lambda v: one.call_and_ladj(v)[0][0], x[row : row + 1])
        expected = torch.linalg.slogdet(jacobian[:, 0]).logabsdet
        torch.testing.assert_close(ladj[row], expected, rtol=1e-4, atol=1e-4)


def test_outputs_of_zero_and_an_untrained_flow_are_normal() -> None:
    y = torch.randn(4, 1).double()
    likelihood = ConditionalFlow(floor=0.0)
    scale = torch.tensor(math.log(2.0)).double()
    found = likelihood(torch.zeros(4, likelihood.num_outputs).double()).log_prob(y)
    torch.testing.assert_close(found, dist.Normal(0.0, scale).log_prob(y)[:, 0])
    y = torch.randn(50, 2).double() * 3 + 1
    for options in KINDS:
        learned = ConditionalFlow(2, 3, **options).double()
        learned.initialize(y)
        expected = dist.Normal(y.mean(0), y.std(0)).log_prob(y).sum(-1)
        torch.testing.assert_close(learned(torch.randn(50, 3).double()).log_prob(y), expected)


def test_a_flow_moves_with_location_and_scale() -> None:
    loc, scale = torch.tensor([1.0, -2.0]).double(), torch.tensor([3.0, 0.5]).double()
    y = torch.randn(3, 2).double()
    for targets, likelihood in ((1, ConditionalFlow()), (2, trained(ConditionalFlow(2, 5)).double())):
        parameters = likelihood.parameters_of(torch.randn(3, likelihood.num_outputs).double())
        moved = likelihood.distribution(likelihood.rescaled(parameters, loc[:targets], scale[:targets]))
        expected = likelihood.distribution(parameters).log_prob(y[:, :targets])
        change = scale[:targets].log() if targets == 1 else scale.log().sum()
        torch.testing.assert_close(moved.log_prob(loc[:targets] + scale[:targets] * y[:, :targets]), expected - change)


def problem(**options: Any) -> tuple[SupervisedModel, Tensor, Tensor]:
    torch.manual_seed(0)
    likelihood = ConditionalFlow(2, 3, hidden=(8,), num_transforms=2, **options)
    model = SupervisedModel(nn.Linear(1, 3), likelihood, dist.Normal(0.0, 1.0), num_data=40)
    x = torch.randn(40, 1)
    return model, x, torch.cat([x.square(), x], 1) + 0.3 * torch.randn(40, 2)


def test_a_learned_flow_must_be_trained_before_it_is_held_fixed() -> None:
    model, x, y = problem()
    for call in (
        lambda: sample(model, (x, y), kernel=SGLD(1e-5), num_samples=2, progress=False),
        lambda: Laplace(model).fit(model, [(x, y)]),
    ):
        with pytest.raises(ValueError, match=r"^likelihood: .*ConditionalFlow is to be learned.*Train it first"):
            call()
    fit(model, MAP(model), [(x, y)], epochs=2, progress=False)
    assert not model.likelihood.untrained
    sample(model, (x, y), kernel=SGLD(1e-5), num_samples=2, progress=False)


def test_a_prediction_keeps_the_flow_that_it_was_made_with() -> None:
    model, x, y = problem(coupling=True)
    guide = MeanField(model)
    history = fit(model, guide, [(x, y)], epochs=30, lr=0.02, progress=False)
    assert history.log_likelihood[-1] > history.log_likelihood[0]
    found = predict(model, guide, x, 3, seed=0)
    before = found.log_prob(y)
    fit(model, guide, [(x, y)], epochs=2, lr=0.02, progress=False)
    assert torch.equal(found.log_prob(y), before)
    low, high = found.interval(0.8)
    assert low.shape == y.shape and bool((low <= high).all())
    with pytest.raises(ValueError, match=r"^cdf: the distribution of ConditionalFlow has no cdf"):
        found.cdf(y)


@pytest.mark.parametrize(
    ("options", "argument", "words"),
    [
        ({"coupling": True}, "coupling", "needs at least two"),
        ({"coupling": True, "context": 3}, "coupling", "needs at least two"),
        ({"num_targets": 2}, "context", "state how many features"),
        ({"transform": "affine"}, "transform", "HeteroscedasticNormal"),
        ({"num_targets": 2, "context": 3, "missing": True}, "missing", "MixtureDensity"),
        ({"num_targets": 0}, "num_targets", "positive int"),
        ({"context": 0}, "context", "positive int"),
        ({"bins": 1}, "bins", ""),
        ({"hidden": (0,)}, "hidden", "widths"),
        ({"hidden": "ab"}, "hidden", "widths"),
        ({"num_transforms": 0}, "num_transforms", "positive int"),
        ({"num_nodes": 2}, "num_nodes", ""),
        ({"transform": "nice"}, "transform", "'spline' or 'affine'"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], argument: str, words: str) -> None:
    with pytest.raises(ValueError, match=f"^{argument}: .*{words}"):
        ConditionalFlow(**options)


def test_outputs_of_another_number_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^net: this ConditionalFlow expects outputs \[B, 25\]"):
        ConditionalFlow().check_shape(torch.zeros(4, 24), torch.zeros(4, 1))


def test_the_import_leaves_validation_as_it_was() -> None:
    code = """
import sys, pyro.distributions as dist, pyrobnn as pb
assert "zuko" not in sys.modules
pb.likelihoods.ConditionalFlow()
assert "zuko" in sys.modules
try:
    dist.Normal(0.0, -1.0)
except ValueError:
    print("validated")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "validated", done.stderr
