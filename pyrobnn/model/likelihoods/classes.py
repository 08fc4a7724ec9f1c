"""Likelihoods of classes, whose predictions are probabilities."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import pyro.distributions as dist
from torch import Tensor

from pyrobnn.model.likelihoods.base import Likelihood
from pyrobnn.model.likelihoods.reductions import ClassReduction, Reduction

__all__ = ["ClassLikelihood"]


class ClassLikelihood(Likelihood):
    """Base class of likelihoods of classes: subclasses implement :meth:`log_probabilities`.

    Predictions are class probabilities, with entropies as their uncertainty. Code that needs class probabilities
    (metrics, attacks) checks for this class.
    """

    @abstractmethod
    def log_probabilities(self, outputs: Tensor) -> Tensor:
        """Log probabilities of the classes ``[B, ..., C]``, classes last, given outputs ``[B, ...]``."""

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Probabilities of the classes ``[B, ..., C]``, classes last, given outputs ``[B, ...]``."""
        return self.log_probabilities(outputs).exp()

    def logits(self, outputs: Tensor) -> Tensor:
        """Unnormalized log probabilities ``[B, ..., C]``; the normalized ones where the likelihood has no others."""
        return self.log_probabilities(outputs)

    def parameters_of(self, outputs: Tensor) -> dict[str, Tensor]:
        """The log probabilities, as ``logits``."""
        return {"logits": self.log_probabilities(outputs)}

    def distribution(self, parameters: Mapping[str, Tensor]) -> dist.TorchDistribution:
        """Categorical with the ``logits``."""
        return dist.Categorical(logits=parameters["logits"])

    def expectation(self, outputs: Tensor) -> Tensor:
        """The probabilities of a single draw."""
        return self.probabilities(outputs)

    def reduction(self, num_samples: int, *, keep: bool, max_bytes: int) -> Reduction:
        """Mean probabilities, entropies and votes."""
        return ClassReduction(self, num_samples, keep=keep, max_bytes=max_bytes)
