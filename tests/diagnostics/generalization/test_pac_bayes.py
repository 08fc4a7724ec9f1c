"""The PAC-Bayes bound: it holds, it is made as stated, and it says when it does not hold."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn import guides, priors
from pyrobnn.diagnostics.generalization import PACBayesBound, kl_inverse, pac_bayes_bound

MEAN = torch.tensor([0.7, 0.0, 0.0])


def draw_data(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two unit Gaussians at ± MEAN."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 2, (count,), generator=generator)
    x = torch.randn(count, len(MEAN), generator=generator) + (2.0 * y[:, None] - 1.0) * MEAN
    return x, y.float().unsqueeze(-1)


def true_risk(guide: Any) -> float:
    """Of a draw w, Φ(-w·μ / |w|) in closed form, averaged over 4,000 draws."""
    w = guide.sample(4_000)["net.weight"].reshape(-1, len(MEAN))
    return float(torch.special.ndtr(-(w @ MEAN) / w.norm(dim=1)).mean())


def linear(count: int, prior: Any = None, likelihood: Any = None) -> pb.SupervisedModel:
    prior = dist.Normal(0.0, 1.0) if prior is None else prior
    net = nn.Linear(len(MEAN), 1, bias=False)
    return pb.SupervisedModel(net, likelihood or pb.likelihoods.Bernoulli(), prior, num_data=count)


def at_class_means(model: pb.SupervisedModel, x: Tensor, y: Tensor) -> guides.MeanField:
    """A posterior that depends on the data: around twice the mean of signed inputs."""
    guide = guides.MeanField(model, init_scale=0.3)
    with torch.no_grad():
        guide.flat_loc.copy_(2.0 * ((2.0 * y - 1.0) * x).mean(0))
    return guide


def bound(model: Any, guide: Any, x: Tensor, y: Tensor, **options: Any) -> PACBayesBound:
    return pac_bayes_bound(model, guide, [(x, y)], **{"num_samples": 200, "seed": 0} | options)


def test_the_bound_holds_over_200_resamples_and_the_risk_on_the_rows_does_not() -> None:
    """δ = 0.2: at most 40 of 200 may fail by chance of the data (z ≤ 3: 57); the data's own risk fails in most."""
    count, model = 50, linear(50)
    failures, optimistic, gaps = 0, 0, []
    for seed in range(200):
        x, y = draw_data(count, seed)
        guide = at_class_means(model, x, y)
        torch.manual_seed(seed)
        risk = true_risk(guide)
        found = bound(model, guide, x, y, delta=0.2, seed=seed)
        failures += risk > found.bound
        optimistic += risk > found.sampled_risk
        gaps.append(found.bound - risk)
    assert failures <= 57
    assert optimistic > 100  # the rows alone are no bound
    assert 0.0 < sum(gaps) / len(gaps) < 0.35  # and the bound is not vacuous


def test_the_parts_are_as_stated() -> None:
    x, y = draw_data(300, 0)
    model = linear(300)
    guide = at_class_means(model, x, y)
    found = bound(model, guide, x, y, delta=0.05, sampling_delta=0.01)
    loc, scale = guide.flat_loc.detach().double(), guide.flat_log_scale.detach().double().exp()
    kl = float((-scale.log() + 0.5 * (scale.square() + loc.square()) - 0.5).sum())
    assert found.kl == pytest.approx(kl, rel=1e-5)
    assert found.empirical_risk == pytest.approx(kl_inverse(found.sampled_risk, math.log(2 / 0.01) / 200))
    expected = kl_inverse(found.empirical_risk, (kl + math.log(2 * math.sqrt(300) / 0.04)) / 300)
    assert found.bound == found.maurer == pytest.approx(expected)
    assert found.maurer <= found.mcallester
    assert found.holds and not found.notes
    assert "Maurer" in str(found)
    w = guide.sample(4_000)["net.weight"].reshape(-1, 1, len(MEAN))  # z-score of the sampled risk
    wrong = ((w * x).sum(-1).sign() != (2 * y[:, 0] - 1)).double().mean(1)
    error = float(wrong.std()) * (1 / 200 + 1 / 4_000) ** 0.5
    assert abs(found.sampled_risk - float(wrong.mean())) < 4 * error


def test_draws_judged_on_some_rows_agree_with_all_rows() -> None:
    """z ≤ 4 for 2,000 draws on 30 rows each."""
    x, y = draw_data(300, 1)
    model = linear(300)
    guide = at_class_means(model, x, y)
    whole = bound(model, guide, x, y, num_samples=2_000)
    parts = bound(model, guide, x, y, num_samples=2_000, rows_per_draw=30)
    assert parts.sampled_risk != whole.sampled_risk
    assert abs(parts.sampled_risk - whole.sampled_risk) < 4 * (0.25 / 30 / 2_000) ** 0.5
    assert bound(model, guide, x, y, seed=3) == bound(model, guide, x, y, seed=3)


