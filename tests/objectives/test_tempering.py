"""Tempering scales the divergence and nothing else, on both sides, under every objective."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn

import pyrobnn as pb
from pyrobnn.core.schedules import Linear
from pyrobnn.guides import MAP, Composite, DeltaMixture, Guide, MCDropout, MeanField
from pyrobnn.model.likelihoods import Normal
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.objectives import ELBO, Tempered
from tests.conformance.conjugate import ConjugateRegression
from tests.conformance.monte_carlo import Z, z_of_mean

TEMPERATURES = [0.1, 1.0, 3.0]


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "autograd"])
def test_loss_and_gradient_are_linear_in_the_temperature(temperature: float, in_place: bool) -> None:
    """For the same noise: loss = λ KL - log likelihood, and the gradient alike."""
    data = ConjugateRegression()
    model = data.model()

    def evaluate(weight: float) -> torch.Tensor:
        guide = data.optimal_guide(model)
        with torch.no_grad():
            guide.flat_loc.add_(0.3)
        pyro.set_rng_seed(2)
        elbo = ELBO(temperature=weight)
        if in_place:
            loss = torch.tensor(elbo.loss_and_grads(model, guide, data.x, data.y))
        else:
            loss = elbo.differentiable_loss(model, guide, data.x, data.y)
            loss.backward()
        return torch.cat([loss.detach().double().reshape(1), *(p.grad for p in guide.parameters())])

    at_one, at_two = evaluate(1.0), evaluate(2.0)
    expected = at_one + (temperature - 1.0) * (at_two - at_one)
    torch.testing.assert_close(evaluate(temperature), expected, rtol=1e-5, atol=1e-5)
    guide = data.optimal_guide(model)
    elbo = ELBO(temperature=temperature)
    elbo.loss(model, guide, data.x, data.y)
    assert elbo.parts is not None
    untempered = ELBO()
    untempered.loss(model, guide, data.x, data.y)
    assert untempered.parts is not None
    torch.testing.assert_close(elbo.parts.divergence, untempered.parts.divergence)  # parts are not tempered


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("objective", [Trace_ELBO, TraceMeanField_ELBO])
def test_handler_on_both_sides_tempers_any_objective(temperature: float, objective: type) -> None:
    data = ConjugateRegression()
    model = data.model()
    guide = MAP(model).double()
    tempered = objective().loss(Tempered(temperature)(model), Tempered(temperature)(guide), data.x, data.y)
    expected = ELBO(temperature=temperature).loss(model, guide, data.x, data.y)
    assert tempered == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_analytic_kl_of_a_gaussian_guide_is_tempered(temperature: float) -> None:
    data = ConjugateRegression()
    model = data.model()
    guide = data.optimal_guide(model)
    losses = []
    for weight in (temperature, 1.0):
        pyro.set_rng_seed(2)
        losses.append(TraceMeanField_ELBO().loss(Tempered(weight)(model), Tempered(weight)(guide), data.x, data.y))
    elbo = ELBO()
    elbo.loss(model, guide, data.x, data.y)
    assert elbo.parts is not None
    assert losses[0] - losses[1] == pytest.approx(
        (temperature - 1.0) * float(elbo.parts.divergence), rel=1e-6, abs=1e-6
    )


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_guides_from_elsewhere_are_tempered(temperature: float) -> None:
    data = ConjugateRegression()
    model = data.model()
    guide = AutoNormal(model)
    guide(data.x, data.y)
    losses = []
    for weight in (1.0, 2.0, temperature):
        pyro.set_rng_seed(2)
        losses.append(ELBO(temperature=weight).loss(model, guide, data.x, data.y))
    assert losses[2] == pytest.approx(losses[0] + (temperature - 1.0) * (losses[1] - losses[0]), rel=1e-6)


@pytest.mark.statistical
@pytest.mark.parametrize("temperature", [0.1, 3.0])
def test_optimum_is_the_tempered_posterior(temperature: float) -> None:
    """The gradient has mean zero at the closed form for likelihood^(1/λ): 400 pairs, z-score below 5."""
    data = ConjugateRegression(temperature=temperature)
    model = data.model()
    guide = data.optimal_guide(model)
    elbo, rows = ELBO(num_particles=2, temperature=temperature), []
    for _ in range(400):
        guide.zero_grad()
        elbo.loss_and_grads(model, guide, data.x, data.y)
        rows.append(torch.cat([guide.flat_loc.grad, guide.flat_log_scale.grad]))
    draws = torch.stack(rows)
    # Mirrored draws leave the means' gradient no noise: its rounding is that of sums of this size.
    rounding = 1e-6 * float(data.precision.max())
    assert float(draws[:, : data.dim + 1].abs().max()) < rounding
    assert z_of_mean(draws[:, data.dim + 1 :], 0.0) < Z


# ----------------------------------------------------------------------------------------------- schedules


def test_schedule_is_counted_over_gradient_steps() -> None:
    data = ConjugateRegression()
    model = data.model()
    guide = data.optimal_guide(model)
    elbo = ELBO(num_particles=2, temperature=Linear(0.0, 1.0, 5, hold=True))
    seen = []
    for _ in range(6):
        elbo.loss(model, guide, data.x, data.y)  # an evaluation is no step
        elbo.loss_and_grads(model, guide, data.x, data.y)
        assert elbo.parts is not None
        seen.append(elbo.parts.temperature)
    assert seen == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert elbo.num_steps == 6


def test_annealing_guides_from_elsewhere() -> None:
    """KL annealing starts at 0, also for Pyro's own guides."""
    data = ConjugateRegression()
    model = data.model()
    elbo = ELBO(temperature=Linear(0.0, 1.0, 5, hold=True))
    svi = SVI(model, AutoNormal(model), pyro.optim.Adam({"lr": 0.01}), elbo)
    losses = [svi.step(data.x, data.y) for _ in range(5)]
    assert elbo.num_steps == 5 and all(loss == loss for loss in losses)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf"), "cold", None, True])
