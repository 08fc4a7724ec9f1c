"""The uncertainty regularizer: its value, its gradient, where its inputs come from, what it leaves alone."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.guides import MAP, DeltaMixture, MeanField
from pyrobnn.objectives import ELBO, RegularizedELBO, perturbed
from tests.conformance.monte_carlo import Z, z_of_means
from tests.conformance.objective_suite import ObjectiveConformance


def problem(scale: float = 0.6, prior: float = 1.0) -> tuple[pb.SupervisedModel, MeanField, tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))
    model = pb.SupervisedModel(net, pb.likelihoods.Categorical(), dist.Normal(0.0, prior), num_data=20).double()
    guide = MeanField(model, init_scale=scale, antithetic=False).double()
    return model, guide, (torch.randn(6, 3, dtype=torch.float64), torch.tensor([0, 1, 2] * 2))


def gradient(elbo: ELBO, model: Any, guide: Any, batch: Any) -> Tensor:
    guide.zero_grad()
    model.zero_grad()
    elbo.loss_and_grads(model, guide, *batch)
    return torch.cat(
        [p.grad.reshape(-1).clone() for p in (*guide.parameters(), *model.parameters()) if p.requires_grad]
    )


def test_weight_zero_is_the_elbo() -> None:
    model, guide, batch = problem()
    pyro.set_rng_seed(0)
    plain = gradient(ELBO(), model, guide, batch)
    pyro.set_rng_seed(0)
    torch.testing.assert_close(gradient(RegularizedELBO(perturbed(0.5), weight=0.0), model, guide, batch), plain)


def test_mutual_information_of_known_predictions() -> None:
    """Draws that are certain of different classes have ln 2, draws that agree have none; also at probability zero."""
    from pyrobnn.objectives.regularized import _entropy

    p = torch.tensor([[1.0, 0.0], [0.5, 0.5]], dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(_entropy(p), torch.tensor([0.0, math.log(2.0)], dtype=torch.float64))
    _entropy(p).sum().backward()
    assert bool(p.grad.isfinite().all())


@pytest.mark.statistical
@pytest.mark.parametrize("estimator", [None, "per_example", "flipout"])
def test_gradient_is_that_of_both_draws(estimator: str | None) -> None:
    """600 gradients, against automatic differentiation through the two draws together; z below 5."""
    model, guide, batch = problem()
    x = batch[0] + 0.3
    elbo = RegularizedELBO([x], threshold=0.6, weight=1.0, estimator=estimator)
    plain = ELBO(estimator=estimator)
    ours, expected = [], []
    model.eval()
    for seed in range(600):
        pyro.set_rng_seed(seed)
        regularized = gradient(elbo, model, guide, batch)
        pyro.set_rng_seed(seed)
        ours.append(regularized - gradient(plain, model, guide, batch))
        guide.zero_grad()
        model.zero_grad()
        outputs = []
        for _ in range(2):
            weights = {n.removeprefix("net."): v for n, v in guide.rsample().items()}
            outputs.append(torch.func.functional_call(model.net.network, weights, (x,)).softmax(-1))
        mean = (outputs[0] + outputs[1]) / 2
        entropies = [-(p * p.log()).sum(-1) for p in (mean, *outputs)]
        information = entropies[0] - (entropies[1] + entropies[2]) / 2
        (20 * (0.6 - information).clamp_min(0.0).mean()).backward()
        parameters = (*guide.parameters(), *model.parameters())
        expected.append(torch.cat([p.grad.reshape(-1).clone() for p in parameters if p.requires_grad]))
    assert z_of_means(torch.stack(ours), torch.stack(expected)) < Z


@pytest.mark.statistical
def test_examples_with_draws_of_their_own_tell_more_of_the_scales() -> None:
    """The regularizer's gradient by the scales varies less than half as much: 200 gradients on 64 auxiliary inputs."""
    model, guide, batch = problem(scale=0.1)
    variance = {}
    for estimator in ("shared", "per_example"):
        elbo = RegularizedELBO([torch.randn(64, 3).double()], threshold=0.6, weight=1e3, estimator=estimator)
        pyro.set_rng_seed(0)
        slopes = []
        for _ in range(200):
            gradient(elbo, model, guide, batch)
            slopes.append(guide.flat_log_scale.grad.clone())  # type: ignore[union-attr]
        variance[estimator] = float(torch.stack(slopes).var(0).sum())
    assert variance["per_example"] < 0.5 * variance["shared"]


