"""The supervised model: its log joint against the hand-written sum, its sites, its scale, its refusals."""

from __future__ import annotations

import copy
import dataclasses
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

from pyrobnn.estimators import PerGroup
from pyrobnn.guides.delta_mixture import DeltaMixture
from pyrobnn.guides.map import MAP
from pyrobnn.guides.mean_field import MeanField
from pyrobnn.model.bayesianize import bayesianize
from pyrobnn.model.likelihoods import (
    Bernoulli,
    Categorical,
    ClassLikelihood,
    HeteroscedasticNormal,
    Likelihood,
    Normal,
    Poisson,
)
from pyrobnn.model.priors import learned_scale
from pyrobnn.model.substitution import SubstituteMessenger, summed_score
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.objectives import ELBO
from pyrobnn.prediction import predict

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
    y = torch.randint(5, (batch,)) if isinstance(model.likelihood, ClassLikelihood) else torch.randn(batch, 5)
    with SubstituteMessenger(values, direct=direct) as run:
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
        with SubstituteMessenger(values):
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
    with SubstituteMessenger(values):
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
    with SubstituteMessenger(values):
        y = poutine.trace(model).get_trace(torch.zeros(20_000, 3)).nodes["y"]["value"].double()
    assert abs(y.mean() - 3.0) < 4 * 0.5 / math.sqrt(20_000)
    assert abs(y.var() - 0.25) < 4 * 0.25 * math.sqrt(2 / 20_000)


def test_predictive_gives_the_outputs_alone() -> None:
    model, x = classifier(), torch.randn(6, 3)
    values = {f"net.{name}": value for name, value in model.sample_latents().items()}
    with SubstituteMessenger(values):
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
    with SubstituteMessenger(values):
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
    with pytest.raises(ValueError, match=r"num_data: the model was built for 4 data, but a batch has 6 rows"):
        classifier(4)(torch.randn(6, 3), torch.randint(5, (6,)))


@pytest.mark.parametrize("likelihood", [Normal, "normal", None, dist.Normal(0.0, 1.0)])
def test_something_else_than_a_likelihood_is_refused(likelihood: Any) -> None:
    with pytest.raises(TypeError, match=r"likelihood: expected one of pyrobnn\.likelihoods"):
        SupervisedModel(nn.Linear(3, 2), likelihood, PRIOR, num_data=10)


def test_without_a_prior_all_ordinary_weights_are_standard_normal() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    net[0].requires_grad_(False)
    model = SupervisedModel(net, Categorical(), num_data=10)
    trace = poutine.trace(model.sample_latents).get_trace()
    assert list(trace.stochastic_nodes) == ["net.2.weight", "net.2.bias"]
    for name in trace.stochastic_nodes:
        node = trace.nodes[name]
        torch.testing.assert_close(
            node["fn"].log_prob(node["value"]), dist.Normal(0.0, 1.0).log_prob(node["value"]).sum()
        )
    assert model.has_default_prior and not classifier(10).has_default_prior


def test_a_second_prior_is_refused() -> None:
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


# --------------------------------------------------------------------------------------------- weights of data


def log_likelihood(model: SupervisedModel, values: dict[str, Tensor], direct: bool, *args: Any) -> Tensor:
    """The scaled and masked log likelihood of a run, written down directly or sent through Pyro."""
    with pyro.validation_enabled(not direct), SubstituteMessenger(values, direct=direct) as run:
        model(*args)
    (message,) = run.observed
    return summed_score(message["fn"].log_prob(message["value"]), message)


def regression(num_data: int) -> tuple[SupervisedModel, dict[str, Tensor], Tensor, Tensor]:
    """A linear network of two outputs, a draw of its weights, and four rows."""
    generator = torch.Generator().manual_seed(6)
    model = SupervisedModel(nn.Linear(3, 2), Normal(0.5), PRIOR, num_data=num_data)
    values = {"net.weight": torch.randn(2, 3, generator=generator), "net.bias": torch.randn(2, generator=generator)}
    return model, values, torch.randn(4, 3, generator=generator), torch.randn(4, 2, generator=generator)


