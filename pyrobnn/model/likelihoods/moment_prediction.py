"""Predictions of real-valued targets and counts: moments, probabilities and quantiles of a mixture over draws."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pyrobnn.core.arguments import check_positive_int, check_probability
from pyrobnn.model.likelihoods.crps import mixture_crps, points_per_draw
from pyrobnn.model.likelihoods.draw_indices import draw_indices
from pyrobnn.model.likelihoods.entropies import (
    NODES_PER_DRAW,
    EntropySplit,
    JointEntropySplit,
    entropy_split,
    joint_entropy_split,
)
from pyrobnn.model.likelihoods.predictions import Prediction
from pyrobnn.model.likelihoods.quantiles import (
    bracketed_quantile,
    is_discrete,
    mixture_cdf,
    mixture_quantile,
    row_parts,
)

__all__ = ["MomentPrediction", "NoCdfError", "check_level", "check_levels"]


def check_level(level: float) -> None:
    """Refuses what is no coverage of an interval.

    Raises:
        ValueError: If it is not between 0 and 1.
    """
    if not isinstance(level, int | float) or not 0 < level < 1:
        raise ValueError(f"level: expected a coverage between 0 and 1, got {level!r}.")


def check_levels(q: float | Sequence[float] | Tensor) -> Tensor:
    """Levels of quantiles, in double precision.

    Raises:
        ValueError: If one is not between 0 and 1, or they are no number and no vector.
    """
    if isinstance(q, Sequence) and not isinstance(q, str | bytes):
        for entry in q:
            check_probability("q", entry)
    elif not isinstance(q, Tensor):
        check_probability("q", q)
    levels = q.double() if isinstance(q, Tensor) else torch.tensor(q, dtype=torch.float64)
    if levels.dim() > 1 or not levels.numel() or not bool(((levels > 0) & (levels < 1)).all()):
        raise ValueError(f"q: expected a probability between 0 and 1, or a vector of them, got {q!r}.")
    return levels


@dataclass
class MomentPrediction(Prediction):
    """Mean and variance of a mixture of the likelihood's distributions, one of each draw.

    Attributes:
        mean: Predictive mean ``[N, …]``.
        total: Predictive variance, in the target's units squared.
        aleatoric: Mean of the draws' variances.
        epistemic: Variance of the draws' means.
    """

    @property
    def draws(self) -> Tensor | None:
        """Means under each draw ``[K, N, …]``, or None if they were not kept."""
        return None if self.parameters is None else self.likelihood.distribution(self.parameters).mean

    @property
    def noise(self) -> Tensor | None:
        """Variances under each draw ``[K, N, …]``, or None if they were not kept."""
        return None if self.parameters is None else self.likelihood.distribution(self.parameters).variance

    @property
    def std(self) -> Tensor:
        """Predictive standard deviation ``[N, …]``."""
        return self.total.sqrt()

    def log_prob(self, y: Tensor) -> Tensor:
        """Log density of each input's targets ``[N, …]`` under the mixture over draws, ``[N]``, in nats."""
        self._check(y, self.mean.shape)
        by_draw = self.likelihood.observation(self._kept("log_prob")).log_prob(y.to(self.mean))
        return by_draw.reshape(self.num_samples, len(y), -1).sum(-1).logsumexp(0) - math.log(self.num_samples)

    def sample(self, num_samples: int | None = None) -> Tensor:
        """``n`` targets of each input ``[n, N, …]`` (by default K), each from one posterior draw.

        Raises:
            ValueError: If the draws were not kept, or ``num_samples`` is no positive int.
        """
        index = draw_indices(num_samples, self.num_samples, self.mean.device)
        parameters = self._kept("sample")
        if index is not None:
            parameters = {name: value[index] for name, value in parameters.items()}
        return self.likelihood.distribution(parameters).sample()

    def cdf(self, y: Tensor) -> Tensor:
        """Probability of at most ``y``, of each target alone, under the mixture over draws.

        Args:
            y: Targets ``[N, …]``, or several of each, ``[Q, N, …]``.

        Returns:
            Of the shape of ``y``; NaN where ``y`` is, as targets are that were not observed.

        Raises:
            ValueError: If the shape does not fit, the distribution has no cdf, or the draws were not kept.
        """
        points = self._points(y)
        points = points if y.dim() > self.mean.dim() else points.unsqueeze(0)
        parts = []
        with self._of_marginals("cdf"):
            for rows, parameters in row_parts(self._kept("cdf"), len(points)):
                each = self.likelihood.marginal(parameters)
                parts.append(mixture_cdf(each, points[:, rows].double(), self.likelihood.placeholder))
        return torch.cat(parts, 1).reshape(y.shape).to(self.mean.dtype)

    def quantile(self, q: float | Sequence[float] | Tensor) -> Tensor:
        r"""The smallest ``y`` with :math:`F(y) \ge q`, of each target alone, under the mixture over draws.

        It is computed by bisection in double precision, not from draws.

        Args:
            q: A probability, or Q of them.

        Returns:
            ``[N, …]``, or ``[Q, N, …]`` for several.

        Raises:
            ValueError: If ``q`` is not between 0 and 1, the distribution has no cdf, or the draws were not kept.
        """
        levels = check_levels(q).to(self.mean.device)
        shape = self.mean.shape
        at = levels.reshape(-1, *(1,) * len(shape)).expand(-1, *shape)
        return self.quantile_at(at).reshape(*levels.shape, *shape)

    def quantile_at(self, levels: Tensor) -> Tensor:
        """Quantiles of the mixture over draws at levels ``[Q, N, …]`` of each target, of their shape."""
        parts = []
        with self._of_marginals("quantile"):
            for rows, parameters in row_parts(self._kept("quantile"), len(levels)):
                each = self.likelihood.marginal(parameters)
                parts.append(mixture_quantile(each, levels[:, rows], self.likelihood.placeholder))
        return torch.cat(parts, 1).to(self.mean.dtype)

    def traced_quantile(self, levels: Sequence[float], dtype: torch.dtype) -> Tensor:
        """:meth:`quantile` ``[Q, N, …]`` as exported programs compute it, in a dtype and without decisions."""
        parameters = {name: value.to(dtype) for name, value in self._kept("quantiles").items()}
        with self._of_marginals("quantiles"):
            each = self.likelihood.marginal(parameters)
            at, spread = self.mean.to(dtype), self.total.to(dtype)
            return bracketed_quantile(each, levels, self.likelihood.placeholder, at, spread).to(self.mean.dtype)

    def interval(self, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """Central predictive interval of each target alone, ``[N, …]`` twice: quantiles ``(1 ∓ level) / 2``.

        If the likelihood's distribution has no cdf, they are those of one target per draw.

        Raises:
            ValueError: If ``level`` is not between 0 and 1.
        """
        check_level(level)
        levels = ((1 - level) / 2, (1 + level) / 2)
        self._kept("interval")
        try:
            low, high = self.quantile(levels)
        except NoCdfError:
            targets = self.sample()
            low, high = targets.quantile(levels[0], 0), targets.quantile(levels[1], 0)
        return low, high

    def pit(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities of less than ``y`` and of at most ``y [N, …]``, equal but for counts.

        They are what :func:`~pyrobnn.metrics.pit_histogram` and :func:`~pyrobnn.metrics.quantile_calibration` take,
        which refuse the NaN of targets that were not observed.

        Raises:
            ValueError: If the shape does not fit, the distribution has no cdf, or the draws were not kept.
        """
        self._check(y, self.mean.shape)
        at = self.cdf(y)
        with self._of_marginals("pit"):
            counts = self.parameters is not None and is_discrete(self.likelihood.marginal(self.parameters))
        return (self.cdf(y - 1.0) if counts else at), at

    def crps(self, y: Tensor) -> Tensor:
        """Continuous ranked probability score of each target alone ``[N, …]``, in its units.

        In closed form or by quadrature. Targets that were not observed have 0, as in :meth:`log_prob`.

        Raises:
            ValueError: If the shape does not fit, the distribution has no cdf, or the draws were not kept.
        """
        self._check(y, self.mean.shape)
        y = y.to(self.mean.device)
        observed = self.likelihood.observed_mask(y)
        if observed is None:
            return self._crps(y.double()).to(self.mean.dtype)
        found = self._crps(torch.where(observed, y, self.mean).double())
        return found.to(self.mean.dtype).masked_fill(~observed, 0.0)

    def _crps(self, y: Tensor) -> Tensor:
        """The score of targets in double precision that were all observed."""
        kept, parts = self._kept("crps"), []
        with self._of_marginals("crps"):
            one = self.likelihood.marginal({name: value[:, :1] for name, value in kept.items()})
            for rows, parameters in row_parts(kept, points_per_draw(one)):
                each = self.likelihood.marginal(parameters)
                parts.append(mixture_crps(each, y[rows], self.likelihood.placeholder))
        return torch.cat(parts)

    def entropy_split(self) -> EntropySplit:
        """Entropies of each target alone ``[N, …]``, in nats: total, aleatoric (expected) and mutual information.

        By quadrature in one dimension; :meth:`joint_entropy_split` has those of all targets together. ``total``,
        ``aleatoric`` and ``epistemic`` of the prediction split its variance.

        Raises:
            ValueError: If the distribution has no cdf, or the draws were not kept.
        """
        parts = []
        with self._of_marginals("entropy_split"):
            for _, parameters in row_parts(self._kept("entropy_split"), NODES_PER_DRAW):
                parts.append(entropy_split(self.likelihood.marginal(parameters), self.likelihood.placeholder))
        return EntropySplit(*(torch.cat(part).to(self.mean.dtype) for part in zip(*parts, strict=True)))

    @torch.no_grad()
    def joint_entropy_split(self, num_samples: int = 1000) -> JointEntropySplit:
        """Entropies of all targets of an input together ``[N]``, in nats, by Monte Carlo, with standard errors.

        They need no cdf, so that flows of several targets have them, too. Each target that is drawn is scored under
        all K draws.

        Args:
            num_samples: About how many targets to draw; each draw has equally many, 2 at least.

        Raises:
            ValueError: If ``num_samples`` is no positive int, or the draws were not kept.
        """
        check_positive_int("num_samples", num_samples)
        parameters = self._kept("joint_entropy_split")
        each, observed = self.likelihood.distribution(parameters), self.likelihood.observation(parameters)

        def log_prob(y: Tensor) -> Tensor:
            return observed.log_prob(y).reshape(self.num_samples, len(y), -1).sum(-1)

        found = joint_entropy_split(each.sample, log_prob, max(2, -(-num_samples // self.num_samples)))
        return JointEntropySplit(*(part.to(self.mean.dtype) for part in found))

    def _points(self, y: Tensor) -> Tensor:
        shape = self.mean.shape
        if not isinstance(y, Tensor) or y.shape[-len(shape) :] != shape or y.dim() > len(shape) + 1:
            given = tuple(y.shape) if isinstance(y, Tensor) else y
            raise ValueError(f"y: expected targets of shape {tuple(shape)}, or several of each in front, got {given}.")
        return y.to(self.mean.device)

    def rescaled(self, loc: Tensor, scale: Tensor) -> MomentPrediction:
        """The prediction of ``loc + scale · y``, everything in the new units."""
        square = scale.square()
        return replace(
            self,
            mean=loc + scale * self.mean,
            total=square * self.total,
            aleatoric=square * self.aleatoric,
            epistemic=square * self.epistemic,
            parameters=None if self.parameters is None else self.likelihood.rescaled(self.parameters, loc, scale),
            targets=None if self.targets is None else loc + scale * self.targets,
        )

    @contextmanager
    def _of_marginals(self, name: str) -> Iterator[None]:
        """Says what is missing where marginals have no cdf."""
        try:
            yield
        except NotImplementedError as error:
            raise NoCdfError(
                f"{name}: the distribution of {type(self.likelihood).__name__} has no cdf; draw targets with sample(n) "
                "instead, or give the likelihood a method marginal() whose distribution has one."
            ) from error


class NoCdfError(ValueError):
    """The likelihood's distribution has no cumulative distribution function."""