@pytest.mark.parametrize("estimator", [None, "per_example"])
def test_differentiable_loss_has_the_value_and_the_gradient(estimator: str | None) -> None:
    model, guide, batch = problem()
    model.eval()
    elbo = RegularizedELBO(perturbed(0.5), threshold=0.6, weight=2.0, estimator=estimator)
    pyro.set_rng_seed(4)
    loss = elbo.differentiable_loss(model, guide, *batch)
    assert elbo.parts is not None and elbo.disagreement is not None
    torch.testing.assert_close(elbo.parts.loss, loss.detach())
    penalty = float(elbo.parts.values["regularizer"]) / 20
    assert float(loss.detach() + elbo.parts.elbo) == pytest.approx(2.0 * 20 * penalty)
    assert 0.6 - float(elbo.disagreement) - 1e-9 <= penalty <= 0.6  # a mean of hinges, Jensen
    guide.zero_grad()
    loss.backward()
    assert all(bool((p.grad != 0).any()) for p in guide.parameters())


def test_training_raises_the_disagreement() -> None:
    levels = {}
    for weight in (0.0, 20.0):
        model, guide, batch = problem(scale=0.05, prior=0.3)
        model.num_data = 6
        elbo = RegularizedELBO([batch[0] * 4.0], threshold=0.5, weight=weight)
        pb.fit(model, guide, [batch], epochs=150, lr=0.03, elbo=elbo, seed=0, progress=False)
        levels[weight] = float(pb.predict(model, guide, batch[0] * 4.0, num_samples=200, seed=0).epistemic.mean())
    assert levels[20.0] > 1.5 * levels[0.0]


def test_auxiliary_inputs_never_touch_running_statistics_or_modes() -> None:
    model, guide, batch = problem()
    model.train()
    pyro.set_rng_seed(0)
    gradient(RegularizedELBO(perturbed(0.5)), model, guide, batch)
    norm = model.net.network[1]
    assert int(norm.num_batches_tracked) == 1 and norm.training
    mean = norm.running_mean.clone()
    model, guide, batch = problem()
    pyro.set_rng_seed(0)
    gradient(ELBO(), model, guide, batch)
    torch.testing.assert_close(model.net.network[1].running_mean, mean)


@pytest.mark.parametrize("pairs", [False, True], ids=["inputs", "pairs"])
def test_a_loader_begins_again(pairs: bool) -> None:
    model, guide, batch = problem()
    seen = []

    class Loader:
        def __iter__(self) -> Any:
            for scale in (1.0, 2.0):
                seen.append(scale)
                yield (batch[0] * scale, None) if pairs else batch[0] * scale

    elbo = RegularizedELBO(Loader())
    for _ in range(5):
        gradient(elbo, model, guide, batch)
    assert seen == [1.0, 2.0, 1.0, 2.0, 1.0]


