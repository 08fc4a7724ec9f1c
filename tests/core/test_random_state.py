"""Random states: what is preserved is restored, what is saved continues, and other generators are not touched."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyrobnn import likelihoods, predict
from pyrobnn.core import random_state
from pyrobnn.guides import MeanField
from pyrobnn.model.supervised import SupervisedModel

CPU = torch.device("cpu")


def test_a_block_that_is_kept_leaves_no_trace() -> None:
    before = torch.get_rng_state()
    with contextlib.suppress(KeyError), random_state.preserved(CPU):
        torch.randn(3)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before)


def test_a_seeded_block_draws_what_the_seed_says() -> None:
    before = torch.get_rng_state()
    with random_state.seeded(7, CPU):
        found = torch.randn(3)
    assert torch.equal(found, torch.randn(3, generator=torch.Generator().manual_seed(7)))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_state_that_was_read_can_be_written() -> None:
    state = random_state.read(CPU)
    expected = torch.randn(3)
    random_state.write(state, CPU)
    assert torch.equal(torch.randn(3), expected)


def test_seeding_leaves_other_devices_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """``torch.manual_seed`` would seed every GPU."""

    def refuse(*_: object) -> None:
        raise AssertionError("a GPU was seeded")

    for name in ("manual_seed", "manual_seed_all", "set_rng_state"):
        monkeypatch.setattr(torch.cuda, name, refuse)
    with random_state.seeded(1, CPU):
        random_state.write(random_state.read(CPU), CPU)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_is_kept_and_seeded_too() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    before = torch.cuda.get_rng_state(device)
    draws = []
    for _ in range(2):
        with random_state.seeded(1, device):
            draws.append(torch.randn(3, device=device))
    assert torch.equal(*draws)
    assert torch.equal(torch.cuda.get_rng_state(device), before)


def numpy_draw() -> Tensor:
    """Two normal numbers: the generator keeps every second one for later."""
    return torch.tensor([np.random.standard_normal() for _ in range(3)])  # noqa: NPY002


def python_draw() -> Tensor:
    """Likewise."""
    return torch.tensor([random.gauss(0, 1) for _ in range(3)])


@pytest.mark.parametrize("draw", [lambda: torch.randn(3), numpy_draw, python_draw])
def test_all_generators_are_read_and_written(draw: Callable[[], Tensor]) -> None:
    draw()
    state = random_state.read_all()
    expected = draw()
    assert not torch.equal(draw(), expected)
    random_state.write_all(state)
    assert torch.equal(draw(), expected)


def test_given_generators_are_read_and_written() -> None:
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    state = random_state.read_all(generators)
    expected = [torch.randn(3, generator=generator) for generator in generators]
    random_state.write_all(state, generators)
    for generator, known in zip(generators, expected, strict=True):
        assert torch.equal(torch.randn(3, generator=generator), known)
    with pytest.raises(ValueError, match="zip"):
        random_state.write_all(state, generators[:1])


def test_a_local_seed_restores_every_generator() -> None:
    """Torch, NumPy and Python continue as if the block had not been; the block itself is fixed by the seed."""

    def numbers() -> list[float]:
        return [float(torch.rand(())), float(np.random.rand()), random.random()]  # noqa: NPY002

    pyro.set_rng_seed(1)
    numbers()
    expected = numbers()
    pyro.set_rng_seed(1)
    numbers()
    with random_state.local(5):
        first = numbers()
    assert numbers() == expected
    with random_state.local(5):
        assert numbers() == first
    with random_state.local(None):
        drawn = numbers()
    assert drawn not in (first, expected)


def test_a_local_seed_is_restored_after_an_error() -> None:
    before = random_state.read_all()
    with contextlib.suppress(KeyError), random_state.local(5):
        raise KeyError
    assert torch.equal(random_state.read_all()["torch"], before["torch"])


def test_seeds_come_from_the_cpu_whatever_the_default_device_is() -> None:
    """Predictions of a model on the CPU are the same under any default device."""
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))
    model = SupervisedModel(net, likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=4)
    guide, x = MeanField(model, init_scale=0.1), torch.randn(4, 2)
    torch.manual_seed(3)
    expected, seed = predict(model, guide, x, 5).mean, random_state.fresh_seed()
    torch.manual_seed(3)
    with torch.device("meta"):
        found, again = predict(model, guide, x, 5).mean, random_state.fresh_seed()
    assert torch.equal(found, expected)
    assert again == seed


@pytest.mark.parametrize(
    "draw",
    [lambda: torch.rand(3), lambda: np.random.rand(3), random.random, lambda: random.gauss(0, 1)],  # noqa: NPY002
    ids=["torch", "numpy", "python", "python's normal"],
)
def test_a_watched_block_says_whether_anything_was_drawn_and_leaves_no_trace(draw: Callable[[], object]) -> None:
    def drawn() -> list[float]:
        return [float(torch.rand(())), float(np.random.rand()), random.random()]  # noqa: NPY002

    states = random_state.read_all()
    wanted = drawn()
    random_state.write_all(states)
    with random_state.watched(torch.device("cpu")) as is_used:
        assert not is_used()
        draw()
        assert is_used()
    assert drawn() == wanted


def test_items_are_made_under_states_of_their_own_that_go_on() -> None:
    """Of torch, NumPy and Python; the states of the caller are as before, whatever it draws between items."""

    def items() -> Iterator[list[float]]:
        for _ in range(3):
            yield [float(torch.rand(())), float(np.random.rand()), random.random()]  # noqa: NPY002

    torch.manual_seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    first = list(random_state.iterated(items(), 7))
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert len({number for item in first for number in item}) == 9
    again = []
    for item in random_state.iterated(items(), 7):
        again.append(item)
        torch.rand(5)
        random.random()
    assert again == first
    assert list(random_state.iterated(items(), 8)) != first


def test_items_without_a_seed_take_from_the_present_state() -> None:
    torch.manual_seed(3)
    found = list(random_state.iterated((float(torch.rand(())) for _ in range(3)), None))
    torch.manual_seed(3)
    assert found == [float(torch.rand(())) for _ in range(3)]
