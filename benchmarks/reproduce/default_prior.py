"""The default prior beside plain training and constant priors, on rows that are held out of training.

Problems, everything at its default but the prior and the length; a seed chooses rows and starting weights:

* ``digits``: scikit-learn's, N images, 500 others held out; a perceptron 64-64-10, every family.
* ``fashion``: 10,000 images of Fashion-MNIST's training file, its rows from 50,000 to 52,000 held out; a small
  convolutional network, as many epochs for all.
* ``uci``: a ninth of the published training rows held out, the test rows not touched; 50 hidden units, standardized.
* ``deep``: 200 digits, eight hidden layers of 32 units, with ``--init he`` and without.

A curve with a gap, against HMC: :mod:`benchmarks.reproduce.default_prior_gap`.

    python -m benchmarks.reproduce.default_prior --json default_prior.json
    python -m benchmarks.reproduce.default_prior --problems deep --init he
    python -m benchmarks.reproduce.default_prior --problems digits --sizes 100 --priors default normal he
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

import pyrobnn as pb
from benchmarks.reproduce import datasets
from benchmarks.reproduce.experiment import Batches, Experiment, Row, arguments, subset
from pyrobnn import guides

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

PRECISIONS: dict[str, Any] = {
    "Laplace": "model",
    "Laplace, evidence": "evidence",
    "Laplace, held out": "held_out",
}
"""How the prior precision of Laplace families is found."""

PRIORS: dict[str, Callable[[], Any]] = {
    "default": lambda: None,
    "Normal(0, 0.3)": lambda: dist.Normal(0.0, 0.3),
    "Normal(0, 0.5)": lambda: dist.Normal(0.0, 0.5),
    "Normal(0, 1)": lambda: dist.Normal(0.0, 1.0),
    "Normal(0, 2)": lambda: dist.Normal(0.0, 2.0),
    "he": pb.priors.he,
    "glorot": pb.priors.glorot,
}
"""All but the first are stated, so that the divergence counts once."""


@dataclass(frozen=True)
class Problem:
    """Data, a network, and how to train and score it.

    Attributes:
        name: As in the table.
        train, held_out: Inputs and targets.
        network: Makes a network; its weights depend on torch's random state.
        likelihood: Makes a likelihood.
        steps: Training steps.
        families, priors: What to compare.
        scale: Units of a standardized target; None for classes.
        further: 100 rows that are neither trained on nor scored, to tune a prior precision on; None if there are none.
    """

    name: str
    train: Data
    held_out: Data
    network: Callable[[], nn.Module]
    likelihood: Callable[[], Any]
    steps: int
    families: list[str]
    priors: list[str]
    scale: float | None = None
    further: Data | None = None


def problems(seed: int, options: argparse.Namespace) -> Iterator[Problem]:
    """Those that ``--problems`` names."""
    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    images, labels = torch.as_tensor(x, dtype=torch.float32)[order] / 16, torch.as_tensor(y)[order]
    if "deep" in options.problems:
        families = options.families or ["MAP", "MeanField", "LowRankNormal", "MCDropout", "DeltaMixture", "Laplace"]
        yield Problem(
            "digits, N = 200, eight hidden layers", subset((images[500:], labels[500:]), 200, seed),
            (images[:500], labels[:500]), deep, pb.likelihoods.Categorical, options.steps, families,
            options.priors or ["default"],
        )  # fmt: skip
    if "digits" in options.problems:
        for size in options.sizes:
            pool = images[500:], labels[500:]
            train, further = subset(pool, size, seed), subset(pool, size + 100, seed)
            rest = None if len(further[0]) < size + 100 else (further[0][size:], further[1][size:])
            priors = options.priors or ["default"]
            yield Problem(
                f"digits, N = {size}", train, (images[:500], labels[:500]), perceptron, pb.likelihoods.Categorical,
                options.steps, options.families or list(FAMILIES), priors, further=rest,
            )  # fmt: skip
    if "fashion" in options.problems:
        images, labels = datasets.fashion("train")
        train = subset((images[:50_000], labels[:50_000]), options.images, seed)
        held_out = images[50_000:52_000], labels[50_000:52_000]
        yield Problem(
            f"Fashion-MNIST, N = {options.images}", train, held_out, convolutional,
            pb.likelihoods.Categorical, 8 * (options.images // 128), options.families or ["MAP", "MeanField"],
            options.priors or ["default", "Normal(0, 1)", "he"],
        )  # fmt: skip
    if "uci" in options.problems:
        for name in options.sets:
            x, y = datasets.uci(name, seed)[0]
            order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
            known, others = order[len(x) // 9 :], order[: len(x) // 9]
            scaler = pb.Standardizer(x[known], y[known])
            train, held_out = ((scaler.inputs(x[rows]), scaler.targets(y[rows])) for rows in (known, others))
            width = x.shape[1]
            yield Problem(
                name, train, held_out, functools.partial(one_layer, width),
                pb.likelihoods.Normal, options.steps,
                options.families or ["MeanField"], options.priors or list(PRIORS), float(scaler.y_scale),
            )  # fmt: skip


def perceptron() -> nn.Module:
    """64-64-10."""
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def deep() -> nn.Module:
    """64-32-32-32-32-32-32-32-32-10."""
    hidden = (layer for _ in range(7) for layer in (nn.Linear(32, 32), nn.ReLU()))
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), *hidden, nn.Linear(32, 10))


def convolutional() -> nn.Module:
    """Two convolutions and a linear layer, 9,000 weights."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip


