"""Players: further objectives of one training, each with parameters and an optimizer of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from pyrobnn.core.arguments import check_positive_int
from pyrobnn.core.batches import Batch
from pyrobnn.objectives import Objective, Parts

__all__ = ["Player"]


@dataclass
class Player:
    """One of several optimizers in a call of :func:`pyrobnn.fit`.

    On every batch the training takes a step on its own objective first, with all parameters that no player has; then
    each player takes its steps on its objective, with the parameters of its module. A critic, a discriminator or an
    amortized noise model is trained so.

    Args:
        name: What its loss is called in ``history.terms`` (``"<name>.loss"``).
        objective: What it minimizes.
        module: Whose parameters it moves: a part of the model or the guide, or a module of its own.
        optimizer: A function from parameters and ``lr`` to a torch optimizer.
        lr: Its learning rate.
        num_steps: Steps for each batch.

    Raises:
        ValueError: If ``num_steps`` is no positive int, or the module has nothing to train.
    """

    name: str
    objective: Objective
    module: nn.Module
    optimizer: Callable[..., Optimizer] = torch.optim.Adam
    lr: float = 1e-3
    num_steps: int = 1
    _made: Optimizer | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_positive_int("num_steps", self.num_steps)
        if not self.parameters:
            raise ValueError(f"module: the player {self.name!r} has no parameter that requires gradients.")

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that it moves."""
        return [parameter for parameter in self.module.parameters() if parameter.requires_grad]

    @property
    def torch_optimizer(self) -> Optimizer:
        """Its optimizer, made when first asked for."""
        if self._made is None:
            self._made = self.optimizer(self.parameters, lr=self.lr)
        return self._made

    def play(self, model: nn.Module, guide: Any, batch: Batch, clip_norm: float | None = None) -> Parts:
        """Takes its steps on one batch.

        Returns:
            The parts of its objective before the last step, in sum units.

        Raises:
            NonFiniteLossError: If its objective is NaN or infinite; the last step has not been taken then.
        """
        parts: Parts | None = None
        for _ in range(self.num_steps):
            for parameter in self.parameters:
                parameter.grad = None
            parts = self.objective.backward(model, guide, batch.args, batch.kwargs, scale=None)
            if clip_norm is not None:
                nn.utils.clip_grad_norm_(self.parameters, clip_norm)
            self.torch_optimizer.step()
        assert parts is not None
        return parts

    def read(self) -> dict[str, Any]:
        """Everything that the rest of its training depends on."""
        return {
            "name": self.name,
            "module": {name: value.detach().clone() for name, value in self.module.state_dict().items()},
            "optimizer": self.torch_optimizer.state_dict(),
            "num_steps": self.objective.num_steps,
        }

    def write(self, state: dict[str, Any]) -> None:
        """Goes back to what :meth:`read` read."""
        self.module.load_state_dict(state["module"])
        self.torch_optimizer.load_state_dict(state["optimizer"])
        self.objective.num_steps = state["num_steps"]
