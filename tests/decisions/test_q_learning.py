"""Q-learning: values of a chain, one function for each episode, the maze, networks, refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.decisions import LinearQ, Maze, NeuralQ, QLearning, QRun
from pyrobnn.guides import DeltaMixture


class Chain:
    """Five cells: action 1 goes right, 0 left; the last cell ends it with a reward of 1, and a step costs 0.05."""

    def __init__(self) -> None:
        self.at = 0

    def reset(self, *, seed: int | None = None) -> tuple[int, dict[str, Any]]:
        self.at = 0
        return 0, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        self.at = min(self.at + 1, 4) if action else max(self.at - 1, 0)
        return self.at, (1.0 if self.at == 4 else 0.0) - 0.05, self.at == 4, False, {}


def one_hot(cell: int) -> Tensor:
    return torch.eye(5)[cell]


def values_of_the_chain(discount: float) -> Tensor:
    """Value iteration ``[5, 2]``."""
    q = torch.zeros(4, 2, dtype=torch.float64)
    for _ in range(500):
        best = torch.cat([q.max(1).values, torch.zeros(1, dtype=torch.float64)])
        left = torch.tensor([best[max(s - 1, 0)] for s in range(4)])
        q = torch.stack([discount * left - 0.05, discount * best[1:] - 0.05], 1)
        q[3, 1] += 1.0
    return q


def test_the_values_of_a_chain_are_those_of_value_iteration() -> None:
    """The exact table; shrinkage of its prior is of order noise² = 1e-6."""
    agent = QLearning(LinearQ(5, 2, noise=1e-3), Chain(), discount=0.9, refit_every=1, epsilon=0.5, encode=one_hot)
    agent.run(300, seed=0)
    for _ in range(100):
        agent.refit()
    found = agent.q.mean(torch.eye(5)[:4])
    torch.testing.assert_close(found, values_of_the_chain(0.9), rtol=0.0, atol=1e-3)


class OneSign:
    """Under each function the same action is the best everywhere; which one is a coin toss."""

    num_actions = 2

    def __init__(self) -> None:
        self.draws = 0

    def draw(self) -> Callable[[Tensor], Tensor]:
        self.draws += 1
        sign = torch.sign(torch.randn(()))
        return lambda states: sign * torch.tensor([[1.0, -1.0]]).expand(len(states), 2)

    def mean(self, states: Tensor) -> Tensor:
        return torch.zeros(len(states), 2)

    def fit(self, states: Tensor, actions: Tensor, targets: Tensor) -> None:
        """Learns nothing."""


class Cut(Chain):
    """Episodes of eight steps that never end."""

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        self.count = getattr(self, "count", 0) + 1
        return 0, 0.0, False, self.count % 8 == 0, {}


def test_an_episode_is_under_one_function() -> None:
    q = OneSign()
    agent = QLearning(q, Cut(), encode=one_hot)
    agent.run(160, seed=0)
    actions = torch.tensor([step[1] for step in agent.replay]).reshape(20, 8)
    assert q.draws == 20 and bool((actions == actions[:, :1]).all()) and 0 < int(actions[:, 0].sum()) < 20


@pytest.mark.parametrize(("draw_every", "draws"), [(1, 160), (3, 60), (None, 20)])
def test_a_function_is_followed_for_the_steps_that_are_asked_for(draw_every: int | None, draws: int) -> None:
    """Twenty episodes of eight steps; each begins with a function of its own, so that 3 + 3 + 2 steps make three."""
    q = OneSign()
    QLearning(q, Cut(), encode=one_hot, draw_every=draw_every, refit_every=1000).run(160, seed=0)
    assert q.draws == draws


class Counting(OneSign):
    """Notes how many targets each refit had."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def fit(self, states: Tensor, actions: Tensor, targets: Tensor) -> None:
        self.sizes.append(len(targets))


@pytest.mark.parametrize(
    ("policy", "sizes"),
    [({"epsilon": 0.1}, [5, 10, 15]), ({"draw_every": 1}, [5, 10, 15]), ({}, [8, 16])],
)
def test_refits_wait_for_the_end_only_of_an_episode_under_one_function(policy: Any, sizes: list[int]) -> None:
    """Two episodes of eight steps, a refit after five: a function that is followed must not change meanwhile."""
    q = Counting()
    QLearning(q, Cut(), encode=one_hot, refit_every=5, **policy).run(16, seed=0)
    assert q.sizes == sizes


