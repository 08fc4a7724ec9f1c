"""UCI regression on the splits of Gal & Ghahramani (2016): RMSE and test log likelihood in the target's own units.

One hidden layer of 50 units (100 for protein), inputs and targets standardized, the noise a parameter that is fitted
with the posterior; the same number of Adam steps for every method. A seed is a split. Beside each set stand the figures
published for MC dropout (there with a grid search over rates and noise levels for each split, here with one rate).

    python -m benchmarks.reproduce.uci --sets yacht energy --seeds 0 1 2 3 4 --json uci.json
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

import pyrobnn as pb
from benchmarks.reproduce import datasets
from benchmarks.reproduce.experiment import Batches, Experiment, Row, arguments
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

METHODS: dict[str, tuple[Make, int, float]] = {
    "MAP": (guides.MAP, 1, 1.0),
    "MC dropout, p = 0.01": (functools.partial(guides.MCDropout, p=0.01, where="*.weight"), 100, 1.0),
    "mean field": (functools.partial(guides.MeanField, init_scale=0.02), 100, 1.0),
    "low rank, r = 5": (functools.partial(guides.LowRankNormal, rank=5, init_scale=0.02), 100, 0.3),
    "ensemble of 5": (functools.partial(guides.DeltaMixture, num_members=5), 5, 1.0),
}
"""How to build a guide, the draws of a prediction, and a factor of the learning rate."""


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
        (x, y), test = datasets.uci(name, split)
        inputs, targets = Standardizer(x), Standardizer(y)
        train, known = (inputs(x), targets(y)), (inputs(test[0]), targets(test[1]))
        for method, (make, draws, speed) in METHODS.items():
            model, guide = fit(name, train, make, speed * options.lr, split, options)
            rows[f"{name}: {method}"] = evaluate(model, guide, known, draws, float(targets.scale))
        if name in PUBLISHED:
            rmse, log_likelihood = PUBLISHED[name]
            rows[f"{name}: published MC dropout"] = {"RMSE": rmse, "log likelihood": log_likelihood}
    return rows


def fit(
    name: str, train: tuple[Tensor, Tensor], make: Make, lr: float, seed: int, options: argparse.Namespace
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


def evaluate(
    model: pb.SupervisedModel, guide: guides.Guide, test: tuple[Tensor, Tensor], draws: int, scale: float
) -> Row:
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
    parser.add_argument("--lr", type=float, default=1e-2)
    Experiment("UCI regression, splits of Gal & Ghahramani", run).main(parser)


if __name__ == "__main__":
    main()
