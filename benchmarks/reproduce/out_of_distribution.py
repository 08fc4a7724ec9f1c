"""MNIST against KMNIST, notMNIST, Fashion-MNIST and Omniglot: scores of outliers of five posteriors, and exposure.

A small convolutional network is trained on 3,000 digits as a point, with MC dropout, as a mean field, as five members,
and with a Laplace approximation of the last layer. Every score is computed of the averaged prediction and, where there
are several draws, as mean and variance over draws; the first table is AUROC in per cent, the best form a second one.
ODIN's temperature and step are tuned on 300 digits that were held out and 300 training images of Fashion-MNIST, so
Fashion-MNIST is no test of it. Outlier exposure trains a point with 3,000 other training images of Fashion-MNIST as
outliers, so Fashion-MNIST is no test of it either. Nothing else is chosen: settings were stated before the first run.

    python -m benchmarks.reproduce.out_of_distribution --seeds 0 1 2 --json out_of_distribution.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator

import torch
from torch import Tensor, nn

import pyrobnn as pb
from benchmarks.reproduce import datasets
from benchmarks.reproduce.experiment import Batches, Experiment, Row, arguments, subset, validation_subset
from pyrobnn import detection, guides
from pyrobnn.objectives import ELBO, OutlierExposure

SCORES = [*detection.DETECTORS]
VALIDATION = 300
TRAINED_ON = "Fashion"


def network() -> nn.Module:
    """Two convolutions and two linear layers, 64 features."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(800, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


class Trainer:
    """One seed's images, and the ways to fit a posterior to them."""

    def __init__(self, options: argparse.Namespace, seed: int) -> None:
        self.options, self.seed = options, seed
        images, held = (200, 50) if options.quick else (options.images, VALIDATION)
        (x, y), (self.held, _) = validation_subset(datasets.mnist(), images, held, seed)
        self.data = Batches(x, y, batch_size=64)
        self.whole = list(zip(x.split(250), y.split(250), strict=True))
        fashion, _ = subset(datasets.fashion("train"), images + held, seed)
        self.outliers, self.tuning = fashion[held:], fashion[:held]
        torch.manual_seed(seed)
        self.net = network()

    def model(self) -> pb.SupervisedModel:
        """The network with the default prior, from the seed's initial weights."""
        return pb.SupervisedModel(self.net, pb.likelihoods.Categorical(), num_data=len(self.data.x))

    def fit(self, model: pb.SupervisedModel, guide: guides.Guide, objective: ELBO | None = None) -> guides.Guide:
        """Trained by the default optimizer."""
        epochs = 1 if self.options.quick else self.options.epochs
        pb.fit(model, guide, self.data, elbo=objective, epochs=epochs, lr=2e-3, seed=self.seed, progress=False)
        return guide

    def posteriors(self) -> Iterator[tuple[str, pb.SupervisedModel, guides.Guide]]:
        """One after the other."""
        model = self.model()
        point = self.fit(model, guides.MAP(model))
        yield "MAP", model, point
        yield "Laplace, last layer", model, guides.Laplace(model, init=point).fit(model, self.whole)
        model = self.model()
        exposed = ELBO(terms=[OutlierExposure(Batches(self.outliers, torch.zeros(len(self.outliers)), 64))])
        yield "MAP, exposed", model, self.fit(model, guides.MAP(model), exposed)
        model = self.model()
        yield "MC dropout", model, self.fit(model, guides.MCDropout(model, p=[("5.weight", 0.25), ("7.weight", 0.5)]))
        model = self.model()
        yield "mean field", model, self.fit(model, guides.MeanField(model))
        model = self.model()
        yield "ensemble", model, self.fit(model, guides.DeltaMixture(model, num_members=5))


def run(seed: int, options: argparse.Namespace) -> dict[str, Row]:
    """All posteriors, scores and sets of one seed."""
    trainer, count = Trainer(options, seed), 100 if options.quick else options.test
    test_x, test_y = subset(datasets.mnist("t10k"), count, seed)
    out: dict[str, Tensor] = {
        name: subset(data, count, seed)[0]
        for name, data in {
            "KMNIST": datasets.kmnist(),
            "notMNIST": datasets.not_mnist(),
            TRAINED_ON: datasets.fashion(),
            "Omniglot": datasets.omniglot(),
        }.items()
    }
    rows: dict[str, Row] = {}
    for name, model, guide in trainer.posteriors():
        draws = {"ensemble": 5, "MAP": 1, "MAP, exposed": 1}.get(name, options.draws)
        prediction = pb.predict(model, guide, test_x, draws, seed=0)
        found = prediction.log_prob(test_y)
        accuracy = 100 * float((prediction.predicted == test_y).float().mean())
        rows[f"{name} | test"] = {"accuracy": accuracy, "NLL": -float(found.mean())}
        odin = detection.ODIN(model, guide, num_samples=min(draws, 5), clip=(0.0, 1.0))
        odin.tune(
            trainer.held,
            {TRAINED_ON: trainer.tuning},
            temperatures=(1.0, 10.0, 1000.0),
            epsilons=(0.0, 0.002, 0.004),
        )
        known = out if name != "MAP, exposed" else {key: x for key, x in out.items() if key != TRAINED_ON}
        report = detection.evaluate(
            model, guide, test_x, known, [*SCORES, odin], train=trainer.whole, num_samples=draws, num_resamples=1
        )
        for row in report.rows:
            rows.setdefault(f"{name} | {row.label}", {})[row.out] = 100 * row.auroc
        rows[f"{name} | setting of ODIN"] = {"T": float(odin.temperature), "epsilon": float(odin.epsilon)}
        done = {row: values for row, values in rows.items() if row.startswith(f"{name} | ")}
        print(f"seed {seed}: {json.dumps(done)}", file=sys.stderr, flush=True)
    return rows


def section(method: str) -> str:
    """The table that a row is in."""
    name, score = method.split(" | ")
    if score in ("test", "setting of ODIN"):
        return f"On MNIST's test images: {score}"
    return f"{name}, over draws" if score.endswith(")") else name


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, default=3000, help="training images (default %(default)s)")
    parser.add_argument("--test", type=int, default=500, help="test images, and images of each set")
    parser.add_argument("--epochs", type=int, default=6, help="default %(default)s")
    parser.add_argument("--draws", type=int, default=10, help="draws of a posterior (default %(default)s)")
    Experiment("Out of distribution: AUROC in per cent", run, section).main(parser)


if __name__ == "__main__":
    main()
