"""Warmup: windows, the variance within chains, and a step size that meets its target."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pyrobnn.sampling.hmc.adaptation import ChainCovariance, ChainVariance, Warmup, reasonable_step_size, windows


def warmup_steps(length: int, start: Tensor, *, adapts_mass: bool = True, first: float = 1.0) -> Warmup:
    return Warmup(
        length,
        start,
        torch.full((len(start),), first),
        target=0.8,
        adapts_step_size=True,
        adapts_mass=adapts_mass,
        find=lambda inverse_mass, step_size: step_size,
    )


def test_a_thousand_transitions_have_stans_windows() -> None:
    assert windows(1000) == (75, [99, 149, 249, 449, 949])


@given(st.integers(0, 3000))
def test_windows_fill_what_lies_between_the_fast_phases(length: int) -> None:
    first, ends = windows(length)
    assert ends == sorted(set(ends))
    assert all(first <= end < length for end in ends)
    if length >= 20:
        assert ends[-1] == length - (50 if length >= 150 else int(0.1 * length)) - 1
        sizes = [b - a for a, b in zip([first - 1, *ends], ends, strict=False)]
        assert all(b >= 2 * a for a, b in itertools.pairwise(sizes))
    else:
        assert ends == []


@given(st.integers(2, 30), st.integers(1, 5))
def test_the_variance_is_that_around_each_chains_own_mean(count: int, num_chains: int) -> None:
    generator = torch.Generator().manual_seed(count)
    states = torch.randn(count, num_chains, 3, generator=generator, dtype=torch.float64)
    states += 100.0 * torch.arange(num_chains).reshape(1, num_chains, 1)  # chains far apart
    seen = ChainVariance()
    for row in states:
        seen.add(row)
    within, number = states.var(0).quantile(0.5, dim=0), count * num_chains
    torch.testing.assert_close(seen.regularized(), (number * within + 5 * 1e-3) / (number + 5))


def test_a_chain_on_its_way_does_not_set_the_mass_matrix() -> None:
    """Of four chains with variance 1 one moves 1,000 units in the window."""
    generator = torch.Generator().manual_seed(0)
    seen = ChainVariance()
    for index in range(200):
        states = torch.randn(4, 2, generator=generator, dtype=torch.float64)
        states[2] += 5.0 * index
        seen.add(states)
    # The median of four is between variances of 200 draws each, of relative error 0.1: within 3 of these.
    assert ((seen.regularized() - 1.0).abs() < 0.3).all(), seen.regularized()


@given(st.integers(2, 30))
def test_the_covariance_of_one_chain_is_the_usual_one(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    states = 100.0 + torch.randn(count, 3, generator=generator, dtype=torch.float64)
    seen = ChainCovariance()
    for row in states:
        seen.add(row.unsqueeze(0))
    shrunk = (count * torch.cov(states.T) + 5e-3 * torch.eye(3).double()) / (count + 5)
    torch.testing.assert_close(seen.regularized(), shrunk)


def test_covariances_join_median_variances_and_mean_correlations() -> None:
    """Of three chains one moves far in one direction and one stands still."""
    generator = torch.Generator().manual_seed(0)
    factor = torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=torch.float64)
    states = torch.randn(400, 3, 2, generator=generator, dtype=torch.float64) @ factor.T
    states[:, 1] += 50.0 * torch.arange(400).unsqueeze(-1) * torch.tensor([1.0, 1.0])
    states[:, 2] = 7.0
    variance, covariance = ChainVariance(), ChainCovariance()
    for row in states:
        variance.add(row)
        covariance.add(row)
    found = covariance.regularized()
    torch.testing.assert_close(found.diagonal(), variance.regularized())
    correlations = torch.stack([torch.corrcoef(states[:, chain].T)[0, 1] for chain in (0, 1)])
    scale = (variance.regularized() - 5e-3 / 1205).prod().sqrt()
    torch.testing.assert_close(found[0, 1], correlations.sum() / 3 * scale)
    assert (torch.linalg.eigvalsh(found) > 0).all()


@pytest.mark.parametrize("first", [1e-3, 1.0, 50.0])
def test_each_step_size_meets_the_target_acceptance(first: float) -> None:
    """Three chains whose scales differ by factors of 100."""
    scales = torch.tensor([1.0, 0.01, 100.0])
    learner = warmup_steps(400, torch.zeros(3, 1), adapts_mass=False, first=first)
    for index in range(400):
        learner.update(index, torch.zeros(3, 1), (-learner.step_size / scales).exp())
    torch.testing.assert_close((-learner.step_size / scales).exp(), torch.full((3,), 0.8), rtol=0, atol=0.06)
    assert learner.typical_step_size == pytest.approx(float(learner.step_size[0]))


def test_a_chain_that_refuses_everything_gets_smaller_steps_at_once() -> None:
    """Seven of eight chains are at their target: their mean acceptance alone would leave the eighth as it is."""
    learner = warmup_steps(50, torch.zeros(8, 1), adapts_mass=False)
    for index in range(50):
        acceptance = (-learner.step_size * 0.22).exp()
        acceptance[5] = 0.0
        learner.update(index, torch.zeros(8, 1), acceptance)
    assert float(learner.step_size[5]) < 1e-3
    assert float(learner.step_size[torch.arange(8) != 5].min()) > 0.3


def test_the_mass_matrix_takes_the_scales_of_the_target() -> None:
    scales = torch.tensor([0.01, 1.0, 30.0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    learner = warmup_steps(1000, torch.zeros(4, 3, dtype=torch.float64))
    for index in range(1000):
        states = scales * torch.randn(4, 3, generator=generator, dtype=torch.float64)
        learner.update(index, states, torch.full((4,), 0.8))
    # 2,000 states in the last window: a variance has a relative error of sqrt(2 / 2000) = 0.03; z = 5.
    ratio = learner.inverse_mass / scales.square()
    assert ((ratio - 1.0).abs() < 5 * 0.0317).all(), ratio


def test_nothing_adapts_that_must_not() -> None:
    learner = Warmup(
        50,
        torch.zeros(1, 2),
        torch.tensor([0.3]),
        target=0.8,
        adapts_step_size=False,
        adapts_mass=False,
        find=lambda inverse_mass, step_size: pytest.fail("nothing to find"),
    )
    for index in range(50):
        learner.update(index, torch.randn(1, 2), torch.zeros(1))
    assert learner.step_size.tolist() == pytest.approx([0.3])
    assert learner.typical_step_size == float(learner.step_size[0])
    assert learner.inverse_mass.tolist() == [1.0, 1.0]


@given(st.lists(st.floats(1e-6, 1e2), min_size=1, max_size=4), st.floats(1e-3, 10.0))
def test_reasonable_step_sizes_are_within_twice_the_scale(first: list[float], scale: float) -> None:
    scales = scale * torch.arange(1.0, len(first) + 1.0, dtype=torch.float64)
    found = reasonable_step_size(lambda sizes: (-sizes / scales).exp(), torch.tensor(first, dtype=torch.float64))
    edge = -math.log(0.8) * scales
    assert ((edge / 2.001 <= found) & (found <= 2.001 * edge)).all()


def test_the_search_ends_where_nothing_is_ever_accepted() -> None:
    found = reasonable_step_size(lambda sizes: torch.tensor([0.0, 1.0]), torch.ones(2))
    assert found.tolist() == pytest.approx([1e-10, 1e3], rel=1.0)
