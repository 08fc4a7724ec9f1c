r"""Acquisition: which inputs of a pool to have labeled next, from the predictions of K posterior draws.

* ``Entropy``: :math:`H[y]` of the mean prediction. ``VariationRatio``: the share of draws that vote otherwise.
  ``MeanStd``: the standard deviation of class probabilities over draws, averaged over classes.
* ``BALD``: the mutual information :math:`I[y; w] = H[y] - E_w H[y \mid w]` of one label and the weights (Houlsby et al.
  2011; Gal, Islam and Ghahramani, ICML 2017).
* ``BatchBALD``: that of several labels together, :math:`I[y_1, \dots, y_b; w]`, maximized greedily, so that a batch
  does not ask the same thing twice (Kirsch, van Amersfoort and Gal, NeurIPS 2019). Joint probabilities are over the
  same draws; they are enumerated while there are at most ``num_configurations`` of them, then sampled.
* ``EPIG``: the mutual information of a label and the labels of inputs that one cares about, on average over those
  (Bickford Smith et al., AISTATS 2023).
* ``Random``: what all of them have to beat.

Those that look at features in place of draws are in :mod:`pyrobnn.decisions.feature_acquisition`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrobnn.core.arguments import check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.model.likelihoods.predictions import ClassPrediction

__all__ = [
    "BALD",
    "EPIG",
    "Acquisition",
    "BatchBALD",
    "Entropy",
    "MeanStd",
    "Pool",
    "Random",
    "ScoreAcquisition",
    "VariationRatio",
]

_MAX_ELEMENTS = 2**23


@dataclass(frozen=True)
class Pool:
    """What an acquisition may look at.

    Attributes:
        prediction: Of the N inputs of the pool, with the draws kept.
        inputs: The inputs ``[N, ...]``.
        labeled: The inputs that have labels ``[L, ...]``.
        targeted: The prediction, under the same draws, of inputs that one cares about, or None.
    """

    prediction: ClassPrediction
    inputs: Tensor
    labeled: Tensor
    targeted: ClassPrediction | None = None


class Acquisition(ABC):
    """Chooses inputs of a pool.

    Attributes:
        needs_posterior: Whether it looks at draws, so that a prediction is to be made.
    """

    needs_posterior = True

    @abstractmethod
    def choose(self, pool: Pool, size: int) -> Tensor:
        """Numbers of ``size`` different inputs; ties and random choices by torch's random state."""

    def select(self, pool: Pool, size: int) -> Tensor:
        """Numbers of ``size`` different inputs of the pool ``[size]``.

        Raises:
            TypeError: If a prediction is none of classes.
            ValueError: If the pool is empty or smaller than ``size``, or draws that are needed were not kept.
        """
        check_positive_int("size", size)
        count = len(pool.inputs)
        if not count:
            raise ValueError("pool: it is empty; there is nothing left to label.")
        if size > count:
            raise ValueError(f"size: expected at most the {count} inputs of the pool, got {size}.")
        if self.needs_posterior and not isinstance(pool.prediction, ClassPrediction):
            raise TypeError(f"pool: expected a prediction of classes, got {type(pool.prediction).__name__}.")
        return self.choose(pool, size)


class ScoreAcquisition(Acquisition):
    """Takes the inputs of the largest score; equal scores in random order."""

    @abstractmethod
    def score(self, pool: Pool) -> Tensor:
        """A number for each input ``[N]``."""

    def choose(self, pool: Pool, size: int) -> Tensor:
        """The largest scores."""
        scores = self.score(pool)
        shuffled = torch.randperm(len(scores), device=scores.device)
        return shuffled[scores[shuffled].argsort(descending=True, stable=True)[:size]]


class Random(ScoreAcquisition):
    """Any inputs."""

    needs_posterior = False

    def score(self, pool: Pool) -> Tensor:
        """The same for all."""
        return torch.zeros(len(pool.inputs))


class Entropy(ScoreAcquisition):
    """The entropy of the mean prediction."""

    def score(self, pool: Pool) -> Tensor:
        """In nats."""
        return pool.prediction.total


class VariationRatio(ScoreAcquisition):
    """The share of draws that vote for another class than most."""

    def score(self, pool: Pool) -> Tensor:
        """From 0 to 1."""
        assert pool.prediction.variation_ratio is not None
        return pool.prediction.variation_ratio


class MeanStd(ScoreAcquisition):
    """The standard deviation of class probabilities over draws, averaged over classes."""

    def score(self, pool: Pool) -> Tensor:
        """From 0 to 1/2."""
        return _draws(pool.prediction).std(0, correction=0).mean(-1)


