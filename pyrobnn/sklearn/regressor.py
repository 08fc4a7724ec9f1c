"""BayesianRegressor: real-valued targets, with intervals."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, TypeAlias

import numpy as np
import torch
from sklearn.base import RegressorMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_consistent_length, check_is_fitted, validate_data
from torch import Tensor

from pyrobnn.model import likelihoods
from pyrobnn.model.likelihoods import Likelihood
from pyrobnn.model.likelihoods.predictions import Prediction
from pyrobnn.model.priors import PriorSpec
from pyrobnn.model.standardization import Standardizer
from pyrobnn.sklearn.base import BayesianEstimator
from pyrobnn.sklearn.network import NetworkSpec
from pyrobnn.sklearn.posteriors import PosteriorSpec

__all__ = ["LIKELIHOODS", "BayesianRegressor", "LikelihoodSpec"]

LikelihoodSpec: TypeAlias = str | Likelihood
"""A name in :data:`LIKELIHOODS`, or a likelihood, of which each fit trains a copy."""

LIKELIHOODS: Mapping[str, Callable[[], Likelihood]] = {
    "normal": likelihoods.Normal,
    "heteroscedastic_normal": likelihoods.HeteroscedasticNormal,
    "student_t": likelihoods.StudentT,
    "laplace": likelihoods.Laplace,
}
"""Noise by name."""

_MOST_OUTPUTS = 200  # for each target, of a likelihood that does not say how many it takes


class BayesianRegressor(RegressorMixin, BayesianEstimator):
    r"""A Bayesian network for real-valued targets, as an estimator of scikit-learn.

    ::

        from pyrobnn.sklearn import BayesianRegressor

        regressor = BayesianRegressor(random_state=0).fit(X, y)
        mean, std = regressor.predict(X_test, return_std=True)
        low, high = regressor.predict_interval(X_test, coverage=0.9).T

    Inputs and targets are brought to zero mean and unit standard deviation, and predictions come back in the targets'
    units. The noise is learned. A tenth of the rows chooses the epoch to stop at, and is no part of the posterior.
    With the same ``random_state`` a fit gives the same estimator, whose predictions never differ between calls.

    The default is an ensemble of ten perceptrons with noise of its own for each input: each network gives a mean
    :math:`f(x)` and a scale :math:`\sigma(x)`, and the predictive is the mixture
    :math:`\frac1{10} \sum_m N(y; f_m(x), \sigma_m^2(x))` (Lakshminarayanan et al. 2017). Several targets
    (``y`` of ``[N, T]``) are independent given the weights.

    Args:
        posterior: The family, by name (:data:`~pyrobnn.sklearn.POSTERIORS`: ``"ensemble"``, ``"mean_field"``,
            ``"laplace"``, ``"last_layer_laplace"``, ``"low_rank_normal"``, ``"low_rank_ensemble"``, ``"mc_dropout"``,
            ``"swag"``, ``"map"``), or a function of the model that builds a guide, such as a class of
            :mod:`pyrobnn.guides`.
        net: A network of D inputs, which is copied, or a function ``(num_inputs, num_outputs) -> module``. None: a
            perceptron of two hidden layers of ReLU units.
        hidden_layer_sizes: Widths of its hidden layers; None: twice 50, from 5,000 rows on 100, from 50,000 on 200.
        prior: Prior or prior rules of the weights; None for the default
            (:func:`~pyrobnn.model.bayesianize.bayesianize`).
        posterior_options: Further arguments of the guide, such as ``{"num_members": 5}``.
        epochs: Passes over the data at most; None: as many as make 2,000 gradient steps, and at least 20.
        lr: Learning rate of Adam at the start, which falls along a cosine; None: 1e-2, of ``"low_rank_normal"`` 1e-3.
        batch_size: Rows of a gradient step; None: 64, from 10,000 rows on 256.
        early_stopping: Hold rows out, and return to the epoch that predicts them best. Below 50 rows none are.
        validation_fraction: Share of the rows that is held out; at least 10 rows are.
        patience: Epochs without a better value after which training ends; None: a tenth of all, and at least 10.
        num_samples: Draws of a prediction; an ensemble has one for each member.
        device: Where to train and predict.
        random_state: Seeds the weights, the order and choice of rows, and the draws, and nothing outside.
        verbose: Show a progress bar.
        likelihood: The noise: ``"heteroscedastic_normal"``, ``"normal"`` (one scale for all), ``"student_t"``,
            ``"laplace"``, or any of :mod:`pyrobnn.likelihoods`. Counts and positive targets take
            ``scale_targets=False``.
        scale_targets: Bring targets to unit scale. Only for likelihoods with a location and a scale.

    Attributes:
        model_: The :class:`~pyrobnn.SupervisedModel`, in standard units and double precision.
        guide_: The fitted guide; ``pb.check`` and the rest of the library take both.
        standardizer_: Shift and scale of inputs and targets.
        history_: What :func:`pyrobnn.fit` returned.
        n_iter_: Epochs that were trained.
        n_features_in_: Number D of inputs.
        feature_names_in_: Their names, where ``X`` had some.
    """

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
        likelihood: LikelihoodSpec = "heteroscedastic_normal",
        scale_targets: bool = True,
    ) -> None:
        super().__init__(
            posterior,
            net=net,
            hidden_layer_sizes=hidden_layer_sizes,
            prior=prior,
            posterior_options=posterior_options,
            epochs=epochs,
            lr=lr,
            batch_size=batch_size,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            patience=patience,
            num_samples=num_samples,
            device=device,
            random_state=random_state,
            verbose=verbose,
        )
        self.likelihood = likelihood
        self.scale_targets = scale_targets

    def fit(self, X: Any, y: Any) -> Self:
        """Fits the posterior.

        Args:
            X: Inputs ``[N, D]``, an array or a data frame of numbers.
            y: Targets ``[N]`` or ``[N, T]``.

        Returns:
            The estimator.

        Raises:
            TypeError: If an option is of another kind.
            ValueError: If there are fewer than two rows, a number is NaN or infinite, or an option is out of range.
        """
        self._forget()
        X, y = validate_data(
            self, X, y, dtype=np.float64, multi_output=True, y_numeric=True, ensure_min_samples=2, reset=True
        )
        self._is_table = y.ndim == 2
        inputs = torch.tensor(X)  # a copy, for X may be read-only
        targets = torch.tensor(y, dtype=torch.float64).reshape(len(y), -1)
        self._num_targets = targets.shape[1]
        scaler = Standardizer(inputs, targets if self.scale_targets else None)
        own = scaler.targets(targets) if self.scale_targets else targets
        return self._fit(scaler.inputs(inputs).float(), own.float(), scaler, None)

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Predictive means, and standard deviations.

        Args:
            X: Inputs ``[N, D]``.
            return_std: Return standard deviations, too: of a target, which is what the weights leave open and noise.

        Returns:
            Means ``[N]`` (``[N, T]`` if ``y`` was a table), or a pair of means and standard deviations.
        """
        parts = [(part.mean, part.std) for part in self._predictions(X)]
        mean, std = (self._shaped(torch.cat(each)) for each in zip(*parts, strict=True))
        return (mean, std) if return_std else mean

    def predict_quantiles(self, X: Any, alpha: float | Sequence[float] = (0.05, 0.5, 0.95)) -> np.ndarray:
        """Quantiles of the predictive mixture.

        Args:
            X: Inputs ``[N, D]``.
            alpha: Probabilities; one, or Q of them.

        Returns:
            ``[N, Q]`` (``[N, T, Q]`` if ``y`` was a table), Q = 1 for one.

        Raises:
            ValueError: If a probability is not between 0 and 1, or the likelihood's distribution has no cdf.
        """
        levels = np.atleast_1d(np.asarray(alpha, dtype=np.float64)).tolist()
        found = torch.cat([part.quantile(levels).movedim(0, -1) for part in self._predictions(X)])
        return self._shaped(found)

    def predict_interval(self, X: Any, coverage: float = 0.9) -> np.ndarray:
        """Central intervals of the predictive mixture.

        Args:
            X: Inputs ``[N, D]``.
            coverage: The probability that a target is in it.

        Returns:
            Lower and upper ends ``[N, 2]`` (``[N, T, 2]`` if ``y`` was a table).

        Raises:
            ValueError: If ``coverage`` is not between 0 and 1.
        """
        found = torch.cat([torch.stack(part.interval(coverage), -1) for part in self._predictions(X)])
        return self._shaped(found)

    def log_prob(self, X: Any, y: Any) -> np.ndarray:
        """Log densities of targets under the predictive mixture, in nats, in the targets' units.

        Args:
            X: Inputs ``[N, D]``.
            y: Targets ``[N]`` or ``[N, T]``.

        Returns:
            ``[N]``; of several targets the log density of all.

        Raises:
            ValueError: If ``X`` and ``y`` have different numbers of rows, or ``y`` another number of targets.
        """
        check_is_fitted(self)
        check_consistent_length(X, y)
        values = torch.tensor(np.asarray(y, dtype=np.float64)).reshape(len(y), -1)
        if values.shape[1] != self._num_targets:
            raise ValueError(f"y: expected {self._num_targets} targets of each row, got {values.shape[1]}.")
        parts, start = [], 0
        for part in self._predictions(X):
            rows = values[start : start + len(part)].to(part.mean.device)
            parts.append(part.log_prob(rows.reshape(part.target_shape)))
            start += len(part)
        return torch.cat(parts).cpu().numpy()

    def _likelihood(self) -> tuple[Likelihood, int]:
        made = self.likelihood
        if isinstance(made, str):
            if made not in LIKELIHOODS:
                known = ", ".join(map(repr, LIKELIHOODS))
                raise ValueError(f"likelihood: expected one of {known}, or a likelihood, got {made!r}.")
            made = LIKELIHOODS[made]()
        elif not isinstance(made, Likelihood):
            raise TypeError(f"likelihood: expected a name or one of pyrobnn.likelihoods, got {made!r}.")
        own = copy.deepcopy(made)
        return own, _num_outputs(own, self._num_targets)

    def _in_own_units(self, prediction: Prediction) -> Prediction:
        return self.standardizer_.undo(prediction) if self.scale_targets else prediction

    def _shaped(self, found: Tensor) -> np.ndarray:
        return (found if self._is_table else found.squeeze(1)).cpu().numpy()

    def __sklearn_tags__(self) -> Tags:
        """Several targets are allowed."""
        tags = super().__sklearn_tags__()
        tags.target_tags.single_output, tags.target_tags.multi_output = True, True
        return tags


def _num_outputs(likelihood: Likelihood, num_targets: int) -> int:
    """The smallest number of outputs under which the likelihood takes targets of this number for each row."""
    for count in range(1, _MOST_OUTPUTS * num_targets + 1):
        try:
            if likelihood.target_shape(torch.zeros(2, count)) == (2, num_targets):
                return count
        except ValueError:  # it takes another number of outputs
            continue
    raise ValueError(
        f"likelihood: {type(likelihood).__name__} takes no table of {num_targets} targets for each row, whatever the "
        "number of outputs."
    )
