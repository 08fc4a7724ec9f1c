r"""The one number that every split conformal method takes from its calibration scores.

With n scores of data exchangeable with a new one, the new score is at most the

.. math::  k = \lceil (n + 1) (1 - \alpha) \rceil

-th smallest of them with probability at least :math:`1 - \alpha`, and at most :math:`k / (n + 1)` where scores have no
ties. If k exceeds n no finite number does: the threshold is infinite and sets hold everything.

Under covariate shift the scores count by the ratio w of densities of new and calibration inputs. The threshold of an
input x is then the smallest score at which the weights reach :math:`(1 - \alpha) (\sum_i w_i + w(x))`.

Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005; Tibshirani et al., "Conformal prediction
under covariate shift", NeurIPS 2019.
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

__all__ = ["least_number", "threshold", "weighted_threshold"]

_ROUNDING = 1e-9


def least_number(confidence_level: float) -> int:
    """The smallest n whose threshold is finite."""
    return math.ceil(confidence_level / (1 - confidence_level) - _ROUNDING)


def threshold(scores: Tensor, confidence_level: float, what: str = "") -> Tensor:
    """The k-th smallest of n scores, infinite with a warning if there are fewer than k.

    Args:
        scores: Scores ``[n, ...]``, larger for what is stranger; each column has a threshold.
        confidence_level: The level 1 - α.
        what: Which data these are, for the warning.

    Returns:
        The thresholds ``[...]``.
    """
    num_data = len(scores)
    rank = math.ceil((num_data + 1) * confidence_level - _ROUNDING)
    if rank > num_data:
        warnings.warn(
            f"{num_data} calibration data{what} are too few for confidence_level={confidence_level:g}: their sets hold "
            f"everything. It takes at least {least_number(confidence_level)}.",
            stacklevel=4,
        )
        return scores.new_full(scores.shape[1:], math.inf)
    return scores.kthvalue(rank, 0).values


def weighted_threshold(scores: Tensor, weights: Tensor, new: Tensor, confidence_level: float) -> Tensor:
    """The threshold of each new input under covariate shift, infinite where the weights do not reach the level.

    Args:
        scores: Scores ``[n]``.
        weights: Their density ratios ``[n]``.
        new: Density ratios ``[N]`` of the new inputs.
        confidence_level: The level 1 - α.

    Returns:
        Thresholds ``[N]``.
    """
    ordered, index = scores.sort()
    reached = weights.double()[index].cumsum(0)
    needed = confidence_level * (reached[-1] + new.double())
    place = torch.searchsorted(reached, needed * (1 - _ROUNDING))
    if bool((place == len(scores)).any()):
        warnings.warn(
            f"{len(scores)} calibration data are too few for confidence_level={confidence_level:g} at "
            f"{int((place == len(scores)).sum())} of {len(new)} inputs, whose weights are large: their sets hold "
            "everything.",
            stacklevel=4,
        )
    return torch.cat([ordered, ordered.new_full((1,), math.inf)])[place]
