"""fit warns once where it does not beat a constant, and only there; by digits and by what is known of the rest."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from pyrobnn import likelihoods, priors
from pyrobnn.guides import MAP, MeanField
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.objectives import ELBO
from pyrobnn.training import History, fit

LONG = {"progress": False, "seed": 0, "lr": 1e-2}


@cache
def digits(num_data: int) -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:num_data]
    return torch.as_tensor(images / 16.0, dtype=torch.float32)[chosen], torch.as_tensor(labels)[chosen]


def digits_model(num_data: int, prior: Any) -> SupervisedModel:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    return SupervisedModel(net, likelihoods.Categorical(), prior, num_data=num_data)


def line(num_data: int = 60) -> tuple[Tensor, Tensor]:
    x = torch.linspace(-1.0, 1.0, num_data).unsqueeze(-1)
    return x, 2.0 * x


def line_model(likelihood: likelihoods.Likelihood, outputs: int = 1, num_data: int = 60) -> SupervisedModel:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, outputs))
    return SupervisedModel(net, likelihood, dist.Normal(0.0, 1.0), num_data=num_data)


@pytest.mark.parametrize("family", [MAP, MeanField])
def test_collapsed_fits_are_warned_about_once(family: Any) -> None:
    x, y = digits(100)
    model = digits_model(100, priors.he())
    with pytest.warns(UserWarning, match="no better than a constant") as caught:
        fit(model, family(model), [(x, y)], epochs=900, callbacks=[lambda history: history.epochs == 310], **LONG)
    (warning,) = caught
    assert warning.filename == __file__
    said = str(warning.message)
    start = "after 300 of 900 epochs the fit is no better than a constant: the mean log likelihood is -2."
    assert said.startswith(start)
    # The best constant predicts the shares of the classes.
    shares = torch.bincount(y).double() / 100
    assert f"of the best constant predictor {float((shares * shares.log()).sum()):.4g}; " in said
    assert all(word in said for word in ("prior", "Standardizer", "epochs", "temperature", "pyrobnn.check"))


@pytest.mark.parametrize("family", [MAP, MeanField])
def test_fits_that_learn_are_not(family: Any) -> None:
    x, y = digits(100)
    model = digits_model(100, None)
    fit(model, family(model), [(x, y)], epochs=320, **LONG)


def test_a_constant_is_found_in_any_batches_and_by_weights() -> None:
    """Targets that no input explains, in sorted batches of two sizes; a class of weight 0 does not count."""
    y = torch.arange(8).repeat_interleave(30) % 4
    weight = (y != 3).float()
    x = torch.zeros(240, 1)
    model = SupervisedModel(nn.Linear(1, 4), likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=240)
    loader = [(x[s], y[s], weight[s]) for s in (slice(0, 200), slice(200, 240))]
    with pytest.warns(UserWarning, match=r"best constant predictor -0\.824; "):  # 3/4 log 3
        fit(model, MAP(model), loader, epochs=450, **LONG)


def test_nothing_is_said_before_the_time() -> None:
    x, y = digits(100)
    model = digits_model(100, priors.he())
    fit(model, MAP(model), [(x, y)], epochs=299, **LONG)  # of steps there are not enough
    stopped = fit(model, MAP(model), [(x, y)], epochs=960, callbacks=[lambda history: history.epochs == 319], **LONG)
    assert stopped.stopped == "callback"


def test_the_bound_of_the_comparison_is_that_of_check() -> None:
    """Noise of scale 1 hides a slope of 2 over ±0.05: the gain is its variance / 2, 0.0017 nats."""
    x, y = line()
    model = line_model(likelihoods.Normal(1.0))
    with pytest.warns(UserWarning, match="no better than a constant"):
        fit(model, MAP(model), [(x, 0.05 * y)], epochs=320, **LONG)


UNKNOWN: dict[str, tuple[likelihoods.Likelihood, int]] = {
    "latent noise": (likelihoods.Normal(dist.LogNormal(0.0, 1.0)), 1),
    "weighted density": (likelihoods.HeteroscedasticNormal(beta=1.0), 2),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_scores_that_are_no_log_likelihood_given_the_outputs_are_not_compared(name: str) -> None:
    likelihood, outputs = UNKNOWN[name]
    model = line_model(likelihood, outputs)
    noise = torch.randn(60, 1, generator=torch.Generator().manual_seed(0))
    fit(model, MAP(model), [(torch.zeros(60, 1), noise)], epochs=320, **LONG)


def test_the_plain_density_of_the_same_is() -> None:
    model = line_model(likelihoods.HeteroscedasticNormal(), 2)
    noise = torch.randn(60, 1, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="no better than a constant"):
        fit(model, MAP(model), [(torch.zeros(60, 1), noise)], epochs=320, **LONG)


def test_sorted_data_larger_than_what_is_kept() -> None:
    """Of 24,000 sorted rows every fourth is kept: log 2 is the constant's, not 0 as in the first rows."""
    x = torch.zeros(24_000, 1)
    y = (torch.arange(24_000) >= 12_000).float().unsqueeze(-1)
    model = SupervisedModel(nn.Linear(1, 1), likelihoods.Bernoulli(), dist.Normal(0.0, 1.0), num_data=24_000)
    loader = list(zip(x.split(300), y.split(300), strict=True))
    with pytest.warns(UserWarning, match=r"after 5 of 6 epochs .* best constant predictor -0\.6931; "):
        fit(model, MAP(model), loader, epochs=6, progress=False, lr=1e-3)


def test_training_is_as_without_the_comparison() -> None:
    """Draws after the comparison, modes, buffers and the noise are what they were."""

    def trained(epochs: int) -> tuple[History, dict[str, Tensor]]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(1, 8), nn.BatchNorm1d(8), nn.Dropout(0.1), nn.Linear(8, 1))
        model = SupervisedModel(net, likelihoods.Normal(), dist.Normal(0.0, 1.0), num_data=60)
        guide = MeanField(model)

        def stop(history: History) -> bool:
            return history.epochs == 310

        history = fit(model, guide, [line()], epochs=epochs, elbo=ELBO(), callbacks=[stop], **LONG)
        return history, {**model.state_dict(), **guide.state_dict()}

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (compared, state), (early, other) = trained(330), trained(3300)
    assert compared.elbo == early.elbo
    assert all(torch.equal(value, other[name]) for name, value in state.items())
