"""Training against attacks on MNIST: FGSM, PGD, ALP, TRADES, feature scattering and ADT, under many attacks.

A small network (:func:`network`) is trained as a point on a few thousand images with each method, all with the same
steps of Adam, at a radius of 0.2 in the maximum norm. Accuracies are those of test images under FGSM, PGD, momentum
(MIM), the margin loss of Carlini and Wagner and attacks in feature space; ``A_rob`` counts an image that survives them
all. ``curvature`` is the mean over images of the largest eigenvalue of the loss's Hessian in the input.

Settings are those of the papers where they have one for images in [0, 1] (:data:`METHODS`), and were stated before any
test image was seen; the generators are small, and learn at 1e-3 since training is short. A second table has a denoiser
in front of the standard network.

    python -m benchmarks.reproduce.adversarial_training --json adversarial_training.json
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import torch
from torch import nn

import pyrobnn as pb
from benchmarks.reproduce import datasets
from benchmarks.reproduce.experiment import Batches, Experiment, Pair, Row, arguments, subset
from pyrobnn.diagnostics.generalization import input_stability
from pyrobnn.guides import MAP
from pyrobnn.objectives import ELBO, Objective
from pyrobnn.robustness import (
    FGSM,
    MIM,
    PGD,
    Attack,
    CarliniWagnerMargin,
    Denoiser,
    FeatureAttack,
    denoiser_report,
    fit_denoiser,
)
from pyrobnn.robustness import training as against

EPSILON = 0.2
RANGE = (0.0, 1.0)
NOISE = 64
CURVED = 200  # images whose curvature is measured
BALL: dict[str, Any] = {"epsilon": EPSILON, "clip": RANGE}

Made = tuple[Objective, list[pb.training.Player]]


def explicit(options: argparse.Namespace) -> Made:
    """ADT-EXP; the paper's number of draws is 5."""
    adversary = against.ExplicitDistribution(**BALL, num_draws=options.draws)
    return against.AdversarialTraining(adversary), []


def amortized(options: argparse.Namespace) -> Made:
    """ADT-EXP-AM."""
    generator = against.PerturbationGenerator(1, width=8, blocks=2).to(options.device)
    adversary = against.AmortizedDistribution(generator, **BALL)
    return against.AdversarialTraining(adversary), adversary.players(lr=1e-3)


def implicit(options: argparse.Namespace) -> Made:
    """ADT-IMP-AM."""
    size = {"width": 8, "blocks": 2, "noise_size": NOISE, "image_size": (28, 28)}
    generator = against.PerturbationGenerator(1, 1, **size).to(options.device)  # type: ignore[arg-type]
    encoder = against.PerturbationEncoder(1, NOISE, width=8).to(options.device)
    adversary = against.ImplicitDistribution(generator, encoder, **BALL)
    return against.AdversarialTraining(adversary), adversary.players(lr=1e-3)


METHODS: dict[str, Callable[[argparse.Namespace], Made]] = {
    "Standard": lambda _: (ELBO(), []),
    "AT-FGSM": lambda _: (against.AdversarialTraining(against.FastGradient(**BALL)), []),
    "AT-PGD": lambda _: (against.AdversarialTraining(against.ProjectedGradient(**BALL, steps=7)), []),
    "ALP": lambda _: (against.LogitPairing(against.ProjectedGradient(**BALL, steps=7), 0.5), []),
    "TRADES": lambda _: (ELBO(terms=[against.TRADES(**BALL, weight=6.0, steps=7)]), []),
    "FeaScatter": lambda _: (against.AdversarialTraining(against.FeatureScattering(**BALL)), []),
    "ADT-EXP": explicit,
    "ADT-EXP-AM": amortized,
    "ADT-IMP-AM": implicit,
}
"""From the options to the objective and the players of ``fit``."""


def attacks(images: Pair, options: argparse.Namespace) -> dict[str, Attack]:
    """The attacks; that in feature space moves to training images of other classes, in the hidden layer of 100."""
    x, y = (tensor[: options.targets].to(options.device) for tensor in images)
    features = FeatureAttack(**BALL, layer="6", images=x, labels=y, num_targets=options.feature_targets, steps=30)
    return {
        "FGSM": FGSM(**BALL),
        "PGD-20": PGD(**BALL, steps=20),
        "PGD-100": PGD(**BALL, steps=100),
        "MIM": MIM(**BALL, steps=20),
        "C&W": CarliniWagnerMargin(**BALL, steps=30),
        "FeaAttack": features,
    }


