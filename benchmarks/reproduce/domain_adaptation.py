"""MNIST to USPS and back, whole label sets and two imbalanced classes; no label of the target is read in training.

2,000 images of MNIST and 1,800 of USPS, as in the protocol of the papers, brought to 16 x 16 pixels (the papers have
28 x 28); a LeNet of two convolutions; accuracy on the test file of the target at the end of training, where no
checkpoint is chosen. Imbalanced: classes 0 and 1, ten of 0 for each of 1 in the source, one for ten in the target.
Settings are those of the published code of CAT, with the ramps shortened to the number of steps: margin 30 on mean
squared differences of logits, clusters from a third of the steps on, adversary 0.1, gate 0.9. Nothing is tuned.

    python -m benchmarks.reproduce.domain_adaptation --json domain_adaptation.json
    python -m benchmarks.reproduce.domain_adaptation --directions usps-mnist --methods source CAT
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pyrobnn as pb
from benchmarks.reproduce import datasets
from benchmarks.reproduce.experiment import Batches, Experiment, Pair, Row, arguments, subset
from models.domain_adaptation import (
    AlignmentLoss,
    CentroidAlignment,
    ClassifierDiscrepancy,
    ClusterAlignment,
    ClusterRamp,
    DomainAdversarial,
    DomainRamp,
    MeanDiscrepancy,
    PosteriorTeacher,
    adapt,
    domain_discriminator,
)
from pyrobnn.guides import MAP, Composite, DeltaMixture, Guide
from pyrobnn.metrics import accuracy, auroc, expected_calibration_error
from pyrobnn.objectives import UnlabeledLoader

BATCH, LEARNING_RATE, FEATURES = 128, 1e-3, 128
SIZES = {"mnist": 2000, "usps": 1800}


def lenet(classes: int) -> nn.Sequential:
    """A LeNet of images ``[B, 1, 16, 16]``."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 16, FEATURES), nn.ReLU(), nn.Linear(FEATURES, classes),
    )  # fmt: skip


def methods(guide: Guide, steps: int) -> dict[str, Callable[[], list[AlignmentLoss]]]:
    """The losses of each method."""

    def adversary(gate: float | None = None) -> DomainAdversarial:
        return DomainAdversarial(domain_discriminator(FEATURES, 100), DomainRamp(steps, 0.1), gate=gate)

    def clusters() -> ClusterAlignment:
        return ClusterAlignment(ClusterRamp(steps // 3, steps // 3), margin=30.0, distance="mean", on="logits")

    found: dict[str, Callable[[], list[AlignmentLoss]]] = {
        "source": list,
        "DDC": lambda: [MeanDiscrepancy()],
        "RevGrad": lambda: [adversary()],
        "MSTN": lambda: [adversary(), CentroidAlignment(DomainRamp(steps, 0.01))],
        "CAT": lambda: [clusters()],
        "RevGrad+CAT": lambda: [adversary(), clusters()],
        "rRevGrad+CAT": lambda: [adversary(0.9), clusters()],
        "rRevGrad+CAT, ensemble": lambda: [adversary(0.9), clusters()],
    }
    if isinstance(guide, Composite):
        found["MCD"] = lambda: [ClassifierDiscrepancy(guide.parts[0])]
    return found


def guide_of(method: str, model: pb.SupervisedModel) -> Guide:
    """Points, two heads for MCD, five members for the ensemble."""
    if method == "MCD":
        return Composite(model, [("9.*", functools.partial(DeltaMixture, num_members=2)), ("*", MAP)])
    return DeltaMixture(model, num_members=5) if "ensemble" in method else MAP(model)


def data(seed: int, direction: str, imbalanced: bool) -> tuple[Pair, Tensor, Pair]:
    """Labeled sources, unlabeled targets, and the target's test images."""
    source, target = direction.split("-")
    x, y = _images(source, "train")
    z, t = _images(target, "train")
    test = _images(target, "test")
    if not imbalanced:
        return subset((x, y), SIZES[source], seed), subset((z, t), SIZES[target], seed)[0], test
    binary = test[1] < 2
    return _unequal((x, y), 10, seed), _unequal((z, t), 0.1, seed)[0], (test[0][binary], test[1][binary])


def _images(name: str, split: str) -> Pair:
    if name == "usps":
        return datasets.usps(split)
    x, y = datasets.mnist({"train": "train", "test": "t10k"}[split])
    return F.interpolate(x, size=16, mode="bilinear", antialias=True), y


def _unequal(pair: Pair, ratio: float, seed: int) -> Pair:
    """550 rows of classes 0 and 1, ``ratio`` of 0 for each of 1."""
    counts = [500, 50] if ratio > 1 else [50, 500]
    own = [subset((pair[0][pair[1] == c], pair[1][pair[1] == c]), count, seed) for c, count in enumerate(counts)]
    return torch.cat([x for x, _ in own]), torch.cat([y for _, y in own])


def run(seed: int, options: argparse.Namespace) -> dict[str, Row]:
    """All rows with one seed."""
    steps = 10 if options.quick else options.steps
    rows: dict[str, Row] = {}
    for direction in options.directions:
        for imbalanced in options.imbalanced:
            (x, y), target, test = data(seed, direction, imbalanced)
            for name in options.methods:
                torch.manual_seed(seed)
                model = pb.SupervisedModel(
                    lenet(2 if imbalanced else 10), pb.likelihoods.Categorical(), num_data=len(x)
                )
                guide = guide_of(name, model)
                losses = methods(guide, steps)[name]()
                batches = Batches(x, y, batch_size=BATCH)
                adapt(
                    model, guide, batches, UnlabeledLoader(target, BATCH), losses, epochs=max(1, steps // len(batches)),
                    lr=LEARNING_RATE, seed=seed, progress=False, device=options.device,
                    teacher=PosteriorTeacher(5) if "ensemble" in name else None,
                )  # fmt: skip
                found = pb.predict(model, guide, test[0], 5, seed=0)
                wrong = found.predicted != test[1]
                label = f"{name} | {direction}{', imbalanced' if imbalanced else ''}"
                rows[label] = {
                    "accuracy": 100 * float(accuracy(found.mean, test[1])),
                    "ECE": 100 * float(expected_calibration_error(found.mean, test[1])),
                    "AUROC of errors": 100 * auroc(found.least_confidence[~wrong], found.least_confidence[wrong]),
                }
    return rows


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--steps", type=int, default=1500, help="training steps (default %(default)s)")
    parser.add_argument("--directions", nargs="+", default=["mnist-usps", "usps-mnist"])
    parser.add_argument("--imbalanced", type=int, nargs="+", default=[0, 1], help="0 and, or 1 (default: both)")
    parser.add_argument("--methods", nargs="+", default=list(NAMES), help="the rows (default: all)")
    Experiment("Domain adaptation", run, lambda label: label.split(" | ")[1]).main(parser)


NAMES = (
    "source", "DDC", "RevGrad", "MSTN", "MCD", "CAT", "RevGrad+CAT", "rRevGrad+CAT", "rRevGrad+CAT, ensemble",
)  # fmt: skip

if __name__ == "__main__":
    main()
