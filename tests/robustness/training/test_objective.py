"""Adversarial training as an objective: which network is attacked, what moves, what is counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.guides import MAP, SWAG, Composite, Guide, LowRankEnsemble, MCDropout, MeanField
from pyrobnn.objectives import ELBO, Objective
from pyrobnn.robustness.training import AdversarialTraining, ExplicitDistribution, Perturbation, ProjectedGradient
from pyrobnn.robustness.training.attacked import AttackedNetwork, attacking
from tests.conformance.comparisons import assert_same, gradients, seeded
from tests.conformance.objective_suite import ObjectiveConformance
from tests.robustness.training.problems import FAMILIES, fitted, problem


class Shift(Perturbation):
    """Adds the radius to every input, and keeps what it saw."""

    def __init__(self, epsilon: float, **options: Any) -> None:
        super().__init__(epsilon, **options)
        self.outputs: list[Tensor] = []
        self.modes: list[bool] = []
        self.told: list[float] = []

    def perturbed(self, network: AttackedNetwork, x: Tensor, y: Tensor, *, keep: bool) -> Tensor:
        self.outputs.append(network.outputs(x + self.epsilon).detach())
        self.modes.append(network.model.training)
        return self.ball.clipped(x + self.epsilon)

    def scored(self, log_likelihood: Tensor) -> None:
        self.told.append(float(log_likelihood))


class TestShift(ObjectiveConformance):
    def make(self) -> Objective:
        return AdversarialTraining(Shift(0.1))


class TestWithCleanShare(ObjectiveConformance):
    further_terms = frozenset({"clean_log_likelihood"})

    def make(self) -> Objective:
        return AdversarialTraining(Shift(0.1), clean_share=0.25)


@pytest.mark.parametrize("family", FAMILIES)
def test_radius_zero_is_the_elbo_bit_for_bit(family: str) -> None:
    plain, history = fitted(family, ELBO())
    found, other = fitted(family, AdversarialTraining(ExplicitDistribution(0.0)))
    if family == "DeltaMixture":  # members of the plain run are vectorized
        for a, b in zip(found.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    else:
        assert_same(found.state_dict(), plain.state_dict())
        assert other.elbo == history.elbo


OTHERS: dict[str, Callable[[Any], Guide]] = {
    "MCDropout": lambda model: MCDropout(model, p=0.2),
    "MCDropout, masks of each example": lambda model: MCDropout(model, p=0.2, per_example=True),
    "LowRankEnsemble": lambda model: LowRankEnsemble(model, 2),
    "Composite": lambda model: Composite(model, [("net.3.*", MeanField), ("*", MAP)]),
    "SWAG": SWAG,
}


@pytest.mark.parametrize("family", OTHERS)
def test_other_families_train_against_attacks(family: str) -> None:
    """They take a step with finite loss that is below the one without an attack."""
    model, _, (x, y) = problem()
    guide = OTHERS[family](model).double()
    step = {"epochs": 1, "seed": 0, "progress": False, "lr": 1e-9}
    clean = pb.fit(model, guide, [(x, y)], elbo=ELBO(), **step)
    found = pb.fit(model, guide, [(x, y)], elbo=AdversarialTraining(ProjectedGradient(0.3, steps=3)), **step)
    assert found.log_likelihood[0] < clean.log_likelihood[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fixed_shift_is_training_on_shifted_inputs(family: str) -> None:
    """Loss, gradients and running statistics; the divergence is counted once."""
    model, guide, (x, y) = problem(family)
    found = seeded(lambda: gradients(model, guide, (x, y), AdversarialTraining(Shift(0.1))))
    statistics = {name: value.clone() for name, value in model.named_buffers()}
    model, guide, _ = problem(family)
    expected = seeded(lambda: gradients(model, guide, (x + 0.1, y), ELBO()))
    assert_same(found, expected, rtol=1e-9, atol=1e-12)
    assert_same(statistics, dict(model.named_buffers()), rtol=1e-12)


def test_the_attacked_network_is_the_draw_in_evaluation_mode() -> None:
    """Under the draw of each particle, and with running statistics that inner runs do not touch."""
    model, guide, (x, y) = problem("MeanField")
    shift = Shift(0.1)
    elbo = AdversarialTraining(shift, num_particles=2)
    pyro.set_rng_seed(7)
    elbo.loss_and_grads(model, guide, x, y)
    assert shift.modes == [False, False] and model.training
    assert not torch.allclose(shift.outputs[0], shift.outputs[1])

    model, guide, _ = problem("MeanField")
    pyro.set_rng_seed(7)
    step, _ = ELBO(num_particles=2).step(model, guide)
    with torch.no_grad(), attacking(model, step.draw(0)) as network:
        torch.testing.assert_close(shift.outputs[0], network.outputs(x + 0.1).detach())
    assert int(model.net.network[1].num_batches_tracked) == 0


@pytest.mark.parametrize("estimator", ["local_reparameterization", "flipout", "per_group"])
def test_estimators_attack_one_draw(estimator: str) -> None:
    model, guide, (x, y) = problem("MeanField")
    shift = Shift(0.1)
    before = {name: p.detach().clone() for name, p in guide.named_parameters()}
    elbo = AdversarialTraining(shift, estimator=estimator)
    pb.fit(model, guide, [(x, y)], elbo=elbo, epochs=1, progress=False)
    assert shift.outputs and all(bool(o.isfinite().all()) for o in shift.outputs)
    assert all(not torch.equal(p, before[name]) for name, p in guide.named_parameters())


def test_the_inner_player_leaves_no_gradients() -> None:
    """Also not in parameters that are no sites: the batch norm's, and a learned noise scale."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 1))
    noise = pb.likelihoods.Normal(1.0, learn_scale=True)
    model = pb.SupervisedModel(net, noise, dist.Normal(0.0, 1.0), num_data=8)
    guide, (x, y) = MeanField(model), (torch.randn(8, 3), torch.randn(8, 1))
    with attacking(model, guide.rsample()) as network:
        ExplicitDistribution(0.1)(network, x, y)
    both = nn.ModuleList([model, guide])
    assert [p for p in both.parameters() if p.requires_grad] and all(p.grad is None for p in both.parameters())


