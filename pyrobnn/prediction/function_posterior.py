"""Posteriors over functions that have no draws of weights; predict and predict_joint take them in place of a guide."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import nn

from pyrobnn.prediction.draws import check_posterior
from pyrobnn.prediction.predictor import Predictor, PredictorFactory, PredictorOptions

__all__ = ["FunctionPosterior", "check_predicted", "own_predictor"]


class FunctionPosterior(ABC):
    """A posterior over functions, which makes its own predictor.

    :func:`pyrobnn.predict`, :func:`pyrobnn.predict_joint` and what is built on them (reports, metrics over a loader)
    take it as the posterior. What needs weights (attacks, checks of guides, ArviZ) refuses it.
    """

    @abstractmethod
    def predictor(self, model: nn.Module, options: PredictorOptions) -> Predictor:
        """The predictor.

        Args:
            model: The model, which must be the one of the posterior.
            options: How to predict.

        Raises:
            ValueError: If the model is another one.
        """


def own_predictor(model: nn.Module, posterior: Any, options: PredictorOptions) -> Predictor:
    """The predictor of a posterior over functions, as a :data:`~pyrobnn.prediction.PredictorFactory`."""
    found: Predictor = posterior.predictor(model, options)
    return found


def check_predicted(model: nn.Module, posterior: Any, predictor: str | PredictorFactory | None) -> None:
    """Refuses what is no posterior of the model, and another predictor than that of functions.

    Raises:
        TypeError: If the posterior is of another kind or precision.
        ValueError: If it is another model's, or ``predictor`` needs weights that it does not have.
    """
    if not isinstance(posterior, FunctionPosterior):
        check_posterior(model, posterior)
    elif predictor is not None:
        raise ValueError(
            f"predictor: {type(posterior).__name__} is a posterior over functions and predicts by itself; leave out "
            f"predictor, got {predictor!r}."
        )
