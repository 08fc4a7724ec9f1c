"""Accuracy of the surest answers, and sizes of conformal sets, of a point and of three posteriors, on noisy digits.

scikit-learn's digits under noise of standard deviation 0.35, so that some cannot be read; 400 train a perceptron
64-100-10 for 40 epochs of batches of 50, Adam at 3e-3, under the default prior. The other 1,397 are scored. ``at 20 %``
is the accuracy of the 20 % of these with the least total uncertainty. Sets hold the label with 90 % probability: 300 of
the rows conformalize and the rest are covered, means of 20 such splits, the same for all methods. Settings were stated
before the first run.

    python -m benchmarks.reproduce.retention --json retention.json
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pyrobnn as pb
from benchmarks.reproduce.experiment import Experiment, Row, arguments
from pyrobnn import guides
from pyrobnn.conformal import APS, LAC, ClassScore, ConformalClassifier
from pyrobnn.model.likelihoods.predictions import ClassPrediction

POSTERIORS: dict[str, Callable[[Any], guides.Guide]] = {
    "point": guides.MAP,
    "MC dropout": lambda model: guides.MCDropout(model, p=[("*2*", 0.2)]),
    "mean field": guides.MeanField,
    "ensemble of 5": lambda model: guides.DeltaMixture(model, 5),
}
SCORES: dict[str, tuple[ClassScore, bool]] = {"LAC": (LAC(), False), "APS": (APS(), True)}


def retained(prediction: ClassPrediction, y: Tensor) -> Row:
    """Accuracy in per cent of the surest shares."""
    right = (prediction.predicted == y)[prediction.total.argsort()].double()
    shares = (0.2, 0.4, 0.6, 0.8, 1.0)
    return {f"at {share:.0%}": 100 * float(right[: round(share * len(y))].mean()) for share in shares}


def sets(prediction: ClassPrediction, y: Tensor, seed: int, splits: int) -> Row:
    """Mean coverage in per cent, and mean size."""
    row: Row = {}
    for name, (score, randomized) in SCORES.items():
        covered, size = [], []
        for split in range(splits):
            order = torch.randperm(len(y), generator=torch.Generator().manual_seed(1000 * seed + split))
            held, new = order[:300], order[300:]
            predictor = ConformalClassifier(score, confidence_level=0.9, randomized=randomized, seed=split)
            found = predictor.conformalize(prediction.rows(held), y[held]).predict_set(prediction.rows(new))
            covered.append(float(found.gather(1, y[new][:, None]).double().mean()))
            size.append(float(found.sum(1).double().mean()))
        row |= {f"{name} coverage": 100 * sum(covered) / splits, f"{name} size": sum(size) / splits}
    return row


def run(seed: int, options: argparse.Namespace) -> dict[str, Row]:
    """All posteriors on the same rows."""
    x, y = load_digits(return_X_y=True)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=generator)
    images = torch.as_tensor(x, dtype=torch.float32)[order] / 16
    images, labels = images + 0.35 * torch.randn(images.shape, generator=generator), torch.as_tensor(y)[order]
    rows = {}
    for name, make in POSTERIORS.items():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
        model = pb.SupervisedModel(net, pb.likelihoods.Categorical(), num_data=400)
        guide = make(model)
        loader = DataLoader(TensorDataset(images[:400], labels[:400]), 50, shuffle=True)
        pb.fit(model, guide, loader, epochs=1 if options.quick else 40, lr=3e-3, seed=seed, progress=False)
        prediction = pb.predict(model, guide, images[400:], 50, seed=0)
        assert isinstance(prediction, ClassPrediction)
        held = labels[400:]
        rows[name] = retained(prediction, held) | sets(prediction, held, seed, 2 if options.quick else 20)
    return rows


def main() -> None:
    Experiment("Surest answers and conformal sets", run).main(arguments(__doc__))


if __name__ == "__main__":
    main()
