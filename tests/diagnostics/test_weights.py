from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyrobnn import likelihoods, priors
from pyrobnn.diagnostics.weights import weight_statistics
from pyrobnn.guides import MAP, Composite, MeanField
from pyrobnn.model.supervised import SupervisedModel
from tests.diagnostics.models import set_parameters

pytestmark = pytest.mark.arviz


def linear(prior: object, likelihood: likelihoods.Likelihood | None = None) -> SupervisedModel:
    net = nn.Linear(50, 2, bias=False)
    return SupervisedModel(net, likelihood or likelihoods.Normal(1.0), prior, num_data=5)  # type: ignore[arg-type]


def test_signal_to_noise_of_a_constructed_guide() -> None:
    model = linear(dist.Normal(0.0, 1.0))
    scale = torch.linspace(0.1, 2.0, 100)
    loc = torch.where(torch.arange(100) < 70, 3.0, -0.5) * scale
    result = weight_statistics(model, set_parameters(MeanField(model), loc, scale))["net.weight"]
    assert result.size == 100
    assert result.signal_to_noise == pytest.approx(3.0, rel=1e-5)  # 70 of 100: the median
    assert result.above_noise == pytest.approx(0.7)


@pytest.mark.parametrize("prior", [dist.Normal(0.5, 2.0), priors.scale_mixture(0.5, 2.0, 2.0)])
def test_share_at_the_prior(prior: dist.Distribution) -> None:
    """60 weights equal to the prior, 40 far from it; the KL is in closed form, or sampled (the mixture's)."""
    model = linear(prior)
    center = 0.5 if isinstance(prior, dist.Normal) else 0.0
    scale = torch.where(torch.arange(100) < 60, 2.0, 0.1)
    guide = set_parameters(MeanField(model), torch.full((100,), center), scale)
    assert weight_statistics(model, guide, num_samples=50)["net.weight"].at_prior == pytest.approx(0.6)


def test_sites_on_the_positive_reals() -> None:
    model = linear(dist.Normal(0.0, 1.0), likelihoods.Normal(dist.LogNormal(0.0, 0.5)))
    guide = MeanField(model)
    site = guide.layout["likelihood.scale"]
    with torch.no_grad():  # log-normal factor: equal to the prior
        guide.flat_loc[site.offset] = 0.0
        guide.flat_log_scale[site.offset] = torch.tensor(0.5).log()
    result = weight_statistics(model, guide, num_samples=1000)["likelihood.scale"]
    assert result.at_prior == 1.0
    # mean / sd of a log-normal: 1 / sqrt(exp(0.25) - 1) = 1.876. Kurtosis 8.9: relative error of the sd of
    # 1000 draws sqrt((8.9 - 1) / 4000) = 4.4 %; |z| < 4
    assert result.signal_to_noise == pytest.approx(1.876, rel=0.18)


def test_prior_that_depends_on_other_sites() -> None:
    model = linear(priors.latent_scale(dist.LogNormal(0.0, 1.0)))
    guide = MeanField(model)
    values = guide.layout.split(guide.flat_loc.detach().clone())
    values["net.weight"].zero_()
    values["net.weight.scale"].fill_(torch.tensor(3.0).log())
    scales = {name: torch.full_like(value, 1e-4) for name, value in values.items()}
    scales["net.weight"].fill_(3.0)  # the prior's conditional scale, known almost surely
    set_parameters(guide, guide.layout.join(values), guide.layout.join(scales))
    result = weight_statistics(model, guide, num_samples=20)
    assert result["net.weight"].at_prior == 1.0
    assert result["net.weight.scale"].at_prior == 0.0


def test_a_point_estimate_has_neither() -> None:
    model = linear(dist.Normal(0.0, 1.0))
    result = weight_statistics(model, MAP(model))["net.weight"]
    assert (result.at_prior, result.signal_to_noise, result.above_noise) == (None, None, None)


def test_a_composite_knows_what_its_parts_know() -> None:
    """60 of 100 mean-field weights sit at the prior; of the point's bias there is nothing to say."""
    model = SupervisedModel(nn.Linear(50, 2), likelihoods.Normal(1.0), dist.Normal(0.0, 1.0), num_data=5)
    guide = Composite(model, [("*.weight", MeanField), ("*", MAP)])
    scale = torch.where(torch.arange(100) < 60, 1.0, 0.1)
    set_parameters(guide.parts[0], torch.where(torch.arange(100) < 60, 0.0, 1.0), scale)
    result = weight_statistics(model, guide, num_samples=20)
    assert list(result) == list(guide.layout)
    assert result["net.weight"].at_prior == pytest.approx(0.6)
    assert result["net.weight"].above_noise == pytest.approx(0.4)
    bias = result["net.bias"]
    assert (bias.at_prior, bias.signal_to_noise, bias.above_noise) == (None, None, None)


def test_refuses_guides_from_elsewhere() -> None:
    with pytest.raises(TypeError, match=r"guide: expected one of pyrobnn.guides, got function"):
        weight_statistics(linear(dist.Normal(0.0, 1.0)), lambda: None)  # type: ignore[arg-type]
