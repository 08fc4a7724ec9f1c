"""Training: the optimum it reaches, what it reports, what it leaves alone, and how it stops."""

from __future__ import annotations

import functools
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyrobnn import likelihoods
from pyrobnn.guides import MAP, MeanField
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.objectives import ELBO, NonFiniteLossError
from pyrobnn.training import History, fit, train_step
from tests.conformance.conjugate import ConjugateRegression
from tests.conformance.guide_models import UserModel
from tests.training.networks import data, loader, model, model_and_guide, same, tensors

quiet = functools.partial(fit, progress=False)
frozen = torch.optim.SGD  # with lr=1e-30 parameters stay where they are


# ------------------------------------------------------------------------------------------------- the optimum


class Repeated:
    """The whole data set, 100 times a pass, as if it were a large one."""

    def __init__(self, problem: ConjugateRegression) -> None:
        self.problem = problem
        self.dataset = range(problem.num_data)

    def __iter__(self) -> Any:
        return iter([(self.problem.x, self.problem.y)] * 100)


@pytest.mark.statistical
def test_training_reaches_the_conjugate_optimum() -> None:
    """Means within 2 %, variances within 5 % of 1 / Λ_ii, and the ELBO below the evidence by the known gap.

    The last 2,800 of 5,600 draws or so settle a variance, with a relative standard error of 3 %: four of them
    are within 12 % (z = 4), and their mean within 5 % (z = 3.3).
    """
    problem = ConjugateRegression()
    built = problem.model()
    start = {"net.weight": problem.mean[:3].unsqueeze(0) + 0.1, "net.bias": problem.mean[3:] - 0.1}
    guide = MeanField(built, start, init_scale=0.15, antithetic=False).double()
    schedule = functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=7)
    settings: dict[str, Any] = {"seed": 0, "elbo": ELBO(num_particles=8), "scheduler": schedule}
    quiet(built, guide, Repeated(problem), epochs=7, lr=0.02, scale_lr=0.005, **settings)
    torch.testing.assert_close(guide.flat_loc.detach(), problem.mean, rtol=0.02, atol=0.0)
    ratio = guide.flat_log_scale.detach().exp().square() / problem.mean_field_variance
    assert float((ratio - 1).abs().max()) < 0.12
    assert float((ratio.mean() - 1).abs()) < 0.05
    # The log likelihood has a standard deviation of 1.4 nats under q: 400 draws leave 0.07 (z = 5).
    elbo = -ELBO(num_particles=400).loss(built, guide, problem.x, problem.y)
    assert elbo == pytest.approx(problem.log_evidence - problem.gap, abs=0.35)


def test_map_training_reaches_the_posterior_mode() -> None:
    problem = ConjugateRegression()
    built = problem.model()
    guide = MAP(built).double()
    history = quiet(built, guide, [(problem.x, problem.y)], epochs=400, lr=0.05)
    torch.testing.assert_close(guide.flat_loc.detach(), problem.mean, rtol=1e-4, atol=1e-4)
    assert history.divergence_name == "-log prior"


# ------------------------------------------------------------------------------------------------ what it says


def test_history_is_in_nats_per_datum() -> None:
    """A point estimate that does not move: every entry is known in closed form, over batches of unequal size."""
    x, y = data()
    built = model()
    guide = MAP(built)
    weights = {name: value[0] for name, value in guide.sample(1).items()}
    network = built.net.network
    log_likelihood = network(x).log_softmax(-1)[torch.arange(len(y)), y].mean().item()
    minus_log_prior = -sum(dist.Normal(0.0, 1.0).log_prob(w).sum().item() for w in weights.values()) / len(y)
    history = quiet(built, guide, loader(), epochs=2, lr=1e-30, optimizer=frozen, elbo=ELBO(temperature=0.25))
    assert history.log_likelihood == pytest.approx([log_likelihood] * 2, rel=1e-5)
    assert history.kl == pytest.approx([minus_log_prior] * 2, rel=1e-5)
    assert history.elbo == pytest.approx([log_likelihood - minus_log_prior] * 2, rel=1e-5)
    assert history.loss == pytest.approx([0.25 * minus_log_prior - log_likelihood] * 2, rel=1e-5)
    assert history.steps == 6
    assert history.epochs == 2
    assert history.stopped == "epochs"
    assert history.learning_rate == [1e-30] * 2
    assert all(seconds > 0 for seconds in history.seconds)


def test_the_mean_field_kl_is_the_closed_form() -> None:
    built, guide = model_and_guide()
    exact = sum(
        torch.distributions.kl_divergence(guide.marginal(site.name), site.prior).item()
        for site in guide.layout.values()
    )
    history = quiet(built, guide, loader(), epochs=1, lr=1e-30, optimizer=frozen)
    assert history.kl[0] == pytest.approx(exact / 20, rel=1e-5)


