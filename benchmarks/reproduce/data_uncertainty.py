"""Noise that depends on the input: traffic on a motorway and pickups by taxi, hour by hour.

Seven methods on the same rows, drawn by the seed from all of the set: in time (the last fifth is the test set) and
shuffled, where neighbors in time of a test row are training rows. Inputs and targets are standardized by the training
rows, scores are in the targets' units. RMSE and R² of the mean; NLL in nats; PICP and MPIW, coverage and width of
intervals of 90 %; CWCE, the coverage-weighted calibration error of intervals of 10, 30, 50, 70 and 90 %, and R-CWCE,
that times 1 - R², in per cent.

MC dropout and mean field have one scale of the noise, the ensemble's members each a network of it. Gradient boosting
is scikit-learn's, one fit for each quantile and one for the mean; crossing quantiles are sorted. All networks have the
same optimizer, schedule and length, and the library's default prior; see :data:`METHODS`. ``--validate`` scores on
validation rows, the last tenth of the training rows (a random one where shuffled), and does not read the test rows:
that is how options of the SDE network are chosen.

    python -m benchmarks.reproduce.data_uncertainty --json data_uncertainty.json
    python -m benchmarks.reproduce.data_uncertainty --validate --seeds 100 --methods heteroscedastic "SDE network"
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingRegressor
from torch import Tensor, nn

import pyrobnn as pb
from benchmarks.reproduce import datasets
from benchmarks.reproduce.experiment import Batches, Experiment, Pair, Row, arguments
from models.sde_hnn import sde_hnn
from pyrobnn import guides, metrics

SETS = {"metro": functools.cache(datasets.metro_traffic), "pickups": functools.cache(datasets.uber_pickups)}
LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
SDE: dict[str, Any] = {"hidden": 32, "steps": 4, "paths": 4, "prediction_paths": 50, "noise_warmup": 200}
"""Chosen on validation rows; its encoder is what the other networks have for hidden layers, and a linear one."""


class Method(NamedTuple):
    """A network, its posterior, and the number of draws of a prediction."""

    model: Callable[[int, int], pb.SupervisedModel]
    guide: Callable[[pb.SupervisedModel], guides.Guide]
    draws: int


def perceptron(inputs: int, outputs: int) -> nn.Module:
    """Two hidden layers of 64 units."""
    return nn.Sequential(nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, outputs))


def homoscedastic(num_data: int, inputs: int) -> pb.SupervisedModel:
    """One scale of the noise, which is learned."""
    return pb.SupervisedModel(perceptron(inputs, 1), pb.likelihoods.Normal(), num_data=num_data)


def heteroscedastic(num_data: int, inputs: int) -> pb.SupervisedModel:
    """A scale for each input."""
    return pb.SupervisedModel(perceptron(inputs, 2), pb.likelihoods.HeteroscedasticNormal(), num_data=num_data)


def stochastic(num_data: int, inputs: int) -> pb.SupervisedModel:
    """The SDE network."""
    return sde_hnn(num_data, inputs=inputs, encoder=perceptron(inputs, SDE["hidden"]), **SDE)


METHODS: dict[str, Method] = {
    "MC dropout": Method(homoscedastic, functools.partial(guides.MCDropout, p=0.05), 30),
    "mean field": Method(homoscedastic, guides.MeanField, 30),
    "ensemble of 5": Method(heteroscedastic, functools.partial(guides.DeltaMixture, num_members=5), 5),
    "heteroscedastic": Method(heteroscedastic, guides.MAP, 1),
    "SDE network": Method(stochastic, guides.MAP, 1),
}
BOOSTING = "gradient boosting"


def run(seed: int, options: argparse.Namespace) -> dict[str, Row]:
    """All sets, splits and methods with one seed."""
    rows = {}
    for name in options.sets:
        for split in options.splits:
            train, test = pairs(name, split, seed, options)
            for label in options.methods:
                evaluate = boosting if label == BOOSTING else functools.partial(network, METHODS[label])
                rows[f"{name}, {split}: {label}"] = evaluate(train, test, seed, options)
    return rows


def pairs(name: str, split: str, seed: int, options: argparse.Namespace) -> tuple[Pair, Pair]:
    """Training and test rows, or, with ``--validate``, others of the training rows in place of the latter."""
    x, y = SETS[name]()
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(x), generator=generator)[: 500 if options.quick else options.rows]
    rows = rows.sort().values if split == "in time" else rows
    train, test = rows[: len(rows) * 4 // 5], rows[len(rows) * 4 // 5 :]
    if options.validate:
        train, test = train[: len(train) * 9 // 10], train[len(train) * 9 // 10 :]
    return (x[train], y[train]), (x[test], y[test])


def network(method: Method, train: Pair, test: Pair, seed: int, options: argparse.Namespace) -> Row:
    """One fit and its scores."""
    scaler = pb.Standardizer(*train)
    torch.manual_seed(seed)
    model = method.model(len(train[0]), train[0].shape[1])
    guide = method.guide(model)
    batches = Batches(scaler.inputs(train[0]), scaler.targets(train[1]), batch_size=256)
    epochs = 1 if options.quick else max(1, round(options.steps / len(batches)))
    cosine = functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs)
    pb.fit(model, guide, batches, epochs=epochs, lr=options.lr, scheduler=cosine, seed=seed, progress=False)
    standard = pb.predict(model, guide, scaler.inputs(test[0]), method.draws, return_draws=True, seed=seed)
    prediction = scaler.undo(standard)
    log_prob = prediction.log_prob(test[1])
    low, high = (prediction.quantile([(1 + sign * level) / 2 for level in LEVELS]) for sign in (-1, 1))
    return scores(prediction.mean, low, high, test[1], log_prob)


def boosting(train: Pair, test: Pair, seed: int, options: argparse.Namespace) -> Row:
    """Quantiles and mean, each by a fit of its own; the density is not known."""
    x, y = train[0].numpy(), train[1][:, 0].numpy()

    def fitted(**loss: Any) -> np.ndarray:
        regressor = HistGradientBoostingRegressor(max_iter=5 if options.quick else 100, random_state=seed, **loss)
        return regressor.fit(x, y).predict(test[0].numpy())

    quantiles = sorted((1 + sign * level) / 2 for level in LEVELS for sign in (-1, 1))
    found = np.sort(np.stack([fitted(loss="quantile", quantile=q) for q in quantiles]), 0)
    values = torch.as_tensor(found, dtype=torch.float32).unsqueeze(-1)
    low, high = values[: len(LEVELS)].flip(0), values[len(LEVELS) :]
    mean = torch.as_tensor(fitted(loss="squared_error"), dtype=torch.float32).unsqueeze(-1)
    return scores(mean, low, high, test[1], None)


def scores(mean: Tensor, low: Tensor, high: Tensor, y: Tensor, log_prob: Tensor | None) -> Row:
    """One row of the table; intervals ``[levels, N, 1]``, the widest last."""
    row = {"RMSE": metrics.rmse(mean, y), "R²": metrics.r2(mean, y)}
    if log_prob is not None:
        row["NLL"] = -log_prob.mean()
    row["PICP"] = 100 * metrics.interval_coverage(low[-1], high[-1], y)
    row["MPIW"] = metrics.interval_width(low[-1], high[-1])
    row["CWCE"] = metrics.cwce(low, high, y, LEVELS)
    row["R-CWCE"] = metrics.r_cwce(mean, low, high, y, LEVELS)
    return {name: float(value) for name, value in row.items()}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), help="default: both")
    parser.add_argument("--splits", nargs="+", choices=["in time", "shuffled"], default=["in time", "shuffled"])
    parser.add_argument("--methods", nargs="+", choices=[*METHODS, BOOSTING], default=[*METHODS, BOOSTING])
    parser.add_argument("--rows", type=int, default=10_000, help="of a set (default %(default)s)")
    parser.add_argument("--steps", type=int, default=600, help="training steps of a network (default %(default)s)")
    parser.add_argument("--lr", type=float, default=5e-3, help="learning rate (default %(default)s)")
    parser.add_argument("--validate", action="store_true", help="score on validation rows")
    heading = "Traffic and pickups (PICP, CWCE and R-CWCE in per cent)"
    Experiment(heading, run, section=lambda method: method.partition(": ")[0]).main(parser)


if __name__ == "__main__":
    main()
