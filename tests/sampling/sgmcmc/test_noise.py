"""Noise: the same numbers with and without the thread, states that can be gone back to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyrobnn.sampling.sgmcmc.noise import Noise


def made(ahead: bool, size: int = 40) -> Noise:
    torch.manual_seed(4)
    return Noise(torch.empty(2, size), ahead=ahead)


def some(noise: Noise, count: int) -> Tensor:
    return torch.stack([noise().clone() for _ in range(count)])


def test_the_thread_changes_no_number() -> None:
    noise = made(True)
    assert torch.equal(some(noise, 5), some(made(False), 5))
    noise.close()


@pytest.mark.parametrize("ahead", [True, False])
def test_states_can_be_gone_back_to(ahead: bool) -> None:
    noise = made(ahead)
    some(noise, 2)
    state = noise.read()
    expected = some(noise, 3)
    noise.write(state)
    assert torch.equal(some(noise, 3), expected)
    other = made(not ahead)
    other.write(state)
    assert torch.equal(some(other, 3), expected)
    noise.close()
    other.close()


def test_closed_noise_goes_on_by_itself() -> None:
    noise = made(True)
    first = some(noise, 2)
    noise.close()
    assert torch.equal(torch.cat([first, some(noise, 2)]), some(made(False), 4))


def test_it_leaves_the_global_generator_alone() -> None:
    noise = made(False)
    before = torch.get_rng_state()
    noise()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.statistical
def test_it_is_standard_normal_and_new_at_each_call() -> None:
    """80,000 numbers: mean, variance and the correlation of two calls within 5 standard errors."""
    noise = made(True, 40_000)
    first, second = noise().double().clone(), noise().double().clone()
    noise.close()
    count = first.numel()
    assert abs(float(first.mean())) < 5 / count**0.5
    assert abs(float(first.var()) - 1.0) < 5 * (2 / count) ** 0.5
    assert abs(float((first * second).mean())) < 5 / count**0.5
