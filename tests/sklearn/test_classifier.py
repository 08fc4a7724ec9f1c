"""BayesianClassifier: known answers, labels and probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler
from torch import nn

from pyrobnn.sklearn import POSTERIORS, BayesianClassifier

QUICK: dict[str, Any] = {"epochs": 25, "hidden_layer_sizes": 20, "random_state": 0}


def clouds(rows: int = 300, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian clouds, a third of whose rows lie beside others'."""
    random = np.random.default_rng(0)
    labels = random.integers(0, classes, rows)
    return 2.0 * np.eye(classes)[labels] + random.normal(size=(rows, classes)), labels


X, Y = clouds()


def test_a_linear_network_is_logistic_regression() -> None:
    """With a standard normal prior, which is scikit-learn's penalty with C = 1 on standardized inputs."""

    def linear(inputs: int, outputs: int) -> nn.Module:
        return nn.Linear(inputs, outputs)

    options: dict[str, Any] = {"early_stopping": False, "epochs": 40, "lr": 0.1, "random_state": 0}
    fitted = BayesianClassifier("map", net=linear, **options).fit(X, Y)
    inputs = StandardScaler().fit_transform(X)
    expected = LogisticRegression(C=1.0).fit(inputs, Y).predict_proba(inputs)
    # The network's intercepts have the prior, too, and steps are those of batches of 64 of 300 rows.
    assert np.abs(fitted.predict_proba(X) - expected).max() < 0.03


def test_the_default_ensemble_on_digits() -> None:
    x, y = load_digits(return_X_y=True)
    fitted = BayesianClassifier(random_state=0, epochs=40).fit(x[:1000], y[:1000])
    proba = fitted.predict_proba(x[1000:])
    assert fitted.score(x[1000:], y[1000:]) > 0.92  # logistic regression: 0.92
    assert log_loss(y[1000:], proba) < 0.35
    assert np.exp(fitted.predict_log_proba(x[1000:])) == pytest.approx(proba)


@pytest.mark.parametrize("posterior", sorted(POSTERIORS.keys() - {"delta_mixture"}))
def test_every_family_by_name_separates_the_clouds(posterior: str) -> None:
    fitted = BayesianClassifier(posterior, num_samples=20, lr=1e-2, **QUICK).fit(X, Y)
    assert fitted.score(X, Y) > 0.75  # the best rule: about 0.85
    assert log_loss(Y, fitted.predict_proba(X)) < 0.9  # of a constant: 1.1
    assert np.allclose(fitted.predict_proba(X).sum(1), 1.0)


def test_unknown_inputs_have_more_epistemic_uncertainty() -> None:
    fitted = BayesianClassifier(**QUICK).fit(X, Y)
    far = fitted.predictive(10.0 * np.random.default_rng(1).normal(size=(100, 3)) - 5.0)
    assert float(far.epistemic.mean()) > 2.0 * float(fitted.predictive(X).epistemic.mean())


def test_each_class_is_trained_on_and_held_out() -> None:
    rare = np.where(np.arange(300) < 3, 3, Y)  # three rows of a fourth class
    fitted = BayesianClassifier("map", **QUICK).fit(X, rare)
    assert fitted.predict_proba(X).shape == (300, 4)
    assert 268 <= fitted.model_.num_data <= 272


def test_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="y: it has one class only"):
        BayesianClassifier(**QUICK).fit(X, np.ones(len(X), dtype=int))


def test_a_fit_that_fails_leaves_no_posterior_of_other_classes() -> None:
    found = BayesianClassifier(**QUICK).fit(X, np.arange(len(X)) % 3)
    with pytest.raises(ValueError, match="lr: "):
        found.set_params(lr=-1.0).fit(X, np.where(np.arange(len(X)) % 2, "b", "a"))
    with pytest.raises(NotFittedError):
        found.predict(X)


def test_real_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="Unknown label type"):
        BayesianClassifier(**QUICK).fit(X, X[:, 0])
