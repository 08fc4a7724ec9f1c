r"""Nonconformity scores of classes: how strange each label would be, given the averaged probabilities.

With classes in descending order of probability, o(y) the rank of y from 1, and u uniform (1 if not randomized),

.. math::
    \mathrm{LAC} &= 1 - p_y \\
    \mathrm{APS} &= \sum_{o(j) < o(y)} p_j + u\, p_y \\
    \mathrm{RAPS} &= \mathrm{APS} + \lambda\, (o(y) - k)_+ \\
    \mathrm{SAPS} &= u\, p_{max} \text{ if } o(y) = 1, \text{ else } p_{max} + (o(y) - 2 + u)\, \lambda

LAC has the smallest sets on average (Sadinle et al. 2019); APS adapts to the input (Romano et al. 2020); RAPS and SAPS
have smaller sets than APS where there are many classes (Angelopoulos et al. 2021, Huang et al. 2024). Any score gives
the coverage; a good one gives small sets.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyrobnn.core.arguments import check_int, check_non_negative
from pyrobnn.core.explanations import explained

__all__ = ["APS", "LAC", "RAPS", "SAPS", "ClassScore"]


class ClassScore:
    """Base class: a function of probabilities ``[N, C]`` and uniform numbers ``[N, 1]`` to scores ``[N, C]``."""

    def __call__(self, probs: Tensor, u: Tensor) -> Tensor:
        """The score of each label ``[N, C]``, larger for stranger ones.

        Args:
            probs: Class probabilities ``[N, C]``.
            u: Uniform numbers ``[N, 1]``, ones if not randomized.
        """
        raise NotImplementedError


class LAC(ClassScore):
    """One minus the label's probability."""

    def __call__(self, probs: Tensor, u: Tensor) -> Tensor:
        """``[N, C]``."""
        return 1 - probs


class APS(ClassScore):
    """The probability of all labels that are more probable, and of the label itself."""

    def __call__(self, probs: Tensor, u: Tensor) -> Tensor:
        """``[N, C]``."""
        ordered, index = probs.sort(dim=-1, descending=True, stable=True)
        return torch.zeros_like(probs).scatter(-1, index, ordered.cumsum(-1) - (1 - u) * ordered)


@explained
class RAPS(APS):
    """APS and a penalty for ranks beyond the ``rank``-th.

    Args:
        penalty: The penalty λ for each rank.
        rank: The rank k up to which there is none.

    Raises:
        ValueError: If ``penalty`` is negative or ``rank`` no int of at least 0.
    """

    def __init__(self, penalty: float = 0.01, rank: int = 1) -> None:
        check_non_negative("penalty", penalty)
        check_int("rank", rank, 0)
        self.penalty, self.rank = penalty, rank

    def __call__(self, probs: Tensor, u: Tensor) -> Tensor:
        """``[N, C]``."""
        return super().__call__(probs, u) + self.penalty * (_ranks(probs) - self.rank).clamp_min(0)


@explained
class SAPS(ClassScore):
    """The largest probability and the rank; other probabilities, which are mostly noise, do not enter.

    Args:
        weight: The weight λ of each rank.

    Raises:
        ValueError: If ``weight`` is negative.
    """

    def __init__(self, weight: float = 0.1) -> None:
        check_non_negative("weight", weight)
        self.weight = weight

    def __call__(self, probs: Tensor, u: Tensor) -> Tensor:
        """``[N, C]``."""
        ranks, largest = _ranks(probs), probs.amax(-1, keepdim=True)
        return torch.where(ranks == 1, u * largest, largest + (ranks - 2 + u) * self.weight)


def _ranks(probs: Tensor) -> Tensor:
    return probs.sort(dim=-1, descending=True, stable=True).indices.argsort(-1) + 1