def test_steps_are_taken_on_the_objective_per_datum() -> None:
    """One SGD step moves a point estimate by lr times the gradient of the negative ELBO over N."""
    built = model()
    guide = MAP(built)
    start = guide.flat_loc.detach().clone()
    x, y = data()
    loss = ELBO().differentiable_loss(built, guide, x, y)
    (gradient,) = torch.autograd.grad(loss, guide.flat_loc)
    quiet(built, guide, [(x, y)], epochs=1, lr=0.1, optimizer=torch.optim.SGD)
    torch.testing.assert_close(guide.flat_loc.detach(), start - 0.1 * gradient / 20, rtol=1e-5, atol=1e-7)


def test_a_model_without_num_data_is_weighed_by_its_plates() -> None:
    """The plate of ``UserModel`` says N = 24; a step is that of the objective divided by it."""
    built = UserModel()
    x, y = torch.randn(24, 3), torch.randn(24)
    guide = MAP(built, example=(x, y))
    start = guide.flat_loc.detach().clone()
    (gradient,) = torch.autograd.grad(ELBO().differentiable_loss(built, guide, x, y), guide.flat_loc)
    history = quiet(built, guide, [(x, y)], epochs=1, lr=0.1, optimizer=torch.optim.SGD)
    torch.testing.assert_close(guide.flat_loc.detach(), start - 0.1 * gradient / 24, rtol=1e-5, atol=1e-7)
    loss = ELBO().loss(built, MAP(built, lambda name, prior: start_of(guide, start, name), example=(x, y)), x, y)
    assert history.loss[0] == pytest.approx(loss / 24, rel=1e-5)


def start_of(guide: MAP, flat: torch.Tensor, name: str) -> torch.Tensor:
    """A site's value at the flat vector."""
    return guide.layout.constrain(guide.layout.split(flat))[name]


def test_train_step_is_what_fit_does() -> None:
    """Also with several particles and clipping."""
    by_fit, by_hand = model_and_guide(), model_and_guide()
    quiet(*by_fit, [data()], epochs=1, seed=0, lr=0.1, clip_norm=0.01, elbo=ELBO(3), optimizer=torch.optim.SGD)
    pyro.set_rng_seed(0)
    optimizer = torch.optim.SGD([*by_hand[1].parameters()], lr=0.1)
    train_step(*by_hand, ELBO(3), optimizer, data(), clip_norm=0.01)
    assert same(tensors(*by_fit), tensors(*by_hand))


def test_validation_is_the_log_predictive_density() -> None:
    """For a point estimate: the mean log likelihood; held-out data may outnumber the training data."""
    x, y = torch.randn(50, 3), torch.randint(3, (50,))
    built = model()
    guide = MAP(built)
    history = quiet(built, guide, loader(), epochs=1, lr=1e-30, optimizer=frozen, validation=[(x, y)])
    expected = built.net.network(x).log_softmax(-1)[torch.arange(50), y].mean()
    assert history.validation == pytest.approx([expected.item()], rel=1e-5)


def test_validation_of_a_users_model() -> None:
    """The observed sites' own log density, without the plate's scale."""
    built = UserModel()
    x, y = torch.randn(24, 3), torch.randn(24)
    guide = MAP(built, example=(x, y))
    history = quiet(built, guide, [(x, y)], epochs=1, lr=1e-30, optimizer=frozen, validation=[(x[:6], y[:6])])
    values = {name: value[0] for name, value in guide.sample(1).items()}
    with torch.no_grad():
        mean = nn.Sequential.forward(built.net.network, x[:6]).squeeze(-1) + values["effect"][torch.arange(6) % 3]
    expected = dist.Normal(mean, values["precision"].rsqrt()).log_prob(y[:6]).mean()
    assert history.validation == pytest.approx([float(expected)], rel=1e-5)


# ------------------------------------------------------------------------------------------------ determinism


def test_a_seed_fixes_everything() -> None:
    runs = [model_and_guide(batch_norm=True) for _ in range(3)]
    histories = [
        quiet(*run, loader(shuffle=True), epochs=3, seed=seed) for run, seed in zip(runs, (1, 1, 2), strict=True)
    ]
    assert same(tensors(*runs[0]), tensors(*runs[1]))
    assert histories[0].elbo == histories[1].elbo
    assert histories[0].elbo != histories[2].elbo


def test_what_a_guide_did_before_does_not_matter() -> None:
    """An earlier step leaves an antithetic group pending; a seeded run does not start with it."""
    fresh, used = model_and_guide(), model_and_guide()
    ELBO().backward(*used, data())
    assert quiet(*fresh, loader(), epochs=1, seed=4).elbo == quiet(*used, loader(), epochs=1, seed=4).elbo


