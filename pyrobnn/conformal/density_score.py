r"""DensityScore: targets are strange where the predictive density is low, :math:`-\log p(y \mid x)`.

Sets are then regions of high predictive density (Izbicki, Shimizu & Stern, *CD-split and HPD-split*, JMLR 2022), which
only a model of the whole distribution has. Where the density has several peaks, such a set may consist of several
intervals; :meth:`DensityScore.interval` is the smallest interval that holds it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyrobnn.conformal.real_scores import RealScore
from pyrobnn.core.arguments import check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.model.likelihoods.moment_prediction import MomentPrediction
from pyrobnn.model.likelihoods.predictions import Prediction

__all__ = ["DensityScore"]

_TAIL = 1e-4  # probability outside the grid on either side
_HALVINGS = 40
_DOUBLINGS = 60


@explained
class DensityScore(RealScore):
    """Minus the log predictive density, in nats; for one target per input.

    The prediction needs quantiles and densities: that of a likelihood whose distribution has a cdf, with its draws
    kept. The ends are sought from a grid of quantiles outwards and inwards, so that a peak that holds less than a cell
    of the grid (``1 / num_points``) may be missed.

    Args:
        num_points: Points of the grid.

    Raises:
        ValueError: If ``num_points`` is no positive int.
    """

    def __init__(self, num_points: int = 101) -> None:
        check_positive_int("num_points", num_points)
        self.num_points = num_points

    def score(self, prediction: Prediction, y: Tensor) -> Tensor:
        """Scores ``[N, ...]``."""
        return -_log_density(_single(prediction), y)

    def interval(self, prediction: Prediction, limit: Tensor) -> tuple[Tensor, Tensor]:
        """The smallest interval that holds all targets of scores up to ``limit``; the peak where there are none."""
        given = _single(prediction)
        least = -limit.expand(given.mean.shape)
        levels = torch.linspace(_TAIL, 1.0 - _TAIL, self.num_points, dtype=torch.float64)
        shape = (self.num_points, *[1] * given.mean.dim())
        grid = given.quantile_at(levels.reshape(shape).expand(-1, *given.mean.shape).to(given.mean.device))
        density = torch.stack([_log_density(given, points) for points in grid])
        inside = density >= least
        peak = grid.gather(0, density.argmax(0, keepdim=True))[0]
        first = inside.to(torch.uint8).argmax(0, keepdim=True)
        last = len(grid) - 1 - inside.flip(0).to(torch.uint8).argmax(0, keepdim=True)
        width = (grid[-1] - grid[0]).clamp_min(torch.finfo(grid.dtype).tiny)
        ends = []
        for chosen, step in ((first, -1), (last, 1)):
            held = grid.gather(0, chosen)[0]
            beside = grid.gather(0, (chosen + step).clamp(0, len(grid) - 1))[0]
            ends.append(self._end(given, least, held, beside, step * width))
        empty = ~inside.any(0)
        unlimited = limit.expand(given.mean.shape) == torch.inf
        low, high = (torch.where(empty, peak, end) for end in ends)
        return low.masked_fill(unlimited, -torch.inf), high.masked_fill(unlimited, torch.inf)

    def _end(self, given: MomentPrediction, least: Tensor, held: Tensor, beside: Tensor, width: Tensor) -> Tensor:
        """Where the density falls below ``least`` between a point that is above and one further out."""
        outside = torch.where(beside == held, held + width, beside)
        for _ in range(_DOUBLINGS):  # beyond the grid, until it is below
            above = _log_density(given, outside) >= least
            if not bool(above.any()):
                break
            held, outside = torch.where(above, outside, held), torch.where(above, 2 * outside - held, outside)
        for _ in range(_HALVINGS):
            middle = (held + outside) / 2
            above = _log_density(given, middle) >= least
            held, outside = torch.where(above, middle, held), torch.where(above, outside, middle)
        return outside


def _single(prediction: Prediction) -> MomentPrediction:
    if not isinstance(prediction, MomentPrediction):
        raise TypeError(f"prediction: DensityScore needs one of real-valued targets, got {type(prediction).__name__}.")
    if prediction.mean[0].numel() != 1:
        raise ValueError(
            f"prediction: DensityScore is for one target per input, got {prediction.mean[0].numel()}; their density is "
            "a joint one. Take PITScore, which treats each by itself."
        )
    return prediction


def _log_density(prediction: MomentPrediction, y: Tensor) -> Tensor:
    """Of the shape of ``y``."""
    return prediction.log_prob(y).reshape(y.shape)
