"""A maze in which a goal pays and each step costs, with the interface of gymnasium's environments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyrobnn.core.arguments import check_int, check_non_negative, check_positive_int
from pyrobnn.core.explanations import explained

__all__ = ["MAZE", "Maze"]

MAZE = (
    "S..#....",
    ".#.#.##.",
    ".#...#..",
    ".####.#.",
    "...#..#.",
    ".#.#.##.",
    ".#...#..",
    ".###...G",
)
"""Eight by eight cells: start ``S``, goal ``G``, walls ``#``."""


@explained
class Maze:
    """From the start to the goal: 1 there, minus ``step_cost`` for each step; walls are not entered.

    Observations are one-hot vectors of the cells, row by row. Actions are 0 up, 1 right, 2 down, 3 left.

    Args:
        plan: Rows of cells: start ``S``, goal ``G``, walls ``#``, free cells ``.``.
        step_cost: What a step costs.
        max_steps: Steps after which an episode is truncated.

    Raises:
        TypeError: If the plan is no sequence of strings.
        ValueError: If its rows differ in length, it has other signs, or not one start and one goal; or a number is out
            of its range.
    """

    num_actions = 4

    def __init__(self, plan: Sequence[str] = MAZE, step_cost: float = 0.01, max_steps: int = 100) -> None:
        if isinstance(plan, str) or not isinstance(plan, Sequence) or not all(isinstance(row, str) for row in plan):
            raise TypeError(f"plan: expected rows of cells, such as ('S.#', '..G'), got {plan!r}.")
        cells = "".join(plan)
        if not plan or len({len(row) for row in plan}) != 1 or set(cells) - set("SG#."):
            raise ValueError(f"plan: expected rows of one length with the signs 'S', 'G', '#' and '.', got {plan!r}.")
        if cells.count("S") != 1 or cells.count("G") != 1:
            raise ValueError("plan: it must have one start 'S' and one goal 'G'.")
        check_non_negative("step_cost", step_cost)
        check_positive_int("max_steps", max_steps)
        self.plan, self.step_cost, self.max_steps = tuple(plan), step_cost, max_steps
        self.num_states = len(cells)
        self._position, self._steps = cells.index("S"), 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Tensor, dict[str, Any]]:
        """Begins an episode at the start."""
        self._position, self._steps = "".join(self.plan).index("S"), 0
        return self._observed(), {}

    def step(self, action: int) -> tuple[Tensor, float, bool, bool, dict[str, Any]]:
        """Observation, reward, whether the goal is reached, whether the episode is cut off, and nothing more.

        Raises:
            ValueError: If there is no such action.
        """
        check_int("action", action, 0, 3)
        self._position = self.after(self._position, action)
        self._steps += 1
        is_goal = "".join(self.plan)[self._position] == "G"
        reward = float(is_goal) - self.step_cost
        return self._observed(), reward, is_goal, not is_goal and self._steps >= self.max_steps, {}

    def after(self, position: int, action: int) -> int:
        """The cell that an action leads to from a cell."""
        width = len(self.plan[0])
        row, column = divmod(position, width)
        down, right = ((-1, 0), (0, 1), (1, 0), (0, -1))[action]
        row, column = row + down, column + right
        if not (0 <= row < len(self.plan) and 0 <= column < width) or self.plan[row][column] == "#":
            return position
        return row * width + column

    def _observed(self) -> Tensor:
        return torch.nn.functional.one_hot(torch.tensor(self._position), self.num_states).float()
