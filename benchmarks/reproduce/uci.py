"""UCI regression on the splits of Gal & Ghahramani (2016): RMSE and test log likelihood in the target's own units.

One hidden layer of 50 units (100 for protein), inputs and targets standardized, the noise a parameter that is fitted
with the posterior; the same number of Adam steps for every method. A seed is a split. Beside each set stand the figures
published for MC dropout.

``--tune`` chooses one setting for each method and split, as published for MC dropout: a fifth of the split's training
rows is held back, four candidates are trained on the rest, with a seed of their own, and the one with the best
log likelihood on the rows held back is trained again on all training rows. The split's test rows are not read. Without
it all methods have the defaults of :data:`METHODS`; dropout's, p = 0.01, was found on test rows of one split.

    python -m benchmarks.reproduce.uci --tune --sets yacht energy --seeds 0 1 2 3 4 --json uci.json
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

import pyrobnn as pb
from benchmarks.reproduce import datasets
from benchmarks.reproduce.experiment import Batches, Experiment, Pair, Row, arguments, validation_subset
from benchmarks.reproduce.tuning import Setting, check_budget, choose
from pyrobnn import guides, priors

PUBLISHED = {
    "bostonHousing": (2.97, -2.46),
    "concrete": (5.23, -3.04),
    "energy": (1.66, -1.99),
    "kin8nm": (0.10, 0.95),
    "naval-propulsion-plant": (0.01, 3.80),
    "power-plant": (4.02, -2.80),
    "protein-tertiary-structure": (4.36, -2.89),
    "wine-quality-red": (0.62, -0.93),
    "yacht": (1.11, -1.55),
}
"""RMSE and log likelihood of MC dropout in Gal & Ghahramani (2016), table 1."""

Make = Callable[[pb.SupervisedModel], guides.Guide]


class Method(NamedTuple):
    """How to fit a posterior.

    Attributes:
        make: Builds a guide, given the setting.
        setting: What ``--tune`` chooses: the learning rate, for dropout its rate.
        draws: Draws of a prediction.
    """

    make: Callable[[pb.SupervisedModel, float], guides.Guide]
    setting: Setting
    draws: int


def _rate(default: float) -> Setting:
    return Setting("learning rate", default, (1e-3, 3e-3, 1e-2, 3e-2))


METHODS: dict[str, Method] = {
    "MAP": Method(lambda model, _: guides.MAP(model), _rate(1e-2), 1),
    "MC dropout": Method(
        lambda model, p: guides.MCDropout(model, p=p, where="*.weight"),
        Setting("p", 0.01, (0.005, 0.01, 0.05, 0.1)),
        100,
    ),
    "mean field": Method(lambda model, _: guides.MeanField(model, init_scale=0.02), _rate(1e-2), 100),
    "low rank, r = 5": Method(lambda model, _: guides.LowRankNormal(model, rank=5, init_scale=0.02), _rate(3e-3), 100),
    "ensemble of 5": Method(lambda model, _: guides.DeltaMixture(model, num_members=5), _rate(1e-2), 5),
}
"""The candidates for dropout's rate are those of the paper."""

check_budget({name: method.setting for name, method in METHODS.items()})

TUNING_SEED = 1000
"""Added to the split, for the seed of the fits that only choose."""


class Standardizer:
    """Shift and scale of a training set's columns; constant columns are left alone."""

    def __init__(self, x: Tensor) -> None:
        self.mean, scale = x.mean(0), x.std(0)
        self.scale = torch.where(scale > 0, scale, torch.ones(()))

    def __call__(self, x: Tensor) -> Tensor:
        """Columns of mean 0 and standard deviation 1."""
        return (x - self.mean) / self.scale


def run(split: int, options: argparse.Namespace) -> dict[str, Row]:
    """All sets and methods on one split."""
    rows = {}
    for name in options.sets:
        train, test = datasets.uci(name, split)
        for label in options.methods:
            method = METHODS[label]
            value = tuned(name, train, method, split, options) if options.tune else method.setting.default
            row = fit_and_evaluate(name, train, test, method, value, split, options)
            rows[f"{name}: {label}"] = row | {method.setting.name: value}
        if name in PUBLISHED:
            rmse, log_likelihood = PUBLISHED[name]
            rows[f"{name}: published MC dropout"] = {"RMSE": rmse, "log likelihood": log_likelihood}
    return rows


def tuned(name: str, train: Pair, method: Method, split: int, options: argparse.Namespace) -> float:
    """The candidate with the best log likelihood on a fifth of the training rows, which it was not trained on."""
    seed, held = TUNING_SEED + split, len(train[0]) // 5
    fitted, validation = validation_subset(train, len(train[0]) - held, held, seed)
    rows = {
        value: fit_and_evaluate(name, fitted, validation, method, value, seed, options)
        for value in method.setting.candidates
    }
    return choose([{name: {value: -row["log likelihood"] for value, row in rows.items()}}])[name]


def fit_and_evaluate(
    name: str, train: Pair, test: Pair, method: Method, value: float, seed: int, options: argparse.Namespace
) -> Row:
    """One fit, inputs and targets standardized by its training rows."""
    inputs, targets = Standardizer(train[0]), Standardizer(train[1])
    is_rate = method.setting.name == "learning rate"
    model, guide = fit(
        name,
        (inputs(train[0]), targets(train[1])),
        lambda model: method.make(model, value),
        value if is_rate else options.lr,
        seed,
        options,
    )
    known = (inputs(test[0]), targets(test[1]))
    return evaluate(model, guide, known, method.draws, float(targets.scale))


def fit(
    name: str, train: Pair, make: Make, lr: float, seed: int, options: argparse.Namespace
) -> tuple[pb.SupervisedModel, guides.Guide]:
    """``--steps`` steps of Adam, the learning rate falling to zero by a cosine."""
    torch.manual_seed(seed)
    units = 100 if name.startswith("protein") else 50
    net = nn.Sequential(nn.Linear(train[0].shape[1], units), nn.ReLU(), nn.Linear(units, 1))
    noise = pb.likelihoods.Normal(scale=0.3, learn_scale=True)
    model = pb.SupervisedModel(net, noise, priors.he(), num_data=len(train[0]))
    guide = make(model)
    batches = Batches(*train, batch_size=min(128, len(train[0])))
    epochs = 1 if options.quick else max(1, round(options.steps / len(batches)))
    cosine = functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs)
    pb.fit(model, guide, batches, epochs=epochs, lr=lr, scheduler=cosine, seed=seed, progress=False)
    return model, guide


def evaluate(model: pb.SupervisedModel, guide: guides.Guide, test: Pair, draws: int, scale: float) -> Row:
    """RMSE and mean log predictive density; ``scale`` is that of the target."""
    prediction = pb.predict(model, guide, test[0], num_samples=draws, return_draws=True, seed=0)
    error = (prediction.mean - test[1]).square().mean().sqrt()
    return {
        "RMSE": float(error) * scale,
        "log likelihood": float(prediction.log_prob(test[1]).mean()) - math.log(scale),
        "noise": float(prediction.aleatoric.mean().sqrt()) * scale,
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--sets", nargs="+", choices=PUBLISHED, default=list(PUBLISHED), help="default: all nine")
    parser.add_argument("--steps", type=int, default=2000, help="training steps (default %(default)s)")
    parser.add_argument("--lr", type=float, default=1e-2, help="of MC dropout (default %(default)s)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME", help="or some")
    parser.add_argument("--tune", action="store_true", help="choose each method's setting in each split")
    Experiment("UCI regression, splits of Gal & Ghahramani", run).main(parser)


if __name__ == "__main__":
    main()
