"""Uncertainty measures of predictive draws, and scores of predictions against observations."""

from pyrobnn.uncertainty.measures import (
    VarianceDecomposition,
    entropy,
    expected_entropy,
    least_confidence,
    mutual_information,
    predictive_entropy,
    probability_variance,
    variance_decomposition,
    variation_ratio,
)
from pyrobnn.uncertainty.scores import (
    accuracy,
    brier,
    crps,
    gaussian_crps,
    interval_coverage,
    interval_width,
    nll,
    pinball,
    rmse,
)

__all__ = [
    "VarianceDecomposition",
    "accuracy",
    "brier",
    "crps",
    "entropy",
    "expected_entropy",
    "gaussian_crps",
    "interval_coverage",
    "interval_width",
    "least_confidence",
    "mutual_information",
    "nll",
    "pinball",
    "predictive_entropy",
    "probability_variance",
    "rmse",
    "variance_decomposition",
    "variation_ratio",
]
