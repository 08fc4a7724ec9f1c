"""Fashion-MNIST with few images: a deep ensemble and the same members as a Gaussian process (DE-GP).

2,000 training images, 2,000 to test, drawn by the seed, and 2,000 digits of MNIST as unknown inputs. Two hidden layers
of 200 ReLU units under He's prior, 5 members, 300 steps of Adam at 3e-3 in batches of 128. DE-GP has three random
networks of the weights' prior and 32 images of uniform noise for context, with α = 0.1, the default of
:mod:`benchmarks.reproduce.functional`. All were stated in advance.

    python -m benchmarks.reproduce.functional_images
"""

from __future__ import annotations

import argparse
import functools

import torch
from torch import nn

import pyrobnn as pb
from benchmarks.reproduce import datasets
from benchmarks.reproduce.experiment import Batches, Experiment, Row, arguments, subset
from pyrobnn import guides, priors
from pyrobnn.function_space import DataBox, FunctionalELBO, RandomNetworks
from pyrobnn.objectives import ELBO, Objective

MEMBERS, CONTEXT = 5, 32


def run(seed: int, options: argparse.Namespace) -> dict[str, Row]:
    """Both ensembles; the plain one also read as a Gaussian process."""
    train = subset(datasets.fashion("train"), 2000, seed)
    test = subset(datasets.fashion("t10k"), 2000, seed)
    unknown, _ = subset(datasets.mnist("t10k"), 2000, seed)
    methods: dict[str, tuple[Objective, dict[str, str]]] = {
        "ensemble": (ELBO(), {"": "weights", ", as a Gaussian process": "gaussian_process"}),
        "DE-GP": (
            FunctionalELBO(RandomNetworks(3), DataBox(0.0, 1.0, CONTEXT), temperature=0.1),
            {"": "gaussian_process"},
        ),
    }
    rows = {}
    for name, (objective, predictors) in methods.items():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Flatten(), nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10)
        )
        model = pb.SupervisedModel(net, pb.likelihoods.Categorical(), priors.he(), num_data=2000)
        guide = guides.DeltaMixture(model, num_members=MEMBERS, init="prior")
        batches = Batches(*train, batch_size=128)
        epochs = 1 if options.quick else round(options.steps / len(batches))
        cosine = functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs)
        pb.fit(
            model, guide, batches, epochs=epochs, lr=3e-3, scheduler=cosine, elbo=objective, seed=seed, progress=False
        )
        for suffix, predictor in predictors.items():
            known, other = (pb.predict(model, guide, x, 50, predictor=predictor, seed=0) for x in (test[0], unknown))
            chosen = known.mean.double().clamp_min(1e-12)[torch.arange(len(test[1])), test[1]]
            entropies = [-(p.mean * p.mean.clamp_min(1e-12).log()).sum(1) for p in (known, other)]
            rows[f"{name}{suffix}"] = {
                "accuracy": float(pb.metrics.accuracy(known.mean, test[1])),
                "log likelihood": float(chosen.log().mean()),
                "ECE": float(pb.metrics.expected_calibration_error(known.mean, test[1])),
                "AUROC, entropy": float(pb.metrics.auroc(*entropies)),
                "AUROC, mutual information": float(pb.metrics.auroc(known.epistemic, other.epistemic)),
            }
    return rows


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--steps", type=int, default=300, help="training steps (default %(default)s)")
    Experiment("Fashion-MNIST with few images", run).main(parser)


if __name__ == "__main__":
    main()
