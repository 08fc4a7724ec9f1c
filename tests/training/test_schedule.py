"""Schedules of learning rates that count gradient steps, and those that count epochs."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pyro.optim
import pytest
import torch
from torch.optim.lr_scheduler import CyclicLR, LambdaLR, OneCycleLR, ReduceLROnPlateau, StepLR

from pyrobnn.training import fit
from tests.training.networks import data, loader, model_and_guide, tensors

quiet = functools.partial(fit, progress=False)
one_cycle = functools.partial(OneCycleLR, max_lr=0.1, total_steps=12)


class Rates:
    """The learning rate of each step."""

    def __init__(self, **options: Any) -> None:
        self.used: list[float] = []
        self.made: torch.optim.Optimizer | None = None
        self.options = options

    def __call__(self, groups: Any, lr: float) -> torch.optim.Optimizer:
        self.made = torch.optim.SGD(groups, lr=lr, **self.options)
        self.made.register_step_pre_hook(lambda optimizer, *_: self.used.append(optimizer.param_groups[0]["lr"]))
        return self.made

    @property
    def last(self) -> float:
        assert self.made is not None
        return self.made.param_groups[0]["lr"]


def alone(make: Any, steps: int, lr: float = 1e-3, **options: Any) -> list[float]:
    """The schedule's rates as torch alone makes them."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr, **options)
    schedule, found = make(optimizer), []
    for index in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if index < steps - 1:
            schedule.step()
    return found


def test_one_cycle_is_gone_through_step_by_step_to_its_last_rate() -> None:
    rates = Rates(momentum=0.9)
    history = quiet(*model_and_guide(), loader(), epochs=4, optimizer=rates, scheduler=one_cycle)
    assert rates.used == pytest.approx(alone(one_cycle, 12, momentum=0.9))
    assert max(rates.used) > 0.09
    assert rates.last == pytest.approx(0.1 / 25 / 1e4)  # max_lr / div_factor / final_div_factor
    assert history.learning_rate[-1] == pytest.approx(rates.last)


def test_cyclic_rates_change_at_each_step() -> None:
    make = functools.partial(CyclicLR, base_lr=0.01, max_lr=0.1, step_size_up=2)
    rates = Rates(momentum=0.9)
    quiet(*model_and_guide(), loader(), epochs=3, optimizer=rates, scheduler=make)
    assert rates.used == pytest.approx(alone(make, 9, momentum=0.9))
    assert len(set(rates.used)) == 3


@pytest.mark.parametrize("per", [None, "epoch"])
def test_other_schedules_change_at_each_epoch(per: Any) -> None:
    rates = Rates()
    halved = functools.partial(StepLR, step_size=1, gamma=0.5)
    quiet(*model_and_guide(), loader(), epochs=3, lr=0.4, optimizer=rates, scheduler=halved, scheduler_per=per)
    assert rates.used == pytest.approx([0.4] * 3 + [0.2] * 3 + [0.1] * 3)


def test_any_schedule_can_change_at_each_step() -> None:
    rates = Rates()
    warm = functools.partial(LambdaLR, lr_lambda=lambda step: (step + 1) / 6)
    quiet(*model_and_guide(), loader(), epochs=2, lr=0.6, optimizer=rates, scheduler=warm, scheduler_per="step")
    assert rates.used == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])


@pytest.mark.parametrize(("epochs", "planned"), [(3, 9), (5, 15)])
def test_one_cycle_of_another_length_is_refused_before_a_step(epochs: int, planned: int) -> None:
    pair = model_and_guide()
    before = tensors(*pair)
    with pytest.raises(ValueError, match=f"^scheduler: the OneCycleLR is for 12 steps, but .* total_steps={planned}"):
        quiet(*pair, loader(), epochs=epochs, optimizer=Rates(momentum=0.9), scheduler=one_cycle)
    assert all(torch.equal(u, v) for u, v in zip(before, tensors(*pair), strict=True))


def test_a_longer_one_may_be_stated_on_purpose_but_no_shorter_one() -> None:
    rates = Rates(momentum=0.9)
    quiet(*model_and_guide(), loader(), epochs=2, optimizer=rates, scheduler=one_cycle, scheduler_per="epoch")
    assert rates.used == pytest.approx([0.004] * 3 + [alone(one_cycle, 2, momentum=0.9)[1]] * 3)
    with pytest.raises(ValueError, match=r"^scheduler: the OneCycleLR is for 12 epochs, but the run has 13"):
        quiet(*model_and_guide(), loader(), epochs=13, optimizer=rates, scheduler=one_cycle, scheduler_per="epoch")


def test_a_resumed_cycle_is_that_of_the_whole_run(tmp_path: Path) -> None:
    def run(directory: Path, **options: Any) -> list[float]:
        rates = Rates(momentum=0.9)
        settings = {"epochs": 4, "seed": 0, "checkpoint": directory, "resume": True}
        quiet(*model_and_guide(), loader(), optimizer=rates, scheduler=one_cycle, **(settings | options))
        return rates.used

    whole = run(tmp_path / "whole")
    parts = run(tmp_path / "parts", callbacks=[lambda history: history.epochs == 2])
    assert parts + run(tmp_path / "parts") == whole
    with pytest.raises(ValueError, match=r"^scheduler: the OneCycleLR is for 12 steps, but the run has 15"):
        run(tmp_path / "parts", epochs=5)


def test_pyros_one_cycle_advances_at_each_step_too() -> None:
    options = {"optimizer": torch.optim.SGD, "optim_args": {"lr": 1e-3, "momentum": 0.9}, "max_lr": 0.1}
    optimizer = pyro.optim.OneCycleLR(options | {"total_steps": 12})
    quiet(*model_and_guide(), loader(), epochs=3, optimizer=optimizer)
    reached = {schedule.last_epoch for schedule in optimizer.optim_objs.values()}
    assert reached == {9}


def test_a_plateau_watches_epochs_and_other_units_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^scheduler_per: ReduceLROnPlateau watches a value of each epoch"):
        quiet(*model_and_guide(), loader(), epochs=1, scheduler=ReduceLROnPlateau, scheduler_per="step")
    with pytest.raises(ValueError, match=r"^scheduler_per: expected 'step', 'epoch' or None, got 'batch'"):
        quiet(*model_and_guide(), loader(), epochs=1, scheduler=one_cycle, scheduler_per="batch")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^scheduler_per: there is no schedule"):
        quiet(*model_and_guide(), loader(), epochs=1, scheduler_per="step")


def test_a_loader_without_a_length_leaves_the_length_to_the_schedule() -> None:
    class Endless:
        def __iter__(self) -> Any:
            x, y = data()
            return iter([(x[:8], y[:8]), (x[8:16], y[8:16]), (x[16:], y[16:])])

    rates = Rates(momentum=0.9)
    quiet(*model_and_guide(), Endless(), epochs=5, optimizer=rates, scheduler=one_cycle)
    assert rates.used[:12] == pytest.approx(alone(one_cycle, 12, momentum=0.9))
    assert rates.used[12:] == pytest.approx([rates.last] * 3)
