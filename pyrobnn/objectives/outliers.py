r"""Outlier exposure: known outliers should be predicted with equal probabilities.

.. math::  L = -\frac1N \mathrm{ELBO} + \alpha\, E_{\tilde x}\, \mathrm{KL}[U \| p(y \mid \tilde x, w)], \qquad w \sim q

(Hendrycks, Mazeika & Dietterich, *Deep Anomaly Detection with Outlier Exposure*, 2019). Outliers to train on are others
than those to be found: what counts is that unknown ones are found, too.
"""

from __future__ import annotations

import math

from torch import Tensor

from pyrobnn.core import schedules
from pyrobnn.core.explanations import explained
from pyrobnn.model.likelihoods import ClassLikelihood, Likelihood
from pyrobnn.model.likelihoods.reductions import widened
from pyrobnn.objectives.auxiliary import Auxiliary, OutlierTerm

__all__ = ["OutlierExposure"]


@explained
class OutlierExposure(OutlierTerm):
    """N times the mean divergence of the uniform distribution from the class probabilities of outliers.

    It is a term of any objective for models with a likelihood of classes:
    ``ELBO(terms=[OutlierExposure(loader)])``.

    Args:
        outliers: An iterable of batches of outliers, begun again when it ends (pairs ``(x, y)`` lose their ``y``); or
            a function of the batch's inputs.
        weight: Weight α relative to the objective per datum, or its schedule; 0.5 is the paper's.

    Raises:
        TypeError: If ``outliers`` is neither; at the first step, if the model has no likelihood of classes.
        ValueError: If ``weight`` is negative; at the first step, if ``outliers`` yields nothing.
    """

    name = "outlier_exposure"

    def __init__(self, outliers: Auxiliary, weight: schedules.Schedule = 0.5) -> None:
        super().__init__(outliers, schedules.resolve("weight", weight, allow_zero=True))

    def check(self, likelihood: Likelihood) -> None:
        """Needs class probabilities."""
        if not isinstance(likelihood, ClassLikelihood):
            raise TypeError(
                "model: outlier exposure makes class probabilities equal; it needs a likelihood of classes, got "
                f"{type(likelihood).__name__}."
            )

    def penalty(self, likelihood: Likelihood, outputs: Tensor) -> Tensor:
        """The divergence ``[B, ...]``."""
        assert isinstance(likelihood, ClassLikelihood)
        log_probs = likelihood.log_probabilities(widened(outputs))
        return -math.log(log_probs.shape[-1]) - log_probs.mean(-1)
