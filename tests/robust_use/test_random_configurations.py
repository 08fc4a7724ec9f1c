"""Random configurations against computations made here, with torch's own functions.

``make test`` tries a fixed list; ``make fuzz`` tries many more (``PYROBNN_FUZZ``, their number for each test).
"""

from __future__ import annotations

import contextlib
import copy
import os
import re
import tempfile
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.guides import Guide
from pyrobnn.model.divergence import prior_terms
from pyrobnn.objectives import ELBO
from tests.robust_use.configurations import (
    ESTIMATORS,
    FAMILIES,
    LIKELIHOODS,
    NETWORKS,
    PRIORS,
    THRESHOLDS,
    Configuration,
    Setting,
)

NUM_EXAMPLES = int(os.environ.get("PYROBNN_FUZZ", "0"))
BUDGET = 40  # examples for each test where PYROBNN_FUZZ is not set

configurations = st.builds(
    Configuration,
    network=st.sampled_from(list(NETWORKS)),
    likelihood=st.sampled_from(list(LIKELIHOODS)),
    prior=st.sampled_from(list(PRIORS)),
    family=st.sampled_from(list(FAMILIES)),
    estimator=st.just("shared"),
    scale=st.sampled_from([1, 3]),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    seed=st.integers(0, 9),
)
with_estimators = st.builds(
    lambda configuration, estimator: Configuration(**{**configuration.__dict__, "estimator": estimator}),
    configurations,
    st.sampled_from(ESTIMATORS),
)


