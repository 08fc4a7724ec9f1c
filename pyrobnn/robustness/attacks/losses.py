r"""What attacks raise: functions of the posterior mean, by name or as objects.

``"cross_entropy"`` is minus the log predictive density,
:math:`-\log \frac1K \sum_k p(y \mid x, w_k)`, of any likelihood; for classes, the cross entropy of the mean
*probabilities*. ``"margin"`` is :math:`\max_{j \ne y} \log \bar p_j - \log \bar p_y`, positive exactly where the mean
prediction is wrong; with one draw it is the difference of logits of Carlini & Wagner (2017), since the normalizer
cancels. Its gradient does not vanish where the softmax is saturated.

A loss says which logarithms are averaged over draws (``summary``), and what is computed of the average (``value``).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

from torch import Tensor

from pyrobnn.core.explanations import explained
from pyrobnn.model.likelihoods import ClassLikelihood, Likelihood
from pyrobnn.model.likelihoods.reductions import widened

__all__ = ["ClassLoss", "CrossEntropy", "Loss", "Margin", "NetworkRun", "loss_of", "margins"]


class NetworkRun(NamedTuple):
    """The network's outputs under one draw, and what they mean."""

    outputs: Tensor
    """``[N, ...]``, in single precision at least."""
    likelihood: Likelihood
    targets: Tensor | None
    """``[N, ...]``; None for losses without targets."""
    draw: int
    """The index of the draw, of K."""
    rows: Tensor | None
    """Which inputs of the batch these are; None for all."""


class Loss(ABC):
    """What an attack raises, for each input; subclasses implement :meth:`summary` and :meth:`value`.

    Attributes:
        needs_targets: Whether it is a loss of targets.
        needs_classes: Whether it is a loss of class probabilities.
    """

    needs_targets: ClassVar[bool] = True
    needs_classes: ClassVar[bool] = False

    @abstractmethod
    def summary(self, run: NetworkRun) -> Tensor:
        """Logarithms of what is averaged over draws: ``[N]`` costs one pass over the draws, ``[N, ...]`` two."""

    @abstractmethod
    def value(self, pooled: Tensor, targets: Tensor | None) -> Tensor:
        """The loss of each input ``[N]``, given the logarithm of the average, of the shape of :meth:`summary`."""

    def check(self, likelihood: Likelihood) -> None:
        """Refuses likelihoods without classes if the loss needs them.

        Raises:
            TypeError: If it is such.
        """
        if self.needs_classes and not isinstance(likelihood, ClassLikelihood):
            raise TypeError(
                f"loss: {type(self).__name__} needs class probabilities, but the likelihood is "
                f"{type(likelihood).__name__}; use loss='cross_entropy', minus the log density of any likelihood."
            )


@explained
class CrossEntropy(Loss):
    """Minus the log predictive density of the targets, of any likelihood."""

    def summary(self, run: NetworkRun) -> Tensor:
        """The log density of each row, ``[N]``."""
        assert run.targets is not None
        run.likelihood.check_shape(run.outputs, run.targets)
        scores = run.likelihood.observation(run.likelihood.parameters_of(run.outputs)).log_prob(run.targets)
        return scores.reshape(len(run.targets), -1).sum(-1)

    def value(self, pooled: Tensor, targets: Tensor | None) -> Tensor:
        """Its negative."""
        return -pooled


class ClassLoss(Loss):
    """A loss of the log mean probabilities of the classes; subclasses implement :meth:`value`."""

    needs_classes = True

    def summary(self, run: NetworkRun) -> Tensor:
        """Log probabilities ``[N, ..., C]``."""
        assert isinstance(run.likelihood, ClassLikelihood)
        if run.targets is not None:
            run.likelihood.check_shape(run.outputs, run.targets)
        return run.likelihood.log_probabilities(run.outputs)


@explained
class Margin(ClassLoss):
    """The log odds of the most probable other class, ``max_{j != y} log p_j - log p_y``."""

    def value(self, pooled: Tensor, targets: Tensor | None) -> Tensor:
        """The margin; of several labels in an input, their mean."""
        assert targets is not None
        return margins(pooled, targets).reshape(len(pooled), -1).mean(1)


_LOSSES: dict[str, type[Loss]] = {"cross_entropy": CrossEntropy, "margin": Margin}


def loss_of(loss: str | Loss) -> Loss:
    """A loss by its name, or as it is given.

    Args:
        loss: ``"cross_entropy"``, ``"margin"`` or a :class:`Loss`.

    Raises:
        ValueError: If the name is unknown.
    """
    if isinstance(loss, Loss):
        return loss
    if not isinstance(loss, str) or loss not in _LOSSES:
        raise ValueError(f"loss: expected one of {sorted(_LOSSES)} or a Loss, got {loss!r}.")
    return _LOSSES[loss]()


def margins(log_probabilities: Tensor, labels: Tensor) -> Tensor:
    """``max_{j != y} log p_j - log p_y`` of each label ``[N, ...]``, given ``[N, ..., C]``."""
    index = labels.long().unsqueeze(-1)
    own = log_probabilities.gather(-1, index).squeeze(-1)
    others = log_probabilities.scatter(-1, index, -math.inf).amax(-1)
    return others - own


def network_run(
    outputs: Tensor, likelihood: Likelihood, targets: Tensor | None, draw: int, rows: Tensor | None = None
) -> NetworkRun:
    """A :class:`NetworkRun` whose outputs have single precision at least."""
    return NetworkRun(widened(outputs), likelihood, targets, draw, rows)
