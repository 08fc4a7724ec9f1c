from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyrobnn import likelihoods
from pyrobnn.diagnostics._batches import batches
from pyrobnn.diagnostics.importance import importance_k_hat, k_hat_threshold, last_layer_sites, log_ratios
from pyrobnn.guides import MAP, Composite, LowRankNormal, MeanField
from pyrobnn.model.draws import Draws
from pyrobnn.model.supervised import SupervisedModel
from tests.diagnostics.models import NOISE, Conjugate, set_parameters, small_network

pytestmark = pytest.mark.arviz


def test_ratios_of_the_exact_posterior_are_the_evidence() -> None:
    case = Conjugate()
    ratios = log_ratios(case.model, case.guide(), batches(case.model, (case.x, case.y), {}, 32), ["net.weight"], 20)
    n = len(case.y)
    noise = case.model.likelihood.noise_scale().double().item()
    covariance = noise**2 * torch.eye(n, dtype=torch.float64) + case.x @ case.x.T
    evidence = torch.distributions.MultivariateNormal(torch.zeros(n, dtype=torch.float64), covariance)
    torch.testing.assert_close(ratios, evidence.log_prob(case.y[:, 0]).expand(20), rtol=1e-6, atol=1e-5)


def test_k_hat_is_small_for_the_exact_posterior() -> None:
    case = Conjugate()
    assert importance_k_hat(case.model, case.guide(), case.x, case.y) < 0.3


def test_k_hat_of_a_guide_too_narrow() -> None:
    # With widths s times the truth the log ratio is (1 - s²) z² / 2 per weight, whose tail has k = 1 - s²,
    # 0.91 for s = 0.3. Of 1000 draws 95 are the tail: sd (1 + k) / sqrt(95) = 0.2; three weights bias it up.
    case = Conjugate()
    k_hat = importance_k_hat(case.model, case.guide(width=0.3), case.x, case.y, num_samples=1000)
    assert 0.6 < k_hat < 1.8


def test_k_hat_of_a_guide_too_wide() -> None:
    case = Conjugate()  # bounded ratios
    assert importance_k_hat(case.model, case.guide(width=1.5), case.x, case.y, num_samples=1000) < 0.2


def test_batches_change_nothing() -> None:
    case = Conjugate()
    guide = case.guide(width=0.5)
    results = []
    for batch_size in (7, 1000):
        torch.manual_seed(0)
        results.append(importance_k_hat(case.model, guide, case.x, case.y, batch_size=batch_size, num_samples=100))
    assert results[0] == pytest.approx(results[1], rel=1e-6)


def test_sites_that_are_held_do_not_matter() -> None:
    # The guide is exact for the first half of the weights and hopeless for the others, of a site of its own.
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = (nn.Linear(2, 1, bias=False, dtype=torch.float64) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return self.first(x[:, :2]) + self.second(x[:, 2:])

    case = Conjugate(dims=4)
    prior = dist.Normal(torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64))
    model = SupervisedModel(Two(), likelihoods.Normal(0.5), prior, num_data=100).double()
    guide = MeanField(model)
    with torch.no_grad():
        guide.flat_loc.copy_(case.mean)
        guide.flat_log_scale.copy_((case.precision.rsqrt() * torch.tensor([1.0, 1.0, 0.1, 0.1])).log())
    assert importance_k_hat(model, guide, case.x, case.y, sites=["net.first.*"]) < 0.3
    assert last_layer_sites(model, guide) == ["net.second.weight"]
    assert importance_k_hat(model, guide, case.x, case.y) > 0.7


def test_latent_noise_scale_is_part_of_the_joint() -> None:
    model = SupervisedModel(
        nn.Linear(1, 1), likelihoods.Normal(dist.LogNormal(0.0, 1.0)), dist.Normal(0.0, 1.0), num_data=3
    )
    guide = MeanField(model, init_scale=0.3)
    x, y = torch.randn(3, 1), torch.randn(3, 1)
    torch.manual_seed(5)
    ratios = log_ratios(model, guide, batches(model, (x, y), {}, 2), list(guide.layout), 4)
    torch.manual_seed(5)
    guide.sample(1)  # the held draw comes first
    first, rest = guide.sample(1), guide.sample(3)
    for index in range(4):
        w = {n: (torch.cat([first[n], rest[n]])[index]) for n in first}
        scale = w["likelihood.scale"]
        expected = dist.Normal(x @ w["net.weight"].T + w["net.bias"], scale).log_prob(y).sum()
        expected += dist.LogNormal(0.0, 1.0).log_prob(scale)
        expected += sum(dist.Normal(0.0, 1.0).log_prob(w[n]).sum() for n in ("net.weight", "net.bias"))
        expected -= guide.log_prob({n: v[None] for n, v in w.items()}).detach()[0]
        assert ratios[index].item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-4)


def test_last_layer() -> None:
    model, _, _ = small_network()
    assert last_layer_sites(model, MeanField(model)) == ["net.2.weight", "net.2.bias"]


