r"""Q-learning under a posterior over functions: the value of each action in each state, and what to do meanwhile.

.. math::  y = r + \gamma \max_{a'} \bar Q(s', a'), \qquad \bar Q = E_w\, Q_w

is the target of the action that was taken; those of other actions are missing. After every few steps the posterior is
fitted to the targets of a replay buffer, from where it was. :math:`\bar Q` is that of before the refit and stays so
during it, which is what a target network is for. A terminal state is worth nothing more.

* **Thompson sampling** draws *one function* for each episode and follows it greedily, so that it explores with
  commitment; of an ensemble this is one member for each episode (bootstrapped DQN). In a deterministic environment a
  function that meets a state again goes in circles; ``draw_every`` draws more often (Gal & Ghahramani 2016: each step).
* **ε-greedy** follows the mean, and takes a random action with probability ε.

Osband, Blundell, Pritzel and Van Roy, "Deep exploration via bootstrapped DQN", 2016.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from pyrobnn.core import random_state
from pyrobnn.core.arguments import check_number, check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.decisions.rewards import LinearRewards, NeuralRewards

__all__ = ["Environment", "LinearQ", "NeuralQ", "QFunctions", "QLearning", "QRun"]

States = Callable[[Tensor], Tensor]
"""A function from states ``[B, d]`` to values of all actions ``[B, A]``."""


class Environment(Protocol):
    """What is asked of an environment; those of gymnasium have it."""

    def reset(self, *, seed: int | None = None) -> tuple[Any, dict[str, Any]]:
        """Begins an episode: the first observation, and information that is not used."""
        ...

    def step(self, action: int) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Observation, reward, whether the state is terminal, whether the episode is cut off, and information."""
        ...


class QFunctions(Protocol):
    """A posterior over functions from states to the values of all actions."""

    num_actions: int

    def draw(self) -> States:
        """One function from the posterior, the same at every call."""
        ...

    def mean(self, states: Tensor) -> Tensor:
        """Expected values ``[B, A]``."""
        ...

    def fit(self, states: Tensor, actions: Tensor, targets: Tensor) -> None:
        """Fits the posterior to targets ``[B]`` of the actions that were taken."""
        ...


@explained
class LinearQ:
    """Independent exact Bayesian linear regressions, one for each action; of one-hot states, a table.

    Args:
        num_inputs: Numbers in a state.
        num_actions: Number A of actions.
        noise: Standard deviation of targets.
        prior_scale: Standard deviation of weights.

    Raises:
        ValueError: If a number is not positive.
    """

    def __init__(self, num_inputs: int, num_actions: int, noise: float = 0.1, prior_scale: float = 1.0) -> None:
        self._made = num_inputs, num_actions, noise, prior_scale
        self.num_actions = num_actions
        self.regressions = LinearRewards(*self._made)

    def draw(self) -> States:
        """One function: a draw of all weights."""
        mean, factor = self.regressions.posterior()
        noise = torch.randn(mean.shape, dtype=mean.dtype).unsqueeze(-1)
        weights = mean + torch.linalg.solve_triangular(factor.mT, noise, upper=True).squeeze(-1)
        return lambda states: _with_bias(states) @ weights.T

    def mean(self, states: Tensor) -> Tensor:
        """Values under the mean weights."""
        return _with_bias(states) @ self.regressions.posterior()[0].T

    def fit(self, states: Tensor, actions: Tensor, targets: Tensor) -> None:
        """The posterior given these targets alone."""
        self.regressions = LinearRewards(*self._made)
        for action in range(self.num_actions):
            rows = _with_bias(states[actions == action])
            self.regressions.precision[action] += rows.T @ rows / self.regressions.noise**2
            weighted = targets[actions == action].double() / self.regressions.noise**2
            self.regressions.information[action] += weighted @ rows


@explained
class NeuralQ:
    """A Bayesian network with an output for each action.

    Args:
        model: A :class:`~pyrobnn.SupervisedModel` of states ``[B, d]`` whose network returns ``[B, A]``, with
            ``likelihoods.Normal(missing=True)`` or another likelihood that takes missing targets.
        guide: Its posterior.
        num_actions: Number A of actions.
        steps: Gradient steps of a refit, about.
        batch_size: Rows of a batch.
        num_samples: Draws that means are of.
        options: Further arguments of :func:`pyrobnn.fit`, such as ``{"lr": 3e-3}``.

    Raises:
        TypeError: If the model is no SupervisedModel or the guide no guide of this library.
        ValueError: If a number is not positive, or the likelihood takes no missing targets.
    """

    def __init__(
        self,
        model: Any,
        guide: Any,
        num_actions: int,
        *,
        steps: int = 100,
        batch_size: int = 256,
        num_samples: int = 10,
        options: dict[str, Any] | None = None,
    ) -> None:
        check_positive_int("num_actions", num_actions)
        self.network = NeuralRewards(
            model, guide, num_actions, steps=steps, batch_size=batch_size, num_samples=num_samples, options=options
        )
        self.num_actions = num_actions

    def draw(self) -> States:
        """One function of the posterior, pinned by a seed."""
        seed = int(torch.randint(2**31, ()))
        return lambda states: self.network.function(states, seed)

    def mean(self, states: Tensor) -> Tensor:
        """Means of the posterior."""
        return self.network.values(states, self.network.num_samples)

    def fit(self, states: Tensor, actions: Tensor, targets: Tensor) -> None:
        """Trains from where it was; N is the number of targets."""
        y = torch.full((len(states), self.num_actions), math.nan, dtype=states.dtype, device=states.device)
        y[torch.arange(len(y), device=y.device), actions] = targets.to(y.dtype)
        self.network.train(states, y, self.network.steps)


