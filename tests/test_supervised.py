"""The supervised model: its log joint against the hand-written sum, its sites, its scale, its refusals."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn

from pyrobnn.bayesianize import bayesianize
from pyrobnn.guides.mean_field import MeanField
from pyrobnn.likelihoods import Bernoulli, Categorical, HeteroscedasticNormal, Likelihood, Normal, Poisson
from pyrobnn.priors import learned_scale
from pyrobnn.substitution import Substitution
from pyrobnn.supervised import SupervisedModel

PRIOR = dist.Normal(0.0, 2.0)


def classifier(num_data: int = 20) -> SupervisedModel:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5))
    return SupervisedModel(net, Categorical(), PRIOR, num_data=num_data)


def latent_names(trace: poutine.Trace) -> list[str]:
    return [
        name
        for name, node in trace.nodes.items()
        if node["type"] == "sample" and not node["is_observed"] and name != "data"
    ]


def normal(value: Tensor, scale: float) -> Tensor:
    return (-0.5 * (value / scale) ** 2 - math.log(scale) - 0.5 * math.log(2 * math.pi)).sum()


class Twice(nn.Module):
    """Runs its layer on two parts of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.layer(x.flip(0))


# ------------------------------------------------------------------------------- statements made without Pyro


def observed_run(model: SupervisedModel, direct: bool, batch: int) -> tuple[list[tuple[str, Tensor]], Tensor]:
    """Log densities of all sites in order, scaled, and the outputs."""
    torch.manual_seed(0)
    values = {name: value for name, value in MeanField(model).rsample().items() if "likelihood" not in name}
    x = torch.randn(batch, 3)
    y = torch.randint(5, (batch,)) if model.likelihood.is_discrete else torch.randn(batch, 5)
    with Substitution(values, direct=direct) as run:
        outputs = model(x, y)
    messages = [*run.latent, *run.observed]
    return [(m["name"], m["scale"] * m["fn"].log_prob(m["value"]).sum()) for m in messages], outputs


@pytest.mark.parametrize("batch", [7, 20])
@pytest.mark.parametrize("likelihood", [Categorical(), Normal(0.5), Normal(0.5, learn_scale=True)], ids=repr)
@pytest.mark.parametrize("make", [lambda: nn.Linear(3, 5), Twice])
def test_a_run_that_writes_its_sites_directly_is_a_run_through_pyro(
    make: Any, likelihood: Likelihood, batch: int
) -> None:
    rules = [("*bias", learned_scale(1.0)), ("*", PRIOR)]
    model = SupervisedModel(make(), copy.deepcopy(likelihood), rules, num_data=20)
    (ours, outputs), (theirs, expected) = (observed_run(model, direct, batch) for direct in (True, False))
    assert torch.equal(outputs, expected)
    assert sorted(name for name, _ in ours) == sorted(name for name, _ in theirs)
    for name, density in theirs:
        torch.testing.assert_close(dict(ours)[name], density)


# -------------------------------------------------------------------------------------------- the log joint


