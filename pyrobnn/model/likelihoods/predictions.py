"""The posterior predictive at given inputs, with its uncertainty decomposed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pyrobnn.model.likelihoods.base import Likelihood

__all__ = ["ClassPrediction", "MomentPrediction", "Prediction", "check_level"]


@dataclass
class Prediction:
    """The posterior predictive at N inputs; tensors have the N inputs first, those of K draws second.

    Subclasses: :class:`ClassPrediction`, :class:`MomentPrediction`, :class:`~pyrobnn.prediction.GaussianPrediction`, or
    one in the file of a likelihood that has its own :meth:`~pyrobnn.likelihoods.Likelihood.reduction`. A field whose
    metadata has ``rows`` holds the N inputs at that dimension (0 by default); :meth:`join` concatenates there.

    Attributes:
        mean: The predictive mean ``[N, …]``; of classes their probabilities ``[N, …, C]``.
        total: Uncertainty of a target (entropy in nats, or variance in the target's units squared).
        aleatoric: The part of ``total`` that more data would not remove.
        epistemic: The part that more data would.
        num_samples: Number K of posterior draws.
        likelihood: The likelihood.
        variation_ratio: Share of draws that do not vote for the winning class (classes only, else None).
        parameters: Parameters of the likelihood's distribution under each draw by name, ``[K, N, …]``, if they were
            requested, or if a method below needs them and they fit the budget; else None.
        targets: The targets that came with the loader, if any.
    """

    mean: Tensor
    total: Tensor
    aleatoric: Tensor
    epistemic: Tensor
    num_samples: int
    likelihood: Likelihood = field(repr=False)
    variation_ratio: Tensor | None = None
    parameters: dict[str, Tensor] | None = field(default=None, repr=False, metadata={"rows": 1})
    targets: Tensor | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.mean)

    @property
    def draws(self) -> Tensor | None:
        """What each draw predicts, ``[K, *mean.shape]``, or None if it was not kept."""
        raise NotImplementedError

    @property
    def predicted(self) -> Tensor:
        """The best single guess ``[N, …]``: the mean, or the most probable class."""
        return self.mean

    @property
    def std(self) -> Tensor:
        """Predictive standard deviation (real-valued targets)."""
        raise ValueError("std: it is defined for real-valued targets; classes have mean and entropies.")

    @property
    def least_confidence(self) -> Tensor:
        """One minus the largest mean probability (classes)."""
        raise ValueError("least_confidence: it is defined for classes; use total or std for real-valued targets.")

    def log_prob(self, y: Tensor) -> Tensor:
        r"""Log density of targets under the predictive *mixture*, :math:`\log \frac1K \sum_k p(y \mid w_k)`.

        Args:
            y: Targets of the shape of ``predicted``.

        Returns:
            Nats, one per input (for classes: per label). Targets that were not observed (ignored labels, missing
            values) have 0, so that sums leave them out; for a mean divide by the number of observed targets.

        Raises:
            ValueError: If ``y`` has the wrong shape or is no label, or the draws it needs were not kept.
        """
        raise NotImplementedError

    def sample(self) -> Tensor:
        """K targets from the predictive mixture, ``[K, N, …]``, one from each posterior draw.

        Raises:
            ValueError: If the draws it needs were not kept.
        """
        raise NotImplementedError

    def interval(self, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """Central predictive interval (real-valued targets): from one target per draw, if there is no closed form.

        Raises:
            ValueError: If ``level`` is not between 0 and 1.
        """
        raise ValueError("interval: it is defined for real-valued targets; classes have mean and entropies.")

    def rescaled(self, loc: Tensor, scale: Tensor) -> Prediction:
        """The prediction of ``loc + scale · y`` in place of y (real-valued targets).

        Args:
            loc: The shift, broadcastable to a datum's targets.
            scale: The positive factor, likewise.

        Raises:
            ValueError: If targets are classes, or their distribution has no location and scale.
        """
        raise ValueError("rescaled: it is defined for real-valued targets; classes have no units.")

    # ------------------------------------------------------------------------------------- what predict() needs

    @property
    def kept_bytes(self) -> int:
        """Size of what was kept of each draw."""
        return sum(tensor.nbytes for tensor in (self.parameters or {}).values())

    def without_draws(self) -> Prediction:
        """The same without what was kept of each draw."""
        return replace(self, parameters=None)

    @staticmethod
    def join(parts: Sequence[Prediction]) -> Prediction:
        """One prediction of the inputs of all ``parts``; a field that is None in one of them is None."""
        first = parts[0]
        changes = {
            item.name: _joined([getattr(part, item.name) for part in parts], item.metadata.get("rows", 0))
            for item in fields(first)
        }
        return replace(first, **changes)

    def _check(self, y: Tensor, expected: torch.Size) -> None:
        if y.shape != expected:
            raise ValueError(f"y: expected targets of shape {tuple(expected)}, got {tuple(y.shape)}.")

    def _kept(self, name: str) -> dict[str, Tensor]:
        if self.parameters is None:
            raise ValueError(
                f"{name}: it needs what each of the {self.num_samples} draws predicts, which did not fit max_bytes; "
                "raise max_bytes, pass return_draws=True, or use predict_batches."
            )
        return self.parameters


def _joined(values: list[Any], dim: int) -> Any:
    if any(value is None for value in values):
        return None
    if isinstance(values[0], dict):
        return {name: _joined([value[name] for value in values], dim) for name in values[0]}
    return torch.cat(values, dim) if isinstance(values[0], Tensor) else values[0]


def check_level(level: float) -> None:
    """Refuses what is no coverage of an interval.

    Raises:
        ValueError: If it is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level: expected a coverage between 0 and 1, got {level}.")


@dataclass
class ClassPrediction(Prediction):
    """Probabilities of classes.

    Attributes:
        mean: Class probabilities ``[N, …, C]`` (for binary targets the two of them).
        total: Entropy of the mean probabilities, in nats.
        aleatoric: Mean entropy of the draws' probabilities.
        epistemic: Mutual information of target and weights.
        log_mean: ``log mean`` of probabilities that may be too small to be represented; None takes the logarithm.
    """

    log_mean: Tensor | None = field(default=None, repr=False)

    @property
    def draws(self) -> Tensor | None:
        """Probabilities under each draw ``[K, N, …, C]``, or None if they were not kept."""
        return None if self.parameters is None else self.parameters["log_probs"].exp()

    @property
    def predicted(self) -> Tensor:
        """The most probable class ``[N, …]``."""
        return self.mean.argmax(-1)

    @property
    def least_confidence(self) -> Tensor:
        """One minus the largest mean probability."""
        return 1.0 - self.mean.max(-1).values

    def log_prob(self, y: Tensor) -> Tensor:
        """Log probability of labels ``[N, …]`` under the mean probabilities, one per label; the draws are not needed.

        Weights of classes count in training, not here.
        """
        self._check(y, self.mean.shape[:-1])
        y = y.to(self.mean.device)
        observed = self.likelihood.observed_mask(y)
        labels = self._labels(y if observed is None else y.masked_fill(~observed, 0))
        log_mean = self.mean.log() if self.log_mean is None else self.log_mean
        log_probs = log_mean.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
        return log_probs if observed is None else log_probs.masked_fill(~observed, 0.0)

    def sample(self) -> Tensor:
        """K labels of each input ``[K, N, …]``, one from each posterior draw, so that labels are drawn jointly.

        If the draws were not kept and each input has one label, labels are drawn from the mean probabilities,
        independently for each input.

        Raises:
            ValueError: If inputs have several labels and the draws were not kept.
        """
        if self.parameters is None and self.mean.dim() == 2:
            return torch.distributions.Categorical(self.mean).sample((self.num_samples,))
        return torch.distributions.Categorical(logits=self._kept("sample")["log_probs"]).sample()

    def _labels(self, y: Tensor) -> Tensor:
        labels = y.long()
        classes = self.mean.shape[-1]
        if bool(((labels != y) | (labels < 0) | (labels >= classes)).any()):
            raise ValueError(
                f"y: expected labels from 0 to {classes - 1}, got values from {y.min().item():.4g} to "
                f"{y.max().item():.4g}."
            )
        return labels


@dataclass
class MomentPrediction(Prediction):
    """Mean and variance of a mixture of the likelihood's distributions, one of each draw.

    Attributes:
        mean: Predictive mean ``[N, …]``.
        total: Predictive variance, in the target's units squared.
        aleatoric: Mean of the draws' variances.
        epistemic: Variance of the draws' means.
    """

    @property
    def draws(self) -> Tensor | None:
        """Means under each draw ``[K, N, …]``, or None if they were not kept."""
        return None if self.parameters is None else self.likelihood.distribution(self.parameters).mean

    @property
    def noise(self) -> Tensor | None:
        """Variances under each draw ``[K, N, …]``, or None if they were not kept."""
        return None if self.parameters is None else self.likelihood.distribution(self.parameters).variance

    @property
    def std(self) -> Tensor:
        """Predictive standard deviation ``[N, …]``."""
        return self.total.sqrt()

    def log_prob(self, y: Tensor) -> Tensor:
        """Log density of each input's targets ``[N, …]`` under the mixture over draws, ``[N]``, in nats."""
        self._check(y, self.mean.shape)
        by_draw = self.likelihood.observation(self._kept("log_prob")).log_prob(y.to(self.mean))
        return by_draw.reshape(self.num_samples, len(y), -1).sum(-1).logsumexp(0) - math.log(self.num_samples)

    def sample(self) -> Tensor:
        """K targets of each input ``[K, N, …]``, one from each posterior draw."""
        return self.likelihood.distribution(self._kept("sample")).sample()

    def rescaled(self, loc: Tensor, scale: Tensor) -> MomentPrediction:
        """The prediction of ``loc + scale · y``, everything in the new units."""
        square = scale.square()
        return replace(
            self,
            mean=loc + scale * self.mean,
            total=square * self.total,
            aleatoric=square * self.aleatoric,
            epistemic=square * self.epistemic,
            parameters=None if self.parameters is None else self.likelihood.rescaled(self.parameters, loc, scale),
            targets=None if self.targets is None else loc + scale * self.targets,
        )

    def interval(self, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """Central predictive interval ``[N, …]`` twice, from one target per draw."""
        check_level(level)
        targets, tail = self.sample(), (1 - level) / 2
        return targets.quantile(tail, 0), targets.quantile(1 - tail, 0)