def tried(strategy: st.SearchStrategy[Configuration]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A test of random configurations: the same ones in each run, new ones under ``make fuzz``."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        options = settings(
            max_examples=NUM_EXAMPLES or BUDGET,
            derandomize=not NUM_EXAMPLES,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        return options(given(strategy)(test))

    return decorate


class Refused(Exception):
    """The library refused a configuration in its own words."""


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Accepts errors that the library raises itself and that name an argument, a site or a family first."""
    try:
        yield
    except (ValueError, TypeError, NotImplementedError) as error:
        last = traceback.extract_tb(error.__traceback__)[-1].filename
        if "pyrobnn" not in last or not re.match(rf"^([\w.]+:|site '[\w.]+':|{'|'.join(FAMILIES)} is)", str(error)):
            raise
        raise Refused(str(error)) from error


def prepared(configuration: Configuration) -> tuple[Setting, Guide]:
    """The configuration's parts with a guide that can be sampled; raises :class:`Refused` if it cannot be built."""
    with refusals():
        setting = configuration.build()
        guide = setting.guide()
        if configuration.family == "Laplace":
            batches = [(setting.x, setting.y)] * configuration.scale
            guide.fit(setting.model, batches)
        if configuration.family == "SWAG":
            for _ in range(3):
                with torch.no_grad():
                    guide.flat_loc.add_(0.1 * torch.randn_like(guide.flat_loc))
                guide.collect()
    return setting, guide


def tolerance(configuration: Configuration) -> dict[str, float]:
    """Of comparisons of sums of some hundred terms."""
    return {"rtol": 1e-8, "atol": 1e-8} if configuration.dtype == torch.float64 else {"rtol": 2e-4, "atol": 2e-4}


PAIRED: dict[str, Callable[[Tensor, Tensor, Tensor], Any]] = {
    "HeteroscedasticNormal": lambda loc, raw, scale: torch.distributions.Normal(loc, scale),
    "HeteroscedasticNormal, natural": lambda first, raw, scale: torch.distributions.Normal(
        first / (scale - 1e-3 + 1e-6), (1.0 / (scale - 1e-3 + 1e-6) + 1e-6).sqrt()
    ),
    "StudentT": lambda loc, raw, scale: torch.distributions.StudentT(4.0, loc, scale),
    "StudentT, learned df": lambda loc, raw, scale: torch.distributions.StudentT(4.0, loc, scale),
    "Laplace": lambda loc, raw, scale: torch.distributions.Laplace(loc, scale),
    "LogNormal": lambda loc, raw, scale: torch.distributions.LogNormal(loc, scale),
    "Gamma": lambda log_mean, raw, shape: torch.distributions.Gamma(shape, shape / log_mean.exp()),
    "NegativeBinomial": lambda log_mean, raw, count: torch.distributions.NegativeBinomial(
        count, logits=log_mean - count.log()
    ),
    "ZeroInflatedPoisson": lambda log_rate, raw, _: dist.ZeroInflatedPoisson(log_rate.exp(), gate_logits=raw),
}
"""From both halves of the outputs, and the second one made positive, before anything was trained."""


def distribution(configuration: Configuration, outputs: Tensor, draw: dict[str, Tensor]) -> Any:
    """The likelihood of targets as torch's distributions have it."""
    kind = configuration.likelihood.removesuffix(", beta")
    if kind == "Categorical":
        return torch.distributions.Categorical(logits=outputs)
    if kind in ("Bernoulli", "several labels"):
        return torch.distributions.Bernoulli(logits=outputs)
    if kind == "Poisson":
        return torch.distributions.Poisson(outputs.exp())
    if kind == "Ordinal":
        at_most = (torch.tensor(THRESHOLDS, dtype=outputs.dtype) - outputs).sigmoid()
        edges = torch.cat([torch.zeros_like(outputs), at_most, torch.ones_like(outputs)], -1)
        return torch.distributions.Categorical(edges.diff(dim=-1))
    if kind == "MixtureDensity":
        logits, loc, raw = outputs.split([2, 4, 4], -1)
        scale = nn.functional.softplus(raw) + 1e-3
        parts = torch.distributions.Normal(loc.unflatten(-1, (2, 2)), scale.unflatten(-1, (2, 2)))
        shares = torch.distributions.Categorical(logits=logits)
        return torch.distributions.MixtureSameFamily(shares, torch.distributions.Independent(parts, 1))
    if kind in PAIRED:
        first, raw = outputs.chunk(2, -1)
        return PAIRED[kind](first, raw, nn.functional.softplus(raw) + 1e-3)
    scale = draw.get("likelihood.scale", torch.tensor(0.5, dtype=outputs.dtype))
    return torch.distributions.Normal(outputs, scale.expand_as(outputs))


BETAS = {"HeteroscedasticNormal, beta": 0.5, "HeteroscedasticNormal, natural, beta": 1.0}


def log_likelihood(
    configuration: Configuration, outputs: Tensor, draw: dict[str, Tensor], y: Tensor, *, training: bool = False
) -> Tensor:
    """Of all targets that were observed, in nats; in training weighted by ``σ^(2 β)`` where there is a β."""
    seen = ~y.isnan() if y.is_floating_point() else torch.ones_like(y, dtype=torch.bool)
    made = distribution(configuration, outputs, draw)
    scores = made.log_prob(torch.where(seen, y, torch.zeros_like(y)))
    if training and configuration.likelihood in BETAS:
        scores = scores * made.variance ** BETAS[configuration.likelihood]
    return scores[seen if scores.shape == seen.shape else seen.all(-1)].sum()


def snapshot(setting: Setting) -> dict[str, Tensor]:
    """Copies of everything that belongs to the caller."""
    inputs = (
        setting.x
        if isinstance(setting.x, dict)
        else dict(enumerate(setting.x))
        if isinstance(setting.x, tuple)
        else {"x": setting.x}
    )
    found = {f"input {name}": value.clone() for name, value in inputs.items() if value is not None}
    found |= {f"net {name}": value.clone() for name, value in setting.net.state_dict().items()}
    return found | {"targets": setting.y.clone()}


@tried(configurations)
def test_a_replayed_draw_is_functional_call(configuration: Configuration) -> None:
    with contextlib.suppress(Refused):
        setting, guide = prepared(configuration)
        setting.model.eval()
        draw = guide.sample(1).at(0)
        with torch.no_grad(), draw.running(setting.model, update=False):
            found = setting.model.predictive(setting.x)
        if not draw.buffers:
            torch.testing.assert_close(found, setting.run(draw, mode=False), **tolerance(configuration))


@tried(with_estimators)
def test_the_objective_is_an_independent_computation(configuration: Configuration) -> None:
    """Its log likelihood for the draw of the step, and for points and mean fields its divergence."""
    with contextlib.suppress(Refused):
        setting, guide = prepared(configuration)
        model = setting.model.train()
        objective = ELBO(estimator=configuration.estimator)
        with refusals():
            pyro.set_rng_seed(configuration.seed)
            parts = next(iter(objective.losses(model, objective.step(model, guide)[0], (setting.x, setting.y), {})))
        if configuration.estimator not in ("shared", "path_derivative") or not torch.isfinite(parts.loss):
            return  # layers draw outputs, not weights; tests/estimators/ compares their moments
        again = ELBO(estimator=configuration.estimator)
        pyro.set_rng_seed(configuration.seed)
        step = again.step(model, guide)[0]
        if step.vectorized:
            return  # the mean over all members; the looped family is compared
        draw = step.draw(0)
        with torch.no_grad(), draw.running(model, update=False) as run:
            model(setting.x, setting.y)
        if draw.buffers:
            return
        outputs = setting.run(draw, mode=True)
        expected = configuration.scale * log_likelihood(configuration, outputs, draw, setting.y, training=True)
        torch.testing.assert_close(parts.log_likelihood.detach(), expected, **tolerance(configuration))
        priors = {message["name"]: message["fn"] for message in run.latent}
        if configuration.family == "MAP":
            score = sum(priors[name].log_prob(value).sum() for name, value in draw.items())
            torch.testing.assert_close(parts.divergence.detach(), -score.detach(), **tolerance(configuration))
        elif configuration.family == "MeanField" and configuration.estimator == "shared":
            terms = [_kl(guide.marginal(name), priors[name], value.detach()) for name, value in draw.items()]
            torch.testing.assert_close(parts.divergence.detach(), sum(terms).detach(), **tolerance(configuration))


def _kl(posterior: Any, prior: Any, value: Tensor) -> Tensor:
    """The closed form that torch has for two independent Normals, else the difference of log densities."""
    q, p = (_base(one, value.shape) for one in (posterior, prior))
    if isinstance(q, torch.distributions.Normal) and isinstance(p, torch.distributions.Normal | dist.Laplace):
        with contextlib.suppress(NotImplementedError):
            return torch.distributions.kl_divergence(q, p).sum()
    return posterior.log_prob(value).sum() - prior.log_prob(value).sum()


def _base(one: Any, shape: torch.Size) -> Any:
    while isinstance(one, torch.distributions.Independent):
        one = one.base_dist
    return one.expand(shape)


@tried(configurations)
def test_predictions_are_those_of_the_network(configuration: Configuration) -> None:
    """The mean over the same draws of the likelihood's means, from the plain network's outputs."""
    with contextlib.suppress(Refused):
        setting, guide = prepared(configuration)
        pyro.set_rng_seed(configuration.seed)
        draws = guide.sample(4)
        found = pb.predict(setting.model, draws, setting.x, 4, method="loop")
        if draws.buffers:
            return
        means = []
        for index in range(4):
            draw = draws.at(index)
            one = distribution(configuration, setting.run(draw, mode=False), draw)
            means.append(one.probs if configuration.likelihood in ("Categorical", "Ordinal") else one.mean)
        expected = torch.stack(means).mean(0)
        if found.mean.shape != expected.shape:  # probabilities of both classes
            expected = torch.stack([1.0 - expected, expected], -1)
        torch.testing.assert_close(found.mean, expected, **tolerance(configuration))


@tried(with_estimators)
def test_the_caller_is_left_untouched(configuration: Configuration) -> None:
    with contextlib.suppress(Refused):
        setting, guide = prepared(configuration)
        before, modes = snapshot(setting), [module.training for module in setting.model.modules()]
        guarded = torch.random.get_rng_state()
        batches = [(setting.x, setting.y)] * configuration.scale
        if configuration.family != "Laplace":
            with refusals():
                elbo = ELBO(estimator=configuration.estimator)
                pb.fit(setting.model, guide, batches, elbo=elbo, epochs=2, lr=1e-3, seed=1, progress=False)
        pb.predict(setting.model, guide, setting.x, 3, seed=2)
        pb.describe(setting.model, guide)
        assert torch.equal(torch.random.get_rng_state(), guarded)
        assert [module.training for module in setting.model.modules()] == modes
        after = snapshot(setting)
        assert all(torch.equal(after[name].nan_to_num(), value.nan_to_num()) for name, value in before.items())
        assert all(bool(value.isfinite().all()) for value in guide.parameters())


@tried(configurations)
def test_a_saved_posterior_is_the_same_after_loading(configuration: Configuration) -> None:
    with contextlib.suppress(Refused), tempfile.TemporaryDirectory() as directory:
        setting, guide = prepared(configuration)
        with refusals():
            pb.save(directory, setting.model, guide)
        other = configuration.build()
        model, loaded = pb.load(directory, net=copy.deepcopy(other.net))
        found, expected = (pb.predict(m, g, setting.x, 3, seed=2) for m, g in ((model, loaded), (setting.model, guide)))
        assert torch.equal(found.mean, expected.mean) and torch.equal(found.total, expected.total)


@pytest.mark.statistical
@tried(configurations)
def test_check_reports_the_objective(configuration: Configuration) -> None:
    """The mean of 64 one-draw objectives without vectorization; z-score below 5."""
    with contextlib.suppress(Refused):
        setting, guide = prepared(configuration)
        batches = [(setting.x, setting.y)] * configuration.scale
        report = pb.check(setting.model, guide, batches, num_samples=64)["ELBO noise floor"]
        assert (report.value is None) == (not guide.facts.density)
        if report.value is None:
            return
        reported = float(report.reason.split("gives ")[1].split(" ±")[0])
        model, values = setting.model.eval(), []
        for _ in range(64):
            draw = guide.sample(1).at(0)
            with torch.no_grad(), draw.running(model, update=False) as run:
                model(setting.x, setting.y)
                divergence = guide.divergence(draw, prior_terms(run.latent)).total
            score = log_likelihood(configuration, setting.run(draw, mode=False), draw, setting.y)
            values.append((configuration.scale * score - divergence) / setting.model.num_data)
        mean, std = torch.stack(values).mean(), torch.stack(values).std()
        error = float(std) * (2 / 64) ** 0.5 + 5e-4 * abs(float(mean))  # the report has four digits
        assert abs(reported - float(mean)) < 5 * error


def test_few_configurations_are_refused() -> None:
    """Each network with each family, so that the tests above do not pass by refusals."""
    refused = []
    for network in NETWORKS:
        for family in FAMILIES:
            try:
                prepared(Configuration(network, "Categorical", "Normal", family, "shared"))
            except Refused as error:
                refused.append(f"{network}, {family}: {error}")
    # The outputs are a sum of two layers', so that neither is the last one.
    expected = ["two inputs, Laplace: last_layer: ", "mapping, Laplace: last_layer: "]
    assert len(refused) == len(expected) and all(map(str.startswith, refused, expected)), "\n".join(refused)
