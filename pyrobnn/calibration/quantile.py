r"""Quantile recalibration of regression: predicted probabilities are replaced by the shares that were observed.

With :math:`u_i = F_i(y_i)`, the predicted probability of at most the target, for held-out data, the recalibrated
distribution is

.. math::  G(y) = R(F(y)), \qquad R(u) \approx P(u_i \le u), \qquad g(y) = R'(F(y)) f(y),
           \qquad G^{-1}(p) = F^{-1}(R^{-1}(p)).

R is the broken line through 0, 1, and the order statistics of the :math:`u_i` of ranks :math:`(n + 1) j / m`, which a
new :math:`u` of exchangeable data falls below with probability :math:`j / m` exactly. Several targets of an input have
a curve each; how they depend on each other stays as predicted.

Kuleshov, Fenner and Ermon, "Accurate uncertainties for deep learning using calibrated regression", ICML 2018, where R
is an isotonic regression.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from pyrobnn.core.arguments import check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.core.fitted import Fitted
from pyrobnn.model.likelihoods.crps import quadrature_crps
from pyrobnn.model.likelihoods.entropies import TAIL, EntropySplit, JointEntropySplit, quadrature_nodes
from pyrobnn.model.likelihoods.moment_prediction import MomentPrediction, check_level
from pyrobnn.model.likelihoods.predictions import Prediction
from pyrobnn.model.likelihoods.quantiles import is_discrete
from pyrobnn.prediction.held_out import check_real, held_out_real

__all__ = ["LevelCurve", "QuantileRecalibration", "RecalibratedPrediction"]

_CLOSEST = 1e-9
"""The least distance of levels; equal ones would be a jump of probability."""

_ROWS = 256
"""Inputs whose moments are computed at once; each takes some thousand points."""

_NO_MIXTURE = "a recalibrated prediction is no mixture; split the entropy of the prediction before recalibration."


@dataclass(frozen=True)
class LevelCurve:
    """The broken line R through ``(levels[j], j / m)``, one for each target of an input.

    Attributes:
        levels: Ascending ``[m + 1, ...]`` from 0 to 1; without equal neighbors.
    """

    levels: Tensor

    def forward(self, u: Tensor) -> Tensor:
        """R of probabilities ``[..., *target]``, of their shape."""
        left, low, high = self._piece(u)
        return (left + (u - low) / (high - low)) / (len(self.levels) - 1)

    def slope(self, u: Tensor) -> Tensor:
        """The derivative of R, of the piece on the right at a knot."""
        _, low, high = self._piece(u)
        return 1.0 / ((high - low) * (len(self.levels) - 1))

    def inverse(self, p: Tensor) -> Tensor:
        """The probability ``[..., *target]`` whose R is ``p``, of the shape of ``p`` and the target together."""
        pieces = len(self.levels) - 1
        p = p.expand(torch.broadcast_shapes(p.shape, self.levels.shape[1:]))
        left = (p * pieces).floor().clamp(0, pieces - 1)
        low, high = self._levels(left), self._levels(left + 1)
        return low + (p * pieces - left) * (high - low)

    def _piece(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inner = self.levels[1:-1]
        front = u.dim() - (inner.dim() - 1)
        left = (u.unsqueeze(0) >= inner.reshape(len(inner), *(1,) * front, *inner.shape[1:])).sum(0)
        return left.to(u.dtype), self._levels(left), self._levels(left + 1)

    def _levels(self, index: Tensor) -> Tensor:
        table = self.levels.reshape(len(self.levels), -1)
        columns = torch.arange(table.shape[1], device=table.device).reshape(self.levels.shape[1:])
        return table[index.long(), columns]


@dataclass
class RecalibratedPrediction(MomentPrediction):
    """Real-valued targets whose predicted probabilities were recalibrated.

    ``log_prob``, ``cdf``, ``quantile``, ``interval`` and ``sample`` are those of the recalibrated distribution, and so
    are ``mean`` and ``total``. It is no mixture over draws: ``draws`` and ``noise`` are None, and ``epistemic`` keeps
    its share of ``total``.

    Attributes:
        base: The prediction before recalibration.
        curve: The curve R.
    """

    base: MomentPrediction = field(kw_only=True, repr=False)
    curve: LevelCurve = field(kw_only=True, repr=False)

    @property
    def draws(self) -> None:
        """None: single draws are not recalibrated."""
        return None

    @property
    def noise(self) -> None:
        """None: single draws are not recalibrated."""
        return None

    def log_prob(self, y: Tensor) -> Tensor:
        """Log density of each input's targets ``[N, …]``, ``[N]``, in nats."""
        before = self.base.log_prob(y)
        observed = self.likelihood.observed_mask(y)
        at = y if observed is None else torch.where(observed, y, self.base.mean)
        by_target = self.curve.slope(self.base.cdf(at).double()).log()
        if observed is not None:
            by_target = by_target.masked_fill(~observed, 0.0)
        return before + by_target.reshape(len(y), -1).sum(-1).to(before.dtype)

    def sample(self, num_samples: int | None = None) -> Tensor:
        """``n`` targets of each input ``[n, N, …]``: those of the draws, each moved to its recalibrated quantile."""
        given = self.base.sample(num_samples)
        levels = self.curve.inverse(self.base.cdf(given).double())
        return self.base.quantile_at(levels.clamp(1e-12, 1.0 - 1e-12))

    def cdf(self, y: Tensor) -> Tensor:
        """Probability of at most ``y``, of each target alone, of the shape of ``y``."""
        return self.curve.forward(self.base.cdf(y).double()).to(self.mean.dtype)

    def quantile_at(self, levels: Tensor) -> Tensor:
        """Quantiles of the recalibrated distribution at levels ``[Q, N, …]`` of each target, of their shape."""
        return self.base.quantile_at(self.curve.inverse(levels))

    def interval(self, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """Central interval of each target alone, ``[N, …]`` twice."""
        check_level(level)
        low, high = self.quantile(((1 - level) / 2, (1 + level) / 2))
        return low, high

    def _crps(self, y: Tensor) -> Tensor:
        parts = []
        for start in range(0, len(self), _ROWS):
            part = self.rows(slice(start, start + _ROWS))
            low, high = _quantiles(part, (TAIL, 1.0 - TAIL))
            parts.append(quadrature_crps(part.cdf, y[start : start + _ROWS], low, high))
        return torch.cat(parts)

    def entropy_split(self) -> EntropySplit:
        """Refused: the recalibrated distribution is no mixture over draws (ValueError)."""
        raise ValueError(f"entropy_split: {_NO_MIXTURE}")

    def joint_entropy_split(self, num_samples: int = 1000) -> JointEntropySplit:
        """Refused, likewise."""
        raise ValueError(f"joint_entropy_split: {_NO_MIXTURE}")

    def rescaled(self, loc: Tensor, scale: Tensor) -> RecalibratedPrediction:
        """The prediction of ``loc + scale · y``, everything in the new units."""
        moments = super().rescaled(loc, scale)
        assert isinstance(moments, RecalibratedPrediction)
        return replace(moments, base=self.base.rescaled(loc, scale))

    @property
    def kept_bytes(self) -> int:
        """Size of what was kept of each draw."""
        return self.base.kept_bytes

    def without_draws(self) -> RecalibratedPrediction:
        """The same without what was kept of each draw."""
        base = self.base.without_draws()
        assert isinstance(base, MomentPrediction)
        return replace(self, base=base)


@explained
class QuantileRecalibration(Fitted):
    """Makes predicted quantiles true on average over data like those held out.

    Args:
        num_pieces: Number m of pieces of the curve, at most n + 1 of them for n held-out data. The density is that of
            the draws times a factor for each piece, so that pieces should hold some ten data each.

    Attributes:
        levels: Predicted probabilities ``[m + 1, ...]`` at which the observed shares are 0, 1 / m, ..., 1.

    Raises:
        ValueError: If ``num_pieces`` is no int of at least 2.
    """

    levels: Tensor

    def __init__(self, num_pieces: int = 20) -> None:
        super().__init__("levels")
        check_positive_int("num_pieces", num_pieces)
        if num_pieces < 2:
            raise ValueError("num_pieces: expected at least 2, got 1, which changes nothing.")
        self.num_pieces = num_pieces

    @explained
    @torch.no_grad()
    def fit(self, prediction: Prediction, targets: Tensor | None = None) -> Self:
        """Finds the curve from held-out data, which must not be training data.

        Args:
            prediction: The prediction ``[N, …]`` of real-valued targets, with its draws kept.
            targets: Targets of its shape; None takes those that came with the prediction's loader.

        Returns:
            The calibrator.

        Raises:
            TypeError: If ``prediction`` is none of real-valued targets.
            ValueError: If targets do not fit or are counts, there are fewer than ``num_pieces`` - 1 of them, the
                distribution has no cdf, or the draws were not kept.
        """
        found, y = held_out_real(prediction, targets)
        if isinstance(found, RecalibratedPrediction):
            raise ValueError("prediction: it is recalibrated already; pass what predict returned.")
        observed = found.likelihood.observed_mask(y)
        observed = torch.ones_like(y, dtype=torch.bool) if observed is None else observed
        u = found.cdf(torch.where(observed, y, found.mean)).double()
        if found.parameters is not None and is_discrete(found.likelihood.marginal(found.parameters)):
            raise ValueError(
                "prediction: counts have jumps of probability, which no curve makes even; use conformal intervals."
            )
        least = int(observed.sum(0).min())
        if least < self.num_pieces - 1:
            raise ValueError(
                f"targets: {self.num_pieces} pieces need at least {self.num_pieces - 1} held-out data"
                f"{' of each target' if y.dim() > 1 else ''}, got {least}; take more data or fewer pieces."
            )
        columns = zip(u.reshape(len(u), -1).T, observed.reshape(len(u), -1).T, strict=True)
        levels = torch.stack([_levels(column[rows], self.num_pieces) for column, rows in columns], 1)
        self.store(len(u), levels=levels.reshape(-1, *y.shape[1:]))
        return self

    @explained
    @torch.no_grad()
    def forward(self, prediction: Prediction) -> RecalibratedPrediction:
        """The recalibrated prediction.

        Raises:
            RuntimeError: If the calibrator is not fitted.
            TypeError: If ``prediction`` is none of real-valued targets.
            ValueError: If it has other targets, or its draws were not kept.
        """
        self.check_fitted("fit")
        found = check_real(prediction)
        if isinstance(found, RecalibratedPrediction):
            raise ValueError("prediction: it is recalibrated already; pass what predict returned.")
        if found.mean.shape[1:] != self.levels.shape[1:]:
            raise ValueError(
                f"prediction: the curve was fitted to targets of shape {tuple(self.levels.shape[1:])} for each input, "
                f"got {tuple(found.mean.shape[1:])}."
            )
        curve = LevelCurve(self.levels.to(found.mean.device))
        starts = range(0, len(found), _ROWS)
        parts = [_moments(found.rows(slice(start, start + _ROWS)), curve) for start in starts]
        mean, total = (torch.cat(part).to(found.mean.dtype) for part in zip(*parts, strict=True))
        share = torch.where(found.total > 0, found.epistemic / found.total, 0.0).clamp(0.0, 1.0)
        return RecalibratedPrediction(
            mean=mean, total=total, aleatoric=(1.0 - share) * total, epistemic=share * total,
            num_samples=found.num_samples, likelihood=found.likelihood, targets=found.targets, base=found, curve=curve,
            is_of_training_data=found.is_of_training_data,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """The pieces, and the number of held-out data."""
        return f"num_pieces={self.num_pieces}, num_data={int(self.num_data)}"


def _levels(u: Tensor, pieces: int) -> Tensor:
    """Order statistics ``[pieces + 1]`` of ranks ``(n + 1) j / pieces``, between 0 and 1, without equal neighbors."""
    ordered = torch.cat([u.new_zeros(1), u.sort().values, u.new_ones(1)])
    rank = torch.linspace(0.0, len(ordered) - 1.0, pieces + 1, dtype=u.dtype, device=u.device)
    left = rank.floor().long().clamp_max(len(ordered) - 2)
    found = ordered[left] + (rank - left) * (ordered[left + 1] - ordered[left])
    step = _CLOSEST * torch.arange(pieces + 1, dtype=u.dtype, device=u.device)
    ascending = (found - step).cummax(0).values + step  # at least _CLOSEST apart
    return ascending / ascending[-1]


def _moments(prediction: MomentPrediction, curve: LevelCurve) -> tuple[Tensor, Tensor]:
    r"""Mean and variance ``[N, …]``.

    With a far below, :math:`E Y = a + \int_a (1 - G)` and :math:`E (Y - a)^2 = 2 \int_a (y - a)(1 - G)`.
    The integrals are of continuous functions, which the density of G is not.
    """
    low, high = _quantiles(prediction, (TAIL, 1.0 - TAIL))
    y, log_weight = quadrature_nodes(lambda t: prediction.cdf(t).double(), low, high, positive=bool((low > 0).all()))
    weight = log_weight.exp() * (1.0 - curve.forward(prediction.cdf(y).double()))
    above = weight.sum(0)
    return low + above, (2.0 * weight * (y - low)).sum(0) - above.square()


def _quantiles(prediction: MomentPrediction, levels: tuple[float, float]) -> Tensor:
    at = torch.tensor(levels, dtype=torch.float64, device=prediction.mean.device)
    shape = prediction.mean.shape
    return prediction.quantile_at(at.reshape(-1, *(1,) * len(shape)).expand(-1, *shape)).double()