def test_device_moves_everything() -> None:
    built, guide = model_and_guide()
    target = "cuda" if torch.cuda.is_available() else "cpu"
    history = quiet(built, guide, loader(), epochs=1, device=target, validation=loader())
    assert {p.device.type for m in (built, guide) for p in m.parameters()} == {target}
    assert history.epochs == 1


# ---------------------------------------------------------------------------------------------- what it leaves


def test_modes_requires_grad_and_random_weights_are_left_alone() -> None:
    built, guide = model_and_guide(batch_norm=True)
    built.eval()
    built.net.network[0].train()
    modes = [module.training for module in built.modules()]
    grads = [p.requires_grad for p in built.parameters()]
    seen = []
    quiet(built, guide, loader(), epochs=2, callbacks=[lambda h: seen.append(built.training)])
    assert seen == [True, True]
    assert [module.training for module in built.modules()] == modes
    assert [p.requires_grad for p in built.parameters()] == grads


@pytest.mark.parametrize("num_particles", [1, 3])
def test_running_statistics_move_once_a_step(num_particles: int) -> None:
    built, guide = model_and_guide(batch_norm=True)
    quiet(built, guide, loader(), epochs=2, validation=loader(), elbo=ELBO(num_particles))
    assert int(built.net.network[1].num_batches_tracked) == 6


def test_deterministic_parameters_are_trained_too() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    rules = [("2.*", dist.Normal(0.0, 1.0)), ("*", None)]
    built = SupervisedModel(net, likelihoods.Categorical(), rules, num_data=20)
    before = built.net.network[0].weight.detach().clone()
    quiet(built, MeanField(built), loader(), epochs=1)
    assert not torch.equal(built.net.network[0].weight, before)
    assert torch.equal(net[0].weight, before)


def test_pyros_validation_comes_back() -> None:
    with pyro.validation_enabled(True):
        quiet(*model_and_guide(), loader(), epochs=2)
        assert pyro.settings.get("validate_distributions_pyro") is True


# ------------------------------------------------------------------------------------------------ how it stops


class Memory:
    """A callback that keeps the guide's parameters after each epoch."""

    def __init__(self, guide: nn.Module) -> None:
        self.guide, self.states = guide, []

    def __call__(self, history: History) -> None:
        self.states.append(tensors(self.guide))


def test_patience_restores_the_best_epoch() -> None:
    """Trained on one labeling and validated on another, the network gets worse: the best epoch is an early one."""
    built, guide = model_and_guide()
    x, y = data()
    memory = Memory(guide)
    validation = [(x, (y + 1) % 3)]
    history = quiet(
        built, guide, loader(), epochs=50, lr=0.05, seed=0, validation=validation, patience=2, callbacks=[memory]
    )
    best = max(range(history.epochs), key=lambda epoch: history.validation[epoch])
    assert history.stopped == "patience"
    assert history.epochs == best + 3 < 50
    assert len(history.validation) == history.epochs
    assert same(tensors(guide), memory.states[best])


def test_patience_restores_the_best_epoch_even_if_it_did_not_run_out() -> None:
    built, guide = model_and_guide()
    x, y = data()
    memory = Memory(guide)
    history = quiet(
        built, guide, loader(), epochs=3, lr=0.05, validation=[(x, (y + 1) % 3)], patience=9, callbacks=[memory]
    )
    assert history.stopped == "epochs"
    best = max(range(3), key=lambda epoch: history.validation[epoch])
    assert best < 2
    assert same(tensors(guide), memory.states[best])


def test_a_callback_stops_the_training_and_all_of_them_are_called() -> None:
    calls: list[str] = []

    def stops(history: History) -> bool:
        calls.append("stops")
        return history.epochs == 2

    history = quiet(*model_and_guide(), loader(), epochs=9, callbacks=[stops, lambda h: calls.append("sees")])
    assert history.stopped == "callback"
    assert history.epochs == 2
    assert calls == ["stops", "sees"] * 2


def interrupt(history: History) -> None:
    """Ctrl-C at the end of the second epoch."""
    if history.epochs == 2:
        raise KeyboardInterrupt


class Interrupted:
    """A loader during whose second pass Ctrl-C is pressed."""

    def __init__(self) -> None:
        self.passes = 0

    def __iter__(self) -> Any:
        self.passes += 1
        for index, batch in enumerate(loader()):
            if self.passes == 2 and index == 1:
                raise KeyboardInterrupt
            yield batch


