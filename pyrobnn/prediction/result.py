"""The posterior predictive at given inputs, with its uncertainty taken apart."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyrobnn.likelihoods import Likelihood

__all__ = ["Prediction"]


@dataclass
class Prediction:
    """The posterior predictive at N inputs; all tensors have the N inputs first.

    Attributes:
        mean: Class probabilities ``[N, …, C]`` (for binary targets the two of them), or predictive means
            ``[N, …]``.
        total: Entropy of the mean probabilities (nats), or predictive variance (target's units squared).
        aleatoric: The part of ``total`` that more data would not remove: mean entropy, or mean noise
            variance.
        epistemic: The part that more data would: mutual information of target and weights, or variance of the
            means.
        variation_ratio: Share of draws that do not vote for the winning class (classes only).
        num_samples: Number K of posterior draws.
        likelihood: The likelihood that gave the outputs their meaning.
        draws: What each draw predicts, ``[K, *mean.shape]``: kept if asked for, or if :meth:`log_prob` needs
            it and it fits the budget; else None.
        noise: Noise variance of each draw, ``[K, *mean.shape]``, beside ``draws`` for real-valued targets.
        targets: The targets that came with the loader, if any.
    """

    mean: Tensor
    total: Tensor
    aleatoric: Tensor
    epistemic: Tensor
    num_samples: int
    likelihood: Likelihood = field(repr=False)
    variation_ratio: Tensor | None = None
    draws: Tensor | None = field(default=None, repr=False)
    noise: Tensor | None = field(default=None, repr=False)
    targets: Tensor | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.mean)

    @property
    def std(self) -> Tensor:
        """Predictive standard deviation (real-valued targets)."""
        self._refuse_classes("std")
        return self.total.sqrt()

    @property
    def predicted(self) -> Tensor:
        """The most probable class, or the predictive mean."""
        return self.mean.argmax(-1) if self.likelihood.is_discrete else self.mean

    @property
    def least_confidence(self) -> Tensor:
        """One minus the largest mean probability (classes)."""
        if not self.likelihood.is_discrete:
            raise ValueError("least_confidence: it is defined for classes; use total or std for real-valued targets.")
        return 1.0 - self.mean.max(-1).values

    def log_prob(self, y: Tensor) -> Tensor:
        r"""Log density of targets under the predictive *mixture*, :math:`\log \frac1K \sum_k p(y \mid w_k)`.

        Args:
            y: Targets; for classes labels of ``mean.shape[:-1]``, else ``mean.shape``.

        Returns:
            Nats, one per input (for classes: per label). Labels that the likelihood ignores have 0, so that sums leave
            them out; for a mean divide by the number of the others.

        Raises:
            ValueError: If ``y`` has the wrong shape or is no label, or the draws it needs were not kept.
        """
        expected = self.mean.shape[:-1] if self.likelihood.is_discrete else self.mean.shape
        if y.shape != expected:
            raise ValueError(f"y: expected targets of shape {tuple(expected)}, got {tuple(y.shape)}.")
        if self.likelihood.is_discrete:
            ignored = None if self.likelihood.ignore_index is None else y == self.likelihood.ignore_index
            labels = self._labels(y if ignored is None else y.masked_fill(ignored, 0))
            log_probs = self.mean.gather(-1, labels.unsqueeze(-1)).squeeze(-1).log()
            return log_probs if ignored is None else log_probs.masked_fill(ignored.to(log_probs.device), 0.0)
        draws, noise = self._kept("log_prob")
        by_draw = self.likelihood.from_moments(draws, noise).log_prob(y.to(draws))
        return by_draw.reshape(self.num_samples, len(y), -1).sum(-1).logsumexp(0) - math.log(self.num_samples)

    def sample(self) -> Tensor:
        """K targets from the predictive mixture, ``[K, N, …]``; real values one from each posterior draw."""
        if self.likelihood.is_discrete:
            return torch.distributions.Categorical(self.mean).sample((self.num_samples,))
        return self.likelihood.from_moments(*self._kept("sample")).sample()

    def interval(self, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """Central predictive interval from one target per draw (real-valued targets).

        Raises:
            ValueError: If ``level`` is not between 0 and 1.
        """
        self._refuse_classes("interval")
        if not 0 < level < 1:
            raise ValueError(f"level: expected a coverage between 0 and 1, got {level}.")
        targets = self.sample()
        tail = (1 - level) / 2
        return targets.quantile(tail, 0), targets.quantile(1 - tail, 0)

    def _labels(self, y: Tensor) -> Tensor:
        labels = y.long().to(self.mean.device)
        classes = self.mean.shape[-1]
        if bool(((labels != y.to(labels.device)) | (labels < 0) | (labels >= classes)).any()):
            raise ValueError(
                f"y: expected labels from 0 to {classes - 1}, got values from {y.min().item():.4g} to "
                f"{y.max().item():.4g}."
            )
        return labels

    def _refuse_classes(self, name: str) -> None:
        if self.likelihood.is_discrete:
            raise ValueError(f"{name}: it is defined for real-valued targets; classes have mean and entropies.")

    def _kept(self, name: str) -> tuple[Tensor, Tensor]:
        if self.draws is None or self.noise is None:
            raise ValueError(
                f"{name}: it needs what each of the {self.num_samples} draws predicts, which did not fit "
                "max_bytes; raise "
                "max_bytes, pass return_draws=True, or use predict_batches."
            )
        return self.draws, self.noise
