"""BayesianClassifier: classes, with probabilities."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data

from pyrobnn.model.likelihoods import Categorical, Likelihood
from pyrobnn.model.standardization import Standardizer
from pyrobnn.sklearn.base import BayesianEstimator

__all__ = ["BayesianClassifier"]


class BayesianClassifier(ClassifierMixin, BayesianEstimator):
    """A Bayesian network for classes, as an estimator of scikit-learn.

    ::

        from pyrobnn.sklearn import BayesianClassifier

        classifier = BayesianClassifier(random_state=0).fit(X, y)
        probabilities = classifier.predict_proba(X_test)
        ignorance = classifier.predictive(X_test).epistemic  # mutual information in nats

    Inputs are standardized. Probabilities are means over the posterior's draws. The default is an ensemble of ten
    perceptrons that start at weights of He's scale. A share of each class chooses the epoch to stop at.

    Args and attributes are those of :class:`~pyrobnn.sklearn.BayesianRegressor`, without ``likelihood`` and
    ``scale_targets``; the default network has one output for each class.

    Attributes:
        classes_: The labels, sorted.
    """

    classes_: np.ndarray

    def fit(self, X: Any, y: Any) -> Self:
        """Fits the posterior.

        Args:
            X: Inputs ``[N, D]``, an array or a data frame of numbers.
            y: Labels ``[N]`` of any kind.

        Returns:
            The estimator.

        Raises:
            TypeError: If an option is of another kind.
            ValueError: If there are fewer than two rows or classes, a number is NaN or infinite, or an option is out of
                range.
        """
        self._forget()
        X, y = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2, reset=True)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y: it has one class only, {self.classes_[0]!r}; a classifier needs two at least.")
        inputs = torch.tensor(X)  # a copy, for X may be read-only
        scaler = Standardizer(inputs)
        return self._fit(scaler.inputs(inputs).float(), torch.as_tensor(labels), scaler, "he", labels)

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each row of ``X [N, D]``, ``[N]``."""
        chosen = self.predict_proba(X).argmax(1)  # which says that there must be a fit before
        return self.classes_[chosen]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities of the classes, in the order of ``classes_``.

        Args:
            X: Inputs ``[N, D]``.

        Returns:
            ``[N, C]``.
        """
        return torch.cat([part.mean for part in self._predictions(X)]).cpu().numpy()

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Their logarithms ``[N, C]``, minus infinity where a probability is too small to be represented."""
        with np.errstate(divide="ignore"):
            return np.log(self.predict_proba(X))

    def _likelihood(self) -> tuple[Likelihood, int]:
        return Categorical(), len(self.classes_)
