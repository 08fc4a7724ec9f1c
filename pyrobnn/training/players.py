"""Players: further objectives of one training run, each with its own parameters and optimizer, as in a GAN."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from pyrobnn.core.arguments import check_non_negative, check_positive_int
from pyrobnn.core.batches import Batch
from pyrobnn.core.explanations import explained
from pyrobnn.core.module_state import fill
from pyrobnn.objectives import Objective, Parts
from pyrobnn.objectives.terms import read_terms, write_terms

__all__ = ["Player"]


@explained
@dataclass
class Player:
    """One of several optimizers in a call of :func:`pyrobnn.fit`.

    On every batch :func:`pyrobnn.fit` first takes a step on its own objective, over all parameters that no player has;
    then each player takes its steps on its objective, over the parameters of its module. Examples are a critic, a
    discriminator and an amortized noise model.

    Args:
        name: Its loss is ``"<name>.loss"`` in ``history.terms``.
        objective: What it minimizes.
        module: The module whose parameters it trains: a part of the model or of the guide, or another module.
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
        if not isinstance(self.name, str) or not self.name:
            raise TypeError(f"name: expected a name for its loss, got {self.name!r}.")
        if not isinstance(self.objective, Objective):
            raise TypeError(f"objective: expected one of pyrobnn.objectives, got {self.objective!r}.")
        if not callable(self.optimizer):
            raise TypeError(f"optimizer: expected a function such as torch.optim.Adam, got {self.optimizer!r}.")
        check_non_negative("lr", self.lr, "learning rate")
        check_positive_int("num_steps", self.num_steps)
        if not self.parameters:
            raise ValueError(f"module: the player {self.name!r} has no parameter that requires gradients.")

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that it trains."""
        return [parameter for parameter in self.module.parameters() if parameter.requires_grad]

    @property
    def torch_optimizer(self) -> Optimizer:
        """Its optimizer, made at the first access."""
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
        """The state from which its training can be resumed."""
        return {
            "name": self.name,
            "module": {name: value.detach().clone() for name, value in self.module.state_dict().items()},
            "optimizer": self.torch_optimizer.state_dict(),
            "num_steps": self.objective.num_steps,
            "terms": read_terms(self.objective.terms),
        }

    def write(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`read` returned."""
        fill(self.module, state["module"])
        self.torch_optimizer.load_state_dict(state["optimizer"])
        self.objective.num_steps = state["num_steps"]
        write_terms(self.objective.terms, state["terms"])
