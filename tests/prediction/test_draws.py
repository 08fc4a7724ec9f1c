"""Pinned draws: the same at each pass, within a budget, from a random state of their own."""

from __future__ import annotations

import itertools

import pyro.distributions as dist
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pyrobnn import likelihoods
from pyrobnn.guides import MeanField
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.prediction import PinnedDraws
from tests.conformance.monte_carlo import Z, z_of_mean

BYTES_PER_DRAW = 4 * (3 * 2 + 2)


def make_guide() -> MeanField:
    """A guide of eight weights."""
    model = SupervisedModel(nn.Linear(3, 2), likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=5)
    return MeanField(model, init_scale=0.5)


def joined(draws: PinnedDraws) -> dict[str, Tensor]:
    """All chunks of one pass."""
    chunks = [*draws]
    return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}


@given(
    num_samples=st.integers(1, 40),
    fitting=st.integers(0, 50),
    replayed=st.booleans(),
    seed=st.one_of(st.none(), st.integers(0, 2**62)),
)
def test_every_pass_gives_the_same_draws(num_samples: int, fitting: int, replayed: bool, seed: int | None) -> None:
    """K draws of the sites' shapes, in chunks of at most as many as fit (and at least one), twice the same."""
    guide = make_guide()
    draws = PinnedDraws(guide, num_samples, max(1, fitting * BYTES_PER_DRAW), replayed=replayed, seed=seed)
    sizes = [len(chunk["net.bias"]) for chunk in draws]
    assert sum(sizes) == num_samples
    assert max(sizes) <= max(1, fitting)
    first, second = joined(draws), joined(draws)
    assert {name: tuple(value.shape[1:]) for name, value in first.items()} == {"net.weight": (2, 3), "net.bias": (2,)}
    for name, value in first.items():
        assert torch.equal(value, second[name])


@pytest.mark.parametrize("replayed", [True, False])
def test_kept_or_replayed_is_the_same(replayed: bool) -> None:
    guide = make_guide()
    budget = 4 * BYTES_PER_DRAW  # four of nine fit
    expected = joined(PinnedDraws(guide, 9, budget, seed=1))
    found = joined(PinnedDraws(guide, 9, budget, replayed=replayed, seed=1))
    torch.testing.assert_close(found, expected, rtol=0.0, atol=0.0)


def test_passes_may_be_interleaved() -> None:
    """Replayed draws depend on no random state but their own, not even that of another pass."""
    draws = PinnedDraws(make_guide(), 6, BYTES_PER_DRAW, seed=1)
    one, other = iter(draws), iter(draws)
    for _ in range(6):
        a = next(one)
        torch.randn(3)
        torch.testing.assert_close(a, next(other), rtol=0.0, atol=0.0)


def test_chunks_continue_one_another() -> None:
    """No two chunks are alike, and together they follow the guide: 2,000 draws, one at a time, z = 5."""
    guide = make_guide()
    draws = joined(PinnedDraws(guide, 2000, BYTES_PER_DRAW, seed=1))
    assert len({tuple(row.tolist()) for row in draws["net.bias"]}) == 2000
    for site in guide.layout.values():
        factor = guide.marginal(site.name).base_dist
        assert z_of_mean(draws[site.name], factor.mean.detach()) < Z
        assert z_of_mean((draws[site.name] - factor.mean.detach()).square(), 0.25) < Z


def test_the_random_state_is_left_alone_with_a_seed_and_moves_once_without() -> None:
    guide = make_guide()
    before = torch.get_rng_state()
    [*PinnedDraws(guide, 9, BYTES_PER_DRAW, seed=1)]
    assert torch.equal(torch.get_rng_state(), before)
    draws = PinnedDraws(guide, 9, BYTES_PER_DRAW)
    after = torch.get_rng_state()
    assert not torch.equal(after, before)
    first = joined(draws)
    torch.testing.assert_close(joined(draws), first, rtol=0.0, atol=0.0)
    assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize("replayed", [True, False])
@pytest.mark.parametrize("threads", [1, 2])
def test_passing_draws_are_the_same_in_the_memory_of_a_chunk_for_each_thread(
    replayed: bool, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine draws in chunks of two; a chunk that is used is never the memory of one that is made meanwhile."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    guide = make_guide()
    draws = PinnedDraws(guide, 9, 2 * BYTES_PER_DRAW, replayed=replayed, seed=1)
    places = []
    for chunk, wanted in zip(draws.passing(), draws, strict=True):
        assert all(torch.equal(chunk[name], wanted[name]) for name in wanted)
        places.append(chunk["net.weight"].untyped_storage().data_ptr() + chunk["net.weight"].storage_offset())
    assert len(places) == 5
    assert len(set(places)) == threads
    assert all((one != other) == (threads == 2) for one, other in itertools.pairwise(places))


def test_passing_draws_that_are_kept_are_kept() -> None:
    draws = PinnedDraws(make_guide(), 3, 2**20, seed=1)
    (first,), (second,) = draws.passing(), draws
    assert first is second


def test_draws_outlive_a_change_of_the_guide_if_kept() -> None:
    guide = make_guide()
    draws = PinnedDraws(guide, 3, 2**20, seed=1)
    before = joined(draws)
    with torch.no_grad():
        guide.flat_loc.add_(1.0)
    torch.testing.assert_close(joined(draws), before, rtol=0.0, atol=0.0)


@pytest.mark.parametrize(("num_samples", "chosen"), [(5, [0, 1, 2, 3, 4]), (3, [0, 2, 4]), (2, [0, 4]), (1, [0])])
def test_given_draws_are_thinned_evenly(num_samples: int, chosen: list[int]) -> None:
    posterior = {"a": torch.arange(5.0), "b": torch.randn(5, 2)}
    (chunk,) = PinnedDraws(posterior, num_samples, 1)
    assert chunk["a"].tolist() == chosen
    assert torch.equal(chunk["b"], posterior["b"][chosen])


def test_given_draws_that_are_all_taken_are_not_copied() -> None:
    posterior = {"a": torch.arange(5.0), "b": torch.randn(5, 2)}
    (chunk,) = PinnedDraws(posterior, 5, 1)
    assert {name: value.data_ptr() for name, value in chunk.items()} == {
        name: value.data_ptr() for name, value in posterior.items()
    }


@pytest.mark.parametrize("num_samples", [0, -3, 1.0, False, "4"])
def test_num_samples_must_be_a_positive_int(num_samples: object) -> None:
    with pytest.raises(ValueError, match=r"^num_samples: expected a positive int"):
        PinnedDraws(make_guide(), num_samples, 1)  # type: ignore[arg-type]


def test_no_more_draws_than_there_are() -> None:
    with pytest.raises(ValueError, match=r"^num_samples: 4 were requested, but there are 3 draws"):
        PinnedDraws({"a": torch.zeros(3)}, 4, 1)


def test_sites_must_have_as_many_draws() -> None:
    with pytest.raises(ValueError, match=r"^guide: .*different numbers of draws"):
        PinnedDraws({"a": torch.zeros(3), "b": torch.zeros(4)}, 3, 1)


@pytest.mark.parametrize("posterior", [None, {}, [1], nn.Linear(1, 1)])
def test_a_posterior_is_a_guide_or_draws(posterior: object) -> None:
    with pytest.raises(TypeError, match=r"^guide: expected a guide of pyrobnn.guides or draws"):
        PinnedDraws(posterior, 3, 1)
