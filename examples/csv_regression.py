"""Regression on a CSV file, with intervals: a Bayesian network beside scikit-learn's linear model and Gaussian process.

What is learned: a column of numbers from the other columns, and how far off a prediction may be. The family of the
posterior is chosen on validation rows; test rows are read once, at the end.

    python examples/csv_regression.py                                  # scikit-learn's diabetes data, 442 rows
    python examples/csv_regression.py --csv my.csv --target price      # a file of numbers with a header of names

What to expect: the diabetes data are nearly linear, so the linear model wins by a little, and is much faster. Intervals
are as good. See docs/examples.md for the numbers.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_diabetes
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.linear_model import BayesianRidge
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pyrobnn as pb


def read(csv: Path | None, target: str | None) -> tuple[Tensor, Tensor]:
    """Inputs [N, D] and targets [N, 1]."""
    if csv is None:
        inputs, targets = load_diabetes(return_X_y=True)
        return torch.tensor(inputs, dtype=torch.float32), torch.tensor(targets, dtype=torch.float32).unsqueeze(1)
    with csv.open(encoding="utf-8") as file:
        names = [name.strip().strip('"') for name in file.readline().split(",")]
        table = torch.as_tensor(np.loadtxt(file, delimiter=",", ndmin=2), dtype=torch.float32)
    column = names.index(target) if target else len(names) - 1
    others = [index for index in range(len(names)) if index != column]
    return table[:, others], table[:, [column]]


def score(prediction: pb.Prediction, y: Tensor) -> dict[str, float]:
    """Scores of a prediction with intervals, in the targets' own units."""
    low, high = prediction.interval(0.9)
    return {
        "RMSE": float(pb.metrics.rmse(prediction.mean, y)),
        "NLL": float(-prediction.log_prob(y).mean()),
        "coverage of 90 %": float(pb.metrics.interval_coverage(low, high, y)),
        "width": float(pb.metrics.interval_width(low, high)),
    }


def bayesian(family: str, x: Tensor, y: Tensor, x_new: Tensor, seed: int, smoke: bool) -> pb.Prediction:
    """Fits one family of posteriors to (x, y) and predicts at x_new."""
    scaler = pb.Standardizer(x, y)  # unit scale is what the default prior and learning rates are made for
    rows = TensorDataset(scaler.inputs(x), scaler.targets(y))
    loader = DataLoader(rows, batch_size=64, shuffle=True)
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(x.shape[1], 50), nn.ReLU(), nn.Linear(50, 1))
    model = pb.SupervisedModel(net, pb.likelihoods.Normal(), num_data=len(rows))  # default prior; learned noise
    guide = pb.guides.DeltaMixture(model, num_members=5) if "ensemble" in family else pb.guides.MeanField(model)
    # Left to the end, an ensemble fits the training targets, and the noise that it learns is too small.
    early = "stopped early" in family
    epochs = 2 if smoke else None
    pb.fit(model, guide, loader, epochs=epochs, lr=5e-3, early_stopping=early, seed=seed, progress=False)
    return scaler.undo(pb.predict(model, guide, scaler.inputs(x_new), num_samples=10 if smoke else 200, seed=seed))


def baselines(x: Tensor, y: Tensor, x_new: Tensor, y_new: Tensor, seed: int) -> dict[str, dict[str, float]]:
    """scikit-learn's two regressors that return standard deviations, with the same scores."""
    scaler = pb.Standardizer(x)
    kernel = ConstantKernel() * RBF(np.ones(x.shape[1]), (1e-2, 1e4)) + WhiteKernel()
    regressors = {
        "BayesianRidge": BayesianRidge(),
        "GaussianProcessRegressor": GaussianProcessRegressor(kernel, normalize_y=True, random_state=seed),
    }
    rows = {}
    for name, regressor in regressors.items():
        with warnings.catch_warnings():  # columns that do not matter have length scales at their bound
            warnings.simplefilter("ignore", ConvergenceWarning)
            regressor.fit(scaler.inputs(x).numpy(), y.ravel().numpy())
        mean, std = regressor.predict(scaler.inputs(x_new).numpy(), return_std=True)
        normal = torch.distributions.Normal(torch.as_tensor(mean).unsqueeze(1), torch.as_tensor(std).unsqueeze(1))
        low, high = normal.icdf(torch.tensor(0.05)), normal.icdf(torch.tensor(0.95))
        rows[name] = {
            "RMSE": float(pb.metrics.rmse(normal.mean, y_new)),
            "NLL": float(-normal.log_prob(y_new).mean()),
            "coverage of 90 %": float(pb.metrics.interval_coverage(low, high, y_new)),
            "width": float(pb.metrics.interval_width(low, high)),
        }
    return rows


def main(csv: Path | None = None, target: str | None = None, seed: int = 0, smoke: bool = False) -> None:
    """Chooses a family on validation rows, fits it to all training rows, and prints its scores beside the baselines'.

    Args:
        csv: A CSV file of numbers with a header; None for scikit-learn's diabetes data.
        target: The name of its column to predict; None for the last.
        seed: Chooses the rows of each part, the starting weights and the draws.
        smoke: A hundred rows and two epochs, to see that the script runs.
    """
    x, y = read(csv, target)
    if smoke:
        x, y = x[:100], y[:100]
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    test, validation, train = order.tensor_split([len(x) // 5, 2 * len(x) // 5])

    families = ["mean field", "mean field, stopped early", "ensemble, stopped early"]
    validated = {}
    for family in families:
        prediction = bayesian(family, x[train], y[train], x[validation], seed, smoke)
        validated[family] = score(prediction, y[validation])["NLL"]
        print(f"validation NLL of {family}: {validated[family]:.3f}")
    chosen = min(families, key=validated.__getitem__)

    fitted = torch.cat([train, validation])
    ours = bayesian(chosen, x[fitted], y[fitted], x[test], seed, smoke)
    rows = {f"pyrobnn, {chosen}": score(ours, y[test])}
    rows |= baselines(x[fitted], y[fitted], x[test], y[test], seed)
    for name, scores in rows.items():
        print(f"{name:36}" + "   ".join(f"{key} {value:.3f}" for key, value in scores.items()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="regression on a CSV file, beside scikit-learn")
    parser.add_argument("--csv", type=Path, help="a file of numbers with a header; default: the diabetes data")
    parser.add_argument("--target", help="the column to predict; default: the last")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="two epochs, to see that it runs")
    main(**vars(parser.parse_args()))
