r"""A fit that is no better than a constant is noticed while it runs.

In its first epoch :func:`pyrobnn.fit` keeps targets. After a third of the run the epoch's mean log likelihood per datum
is compared with that of the best constant predictor (:meth:`pyrobnn.likelihoods.Likelihood.constant_outputs`), and
a fit that has not gained on it by then is warned about, once.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from typing import Any

import torch
from torch import Tensor

from pyrobnn.core import random_state
from pyrobnn.core.batches import Batch
from pyrobnn.core.finite import weighted
from pyrobnn.core.handlers import validation_enabled
from pyrobnn.model.bayesianize import evaluating, frozen_buffers
from pyrobnn.model.declarations import declared_likelihood, declared_outputs
from pyrobnn.model.likelihoods import Likelihood

__all__ = ["ADVICE", "NO_GAIN", "CollapseWatch"]

ADVICE = (
    "what helps is a prior with a wider scale (the default, Normal(0, 1), say) where zero weights are the mode, inputs "
    "of unit scale (pyrobnn.Standardizer), more epochs or a larger lr, a smaller weight of the divergence "
    "(ELBO(temperature=...)), for deep networks of ReLUs starting weights of He's scale (init='he')"
)
"""What helps against a posterior that ignores its inputs or its data."""

NO_GAIN = 0.01
"""Nats per datum that are no gain on a constant; of discrete targets the share of its entropy."""

_EPOCHS, _STEPS = 5, 300  # before these nothing is said: annealing, warm-up and slow starts are not collapse
_MOST_ROWS, _LEAST_ROWS, _MOST_NUMBERS = 10_000, 1_000, 2_000_000
_MOST_OUTPUTS = 20_000_000


class CollapseWatch:
    """Compares one epoch of a run with the best constant predictor.

    Rows of the first epoch are kept at equal distances, so that sorted data are represented, too; nothing is computed
    with them before the comparison.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[Tensor, Tensor | None]] | None = []
        self._is_complete = False
        self._stride, self._seen, self._rows = 1, 0, 0

    def add(self, model: Any, batch: Batch) -> None:
        """Keeps targets of a batch, while the first epoch lasts."""
        if self._kept is None or self._is_complete:
            return
        y, likelihood = batch.targets, declared_likelihood(model)
        suits = isinstance(likelihood, Likelihood) and not likelihood.site_priors and isinstance(y, Tensor)
        if not suits or (self._kept and self._kept[0][0].shape[1:] != y.shape[1:]):
            self._kept = None
            return
        rows = slice(-self._seen % self._stride, None, self._stride)
        self._kept.append((y[rows], None if batch.weight is None else batch.weight[rows]))
        self._seen += batch.rows
        self._rows += len(self._kept[-1][0])
        if self._rows > min(_MOST_ROWS, max(1, _MOST_NUMBERS // max(1, y[0].numel()))):
            self._halve()

    def after_epoch(self, model: Any, batch: Batch, log_likelihood: float, epoch: int, epochs: int, steps: int) -> None:
        """Makes the comparison when its time has come.

        Args:
            model: The model.
            batch: Any batch, whose outputs say which shape a constant has.
            log_likelihood: The epoch's mean log likelihood per datum.
            epoch: Number of the epoch, from 1.
            epochs: Epochs of the run.
            steps: Training steps so far.

        Warns:
            UserWarning: If the epoch was no better than a constant.
        """
        self._is_complete = True
        due = max(2, min(epochs, max(_EPOCHS, math.ceil(epochs / 3))))  # the first epoch's mean is that of its start
        if self._kept is None or epoch < due or steps < _STEPS:
            return
        kept, self._kept = self._kept, None
        # The best constant of few rows of many is better there than for all.
        if not kept or self._rows < min(self._seen, _LEAST_ROWS):
            return
        y = torch.cat([targets for targets, _ in kept])
        weights = [weight for _, weight in kept if weight is not None]
        found = _best_constant(model, batch, y, torch.cat(weights) if len(weights) == len(kept) else None)
        if found is None:
            return
        best, is_discrete = found
        if log_likelihood - best <= NO_GAIN * (-best if is_discrete else 1.0):
            warnings.warn(
                f"after {epoch} of {epochs} epochs the fit is no better than a constant: the mean log likelihood is "
                f"{log_likelihood:.4g} nats per datum, that of the best constant predictor {best:.4g}; {ADVICE}. "
                "pyrobnn.check(model, guide, loader) says more.",
                stacklevel=6,  # the call of fit()
            )

    def _halve(self) -> None:
        """Every second row of those that were kept."""
        kept: list[tuple[Tensor, Tensor | None]] = []
        position = 0
        for y, weight in self._kept or ():
            rows = slice(position % 2, None, 2)
            position += len(y)
            kept.append((y[rows].clone(), None if weight is None else weight[rows].clone()))
        self._kept, self._stride, self._rows = kept, 2 * self._stride, sum(len(y) for y, _ in kept)


def _best_constant(model: Any, batch: Batch, y: Tensor, weight: Tensor | None) -> tuple[float, bool] | None:
    """The mean log likelihood of the best constant predictor, and whether targets are discrete.

    None if it is not known, or if the likelihood scores in training what is no log likelihood (weighted, say).
    """
    likelihood, outputs_of = declared_likelihood(model), declared_outputs(model)
    assert outputs_of is not None, "models that declare a likelihood declare their outputs"
    with (
        torch.no_grad(),
        validation_enabled(False),
        random_state.preserved(batch.device),
        evaluating(model),
        frozen_buffers(model),
    ):
        outputs = outputs_of(batch.inputs)
        few = slice(None, None, max(1, len(y) * outputs[0].numel() // _MOST_OUTPUTS))
        y, weight = y[few], None if weight is None else weight[few]
        if (best := likelihood.constant_outputs(outputs, y, weight)) is None:
            return None
        scores, is_discrete = [], False
        for is_training in (False, True):
            likelihood.train(is_training)
            distribution = likelihood(best.expand(len(y), *best.shape[1:]))
            score = distribution.log_prob(y).double()
            scores.append(float(weighted(score, weight).mean()))
        with contextlib.suppress(NotImplementedError):  # of a distribution that does not say
            is_discrete = bool(distribution.support.is_discrete)
    return (scores[0], is_discrete) if math.isclose(*scores, rel_tol=1e-6) else None
