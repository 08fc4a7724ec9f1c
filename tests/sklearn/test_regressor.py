"""BayesianRegressor: known answers, units, intervals, targets of several columns, and bad input."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.linear_model import BayesianRidge
from torch import nn

import pyrobnn as pb
from pyrobnn.sklearn import POSTERIORS, BayesianRegressor

QUICK: dict[str, Any] = {"epochs": 30, "hidden_layer_sizes": 20, "random_state": 0}


def line(rows: int = 400, noise: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """A linear function of three columns of different scales, with Gaussian noise."""
    random = np.random.default_rng(0)
    x = random.normal(size=(rows, 3)) * [1.0, 100.0, 0.01] + [5.0, -300.0, 0.0]
    y = 1000.0 + 4.0 * x[:, 0] + 0.05 * x[:, 1] - 300.0 * x[:, 2] + noise * random.normal(size=rows)
    return x, y


X, Y = line()


def linear(inputs: int, outputs: int) -> nn.Module:
    return nn.Linear(inputs, outputs)


class TestKnownAnswers:
    def test_a_linear_network_is_bayesian_ridge(self) -> None:
        """400 rows decide means, noise and standard deviations; both priors are wide beside them."""
        options = {"posterior_options": {"structure": "full"}, "epochs": 300, "lr": 3e-2, "random_state": 0}
        fitted = BayesianRegressor(pb.guides.Laplace, net=linear, likelihood="normal", **options).fit(X, Y)
        ridge = BayesianRidge().fit(X / X.std(0), Y)
        mean, std = fitted.predict(X, return_std=True)
        expected, expected_std = ridge.predict(X / X.std(0), return_std=True)
        # A tenth of the rows is not trained on: standard errors are 0.1 (of the mean, by 4 weights of 400 rows).
        assert np.abs(mean - expected).max() < 4 * 0.1 * 2.0
        assert std == pytest.approx(expected_std, rel=0.1)

    def test_the_density_is_that_of_one_gaussian_where_there_is_one_network(self) -> None:
        fitted = BayesianRegressor("map", likelihood="normal", **QUICK).fit(X, Y)
        mean, std = fitted.predict(X[:9], return_std=True)
        assert fitted.log_prob(X[:9], Y[:9]) == pytest.approx(norm.logpdf(Y[:9], mean, std), rel=1e-6)
        assert fitted.predict_quantiles(X[:9], 0.2)[:, 0] == pytest.approx(norm.ppf(0.2, mean, std), rel=1e-5)
        low, high = fitted.predict_interval(X[:9], coverage=0.8).T
        assert low == pytest.approx(norm.ppf(0.1, mean, std), rel=1e-5)
        assert high == pytest.approx(norm.ppf(0.9, mean, std), rel=1e-5)

    def test_intervals_cover_as_many_new_rows_as_they_say(self) -> None:
        x, y = line(2400)
        fitted = BayesianRegressor("mean_field", **{**QUICK, "epochs": None}).fit(x[:400], y[:400])
        low, high = fitted.predict_interval(x[400:], coverage=0.9).T
        # 2,000 rows: a standard error of 0.007; the noise is fitted on 360 rows, which moves coverage by 0.015.
        assert abs(((low < y[400:]) & (y[400:] < high)).mean() - 0.9) < 4 * 0.0165

    def test_the_noise_is_learned_by_input(self) -> None:
        random = np.random.default_rng(1)
        x = random.uniform(-1.0, 1.0, (800, 1))
        y = x[:, 0] + np.where(x[:, 0] > 0, 1.0, 0.1) * random.normal(size=800)
        fitted = BayesianRegressor("map", random_state=0).fit(x, y)
        std = fitted.predict([[-0.7], [0.7]], return_std=True)[1]
        # Noise scales from 360 rows each have a standard error of 4 %; a network smooths beside that.
        assert std == pytest.approx([0.1, 1.0], rel=0.2)


class TestUnits:
    def test_a_change_of_units_changes_predictions_as_it_should(self) -> None:
        first = BayesianRegressor("map", **QUICK).fit(X, Y)
        second = BayesianRegressor("map", **QUICK).fit(X * [1e3, 1e-3, 1.0] + 7.0, 1e-4 * Y - 20.0)
        new = X[:20] * [1e3, 1e-3, 1.0] + 7.0
        mean, std = first.predict(X[:20], return_std=True)
        found, found_std = second.predict(new, return_std=True)
        # Rounding to single precision, which grows with the steps of training.
        assert found == pytest.approx(1e-4 * mean - 20.0, rel=1e-3)
        assert found_std == pytest.approx(1e-4 * std, rel=1e-2)
        assert second.log_prob(new, 1e-4 * Y[:20] - 20.0) == pytest.approx(
            first.log_prob(X[:20], Y[:20]) - np.log(1e-4), abs=0.05
        )

    def test_counts_keep_their_own_scale(self) -> None:
        random = np.random.default_rng(0)
        x = random.normal(size=(300, 2))
        y = random.poisson(np.exp(1.0 + 0.5 * x[:, 0]))
        fitted = BayesianRegressor("map", likelihood=pb.likelihoods.Poisson(), scale_targets=False, **QUICK).fit(x, y)
        # A rate at the mean input from 270 rows: a standard error of 4 % in a linear model, and a network's bias.
        assert fitted.predict([[0.0, 0.0]]) == pytest.approx([np.e], rel=0.25)


class TestShapes:
    def test_several_targets(self) -> None:
        both = np.stack([Y, -2.0 * Y], 1)
        fitted = BayesianRegressor(**QUICK).fit(X, both)
        mean, std = fitted.predict(X[:5], return_std=True)
        assert mean.shape == std.shape == (5, 2)
        assert fitted.predict_interval(X[:5]).shape == (5, 2, 2)
        assert fitted.predict_quantiles(X[:5], [0.1, 0.5, 0.9]).shape == (5, 2, 3)
        assert fitted.log_prob(X[:5], both[:5]).shape == (5,)
        assert fitted.score(X, both) > 0.8

    def test_any_number_of_rows_is_predicted_alike(self) -> None:
        fitted = BayesianRegressor("mean_field", num_samples=5, **QUICK).fit(X, Y)
        many = np.tile(X, (6, 1))  # 2,400 rows: three parts
        assert fitted.predict(many)[2000:] == pytest.approx(fitted.predict(X), rel=1e-12)
        assert len(fitted.predictive(many)) == 2400

    def test_the_default_noise_needs_two_outputs_of_a_network(self) -> None:
        with pytest.raises(ValueError, match="HeteroscedasticNormal expects outputs"):
            BayesianRegressor(net=nn.Linear(3, 1), **{**QUICK, "hidden_layer_sizes": None}).fit(X, Y)

    def test_a_given_network_is_copied(self) -> None:
        net = nn.Linear(3, 2)
        before = net.weight.detach().clone()
        fitted = BayesianRegressor("map", net=net, epochs=2, random_state=0).fit(X, Y)
        assert torch.equal(net.weight, before)
        assert fitted.n_iter_ == 2

    def test_a_mixture_has_as_many_outputs_as_it_takes(self) -> None:
        mixture = pb.likelihoods.MixtureDensity(3)
        fitted = BayesianRegressor("map", likelihood=mixture, **QUICK).fit(X, Y)
        assert list(fitted.model_.net.network.parameters())[-1].shape == (9,)
        assert np.isfinite(fitted.log_prob(X, Y)).all()


@pytest.mark.parametrize("posterior", sorted(POSTERIORS.keys() - {"delta_mixture"}))
def test_every_family_by_name_learns_a_line(posterior: str) -> None:
    fitted = BayesianRegressor(posterior, num_samples=20, lr=1e-2, **QUICK).fit(X, Y)
    assert fitted.score(X, Y) > 0.5
    constant = norm.logpdf(Y, Y.mean(), Y.std()).mean()
    assert fitted.log_prob(X, Y).mean() > constant


def test_an_ensemble_has_two_names_and_ten_members() -> None:
    assert POSTERIORS["ensemble"] is POSTERIORS["delta_mixture"]
    assert BayesianRegressor(**{**QUICK, "epochs": 1}).fit(X, Y).guide_.facts.num_points == 10


def test_a_constructor_with_options_of_its_own() -> None:
    fitted = BayesianRegressor(partial(pb.guides.DeltaMixture, num_members=3), **QUICK).fit(X, Y)
    assert fitted.guide_.facts.num_points == 3
    assert fitted.predictive(X[:2]).num_samples == 3


def test_held_out_rows_are_no_part_of_the_posterior() -> None:
    fitted = BayesianRegressor("map", **QUICK).fit(X, Y)
    assert fitted.model_.num_data == 360
    assert BayesianRegressor("map", early_stopping=False, **QUICK).fit(X, Y).model_.num_data == 400
    assert BayesianRegressor("map", **QUICK).fit(X[:49], Y[:49]).model_.num_data == 49


class TestBadInput:
    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_numbers_that_are_not_finite(self, value: float) -> None:
        broken = X.copy()
        broken[3, 1] = value
        with pytest.raises(ValueError, match="Input X contains"):
            BayesianRegressor(**QUICK).fit(broken, Y)
        fitted = BayesianRegressor("map", **QUICK).fit(X, Y)
        with pytest.raises(ValueError, match="Input X contains"):
            fitted.predict(broken)

    @pytest.mark.parametrize(
        ("options", "named"),
        [
            ({"posterior": "meanfield"}, "posterior: expected one of 'map'"),
            ({"posterior": 3}, "posterior: expected a name"),
            ({"posterior": lambda model: model}, "posterior: expected one of pyrobnn.guides"),
            ({"likelihood": "gauss"}, "likelihood: expected one of 'normal'"),
            ({"likelihood": 0.5}, "likelihood: expected a name"),
            ({"likelihood": pb.likelihoods.Categorical()}, "likelihood: Categorical takes no table"),
            ({"net": 3, "hidden_layer_sizes": None}, "net: expected a module"),
            ({"net": lambda a, b: 3, "hidden_layer_sizes": None}, "net: the function returned a int"),
            ({"net": nn.Linear(3, 2)}, "hidden_layer_sizes: they are those of the default"),
            ({"hidden_layer_sizes": "50"}, "hidden_layer_sizes: expected widths"),
            ({"hidden_layer_sizes": (50, 0)}, "hidden_layer_sizes: expected a positive int"),
            ({"epochs": 0}, "epochs: expected a positive int"),
            ({"lr": 0.0}, "lr: "),
            ({"num_samples": 1.5}, "num_samples: expected a positive int"),
            ({"validation_fraction": 1.0}, "validation_fraction: expected a share below 1"),
            ({"early_stopping": "yes"}, "early_stopping: expected True or False"),
            ({"device": "warp"}, "device: expected a device"),
        ],
    )
    def test_options_are_named(self, options: dict[str, Any], named: str) -> None:
        with pytest.raises((TypeError, ValueError), match=named):
            BayesianRegressor(**{**QUICK, **options}).fit(X, Y)

    def test_targets_of_other_rows_are_not_scored(self) -> None:
        fitted = BayesianRegressor("map", **QUICK).fit(X, Y)
        assert fitted.log_prob(X[:5], Y[:5]).shape == (5,)
        for rows in (4, 6):
            with pytest.raises(ValueError, match="inconsistent numbers of samples"):
                fitted.log_prob(X[:5], Y[:rows])
        with pytest.raises(ValueError, match="y: expected 1 targets of each row, got 2"):
            fitted.log_prob(X[:5], np.stack([Y[:5], Y[:5]], 1))