@dataclass(frozen=True)
class QRun:
    """What an agent has done.

    Attributes:
        rewards: Sum of the rewards of each episode.
        lengths: Steps of each episode.
    """

    rewards: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)

    def steps_to(self, reward: float, window: int = 10) -> int | None:
        """Steps until the mean reward of ``window`` episodes is at least ``reward``; None if it never is.

        Raises:
            ValueError: If ``window`` is no positive int.
        """
        check_positive_int("window", window)
        for end in range(window, len(self.rewards) + 1):
            if sum(self.rewards[end - window : end]) / window >= reward:
                return sum(self.lengths[:end])
        return None


@explained
class QLearning:
    """An agent with a replay buffer. Calling :meth:`run` again continues.

    Args:
        q: The posterior over functions.
        environment: The environment, of the interface of gymnasium, with actions from 0 on.
        epsilon: None for Thompson sampling, one function for each episode; else the probability of a random action
            beside the mean's best.
        draw_every: Steps that Thompson sampling follows a function; None keeps it for the whole episode.
        discount: The factor γ, above 0 and at most 1.
        refit_every: Steps between refits. They wait for the end of an episode that is under one function.
        capacity: Largest number of steps in the buffer; the oldest are dropped.
        encode: From an observation to a state ``[d]``; None takes all its numbers as float32.

    Raises:
        TypeError: If ``environment`` has no ``reset`` and ``step``, or ``encode`` is no function.
        ValueError: If a number is out of its range, or ``draw_every`` is stated beside ``epsilon``.
    """

    def __init__(
        self,
        q: QFunctions,
        environment: Environment,
        *,
        epsilon: float | None = None,
        draw_every: int | None = None,
        discount: float = 0.99,
        refit_every: int = 100,
        capacity: int = 10_000,
        encode: Callable[[Any], Tensor] | None = None,
    ) -> None:
        for name in ("reset", "step"):
            if not callable(getattr(environment, name, None)):
                raise TypeError(f"environment: expected one with reset() and step(), got {type(environment).__name__}.")
        if epsilon is not None:
            check_number("epsilon", epsilon, 0.0, 1.0)
        if draw_every is not None:
            check_positive_int("draw_every", draw_every)
            if epsilon is not None:
                raise ValueError("draw_every: it is for Thompson sampling, with epsilon=None; ε-greedy draws nothing.")
        check_number("discount", discount, 0.0, 1.0, above=True)
        check_positive_int("refit_every", refit_every)
        check_positive_int("capacity", capacity)
        if encode is not None and not callable(encode):
            raise TypeError(f"encode: expected a function from an observation to a state, got {encode!r}.")
        self.q, self.environment, self.epsilon, self.discount = q, environment, epsilon, discount
        self.refit_every, self.encode, self.draw_every = refit_every, encode, draw_every
        self.replay: deque[tuple[Tensor, int, float, Tensor, bool]] = deque(maxlen=capacity)
        self.history = QRun()
        self._since_refit = 0

    def run(self, num_steps: int, seed: int | None = None) -> QRun:
        """Whole episodes until there are ``num_steps`` more steps.

        Args:
            num_steps: Steps.
            seed: Fixes what is drawn, also of the environment, and leaves torch's random state alone.

        Raises:
            ValueError: If ``num_steps`` is no positive int.
        """
        check_positive_int("num_steps", num_steps)
        taken = 0
        with random_state.local(seed):
            while taken < num_steps:
                taken += self._episode(seed if not taken else None)
        return self.history

    def act(self, values: Tensor) -> int:
        """The action that values ``[A]`` lead to."""
        if self.epsilon and float(torch.rand(())) < self.epsilon:
            return int(torch.randint(self.q.num_actions, ()))
        best = (values == values.max()).nonzero()[:, 0]  # ties at random: a table knows nothing at first
        return int(best[torch.randint(len(best), ())])

    def refit(self) -> None:
        """Fits the posterior to the targets of all steps in the buffer."""
        states, actions, rewards, following, ended = zip(*self.replay, strict=True)
        worth = self.q.mean(torch.stack(following)).max(1).values.masked_fill(torch.tensor(ended), 0.0)
        targets = torch.tensor(rewards, dtype=worth.dtype) + self.discount * worth
        self.q.fit(torch.stack(states), torch.tensor(actions), targets)
        self._since_refit = 0

    def _episode(self, seed: int | None) -> int:
        """One episode; its number of steps."""
        is_bound = self.epsilon is None and self.draw_every is None  # to one function until the end
        state, total, steps, is_over = self._state(self.environment.reset(seed=seed)[0]), 0.0, 0, False
        left = 0.0  # steps of the function that is followed
        while not is_over:
            if not left:
                values = self.q.draw() if self.epsilon is None else self.q.mean
                left = self.draw_every or math.inf
            action = self.act(values(state.unsqueeze(0))[0])
            observation, reward, is_terminal, is_cut, _ = self.environment.step(action)
            following = self._state(observation)
            self.replay.append((state, action, float(reward), following, bool(is_terminal)))
            state, total, steps, left = following, total + float(reward), steps + 1, left - 1
            self._since_refit += 1
            is_over = bool(is_terminal or is_cut)
            if self._since_refit >= self.refit_every and (is_over or not is_bound):
                self.refit()
                left = 0.0
        self.history.rewards.append(total)
        self.history.lengths.append(steps)
        return steps

    def _state(self, observation: Any) -> Tensor:
        if self.encode is not None:
            return self.encode(observation)
        return torch.as_tensor(observation, dtype=torch.float32).reshape(-1)


def _with_bias(states: Tensor) -> Tensor:
    return torch.cat([states.double(), torch.ones(len(states), 1, dtype=torch.float64)], 1)
