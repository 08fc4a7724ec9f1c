"""A monotone constraint with few data: test log likelihood with and without it.

* ``steps``: 30 points of ``tanh(3 (x1 - 1)) + tanh(3 (x2 + 1))`` on [-2, 2]², noise 0.5, which is fitted; rising in
  both inputs.
* ``yacht``: 50 rows of the UCI set, standardized by themselves; the resistance rises with the Froude number, the sixth
  input. All other rows are test rows.

A mean field and an ensemble of 5 of one hidden layer of 50 tanh units, 800 steps of Adam at 1e-2 on all rows. The
constraint is asked for at 64 points of the data's box at each step, as a smooth probability with weight 10 and
temperature 0.1, the setting of the library's own test, which was not tuned on these data.

    python -m benchmarks.reproduce.monotone
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Callable

import torch
from torch import nn

import pyrobnn as pb
from benchmarks.reproduce import datasets
from benchmarks.reproduce.experiment import Experiment, Pair, Row, arguments, subset
from benchmarks.reproduce.uci import Standardizer
from pyrobnn import guides, priors
from pyrobnn.function_space import DataBox, Monotone, violations
from pyrobnn.objectives import ELBO

GUIDES: dict[str, tuple[Callable[[pb.SupervisedModel], guides.Guide], int]] = {
    "mean field": (lambda model: guides.MeanField(model, init_scale=0.02), 200),
    "ensemble of 5": (lambda model: guides.DeltaMixture(model, num_members=5, init="prior"), 5),
}
RISING = {"steps": (0, 1), "yacht": (5,)}
"""Inputs that the target rises with."""

WEIGHT, TEMPERATURE = 10.0, 0.1


def steps(seed: int) -> tuple[Pair, Pair]:
    """30 rows to train, 2,000 to test."""
    generator = torch.Generator().manual_seed(seed)
    x = 4 * torch.rand(2030, 2, generator=generator) - 2
    y = (3 * (x[:, :1] - 1)).tanh() + (3 * (x[:, 1:] + 1)).tanh()
    y = y + 0.5 * torch.randn(y.shape, generator=generator)
    return (x[:30], y[:30]), (x[30:], y[30:])


def yacht(seed: int) -> tuple[Pair, Pair]:
    """50 rows to train, the other 258 to test."""
    first, second = datasets.uci("yacht", 0)
    whole = torch.cat([first[0], second[0]]), torch.cat([first[1], second[1]])
    x, y = subset(whole, len(whole[0]), seed)
    inputs, targets = Standardizer(x[:50]), Standardizer(y[:50])
    x, y = inputs(x), targets(y)
    return (x[:50], y[:50]), (x[50:], y[50:])


DATA = {"steps": steps, "yacht": yacht}


def fitted(name: str, label: str, weight: float, seed: int, options: argparse.Namespace) -> Row:
    """One fit: scores on the test rows, and how often test rows have a falling function."""
    train, test = DATA[name](seed)
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(train[0].shape[1], 50), nn.Tanh(), nn.Linear(50, 1))
    noise = pb.likelihoods.Normal(scale=0.3, learn_scale=True)
    model = pb.SupervisedModel(net, noise, priors.lecun(), num_data=len(train[0]))
    make, draws = GUIDES[label]
    guide = make(model)
    box = DataBox.around(train[0], 0.0, 64)
    asked = [
        Monotone(index, box, weight, form="probability", temperature=TEMPERATURE, name=f"rising {index}")
        for index in RISING[name]
    ]
    epochs = 1 if options.quick else options.steps
    cosine = functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs)
    elbo = ELBO(terms=asked if weight else [])
    pb.fit(model, guide, [train], epochs=epochs, lr=1e-2, scheduler=cosine, elbo=elbo, seed=seed, progress=False)
    found = pb.predict(model, guide, test[0], draws, return_draws=True, seed=0)
    rates = [violations(model, guide, term, test[0][:200], min(draws, 20), seed=0).rate for term in asked]
    return {
        "log likelihood": float(found.log_prob(test[1]).mean()),
        "RMSE": math.sqrt(float((found.mean - test[1]).square().mean())),
        "rate of falling slopes": sum(rates) / len(rates),
    }


def run(seed: int, options: argparse.Namespace) -> dict[str, Row]:
    """All problems and posteriors, without and with the constraint."""
    rows = {}
    for name in DATA:
        for label in options.posteriors:
            rows[f"{name}: {label}"] = fitted(name, label, 0.0, seed, options)
            rows[f"{name}: {label}, monotone"] = fitted(name, label, WEIGHT, seed, options)
    return rows


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--steps", type=int, default=800, help="training steps (default %(default)s)")
    parser.add_argument("--posteriors", nargs="+", choices=GUIDES, default=list(GUIDES), help="default: both")
    Experiment("A monotone constraint", run, lambda name: name.partition(":")[0]).main(parser)


if __name__ == "__main__":
    main()
