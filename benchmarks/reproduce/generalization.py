"""Generalization: random labels, double descent, a PAC-Bayes bound of binary MNIST, and the evidence four ways.

Random labels: an MLP is fitted to 1,000 images of MNIST with classes drawn at random, and judged on 2,000 test images.
Double descent: least squares on random features of 500 images (targets are the digit, one-hot, a tenth of them wrong).
PAC-Bayes: digits 0 to 4 against 5 to 9, as in the literature. The posterior is a mean field trained by the ELBO on all
training images; the prior is the one it was trained under. In the second row it is centered at a MAP network that was
trained on half of the images, and the bound is taken on the other half. All settings were stated before the runs.
Evidence: a small network on 40 points of a noisy sine, in double precision.

    python -m benchmarks.reproduce.generalization --json generalization.json
"""

from __future__ import annotations

import argparse

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import nn

import pyrobnn as pb
from benchmarks.reproduce import datasets
from benchmarks.reproduce.experiment import Batches, Experiment, Pair, Row, arguments, subset
from pyrobnn import guides
from pyrobnn.diagnostics import generalization as g

PARTS = ("random labels", "double descent", "PAC-Bayes", "evidence")
HIDDEN = 100


def perceptron(outputs: int, hidden: int = HIDDEN, inputs: int = 784) -> nn.Sequential:
    """Flattened inputs and one hidden layer."""
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def random_labels(seed: int, quick: bool) -> dict[str, Row]:
    """Classes at random on 1,000 images."""
    count, epochs = (100, 3) if quick else (1_000, 60)
    x, _ = subset(datasets.mnist(), count, seed)
    test = subset(datasets.mnist("t10k"), 200 if quick else 2_000, seed)

    def build() -> tuple[nn.Module, guides.Guide]:
        model = pb.SupervisedModel(
            perceptron(10, 512), pb.likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=count
        )
        return model, guides.MAP(model)

    options = {"epochs": epochs, "lr": 1e-3, "repetitions": 1, "num_samples": 1, "seed": seed}
    found = g.random_label_fit(build, x, num_classes=10, test=test, **options)
    assert found.test_accuracies is not None
    accuracies = {"training": 100 * float(found.accuracies), "test": 100 * float(found.test_accuracies)}
    return {"MLP of 512 units, MAP": accuracies | {"complexity": found.estimate}}


def double_descent(seed: int, quick: bool) -> dict[str, Row]:
    """Random features through P = n."""
    count = 50 if quick else 500
    (x, labels), (x_test, labels_test) = (
        subset(datasets.mnist(split), rows, seed) for split, rows in (("train", count), ("t10k", 2_000))
    )
    wrong = torch.rand(count, generator=torch.Generator().manual_seed(seed)) < 0.1
    labels = torch.where(wrong, (labels + 1) % 10, labels)
    widths = [int(count * ratio) for ratio in (0.1, 0.3, 0.6, 0.9, 1.0, 1.1, 1.5, 3.0, 10.0)]
    # Pixels of mean 0 and variance 1 over all images: else most units are on or off for every row.
    mean, std = x.mean(), x.std()
    train, test = (((a - mean) / std, F.one_hot(b, 10).double()) for a, b in ((x, labels), (x_test, labels_test)))
    found = g.random_feature_sweep(train, test, widths, repetitions=3, seed=seed)
    errors = found.test_error.median(1).values
    rows = {f"P/n = {width / count:g}": {"test": float(e)} for width, e in zip(widths, errors, strict=True)}
    for name, error in zip(rows, found.train_error.median(1).values, strict=True):
        rows[name]["training"] = float(error)
    low, high = found.peak_ratios
    rows["peak over ends"] = {"P/n": widths[found.peak] / count, "over smallest": low, "over largest": high}
    return rows


