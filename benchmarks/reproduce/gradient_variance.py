"""Variance of the ELBO's gradient under each estimator, on a convolutional network half-way through its training.

The trace of the gradient's covariance over draws at one batch of 32 images, relative to the shared draw; separately
for the means and the log scales of the mean field, whose units differ.

    python -m benchmarks.reproduce.gradient_variance --seeds 0 1 2 --json gradients.json
"""

from __future__ import annotations

import argparse

import pyro.distributions as dist
import torch

import pyrobnn as pb
from benchmarks.reproduce import datasets
from benchmarks.reproduce.experiment import Batches, Experiment, Row, arguments, subset
from benchmarks.reproduce.posteriors import network
from pyrobnn.estimators import PerGroup
from pyrobnn.guides import MeanField
from pyrobnn.objectives import ELBO

ESTIMATORS = {
    "shared": None,
    "per group, G = 4": PerGroup(4),
    "per group, G = 8": PerGroup(8),
    "per example": "per_example",
    "flipout": "flipout",
    "local reparameterization": "local_reparameterization",
}


def run(seed: int, options: argparse.Namespace) -> dict[str, Row]:
    """All estimators with one seed."""
    x, y = subset(datasets.mnist(), 300 if options.quick else options.images, seed)
    torch.manual_seed(seed)
    prior = dist.Normal(0.0, (2e-4 * len(x)) ** -0.5)
    model = pb.SupervisedModel(network(), pb.likelihoods.Categorical(), prior, num_data=len(x))
    guide = MeanField(model, init_scale=options.scale)
    epochs = 1 if options.quick else options.epochs
    pb.fit(model, guide, Batches(x, y), epochs=epochs, lr=1e-3, seed=seed, progress=False)
    # Draws that share random numbers are no sample of independent gradients.
    alone = MeanField(model, antithetic=False)
    alone.load_state_dict(guide.state_dict())
    batch = x[:32], y[:32]
    rows = {name: variances(model, alone, batch, estimator, options) for name, estimator in ESTIMATORS.items()}
    base = rows["shared"]
    return {name: {key: value / base[key] for key, value in row.items()} for name, row in rows.items()}


def variances(
    model: pb.SupervisedModel,
    guide: MeanField,
    batch: tuple[torch.Tensor, torch.Tensor],
    estimator: PerGroup | str | None,
    options: argparse.Namespace,
) -> Row:
    """Traces of the covariances."""
    elbo, found = ELBO(estimator=estimator), []
    draws = 5 if options.quick else options.draws
    torch.manual_seed(0)
    for _ in range(draws):
        guide.zero_grad()
        elbo.backward(model, guide, batch)
        parts = guide.flat_loc.grad, guide.flat_log_scale.grad
        found.append([part.double().clone() for part in parts if part is not None])
    names = ("means", "log scales")
    return {
        name: float(torch.stack(part).var(0).sum()) for name, part in zip(names, zip(*found, strict=True), strict=True)
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, default=5000, help="training images (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--draws", type=int, default=200, help="gradients of each estimator (default %(default)s)")
    parser.add_argument("--scale", type=float, default=0.02, help="standard deviations at the start")
    Experiment("Gradient variance relative to the shared draw, batch of 32", run).main(parser)


if __name__ == "__main__":
    main()
