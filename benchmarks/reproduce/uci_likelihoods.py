"""UCI regression by likelihood and posterior: does noise of its own for each input, or of any form, pay?

One hidden layer of 50 units, inputs and targets standardized, the library's defaults with ``early_stopping=True`` for
all rows: nothing is tuned by hand, and a tenth of the training rows chooses the epoch. A seed is one of the published
splits. scikit-learn's Gaussian process (a Matérn kernel with noise, its parameters by marginal likelihood) and gradient
boosting of 19 quantiles stand beside; the latter has no density, so its log likelihood is left out.

    python -m benchmarks.reproduce.uci_likelihoods --sets yacht concrete --json uci_likelihoods.json
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pyrobnn as pb
from benchmarks.reproduce import datasets
from benchmarks.reproduce.experiment import Experiment, Row, arguments
from pyrobnn import guides, likelihoods
from pyrobnn.model.likelihoods import Likelihood

LIKELIHOODS: dict[str, tuple[Callable[[], Likelihood], int]] = {
    "Normal": (likelihoods.Normal, 1),
    "heteroscedastic": (likelihoods.HeteroscedasticNormal, 2),
    "mixture of 3": (lambda: likelihoods.MixtureDensity(3), 9),
    "spline flow": (likelihoods.ConditionalFlow, 25),
}
"""Makers, and the outputs that they take."""

POSTERIORS: dict[str, Callable[[Any], guides.Guide]] = {
    "MAP": guides.MAP,
    "mean field": guides.MeanField,
    "ensemble of 5": guides.DeltaMixture,
    "last-layer Laplace": guides.Laplace,
}


def fitted(x: Tensor, y: Tensor, name: str, posterior: str, options: argparse.Namespace, seed: int) -> tuple[Any, Any]:
    """A model and its posterior."""
    make, outputs = LIKELIHOODS[name]
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(x.shape[1], 50), nn.ReLU(), nn.Linear(50, outputs))
    model = pb.SupervisedModel(net, make(), num_data=len(x))
    y = y.reshape(model.likelihood.target_shape(net(x)))
    point = posterior == "last-layer Laplace"
    guide = guides.MAP(model) if point else POSTERIORS[posterior](model)
    loader = DataLoader(TensorDataset(x, y), min(128, len(x)), shuffle=True)
    epochs = 1 if options.quick else None
    pb.fit(model, guide, loader, epochs=epochs, early_stopping=True, seed=seed, progress=False)
    if point:
        guide = guides.Laplace(model, init=guide).fit(model, [(x, y)], prior_precision="evidence")
    return model, guide


def run(seed: int, options: argparse.Namespace) -> dict[str, Row]:
    """All rows of one split."""
    rows: dict[str, Row] = {}
    for data in options.sets:
        (x, y), (test_x, test_y) = datasets.uci(data, seed)
        scaler = pb.Standardizer(x, y)
        assert scaler.y_scale is not None
        unit = float(scaler.y_scale)
        inputs, targets = scaler.inputs(x), scaler.targets(y).squeeze(-1)
        new, truth = scaler.inputs(test_x), scaler.targets(test_y).squeeze(-1)
        for name in options.likelihoods:
            for posterior in options.posteriors:
                model, guide = fitted(inputs, targets, name, posterior, options, seed)
                found = pb.predict(model, guide, new, 50, seed=0, return_draws=True)
                shaped = truth.reshape(found.target_shape)
                rows[f"{data}: {name}, {posterior}"] = scores(
                    found.log_prob(shaped).mean() - math.log(unit), found.mean, *found.interval(0.9), shaped, unit
                )
        rows |= {f"{data}: {name}": row for name, row in baselines(inputs, targets, new, truth, unit, seed).items()}
    return rows


def scores(log_likelihood: Any, mean: Tensor, low: Tensor, high: Tensor, truth: Tensor, unit: float) -> Row:
    """In the target's units; without a log likelihood where there is no density."""
    first = {} if log_likelihood is None else {"log likelihood": float(log_likelihood)}
    return first | {
        "RMSE": float((mean - truth).square().mean().sqrt()) * unit,
        "coverage of 90 %": float(((low <= truth) & (truth <= high)).float().mean()),
        "width": float((high - low).mean()) * unit,
    }


def baselines(x: Tensor, y: Tensor, new: Tensor, truth: Tensor, unit: float, seed: int) -> dict[str, Row]:
    """What a user would otherwise take."""
    kernel = ConstantKernel() * Matern(np.ones(x.shape[1]), nu=2.5) + WhiteKernel()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        process = GaussianProcessRegressor(kernel, random_state=seed).fit(x.double(), y.double())
    mean, std = (torch.as_tensor(part) for part in process.predict(new.double(), return_std=True))
    log_likelihood = torch.distributions.Normal(mean, std).log_prob(truth.double()).mean() - math.log(unit)
    levels = np.linspace(0.05, 0.95, 19)
    quantiles = torch.stack([
        torch.as_tensor(
            HistGradientBoostingRegressor(loss="quantile", quantile=level, random_state=seed).fit(x, y).predict(new)
        )
        for level in levels
    ]).sort(0).values  # fmt: skip
    boosted = scores(None, quantiles.mean(0), quantiles[0], quantiles[-1], truth.double(), unit)
    return {
        "Gaussian process": scores(log_likelihood, mean, mean - 1.645 * std, mean + 1.645 * std, truth.double(), unit),
        "boosted quantiles": boosted,
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--sets", nargs="+", default=["yacht", "concrete"])
    parser.add_argument("--likelihoods", nargs="+", choices=LIKELIHOODS, default=list(LIKELIHOODS))
    parser.add_argument("--posteriors", nargs="+", choices=POSTERIORS, default=list(POSTERIORS))
    Experiment("UCI by likelihood and posterior", run, lambda name: name.split(":")[0]).main(parser)


if __name__ == "__main__":
    main()