def test_temperatures_must_be_positive(temperature: Any) -> None:
    if temperature is not None:  # None is the temperature of the model's prior
        with pytest.raises(ValueError, match="temperature: expected a positive number"):
            ELBO(temperature=temperature)
    if temperature != 0.0:
        with pytest.raises(ValueError, match="temperature: expected a number of at least 0"):
            Tempered(temperature)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), "cold", None])
@pytest.mark.parametrize("from_step", [0, 2])
def test_schedules_that_leave_the_range(value: Any, from_step: int) -> None:
    """A weight of the KL that is none ends the training at that step, and no gradient has been added."""
    data = ConjugateRegression()
    model = data.model()
    guide = data.optimal_guide(model)

    def schedule(step: int) -> Any:
        return value if step >= from_step else 1.0

    def train() -> None:
        elbo = ELBO(temperature=schedule)
        for _ in range(3):
            guide.zero_grad()
            elbo.loss_and_grads(model, guide, data.x, data.y)

    with pytest.raises(ValueError, match=f"temperature: expected a number of at least 0 .* at step {from_step}"):
        train()
    assert guide.flat_loc.grad is None


def test_schedules_that_end() -> None:
    data = ConjugateRegression()
    model = data.model()
    guide = data.optimal_guide(model)
    elbo = ELBO(temperature=Linear(0.0, 1.0, 2))
    for _ in range(2):
        elbo.loss_and_grads(model, guide, data.x, data.y)
    with pytest.raises(ValueError, match=r"temperature: schedule: it ends after 2 steps.*hold=True"):
        elbo.loss_and_grads(model, guide, data.x, data.y)


# ------------------------------------------------------------------------------------ the default prior's weight


def unstated(num_data: int, prior: Any = None) -> SupervisedModel:
    """A model of 3 · 4 + 4 + 4 + 1 = 21 numbers, by default without a stated prior."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    return SupervisedModel(net, Normal(0.5), prior, num_data=num_data)


@pytest.mark.parametrize(
    ("build", "size"),
    [
        (MeanField, 21),
        (MAP, 0),
        (DeltaMixture, 0),
        (lambda model: Composite(model, [("*bias", MAP), ("*", MeanField)]), 16),
        (lambda model: MCDropout(model), 0),
    ],
    ids=["MeanField", "MAP", "DeltaMixture", "Composite", "MCDropout"],
)
@pytest.mark.parametrize("num_data", [7, 200])
def test_without_a_stated_prior_the_weight_is_data_over_numbers(
    build: Callable[[Any], Guide], size: int, num_data: int
) -> None:
    model = unstated(num_data)
    expected = min(1.0, num_data / size) if size else 1.0
    assert ELBO().current_temperature(model, build(model)) == expected
    assert ELBO(temperature=1.0).current_temperature(model, build(model)) == 1.0
    stated = unstated(num_data, dist.Normal(0.0, 1.0))
    assert ELBO().current_temperature(stated, build(stated)) == 1.0


def test_the_weight_follows_the_number_of_data_and_enters_loss_and_gradient() -> None:
    model = unstated(7)
    guide, x, y = MeanField(model), torch.randn(7, 3), torch.randn(7, 1)

    def gradient(elbo: ELBO) -> torch.Tensor:
        pyro.set_rng_seed(1)
        guide.zero_grad()
        loss = elbo.loss_and_grads(model, guide, x, y)
        return torch.cat([torch.tensor([loss]), *(p.grad.flatten() for p in guide.parameters() if p.grad is not None)])

    elbo = ELBO()
    assert torch.equal(gradient(elbo), gradient(ELBO(temperature=7 / 21)))
    model.num_data = 14
    again = copy.deepcopy(elbo)  # with a step of its own, whose antithetic noise starts anew
    assert torch.equal(gradient(again), gradient(ELBO(temperature=14 / 21)))
    assert ELBO().temperature is None and copy.deepcopy(elbo).current_temperature(model, guide) == 14 / 21


def test_an_own_model_around_a_converted_network_has_it_too() -> None:
    class Own(pyro.nn.PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.num_data = pb.bayesianize(nn.Linear(3, 1)), 2

        def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
            outputs = self.net(x).squeeze(-1)
            with pyro.plate("data", 2):
                pyro.sample("y", dist.Normal(outputs, 1.0), obs=y)
            return outputs

    model, x, y = Own(), torch.randn(2, 3), torch.randn(2)
    guide = MeanField(model, example=(x, y))
    assert ELBO().current_temperature(model, guide) == 2 / 4


def test_history_and_parts_tell_it() -> None:
    model = unstated(7)
    guide, batch = MeanField(model), (torch.randn(7, 3), torch.randn(7, 1))
    assert pb.fit(model, guide, [batch], epochs=2, progress=False).terms == {"temperature": [7 / 21] * 2}
    assert pb.fit(model, guide, [batch], epochs=1, elbo=ELBO(temperature=1.0), progress=False).terms == {}


def test_a_checkpoint_keeps_whether_a_prior_was_stated(tmp_path: Path) -> None:
    for prior, expected in ((None, 7 / 21), (dist.Normal(0.0, 1.0), 1.0)):
        model = unstated(7, prior)
        pb.save(tmp_path, model, MeanField(model))
        loaded = pb.load(tmp_path, net=unstated(7).net.network)
        assert ELBO().current_temperature(*loaded) == expected
    model = unstated(7)
    with pytest.raises(ValueError, match=r"model: it is not the one that was saved: .*default_prior"):
        pb.load(tmp_path, model=model, guide=MeanField(model))
