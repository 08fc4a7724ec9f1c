"""The default prior on small data: scikit-learn's digits, every family beside logistic regression and plain training.

A perceptron 64-64-10 on N images, ``prior=None`` (or ``--priors``), everything else at its default but the length:
steps of Adam on whole batches of at most 128 rows. Held out are 500 images that no other experiment here trains on; a
seed chooses the N images and the weights at the start.

    python -m benchmarks.reproduce.default_prior --seeds 0 1 2 --json default_prior.json
    python -m benchmarks.reproduce.default_prior --sizes 100 --priors default normal he --temperature 1
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

import pyrobnn as pb
from benchmarks.reproduce.experiment import Batches, Experiment, Row, arguments, subset
from pyrobnn import guides
from pyrobnn.objectives import ELBO

Data = tuple[Tensor, Tensor]

FAMILIES: dict[str, Callable[[Any], guides.Guide]] = {
    "MAP": guides.MAP,
    "MeanField": guides.MeanField,
    "LowRankNormal": functools.partial(guides.LowRankNormal, rank=5),
    "MCDropout": guides.MCDropout,
    "DeltaMixture": guides.DeltaMixture,
    "LowRankEnsemble": guides.LowRankEnsemble,
    "Laplace": guides.Laplace,
}

PRIORS: dict[str, Callable[[], Any]] = {
    "default": lambda: None,
    "normal": lambda: dist.Normal(0.0, 1.0),
    "he": pb.priors.he,
}


def digits(size: int, seed: int) -> tuple[Data, Data]:
    """``size`` images for training and the 500 held out, pixels from 0 to 1."""
    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    images, labels = torch.as_tensor(x, dtype=torch.float32)[order] / 16, torch.as_tensor(y)[order]
    return subset((images[500:], labels[500:]), size, seed), (images[:500], labels[:500])


def network() -> nn.Module:
    """64-64-10."""
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def run(seed: int, options: argparse.Namespace) -> dict[str, Row]:
    """All sizes, priors and families with one seed."""
    rows: dict[str, Row] = {}
    for size in options.sizes:
        train, held_out = digits(size, seed)
        linear = LogisticRegression(max_iter=5000).fit(*train)
        rows[f"N = {size}: logistic regression"] = scores(torch.as_tensor(linear.predict_proba(held_out[0])), held_out)
        torch.manual_seed(seed)
        rows[f"N = {size}: plain training"] = scores(plain(train, options)(held_out[0]).softmax(-1), held_out)
        for prior in options.priors:
            for family in options.families:
                torch.manual_seed(seed)
                model = pb.SupervisedModel(network(), pb.likelihoods.Categorical(), PRIORS[prior](), num_data=size)
                guide = fitted(model, family, train, seed, options)
                prediction = pb.predict(model, guide, held_out[0], 100, seed=0)
                rows[f"N = {size}: {family}, {prior}"] = scores(prediction.mean, held_out)
    return rows


def fitted(model: pb.SupervisedModel, family: str, train: Data, seed: int, options: argparse.Namespace) -> guides.Guide:
    """The guide after training; a Laplace approximation around the posterior mode."""
    loader = Batches(*train, batch_size=min(128, len(train[0])))
    epochs = 1 if options.quick else math.ceil(options.steps / len(loader))
    guide = (guides.MAP if family == "Laplace" else FAMILIES[family])(model)
    elbo = ELBO(temperature=options.temperature)
    pb.fit(model, guide, loader, epochs=epochs, lr=options.lr, elbo=elbo, seed=seed, progress=False)
    return guides.Laplace(model, init=dict(guide.sample(1).at(0))).fit(model, [train]) if family == "Laplace" else guide


def plain(train: Data, options: argparse.Namespace) -> nn.Module:
    """The same network after as many steps of Adam on the cross-entropy."""
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=options.lr)
    loader, step = Batches(*train, batch_size=min(128, len(train[0]))), 0
    while step < (1 if options.quick else options.steps):
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
            step += 1
    return net.requires_grad_(False)


def scores(probabilities: Tensor, data: Data) -> Row:
    """Accuracy, NLL and calibration error."""
    return {
        "accuracy": float(pb.metrics.accuracy(probabilities, data[1])),
        "NLL": float(pb.metrics.nll(probabilities, data[1])),
        "ECE": float(pb.metrics.expected_calibration_error(probabilities, data[1])),
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[50, 100, 200, 1297])
    parser.add_argument("--priors", nargs="+", choices=PRIORS, default=["default"])
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--steps", type=int, default=2000, help="training steps (default %(default)s)")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--temperature", type=float, default=None, help="of the divergence; default: that of the prior")
    section = lambda name: name.split(":")[0]  # noqa: E731
    Experiment("Digits at the default prior", run, section).main(parser)


if __name__ == "__main__":
    main()