def test_last_layer_is_the_one_that_runs_last() -> None:
    class HeadFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.body = nn.Linear(3, 2), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x).tanh())

    model = SupervisedModel(HeadFirst(), likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=5)
    guide, x, y = MeanField(model), torch.randn(5, 4), torch.tensor([0, 1, 0, 1, 1])
    head = ["net.head.weight", "net.head.bias"]
    for arguments in ((x,), (x, y)):
        assert last_layer_sites(model, guide, *arguments) == head
    assert last_layer_sites(model, MeanField(model, sites=["net.body.weight"]), x, y) == ["net.body.weight"]
    torch.manual_seed(0)
    found = importance_k_hat(model, guide, x, y, num_samples=100)
    torch.manual_seed(0)
    model.eval()
    assert found == importance_k_hat(model, guide, x, y, num_samples=100, sites=head)


def test_threshold() -> None:
    assert k_hat_threshold(100) == pytest.approx(0.5)
    assert k_hat_threshold(10**6) == 0.7


def test_mistakes_get_clear_errors() -> None:
    case = Conjugate()
    guide = case.guide()
    with pytest.raises(ValueError, match=r"x, y: k-hat needs all 100 training data \(num_data\), got 50 rows"):
        importance_k_hat(case.model, guide, case.x[:50], case.y[:50])
    with pytest.raises(ValueError, match="guide: MAP has no density"):
        importance_k_hat(case.model, MAP(case.model), case.x, case.y)
    with pytest.raises(ValueError, match="num_samples: the tail of the ratios needs at least 25 draws, got 10"):
        importance_k_hat(case.model, guide, case.x, case.y, num_samples=10)
    with pytest.raises(ValueError, match=r"sites: 'fc' matches no latent site; there are net.weight"):
        importance_k_hat(case.model, guide, case.x, case.y, sites=["fc"])
    with pytest.raises(TypeError, match=r"guide: expected one of pyrobnn.guides, got int"):
        importance_k_hat(case.model, 3, case.x, case.y)  # type: ignore[arg-type]


def test_weights_of_data_enter_the_log_joint() -> None:
    """The exact posterior of a weighted regression: its ratios are equal, in batches too."""
    case = Conjugate(dims=1)
    weight = torch.rand(100, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 3.0
    squares, products = case.x.square().T * weight, (case.x * case.y).T * weight
    precision = 1.0 + squares.sum(1) / NOISE**2
    guide = set_parameters(MeanField(case.model), products.sum(1) / NOISE**2 / precision, precision.rsqrt())
    pieces = batches(case.model, (case.x, case.y, weight), {}, 32)
    ratios = log_ratios(case.model, guide, pieces, ["net.weight"], 20)
    assert ratios.std() < 1e-6
    assert log_ratios(case.model, guide, batches(case.model, (case.x, case.y), {}, 32), ["net.weight"], 20).std() > 0.01


def test_two_mean_fields_are_one() -> None:
    """Any subset of their sites may be chosen; the value is that of one guide of the same parameters and draws."""
    model, x, y = small_network()
    two = Composite(model, [("net.0.*", MeanField), ("*", MeanField)])

    class WithItsDraws(MeanField):
        def sample(self, num_samples: int) -> Draws:
            return two.sample(num_samples)

    one = WithItsDraws(model, init_scale=0.2)
    with torch.no_grad():
        for part in two.parts:
            for own, whole in ((part.flat_loc, one.flat_loc), (part.flat_log_scale, one.flat_log_scale)):
                pieces = one.layout.split(whole)
                own.copy_(part.layout.join({name: pieces[name] for name in part.layout}))
    assert set(two.facts.independent) == {frozenset({name}) for name in two.layout}
    for sites in (["net.2.weight"], ["net.0.bias", "net.2.bias"], None):
        found = []
        for guide in (one, two):
            torch.manual_seed(0)
            found.append(importance_k_hat(model, guide, x, y, sites=sites, num_samples=100))
        assert math.isfinite(found[0]) and found[0] == pytest.approx(found[1], rel=1e-3)


def test_a_composite_with_points_has_k_hat_where_it_has_a_density() -> None:
    """Of the last layer it is that of a guide for the last layer of a model whose other weights are those points."""
    model, x, y = small_network()
    guide = Composite(model, [("net.2.*", lambda *a, **o: MeanField(*a, init_scale=0.1, **o)), ("*", MAP)])
    torch.manual_seed(0)
    k_hat = importance_k_hat(model, guide, x, y, num_samples=100)
    hidden = torch.tanh(model.net.network[0](x)).detach()  # the points start at the network's weights
    last = SupervisedModel(nn.Linear(4, 1), likelihoods.Normal(0.3), dist.Normal(0.0, 1.0), num_data=len(x))
    other = MeanField(last, init_scale=0.1)
    with torch.no_grad():
        other.flat_loc.copy_(guide.parts[0].flat_loc)
    torch.manual_seed(0)
    assert k_hat == pytest.approx(importance_k_hat(last, other, hidden, y, sites=["*"], num_samples=100), rel=1e-3)
    with pytest.raises(ValueError, match=r"sites: MAP has no density of the site 'net.0.weight'; choose among net.2"):
        importance_k_hat(model, guide, x, y, sites=["net.0.*"])


def test_a_subset_of_coupled_sites_is_refused() -> None:
    model, x, y = small_network()
    guide = LowRankNormal(model, 2)
    with pytest.raises(ValueError, match=r"sites: those of LowRankNormal are correlated"):
        importance_k_hat(model, guide, x, y, sites=["net.2.*"])
