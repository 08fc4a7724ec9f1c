"""Unknown images against MNIST by the evidence of a Dirichlet prior network, and by a plain network's confidence.

Digits are trained on; images of Fashion-MNIST's training file are outliers to train on; notMNIST's are to be found, and
KMNIST's beside them. All rows have one network (``models.dirichlet_prior_network.lenet``) and as many steps of Adam.
The plain network's score is one minus the largest probability (MCP), a Dirichlet network's also minus the total
concentration (-α0) and the epistemic part of the entropy (MI). Numbers are areas under the ROC curve in per cent.

Nothing is tuned: weights of terms are the papers' (λ⁻¹ = 100, outliers 1; outlier exposure 0.5), the learning rate
1e-3, and images of notMNIST and KMNIST are not looked at.

    python -m benchmarks.reproduce.dirichlet --json dirichlet.json
    python -m benchmarks.reproduce.dirichlet --epochs 12 --methods plain "prior network"
"""

from __future__ import annotations

import argparse

import torch

import pyrobnn as pb
from benchmarks.reproduce import datasets
from benchmarks.reproduce.experiment import Batches, Experiment, Row, arguments, subset
from models.dirichlet_prior_network import lenet
from pyrobnn.guides import MAP, Guide, MeanField
from pyrobnn.metrics import accuracy, auroc
from pyrobnn.model.likelihoods import Categorical, Dirichlet, Likelihood
from pyrobnn.model.likelihoods.dirichlet import DirichletPrediction
from pyrobnn.objectives import ELBO, DirichletELBO, Objective, OutlierExposure

LEARNING_RATE = 1e-3
BATCH = 64


def methods(outliers: Batches, steps: int) -> dict[str, tuple[Likelihood, type[Guide], Objective]]:
    """Likelihood, family and objective of each row."""
    annealed = pb.schedules.Linear(0.0, 1.0, max(2, steps // 2), hold=True)

    def dirichlet(**options: object) -> DirichletELBO:
        return DirichletELBO("reverse", outliers=outliers, **options)  # type: ignore[arg-type]

    return {
        "plain": (Categorical(), MAP, ELBO()),
        "outlier exposure": (Categorical(), MAP, ELBO(terms=[OutlierExposure(outliers)])),
        "prior network without outliers": (Dirichlet(), MAP, DirichletELBO("reverse")),
        "evidential, no outliers": (
            Dirichlet("relu"),
            MAP,
            DirichletELBO("squared", misleading_weight=annealed),
        ),
        "prior network": (Dirichlet(), MAP, dirichlet()),
        "prior network, mean field": (Dirichlet(), MeanField, dirichlet()),
    }


def run(seed: int, options: argparse.Namespace) -> dict[str, Row]:
    """All rows with one seed."""
    images, test, epochs = (300, 100, 1) if options.quick else (options.images, options.test, options.epochs)
    x, y = subset(datasets.mnist(), images, seed)
    outliers = Batches(*subset(datasets.fashion("train"), images, seed), batch_size=BATCH)
    known, labels = subset(datasets.mnist("t10k"), test, seed)
    unknown = {"notMNIST": datasets.not_mnist(), "KMNIST": datasets.kmnist(), "Fashion": datasets.fashion("t10k")}
    sets = {name: subset(data, test, seed)[0] for name, data in unknown.items()}
    rows: dict[str, Row] = {}
    for name, (likelihood, family, objective) in methods(outliers, epochs * (images // BATCH)).items():
        if options.methods and name not in options.methods:
            continue
        torch.manual_seed(seed)
        model = pb.SupervisedModel(lenet(10, width=options.width), likelihood, num_data=images)
        guide = family(model)
        data = Batches(x, y, batch_size=BATCH)
        pb.fit(model, guide, data, epochs=epochs, lr=LEARNING_RATE, elbo=objective, seed=seed, progress=False)
        draws = options.draws if family is MeanField else 1
        inside = pb.predict(model, guide, known, draws, seed=0)
        row: Row = {
            "accuracy": 100 * float(accuracy(inside.mean, labels)),
            "NLL": float(-inside.log_prob(labels).mean()),
        }
        for place, pixels in sets.items():
            outside = pb.predict(model, guide, pixels, draws, seed=0)
            row[f"{place} MCP"] = 100 * auroc(inside.least_confidence, outside.least_confidence)
            if isinstance(inside, DirichletPrediction) and isinstance(outside, DirichletPrediction):
                row[f"{place} -α0"] = 100 * auroc(-inside.alpha0, -outside.alpha0)
                row[f"{place} MI"] = 100 * auroc(inside.epistemic, outside.epistemic)
        rows[name] = row
    return rows


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--width", type=int, default=8, help="channels of the first layer (default %(default)s)")
    parser.add_argument("--images", type=int, default=5000, help="digits, and outliers (default %(default)s)")
    parser.add_argument("--test", type=int, default=1000, help="test images of each set (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--methods", nargs="+", help="the rows (default: all)")
    parser.add_argument("--draws", type=int, default=20, help="of the mean field (default %(default)s)")
    Experiment("Dirichlet networks", run).main(parser)


if __name__ == "__main__":
    main()