@given(num_data=st.integers(1, 30), share=st.floats(0.01, 1.0))
def test_the_log_joint_is_the_prior_plus_the_scaled_log_likelihood(num_data: int, share: float) -> None:
    batch = max(1, round(share * num_data))
    model = classifier(num_data)
    x, y = torch.randn(batch, 3), torch.randint(5, (batch,))
    trace = poutine.trace(model).get_trace(x, y)
    w = {name: trace.nodes[name]["value"] for name in latent_names(trace)}
    assert list(w) == ["net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias"]
    logits = torch.tanh(x @ w["net.0.weight"].T + w["net.0.bias"]) @ w["net.2.weight"].T + w["net.2.bias"]
    log_prior = sum(normal(value, 2.0) for value in w.values())
    expected = log_prior - num_data / batch * F.cross_entropy(logits, y, reduction="sum")
    torch.testing.assert_close(trace.log_prob_sum(), expected, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(trace.nodes["_RETURN"]["value"], logits)


def test_batches_of_an_epoch_average_to_the_full_log_likelihood() -> None:
    model, x, y = classifier(12), torch.randn(12, 3), torch.randint(5, (12,))
    values = model.sample_latents()
    values = {f"net.{name}": value for name, value in values.items()}

    def log_likelihood(x: Tensor, y: Tensor) -> Tensor:
        with Substitution(values):
            trace = poutine.trace(model).get_trace(x, y)
        trace.compute_log_prob()
        return trace.nodes["y"]["log_prob_sum"]

    parts = [log_likelihood(x[i : i + 4], y[i : i + 4]) for i in (0, 4, 8)]
    torch.testing.assert_close(torch.stack(parts).mean(), log_likelihood(x, y))


def test_the_log_joint_with_a_latent_noise() -> None:
    model = SupervisedModel(nn.Linear(3, 2), Normal(dist.LogNormal(0.0, 1.0)), PRIOR, num_data=10)
    x, y = torch.randn(5, 3), torch.randn(5, 2)
    trace = poutine.trace(model).get_trace(x, y)
    assert latent_names(trace) == ["net.weight", "net.bias", "likelihood.scale"]
    weight, bias, scale = (trace.nodes[name]["value"] for name in latent_names(trace))
    residual = y - x @ weight.T - bias
    log_likelihood = normal(residual, scale.item())
    log_scale_prior = -0.5 * scale.log() ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)
    expected = normal(weight, 2.0) + normal(bias, 2.0) + log_scale_prior + 10 / 5 * log_likelihood
    torch.testing.assert_close(trace.log_prob_sum(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch", [6, 20])
def test_the_observation_lies_in_one_plate_of_the_size_of_the_data(batch: int) -> None:
    trace = poutine.trace(classifier(20)).get_trace(torch.randn(batch, 3), torch.randint(5, (batch,)))
    node = trace.nodes["y"]
    (frame,) = node["cond_indep_stack"]
    assert (frame.name, frame.dim, frame.size) == ("data", -1, batch)
    assert node["scale"] == pytest.approx(20 / batch)
    assert all(trace.nodes[name]["cond_indep_stack"] == () for name in latent_names(trace)), "weights lie outside"
    assert all(trace.nodes[name]["scale"] == 1.0 for name in latent_names(trace))


def test_scoring_a_batch_uses_no_random_numbers_beyond_the_weights() -> None:
    """A plate left to choose its rows would draw a permutation of all of them at each step."""
    model, x, y = classifier(1_000_000), torch.randn(6, 3), torch.randint(5, (6,))
    values = {f"net.{name}": value for name, value in model.sample_latents().items()}
    state = torch.get_rng_state()
    with Substitution(values):
        model(x, y)
    assert torch.equal(torch.get_rng_state(), state)


# ------------------------------------------------------------------------------------------ without targets


def test_without_targets_they_are_drawn_for_every_row() -> None:
    model = classifier(4)
    trace = poutine.trace(model).get_trace(torch.randn(7, 3))
    node = trace.nodes["y"]
    assert not node["is_observed"]
    assert node["value"].shape == (7,), "more rows than training data are no mistake here"
    assert node["scale"] == 1.0


@pytest.mark.parametrize(
    ("likelihood", "shape"),
    [
        (Categorical(), (7,)),
        (Bernoulli(), (7, 4)),
        (Normal(), (7, 4)),
        (Normal(dist.HalfNormal(1.0)), (7, 4)),
        (HeteroscedasticNormal(), (7, 2)),
        (Poisson(), (7, 4)),
    ],
)
def test_what_is_drawn_can_be_scored(likelihood: Likelihood, shape: tuple[int, ...]) -> None:
    model = SupervisedModel(nn.Linear(3, 4), likelihood, dist.Normal(0.0, 0.3), num_data=7)
    x = torch.randn(7, 3)
    y = poutine.trace(model).get_trace(x).nodes["y"]["value"]
    assert y.shape == shape
    assert bool(poutine.trace(model).get_trace(x, y).log_prob_sum().isfinite())


def test_drawn_targets_have_the_distribution_of_the_likelihood() -> None:
    """20,000 draws of y around known outputs: mean and variance, z = 4."""
    model = SupervisedModel(nn.Linear(3, 1), Normal(0.5), PRIOR, num_data=5)
    values = {"net.weight": torch.zeros(1, 3), "net.bias": torch.tensor([3.0])}
    with Substitution(values):
        y = poutine.trace(model).get_trace(torch.zeros(20_000, 3)).nodes["y"]["value"].double()
    assert abs(y.mean() - 3.0) < 4 * 0.5 / math.sqrt(20_000)
    assert abs(y.var() - 0.25) < 4 * 0.25 * math.sqrt(2 / 20_000)


def test_predictive_gives_the_outputs_alone() -> None:
    model, x = classifier(), torch.randn(6, 3)
    values = {f"net.{name}": value for name, value in model.sample_latents().items()}
    with Substitution(values):
        outputs = model.predictive(x)
        assert torch.equal(outputs, model(x))


# ---------------------------------------------------------------------------------------------- the network


def test_sites_without_data_are_those_of_a_run() -> None:
    model = SupervisedModel(nn.Linear(3, 2), Normal(dist.HalfNormal(1.0)), PRIOR, num_data=10)
    with_data = latent_names(poutine.trace(model).get_trace(torch.randn(5, 3), torch.randn(5, 2)))
    assert latent_names(poutine.trace(model.sample_latents).get_trace()) == with_data


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.layer(a - b)


@pytest.mark.parametrize("pack", [lambda a, b: (a, b), lambda a, b: [a, b], lambda a, b: {"b": b, "a": a}])
def test_several_inputs(pack: Any) -> None:
    net = TwoInputs()
    model = SupervisedModel(net, Categorical(), PRIOR, num_data=10)
    a, b = torch.randn(4, 3), torch.randn(4, 3)
    values = {f"net.{name}": parameter.detach() for name, parameter in net.named_parameters()}
    with Substitution(values):
        assert torch.equal(model(pack(a, b), torch.zeros(4, dtype=torch.long)), net(a, b))
        assert torch.equal(model.predictive(pack(a, b)), net(a, b))


def test_the_network_is_copied_and_a_converted_one_taken_as_it_is() -> None:
    net = nn.Linear(3, 2)
    assert SupervisedModel(net, Categorical(), PRIOR, num_data=1).net.network is not net
    converted = bayesianize(net, PRIOR)
    assert SupervisedModel(converted, Categorical(), num_data=1).net is converted


def test_copy_pickle_and_double() -> None:
    model, x, y = classifier(), torch.randn(6, 3), torch.randint(5, (6,))
    poutine.trace(model).get_trace(x, y)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        densities = []
        for m in (model, twin):
            pyro.set_rng_seed(3)
            densities.append(poutine.trace(m).get_trace(x, y).log_prob_sum())
        assert torch.equal(*densities)
    assert model.double()(x.double(), y).dtype == torch.float64


def test_two_models_trained_by_raw_svi_share_nothing() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    models = [SupervisedModel(net, Normal(learn_scale=True), PRIOR, num_data=8) for _ in range(2)]
    guides = [MeanField(model) for model in models]
    kept = [{k: v.clone() for k, v in m.state_dict().items()} for m in (models[1], guides[1])]
    x, y = torch.randn(8, 3), torch.randn(8, 2)
    svi = SVI(models[0], guides[0], pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    before = {name: parameter.detach().clone() for name, parameter in models[0].named_parameters()}
    for _ in range(2):
        svi.step(x, y)
    moved = {name for name, p in models[0].named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name, p in models[0].named_parameters() if p.requires_grad}
    assert {name.rsplit(".", 1)[1] for name in moved} == {"weight", "bias", "log_scale"}
    for module, state in zip((models[1], guides[1]), kept, strict=True):
        assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())
    assert len(pyro.get_param_store()) == 0


# --------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("num_data", [0, -3, 2.5, "10", None, True])
def test_a_number_of_data_that_is_none_is_refused(num_data: Any) -> None:
    with pytest.raises(ValueError, match="num_data: expected the number of training data, a positive int, got"):
        SupervisedModel(nn.Linear(3, 2), Categorical(), PRIOR, num_data=num_data)


def test_more_rows_than_data_are_refused() -> None:
    with pytest.raises(ValueError, match=r"num_data: the model was told of 4 data, but a batch has 6 rows"):
        classifier(4)(torch.randn(6, 3), torch.randint(5, (6,)))


@pytest.mark.parametrize("likelihood", [Normal, "normal", None, dist.Normal(0.0, 1.0)])
def test_something_else_than_a_likelihood_is_refused(likelihood: Any) -> None:
    with pytest.raises(TypeError, match=r"likelihood: expected one of pyrobnn\.likelihoods"):
        SupervisedModel(nn.Linear(3, 2), likelihood, PRIOR, num_data=10)


def test_a_missing_or_a_second_prior_is_refused() -> None:
    with pytest.raises(TypeError, match="prior: missing"):
        SupervisedModel(nn.Linear(3, 2), Categorical(), num_data=10)
    with pytest.raises(TypeError, match="prior: the network already has its priors"):
        SupervisedModel(bayesianize(nn.Linear(3, 2), PRIOR), Categorical(), PRIOR, num_data=10)


def test_something_else_than_a_network_is_refused() -> None:
    with pytest.raises(TypeError, match=r"net: expected a torch\.nn\.Module, got int"):
        SupervisedModel(3, Categorical(), PRIOR, num_data=10)  # type: ignore[arg-type]


def test_targets_that_would_broadcast_are_refused() -> None:
    model = SupervisedModel(nn.Linear(3, 1), Normal(), PRIOR, num_data=10)
    with pytest.raises(ValueError, match=r"y: Normal expects targets of shape \(6, 1\).*got \(6,\); reshape"):
        model(torch.randn(6, 3), torch.zeros(6))


def test_targets_that_are_no_tensor_are_refused() -> None:
    with pytest.raises(TypeError, match="y: expected a tensor of targets, got list"):
        classifier()(torch.randn(2, 3), [0, 1])  # type: ignore[arg-type]


@pytest.mark.parametrize("y", [None, torch.zeros(6, dtype=torch.long)])
def test_a_classifier_without_a_class_dimension_is_refused(y: Tensor | None) -> None:
    net = nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))
    model = SupervisedModel(net, Categorical(), PRIOR, num_data=10)
    with pytest.raises(ValueError, match=r"net: Categorical expects outputs \[B, C\].*\(6,\)"):
        model(torch.randn(6, 3), y)


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"(empty|no rows)"):
        classifier()(torch.randn(0, 3), torch.zeros(0, dtype=torch.long))
