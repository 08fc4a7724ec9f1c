"""Active learning on scikit-learn's digits: the error after each number of labels, by acquisition function.

The pool are 1,000 digits, the test set the other 797, which choose nothing. At first two digits of each class are
labeled, then ten in a round. Each round trains from scratch: a perceptron 64-128-10, 500 steps of Adam with a rate of
3e-3. Posteriors are dropout of half the hidden units, a mean field, and an ensemble of five; ``point`` asks by the
entropy of a network without posterior. The divergence weighs 0.01 for all: see the note in docs/results.md. Settings
were chosen with seed 101, which is not reported.

    python -m benchmarks.reproduce.active_learning --seeds 0 1 2 3 4 --json active_learning.json
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pyrobnn as pb
from benchmarks.reproduce.experiment import Experiment, Row, arguments
from pyrobnn import guides
from pyrobnn.decisions import BADGE, BALD, ActiveLearning, BatchBALD, CoreSet, Entropy, Random, VariationRatio
from pyrobnn.decisions.acquisition import Acquisition

POSTERIORS: dict[str, Callable[[Any], guides.Guide]] = {
    "dropout": lambda model: guides.MCDropout(model, p=[("*2*", 0.5)], per_example=True),
    "mean field": guides.MeanField,
    "ensemble": lambda model: guides.DeltaMixture(model, 5),
    "point": guides.MAP,
}

METHODS: dict[str, tuple[str, Callable[[], Acquisition]]] = {
    "dropout, random": ("dropout", Random),
    "dropout, BALD": ("dropout", BALD),
    "dropout, BatchBALD": ("dropout", BatchBALD),
    "dropout, entropy": ("dropout", Entropy),
    "dropout, variation ratio": ("dropout", VariationRatio),
    "dropout, BADGE of pixels": ("dropout", BADGE),
    "dropout, core-set of pixels": ("dropout", CoreSet),
    "mean field, random": ("mean field", Random),
    "mean field, BALD": ("mean field", BALD),
    "ensemble, random": ("ensemble", Random),
    "ensemble, BALD": ("ensemble", BALD),
    "point, random": ("point", Random),
    "point, entropy": ("point", Entropy),
}


def perceptron() -> nn.Module:
    """64-128-10."""
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def trainer(posterior: str, steps: int, temperature: float) -> Callable[[Tensor, Tensor, Any], tuple[Any, Any]]:
    """Trains from scratch."""

    def train(x: Tensor, y: Tensor, previous: Any) -> tuple[Any, Any]:
        model = pb.SupervisedModel(perceptron(), pb.likelihoods.Categorical(), num_data=len(x))
        guide = POSTERIORS[posterior](model)
        loader = DataLoader(TensorDataset(x, y), min(64, len(x)), shuffle=True)
        elbo = pb.objectives.ELBO(temperature=temperature)
        pb.fit(model, guide, loader, epochs=math.ceil(steps / len(loader)), lr=3e-3, elbo=elbo, progress=False)
        return model, guide

    return train


def run(seed: int, options: argparse.Namespace) -> dict[str, Row]:
    """All methods from the same first labels."""
    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    images, labels = torch.as_tensor(x, dtype=torch.float32)[order] / 16, torch.as_tensor(y)[order]
    pool, known = images[:1000], labels[:1000]
    first = [int(i) for c in range(10) for i in (known == c).nonzero()[:2, 0]]

    def evaluate(model: Any, guide: Any) -> dict[str, float]:
        prediction = pb.predict(model, guide, images[1000:], 50, seed=0)
        return {"accuracy": float(pb.metrics.accuracy(prediction.mean, labels[1000:]))}

    rows = {}
    rounds, steps = (2, 2) if options.quick else (options.rounds + 1, 500)
    for name in options.methods:
        posterior, acquisition = METHODS[name]
        train = trainer(posterior, steps, options.temperature)
        loop = ActiveLearning(train, pool, known, acquisition(), initial=first, evaluate=evaluate, seed=seed)
        loop.run(rounds)
        labels_used, accuracy = loop.curve("accuracy")
        row = {f"at {n}": a for n, a in zip(labels_used, accuracy, strict=True) if n in (20, 70, 120, 170)}
        for error in (0.10, 0.05):
            needed = loop.labels_needed("accuracy", 1 - error)
            row[f"labels for {error:.0%} error"] = math.nan if needed is None else float(needed)
        row["mean over rounds"] = sum(accuracy) / len(accuracy)
        rows[name] = row
    return rows


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="of ten labels (default %(default)s)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--temperature", type=float, default=0.01, help="of the divergence (default %(default)s)")
    Experiment("Active learning on digits", run).main(parser)


if __name__ == "__main__":
    main()
