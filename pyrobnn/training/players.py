"""Players: modules with optimizers of their own, as in a GAN; what those of a game and of a fit have in common."""

from __future__ import annotations

from collections.abc import Callable
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
from pyrobnn.training.optimizers import refuse_closures

__all__ = ["BasePlayer", "Player"]


class BasePlayer:
    """A module with an optimizer: in one call of :func:`pyrobnn.fit`, or in a :class:`~pyrobnn.training.Game`.

    Args:
        name: Its name, in the history and in messages.
        module: The module whose parameters it trains.
        optimizer: A function from parameters and ``lr`` to a torch optimizer.
        lr: Its learning rate.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If the module has nothing to train, or ``lr`` is negative.
    """

    def __init__(self, name: str, module: nn.Module, optimizer: Callable[..., Optimizer], lr: float) -> None:
        if not isinstance(name, str) or not name:
            raise TypeError(f"name: expected a name for its loss, got {name!r}.")
        if not isinstance(module, nn.Module):
            raise TypeError(f"module: the player {name!r} expected a torch module, got {type(module).__name__}.")
        if not callable(optimizer):
            raise TypeError(f"optimizer: expected a function such as torch.optim.Adam, got {optimizer!r}.")
        check_non_negative("lr", lr, "learning rate")
        self.name, self.module, self.optimizer, self.lr = name, module, optimizer, lr
        self._made: Optimizer | None = None
        if not self.parameters:
            raise ValueError(f"module: the player {name!r} has no parameter that requires gradients.")

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that it trains."""
        return [parameter for parameter in self.module.parameters() if parameter.requires_grad]

    @property
    def torch_optimizer(self) -> Optimizer:
        """Its optimizer, made at the first access."""
        if self._made is None:
            made = self.optimizer(self.parameters, lr=self.lr)
            if not isinstance(made, Optimizer):
                raise TypeError(
                    f"optimizer: that of the player {self.name!r} made a {type(made).__name__}, expected an optimizer "
                    "of torch."
                )
            refuse_closures(made)
            self._made = made
        return self._made

    def read(self) -> dict[str, Any]:
        """The state from which its training can be resumed."""
        return {
            "name": self.name,
            "module": {name: value.detach().clone() for name, value in self.module.state_dict().items()},
            "optimizer": self.torch_optimizer.state_dict(),
        }

    def write(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`read` returned."""
        fill(self.module, state["module"])
        self.torch_optimizer.load_state_dict(state["optimizer"])


@explained
class Player(BasePlayer):
    """One of several optimizers in a call of :func:`pyrobnn.fit`.

    On every batch :func:`pyrobnn.fit` first takes a step on its own objective, over all parameters that no player has;
    then each player takes its steps on its objective, over the parameters of its module. Examples are a critic, a
    discriminator and an amortized noise model. Where no posterior is fitted, play a :class:`~pyrobnn.training.Game`.

    Args:
        name: Its loss is ``"<name>.loss"`` in ``history.terms``.
        objective: What it minimizes.
        module: The module whose parameters it trains: a part of the model or of the guide, or another module.
        optimizer: A function from parameters and ``lr`` to a torch optimizer.
        lr: Its learning rate.
        num_steps: Steps for each batch.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If ``num_steps`` is no positive int, or the module has nothing to train.
    """

    def __init__(
        self,
        name: str,
        objective: Objective,
        module: nn.Module,
        optimizer: Callable[..., Optimizer] = torch.optim.Adam,
        lr: float = 1e-3,
        num_steps: int = 1,
    ) -> None:
        super().__init__(name, module, optimizer, lr)
        if not isinstance(objective, Objective):
            raise TypeError(f"objective: expected one of pyrobnn.objectives, got {objective!r}.")
        check_positive_int("num_steps", num_steps)
        self.objective, self.num_steps = objective, num_steps

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
        own = {"num_steps": self.objective.num_steps, "terms": read_terms(self.objective.terms)}
        return super().read() | own

    def write(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`read` returned."""
        super().write(state)
        self.objective.num_steps = state["num_steps"]
        write_terms(self.objective.terms, state["terms"])
