r"""Reductions: from the outputs under single posterior draws to a prediction, one chunk of draws at a time.

Of classes the log probabilities of K draws become mean probabilities, entropies and votes,

.. math:: \underbrace{H[\bar p]}_{\text{total}} = \underbrace{\tfrac1K \sum_k H[p_k]}_{\text{aleatoric}}
          + \underbrace{I[y; w]}_{\text{epistemic}}, \qquad \bar p = \tfrac1K \sum_k p_k;

of other observations the parameters of K distributions become moments by the law of total variance,

.. math:: \mathrm{Var}[y] = \tfrac1K \sum_k \sigma_k^2 + \mathrm{Var}_k[\mu_k]

(Depeweg et al. 2018). Sums are in single precision at least, also for networks in half precision.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from pyrobnn.core.moments import RunningMoments
from pyrobnn.model.likelihoods.moment_prediction import MomentPrediction
from pyrobnn.model.likelihoods.predictions import ClassPrediction, Prediction

if TYPE_CHECKING:
    from pyrobnn.model.likelihoods.base import Likelihood
    from pyrobnn.model.likelihoods.classes import ClassLikelihood

__all__ = ["ClassReduction", "KeptDraws", "MomentReduction", "Reduction", "widened"]


class Reduction(Protocol):
    """Accumulates draws: :meth:`summary` for each draw, :meth:`add` for each chunk, :meth:`finish` at the end."""

    def summary(self, outputs: Tensor) -> dict[str, Tensor]:
        """What is needed of one draw at ``B`` inputs: tensors ``[B, ...]`` by name, which :meth:`add` receives stacked.

        It runs with the draw's values substituted, and may run under :func:`torch.func.vmap`.

        Args:
            outputs: The network's outputs ``[B, ...]``.
        """
        ...

    def add(self, summary: Mapping[str, Tensor]) -> None:
        """Adds the summaries of ``k`` further draws at all inputs, ``[k, N, ...]``."""
        ...

    def finish(self, targets: Tensor | None) -> Prediction:
        """The prediction of the draws so far.

        Args:
            targets: The targets of these inputs, if known; they become ``Prediction.targets``.
        """
        ...


def widened(outputs: Tensor) -> Tensor:
    """Half-precision outputs in single precision: sums over draws would lose their digits."""
    return outputs.float() if outputs.dtype in (torch.float16, torch.bfloat16) else outputs


class KeptDraws:
    """The summaries of all K draws, collected chunk by chunk; dropped if they do not fit a budget.

    Args:
        num_samples: Number K of draws to come.
        max_bytes: Keep them up to this size; whatever their size if None.
    """

    def __init__(self, num_samples: int, max_bytes: float | None) -> None:
        self.num_samples, self.max_bytes = num_samples, max_bytes
        self._chunks: list[dict[str, Tensor]] | None = []

    def add(self, chunk: Mapping[str, Tensor]) -> None:
        """Adds ``k`` further draws, ``{name: [k, N, ...]}``."""
        if self._chunks is None:
            return
        self._chunks.append(dict(chunk))
        bytes_per_draw = sum(tensor[0].numel() * tensor.element_size() for tensor in chunk.values())
        if self.max_bytes is not None and bytes_per_draw * self.num_samples > self.max_bytes:
            self._chunks = None

    def joined(self) -> dict[str, Tensor] | None:
        """All draws, ``{name: [K, N, ...]}``, or None if they did not fit."""
        if not self._chunks:
            return None
        return {name: torch.cat([chunk[name] for chunk in self._chunks]) for name in self._chunks[0]}


class ClassReduction:
    """Log-sum-exp of the draws' class log probabilities, sums of their entropies, and votes.

    Args:
        likelihood: The likelihood of classes.
        num_samples: Number of draws to come.
        keep: Keep each draw's log probabilities.
        max_bytes: If each input has several labels, keep log probabilities of a quarter of this or less anyway:
            ``sample`` needs them to draw the labels of an input jointly.
    """

    def __init__(self, likelihood: ClassLikelihood, num_samples: int, *, keep: bool, max_bytes: int) -> None:
        self.likelihood, self.num_samples = likelihood, num_samples
        self.keep, self.max_bytes = keep, max_bytes
        self.kept: KeptDraws | None = None
        self.count = 0
        self.peak = self.sum = self.entropy = self.votes = self.one = torch.empty(0)  # until the first draw

    def summary(self, outputs: Tensor) -> dict[str, Tensor]:
        """The log probabilities ``[B, …, C]``."""
        return {"log_probs": self.likelihood.log_probabilities(widened(outputs))}

    def add(self, summary: Mapping[str, Tensor]) -> None:
        """Adds draws ``[k, N, …, C]``."""
        given = summary["log_probs"]
        if self.count == 0:
            self._start(given[0])
        self.count += len(given)
        if self.kept is not None:
            self.kept.add(summary)
        # The largest log probability so far is taken out of the sum, so that no probability is too small to count.
        log_probs = given.clamp_min(torch.finfo(given.dtype).min)  # minus infinity would give 0 * inf
        peak = torch.maximum(self.peak, log_probs.amax(0))
        scaled = (log_probs - peak).exp_()
        self.sum = self.sum.mul_((self.peak - peak).exp_()).add_(scaled.sum(0))
        self.peak = peak
        probs = scaled.mul_(peak.exp())
        self.entropy -= probs.mul_(log_probs).sum((0, -1))
        chosen = given.argmax(-1).movedim(0, -1)  # [N, …, k]: one call adds the votes of all k draws
        self.votes.scatter_add_(-1, chosen, self.one.expand_as(chosen))

    def _start(self, like: Tensor) -> None:
        self.peak = torch.full_like(like, torch.finfo(like.dtype).min)
        self.sum, self.votes, self.one = torch.zeros_like(like), torch.zeros_like(like), like.new_ones(())
        self.entropy = like.new_zeros(like.shape[:-1])
        if self.keep or like.dim() > 2:
            self.kept = KeptDraws(self.num_samples, None if self.keep else self.max_bytes / 4)

    def finish(self, targets: Tensor | None) -> ClassPrediction:
        """The prediction."""
        mean = self.sum / self.count * self.peak.exp()
        total = torch.special.entr(mean).sum(-1)
        aleatoric = self.entropy / self.count
        log_mean = self.sum.log() - math.log(self.count) + self.peak
        return ClassPrediction(
            mean=mean,
            total=total,
            aleatoric=aleatoric,
            epistemic=(total - aleatoric).clamp_min(0.0),  # rounding alone can make it negative (Jensen)
            variation_ratio=1.0 - self.votes.max(-1).values / self.count,
            num_samples=self.count,
            likelihood=self.likelihood,
            parameters=None if self.kept is None else self.kept.joined(),
            targets=targets,
            log_mean=log_mean.masked_fill(self.peak <= torch.finfo(mean.dtype).min, -math.inf),
        )


class MomentReduction:
    """Running mean and variance of the draws' means, and the sum of their variances.

    Args:
        likelihood: The likelihood, whose :meth:`~pyrobnn.likelihoods.Likelihood.distribution` has mean and variance.
        num_samples: Number of draws to come.
        keep: Keep each draw's parameters whatever their size.
        max_bytes: Parameters of a quarter of this or less are kept even if ``keep`` is False.
    """

    def __init__(self, likelihood: Likelihood, num_samples: int, *, keep: bool, max_bytes: int) -> None:
        self.likelihood = likelihood
        self.kept = KeptDraws(num_samples, None if keep else max_bytes / 4)
        self.means = RunningMoments()
        self.noise: Tensor | float = 0.0  # sum of variances

    def summary(self, outputs: Tensor) -> dict[str, Tensor]:
        """The distribution's parameters."""
        found = self.likelihood.parameters_of(widened(outputs))
        # Widened again: parameters that are not made of the outputs, such as a scale, may be in half precision.
        return {name: widened(value) for name, value in found.items()}

    def add(self, summary: Mapping[str, Tensor]) -> None:
        """Adds draws of the parameters, ``[k, N, …]`` each."""
        self.likelihood.notice(summary)
        found = self.likelihood.distribution(summary)
        self.means.add(found.mean)
        self.noise = self.noise + found.variance.sum(0)
        self.kept.add(summary)

    def finish(self, targets: Tensor | None) -> MomentPrediction:
        """The prediction."""
        count, epistemic = self.means.count, self.means.variance(correction=0)
        aleatoric = torch.as_tensor(self.noise / count)
        return MomentPrediction(
            mean=self.means.mean,
            total=epistemic + aleatoric,
            aleatoric=aleatoric,
            epistemic=epistemic,
            num_samples=count,
            likelihood=self.likelihood,
            parameters=self.kept.joined(),
            targets=targets,
        )
