"""Failure prediction: softmax response, entropy, mutual information, MaxLogit-pNorm, ConfidNet and the oracle.

A small network with dropout is trained for a few epochs. Its errors on the test set are found by each
uncertainty: of the point (dropout off) and of MC dropout, whose masks are drawn. ConfidNet and the p of MaxLogit-pNorm
learn from a held-out part of the training set; ConfidNet's epoch is picked on a tenth of it. Settings are those of
:data:`TASKS`, stated before test errors were seen, and the paper's head (4 × 400, Adam 1e-4, batches of 128).

Rows of the point and of MC dropout have errors of their own; areas under risk-coverage curves compare them.

    python -m benchmarks.reproduce.failure_prediction --json failure_prediction.json
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyrobnn as pb
from benchmarks.reproduce import datasets
from benchmarks.reproduce.experiment import Batches, Experiment, Pair, Row, arguments, subset, validation_subset
from pyrobnn import guides
from pyrobnn.detection import ConfidNet, MaxLogitPNorm, failure_table

COLUMNS = {
    "AP errors": ("ap_errors", 100),
    "AUROC": ("auroc", 100),
    "FPR95": ("fpr95", 100),
    "AURC": ("aurc", 1000),
    "AUGRC": ("augrc", 1000),
    "error rate": ("error_rate", 100),
}
"""Of the tables: what :func:`pyrobnn.metrics.failure_report` calls them, and the factor they are shown with."""
LEARNING_RATE = 1e-3
BATCH = 64


class Task(NamedTuple):
    """A data set, and how much of it is used.

    Attributes:
        load: From ``"train"`` or ``"test"`` to images and labels.
        images: Training images.
        held: Further training images, held out for ConfidNet and pNorm.
        test: Test images.
        epochs: Of the network.
        head_epochs: Of ConfidNet.
    """

    load: Callable[[str], Pair]
    images: int
    held: int
    test: int
    epochs: int
    head_epochs: int


TASKS = {
    "MNIST": Task(lambda split: datasets.mnist("t10k" if split == "test" else split), 10_000, 5_000, 10_000, 2, 30),
    "CIFAR-10": Task(datasets.cifar10, 10_000, 5_000, 5_000, 5, 30),
}


def network(channels: int, size: int) -> nn.Module:
    """Two convolutions and a hidden layer of 64; the guide drops inputs of the last two layers."""
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * (size // 4) ** 2, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def batches(x: Tensor, y: Tensor) -> list[Pair]:
    """In the order that they have."""
    return list(zip(x.split(500), y.split(500), strict=True))


def run(seed: int, options: argparse.Namespace) -> dict[str, Row]:
    """All tasks with one seed."""
    rows: dict[str, Row] = {}
    for name in options.tasks:
        task = TASKS[name]
        counts = (300, 300, 200) if options.quick else (task.images, task.held, task.test)
        (x, y), held = validation_subset(task.load("train"), counts[0], counts[1], seed)
        test = subset(task.load("test"), counts[2], seed)
        torch.manual_seed(seed)
        net = network(x.shape[1], x.shape[-1])
        prior = dist.Normal(0.0, 1.0)
        model = pb.SupervisedModel(net, pb.likelihoods.Categorical(), prior, num_data=len(x))
        where = ["7.weight", "9.weight"]
        dropout = guides.MCDropout(model, p=0.25, where=where, per_example=True)
        epochs = 1 if options.quick else task.epochs
        fit = {"epochs": epochs, "lr": LEARNING_RATE, "optimizer": torch.optim.Adam, "progress": False}
        pb.fit(model, dropout, Batches(x, y, batch_size=BATCH), seed=seed, **fit)
        point = guides.MAP(model, init=dropout)
        head_epochs = 2 if options.quick else task.head_epochs
        for kind, guide, draws in (("point", point, 1), ("MC dropout", dropout, options.draws)):
            data = (batches(*held) if kind in options.learned else [], batches(*test))
            for score, row in table(model, guide, draws, *data, head_epochs, seed).items():
                rows[f"{name}, {kind}: {score}"] = row
    return rows


def table(
    model: pb.SupervisedModel,
    guide: guides.Guide,
    draws: int,
    held: list[Pair],
    test: list[Pair],
    head_epochs: int,
    seed: int,
) -> dict[str, Row]:
    """All uncertainties of one posterior; those that are fitted need held-out data."""
    prediction = pb.predict(model, guide, test, draws, seed=seed + 1)
    scores = {}
    if held:
        normalized = MaxLogitPNorm().fit(pb.predict(model, guide, held, draws, seed=seed))
        learned = ConfidNet(model, guide, num_samples=draws).fit(held, epochs=head_epochs, seed=seed)
        scores = {"MaxLogit-pNorm": normalized(prediction), "ConfidNet": 1.0 - learned.confidence(test)}
    found = failure_table(prediction, scores=scores)
    return {
        name: {column: factor * report[key] for column, (key, factor) in COLUMNS.items()}
        for name, report in found.items()
    }


def section(method: str) -> str:
    """The table that a row is in."""
    return method.split(":")[0]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="default: all")
    parser.add_argument("--draws", type=int, default=10, help="masks of MC dropout (default %(default)s)")
    posteriors = ["point", "MC dropout"]
    parser.add_argument(
        "--learned", nargs="+", choices=posteriors, default=posteriors, help="where pNorm and ConfidNet are fitted, too"
    )
    Experiment("Failure prediction", run, section).main(parser)


if __name__ == "__main__":
    main()
