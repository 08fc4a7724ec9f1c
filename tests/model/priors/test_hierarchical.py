"""Laws of hierarchical priors: closed-form moments, densities and gradients; the non-centered horseshoe."""

from __future__ import annotations

import copy
import json
import math
import pickle

import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from pyrobnn.model.bayesianize import bayesianize
from pyrobnn.model.priors import (
    FixedPrior,
    HorseshoePrior,
    LatentScalePrior,
    LearnedScalePrior,
    Prior,
    from_spec,
    horseshoe,
    latent_scale,
    learned_scale,
)
from pyrobnn.model.substitution import SubstituteMessenger

VALUE = torch.tensor([[0.3, -1.2, 2.0], [0.0, 0.7, -0.4]])

PRIORS = {
    "fixed": lambda shape: FixedPrior(dist.Laplace(0.0, 0.7), shape),
    "horseshoe": lambda shape: HorseshoePrior(shape, 0.3),
    "latent scale": lambda shape: LatentScalePrior(shape, dist.LogNormal(-1.0, 0.5)),
    "learned scale": lambda shape: LearnedScalePrior(shape, 0.4),
}


def draw_auxiliary(prior: Prior, num_samples: int) -> dict[str, Tensor]:
    """Independent draws of a prior's latent sites, ``[num_samples, *site shape]``."""
    return {suffix: p.conditional().sample((num_samples,)) for suffix, p in prior.auxiliary.items()}


@pytest.mark.parametrize("kind", PRIORS)
def test_spec_json_state_dict_round_trip(kind: str) -> None:
    prior = PRIORS[kind](VALUE.shape)
    rebuilt = from_spec(json.loads(json.dumps(prior.spec())))
    rebuilt.load_state_dict(prior.state_dict())
    assert type(rebuilt) is type(prior)
    assert rebuilt.extra_repr() == prior.extra_repr()
    assert list(rebuilt.auxiliary) == list(prior.auxiliary)
    auxiliary = {suffix: value[0] for suffix, value in draw_auxiliary(prior, 1).items()}
    for suffix, value in auxiliary.items():
        mine, theirs = prior.auxiliary[suffix].distribution, rebuilt.auxiliary[suffix].distribution
        assert torch.equal(theirs.log_prob(value), mine.log_prob(value))
    mine, theirs = prior.conditional(**auxiliary), rebuilt.conditional(**auxiliary)
    if isinstance(mine, Tensor):
        assert torch.equal(theirs, mine)
    else:
        assert torch.equal(theirs.log_prob(VALUE), mine.log_prob(VALUE))


@pytest.mark.parametrize("kind", PRIORS)
def test_deepcopy_pickle_and_double(kind: str) -> None:
    prior = PRIORS[kind](VALUE.shape)
    for twin in (copy.deepcopy(prior), pickle.loads(pickle.dumps(prior))):
        assert twin.spec() == prior.spec()
        assert all(twin.get_submodule(suffix) is p for suffix, p in twin.auxiliary.items())
    prior.double()
    auxiliary = {suffix: value[0] for suffix, value in draw_auxiliary(prior, 1).items()}
    assert all(value.dtype == torch.float64 for value in auxiliary.values())
    conditional = prior.conditional(**auxiliary)
    value = conditional if isinstance(conditional, Tensor) else conditional.sample()
    assert value.dtype == torch.float64
    assert value.shape == VALUE.shape


@pytest.mark.parametrize("kind", PRIORS)
def test_the_initial_sites_give_the_value_back(kind: str) -> None:
    initial = PRIORS[kind](VALUE.shape).initial(VALUE)
    if kind == "horseshoe":
        assert "" not in initial, "the parameter itself is no site: it is determined by the others"
        value = PRIORS[kind](VALUE.shape).conditional(**initial)
        assert isinstance(value, Tensor)
        torch.testing.assert_close(value, VALUE)
    else:
        assert torch.equal(initial[""], VALUE)


@pytest.mark.parametrize("kind", ["horseshoe", "latent scale"])
def test_the_initial_scale_of_an_all_zero_parameter_is_positive(kind: str) -> None:
    prior = PRIORS[kind](torch.Size([3]))
    for suffix, value in prior.initial(torch.zeros(3)).items():
        if suffix:
            assert bool(prior.auxiliary[suffix].distribution.support.check(value).all())


