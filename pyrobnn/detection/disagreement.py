r"""Scores that only a posterior has: how much its draws disagree.

* mutual information :math:`H[\bar p] - \tfrac1K \sum_k H[p_k]`;
* vote share :math:`1 - \max_c (\text{votes for } c) / K`;
* model variance :math:`\tfrac1K \sum_k \|p_k\|^2 - \|\bar p\|^2`.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from pyrobnn.core.explanations import explained
from pyrobnn.detection.base import Detector, Form
from pyrobnn.detection.network_outputs import NetworkOutputs

__all__ = ["ModelVariance", "MutualInformation", "VoteShare"]


class Disagreement(Detector):
    """A detector that compares draws, so that it has one form."""

    forms: tuple[Form, ...] = ("averaged",)

    @abstractmethod
    def score(self, outputs: NetworkOutputs) -> Tensor:
        """The score ``[N]``."""

    @torch.no_grad()
    def scores(self, outputs: NetworkOutputs, forms: tuple[Form, ...]) -> dict[Form, Tensor]:
        """The score, if it is wanted."""
        return {"averaged": self.score(outputs)} if "averaged" in forms else {}


@explained
class MutualInformation(Disagreement):
    """The mutual information of label and weights, in nats."""

    name = "mutual_information"

    def score(self, outputs: NetworkOutputs) -> Tensor:
        """The entropy of the mean minus the mean entropy, at least 0."""
        total = torch.special.entr(outputs.log_mean.exp()).sum(-1)
        aleatoric = torch.special.entr(outputs.log_probs.exp()).sum(-1).mean(0)
        return (total - aleatoric).clamp_min(0.0)  # rounding alone can make it negative (Jensen)


@explained
class VoteShare(Disagreement):
    """The share of draws that do not vote for the winning class."""

    name = "vote_share"

    def score(self, outputs: NetworkOutputs) -> Tensor:
        """One minus the largest share of votes."""
        votes = torch.nn.functional.one_hot(outputs.logits.argmax(-1), outputs.logits.shape[-1])
        return 1.0 - votes.to(outputs.logits.dtype).mean(0).amax(-1)


@explained
class ModelVariance(Disagreement):
    """The variance of the probabilities over draws, summed over classes."""

    name = "model_variance"

    def score(self, outputs: NetworkOutputs) -> Tensor:
        """The mean squared distance from the mean probabilities."""
        return (outputs.log_probs.exp() - outputs.log_mean.exp()).square().sum(-1).mean(0)
