r"""Wilson's interval of a probability of which a share was observed,

.. math::  \frac{\hat p + z^2 / 2n \pm z \sqrt{\hat p (1 - \hat p) / n + z^2 / 4n^2}}{1 + z^2 / n}

(Wilson 1927). It holds at small counts and shares near 0 and 1, where the normal interval does not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyrobnn.core.arguments import check_probability
from pyrobnn.core.explanations import explained

__all__ = ["wilson_interval"]


@explained
def wilson_interval(share: Tensor, count: Tensor, level: float = 0.95) -> tuple[Tensor, Tensor]:
    """Lower and upper ends.

    Args:
        share: Observed shares, of any shape.
        count: Numbers of independent observations, likewise.
        level: Probability of the interval.

    Returns:
        The ends in double precision, NaN where there are no observations.

    Raises:
        ValueError: If ``level`` is not between 0 and 1, a share is outside [0, 1], or a count negative.
    """
    check_probability("level", level)
    z = float(torch.special.ndtri(torch.tensor((1 + level) / 2, dtype=torch.float64)))
    share, count = share.double(), count.double()
    if bool(((share < 0) | (share > 1)).any()):
        raise ValueError(f"share: expected shares from 0 to 1, got {share.min():.4g} to {share.max():.4g}.")
    if bool((count < 0).any()):
        raise ValueError(f"count: expected numbers of at least 0, got {count.min():.4g}.")
    inverse = z * z / count.where(count > 0, torch.nan)
    middle = (share + inverse / 2) / (1 + inverse)
    half = z * (share * (1 - share) / count + inverse / (4 * count)).sqrt() / (1 + inverse)
    return (middle - half).clamp_min(0.0), (middle + half).clamp_max(1.0)
