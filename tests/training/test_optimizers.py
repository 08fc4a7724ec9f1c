"""Optimizers, learning rates, schedules and clipping."""

from __future__ import annotations

import functools
from typing import Any

import pyro.optim
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR

from pyrobnn.guides import MAP, MeanField
from pyrobnn.training import fit, make_optimizer
from tests.training.networks import data, loader, model, model_and_guide, same, tensors

quiet = functools.partial(fit, progress=False)


def test_the_default_is_adam_over_guide_and_model() -> None:
    built, guide = model_and_guide(batch_norm=True)
    optimizer = make_optimizer(built, guide, lr=0.2)
    assert isinstance(optimizer, torch.optim.Adam)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for m in (built, guide) for p in m.parameters() if p.requires_grad}
    assert [group["lr"] for group in optimizer.param_groups] == [0.2]


def test_a_point_estimate_has_one_group() -> None:
    built = model()
    optimizer = make_optimizer(built, MAP(built), lr=0.2, scale_lr=0.1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.2]


def test_scale_lr_is_applied_to_the_scales_alone() -> None:
    """One SGD step is proportional to its learning rate: ten times for the scales, the same for the means."""
    moves = []
    for scale_lr in (None, 1.0):
        built, guide = model_and_guide()
        loc, log_scale = guide.flat_loc.detach().clone(), guide.flat_log_scale.detach().clone()
        quiet(built, guide, [data()], epochs=1, seed=0, lr=0.1, scale_lr=scale_lr, optimizer=torch.optim.SGD)
        moves.append((guide.flat_loc.detach() - loc, guide.flat_log_scale.detach() - log_scale))
    torch.testing.assert_close(moves[1][0], moves[0][0], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(moves[1][1], 10 * moves[0][1], rtol=1e-4, atol=1e-5)
    assert float(moves[0][1].abs().max()) > 1e-4


def test_a_function_is_given_groups_and_lr() -> None:
    built, guide = model_and_guide()
    made: list[Any] = []

    def make(groups: Any, lr: float) -> torch.optim.Optimizer:
        made.append((groups, lr))
        return torch.optim.SGD(groups, lr=lr, momentum=0.9)

    optimizer = make_optimizer(built, guide, make, lr=0.2, scale_lr=0.1)
    assert [group["lr"] for group in made[0][0]] == [0.2, 0.1]
    assert made[0][1] == 0.2
    assert optimizer.param_groups[1]["momentum"] == 0.9
    assert optimizer.param_groups[1]["params"] == guide.scale_parameters()


@pytest.mark.parametrize("kind", ["partial", "instance", "pyro"])
def test_three_ways_to_the_same_sgd(kind: str) -> None:
    built, guide = model_and_guide()
    reference = model_and_guide()
    quiet(*reference, loader(), epochs=2, seed=0, lr=0.05, optimizer=functools.partial(torch.optim.SGD, momentum=0.9))
    options = {"lr": 0.05, "momentum": 0.9}
    optimizer: Any = {
        "partial": functools.partial(torch.optim.SGD, momentum=0.9),
        "instance": torch.optim.SGD(guide.parameters(), **options),
        "pyro": pyro.optim.SGD(options),
    }[kind]
    history = quiet(built, guide, loader(), epochs=2, seed=0, lr=0.05, optimizer=optimizer)
    assert same(tensors(guide), tensors(reference[1]))
    assert history.learning_rate == ([] if kind == "pyro" else [0.05, 0.05])


def test_fused_adam_is_adam() -> None:
    a, b = model_and_guide(), model_and_guide()
    quiet(*a, loader(), epochs=2, seed=0, lr=0.05)
    quiet(*b, loader(), epochs=2, seed=0, lr=0.05, optimizer=functools.partial(torch.optim.Adam, fused=False))
    torch.testing.assert_close(tensors(a[1]), tensors(b[1]), rtol=1e-4, atol=1e-6)


# -------------------------------------------------------------------------------------------------- schedules


def test_a_schedule_is_stepped_after_each_epoch() -> None:
    history = quiet(
        *model_and_guide(), loader(), epochs=5, lr=0.1, scheduler=lambda o: StepLR(o, step_size=2, gamma=0.5)
    )
    assert history.learning_rate == pytest.approx([0.1, 0.1, 0.05, 0.05, 0.025])


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("validated", [True, False])
def test_reduce_on_plateau_waits_while_things_improve(mode: str, validated: bool) -> None:
    """The ELBO of a point estimate rises from epoch to epoch; in neither mode may that lower the rate."""
    built = model()
    validation = [data()] if validated else None
    schedule = functools.partial(ReduceLROnPlateau, mode=mode, patience=0, threshold=0.0, factor=0.1)
    history = quiet(
        built,
        MAP(built),
        [data()],
        epochs=6,
        lr=0.01,
        scheduler=schedule,
        optimizer=torch.optim.SGD,
        validation=validation,
    )
    assert history.elbo == sorted(history.elbo)
    assert history.learning_rate == pytest.approx([0.01] * 6)


@pytest.mark.parametrize("mode", ["min", "max"])
def test_reduce_on_plateau_acts_when_things_get_worse(mode: str) -> None:
    built = model()
    x, y = data()
    validation = [(x, (y + 1) % 3)]  # what is learned is wrong here
    schedule = functools.partial(ReduceLROnPlateau, mode=mode, patience=0, factor=0.1)
    history = quiet(
        built,
        MAP(built),
        [(x, y)],
        epochs=6,
        lr=0.1,
        scheduler=schedule,
        validation=validation,
        optimizer=torch.optim.SGD,
    )
    assert history.validation[-1] < history.validation[0]
    assert history.learning_rate[-1] < 0.02


def test_a_pyro_schedule_is_stepped_after_each_epoch() -> None:
    settings = {"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.05}, "step_size": 2, "gamma": 0.5}
    by_pyro, by_torch = model_and_guide(), model_and_guide()
    quiet(*by_pyro, loader(), epochs=5, seed=0, optimizer=pyro.optim.StepLR(settings))
    schedule = functools.partial(StepLR, step_size=2, gamma=0.5)
    quiet(*by_torch, loader(), epochs=5, seed=0, lr=0.05, optimizer=torch.optim.SGD, scheduler=schedule)
    assert same(tensors(by_pyro[1]), tensors(by_torch[1]))


# --------------------------------------------------------------------------------------------------- clipping


def test_clip_norm_bounds_the_gradient_of_the_objective_per_datum() -> None:
    """The step of SGD at rate 1 has the norm it is clipped to; a bound above the gradient changes nothing."""
    steps = {}
    for clip_norm in (None, 1e-3, 1e3):
        built, guide = model_and_guide()
        before = torch.cat([p.detach().flatten().clone() for p in guide.parameters()]).double()
        quiet(built, guide, [data()], epochs=1, seed=0, lr=1.0, clip_norm=clip_norm, optimizer=torch.optim.SGD)
        after = torch.cat([p.detach().flatten() for p in guide.parameters()]).double()
        steps[clip_norm] = after - before
    assert float(steps[None].norm()) > 0.05
    assert float(steps[1e-3].norm()) == pytest.approx(1e-3, rel=1e-2)
    torch.testing.assert_close(steps[1e3], steps[None])
    cosine = torch.nn.functional.cosine_similarity(steps[1e-3], steps[None], dim=0)
    assert float(cosine) == pytest.approx(1.0, abs=1e-3)


# ---------------------------------------------------------------------------------------------------- refusals


def test_an_optimizer_without_all_parameters_is_refused() -> None:
    built, guide = model_and_guide(batch_norm=True)
    with pytest.raises(ValueError, match=r"^optimizer: .*'net\.net\.1\.weight' \(2 in all\)"):
        quiet(built, guide, loader(), optimizer=torch.optim.SGD(guide.parameters(), lr=0.1))


@pytest.mark.parametrize("kind", ["torch", "pyro"])
def test_a_ready_optimizer_cannot_take_a_scale_lr(kind: str) -> None:
    built, guide = model_and_guide()
    optimizer = torch.optim.SGD(guide.parameters(), lr=0.1) if kind == "torch" else pyro.optim.SGD({"lr": 0.1})
    with pytest.raises(ValueError, match=r"^scale_lr: .*parameter group"):
        quiet(built, guide, loader(), optimizer=optimizer, scale_lr=0.1)


def test_pyros_options_by_name_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^optimizer: .*global parameter store"):
        quiet(*model_and_guide(), loader(), optimizer=pyro.optim.Adam(lambda name: {"lr": 0.1}))


def test_a_schedule_for_a_pyro_optimizer_is_refused() -> None:
    with pytest.raises(TypeError, match=r"^scheduler: .*its own schedule"):
        quiet(*model_and_guide(), loader(), optimizer=pyro.optim.Adam({"lr": 0.1}), scheduler=lambda o: StepLR(o, 2))


def test_another_kind_of_optimizer_is_refused() -> None:
    with pytest.raises(TypeError, match=r"^optimizer: .*got str"):
        quiet(*model_and_guide(), loader(), optimizer="adam")


@pytest.mark.parametrize("is_ready", [False, True])
def test_an_optimizer_that_evaluates_the_objective_is_refused(is_ready: bool) -> None:
    built, guide = model_and_guide()
    optimizer: Any = torch.optim.LBFGS
    if is_ready:
        optimizer = torch.optim.LBFGS([*guide.parameters(), *built.parameters()])
    with pytest.raises(TypeError, match=r"^optimizer: a step of LBFGS evaluates the objective several times"):
        quiet(built, guide, loader(), optimizer=optimizer)


def test_frozen_parameters_are_not_held() -> None:
    built, guide = model_and_guide(batch_norm=True)
    layer = built.get_submodule("net.net.1")
    assert isinstance(layer, nn.BatchNorm1d)
    layer.requires_grad_(False)
    before = layer.weight.detach().clone()
    quiet(built, guide, loader(), epochs=1, optimizer=torch.optim.SGD(guide.parameters(), lr=0.1))
    assert torch.equal(layer.weight, before)


def test_make_optimizer_returns_a_ready_one_as_it_is() -> None:
    built = model()
    guide = MeanField(built)
    ready = torch.optim.SGD(guide.parameters(), lr=0.1)
    assert make_optimizer(built, guide, ready) is ready
