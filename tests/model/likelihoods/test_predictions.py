"""What a prediction can be asked."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from scipy.stats import norm, poisson
from torch import Tensor

from pyrobnn import likelihoods
from pyrobnn.prediction import MomentPrediction, Prediction
from tests.conformance.monte_carlo import Z, z_of_mean

OUTPUTS = torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(1)).double()


def made(likelihood: likelihoods.Likelihood, outputs: Tensor = OUTPUTS, **options: Any) -> Prediction:
    """The prediction of network outputs ``[K, N, ...]``, one posterior draw each."""
    options = {"keep": False, "max_bytes": 2**20} | options
    reduction = likelihood.reduction(len(outputs), **options)
    for output in outputs:
        reduction.add({name: value.unsqueeze(0) for name, value in reduction.summary(output).items()})
    return reduction.finish(None)


def mixture(likelihood: likelihoods.Likelihood, y: Tensor, outputs: Tensor = OUTPUTS) -> Tensor:
    """``log mean_k p(y | draw k)`` from the likelihood itself."""
    by_draw = torch.stack([likelihood(output).log_prob(y) for output in outputs])
    return by_draw.exp().mean(0).log()


TARGETS = {
    "Categorical": (likelihoods.Categorical(), torch.tensor([0, 3, 2, 1, 1])),
    "Normal": (likelihoods.Normal(0.7).double(), torch.linspace(-1, 1, 20).double().view(5, 4)),
    "HeteroscedasticNormal": (likelihoods.HeteroscedasticNormal(), torch.linspace(-1, 1, 10).double().view(5, 2)),
    "Poisson": (likelihoods.Poisson(), torch.arange(20.0).double().view(5, 4) % 4),
}


@pytest.mark.parametrize("name", TARGETS)
def test_log_prob_is_that_of_the_mixture(name: str) -> None:
    """Not the mean of the log densities, nor the density at the mean."""
    likelihood, y = TARGETS[name]
    found = made(likelihood).log_prob(y)
    assert found.shape == (5,)
    torch.testing.assert_close(found, mixture(likelihood, y), rtol=1e-9, atol=1e-9)


def test_log_prob_of_ignored_labels_is_zero() -> None:
    y = torch.tensor([0, 9, 2, 9, 1])
    found = made(likelihoods.Categorical(ignore_index=9)).log_prob(y)
    expected = made(likelihoods.Categorical()).log_prob(y.clamp(max=3))
    known = y != 9
    assert torch.equal(found[known], expected[known])
    assert torch.equal(found[~known], torch.zeros(2).double())
    with pytest.raises(ValueError, match="y: expected labels from 0 to 3"):
        made(likelihoods.Categorical(ignore_index=9)).log_prob(torch.tensor([0, 8, 2, 9, 1]))


def test_log_prob_of_binary_targets_is_by_label() -> None:
    likelihood = likelihoods.Bernoulli()
    y = (torch.arange(20) % 3 == 0).double().view(5, 4)
    by_draw = torch.stack([dist.Bernoulli(logits=output).log_prob(y) for output in OUTPUTS])
    torch.testing.assert_close(made(likelihood).log_prob(y), by_draw.exp().mean(0).log())


def test_log_prob_per_pixel() -> None:
    likelihood = likelihoods.Categorical(class_dim=1)
    outputs = torch.randn(6, 5, 3, 2, 2)
    y = torch.randint(3, (5, 2, 2))
    by_draw = torch.stack([output.movedim(1, -1).log_softmax(-1) for output in outputs])
    expected = by_draw.exp().mean(0).log().gather(-1, y.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(made(likelihood, outputs).log_prob(y), expected)


def test_labels_that_are_none_are_refused() -> None:
    prediction = made(TARGETS["Categorical"][0])
    for bad in (4, -1):
        with pytest.raises(ValueError, match=r"^y: expected labels from 0 to 3, got values from"):
            prediction.log_prob(torch.tensor([0, 1, 2, 3, bad]))
    with pytest.raises(ValueError, match=r"^y: expected labels from 0 to 1"):
        made(likelihoods.Bernoulli()).log_prob(torch.full((5, 4), 0.5))


@pytest.mark.parametrize("name", TARGETS)
def test_targets_of_another_shape_are_refused(name: str) -> None:
    likelihood, y = TARGETS[name]
    for bad in (y[:4], y.unsqueeze(-1), y.T if y.dim() > 1 else y.unsqueeze(0)):
        with pytest.raises(ValueError, match=r"^y: expected targets of shape \(5"):
            made(likelihood).log_prob(bad)


@pytest.mark.parametrize("name", ["Normal", "HeteroscedasticNormal", "Poisson"])
def test_moments_are_those_of_the_mixture(name: str) -> None:
    """The mean and variance of 50,000 targets of the mixture, within z = 5."""
    likelihood, _ = TARGETS[name]
    prediction = made(likelihood)
    targets = torch.cat([prediction.sample() for _ in range(50_000 // 6)])
    assert z_of_mean(targets, prediction.mean) < Z
    assert z_of_mean((targets - prediction.mean).square(), prediction.total) < Z
    torch.testing.assert_close(prediction.std, prediction.total.sqrt())
    assert torch.equal(prediction.predicted, prediction.mean)


def test_sampled_classes_follow_the_mean_probabilities() -> None:
    """12,000 labels, within z = 5."""
    prediction = made(likelihoods.Categorical())
    labels = torch.cat([prediction.sample() for _ in range(2000)])
    assert labels.shape == (12_000, 5)
    assert z_of_mean(torch.nn.functional.one_hot(labels, 4).double(), prediction.mean) < Z


def test_several_labels_are_drawn_together() -> None:
    """Two labels with one logit ``20 w``: they agree with probability ``E[p² + (1 - p)²]``, about .96, not .5."""
    logits = 20 * torch.randn(4000, 1, 1, generator=torch.Generator().manual_seed(3)).expand(-1, 3, 2)
    likelihood = likelihoods.Bernoulli()
    reduction = likelihood.reduction(4000, keep=False, max_bytes=2**22)
    reduction.add(torch.func.vmap(reduction.summary)(logits))
    torch.manual_seed(4)
    labels = reduction.finish(None).sample()
    assert labels.shape == (4000, 3, 2)
    p = logits.sigmoid().double()
    expected = (p.square() + (1 - p).square()).mean(0)
    assert float(expected.mean()) == pytest.approx(0.96, abs=0.01)
    assert z_of_mean((labels[..., 0] == labels[..., 1]).double(), expected[:, 0]) < Z
    assert z_of_mean(labels.double(), p.mean(0)) < Z


def test_an_inputs_only_label_needs_no_draws() -> None:
    """Several do, and say so."""
    outputs = torch.randn(6, 5, 3, 2)
    assert made(likelihoods.Categorical(), max_bytes=1).sample().shape == (6, 5)
    with pytest.raises(ValueError, match=r"^sample: .*6 draws .*return_draws=True"):
        made(likelihoods.Categorical(class_dim=1), outputs, max_bytes=1).sample()


def test_parts_are_joined_whatever_they_hold() -> None:
    """By input, which is the second dimension of what single draws say; what one lacks, the whole lacks."""
    likelihood, y = TARGETS["HeteroscedasticNormal"]
    whole = made(likelihood)
    parts = [made(likelihood, OUTPUTS[:, rows]) for rows in (slice(0, 2), slice(2, 5))]
    joined = Prediction.join(parts)
    assert type(joined) is type(whole)
    for name in ("mean", "total", "draws", "noise"):
        torch.testing.assert_close(getattr(joined, name), getattr(whole, name))
    torch.testing.assert_close(joined.log_prob(y), whole.log_prob(y))
    assert Prediction.join([parts[0], parts[1].without_draws()]).draws is None
    classes = [made(likelihoods.Categorical(), OUTPUTS[:, rows]) for rows in (slice(0, 2), slice(2, 5))]
    labels = TARGETS["Categorical"][1]
    torch.testing.assert_close(
        Prediction.join(classes).log_prob(labels), made(likelihoods.Categorical()).log_prob(labels)
    )


def test_a_class_prediction_of_probabilities_alone() -> None:
    prediction = made(likelihoods.Categorical())
    y = TARGETS["Categorical"][1]
    torch.testing.assert_close(dataclasses.replace(prediction, log_mean=None).log_prob(y), prediction.log_prob(y))


def test_classes_have_a_winner_and_a_least_confidence() -> None:
    prediction = made(likelihoods.Categorical())
    mean = OUTPUTS.softmax(-1).mean(0)
    assert torch.equal(prediction.predicted, mean.argmax(-1))
    torch.testing.assert_close(prediction.least_confidence, 1 - mean.amax(-1))


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_intervals_cover_what_they_say(level: float) -> None:
    """Draws ``μ_k ~ N(0, 1)`` and noise of variance 1: the predictive is N(0, 2), its interval known.

    With 20,000 draws a quantile's standard error is ``sqrt(t (1 - t) / K) / density``; z = 5.
    """
    draws = 20_000
    outputs = torch.randn(draws, 3, 1, generator=torch.Generator().manual_seed(0)).double()
    reduction = likelihoods.Normal(1.0).reduction(draws, keep=True, max_bytes=1)
    reduction.add({"loc": outputs, "scale": torch.ones_like(outputs)})
    low, high = reduction.finish(None).interval(level)
    tail = (1 - level) / 2
    exact = norm(scale=2**0.5).ppf(1 - tail)
    error = (tail * (1 - tail) / draws) ** 0.5 / norm(scale=2**0.5).pdf(exact)
    assert low.shape == high.shape == (3, 1)
    assert float((high - exact).abs().max()) < Z * error
    assert float((low + exact).abs().max()) < Z * error


def gaussians(loc: list[float], scale: list[float], max_bytes: int = 2**20) -> MomentPrediction:
    """A draw for each mean and scale, at one input with one target."""
    reduction = likelihoods.Normal(1.0).reduction(len(loc), keep=True, max_bytes=max_bytes)
    reduction.add(
        {name: torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for name, v in (("loc", loc), ("scale", scale))}
    )
    found = reduction.finish(None)
    assert isinstance(found, MomentPrediction)
    return found


def test_quantiles_of_equal_draws_are_those_of_a_gaussian() -> None:
    """To nine digits, in the tails and far from zero."""
    levels = [1e-5, 1e-3, 0.5, 0.975, 0.999]
    for loc, scale in ((0.0, 1.0), (1e6, 1e-3), (-3e-8, 5e9)):
        found = gaussians([loc] * 3, [scale] * 3).quantile(levels).flatten()
        expected = torch.as_tensor(norm(loc, scale).ppf(levels))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * scale)


def test_quantiles_of_draws_far_apart() -> None:
    """Half of the probability is at -1000 and half at 1000: no sample of draws is needed to see both."""
    found = gaussians([-1000.0, 1000.0], [1.0, 2.0])
    expected = [norm(-1000, 1).ppf(0.2), norm(-1000, 1).ppf(0.9), norm(1000, 2).ppf(0.5)]
    assert found.quantile([0.1, 0.45, 0.75]).flatten().tolist() == pytest.approx(expected)
    low, high = found.interval(0.9)
    assert (low.item(), high.item()) == pytest.approx((norm(-1000, 1).ppf(0.1), norm(1000, 2).ppf(0.9)))
    assert found.cdf(torch.tensor([[0.0]]).double()).item() == pytest.approx(0.5)


def test_entropies_in_closed_form() -> None:
    """Equal draws: no information; draws that exclude each other: all of it, log K; and at any scale."""
    half = 0.5 * math.log(2 * math.pi * math.e)
    for scale in (1e-6, 1.0, 1e6):
        same = gaussians([3.0] * 4, [scale] * 4).entropy_split()
        assert same.total.item() == pytest.approx(half + math.log(scale), abs=1e-6)
        assert same.epistemic.item() == pytest.approx(0.0, abs=1e-6)
        apart = gaussians([100.0 * scale * k for k in range(4)], [scale] * 4).entropy_split()
        assert apart.aleatoric.item() == pytest.approx(half + math.log(scale), abs=1e-5)
        assert apart.epistemic.item() == pytest.approx(math.log(4), abs=1e-5)
    # Fifty needles of 1e-3 among means of unit spread, and one wide density over all of them.
    needles = gaussians([k / 50 for k in range(50)], [1e-3] * 50).entropy_split()
    assert needles.aleatoric.item() == pytest.approx(half + math.log(1e-3), abs=1e-3)
    assert needles.epistemic.item() == pytest.approx(math.log(50), abs=1e-3)


def test_entropies_of_counts_in_closed_form() -> None:
    """Of a Poisson mixture, by scipy; and counts that spread too far to be summed are refused."""
    rates = torch.tensor([0.3, 7.0, 400.0]).double()
    found = made(likelihoods.Poisson(), rates.log().view(3, 1, 1))
    assert isinstance(found, MomentPrediction)
    split = found.entropy_split()
    counts = torch.arange(1000)
    masses = torch.stack([torch.as_tensor(poisson(rate).pmf(counts)) for rate in rates.tolist()])
    assert split.total.item() == pytest.approx(torch.special.entr(masses.mean(0)).sum().item(), abs=1e-7)
    assert split.aleatoric.item() == pytest.approx(torch.special.entr(masses).sum(1).mean().item(), abs=1e-7)
    wide = made(likelihoods.Poisson(), torch.tensor([1.0, 1e7]).double().log().view(2, 1, 1))
    assert isinstance(wide, MomentPrediction)
    with pytest.raises(ValueError, match=r"^entropy_split: counts spread over \d+ numbers"):
        wide.entropy_split()
    assert wide.quantile(0.75).item() == pytest.approx(poisson(1e7).ppf(0.5), abs=1)


def test_targets_are_drawn_from_every_draw_equally_often() -> None:
    """Ten draws far apart and 23 targets: two of each, and three more of different draws; inputs share the draw."""
    outputs = 100.0 * torch.arange(10.0).double().view(10, 1, 1).expand(10, 4, 2)
    found = made(likelihoods.Normal(0.01).double(), outputs)
    drawn = (found.sample(23) / 100).round()
    assert bool((drawn == drawn[:, :1, :1]).all())
    counts = drawn[:, 0, 0].long().bincount(minlength=10)
    assert sorted(counts.tolist()) == [2] * 7 + [3] * 3
    assert torch.equal((found.sample() / 100).round()[:, 0, 0], torch.arange(10.0).double())


@pytest.mark.parametrize("q", [0.0, 1.0, -0.1, 50, math.nan, "a", None, True, [0.5, 1.0], [[0.5]], []])
def test_a_quantile_needs_probabilities(q: Any) -> None:
    with pytest.raises(ValueError, match=r"^q: expected a probability between 0 and 1"):
        made(TARGETS["Normal"][0]).quantile(q)


def test_points_of_a_cdf_have_the_shape_of_targets() -> None:
    likelihood, y = TARGETS["Normal"]
    for wrong in (y[:2], y[:, :1], y.view(1, 1, 5, 4), 0.5):
        with pytest.raises(ValueError, match=r"^y: expected targets of shape \(5, 4\), or several of each in front"):
            made(likelihood).cdf(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("level", [0.0, 1.0, -0.1, 90.0])
def test_a_level_is_a_coverage(level: float) -> None:
    with pytest.raises(ValueError, match=r"^level: expected a coverage between 0 and 1"):
        made(TARGETS["Normal"][0]).interval(level)


def test_what_classes_do_not_have() -> None:
    prediction = made(likelihoods.Categorical())
    with pytest.raises(ValueError, match=r"^interval: .*real-valued"):
        prediction.interval()
    for name, ask in (
        ("cdf", lambda: prediction.cdf(OUTPUTS[0])),
        ("quantile", lambda: prediction.quantile(0.5)),
    ):
        with pytest.raises(ValueError, match=rf"^{name}: .*real-valued"):
            ask()
    with pytest.raises(ValueError, match=r"^std: .*real-valued"):
        _ = prediction.std
    with pytest.raises(ValueError, match=r"^least_confidence: .*classes"):
        _ = made(TARGETS["Normal"][0]).least_confidence


def test_draws_that_were_not_kept_are_missed_by_name() -> None:
    likelihood, y = TARGETS["Normal"]
    prediction = made(likelihood, max_bytes=1)
    for name, ask in (
        ("log_prob", lambda: prediction.log_prob(y)),
        ("sample", prediction.sample),
        ("cdf", lambda: prediction.cdf(y)),
        ("quantile", lambda: prediction.quantile(0.5)),
        ("interval", prediction.interval),
    ):
        with pytest.raises(ValueError, match=rf"^{name}: .*6 draws .*return_draws=True"):
            ask()


@pytest.mark.parametrize("likelihood", [likelihoods.Normal(0.5), likelihoods.Categorical()])
def test_rows_are_some_of_the_inputs(likelihood: likelihoods.Likelihood) -> None:
    whole = made(likelihood, OUTPUTS)
    count = len(whole)
    for index in (slice(1, 3), torch.tensor([1, 2]), torch.arange(count).remainder(count) == 1):
        assert torch.equal(whole.rows(index).mean, whole.mean[index])
    empty = torch.zeros(count, dtype=torch.bool)
    for nothing in (slice(0, 0), slice(count, None), empty, torch.empty(0, dtype=torch.long)):
        with pytest.raises(ValueError, match=rf"^index: it selects none of the {count} inputs"):
            whole.rows(nothing)
    with pytest.raises(ValueError, match=r"^index: expected a mask"):
        whole.rows(empty[1:])
    with pytest.raises(ValueError, match=r"^index: there are"):
        whole.rows(torch.tensor([0, count]))
    with pytest.raises(ValueError, match=r"^index: expected a vector"):
        whole.rows(torch.tensor(1))
    for wrong in (1, [0, 1], torch.zeros(2)):
        with pytest.raises(TypeError, match=r"^index: expected a slice"):
            whole.rows(wrong)  # type: ignore[arg-type]
