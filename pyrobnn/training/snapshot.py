r"""Snapshot ensembles: one training run, M members (Huang et al. 2017).

The learning rate falls along a cosine and restarts, so that one network reaches several optima in turn; its state at
the end of each cycle becomes a member. In epoch t of a cycle of C epochs the rate is

.. math::  \frac{\eta}{2} \left( 1 + \cos \frac{\pi t}{C} \right), \qquad t = 0, \ldots, C - 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, LRScheduler

from pyrobnn.core.arguments import check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.guides import MAP, DeltaMixture
from pyrobnn.model.bayesianize import bayesian_modules
from pyrobnn.model.draws import Draws
from pyrobnn.steps.member_buffers import network_buffers
from pyrobnn.training.history import History

__all__ = ["Snapshots"]


@explained
class Snapshots:
    """Schedule and callback for :func:`pyrobnn.fit`; afterward the members that were collected.

    .. code-block:: python

        guide = MAP(model)
        snapshots = Snapshots(model, guide, cycle=20)
        fit(model, guide, loader, epochs=100, lr=0.1, optimizer=partial(torch.optim.SGD, momentum=0.9),
            scheduler=snapshots.schedule, callbacks=[snapshots])
        ensemble = snapshots.ensemble()  # five members

    Snapshots are not saved in checkpoints of ``fit``; a resumed run collects only later ones.

    Args:
        model: The model.
        guide: The point estimate that is trained.
        cycle: Epochs C of a cycle.

    Raises:
        TypeError: If the guide is no :class:`~pyrobnn.guides.MAP`.
        ValueError: If ``cycle`` is not positive, or the model has trained parameters that are not sites, which
            all snapshots would share.
    """

    def __init__(self, model: nn.Module, guide: MAP, cycle: int) -> None:
        if not isinstance(guide, MAP):
            raise TypeError(f"guide: snapshots are taken of one network, a MAP, not of a {type(guide).__name__}.")
        check_positive_int("cycle", cycle)
        placeholders = {id(m.network.get_parameter(n)) for m in bayesian_modules(model) for n in m.parameter_names}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and id(parameter) not in placeholders:
                raise ValueError(
                    f"model: its parameter {name!r} is trained but has no prior, so all snapshots would share one; "
                    "name it in the prior rules, or freeze it."
                )
        self.model, self.guide, self.cycle = model, guide, cycle
        self._taken: list[Draws] = []

    def __len__(self) -> int:
        return len(self._taken)

    def schedule(self, optimizer: Optimizer) -> LRScheduler:
        """The cosine with restarts, stepped after each epoch; pass it as ``scheduler``."""
        return CosineAnnealingWarmRestarts(optimizer, self.cycle)

    def __call__(self, history: History) -> None:
        """Takes a snapshot if this was the last epoch of a cycle."""
        if history.epochs % self.cycle == 0:
            buffers = {name: buffer.detach().clone() for name, buffer in network_buffers(self.model).items()}
            values = {name: value[0].clone() for name, value in self.guide.sample(1).items()}
            self._taken.append(Draws(values, buffers))

    def ensemble(self, num_members: int | None = None, **options: Any) -> DeltaMixture:
        """The snapshots as an ensemble, with their running statistics.

        Args:
            num_members: How many of the latest; all if None.
            **options: Further arguments of :class:`~pyrobnn.guides.DeltaMixture`.

        Raises:
            ValueError: If there are fewer.
        """
        wanted = len(self._taken) if num_members is None else num_members
        if not 1 <= wanted <= len(self._taken):
            raise ValueError(
                f"num_members: {wanted} snapshots were requested, but {len(self._taken)} taken, one at the end of "
                f"every {self.cycle} epochs; train for longer, with this object among the callbacks."
            )
        taken = self._taken[-wanted:]
        draws = Draws(_stacked(taken), _stacked([snapshot.buffers for snapshot in taken]))
        return DeltaMixture.from_draws(self.model, draws, sites=list(self.guide.layout), **options)


def _stacked(members: Any) -> dict[str, Tensor]:
    return {name: torch.stack([member[name] for member in members]) for name in members[0]}
