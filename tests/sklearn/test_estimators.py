"""scikit-learn's own checks of estimators, and its tools around them."""

from __future__ import annotations

import io
import pickle
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.feature_selection import SelectKBest, f_regression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
from sklearn.utils.estimator_checks import parametrize_with_checks

from pyrobnn.sklearn import BayesianClassifier, BayesianRegressor

QUICK: dict[str, Any] = {"epochs": 20, "posterior_options": {"num_members": 2}, "hidden_layer_sizes": 20}


def regressor(**options: Any) -> BayesianRegressor:
    return BayesianRegressor(**{**QUICK, "random_state": 0, **options})


def classifier(**options: Any) -> BayesianClassifier:
    return BayesianClassifier(**{**QUICK, "random_state": 0, **options})


# The checks fit noise, too, on which a network is no better than a constant, as `fit` says.
@pytest.mark.filterwarnings("ignore:.*constant:UserWarning")
@parametrize_with_checks([BayesianRegressor(**QUICK), BayesianClassifier(**QUICK)])
def test_scikit_learns_own_checks(estimator: Any, check: Any) -> None:
    check(estimator)


class TestTools:
    def test_a_grid_search_over_families_in_a_pipeline(self) -> None:
        x, y = load_diabetes(return_X_y=True)
        pipeline = make_pipeline(SelectKBest(f_regression, k=5), regressor(posterior_options=None))
        search = GridSearchCV(pipeline, {"bayesianregressor__posterior": ["map", "mean_field"]}, cv=2).fit(x, y)
        assert search.best_params_["bayesianregressor__posterior"] in ("map", "mean_field")
        assert search.best_score_ > 0.2  # of a constant: 0

    def test_cross_validation_by_the_log_density(self) -> None:
        x, y = load_diabetes(return_X_y=True)

        def log_density(estimator: BayesianRegressor, x: Any, y: Any) -> float:
            return float(estimator.log_prob(x, y).mean())

        found = cross_val_score(regressor(), x, y, cv=2, scoring=log_density)
        constant = -np.log(y.std()) - 0.5 * (1.0 + np.log(2.0 * np.pi))
        assert (found > constant).all()

    def test_calibration(self) -> None:
        x, y = load_breast_cancer(return_X_y=True)
        calibrated = CalibratedClassifierCV(classifier(), cv=2).fit(x[:400], y[:400])
        assert calibrated.score(x[400:], y[400:]) > 0.9
        assert np.allclose(calibrated.predict_proba(x[400:]).sum(1), 1.0)

    def test_columns_of_a_data_frame_in_a_pipeline(self) -> None:
        x, y = load_iris(return_X_y=True, as_frame=True)
        frame = x.assign(color=np.where(x.iloc[:, 0] > 5.8, "red", "blue"))
        encode = ColumnTransformer([("color", OneHotEncoder(), ["color"])], remainder="passthrough")
        pipeline = make_pipeline(encode, classifier()).fit(frame, y)
        assert pipeline.score(frame, y) > 0.8  # of one class: 0.33

    @pytest.mark.parametrize("module", [pickle, joblib])
    def test_a_pickle_predicts_the_same(self, module: Any) -> None:
        x, y = load_iris(return_X_y=True)
        fitted, file = classifier().fit(x, y), io.BytesIO()
        module.dump(fitted, file)
        file.seek(0)
        again = module.load(file)
        assert np.array_equal(again.predict_proba(x), fitted.predict_proba(x))


class TestDataFrames:
    def test_names_are_kept_and_checked(self) -> None:
        x, y = load_iris(return_X_y=True, as_frame=True)
        fitted = classifier().fit(x, y)
        assert list(fitted.feature_names_in_) == list(x.columns)
        with pytest.raises(ValueError, match="feature names should match"):
            fitted.predict(x.rename(columns={x.columns[0]: "another"}))

    def test_the_same_as_arrays(self) -> None:
        x, y = load_diabetes(return_X_y=True, as_frame=True)
        framed, plain = regressor().fit(x, y), regressor().fit(x.to_numpy(), y.to_numpy())
        assert np.array_equal(framed.predict(x), plain.predict(x.to_numpy()))

    def test_labels_are_those_that_were_given(self) -> None:
        x, y = load_iris(return_X_y=True)
        names = pd.Series(np.array(["setosa", "versicolor", "virginica"])[y])
        fitted = classifier().fit(x, names)
        assert list(fitted.classes_) == ["setosa", "versicolor", "virginica"]
        assert (fitted.predict(x) == names).mean() > 0.8


class TestRandomState:
    def test_it_decides_everything_and_leaves_the_state_around_alone(self) -> None:
        x, y = load_diabetes(return_X_y=True)
        torch.manual_seed(3)
        expected = torch.rand(1)
        torch.manual_seed(3)
        first = regressor().fit(x, y).predict(x)
        assert torch.equal(torch.rand(1), expected)
        assert np.array_equal(regressor().fit(x, y).predict(x), first)
        assert not np.array_equal(regressor(random_state=1).fit(x, y).predict(x), first)

    def test_a_clone_has_the_options_and_nothing_that_was_fitted(self) -> None:
        x, y = load_iris(return_X_y=True)
        copy = clone(classifier(lr=3e-3).fit(x, y))
        assert copy.lr == 3e-3
        with pytest.raises(Exception, match="not fitted"):
            copy.predict(x)