def test_classes_and_batches_give_the_same_as_one_batch() -> None:
    x, y = draw_data(64, 2)
    labels = y[:, 0].long()
    model = pb.SupervisedModel(nn.Linear(3, 2), pb.likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=64)
    guide = guides.MeanField(model, init_scale=0.1)
    whole = bound(model, guide, x, labels)
    batches = list(zip(x.split(10), labels.split(10), strict=True))
    assert pac_bayes_bound(model, guide, batches, num_samples=200, seed=0) == whole


def test_a_prior_learned_on_other_rows_has_a_smaller_bound() -> None:
    x, y = draw_data(400, 3)
    model = linear(400)
    first = (x[:200], y[:200])  # kept: rows are known as long as their tensors live
    learned = at_class_means(model, *first)
    pb.fit(linear(200), learned, [first], epochs=1, lr=1e-6, progress=False)
    guide = at_class_means(model, x, y)
    plain = bound(model, guide, x[200:], y[200:])
    informed = bound(model, guide, x[200:], y[200:], prior=learned)
    assert informed.kl < 0.3 * plain.kl
    assert informed.bound < plain.bound
    assert informed.holds and informed.num_data == 200
    with pytest.warns(UserWarning, match="prior was trained on rows"):
        broken = bound(model, guide, x[100:], y[100:], prior=learned)
    assert not broken.holds
    assert str(broken).startswith("NOT VALID: the prior was trained on rows")


def test_a_prior_around_weights_needs_their_rows() -> None:
    x, y = draw_data(100, 4)
    model = linear(100, priors.centered(0.5))
    guide = guides.MeanField(model)
    assert "prior_data=" in str(bound(model, guide, x, y))
    assert not bound(model, guide, x[50:], y[50:], prior_data=[(x[:50], y[:50])]).notes
    with pytest.warns(UserWarning, match=r"rows that the bound is taken on \(prior_data\)"):
        assert not bound(model, guide, x, y, prior_data=[(x[:50], y[:50])]).holds


def test_what_is_trained_without_a_prior_breaks_the_bound() -> None:
    x, y = draw_data(40, 5)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    model = pb.SupervisedModel(net, pb.likelihoods.Bernoulli(), dist.Normal(0.0, 1.0), num_data=40)
    with pytest.warns(UserWarning, match="parameters without a prior.*running statistics"):
        assert len(bound(model, guides.MeanField(model), x, y).broken) == 2


@pytest.mark.parametrize(
    ("guide", "says"),
    [
        (lambda model: guides.MAP(model), "divergence of MAP is '-log prior'"),
        (lambda model: guides.DeltaMixture(model, 2), "guide: .*DeltaMixture"),
        (lambda model: guides.MCDropout(model, p=0.1, where=["weight"]), "divergence of MCDropout"),
        (lambda model: guides.NormalizingFlow(model), "NormalizingFlow is a KL that is estimated"),
        (lambda model: guides.Laplace(model), "'-log prior'|before it is fitted"),
    ],
)
def test_what_has_no_exact_divergence_is_refused_by_name(guide: Any, says: str) -> None:
    x, y = draw_data(20, 0)
    model = linear(20)
    with pytest.raises(ValueError, match=says):
        bound(model, guide(model), x, y)


@pytest.mark.parametrize("rule", [priors.learned_scale(), priors.latent_scale(), priors.horseshoe()])
def test_priors_that_are_not_fixed_are_refused(rule: Any) -> None:
    x, y = draw_data(20, 0)
    model = linear(20, rule)
    with pytest.raises(ValueError, match=r"not fixed before the data|estimated from one draw"):
        bound(model, guides.MeanField(model), x, y)


def test_bad_arguments_are_refused_by_name() -> None:
    x, y = draw_data(20, 0)
    model = linear(20)
    guide = guides.MeanField(model)
    for delta in (0.0, 1.0, -0.1, 2.0, math.nan, "a"):
        with pytest.raises(ValueError, match=r"^delta: "):
            bound(model, guide, x, y, delta=delta)
    for share in (0.0, 0.05, -1.0):
        with pytest.raises(ValueError, match=r"^sampling_delta: "):
            bound(model, guide, x, y, sampling_delta=share)
    with pytest.raises(ValueError, match=r"^loader: it yielded no data"):
        pac_bayes_bound(model, guide, [])
    with pytest.raises(ValueError, match=r"^loader: the bound needs at least 8 rows, got 7"):
        bound(model, guide, x[:7], y[:7])
    with pytest.raises(ValueError, match=r"^loader: its rows have weights"):
        pac_bayes_bound(model, guide, [(x, y, torch.ones(20))])
    real = linear(20, likelihood=pb.likelihoods.Normal(0.1))
    with pytest.raises(TypeError, match=r"^model: a 0-1 risk needs classes, but its likelihood is Normal"):
        bound(real, guides.MeanField(real), x, y)
    missing = linear(20, likelihood=pb.likelihoods.Bernoulli(missing=True))
    with pytest.raises(ValueError, match=r"^model: its Bernoulli allows labels that are not observed"):
        bound(missing, guides.MeanField(missing), x, y)
    with pytest.raises(ValueError, match=r"^prior: a KL in closed form .* LowRankNormal is not"):
        bound(model, guide, x, y, prior=guides.LowRankNormal(model, rank=1))
