r"""The inverse problem of Bishop: :math:`t = u + 0.3 \sin(4 \pi u) + \epsilon`, and u is to be predicted from t.

u is uniform on [0, 1] and :math:`\epsilon \sim N(0, 0.05^2)`; 1,000 rows to train on, 5,000 to test. One input has
several answers. The same network (two layers of 50 tanh units), prior N(0, 1) and length of training for a normal
distribution, a mixture of 5, and a spline flow of 16 bins; numbers were stated before the run. Log likelihoods are in
nats per row, in units of u.

    python -m benchmarks.reproduce.inverse_problem --json inverse_problem.json --figure inverse_problem.png
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import pyrobnn as pb
from benchmarks.reproduce.experiment import Batches, Experiment, Row, arguments
from models.flow_regression import flow_regression
from models.heteroscedastic import heteroscedastic
from models.mixture_density import mixture_density

TRAIN, TEST, NOISE = 1000, 5000, 0.05

MODELS: dict[str, Callable[[int], pb.SupervisedModel]] = {
    "Gaussian": heteroscedastic,
    "mixture of 5": functools.partial(mixture_density, components=5),
    "spline flow": functools.partial(flow_regression, bins=16),
}
FAMILIES: dict[str, Callable[[Any], Any]] = {
    "MAP": pb.guides.MAP,
    "ensemble of 5": functools.partial(pb.guides.DeltaMixture, num_members=5),
}


def rows(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs t and targets u, ``[count, 1]``."""
    u = torch.rand(count, 1, generator=generator)
    noise = NOISE * torch.randn(count, 1, generator=generator)
    return u + 0.3 * (4 * math.pi * u).sin() + noise, u


def run(seed: int, options: argparse.Namespace) -> dict[str, Row]:
    """Each model with each family."""
    generator = torch.Generator().manual_seed(seed)
    train, test = rows(TRAIN, generator), rows(TEST, generator)
    scaler = pb.Standardizer(*train)
    x, y = scaler.inputs(train[0]), scaler.targets(train[1])
    found: dict[str, Row] = {}
    for name, model_of in MODELS.items():
        for family, guide_of in FAMILIES.items():
            if options.families and family not in options.families:
                continue
            torch.manual_seed(seed)
            model = model_of(TRAIN)
            guide = guide_of(model)
            steps = 20 if options.quick else options.steps
            epochs = max(1, steps // (TRAIN // 100))
            pb.fit(model, guide, Batches(x, y, 100), epochs=epochs, lr=3e-3, progress=False)
            prediction = pb.predict(model, guide, scaler.inputs(test[0]), 5, seed=0, return_draws=True)
            prediction = scaler.undo(prediction)
            low, high = prediction.interval(0.9)
            inside = (test[1] >= low) & (test[1] <= high)
            found[f"{name}, {family}"] = {
                "log likelihood": prediction.log_prob(test[1]).mean().item(),
                "coverage of 90 %": inside.float().mean().item(),
                "width": (high - low).mean().item(),
            }
            if options.figure and family == "MAP" and seed == options.seeds[0]:
                order = test[0][:, 0].argsort()[::4]
                drawn = prediction.sample(5)[0, order]
                PANELS[name] = (test[0][order], prediction.mean[order], prediction.aleatoric[order], drawn)
    return found


PANELS: dict[str, tuple[Tensor, ...]] = {}


def draw(path: str) -> None:
    """Mean and two standard deviations of each model, and targets that are drawn from it."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(PANELS), figsize=(4 * len(PANELS), 3.5), sharey=True)
    for ax, (name, (x, mean, aleatoric, drawn)) in zip(panels, PANELS.items(), strict=True):
        band = (x, mean, aleatoric, torch.zeros_like(mean))
        pb.plots.regression_band(*band, xlabel="t", ylabel="u", ax=ax)
        ax.scatter(x, drawn, s=2, color="tab:red", label="draws")
        ax.get_legend().remove()
        ax.set_title(name)
    figure.savefig(path, dpi=120, bbox_inches="tight")


def main(argv: list[str] | None = None) -> dict[str, list[Row]]:
    """Runs all seeds."""
    parser = arguments(__doc__)
    parser.add_argument("--steps", type=int, default=3000, help="training steps (default %(default)s)")
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), help="default: all")
    parser.add_argument("--figure", metavar="PATH", help="draw the first seed's predictions to a file")
    found = Experiment("Inverse problem", run).main(parser, argv)
    if PANELS:
        draw(parser.parse_args(argv).figure)
    return found


if __name__ == "__main__":
    main()