def densities(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Log density of each row."""
    mean = x @ values["net.weight"].T + values["net.bias"]
    return (-2.0 * (y - mean).square() - math.log(0.5) - 0.5 * math.log(2 * math.pi)).sum(-1)


DIRECT = pytest.mark.parametrize("direct", [True, False])


@DIRECT
@pytest.mark.parametrize("num_data", [4, 10])
def test_weights_scale_the_log_density_of_each_row(direct: bool, num_data: int) -> None:
    model, values, x, y = regression(num_data)
    weight = torch.tensor([0.5, 2.0, 0.0, 1.0])
    expected = num_data / 4 * (weight * densities(values, x, y)).sum()
    torch.testing.assert_close(log_likelihood(model, values, direct, x, y, weight), expected)


@DIRECT
def test_a_weight_of_two_is_the_row_twice_and_a_weight_of_zero_its_absence(direct: bool) -> None:
    model, values, x, y = regression(4)
    twice = log_likelihood(model, values, direct, x, y, torch.tensor([2.0, 1.0, 1.0, 1.0]))
    model.num_data = 5
    torch.testing.assert_close(twice, log_likelihood(model, values, direct, x[[0, 0, 1, 2, 3]], y[[0, 0, 1, 2, 3]]))
    model.num_data = 4
    absent = log_likelihood(model, values, direct, x, y, torch.tensor([0.0, 1.0, 1.0, 1.0]))
    model.num_data = 3
    torch.testing.assert_close(absent, log_likelihood(model, values, direct, x[1:], y[1:]))


@DIRECT
def test_a_row_of_weight_zero_counts_among_the_rows(direct: bool) -> None:
    """N / B stays 8 / 4, although three rows are left: the sum is twice that of the three."""
    model, values, x, y = regression(8)
    found = log_likelihood(model, values, direct, x, y, torch.tensor([0.0, 1.0, 1.0, 1.0]))
    torch.testing.assert_close(found, 2.0 * densities(values, x[1:], y[1:]).sum())


@DIRECT
def test_a_weight_of_zero_silences_a_density_of_zero(direct: bool) -> None:
    model, values, x, y = regression(4)
    far = y.clone()
    far[2] = 1e30
    weight = torch.tensor([1.0, 1.0, 0.0, 1.0])
    found = log_likelihood(model, values, direct, x, far, weight)
    torch.testing.assert_close(found, log_likelihood(model, values, direct, x, y, weight))


def test_pyros_own_objective_takes_the_weights() -> None:
    model, values, x, y = regression(10)
    weight = torch.tensor([0.5, 2.0, 0.0, 1.0])
    trace = poutine.trace(poutine.condition(model, values)).get_trace(x, y, weight)
    trace.compute_log_prob()
    expected = 2.5 * (weight * densities(values, x, y)).sum()
    torch.testing.assert_close(trace.nodes["y"]["log_prob_sum"], expected)


def test_members_in_one_vectorized_pass_take_the_weights() -> None:
    model, _, x, y = regression(10)
    guide = DeltaMixture(model, 3)
    weight = torch.tensor([0.5, 2.0, 0.0, 1.0])
    losses = []
    for vmap in (True, False):
        guide.vmap = vmap
        guide.zero_grad()
        loss = ELBO().loss_and_grads(model, guide, x, y, weight)
        losses.append((loss, guide.flat_loc.grad.clone()))  # type: ignore[union-attr]
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-5)
    torch.testing.assert_close(losses[0][1], losses[1][1])
    each = guide.sample(3)
    members = [{name: value[m] for name, value in each.items()} for m in range(3)]
    expected = (
        -sum(2.5 * (weight * densities(m, x, y)).sum() + sum(normal(v, 2.0) for v in m.values()) for m in members) / 3
    )
    assert losses[0][0] == pytest.approx(float(expected), rel=1e-5)


def test_groups_take_their_rows_weights() -> None:
    """Each of two groups has two of the four rows: with one point estimate, the sum is that of the batch."""
    model, _, x, y = regression(10)
    guide, weight = MAP(model), torch.tensor([0.5, 2.0, 0.0, 1.0])
    whole = ELBO().loss(model, guide, x, y, weight)
    assert ELBO(estimator=PerGroup(2)).loss(model, guide, x, y, weight) == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize(
    ("weight", "match"),
    [
        (torch.ones(3), r"weight: expected a tensor with one weight for each row, \[4\], got \[3\]"),
        (torch.ones(4, 2), r"weight: expected a tensor with one weight for each row, \[4\], got \[4, 2\]"),
        ([1.0] * 4, r"weight: expected a tensor with one weight for each row, \[4\], got list"),
        (
            torch.tensor([1.0, -1.0, 1.0, 1.0]),
            r"weight: expected finite weights .* row 1 is -1",
        ),
        (torch.tensor([1.0, 1.0, math.nan, 1.0]), r"weight: expected finite weights .* row 2 is nan"),
    ],
)
def test_weights_that_are_none_are_refused(weight: Any, match: str) -> None:
    model, _, x, y = regression(4)
    with pytest.raises(ValueError, match=match):
        model(x, y, weight)


def test_weights_without_targets_are_refused() -> None:
    model, _, x, _ = regression(4)
    with pytest.raises(ValueError, match="weight: it weighs the targets; pass y as well"):
        model(x, weight=torch.ones(4))


# ------------------------------------------------------------------------------------- several outputs of a network


class Heads(nn.Module):
    """Returns its logits among other things."""

    def __init__(self, pack: Any) -> None:
        super().__init__()
        self.layer, self.pack = nn.Linear(3, 5), pack

    def forward(self, x: Tensor) -> Any:
        logits = self.layer(x)
        return self.pack(logits, logits.sum(-1))


@dataclasses.dataclass
class Outputs:
    logits: Tensor
    energy: Tensor


OUTPUTS: list[Any] = [
    (lambda logits, energy: {"logits": logits, "energy": energy}, "logits"),
    (lambda logits, energy: (energy, logits), 1),
    (lambda logits, energy: [energy, logits], -1),
    (Outputs, "logits"),
    (Outputs, lambda returned: returned.logits),
    (lambda logits, energy: {0: logits}, 0),
    (lambda logits, energy: logits, "logits"),
    (lambda logits, energy: logits, 0),
    (lambda logits, energy: logits, None),
]


@pytest.mark.parametrize(("pack", "output"), OUTPUTS)
def test_the_likelihood_sees_the_selected_output(pack: Any, output: Any) -> None:
    model = SupervisedModel(Heads(pack), Categorical(), PRIOR, num_data=4, output=output)
    x, y = torch.randn(4, 3), torch.tensor([0, 4, 2, 2])
    values = {"net.layer.weight": torch.randn(5, 3), "net.layer.bias": torch.randn(5)}
    logits = x @ values["net.layer.weight"].T + values["net.layer.bias"]
    with SubstituteMessenger(values) as run:
        torch.testing.assert_close(model(x, y), logits)
        torch.testing.assert_close(model.predictive(x), logits)
    expected = -F.cross_entropy(logits, y, reduction="none")
    torch.testing.assert_close(run.observed[0]["fn"].log_prob(y), expected)
    draws = {name: value[None] for name, value in values.items()}
    for method in ("loop", "vmap"):
        probabilities = predict(model, draws, x, 1, method=method).mean  # type: ignore[arg-type]
        torch.testing.assert_close(probabilities, logits.softmax(-1))


@pytest.mark.parametrize(
    ("pack", "found"),
    [
        (lambda a, b: (a, b), "tuple of length 2"),
        (lambda a, b: {"logits": a, "energy": b}, "dict with 'logits', 'energy'"),
        (Outputs, "Outputs"),
    ],
)
def test_several_outputs_must_be_selected_from(pack: Any, found: str) -> None:
    model = SupervisedModel(Heads(pack), Categorical(), PRIOR, num_data=4)
    with pytest.raises(TypeError, match=rf"^net: it returned a {found}, and not a tensor; pass output= a key, index"):
        model(torch.randn(4, 3), torch.zeros(4).long())


@pytest.mark.parametrize(
    ("pack", "output", "match"),
    [
        (
            lambda a, b: {"logits": a},
            "scores",
            r"^output: the network returned a dict with 'logits', which has",
        ),
        (lambda a, b: (a, b), 2, r"^output: the network returned a tuple of length 2, which has no 2"),
        (Outputs, "scores", r"^output: the network returned a Outputs, which has no 'scores'"),
        (Outputs, 0, r"^output: the network returned a Outputs, which has no 0"),
        (lambda a, b: {"logits": (a, b)}, "logits", r"^output: 'logits' selects a tuple, not a tensor"),
        (lambda a, b: (a, b), lambda returned: None, r"^output: <function .* selects a NoneType, not a tensor"),
    ],
)
def test_a_selection_that_is_not_there_is_refused(pack: Any, output: Any, match: str) -> None:
    model = SupervisedModel(Heads(pack), Categorical(), PRIOR, num_data=4, output=output)
    with pytest.raises(TypeError, match=match):
        model.predictive(torch.randn(4, 3))


@pytest.mark.parametrize("output", [True, 1.5, ("a",)])
def test_an_output_of_another_kind_is_refused(output: Any) -> None:
    with pytest.raises(TypeError, match=r"^output: expected a key or attribute"):
        SupervisedModel(nn.Linear(3, 2), Categorical(), PRIOR, num_data=4, output=output)


def test_outputs_without_rows_are_refused() -> None:
    model = SupervisedModel(Heads(lambda a, b: a.sum()), Normal(), PRIOR, num_data=4)
    with pytest.raises(ValueError, match=r"^net: it returned one number for the whole batch"):
        model(torch.randn(1, 3), torch.zeros(1))
