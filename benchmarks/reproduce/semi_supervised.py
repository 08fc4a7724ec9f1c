"""Semi-supervised learning on scikit-learn's digits with 50 labels: test error with and without consistency terms.

Of 1,797 digits 497 are the test set. Of the other 1,300 five of each class are labeled, and all are unlabeled inputs of
the terms. All methods train a perceptron 64-256-256-10 with dropout (``MCDropout``, p = 0.2 after each hidden layer,
the divergence weighted by 0.01, as for active learning) for 600 steps of Adam at 1e-3, and predict with 50 draws.
Augmented images are shifted by up to a pixel either way, turned and stretched a little, and noisy; ``supervised`` has
the same augmentation of its labeled images as the others. The ramp-up takes the first 40 % of the steps.

Settings are the weight of the term, and for supervised training the learning rate; ``--tune`` chooses them on 300 of
the 1,300 digits, which are then no inputs of the terms, with seeds that are not reported.

    python -m benchmarks.reproduce.semi_supervised --tune --json semi_supervised.json
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import pyrobnn as pb
from benchmarks.reproduce.experiment import Batches, Experiment, Pair, Row, arguments
from benchmarks.reproduce.tuning import Scores, Setting
from pyrobnn import guides, schedules
from pyrobnn.objectives import ELBO, MeanTeacher, PiModel, TemporalEnsembling, UnlabeledLoader
from pyrobnn.objectives.terms import Term

_RATES = Setting("learning rate", 1e-3, (3e-4, 1e-3, 3e-3, 1e-2))
_WEIGHTS = Setting("weight", 3.0, (0.3, 1.0, 3.0, 10.0))
SETTINGS = {
    "supervised, not augmented": _RATES,
    "supervised": _RATES,
    "Pi-model": _WEIGHTS,
    "temporal ensembling": _WEIGHTS,
    "mean teacher": _WEIGHTS,
}
TERMS: dict[str, Callable[..., Term]] = {
    "Pi-model": PiModel,
    "temporal ensembling": TemporalEnsembling,
    "mean teacher": MeanTeacher,
}


def augmented(x: Tensor) -> Tensor:
    """Digits ``[B, 64]``, each moved by up to a pixel, turned by up to 10 degrees, stretched by 10 %, with noise."""
    angle, stretch = torch.empty(len(x)).uniform_(-0.17, 0.17), torch.empty(len(x), 2).uniform_(0.9, 1.1)
    move = torch.empty(len(x), 2).uniform_(-0.25, 0.25)  # of half the width: one pixel of eight
    cos, sin = angle.cos(), angle.sin()
    rows = [torch.stack([cos, -sin, move[:, 0]], 1), torch.stack([sin, cos, move[:, 1]], 1)]
    affine = torch.stack([row * torch.cat([stretch, torch.ones(len(x), 1)], 1) for row in rows], 1)
    grid = F.affine_grid(affine, [len(x), 1, 8, 8], align_corners=False)
    moved = F.grid_sample(x.view(-1, 1, 8, 8), grid, align_corners=False).view(len(x), -1)
    return moved + 0.05 * torch.randn_like(moved)


def digits(seed: int, held: int) -> tuple[Pair, Tensor, Pair]:
    """Fifty labeled digits, the unlabeled ones, and what is scored: the test set, or ``held`` other rows."""
    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    images, labels = torch.as_tensor(x, dtype=torch.float32)[order] / 16, torch.as_tensor(y)[order]
    count = 1300 - held
    chosen = torch.cat([(labels[:count] == c).nonzero()[:5, 0] for c in range(10)])
    scored = slice(count, 1300) if held else slice(1300, None)
    return (images[chosen], labels[chosen]), images[:count], (images[scored], labels[scored])


def trained(
    method: str, setting: float, labeled: Pair, unlabeled: Tensor, steps: int
) -> tuple[pb.SupervisedModel, guides.Guide]:
    """A network with dropout."""
    hidden = [nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU()]
    model = pb.SupervisedModel(
        nn.Sequential(*hidden, nn.Linear(256, 10)), pb.likelihoods.Categorical(), num_data=len(labeled[0])
    )
    guide = guides.MCDropout(model, p=[("*2*", 0.2), ("*4*", 0.2)], per_example=True)
    terms: list[Term] = []
    if method in TERMS:
        weight = schedules.GaussianRampUp(setting, max(1, int(0.4 * steps)))
        terms.append(TERMS[method](UnlabeledLoader(unlabeled, 100), weight, augment=augmented))
    loader = Batches(*labeled, 50, None if method == "supervised, not augmented" else augmented)
    pb.fit(
        model,
        guide,
        loader,
        epochs=steps,
        lr=1e-3 if method in TERMS else setting,
        elbo=ELBO(temperature=0.01, terms=terms),
        progress=False,
    )
    return model, guide


def scored(model: pb.SupervisedModel, guide: guides.Guide, rows: Pair) -> Row:
    """Error in per cent, and NLL."""
    prediction = pb.predict(model, guide, rows[0], 50, seed=0)
    error = 100 * (1 - float(pb.metrics.accuracy(prediction.mean, rows[1])))
    return {"error %": error, "NLL": float(pb.metrics.nll(prediction.mean, rows[1]))}


def run(seed: int, options: argparse.Namespace) -> dict[str, Row]:
    """All methods with the same labels."""
    labeled, unlabeled, test = digits(seed, 0)
    rows: dict[str, Row] = {}
    for method in options.methods:
        torch.manual_seed(seed)
        found = trained(method, options.settings[method], labeled, unlabeled, 5 if options.quick else options.steps)
        rows[method] = scored(*found, test)
        if "supervised" in rows:
            rows[method]["relative to supervised"] = rows[method]["error %"] / rows["supervised"]["error %"]
    return rows


def tune(seed: int, options: argparse.Namespace) -> Scores:
    """Error on held-out rows of the training set."""
    labeled, unlabeled, validation = digits(seed, 300)
    scores: dict[str, dict[float, float]] = {}
    for method in options.methods:
        for value in SETTINGS[method].candidates:
            torch.manual_seed(seed)
            found = trained(method, value, labeled, unlabeled, 5 if options.quick else options.steps)
            scores.setdefault(method, {})[value] = scored(*found, validation)["error %"]
    return scores


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--methods", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--steps", type=int, default=600, help="default %(default)s")
    Experiment("Digits with 50 labels", run, settings=SETTINGS, tune=tune).main(parser)


if __name__ == "__main__":
    main()