def test_what_is_cut_off_is_not_terminal() -> None:
    agent = QLearning(OneSign(), Cut(), encode=one_hot)
    agent.run(8, seed=0)
    assert not any(step[4] for step in agent.replay)


def network(guide: Any) -> NeuralQ:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 2))
    model = pb.SupervisedModel(net, pb.likelihoods.Normal(0.1, missing=True), num_data=1)
    return NeuralQ(model, guide(model), 2, steps=10, num_samples=4, options={"lr": 0.01})


def test_a_network_learns_from_the_actions_that_were_taken() -> None:
    q = network(pb.guides.MAP)
    states, actions = torch.eye(5).repeat(2, 1), torch.tensor([0] * 5 + [1] * 5)
    for _ in range(20):
        q.fit(states[:8], actions[:8], torch.arange(8.0) / 8)
    found = q.mean(torch.eye(5))
    torch.testing.assert_close(found[:, 0], torch.arange(5.0) / 8, rtol=0.0, atol=0.1)
    torch.testing.assert_close(found[:3, 1], torch.arange(5.0, 8.0) / 8, rtol=0.0, atol=0.1)
    assert q.network.model.num_data == 8


def test_a_draw_of_an_ensemble_is_one_member_throughout() -> None:
    q = network(lambda model: DeltaMixture(model, num_members=3))
    states = torch.eye(5)
    torch.manual_seed(1)
    functions = [q.draw() for _ in range(20)]
    found = [function(states) for function in functions]
    assert all(torch.equal(function(states), value) for function, value in zip(functions, found, strict=True))
    assert len({tuple(value.flatten().tolist()) for value in found}) == 3


def test_the_maze() -> None:
    maze = Maze(("S.", "#G"), step_cost=0.1, max_steps=3)
    state, _ = maze.reset()
    assert state.tolist() == [1.0, 0.0, 0.0, 0.0]
    assert maze.step(2)[0].argmax() == 0  # a wall
    assert maze.step(1)[0].argmax() == 1
    state, reward, is_terminal, is_cut, _ = maze.step(2)
    assert (int(state.argmax()), reward, is_terminal, is_cut) == (3, pytest.approx(0.9), True, False)
    maze.reset()
    assert [maze.step(0)[3] for _ in range(3)] == [False, False, True]
    maze, reached, border = Maze(), {0}, [0]
    while border:
        following = {maze.after(cell, action) for cell in border for action in range(4)} - reached
        reached, border = reached | following, list(following)
    assert 63 in reached


def test_runs_continue_and_are_reproducible() -> None:
    found = []
    for _ in range(2):
        agent = QLearning(LinearQ(64, 4), Maze(max_steps=20), refit_every=20)
        agent.run(60, seed=3)
        found.append(agent.run(60, seed=4))
    assert found[0] == found[1] and sum(found[0].lengths) >= 120
    run = QRun([0.0, 1.0, 1.0], [5, 5, 2])
    assert (run.steps_to(1.0, 2), run.steps_to(0.5, 2), run.steps_to(2.0, 2)) == (12, 10, None)


def test_wrong_arguments() -> None:
    q = LinearQ(64, 4)
    with pytest.raises(TypeError, match=r"^environment: expected one with reset\(\) and step\(\), got int"):
        QLearning(q, 3)  # type: ignore[arg-type]
    for name, wrong in (("epsilon", 1.5), ("discount", 0.0), ("refit_every", 0), ("draw_every", 0)):
        with pytest.raises(ValueError, match=rf"^{name}: "):
            QLearning(q, Maze(), **{name: wrong})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^capacity: "):
        QLearning(q, Maze(), capacity=2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^draw_every: it is for Thompson sampling"):
        QLearning(q, Maze(), epsilon=0.1, draw_every=1)
    with pytest.raises(TypeError, match=r"^encode: "):
        QLearning(q, Maze(), encode=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^num_steps: "):
        QLearning(q, Maze()).run(0)
    for plan in ("SG", 3, (1, 2)):
        with pytest.raises(TypeError, match=r"^plan: expected rows of cells"):
            Maze(plan)  # type: ignore[arg-type]
    for rows in (("SG", "."), ("SX", ".G"), ("..", ".G"), ()):
        with pytest.raises(ValueError, match=r"^plan: "):
            Maze(rows)
    with pytest.raises(ValueError, match=r"^action: "):
        Maze().step(4)
    with pytest.raises(ValueError, match=r"^num_actions: "):
        NeuralQ(None, None, 0)