# ------------------------------------------------------------------------------------------------ horseshoe


def test_the_horseshoe_is_the_product_of_its_sites() -> None:
    prior = HorseshoePrior(VALUE.shape, 0.3)
    raw, local, total = VALUE, VALUE.abs() + 0.1, torch.tensor(0.2)
    value = prior.conditional(raw=raw, local_scale=local, global_scale=total)
    assert torch.equal(value, raw * local * total)
    at_two = prior.auxiliary["global_scale"].distribution.log_prob(torch.tensor(2.0)).item()
    assert at_two == pytest.approx(math.log(2 / (math.pi * 0.3 * (1 + (2 / 0.3) ** 2))), rel=1e-5)


def test_the_non_centered_horseshoe_has_the_law_of_the_centered_one() -> None:
    """Two-sample Kolmogorov-Smirnov, 20,000 draws of each: the level 1e-4 is a distance of 0.022."""
    draws, scale = 20_000, 0.3
    prior = HorseshoePrior(torch.Size(), scale)
    non_centered = prior.conditional(**draw_auxiliary(prior, draws))
    local = stats.halfcauchy.rvs(size=draws, random_state=1)
    total = stats.halfcauchy.rvs(scale=scale, size=draws, random_state=2)
    centered = stats.norm.rvs(scale=local * total, random_state=3)
    assert stats.ks_2samp(non_centered.numpy(), centered).pvalue > 1e-4
    without_global = stats.norm.rvs(scale=local, random_state=4)
    assert stats.ks_2samp(non_centered.numpy(), without_global).pvalue < 1e-10, "the test can tell laws apart"


def test_the_shrinkage_factor_has_the_shape_of_a_horseshoe() -> None:
    """1 / (1 + local scale²) ~ Beta(1/2, 1/2), which gave the prior its name; 20,000 draws, level 1e-4."""
    local = draw_auxiliary(HorseshoePrior(torch.Size()), 20_000)["local_scale"].double()
    assert stats.kstest((1 / (1 + local.square())).numpy(), stats.beta(0.5, 0.5).cdf).pvalue > 1e-4


def test_the_elements_of_a_horseshoe_share_one_global_scale() -> None:
    r"""log|w_i| = log|z_i| + log λ_i + log τ, of variances π²/8, π²/4 and π²/4; the last is the covariance.

    40,000 draws; the standard error of a (co)variance is estimated from the products, z = 4.
    """
    draws = 40_000
    prior = HorseshoePrior(torch.Size([2]), 0.3)
    auxiliary = draw_auxiliary(prior, draws)
    auxiliary["global_scale"] = auxiliary["global_scale"].unsqueeze(-1)
    logs = prior.conditional(**auxiliary).double().abs().log()
    logs = logs - logs.mean(0)
    for i, j, expected in ((0, 0, 5 * math.pi**2 / 8), (1, 1, 5 * math.pi**2 / 8), (0, 1, math.pi**2 / 4)):
        products = logs[:, i] * logs[:, j]
        error = products.std() / math.sqrt(draws)
        assert abs(products.mean() - expected) < 4 * error


def test_a_horseshoe_network_has_the_sites_of_the_prior_and_a_deterministic_weight() -> None:
    model = bayesianize(nn.Linear(3, 2, bias=False), horseshoe(0.3))
    values = {
        "weight.raw": VALUE,
        "weight.local_scale": VALUE.abs() + 1,
        "weight.global_scale": torch.tensor(0.5),
    }
    x = torch.randn(4, 3)
    with SubstituteMessenger(values) as handler:
        output = model(x)
    assert [message["name"] for message in handler.latent] == [
        "weight.raw",
        "weight.local_scale",
        "weight.global_scale",
    ]
    torch.testing.assert_close(output, x @ (VALUE * (VALUE.abs() + 1) * 0.5).T)


@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_the_scale_of_a_horseshoe_is_positive(scale: float) -> None:
    with pytest.raises(ValueError, match="scale"):
        HorseshoePrior(torch.Size([2]), scale)


# --------------------------------------------------------------------------------------------- latent scale