def test_the_clean_share() -> None:
    """The weighted sum of the two likelihoods under one draw; the perturbation is told its own."""
    model, guide, (x, y) = problem("MeanField")
    shift = Shift(0.1)
    elbo = AdversarialTraining(shift, clean_share=0.25)
    seeded(lambda: elbo.loss_and_grads(model, guide, x, y))
    assert elbo.parts is not None
    found = {name: float(value) for name, value in elbo.parts.values.items()}
    clean, moved = (_log_likelihood(at) for at in (0.0, 0.1))
    assert found["clean_log_likelihood"] == pytest.approx(clean)
    assert found["log_likelihood"] == pytest.approx(moved) == shift.told[0]
    assert elbo.weights() == {"log_likelihood": -0.75, "clean_log_likelihood": -0.25, "divergence": 1.0}


def _log_likelihood(shift: float) -> float:
    model, guide, (x, y) = problem("MeanField")
    elbo = ELBO()
    seeded(lambda: elbo.loss_and_grads(model, guide, x + shift, y))
    assert elbo.parts is not None
    return float(elbo.parts.log_likelihood)


def test_label_smoothing_is_the_cross_entropy_of_smoothed_labels() -> None:
    model, guide, (x, y) = problem(batch_norm=False)
    shift = Shift(0.1)
    shift.label_smoothing = 0.3
    elbo = AdversarialTraining(shift)
    weight = torch.linspace(0.5, 1.5, 12, dtype=torch.float64)
    elbo.loss_and_grads(model, guide, x, y, weight)
    with torch.no_grad(), attacking(model, guide.rsample()) as network:
        log_p = network.outputs(x + 0.1).log_softmax(-1)
    labels = nn.functional.one_hot(y, 3) * 0.7 + (1 - nn.functional.one_hot(y, 3)) * 0.15
    assert elbo.parts is not None
    assert float(elbo.parts.log_likelihood) == pytest.approx(float((weight * (labels * log_p).sum(1)).sum()))


def test_resumed_runs_go_on_bit_for_bit(tmp_path: Path) -> None:
    make = lambda: AdversarialTraining(ExplicitDistribution(0.1, num_steps=2, num_draws=1))  # noqa: E731
    whole, _ = fitted("MeanField", make(), epochs=4)
    fitted("MeanField", make(), epochs=2, checkpoint=tmp_path)
    found, history = fitted("MeanField", make(), epochs=4, checkpoint=tmp_path, resume=True)
    assert history.epochs == 4
    assert_same(found.state_dict(), whole.state_dict())


def test_what_cannot_be_attacked_is_refused() -> None:
    model, guide, (x, y) = problem()
    with pytest.raises(TypeError, match=r"^perturbation: expected one of pyrobnn\.robustness\.training"):
        AdversarialTraining(0.1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^clean_share: "):
        AdversarialTraining(Shift(0.1), clean_share=1.0)
    with pytest.raises(ValueError, match=r"^x: inputs reach from .* to 2, beyond clip=\(0\.0, 1\.0\)"):
        AdversarialTraining(Shift(0.1, clip=(0.0, 1.0))).loss(model, guide, x.clamp_min(2.0), y)
    with pytest.raises(TypeError, match=r"^loader: inputs can be perturbed if they are one floating-point tensor"):
        AdversarialTraining(Shift(0.1)).loss(model, guide, (x,), y)
    with pytest.raises(TypeError, match=r"^loader: training against attacks needs batches of inputs and targets"):
        AdversarialTraining(Shift(0.1)).loss(model, guide, x)
    net = pb.bayesianize(nn.Linear(3, 3), dist.Normal(0.0, 1.0))
    with pytest.raises(TypeError, match=r"^model: training against attacks needs a SupervisedModel"):
        AdversarialTraining(Shift(0.1)).loss(net, MAP(net), x.float(), y)
    smoothed = Shift(0.1)
    smoothed.label_smoothing = 0.5
    real = pb.SupervisedModel(nn.Linear(3, 1), pb.likelihoods.Normal(1.0), dist.Normal(0.0, 1.0), num_data=12)
    with pytest.raises(TypeError, match=r"^label_smoothing: it needs a likelihood of classes"):
        AdversarialTraining(smoothed).loss(real, MAP(real), x.float(), torch.zeros(12, 1))


def test_layers_by_name() -> None:
    model, guide, (x, _) = problem()
    with attacking(model, guide.rsample()) as network:
        assert network.features(x).shape == (12, 3) and network.features(x, "0").shape == (12, 5)
        with pytest.raises(ValueError, match=r"^layer: the network has no module 'head'; it has 0, 1, 2, 3\."):
            network.features(x, "head")
