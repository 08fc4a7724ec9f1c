"""Running reductions of what single posterior draws predict."""

from __future__ import annotations

import torch
from torch import Tensor

from pyrobnn.likelihoods import Likelihood
from pyrobnn.prediction.result import Prediction

__all__ = ["Moments", "Probabilities"]


class Probabilities:
    """Sums of class probabilities, of their entropies, and of votes.

    Args:
        num_samples: Number of draws to come.
        keep: Keep each draw's probabilities.
        max_bytes: Not used; the sums have the size of the result.
    """

    def __init__(self, num_samples: int, *, keep: bool, max_bytes: int) -> None:
        self.num_samples = num_samples
        self.keep = keep
        self.kept: list[Tensor] = []
        self.sum: Tensor | None = None

    def add(self, probabilities: Tensor, _: Tensor | None = None) -> None:
        """Adds draws ``[k, N, …, C]``."""
        entropy = torch.special.entr(probabilities).sum((0, -1))
        total = probabilities.sum(0)
        votes = torch.zeros_like(total)
        for vote in probabilities.argmax(-1):
            votes.scatter_add_(-1, vote.unsqueeze(-1), votes.new_ones(()).expand_as(vote.unsqueeze(-1)))
        if self.sum is None:
            self.sum, self.entropy, self.votes = total, entropy, votes
        else:
            self.sum += total
            self.entropy += entropy
            self.votes += votes
        if self.keep:
            self.kept.append(probabilities)

    def finish(self, likelihood: Likelihood, targets: Tensor | None) -> Prediction:
        """The prediction."""
        assert self.sum is not None
        mean = self.sum / self.num_samples
        total = torch.special.entr(mean).sum(-1)
        aleatoric = self.entropy / self.num_samples
        return Prediction(
            mean=mean,
            total=total,
            aleatoric=aleatoric,
            epistemic=(total - aleatoric).clamp_min(0.0),  # rounding alone can make it negative (Jensen)
            variation_ratio=1.0 - self.votes.max(-1).values / self.num_samples,
            num_samples=self.num_samples,
            likelihood=likelihood,
            draws=torch.cat(self.kept) if self.keep else None,
            targets=targets,
        )


class Moments:
    """Running mean and variance of the draws' means (Chan, Golub & LeVeque 1979), and sum of their variances.

    Args:
        num_samples: Number of draws to come.
        keep: Keep each draw's moments whatever their size.
        max_bytes: Keep them anyway below a quarter of this.
    """

    def __init__(self, num_samples: int, *, keep: bool, max_bytes: int) -> None:
        self.num_samples = num_samples
        self.keep = keep
        self.max_bytes = max_bytes
        self.kept: list[tuple[Tensor, Tensor]] | None = []
        self.count = 0

    def add(self, means: Tensor, variances: Tensor) -> None:
        """Adds draws: means and noise variances, ``[k, N, …]`` each."""
        size, mean = len(means), means.mean(0)
        squares = (means - mean).square().sum(0)
        if self.count == 0:
            self.mean, self.squares, self.noise = mean, squares, variances.sum(0)
        else:
            shift = mean - self.mean
            total = self.count + size
            self.mean = self.mean + shift * (size / total)
            self.squares = self.squares + squares + shift.square() * (self.count * size / total)
            self.noise = self.noise + variances.sum(0)
        self.count += size
        if self.kept is not None:
            self.kept.append((means, variances))
            per_draw = 2 * means[0].numel() * means.element_size()
            if not self.keep and per_draw * self.num_samples > self.max_bytes / 4:
                self.kept = None

    def finish(self, likelihood: Likelihood, targets: Tensor | None) -> Prediction:
        """The prediction."""
        epistemic, aleatoric = self.squares / self.count, self.noise / self.count
        draws, noise = (torch.cat(parts) for parts in zip(*self.kept, strict=True)) if self.kept else (None, None)
        return Prediction(
            mean=self.mean,
            total=epistemic + aleatoric,
            aleatoric=aleatoric,
            epistemic=epistemic,
            num_samples=self.count,
            likelihood=likelihood,
            draws=draws,
            noise=noise,
            targets=targets,
        )
