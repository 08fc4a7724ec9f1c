r"""A player of a game: a module with an optimizer, a learning-rate schedule and a running average of its parameters.

The average after the player's steps :math:`t = 0, 1, \dots` is
:math:`\bar\theta \leftarrow d_t \bar\theta + (1 - d_t)\, \theta` with :math:`d_t = \min(d, t / (t + 10))`, so that the
first steps, which are far off, count little.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyrobnn.core import schema
from pyrobnn.core.arguments import check_number, check_positive
from pyrobnn.core.explanations import explained
from pyrobnn.core.module_state import fill
from pyrobnn.training.players import BasePlayer
from pyrobnn.training.schedule import LearningRates
from pyrobnn.training.state import different_tensor, group_sizes

__all__ = ["PLAYER", "GamePlayer"]

_SLOW_START = 10.0  # steps
_TENSORS = schema.table(schema.instance(torch.Tensor, "a tensor"))
_PLAIN = schema.table(schema.anything)

PLAYER = schema.record(
    {
        "name": schema.text,
        "kinds": schema.table(schema.text),
        "module": _TENSORS,
        "optimizer": _PLAIN,
        "scheduler": schema.optional(_PLAIN),
        "average": schema.optional(_TENSORS),
        "steps": schema.whole(0),
    }
)
"""What a checkpoint holds of a player."""


@explained
class GamePlayer(BasePlayer):
    """A player of a :class:`~pyrobnn.training.Game`.

    Args:
        name: Its name, in the history and in messages.
        module: The module whose parameters it trains, or these parameters. Several modules are one as a
            ``torch.nn.ModuleList``.
        optimizer: A function from parameters and ``lr`` to a torch optimizer; None: Adam.
        lr: Its learning rate.
        scheduler: A function from the optimizer to a learning-rate schedule.
        scheduler_per: Whether the schedule advances after each ``"round"`` of the game or each ``"epoch"``.
        clip_norm: Largest norm of its gradient.
        averaging: Decay d of the running average of its parameters, at least 0 and below 1; None: none is kept.

    Attributes:
        average: A copy of the module at the average of its parameters, in evaluation mode, with the module's present
            buffers; None without ``averaging``.
        steps: Steps that it has taken.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If there is nothing to train, or a number is outside its range.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module | Sequence[nn.Parameter],
        optimizer: Callable[..., Optimizer] | None = None,
        lr: float = 1e-3,
        *,
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        scheduler_per: str = "round",
        clip_norm: float | None = None,
        averaging: float | None = None,
    ) -> None:
        owner = module if isinstance(module, nn.Module) else _listed(name, module)
        super().__init__(name, owner, _adam if optimizer is None else optimizer, lr)
        if scheduler_per not in ("round", "epoch"):
            raise ValueError(f"scheduler_per: expected 'round' or 'epoch', got {scheduler_per!r}.")
        if scheduler is not None and not callable(scheduler):
            raise TypeError(f"scheduler: expected a function from an optimizer to a schedule, got {scheduler!r}.")
        if clip_norm is not None:
            check_positive("clip_norm", clip_norm)
        if averaging is not None:
            check_number("averaging", averaging, 0.0, 1.0, below=True)
        self.clip_norm, self.averaging, self.steps = clip_norm, averaging, 0
        self.average: nn.Module | None = None
        if averaging is not None:
            self.average = copy.deepcopy(self.module).eval().requires_grad_(False)
        self._make_rates = partial(LearningRates, scheduler, per=None if scheduler is None else _UNITS[scheduler_per])
        self._rates: LearningRates | None = None
        self._trained: list[nn.Parameter] = []

    @property
    def rates(self) -> LearningRates:
        """Its learning-rate schedule, made at the first access."""
        if self._rates is None:
            self._rates = self._make_rates(optimizer=self.torch_optimizer)
        return self._rates

    @property
    def trained(self) -> list[nn.Parameter]:
        """The parameters of its optimizer."""
        if not self._trained:
            _ = self.rates  # made before the first step, which torch's schedules watch
            self._trained = [p for group in self.torch_optimizer.param_groups for p in group["params"]]
        return self._trained

    def step(self) -> None:
        """A step along the gradients that its parameters have."""
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.trained, self.clip_norm)
        self.torch_optimizer.step()
        if self.average is not None:
            self._follow(self.average)
        self.steps += 1

    @torch.no_grad()
    def _follow(self, average: nn.Module) -> None:
        assert self.averaging is not None
        decay = min(self.averaging, self.steps / (self.steps + _SLOW_START))
        for mean, parameter in zip(average.parameters(), self.module.parameters(), strict=True):
            mean.lerp_(parameter, 1.0 - decay)
        for kept, buffer in zip(average.buffers(), self.module.buffers(), strict=True):
            kept.copy_(buffer)

    def to(self, device: torch.device | str) -> None:
        """Moves module and average."""
        self.module.to(device)
        if self.average is not None:
            self.average.to(device)

    def read(self) -> dict[str, Any]:
        """The state from which its training can be resumed."""
        scheduler, average = self.rates.scheduler, self.average
        return super().read() | {
            "kinds": self._kinds(),
            "scheduler": None if scheduler is None else scheduler.state_dict(),
            "average": None if average is None else {k: v.clone() for k, v in average.state_dict().items()},
            "steps": self.steps,
        }

    def check_same(self, state: dict[str, Any]) -> None:
        """Refuses the state of another player.

        Raises:
            ValueError: If it is one.
        """
        was, now = state["kinds"], self._kinds()
        if was != now:
            raise ValueError(f"checkpoint: the player {self.name!r} had {was} there, but now it has {now}.")
        if (difference := different_tensor(self.module, state["module"])) is not None:
            raise ValueError(f"checkpoint: it is that of another player {self.name!r}: {difference}.")
        if (own := group_sizes(self.torch_optimizer.state_dict())) != (found := group_sizes(state["optimizer"])):
            raise ValueError(
                f"checkpoint: the optimizer of the player {self.name!r} had groups of {found} parameters, but now they "
                f"have {own}."
            )

    def write(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`read` returned."""
        super().write(state)
        if self.rates.scheduler is not None:
            self.rates.scheduler.load_state_dict(state["scheduler"])
        if self.average is not None:
            fill(self.average, state["average"])
        self.steps = state["steps"]

    def _kinds(self) -> dict[str, str]:
        """Classes of what has a state dict that others of its kind would take as well."""
        parts = {"optimizer": self.torch_optimizer, "scheduler": self.rates.scheduler, "average": self.average}
        return {name: type(part).__name__ for name, part in parts.items() if part is not None}


_UNITS: dict[str, Any] = {"round": "step", "epoch": "epoch"}


def _listed(name: str, parameters: Any) -> nn.Module:
    if not isinstance(parameters, list | tuple) or not all(isinstance(p, nn.Parameter) for p in parameters):
        raise TypeError(
            f"module: the player {name!r} expected a torch module or a list of its parameters, got {parameters!r}."
        )
    return nn.ParameterList(parameters)


def _adam(parameters: list[nn.Parameter], lr: float) -> Optimizer:
    fused = all(p.device.type in ("cpu", "cuda") and p.dtype in (torch.float32, torch.float64) for p in parameters)
    return torch.optim.Adam(parameters, lr=lr, fused=fused)
