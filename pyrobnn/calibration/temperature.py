r"""Temperature scaling: one number that makes all probabilities sharper or softer.

.. math::  c(p)_i \propto p_i^{1/T}, \qquad T = \arg\min_T \; -\frac1n \sum_i \log q_T(y_i),

where q is the calibrated mean, or the mean of the calibrated draws. Dividing the logits by T is the same. Of a mean (or
a single draw) the negative log likelihood is convex in 1/T, so that a search in log T finds the minimum; of several
draws it need not be, and the search starts from the best point of a grid.

Of each probability vector that it is applied to the most probable class stays. With ``on="mean"`` that is the class
predicted; with ``on="draws"`` it is each draw's vote, while their mean may favor another class.

Guo et al., "On calibration of modern neural networks", ICML 2017.
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from pyrobnn.calibration.base import ClassCalibrator, On
from pyrobnn.core.explanations import explained

__all__ = ["TemperatureScaling"]

_GRID = torch.linspace(-math.log(1000.0), math.log(1000.0), 15, dtype=torch.float64)


@explained
class TemperatureScaling(ClassCalibrator):
    """Scales log probabilities by one temperature, found by maximum likelihood between 1/1000 and 1000.

    If no temperature in this range is best (where every prediction is right, the sharper the better), it stays 1, and
    a warning says so.

    Args:
        on: ``"mean"`` scales the averaged probabilities, ``"draws"`` those of each draw before they are averaged.

    Attributes:
        temperature: The temperature T; above 1 where predictions were overconfident.

    Raises:
        ValueError: If ``on`` is neither.
    """

    needs_all_classes = False
    temperature: Tensor

    def __init__(self, on: On = "mean") -> None:
        super().__init__("temperature", on=on)

    def transform(self, log_probs: Tensor) -> Tensor:
        """Divided by T and normalized."""
        return (log_probs / self.temperature.to(log_probs)).log_softmax(-1)

    @torch.no_grad()
    def fit_to(self, log_probs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The temperature of least negative log likelihood."""
        from scipy.optimize import minimize_scalar

        def nll(log_temperature: float) -> float:
            scaled = (log_probs * math.exp(-log_temperature)).log_softmax(-1)
            by_draw = scaled.gather(-1, labels.expand(len(scaled), -1).unsqueeze(-1)).squeeze(-1)
            return float(math.log(len(scaled)) - by_draw.logsumexp(0).mean())

        grid = _GRID.tolist()
        values = [nll(point) for point in grid]
        best = min(range(len(grid)), key=values.__getitem__)
        for end, what in ((0, "sharper"), (-1, "softer")):
            if values[end] <= values[best] + 1e-12:
                warnings.warn(
                    f"TemperatureScaling: the {what} the predictions of these {len(labels)} data are made the better, "
                    "so no temperature is best and it stays 1; calibrate on more data.",
                    stacklevel=4,
                )
                return {"temperature": log_probs.new_ones(())}
        bounds = (grid[best - 1], grid[best + 1])
        found = minimize_scalar(nll, bounds=bounds, method="bounded", options={"xatol": 1e-7}).x
        return {"temperature": log_probs.new_tensor(math.exp(found if nll(found) <= nll(0.0) else 0.0))}
