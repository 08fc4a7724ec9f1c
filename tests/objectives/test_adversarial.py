"""Adversarial sampling: the ascent, the mixture of losses, the KL, buffers, refusals."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn import estimators
from pyrobnn.guides import MAP, SWAG, Laplace, MeanField
from pyrobnn.objectives import ELBO, AdversarialELBO, AdversarialTerm, Evaluation, NonFiniteLossError
from tests.conformance.comparisons import broken_off
from tests.conformance.objective_suite import ObjectiveConformance


def problem(
    batch_norm: bool = False, noise: Any = None, prior: Any = None
) -> tuple[pb.SupervisedModel, MeanField, tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    middle: list[nn.Module] = [nn.BatchNorm1d(6)] if batch_norm else []
    net = nn.Sequential(nn.Linear(3, 6), *middle, nn.Tanh(), nn.Linear(6, 2))
    likelihood = pb.likelihoods.Categorical() if noise is None else pb.likelihoods.Normal(noise)
    model = pb.SupervisedModel(net, likelihood, prior or dist.Normal(0.0, 1.0), num_data=40).double()
    guide = MeanField(model, init_scale=0.2).double()
    x = torch.randn(8, 3, dtype=torch.float64)
    y = (x.sum(-1) > 0).long() if noise is None else torch.randn(8, 2, dtype=torch.float64)
    return model, guide, (x, y)


def gradient(elbo: ELBO, model: Any, guide: MeanField, batch: Any, by_hand: bool = True) -> Tensor:
    guide.zero_grad()
    elbo.step(model, guide)[0].restart()
    pyro.set_rng_seed(3)
    if by_hand:
        elbo.loss_and_grads(model, guide, *batch)
    else:
        elbo.differentiable_loss(model, guide, *batch).backward()
    return torch.cat([p.grad.clone() for p in guide.parameters()])


def worst_noise(elbo: AdversarialELBO, model: Any, guide: MeanField, batch: Any) -> Tensor:
    term = next(term for term in elbo.terms if isinstance(term, AdversarialTerm))
    return term.worst_noise(Evaluation(model, guide, elbo.step(model, guide)[0], batch, {}))


def test_strength_zero_is_the_elbo() -> None:
    model, guide, batch = problem()
    plain = gradient(ELBO(), model, guide, batch)
    assert torch.equal(gradient(AdversarialELBO(strength=0.0), model, guide, batch), plain)


@pytest.mark.parametrize("noise", [None, dist.LogNormal(0.0, 1.0)], ids=["classes", "latent noise scale"])
@pytest.mark.parametrize("prior", [dist.Normal(0.0, 1.0), dist.Laplace(0.0, 1.0)], ids=["Normal", "Laplace"])
def test_by_hand_is_by_autograd(noise: Any, prior: Any) -> None:
    model, guide, batch = problem(noise=noise, prior=prior)
    elbo = AdversarialELBO(0.6, step_size=0.1, num_steps=3)
    torch.testing.assert_close(gradient(elbo, model, guide, batch), gradient(elbo, model, guide, batch, by_hand=False))


def test_losses_are_mixed_linearly_and_the_kl_stays_whole() -> None:
    """With the same noise the gradient is linear in λ, and at λ = 0 what is left is the ordinary one."""
    model, guide, batch = problem()
    at = {s: gradient(AdversarialELBO(s), model, guide, batch) for s in (0.25, 0.5, 0.75, 1.0)}
    torch.testing.assert_close(at[0.5], 0.5 * (at[0.25] + at[0.75]))
    torch.testing.assert_close(at[1.0], 2.0 * at[0.75] - at[0.5])
    plain = gradient(ELBO(), model, guide, batch)
    torch.testing.assert_close(2.0 * at[0.25] - at[0.5], plain)


def test_a_step_that_is_broken_off_leaves_nothing_behind() -> None:
    model, guide, batch = problem()
    expected = gradient(AdversarialELBO(), model, guide, batch)
    with broken_off():
        gradient(AdversarialELBO(), model, guide, batch)
    assert torch.equal(gradient(AdversarialELBO(), model, guide, batch), expected)


def test_the_ascent_raises_the_loss_within_its_box() -> None:
    model, guide, batch = problem()
    pyro.set_rng_seed(0)
    start = torch.randn_like(guide.flat_loc)
    pyro.set_rng_seed(0)
    noise = worst_noise(AdversarialELBO(step_size=0.05, num_steps=4), model, guide, batch)
    assert float((noise - start).abs().max()) <= 4 * 0.05 + 1e-9
    assert float((noise - start).abs().mean()) > 0.1, "most elements move the same way in each step"

    def negative_log_likelihood(epsilon: Tensor) -> float:
        weights = {name.removeprefix("net."): value for name, value in guide.rsample(epsilon).items()}
        outputs = torch.func.functional_call(model.net.network, weights, (batch[0],))
        return float(nn.functional.cross_entropy(outputs, batch[1]).detach())

    assert negative_log_likelihood(noise) > negative_log_likelihood(start) + 0.05


def test_the_first_step_follows_the_sign_of_the_gradient() -> None:
    """One weight: y = w x, so ∂L/∂ε has the sign of (w x - y) x, which is known."""
    net = nn.Linear(1, 1, bias=False)
    model = pb.SupervisedModel(net, pb.likelihoods.Normal(1.0), dist.Normal(0.0, 1.0), num_data=1)
    guide = MeanField(model, init={"net.weight": torch.tensor([[2.0]])}, init_scale=1e-3)
    pyro.set_rng_seed(0)
    start = torch.randn_like(guide.flat_loc)
    for target, sign in ((1.0, 1.0), (3.0, -1.0)):
        pyro.set_rng_seed(0)
        elbo = AdversarialELBO(step_size=0.5, num_steps=1)
        noise = worst_noise(elbo, model, guide, (torch.ones(1, 1), torch.tensor([[target]])))
        torch.testing.assert_close(noise - start, torch.tensor([0.5 * sign]))


def test_running_statistics_follow_the_ordinary_pass_alone() -> None:
    model, guide, batch = problem(batch_norm=True)
    gradient(AdversarialELBO(), model, guide, batch)
    adversarial = {n: b.clone() for n, b in model.named_buffers() if "running" in n}
    assert int(model.net.network[1].num_batches_tracked) == 1
    other, guide, batch = problem(batch_norm=True)
    pyro.set_rng_seed(3)
    ELBO().loss_and_grads(other, guide, *batch)
    worst_noise(AdversarialELBO(), other, guide, batch)
    assert int(other.net.network[1].num_batches_tracked) == 1
    for name, value in other.named_buffers():
        if "running" in name:
            torch.testing.assert_close(value, adversarial[name])


def test_parts_are_those_of_the_ordinary_pass_and_the_adversarial_loss() -> None:
    """The ELBO is that of the ordinary pass; the loss mixes both likelihoods, ``(1 - λ) L_p + λ L_adv + KL``."""
    model, guide, batch = problem()
    plain, elbo = ELBO(), AdversarialELBO(0.25, step_size=0.3)
    gradient(plain, model, guide, batch)
    gradient(elbo, model, guide, batch)
    assert elbo.parts is not None and plain.parts is not None
    torch.testing.assert_close(elbo.parts.elbo, plain.parts.elbo)
    adversarial = elbo.parts.values["adversarial_log_likelihood"]
    assert float(adversarial) < float(elbo.parts.log_likelihood), "the worst draw fits worse"
    mixed = elbo.parts.divergence - 0.75 * elbo.parts.log_likelihood - 0.25 * adversarial
    torch.testing.assert_close(elbo.parts.loss, mixed)
    assert elbo.parts.per_datum()["adversarial_log_likelihood"] == pytest.approx(float(adversarial) / 40)
    assert elbo.num_steps == 1


@pytest.mark.statistical
def test_training_lifts_the_worst_draws() -> None:
    """Digits, 50 draws each: the lowest accuracy of a draw rises by more than a point, on the mean of two seeds."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[:600], order[600:1200]
    lowest: dict[float, float] = {}
    for strength in (0.0, 0.8):
        for seed in (0, 1):
            torch.manual_seed(seed)
            net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
            model = pb.SupervisedModel(net, pb.likelihoods.Categorical(), dist.Normal(0.0, 0.5), num_data=600)
            guide = MeanField(model, init_scale=0.05)
            loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x[train], y[train]), 100, shuffle=True)
            elbo = AdversarialELBO(strength, step_size=0.05)
            pb.fit(model, guide, loader, epochs=40, lr=5e-3, elbo=elbo, seed=seed, progress=False)
            prediction = pb.predict(model, guide, x[test], num_samples=50, return_draws=True, seed=0)
            assert prediction.draws is not None
            accuracy = (prediction.draws.argmax(-1) == y[test]).float().mean(-1)
            lowest[strength] = lowest.get(strength, 0.0) + float(accuracy.min()) / 2
    assert lowest[0.8] > lowest[0.0] + 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 1.2}, r"strength: expected a number from 0 to 1, got 1.2"),
        ({"strength": float("nan")}, r"strength: expected"),
        ({"step_size": 0.0}, r"step_size: expected a positive number"),
        ({"num_steps": 0}, r"num_steps: expected a positive int, got 0"),
        ({"num_steps": 2.0}, r"num_steps: expected a positive int"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdversarialELBO(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step_size": -0.1}, "step_size: expected a positive number"),
        ({"num_steps": 0}, "num_steps: expected a positive int"),
        ({"weight": float("nan")}, "weight: expected a finite number"),
    ],
)
def test_wrong_arguments_of_the_term(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdversarialTerm(**{"weight": -0.5, "step_size": 0.1, "num_steps": 2, **options})


def test_needs_a_gaussian_guide() -> None:
    model, _, batch = problem()
    with pytest.raises(TypeError, match=r"guide: adversarial sampling .* such as MeanField; got MAP"):
        AdversarialELBO().loss_and_grads(model, MAP(model), *batch)


@pytest.mark.parametrize("points", [False, True], ids=["fitted", "new"])
@pytest.mark.parametrize("family", [SWAG, Laplace])
def test_what_is_trained_as_a_point_is_refused(family: Any, points: bool) -> None:
    """Also once it is a distribution: the step trains a point, whatever the noise."""
    model, _, batch = problem()
    guide = family(model).double()
    if not points and family is SWAG:
        guide.collect()
        guide.collect()
    elif not points:
        guide.fit(model, [tuple(part.repeat(5, *[1] * (part.dim() - 1)) for part in batch)])
    assert guide.facts.is_ready != points
    with pytest.raises(TypeError, match=rf"trained by draws made from Gaussian noise, .*; got {family.__name__}"):
        AdversarialELBO().loss_and_grads(model, guide, *batch)


@pytest.mark.parametrize("estimator", ["local_reparameterization", "flipout", "per_example"])
def test_the_adversarial_draw_is_made_from_its_noise_under_any_estimator(estimator: str) -> None:
    """The term is the log likelihood of ``μ + σε`` for the noise that the ascent ends at."""
    model, guide, batch = problem()
    elbo = AdversarialELBO(0.5, step_size=0.1, num_steps=2)
    term = next(term for term in elbo.terms if isinstance(term, AdversarialTerm))
    noise = torch.randn_like(guide.flat_loc)
    with estimators.use(estimator), pytest.MonkeyPatch.context() as patch:
        patch.setattr(AdversarialTerm, "worst_noise", lambda self, evaluation: noise)
        for sequential in (True, False):
            step = elbo.step(model, guide)[0] if sequential else elbo._make_step(model, guide, sequential=False)[0]
            found = term([], Evaluation(model, guide, step, batch, {}))
            with guide.rsample(noise).running(model, update=False) as run:
                model(*batch)
            expected = sum(40 / 8 * m["fn"].log_prob(m["value"]).sum() for m in run.observed)
            torch.testing.assert_close(found, expected)
            slopes = [torch.autograd.grad(value, list(guide.parameters())) for value in (found, expected)]
            torch.testing.assert_close(*slopes)


def test_a_loss_that_blows_up_is_refused() -> None:
    model, guide, (x, y) = problem()
    with torch.no_grad():
        guide.flat_loc[0] = float("inf")
    with pyro.validation_enabled(False), pytest.raises(NonFiniteLossError, match="non-finite"):
        AdversarialELBO().loss_and_grads(model, guide, x, y)


@pytest.mark.parametrize("validate", [False, True])
def test_a_second_pass_that_fails_leaves_no_half_of_a_step(validate: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradients are those of before, and the error names the adversarial term: here only its draw is infinite.

    Pyro's validation refuses the draw; without it the log likelihood is NaN.
    """
    model, guide, batch = problem()
    AdversarialELBO().loss_and_grads(model, guide, *batch)
    before = [parameter.grad.clone() for parameter in guide.parameters()]
    exploding = torch.full_like(guide.flat_loc, float("inf"))
    monkeypatch.setattr(AdversarialTerm, "worst_noise", lambda self, evaluation: exploding)
    with (
        pyro.validation_enabled(validate),
        pytest.raises(NonFiniteLossError, match=r"non-finite: adversarial_log_likelihood"),
    ):
        AdversarialELBO().loss_and_grads(model, guide, *batch)
    assert all(torch.equal(p.grad, kept) for p, kept in zip(guide.parameters(), before, strict=True))


# ------------------------------------------------------------------------------------------------- the suite


class TestAdversarialConformance(ObjectiveConformance):
    further_terms = frozenset({"adversarial_log_likelihood"})
    refused: ClassVar[dict[str, str]] = {"DeltaMixture": "noise"}

    def make(self) -> AdversarialELBO:
        return AdversarialELBO(strength=0.5)