def test_the_log_joint_of_a_latent_scale() -> None:
    scale_prior = dist.LogNormal(-1.0, 0.5)
    model = bayesianize(nn.Linear(3, 2, bias=False), latent_scale(scale_prior))
    sigma = torch.tensor(0.7)
    with SubstituteMessenger({"weight": VALUE, "weight.scale": sigma}) as handler:
        model(torch.zeros(1, 3))
    joint = sum(message["fn"].log_prob(message["value"]) for message in handler.latent)
    weights = -0.5 * (VALUE / 0.7) ** 2 - math.log(0.7) - 0.5 * math.log(2 * math.pi)
    expected = weights.sum() - 0.5 * ((math.log(0.7) + 1) / 0.5) ** 2 - math.log(0.7 * 0.5 * math.sqrt(2 * math.pi))
    torch.testing.assert_close(joint, expected)


def test_the_marginal_of_a_latent_scale() -> None:
    """A half-normal(1) scale: E[w²] = E[σ²] = 1 and E[w⁴] = 3 E[σ⁴] = 9; 5,000 draws, z = 4."""
    prior = LatentScalePrior(torch.Size(), dist.HalfNormal(1.0))
    scales = draw_auxiliary(prior, 5_000)["scale"]
    weight = torch.stack([prior.conditional(scale=scale).sample() for scale in scales]).double()
    for power, expected in ((2, 1.0), (4, 9.0)):
        moment = weight**power
        assert abs(moment.mean() - expected) < 4 * moment.std() / math.sqrt(len(moment))


def test_half_normal_is_the_default_of_a_latent_scale() -> None:
    model = bayesianize(nn.Linear(3, 2), latent_scale())
    for parameter in ("weight", "bias"):
        scale = model.site_priors[parameter].auxiliary["scale"].distribution
        assert scale.log_prob(torch.tensor(0.5)).item() == pytest.approx(stats.halfnorm.logpdf(0.5), rel=1e-5)


@pytest.mark.parametrize("scale", [dist.Normal(0.0, 1.0), dist.Uniform(-1.0, 1.0)], ids=["normal", "uniform"])
def test_a_latent_scale_that_can_be_negative_is_refused(scale: dist.Distribution) -> None:
    with pytest.raises(ValueError, match=r"scale.*positive"):
        LatentScalePrior(torch.Size([2]), scale)


def test_one_scale_for_one_tensor() -> None:
    with pytest.raises(ValueError, match=r"'scale'.*does not broadcast"):
        LatentScalePrior(torch.Size([2]), dist.HalfNormal(torch.ones(2)))


# -------------------------------------------------------------------------------------------- learned scale


def test_the_learned_scale_has_the_gradient_of_the_log_prior() -> None:
    """d/d log σ of Σ log N(w; 0, σ²) is Σ (w²/σ² - 1)."""
    prior = LearnedScalePrior(VALUE.shape, 0.5)
    prior.conditional().log_prob(VALUE).backward()
    assert prior.log_scale.grad is not None
    torch.testing.assert_close(prior.log_scale.grad, (VALUE.square() / 0.25 - 1).sum())


def test_the_learned_scale_is_trained_with_the_network_that_owns_it() -> None:
    model = bayesianize(nn.Linear(3, 2, bias=False), learned_scale(0.5))
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(names) == 1
    assert names[0].endswith("log_scale")
    with SubstituteMessenger({"weight": VALUE}) as handler:
        model(torch.zeros(1, 3))
    (message,) = handler.latent
    message["fn"].log_prob(message["value"]).backward()
    torch.testing.assert_close(model.get_parameter(names[0]).grad, (VALUE.square() / 0.25 - 1).sum())


def test_maximizing_the_prior_density_finds_the_root_mean_square() -> None:
    prior = LearnedScalePrior(VALUE.shape)
    optimizer = torch.optim.LBFGS([prior.log_scale], max_iter=50, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = -prior.conditional().log_prob(VALUE)
        value.backward()
        return value

    optimizer.step(loss)
    torch.testing.assert_close(prior.log_scale.exp(), VALUE.square().mean().sqrt(), rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("initial", [0.0, -1.0, math.nan])
def test_the_initial_scale_is_positive(initial: float) -> None:
    with pytest.raises(ValueError, match=r"scale.*positive"):
        LearnedScalePrior(torch.Size([2]), initial)
