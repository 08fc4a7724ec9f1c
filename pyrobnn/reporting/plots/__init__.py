"""Figures of predictions, uncertainty and training.

Every function that draws one panel takes ``ax`` (``None``: a new figure), draws into it and returns it. None calls
``plt.show()``, so they work in a notebook, in a script and under the Agg backend alike. Shapes: N examples, C classes.
"""

from pyrobnn.reporting.figures import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILLION
from pyrobnn.reporting.plots.calibration import pit_histogram, quantile_calibration
from pyrobnn.reporting.plots.classification import confidence_histogram, reliability, uncertainty_histogram
from pyrobnn.reporting.plots.detection import detection
from pyrobnn.reporting.plots.generalization import WidthSweep, double_descent
from pyrobnn.reporting.plots.images import image_grid, uncertainty_maps
from pyrobnn.reporting.plots.ranks import rank_ecdf, rank_histogram
from pyrobnn.reporting.plots.regression import regression_band
from pyrobnn.reporting.plots.selective import risk_coverage
from pyrobnn.reporting.plots.simplex import simplex
from pyrobnn.reporting.plots.training import ElboHistory, elbo

__all__ = [
    "BLACK",
    "BLUE",
    "GREEN",
    "ORANGE",
    "PURPLE",
    "SKY",
    "VERMILLION",
    "ElboHistory",
    "WidthSweep",
    "confidence_histogram",
    "detection",
    "double_descent",
    "elbo",
    "image_grid",
    "pit_histogram",
    "quantile_calibration",
    "rank_ecdf",
    "rank_histogram",
    "regression_band",
    "reliability",
    "risk_coverage",
    "simplex",
    "uncertainty_histogram",
    "uncertainty_maps",
]
