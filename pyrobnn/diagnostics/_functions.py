"""Moments over draws of what a model predicts at some rows, to be compared with its prior's and between rows."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from pyrobnn.core.moments import RunningMoments
from pyrobnn.model.likelihoods import ClassLikelihood, Likelihood

__all__ = ["FunctionMoments"]

MAX_ROWS = 1_000
MAX_NUMBERS = 2**22
"""Rows, and numbers that are predicted for them, at most: enough for means over rows."""


class FunctionMoments:
    """Mean, variance and noise of the expectations (of classes the probabilities) at the first rows of some batches.

    Args:
        likelihood: From outputs to expectations; None leaves everything out.
    """

    def __init__(self, likelihood: Likelihood | None) -> None:
        self.likelihood = likelihood
        self._moments: list[RunningMoments] = []
        self._noise: list[Tensor | None] = []
        self._room = MAX_ROWS

    def add(self, index: int, outputs: Tensor) -> bool:
        """Adds one draw's outputs of batch ``index``, batches in order; returns whether there is room for the next.

        It runs with the draw's values substituted.
        """
        if self.likelihood is None or (index >= len(self._moments) and self._room <= 0):
            return False
        mean = self.likelihood.expectation(outputs).detach()
        if index == len(self._moments):
            rows = min(len(mean), self._room, max(1, MAX_NUMBERS // max(mean[0].numel(), 1)))
            self._room = self._room - rows if rows == len(mean) else 0
            self._moments.append(RunningMoments(torch.float64))
            self._noise.append(torch.zeros_like(mean[:rows], dtype=torch.float64))
        moments, noise = self._moments[index], self._noise[index]
        rows = len(moments.mean) if noise is None else len(noise)
        mean = mean[:rows]
        moments.add(mean.unsqueeze(0))
        if noise is not None:
            variance = self._variance(outputs[:rows], mean)
            self._noise[index] = None if variance is None else noise + variance
        return index + 1 < len(self._moments) or self._room > 0

    def _variance(self, outputs: Tensor, mean: Tensor) -> Tensor | None:
        """The observation's variance; None if its distribution has none."""
        assert self.likelihood is not None
        if isinstance(self.likelihood, ClassLikelihood):
            return mean * (1.0 - mean)
        with contextlib.suppress(NotImplementedError):
            return self.likelihood.distribution(self.likelihood.parameters_of(outputs)).variance.double()
        return None

    @property
    def epistemic(self) -> Tensor | None:
        """Variance over draws by number that is predicted for a row, averaged over rows, ``[numbers]``."""
        return self._over_rows([moments.variance().flatten(1) for moments in self._moments])

    @property
    def share_of_inputs(self) -> float | None:
        r"""The share of the predictive variance that is due to the inputs, averaged over the numbers predicted.

        :math:`\mathrm{Var}_n[\bar f(x_n)]` relative to that plus the mean of noise and variance over draws, with
        :math:`\bar f` the mean over draws, corrected for their number.
        """
        if sum(len(moments.mean) for moments in self._moments) < 2 or any(noise is None for noise in self._noise):
            return None
        if (means := self._joined([moments.mean.flatten(1) for moments in self._moments])) is None:
            return None
        count = self._moments[0].count
        noise = self._over_rows([n.flatten(1) / count for n in self._noise if n is not None])
        epistemic = self.epistemic
        assert noise is not None and epistemic is not None
        between = (means.var(0) - epistemic / count).clamp_min(0.0)
        total = between + epistemic + noise
        known = total > 0
        if not bool(known.any()) or not bool(total.isfinite().all()):
            return None
        return float((between[known] / total[known]).mean())

    def _over_rows(self, parts: list[Tensor]) -> Tensor | None:
        joined = self._joined(parts)
        return None if joined is None else joined.mean(0)

    def _joined(self, parts: list[Tensor]) -> Tensor | None:
        """All rows; None if there are none or batches are of several lengths."""
        return torch.cat(parts) if len({part.shape[1:] for part in parts}) == 1 else None