def test_perturbed_stays_within_epsilon() -> None:
    torch.manual_seed(0)
    x = torch.randn(1000, 3)
    moved = (perturbed(0.2)(x) - x).abs()
    assert float(moved.max()) <= 0.2 + 1e-6 and float(moved.max()) > 0.19


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"threshold": 0.75}, ValueError, r"threshold: .* ln 2 = 0.6931 nats, got 0.75; a larger one can never"),
        ({"threshold": 0.0}, ValueError, r"threshold: "),
        ({"weight": -1.0}, ValueError, r"weight: expected a number of at least 0, got -1.0"),
        ({"auxiliary": 3}, TypeError, r"auxiliary: expected a function of the inputs or an iterable .*int"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        RegularizedELBO(**{"auxiliary": perturbed(0.1), **options})


def test_wrong_epsilon_empty_loader_and_model() -> None:
    with pytest.raises(ValueError, match=r"epsilon: expected a positive amplitude"):
        perturbed(0.0)
    model, guide, batch = problem()
    with pytest.raises(ValueError, match=r"auxiliary: it yields no batch of inputs"):
        RegularizedELBO([]).loss_and_grads(model, guide, *batch)
    regression = pb.SupervisedModel(nn.Linear(3, 1), pb.likelihoods.Normal(), dist.Normal(0.0, 1.0), num_data=6)
    with pytest.raises(TypeError, match=r"model: the uncertainty regularizer compares class probabilities"):
        RegularizedELBO(perturbed(0.1)).loss_and_grads(
            regression, MAP(regression), torch.randn(6, 3), torch.randn(6, 1)
        )


# --------------------------------------------------------------------------------------------------- mixtures


def mixture(vmap: bool, batch_norm: bool = True) -> tuple[pb.SupervisedModel, DeltaMixture, tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    norm: list[nn.Module] = [nn.BatchNorm1d(5)] if batch_norm else []
    net = nn.Sequential(nn.Linear(3, 5), *norm, nn.Tanh(), nn.Linear(5, 3))
    model = pb.SupervisedModel(net, pb.likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=20).double()
    guide = DeltaMixture(model, 4, init="prior", vmap=vmap).double()
    return model, guide, (torch.randn(6, 3, dtype=torch.float64), torch.tensor([0, 1, 2] * 2))


def member_outputs(model: Any, guide: DeltaMixture, index: int, flat: Tensor, x: Tensor) -> Tensor:
    """Class probabilities of a member with its own buffers, by plain torch, in evaluation mode."""
    own = {n.removeprefix("net.net."): b for n, b in guide.atoms(torch.arange(4)).at(index).buffers.items()}
    weights = {n.removeprefix("net."): v for n, v in guide.layout.split(flat).items()}
    return torch.func.functional_call(model.net.network, {**weights, **own}, (x,)).softmax(-1)


@pytest.mark.parametrize(("vmap", "batch_norm"), [(False, True), (False, False), (True, False)])
def test_the_gradient_arrives_at_the_member_that_was_drawn(
    vmap: bool, batch_norm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 of 20 steps, looped and vectorized: plain autograd's through the draw with gradients, and no other member's.

    A member has M times the gradient of the mean over members, as in any step.
    """
    from pyrobnn.objectives import regularized

    model, guide, batch = mixture(vmap, batch_norm)
    x = batch[0] + 0.3
    elbo, plain = RegularizedELBO([x], threshold=0.69, weight=1.0), ELBO()
    drawn: list[int] = []
    probabilities = regularized._probabilities

    def remembered(model: Any, draws: Any, x: Any) -> Tensor:
        drawn.append(int(draws.component))
        return probabilities(model, draws, x)

    monkeypatch.setattr(regularized, "_probabilities", remembered)
    statistics = {name: value.clone() for name, value in guide.named_buffers()}
    met = set()
    for seed in range(20):
        drawn.clear()
        pyro.set_rng_seed(seed)
        found = gradient(elbo, model, guide, batch)[: guide.flat_loc.numel()].view_as(guide.flat_loc)
        second, first = drawn
        flat = guide.flat_loc.detach()[first].clone().requires_grad_()
        model.eval()
        p, q = (
            member_outputs(model, guide, first, flat, x),
            member_outputs(model, guide, second, guide.flat_loc[second], x),
        )
        model.train()
        entropies = [-(r * r.log()).sum(-1) for r in ((p + q) / 2, p, q)]
        hinge = (0.69 - (entropies[0] - (entropies[1] + entropies[2]) / 2)).clamp_min(0.0).mean()
        (slope,) = torch.autograd.grad(2.0 * 20 * hinge, flat)
        for name, value in guide.named_buffers():  # both objectives see the statistics that this step began with
            value.copy_(statistics[name])
        pyro.set_rng_seed(seed)
        ours = found - gradient(plain, model, guide, batch)[: guide.flat_loc.numel()].view_as(guide.flat_loc)
        expected = torch.zeros_like(ours)
        expected[first] = 4 * slope
        torch.testing.assert_close(ours, expected, rtol=1e-7, atol=1e-9)
        assert first != second and bool((slope != 0).any())
        met.add(first)
        statistics = {name: value.clone() for name, value in guide.named_buffers()}
    assert met == set(range(4)), "every member is drawn some time"


def test_members_disagree_under_their_own_statistics() -> None:
    """The disagreement is that of two members' networks, and changes with a member's running statistics alone."""
    model, guide, batch = mixture(vmap=False)
    guide.requires_grad_(True)
    pairs, found = {}, []
    for shift in (0.0, 2.0):
        with torch.no_grad():
            own = guide.atoms(torch.arange(4)).at(0).buffers
            mean = own["net.net.1.running_mean"].clone()
            guide.write_buffers(torch.tensor(0), {"net.net.1.running_mean": mean + shift})
        x = batch[0] + 0.3
        model.eval()
        outputs = [member_outputs(model, guide, index, guide.flat_loc[index], x).detach() for index in range(4)]
        entropy = [-(p * p.log()).sum(-1) for p in outputs]
        pairs = {
            (a, b): float((-(m * m.log()).sum(-1) - (entropy[a] + entropy[b]) / 2).mean())
            for a in range(4)
            for b in range(4)
            if (m := (outputs[a] + outputs[b]) / 2) is not None and a != b
        }
        elbo = RegularizedELBO([x], threshold=0.69)
        seen = []
        for seed in range(12):
            pyro.set_rng_seed(seed)
            elbo.loss(model, guide, *batch)
            assert elbo.disagreement is not None
            seen.append(float(elbo.disagreement))
            assert any(seen[-1] == pytest.approx(value, rel=1e-6) for value in pairs.values())
        found.append(seen)
    changed = [abs(a - b) > 1e-6 for a, b in zip(*found, strict=True)]
    assert any(changed) and not all(changed), "only pairs with the member whose statistics moved"


# ------------------------------------------------------------------------------------------------- the suite


class TestRegularizedConformance(ObjectiveConformance):
    further_terms = frozenset({"regularizer"})

    def make(self) -> RegularizedELBO:
        return RegularizedELBO(perturbed(0.5), threshold=0.6, weight=2.0)