def test_ctrl_c_between_epochs_returns_what_was_learned() -> None:
    built, guide = model_and_guide()
    before = tensors(guide)
    history = quiet(built, guide, loader(), epochs=9, callbacks=[interrupt])
    assert history.stopped == "interrupted"
    assert history.epochs == 2
    assert not same(tensors(guide), before)


def test_ctrl_c_within_an_epoch_leaves_whole_epochs_in_the_history() -> None:
    built, guide = model_and_guide()
    history = quiet(built, guide, Interrupted(), epochs=9)
    assert history.stopped == "interrupted"
    assert len(history.elbo) == len(history.seconds) == len(history.learning_rate) == 1
    assert history.steps == 4


def test_ctrl_c_during_validation_leaves_whole_epochs_in_the_history() -> None:
    history = quiet(*model_and_guide(), loader(), epochs=9, validation=Interrupted())
    assert history.stopped == "interrupted"
    assert len(history.elbo) == len(history.validation) == 1


# ------------------------------------------------------------------------------------------------ blowing up


class Spoiled:
    """A loader whose targets hold an infinity in one batch of its second pass."""

    def __init__(self, problem: ConjugateRegression) -> None:
        self.problem, self.passes = problem, 0

    def __iter__(self) -> Any:
        self.passes += 1
        for index in range(2):
            x, y = self.problem.x[20 * index : 20 * index + 20], self.problem.y[20 * index : 20 * index + 20]
            yield x, (y / 0.0 if self.passes == 2 and index == 1 else y)


class Steps:
    """Adam that keeps the guide's parameters after each of its steps."""

    def __init__(self, guide: nn.Module) -> None:
        self.guide, self.states = guide, []

    def __call__(self, groups: Any, lr: float) -> torch.optim.Optimizer:
        optimizer = torch.optim.Adam(groups, lr=lr)
        optimizer.register_step_post_hook(lambda *_: self.states.append(tensors(self.guide)))
        return optimizer


def test_a_non_finite_loss_stops_before_the_step() -> None:
    problem = ConjugateRegression()
    built = problem.model()
    guide = MeanField(built).double()
    kept = Steps(guide)
    with pytest.raises(NonFiniteLossError, match=r"epoch 2, step 2 .*log likelihood of the site 'y'.*just before"):
        quiet(built, guide, Spoiled(problem), epochs=3, seed=0, optimizer=kept)
    assert len(kept.states) == 3
    assert same(tensors(guide), kept.states[-1])


def test_a_non_finite_loss_carries_the_history() -> None:
    problem = ConjugateRegression()
    built = problem.model()
    with pytest.raises(NonFiniteLossError) as caught:
        quiet(built, MeanField(built).double(), Spoiled(problem), epochs=3)
    assert caught.value.history.epochs == 1
    assert caught.value.history.steps == 3
    assert len(caught.value.history.seconds) == 1


def test_a_loss_that_overflows_in_the_first_epoch_is_named_too() -> None:
    """Pyro's validation, on in the first epoch, would refuse the NaN first, as a ValueError about logits."""
    built, guide = model_and_guide()
    before = tensors(guide)
    with pyro.validation_enabled(True), pytest.raises(NonFiniteLossError, match=r"epoch 1, step 2 .*restored"):
        quiet(built, guide, loader(), epochs=2, lr=1e38, optimizer=torch.optim.SGD)
    assert same(tensors(guide), before)


def test_parameters_that_overflow_in_the_last_step_are_not_kept() -> None:
    """The loss was finite, its gradient too, but not the step; there is no further loss to show it."""
    built, guide = model_and_guide()
    before = tensors(guide)

    def overflowing(groups: list[dict[str, Any]], lr: float) -> torch.optim.SGD:
        return torch.optim.SGD([{"params": group["params"]} for group in groups], lr=math.inf)

    with pytest.raises(NonFiniteLossError, match=r"epoch 1, step 1 .*guide\.loc.*restored"):
        quiet(built, guide, [data()], epochs=1, optimizer=overflowing)
    assert same(tensors(guide), before)


def test_an_infinite_mask_in_a_buffer_is_no_failure() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)
            self.register_buffer("mask", torch.tensor([0.0, 0.0, -math.inf]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x)

    built = SupervisedModel(Masked(), likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=20)
    assert quiet(built, MeanField(built), loader(), epochs=1).stopped == "epochs"


def test_a_mistake_in_the_model_is_not_called_a_non_finite_loss() -> None:
    """A ValueError that has nothing to do with NaN goes through as it is."""

    class Broken(SupervisedModel):
        def forward(self, x: Any, y: Any = None) -> Any:
            raise ValueError("broken on purpose")

    net = nn.Linear(3, 3)
    built = Broken(net, likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=20)
    with pytest.raises(ValueError, match="broken on purpose"):
        quiet(built, MeanField(built), loader(), epochs=1)