def one_layer(width: int) -> nn.Module:
    """50 hidden units."""
    return nn.Sequential(nn.Linear(width, 50), nn.ReLU(), nn.Linear(50, 1))


def run(seed: int, options: argparse.Namespace) -> dict[str, Row]:
    """All problems, priors and families with one seed."""
    rows: dict[str, Row] = {}
    for problem in problems(seed, options):
        if problem.scale is None:
            torch.manual_seed(seed)
            x, y = problem.train
            rows[f"{problem.name}: plain training"] = of_classes(plain(problem, options), problem)
            if problem.network is deep and options.init == "he":
                torch.manual_seed(seed)
                found = plain(problem, options, started_by_he)
                rows[f"{problem.name}: plain training, He's start"] = of_classes(found, problem)
            if x.dim() == 2:
                linear = LogisticRegression(max_iter=5000).fit(x, y)
                found = torch.as_tensor(linear.predict_proba(problem.held_out[0]))
                rows[f"{problem.name}: logistic regression"] = of_classes(found, problem)
        for prior in problem.priors:
            for family in problem.families:
                torch.manual_seed(seed)
                model = pb.SupervisedModel(
                    problem.network(), problem.likelihood(), PRIORS[prior](), num_data=len(problem.train[0])
                )
                guide = fitted(model, family, problem, seed, options)
                prediction = pb.predict(model, guide, problem.held_out[0], 100, seed=0, return_draws=True)
                rows[f"{problem.name}: {family}, {prior}"] = (
                    of_classes(prediction.mean, problem) if problem.scale is None else of_numbers(prediction, problem)
                )
    return rows


def fitted(
    model: pb.SupervisedModel, family: str, problem: Problem, seed: int, options: argparse.Namespace
) -> guides.Guide:
    """The guide after training; a Laplace approximation around the posterior mode."""
    loader = Batches(*problem.train, batch_size=min(128, len(problem.train[0])))
    epochs = 1 if options.quick else math.ceil(problem.steps / len(loader))
    make: Callable[..., guides.Guide] = guides.MAP if family in PRECISIONS else FAMILIES[family]
    guide = make(model, init=options.init)
    pb.fit(model, guide, loader, epochs=epochs, lr=options.lr, seed=seed, progress=False)
    if family not in PRECISIONS:
        return guide
    word = PRECISIONS[family]
    held_out = [problem.further] if word == "held_out" and problem.further is not None else None
    point = dict(guide.sample(1).at(0))
    return guides.Laplace(model, init=point).fit(model, [problem.train], prior_precision=word, held_out=held_out)


def started_by_he(net: nn.Module) -> nn.Module:
    """The network with He's starting weights, and biases of zero."""
    for layer in net.modules():
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return net


def plain(
    problem: Problem, options: argparse.Namespace, start: Callable[[nn.Module], nn.Module] = lambda net: net
) -> Tensor:
    """Probabilities of the same network after as many steps of Adam on the cross-entropy."""
    net = start(problem.network())
    optimizer = torch.optim.Adam(net.parameters(), lr=options.lr)
    loader, step = Batches(*problem.train, batch_size=min(128, len(problem.train[0]))), 0
    while step < (1 if options.quick else problem.steps):
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
            step += 1
    with torch.no_grad():
        return net(problem.held_out[0]).double().softmax(-1)  # a confident error has no probability in single precision


def of_classes(probabilities: Tensor, problem: Problem) -> Row:
    """Accuracy, NLL and calibration error."""
    labels = problem.held_out[1]
    return {
        "accuracy": float(pb.metrics.accuracy(probabilities, labels)),
        "NLL": float(pb.metrics.nll(probabilities, labels)),
        "ECE": float(pb.metrics.expected_calibration_error(probabilities, labels)),
    }


def of_numbers(prediction: pb.Prediction, problem: Problem) -> Row:
    """RMSE and log likelihood in the target's units, and the coverage of 90 % intervals."""
    assert problem.scale is not None
    targets = problem.held_out[1]
    low, high = prediction.interval(0.9)
    return {
        "RMSE": float((prediction.mean - targets).square().mean().sqrt()) * problem.scale,
        "log likelihood": float(prediction.log_prob(targets).mean()) - math.log(problem.scale),
        "coverage of 90 %": float(((targets >= low) & (targets <= high)).float().mean()),
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--problems", nargs="+", default=["digits", "fashion", "uci"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[50, 100, 200, 1297], help="of digits")
    parser.add_argument("--images", type=int, default=10_000, help="of Fashion-MNIST (default %(default)s)")
    parser.add_argument("--sets", nargs="+", default=["bostonHousing", "concrete", "energy", "yacht"], help="of uci")
    parser.add_argument("--priors", nargs="+", choices=PRIORS, help="default: chosen by problem")
    parser.add_argument(
        "--families", nargs="+", choices=[*FAMILIES, *list(PRECISIONS)[1:]], help="default: chosen by problem"
    )
    parser.add_argument("--steps", type=int, default=2000, help="of digits and uci (default %(default)s)")
    parser.add_argument("--init", choices=["he"], help="where guides start; default: at the network's weights")
    parser.add_argument("--lr", type=float, default=1e-3)
    Experiment("The default prior", run, lambda name: name.split(":")[0]).main(parser)


if __name__ == "__main__":
    main()
