"""Trees against plain recursion with the same random numbers, and against what makes them reversible."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyrobnn.sampling.hmc.leapfrog import Leapfrogs
from pyrobnn.sampling.hmc.metric import DenseMetric, DiagonalMetric, Metric
from pyrobnn.sampling.hmc.potential import Potential
from pyrobnn.sampling.hmc.trees import Trees, ending_subtrees, slot_of
from tests.conformance.monte_carlo import Z
from tests.sampling.hmc.recursive_trees import Reference

INVERSE_MASS = torch.tensor([0.5, 2.0], dtype=torch.float64)


def banana() -> None:
    first = pyro.sample("first", dist.Normal(torch.tensor(0.0).double(), 1.0))
    pyro.sample("second", dist.Normal(first.square() - 1.0, 0.5))


def trees_of(
    start: Tensor, step_size: float, max_depth: int = 10, metric: Metric | None = None, model: Any = banana
) -> Trees:
    leapfrogs = Leapfrogs(Potential(model), start, num_leapfrog=1, total=0, compile=False)
    value, gradient = leapfrogs.value_and_grad(start)
    generator = torch.Generator().manual_seed(2)
    sizes = torch.full((len(start),), step_size, dtype=torch.float64)
    metric = metric or DiagonalMetric(INVERSE_MASS)
    options: dict[str, Any] = {"metric": metric, "step_size": sizes, "max_depth": max_depth, "generator": generator}
    return Trees(leapfrogs, start, gradient, value, **options)


def everyone(trees: Trees) -> np.ndarray[Any, Any]:
    return np.ones_like(trees.active)


# --------------------------------------------------------------------------------------------------- the reference

DENSE = torch.tensor([[0.6, 0.3], [0.3, 1.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("step_size", "max_depth", "metric"),
    [
        (0.05, 10, DiagonalMetric(INVERSE_MASS)),
        (0.3, 4, DenseMetric(DENSE)),
        (0.9, 10, DiagonalMetric(INVERSE_MASS)),
        (1.6, 10, DiagonalMetric(INVERSE_MASS)),
        (0.2, 1, DiagonalMetric(INVERSE_MASS)),
    ],
)
def test_the_same_trees_as_by_recursion(step_size: float, max_depth: int, metric: Metric) -> None:
    """12 chains, each of which makes three transitions at its own pace."""
    generator = torch.Generator().manual_seed(7)
    start = torch.randn(12, 2, generator=generator, dtype=torch.float64)
    trees = trees_of(start, step_size, max_depth, metric)
    random = torch.rand(4000, 3, 12, generator=generator, dtype=torch.float64).numpy()
    rounds = iter(random)
    trees._uniforms = lambda: next(rounds)  # type: ignore[method-assign]
    references = [Reference(trees, step_size, max_depth, iter(random[:, :, chain])) for chain in range(12)]
    expected: list[Any] = [None] * 12
    done = np.zeros(12, dtype=int)
    seen: list[dict[str, Any]] = []

    def begin(chains: np.ndarray[Any, Any]) -> None:
        trees.begin(chains)
        for chain in np.flatnonzero(chains):
            expected[chain] = references[chain].run(trees.draw.position[chain], trees._momentum[chain])

    begin(everyone(trees))
    while trees.active.any():
        ended = trees.grow()
        for chain in np.flatnonzero(ended):
            found = {name: values[chain] for name, values in trees.statistics().items()}
            known = expected[chain]
            for name in ("n_steps", "tree_depth", "diverging"):
                assert found[name] == known[name], (chain, name)
            for name in ("energy", "acceptance_rate"):
                assert found[name] == pytest.approx(known[name], rel=1e-9), (chain, name)
            torch.testing.assert_close(trees.draw.position[chain], known["position"], rtol=1e-9, atol=1e-9)
            seen.append(known)
        done += ended
        # A chain's own random numbers go on where its reference stopped, whatever the others do.
        begin(ended & (done < 3))
    assert (done == 3).all()
    assert len({known["n_steps"] for known in seen}) > 1 or max_depth == 1
    assert any(known["diverging"] for known in seen) == (step_size > 0.5)


# ------------------------------------------------------------------------------------------- draws and reversibility


class Given(DiagonalMetric):
    """Momenta that are given."""

    def __init__(self, momenta: Tensor) -> None:
        super().__init__(INVERSE_MASS)
        self.momenta = momenta

    def momentum(self, noise: Tensor) -> Tensor:
        return self.momenta


def grown(
    positions: Tensor, momenta: Tensor, directions: list[list[int]], step_size: float, max_depth: int, **random: Any
) -> Trees:
    """Trees whose doublings go forward (1) or backward (-1) as told; the first is forward."""
    trees = trees_of(positions, step_size, max_depth, Given(momenta))
    sides = np.array(directions)
    generator = np.random.default_rng(0)

    def uniforms() -> Any:
        drawn = generator.random((3, len(positions)))
        following = np.minimum(trees.depth + 1, sides.shape[1] - 1)
        flips = sides[np.arange(len(sides)), following] != trees._direction
        drawn[2] = np.where(flips, 0.0, 1.0)
        return drawn

    trees._uniforms = uniforms  # type: ignore[method-assign]
    trees.begin(everyone(trees))
    while trees.active.any():
        trees.grow()
    return trees


@pytest.mark.statistical
def test_a_leaf_is_drawn_with_the_probability_of_biased_progressive_sampling() -> None:
    """20,000 chains with one tree of eight leaves: frequencies of its leaves within 5 standard errors."""
    count, depth, step_size = 20_000, 3, 0.4
    position = torch.tensor([0.1, 0.1], dtype=torch.float64)
    momentum = torch.tensor([2.2, -0.5], dtype=torch.float64)
    sides = [1, -1, 1]
    trees = grown(position.repeat(count, 1), momentum.repeat(count, 1), [sides] * count, step_size, depth)
    assert (trees.depth == depth).all()
    random = iter([(0.5, 0.5, 0.0)] + [(0.5, 0.5, 0.0)] * 7)  # flips at both doublings
    reference = Reference(trees, step_size, depth, random)
    assert reference.run(position, momentum)["ends"] == (-2, 5)
    weight = {leaf: math.exp(reference.energies[0] - energy) for leaf, energy in reference.energies.items()}
    probability = {0: 1.0}
    for new in ([1], [-1, -2], [2, 3, 4, 5]):
        total = sum(weight[leaf] for leaf in new)
        moves = min(1.0, total / sum(weight[leaf] for leaf in probability))
        probability = {leaf: (1.0 - moves) * known for leaf, known in probability.items()}
        probability |= {leaf: moves * weight[leaf] / total for leaf in new}
    assert sum(probability.values()) == pytest.approx(1.0)
    assert max(weight.values()) > 5.0 * min(weight.values())
    for leaf, known in probability.items():
        same = (trees.draw.position - reference.leaves[leaf][0]).abs().amax(-1) < 1e-9
        error = math.sqrt(known * (1.0 - known) / count)
        assert abs(float(same.double().mean()) - known) <= Z * error + 1e-12, leaf


@pytest.mark.parametrize("seed", range(5))
def test_every_leaf_has_one_way_to_the_same_tree(seed: int) -> None:
    """From each leaf, with directions given by its place, the tree grows to the same ends and no further or less.

    So each leaf has the tree with the same probability, which is what makes transitions reversible.
    """
    generator = torch.Generator().manual_seed(seed)
    position, momentum = torch.randn(2, 2, generator=generator, dtype=torch.float64)
    random = iter(torch.rand(4000, 3, generator=generator, dtype=torch.float64).numpy())
    trees = trees_of(position.unsqueeze(0), 0.05)
    reference = Reference(trees, 0.05, 10, random)
    found = reference.run(position, momentum)
    (left, right), depth = found["ends"], found["tree_depth"]
    assert right - left + 1 == 2**depth and depth >= 1
    # Where a last subtree was discarded, the tree is cut before it.
    max_depth = 10 if found["n_steps"] == 2**depth - 1 else depth
    places = range(2**depth)
    directions = [[-1 if place >> level & 1 else 1 for level in range(depth)] for place in places]
    first_forward = [
        (positions, momenta) if sides[0] == 1 else (positions, -momenta)
        for sides, (positions, momenta) in zip(
            directions, (reference.leaves[left + place][:2] for place in places), strict=True
        )
    ]  # trees begin forward: where they must not, time runs the other way
    directions = [[side * sides[0] for side in sides] for sides in directions]
    positions, momenta = (torch.stack(rows) for rows in zip(*first_forward, strict=True))
    again = grown(positions, momenta, directions, 0.05, max_depth)
    assert (again.depth == depth).all()
    assert (again.num_leapfrog == 2**depth - 1).all()
    ends = torch.stack((again._position, again._far_position), 1)
    ends = ends.gather(1, ends[..., :1].argsort(1).expand_as(ends))
    known = torch.stack([reference.leaves[left][0], reference.leaves[right][0]])
    known = known[known[:, 0].argsort()]
    torch.testing.assert_close(ends, known.expand_as(ends), rtol=1e-7, atol=1e-7)


# ------------------------------------------------------------------------------------------------------------ slots


def test_slots_hold_the_first_leaves_of_the_subtrees_that_end() -> None:
    kept: dict[int, int] = {}
    for leaf in range(1024):
        if leaf % 2 == 0:
            kept[slot_of(leaf)] = leaf
            continue
        sizes = [size for size in (2**power for power in range(1, 11)) if (leaf + 1) % size == 0]
        assert sorted(kept[slot] for slot in ending_subtrees(leaf)) == sorted(leaf + 1 - size for size in sizes)
    assert max(kept) == 9


def test_slots_are_made_as_trees_get_deeper() -> None:
    start = torch.zeros(2, 2, dtype=torch.float64)
    trees = trees_of(start, 0.01, max_depth=5)
    trees.begin(everyone(trees))
    assert trees._slots.shape[1] == 1
    while trees.active.any():
        trees.grow()
    assert (trees.num_leapfrog == 31).all() and (trees.depth == 5).all()
    assert trees._slots.shape[1] == 5


# ----------------------------------------------------------------------------------------------------------- chains


def test_a_chain_that_diverges_does_not_hurt_the_others() -> None:
    """The trees of three chains are the same bits with a fourth that starts where the potential is steep."""
    start = torch.tensor([[0.1, -0.5], [1.0, 0.2], [-0.8, 0.0], [30.0, -30.0]], dtype=torch.float64)
    momenta = torch.tensor([[0.3, 0.2], [-0.4, 1.0], [0.9, 0.1], [3.0, 2.0]], dtype=torch.float64)
    sides = [[1, -1, 1, -1, 1, 1]] * 4
    beside = grown(start, momenta, sides, 0.2, 10)
    assert beside.diverging.tolist() == [False, False, False, True]
    assert torch.equal(beside.draw.position[3], start[3])
    alone = grown(start[:3], momenta[:3], sides[:3], 0.2, 10)
    assert (alone.num_leapfrog == beside.num_leapfrog[:3]).all()
    torch.testing.assert_close(alone._far_position, beside._far_position[:3], rtol=1e-12, atol=1e-12)


def test_chains_that_wait_stay_where_they_are() -> None:
    start = torch.tensor([[0.1, -0.5], [1.0, 0.2]], dtype=torch.float64)
    trees = trees_of(start, 0.2)
    one = np.array([True, False])
    trees.begin(one)
    for _ in itertools.takewhile(lambda _: trees.active.any(), range(1000)):
        trees.grow()
    assert torch.equal(trees.draw.position[1], start[1])
    assert not torch.equal(trees.draw.position[0], start[0])
    assert trees.num_leapfrog[1] == 0 and trees.num_rounds == trees.num_leapfrog[0]
