"""The posterior predictive at given inputs, with its uncertainty decomposed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from pyrobnn.model.likelihoods.draw_indices import draw_indices
from pyrobnn.model.likelihoods.row_index import check_row_index

if TYPE_CHECKING:
    from pyrobnn.model.likelihoods.base import Likelihood

__all__ = ["ClassPrediction", "Prediction"]


@dataclass
class Prediction:
    """The posterior predictive at N inputs; tensors have the N inputs first, those of K draws second.

    Subclasses: :class:`ClassPrediction`, :class:`~pyrobnn.prediction.MomentPrediction`,
    :class:`~pyrobnn.prediction.GaussianPrediction`, or one in the file of a likelihood that has its own
    :meth:`~pyrobnn.likelihoods.Likelihood.reduction`. A field whose metadata has ``rows`` holds the N inputs at that
    dimension (0 by default); :meth:`join` concatenates there.

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
        is_of_training_data: Whether the posterior is known to be trained on some inputs; calibration then refuses them.
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
    is_of_training_data: bool = field(default=False, repr=False)

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
    def target_shape(self) -> torch.Size:
        """The shape of targets at these inputs, ``[N, …]``."""
        return self.mean.shape

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

    def sample(self, num_samples: int | None = None) -> Tensor:
        """``n`` targets of each input from the predictive mixture, ``[n, N, …]``; each ``[N, …]`` is of one draw.

        Args:
            num_samples: Number n; None for one of each of the K draws, in their order. Otherwise every draw is used
                equally often, and a remainder of n / K is a random choice of them.

        Raises:
            ValueError: If the draws it needs were not kept, or ``num_samples`` is no positive int.
        """
        raise NotImplementedError

    def cdf(self, y: Tensor) -> Tensor:
        """Probability of at most ``y``, of each target alone (real-valued targets), under the mixture over draws."""
        raise ValueError("cdf: it is defined for real-valued targets; classes have mean and entropies.")

    def quantile(self, q: float | Sequence[float] | Tensor) -> Tensor:
        """Quantiles of each target alone (real-valued targets) under the mixture over draws."""
        raise ValueError("quantile: it is defined for real-valued targets; classes have mean and entropies.")

    def traced_quantile(self, levels: Sequence[float], dtype: torch.dtype) -> Tensor:
        """:meth:`quantile` ``[Q, N, …]`` as exported programs compute it, in a dtype and without decisions."""
        raise ValueError("quantiles: they are defined for real-valued targets; classes have mean and entropies.")

    def crps(self, y: Tensor) -> Tensor:
        """Continuous ranked probability score of each target alone (real-valued targets)."""
        raise ValueError("crps: it is defined for real-valued targets; score classes by log_prob.")

    def interval(self, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """Central predictive interval of each target alone (real-valued targets)."""
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
        changes["is_of_training_data"] = any(part.is_of_training_data for part in parts)
        return replace(first, **changes)

    def rows(self, index: slice | Tensor) -> Self:
        """The prediction of some of the inputs.

        Args:
            index: A slice of the N inputs, their numbers, or a mask ``[N]``.

        Raises:
            TypeError: If it is none of these.
            ValueError: If it selects none, a mask is not ``[N]``, or there is no input of such a number.
        """
        check_row_index(index, len(self))
        changes = {i.name: _selected(getattr(self, i.name), index, i.metadata.get("rows", 0)) for i in fields(self)}
        return replace(self, **changes)

    def _check(self, y: Tensor, expected: torch.Size) -> None:
        if not isinstance(y, Tensor) or y.shape != expected:
            given = tuple(y.shape) if isinstance(y, Tensor) else y
            raise ValueError(f"y: expected targets of shape {tuple(expected)}, got {given}.")

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
    if isinstance(values[0], Prediction):
        return Prediction.join(values)
    if isinstance(values[0], dict):
        return {name: _joined([value[name] for value in values], dim) for name in values[0]}
    return torch.cat(values, dim) if isinstance(values[0], Tensor) else values[0]


def _selected(value: Any, index: slice | Tensor, dim: int) -> Any:
    if isinstance(value, Prediction):
        return value.rows(index)
    if isinstance(value, dict):
        return {name: _selected(entry, index, dim) for name, entry in value.items()}
    return value[(slice(None),) * dim + (index,)] if isinstance(value, Tensor) else value


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

    def of_mean(self, log_mean: Tensor, share: Tensor) -> ClassPrediction:
        """A prediction of other mean probabilities, which are no mixture of known draws.

        Args:
            log_mean: Log probabilities ``[N, …, C]``.
            share: The epistemic share of their entropy ``[N, …]``.
        """
        mean = log_mean.exp()
        total = torch.special.entr(mean).sum(-1)
        epistemic = share * total
        kept = {item.name: getattr(self, item.name) for item in fields(ClassPrediction)}
        changed = {"mean": mean, "total": total, "aleatoric": total - epistemic, "epistemic": epistemic}
        return ClassPrediction(**{**kept, **changed, "parameters": None, "log_mean": log_mean})

    @property
    def draws(self) -> Tensor | None:
        """Probabilities under each draw ``[K, N, …, C]``, or None if they were not kept."""
        return None if self.parameters is None else self.parameters["log_probs"].exp()

    @property
    def predicted(self) -> Tensor:
        """The most probable class ``[N, …]``."""
        return self.mean.argmax(-1)

    @property
    def target_shape(self) -> torch.Size:
        """One label for each input, ``[N, …]``."""
        return self.mean.shape[:-1]

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

    def sample(self, num_samples: int | None = None) -> Tensor:
        """``n`` labels of each input ``[n, N, …]`` (by default K), so that those of one draw are drawn jointly.

        If the draws were not kept and each input has one label, labels are drawn from the mean probabilities,
        independently for each input.

        Raises:
            ValueError: If inputs have several labels and the draws were not kept, or ``num_samples`` is no positive
                int.
        """
        index = draw_indices(num_samples, self.num_samples, self.mean.device)
        if self.parameters is None and self.mean.dim() == 2:
            return torch.distributions.Categorical(self.mean).sample((num_samples or self.num_samples,))
        log_probs = self._kept("sample")["log_probs"]
        return torch.distributions.Categorical(logits=log_probs if index is None else log_probs[index]).sample()

    def _labels(self, y: Tensor) -> Tensor:
        labels = y.long()
        classes = self.mean.shape[-1]
        if bool(((labels != y) | (labels < 0) | (labels >= classes)).any()):
            raise ValueError(
                f"y: expected labels from 0 to {classes - 1}, got values from {y.min().item():.4g} to "
                f"{y.max().item():.4g}."
            )
        return labels
