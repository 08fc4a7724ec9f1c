"""What the two estimators share: their options, one fit, and predictions in batches of rows."""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from pyrobnn.core import random_state as random_states
from pyrobnn.core.arguments import check_device, check_positive, check_positive_int
from pyrobnn.guides import Guide
from pyrobnn.model.initialization import Init
from pyrobnn.model.likelihoods import Likelihood
from pyrobnn.model.likelihoods.predictions import Prediction
from pyrobnn.model.priors import PriorSpec
from pyrobnn.model.standardization import Standardizer
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.prediction import predict
from pyrobnn.sklearn.network import NetworkSpec, network
from pyrobnn.sklearn.posteriors import PosteriorSpec, Training, fit_posterior
from pyrobnn.sklearn.rows import ShuffledBatches, default_batch_size, held_out_rows

__all__ = ["BayesianEstimator"]

_ROWS = 1024
"""Rows of a table that are predicted at a time, so that memory does not grow with it."""


class BayesianEstimator(BaseEstimator, metaclass=ABCMeta):
    """Base class of the estimators; the options are those of :class:`~pyrobnn.sklearn.BayesianRegressor`.

    There is no ``partial_fit``: gradient steps on further rows would forget the earlier ones, and a posterior that
    is updated that way would be none of all rows. Fit again when there are more. There are no ``sample_weight``.
    """

    standardizer_: Standardizer
    model_: SupervisedModel
    guide_: Guide

    def __init__(
        self,
        posterior: PosteriorSpec = "ensemble",
        *,
        net: NetworkSpec = None,
        hidden_layer_sizes: Sequence[int] | int | None = None,
        prior: PriorSpec | None = None,
        posterior_options: Mapping[str, Any] | None = None,
        epochs: int | None = None,
        lr: float | None = None,
        batch_size: int | None = None,
        early_stopping: bool = True,
        validation_fraction: float = 0.1,
        patience: int | None = None,
        num_samples: int = 100,
        device: torch.device | str | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
    ) -> None:
        self.posterior = posterior
        self.net = net
        self.hidden_layer_sizes = hidden_layer_sizes
        self.prior = prior
        self.posterior_options = posterior_options
        self.epochs = epochs
        self.lr = lr
        self.batch_size = batch_size
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.num_samples = num_samples
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    # ------------------------------------------------------------------------------------------- fitting

    def _forget(self) -> None:
        """Is not fitted until the next fit ends: an earlier posterior does not fit other classes or columns."""
        if self.__sklearn_is_fitted__():
            del self.guide_

    @abstractmethod
    def _likelihood(self) -> tuple[Likelihood, int]:
        """A new likelihood, and how many outputs of the network it takes."""

    def _fit(self, x: Tensor, y: Tensor, scaler: Standardizer, init: Init, labels: np.ndarray | None = None) -> Self:
        """Fits the posterior to inputs and targets in standard units.

        Args:
            x: Inputs ``[N, D]``.
            y: Targets ``[N, ...]``.
            scaler: How they were made standard.
            init: Where guides of the default network start.
            labels: Classes ``[N]``, of each of which a share is held out; None for targets without classes.
        """
        self._check_options()
        random = check_random_state(self.random_state)
        seed = int(random.randint(np.iinfo(np.int32).max))
        rows, held = np.arange(len(x)), np.arange(0)
        if self.early_stopping:
            rows, held = held_out_rows(len(x), self.validation_fraction, random, labels)
        likelihood, num_outputs = self._likelihood()
        batch_size = default_batch_size(len(x)) if self.batch_size is None else self.batch_size
        with random_states.local(seed):
            net = network(self.net, self.hidden_layer_sizes, x.shape[1], num_outputs, len(x))
            model = SupervisedModel(net, likelihood, self.prior, num_data=len(rows))
            training = Training(
                model=model,
                batches=ShuffledBatches(x[rows], y[rows], batch_size),
                validation=[(x[held], y[held])] if len(held) else None,
                init=init if self.net is None else None,
                epochs=self.epochs,
                lr=self.lr,
                patience=self.patience,
                seed=seed,
                options={"progress": bool(self.verbose), "device": self.device},
            )
            guide, history = fit_posterior(self.posterior, self.posterior_options, training)
        # In double precision a row's prediction is the same whatever rows it is predicted with.
        self.model_, self.guide_, self.standardizer_ = model.double(), guide.double(), scaler.double()
        self.history_, self.n_iter_, self._seed = history, history.epochs, seed
        return self

    def _check_options(self) -> None:
        for name in ("epochs", "batch_size", "patience"):
            if getattr(self, name) is not None:
                check_positive_int(name, getattr(self, name))
        check_positive_int("num_samples", self.num_samples)
        if self.lr is not None:
            check_positive("lr", self.lr, "learning rate")
        check_device("device", self.device)
        if not isinstance(self.early_stopping, bool | np.bool_):
            raise TypeError(f"early_stopping: expected True or False, got {self.early_stopping!r}.")
        check_positive("validation_fraction", self.validation_fraction, "share of the rows")
        if self.validation_fraction >= 1.0:
            raise ValueError(f"validation_fraction: expected a share below 1, got {self.validation_fraction!r}.")

    # ---------------------------------------------------------------------------------------- prediction

    def predictive(self, X: Any) -> Prediction:
        """The whole posterior predictive, for what scikit-learn has no name for.

        Args:
            X: Inputs ``[N, D]``.

        Returns:
            The prediction of all rows in the targets' units: mean, total, aleatoric and epistemic uncertainty, the
            draws, quantiles, scores (:func:`pyrobnn.predict`).
        """
        return Prediction.join(list(self._predictions(X)))

    def _predictions(self, X: Any) -> Iterator[Prediction]:
        """The same in parts of 1,024 rows, all by the same draws."""
        check_is_fitted(self)
        device = next(self.guide_.parameters()).device
        inputs = torch.tensor(validate_data(self, X, dtype=np.float64, reset=False), device=device)
        points = self.guide_.facts.num_points
        draws = self.num_samples if points is None else min(points, self.num_samples)
        for rows in self.standardizer_.to(device).inputs(inputs).split(_ROWS):
            found = predict(self.model_, self.guide_, rows, draws, batch_size=_ROWS, return_draws=True, seed=self._seed)
            yield self._in_own_units(found)

    def _in_own_units(self, prediction: Prediction) -> Prediction:
        return prediction

    def __sklearn_is_fitted__(self) -> bool:
        """Whether :meth:`fit` ended."""
        return "guide_" in vars(self)