class BALD(ScoreAcquisition):
    """The mutual information of the label and the weights."""

    def score(self, pool: Pool) -> Tensor:
        """In nats."""
        return pool.prediction.epistemic


@explained
class BatchBALD(Acquisition):
    """The mutual information of all labels of a batch and the weights, maximized greedily.

    Args:
        num_configurations: Joint labels of the batch so far that are enumerated or, if there are more, sampled.

    Raises:
        ValueError: If it is no positive int.
    """

    def __init__(self, num_configurations: int = 1000) -> None:
        check_positive_int("num_configurations", num_configurations)
        self.num_configurations = num_configurations

    def choose(self, pool: Pool, size: int) -> Tensor:
        """One input after the other."""
        probs = _draws(pool.prediction).double()
        num_draws, count, classes = probs.shape
        expected = torch.special.entr(probs).sum(-1).mean(0)
        chosen: list[int] = []
        joint = probs.new_ones(1, num_draws)  # probabilities [M, K] of M joint labels of the batch under each draw
        weight = probs.new_ones(1)  # enumerated: 1; sampled: 1 / (M p) of each
        free = torch.ones(count, dtype=torch.bool, device=probs.device)
        for _ in range(size):
            gain = self._entropies(joint, weight, probs) - expected
            best = int(gain.masked_fill(~free, -torch.inf).argmax())
            chosen.append(best)
            free[best] = False
            joint, weight = self._extended(joint, weight, probs[:, best], classes)
        return torch.tensor(chosen, device=probs.device)

    def _entropies(self, joint: Tensor, weight: Tensor, probs: Tensor) -> Tensor:
        """The joint entropy of the batch and each input ``[N]``."""
        num_draws, count, classes = probs.shape
        rows = max(1, _MAX_ELEMENTS // (len(joint) * classes))
        parts = []
        for start in range(0, count, rows):
            flat = probs[:, start : start + rows].reshape(num_draws, -1)
            both = (joint @ flat / num_draws).reshape(len(joint), -1, classes)
            parts.append((weight[:, None, None] * torch.special.entr(both)).sum((0, 2)))
        return torch.cat(parts)

    def _extended(self, joint: Tensor, weight: Tensor, probs: Tensor, classes: int) -> tuple[Tensor, Tensor]:
        """Joint labels with that of one more input, whose probabilities under each draw are ``[K, C]``."""
        if len(joint) * classes <= self.num_configurations and bool((weight == 1).all()):
            return (joint.unsqueeze(1) * probs.T).flatten(0, 1), weight.repeat_interleave(classes)
        both = joint.unsqueeze(1) * probs.T  # [M, C, K]
        mixture = (both.mean(-1) * weight.unsqueeze(-1)).flatten()
        index = torch.multinomial(mixture, self.num_configurations, replacement=True)
        sampled = both.flatten(0, 1)[index]
        # A joint label that is drawn with probability q counts 1 / (M q) in sums over all of them.
        chance = mixture[index] / mixture.sum()
        return sampled, weight.repeat_interleave(classes)[index] / (self.num_configurations * chance)


class EPIG(ScoreAcquisition):
    """The mutual information of the label and those of targeted inputs (``Pool.targeted``), on average over them."""

    def score(self, pool: Pool) -> Tensor:
        """In nats."""
        if pool.targeted is None:
            raise ValueError("pool: EPIG needs predictions of the inputs that one cares about; pass targeted.")
        here, there = _draws(pool.prediction).double(), _draws(pool.targeted).double()
        if len(here) != len(there):
            raise ValueError(
                f"pool: both predictions must be of the same draws, got {len(here)} and {len(there)} of them."
            )
        num_draws, count, classes = here.shape
        flat = there.reshape(num_draws, -1)
        of_targets = torch.special.entr(there.mean(0)).sum(-1).mean()
        rows = max(1, _MAX_ELEMENTS // (classes * flat.shape[1]))
        parts = []
        for start in range(0, count, rows):
            block = here[:, start : start + rows]
            both = block.reshape(num_draws, -1).T @ flat / num_draws  # [n C, M C]
            joint = torch.special.entr(both).reshape(block.shape[1], classes, -1).sum((1, 2)) / there.shape[1]
            parts.append(torch.special.entr(block.mean(0)).sum(-1) + of_targets - joint)
        return torch.cat(parts).clamp_min(0.0)


def _draws(prediction: ClassPrediction) -> Tensor:
    """Class probabilities of one label ``[K, N, C]``."""
    if prediction.draws is None:
        raise ValueError("pool: the draws were not kept; predict with return_draws=True.")
    if prediction.draws.dim() != 3:
        raise ValueError(f"pool: expected one label for each input, got {tuple(prediction.target_shape)}.")
    return prediction.draws