def pac_bayes(seed: int, quick: bool) -> dict[str, Row]:
    """Digits 0 to 4 against 5 to 9."""
    count, epochs = (600, 1) if quick else (60_000, 10)
    train, test = (_binary(datasets.mnist(split)) for split in ("train", "t10k"))
    x, y = subset(train, count, seed)
    half = count // 2
    prior_rows, bound_rows = (x[:half], y[:half]), (x[half:], y[half:])
    draws = 100 if quick else 2_000
    rows: dict[str, Row] = {}

    torch.manual_seed(seed)
    prior = dist.Normal(0.0, 0.1)
    model = pb.SupervisedModel(perceptron(1), pb.likelihoods.Bernoulli(), prior, num_data=count)
    guide = guides.MeanField(model, init_scale=0.05)
    fit = {"epochs": epochs, "lr": 1e-3, "progress": False, "seed": seed}
    pb.fit(model, guide, Batches(x, y, batch_size=200), **fit)
    found = g.pac_bayes_bound(model, guide, [(x, y)], num_samples=draws, rows_per_draw=300, seed=seed)
    rows["prior N(0, 0.1²), all rows"] = _bound_row(found, model, guide, test, seed)

    torch.manual_seed(seed)
    start = pb.SupervisedModel(perceptron(1), pb.likelihoods.Bernoulli(), prior, num_data=half)
    point = guides.MAP(start)
    pb.fit(start, point, Batches(*prior_rows, batch_size=200), **fit)
    net = perceptron(1)
    net.load_state_dict({name.removeprefix("net."): value for name, value in point.sample(1).at(0).items()})
    centered = pb.priors.centered(0.03)
    model = pb.SupervisedModel(net, pb.likelihoods.Bernoulli(), centered, num_data=count)
    guide = guides.MeanField(model, init_scale=0.03)
    pb.fit(model, guide, Batches(x, y, batch_size=200), **fit | {"epochs": max(1, epochs // 3)})
    options = {"num_samples": draws, "rows_per_draw": 300, "seed": seed, "prior_data": [prior_rows]}
    found = g.pac_bayes_bound(model, guide, [bound_rows], **options)
    rows["prior learned on half, the other half"] = _bound_row(found, model, guide, test, seed)
    return rows


def _binary(data: Pair) -> Pair:
    return data[0], (data[1] > 4).float().unsqueeze(-1)


def _bound_row(found: g.PACBayesBound, model: pb.SupervisedModel, guide: guides.Guide, test: Pair, seed: int) -> Row:
    """Per cent; the test risk is that of single draws, of which the bound is."""
    prediction = pb.predict(model, guide, test[0], 50, return_draws=True, seed=seed)
    assert prediction.draws is not None
    risk = (prediction.draws.argmax(-1) != test[1]).double().mean()
    return {
        "bound": 100 * found.bound,
        "Catoni": 100 * found.catoni,
        "McAllester": 100 * found.mcallester,
        "test risk": 100 * float(risk),
        "training risk": 100 * found.sampled_risk,
        "KL": found.kl,
    }


def evidence(seed: int, quick: bool) -> dict[str, Row]:
    """One hidden layer of 10 units on a noisy sine, noise 0.2 known."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(40, 1, generator=generator, dtype=torch.float64) * 4 - 2
    y = torch.sin(2 * x) + 0.2 * torch.randn(40, 1, generator=generator, dtype=torch.float64)
    torch.manual_seed(seed)
    net = perceptron(1, 10, 1)
    net[2] = nn.Tanh()
    model = pb.SupervisedModel(net.double(), pb.likelihoods.Normal(0.2), dist.Normal(0.0, 1.0), num_data=40)
    epochs = 50 if quick else 2_000
    fit = {"epochs": epochs, "lr": 1e-2, "progress": False, "seed": seed}
    point, guide = guides.MAP(model), guides.MeanField(model)
    pb.fit(model, point, [(x, y)], **fit)
    pb.fit(model, guide, [(x, y)], **fit)
    laplace = guides.Laplace(model, init=point, structure="full").fit(model, [(x, y)])
    chains, temperatures = (4, 20) if quick else (16, 1_000)
    annealed = g.annealed_importance_sampling(
        model, x, y, num_chains=chains, num_temperatures=temperatures, num_leapfrog=5, seed=seed
    )
    found = g.evidence_estimates(model, x, y, laplace=laplace, guide=guide, annealed=annealed, num_samples=2_000)
    return {name: {"log evidence": one.value, "its error": one.standard_error} for name, one in found.items()}


def run(seed: int, options: argparse.Namespace) -> dict[str, Row]:
    """All parts with one seed."""
    functions = dict(zip(PARTS, (random_labels, double_descent, pac_bayes, evidence), strict=True))
    rows: dict[str, Row] = {}
    for part in options.parts:
        rows |= {f"{part}: {name}": row for name, row in functions[part](seed, options.quick).items()}
    return rows


def section(method: str) -> str:
    """The table that a row is in."""
    return method.split(":")[0]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    Experiment("Generalization", run, section).main(parser)


if __name__ == "__main__":
    main()