def network() -> nn.Module:
    """Two convolutions with stride 2 and a hidden layer of 100."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


def trained(method: str, data: Pair, seed: int, options: argparse.Namespace) -> tuple[pb.SupervisedModel, MAP]:
    """The network after training; one that was kept is not trained again."""
    x, y = data
    torch.manual_seed(seed)
    model = pb.SupervisedModel(network(), pb.likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=len(x))
    guide = MAP(model)
    model.to(options.device), guide.to(options.device)
    kept = Path(options.keep) / f"{method}-{seed}.pt" if options.keep else None
    if kept is not None and kept.exists():
        guide.load_state_dict(torch.load(kept, map_location=options.device))
        return model, guide
    objective, players = METHODS[method](options)
    loader = Batches(x.to(options.device), y.to(options.device), batch_size=options.batch)
    epochs = 1 if options.quick else options.epochs
    pb.fit(model, guide, loader, elbo=objective, players=players, epochs=epochs, lr=2e-3, seed=seed, progress=False)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        torch.save(guide.state_dict(), kept)
    return model, guide


def scores(model: pb.SupervisedModel, guide: MAP, train: Pair, test: Pair, options: argparse.Namespace) -> Row:
    """Accuracies in per cent under each attack and under all of them, and the curvature."""
    x, y = (tensor.to(options.device) for tensor in test)
    right = pb.predict(model, guide, x, 1, seed=0).predicted.to(y.device) == y
    row, survived = {"A_nat": 100 * float(right.double().mean())}, right.clone()
    for name, attack in attacks(train, options).items():
        moved = attack(model, guide, x, y, num_samples=1, seed=0)
        right = pb.predict(model, guide, moved, 1, seed=0).predicted.to(y.device) == y
        row[name], survived = 100 * float(right.double().mean()), survived & right
    row["A_rob"] = 100 * float(survived.double().mean())
    stability = input_stability(model, guide, x[:CURVED], y[:CURVED], num_samples=1, seed=0)
    assert stability.curvature is not None
    row["curvature"] = float(stability.curvature.mean())
    return row


def denoised(model: pb.SupervisedModel, guide: MAP, train: Pair, test: Pair, seed: int, options: Any) -> Row:
    """Accuracies with a U-Net in front, attacked by FGSM and by PGD-20 without and through it."""
    torch.manual_seed(seed)
    denoiser = Denoiser.unet(1, width=8).to(options.device)
    loader = Batches(*(tensor.to(options.device) for tensor in train), batch_size=options.batch)
    epochs = 1 if options.quick else options.denoiser_epochs
    fit_denoiser(denoiser, model, guide, loader, against.ProjectedGradient(**BALL, steps=3), epochs=epochs, seed=seed)
    x, y = (tensor.to(options.device) for tensor in test)
    row: Row = {}
    for name, attack in (("FGSM", FGSM(**BALL)), ("PGD-20", PGD(**BALL, steps=20))):
        report = denoiser_report(model, guide, denoiser, x, y, attack, num_samples=1)
        for case, accuracy in report.accuracies.items():
            row[case if "clean" in case else f"{case}, {name}"] = 100 * accuracy
    return row


def run(seed: int, options: argparse.Namespace) -> dict[str, Row]:
    """All methods with one seed."""
    train = subset(datasets.mnist(), 200 if options.quick else options.images, seed)
    test = subset(datasets.mnist("t10k"), 50 if options.quick else options.test, seed)
    rows: dict[str, Row] = {}
    for method in options.methods:
        model, guide = trained(method, train, seed, options)
        rows[method] = scores(model, guide, train, test, options)
        print(f"seed {seed}, {method}: {rows[method]}", flush=True)
        if method == "Standard" and options.denoiser_epochs:
            rows["Denoiser: U-Net before the standard network"] = denoised(model, guide, train, test, seed, options)
    return rows


def section(method: str) -> str:
    """The table that a row is in."""
    return "Denoiser" if method.startswith("Denoiser") else "Training"


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="default: all")
    parser.add_argument("--images", type=int, default=3000, help="training images (default %(default)s)")
    parser.add_argument("--test", type=int, default=500, help="test images (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=15, help="default: %(default)s")
    parser.add_argument(
        "--draws", type=int, default=5, help="draws of ADT-EXP in each of 7 steps (default %(default)s)"
    )
    parser.add_argument("--batch", type=int, default=100, help="rows of a batch (default %(default)s)")
    parser.add_argument("--targets", type=int, default=500, help="images for FeaAttack (default %(default)s)")
    parser.add_argument("--feature-targets", type=int, default=10, help="of them for an input (default %(default)s)")
    parser.add_argument(
        "--denoiser-epochs", type=int, default=5, help="0 leaves the denoiser out (default %(default)s)"
    )
    parser.add_argument("--keep", metavar="DIR", help="keep trained networks there, and take them if they are there")
    Experiment("Training against attacks, MNIST, radius 0.2", run, section).main(parser)


if __name__ == "__main__":
    main()
