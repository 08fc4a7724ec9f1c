"""The default prior on a curve with a gap: how unsure each family is in the gap, beside HMC under the same prior.

50 points of a sine in two groups, noise of 0.1, a network of 50 hidden units (151 weights, so that the divergence of a
guide with a density counts a third; the rows "full weight" count it once, as HMC does). Four chains of HMC are the
reference. Epistemic standard deviations at the data, in the gap and outside, over HMC's; the NLL of 1,000 other rows
where the data are. A seed chooses the points and the starting weights.

    python -m benchmarks.reproduce.default_prior_gap --json default_prior_gap.json
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import pyrobnn as pb
from benchmarks.reproduce.experiment import Batches, Experiment, Row, arguments
from pyrobnn import guides
from pyrobnn.diagnostics import function_space_diagnostics
from pyrobnn.sampling import HMC

NOISE = 0.1

FAMILIES: dict[str, Callable[[Any], guides.Guide]] = {
    "MeanField": guides.MeanField,
    "MeanField, full weight": guides.MeanField,
    "LowRankNormal": functools.partial(guides.LowRankNormal, rank=5),
    "LowRankNormal, full weight": functools.partial(guides.LowRankNormal, rank=5),
    "MCDropout": guides.MCDropout,
    "DeltaMixture": guides.DeltaMixture,
    "DeltaMixture, anchored": functools.partial(guides.DeltaMixture, init="prior", strategy="anchored"),
    "Laplace, linearized": guides.MAP,
}
"""All at their defaults but for the rank, and the anchored members, which begin at draws of the prior as they must."""

REGIONS = {"at the data": (0.5, 1.5), "in the gap": (0.0, 0.25), "outside": (2.0, 2.5)}
"""Ranges of |x|."""


def sample(count: int) -> tuple[Tensor, Tensor]:
    """Points of the curve in the two groups."""
    x = (0.5 + torch.rand(count, 1)) * (2.0 * (torch.arange(count) % 2).unsqueeze(1) - 1.0)
    return x, torch.sin(3.0 * x) + NOISE * torch.randn(count, 1)


def run(seed: int, options: argparse.Namespace) -> dict[str, Row]:
    """All families with one seed."""
    torch.manual_seed(seed)
    (x, y), (new_x, new_y) = sample(50), sample(1000)
    grid = torch.linspace(-2.5, 2.5, 201).unsqueeze(1)

    def score(model: pb.SupervisedModel, posterior: Any) -> tuple[dict[str, float], float]:
        deviation = pb.predict(model, posterior, grid, 1000, seed=0).epistemic.sqrt()
        inside = {name: (grid.abs() >= low) & (grid.abs() <= high) for name, (low, high) in REGIONS.items()}
        nll = -float(pb.predict(model, posterior, new_x, 1000, seed=0, return_draws=True).log_prob(new_y).mean())
        return {name: float(deviation[where].mean()) for name, where in inside.items()}, nll

    def make_model() -> pb.SupervisedModel:
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(1, 50), nn.Tanh(), nn.Linear(50, 1))
        return pb.SupervisedModel(net, pb.likelihoods.Normal(NOISE), num_data=len(x))

    model = make_model()
    chains = pb.sample(
        model, (x, y), kernel=HMC(num_leapfrog=5 if options.quick else 100, compile=False), num_chains=4,
        num_samples=20 if options.quick else 500, warmup_steps=20 if options.quick else 500, init="prior", seed=seed,
        progress=False,
    )  # fmt: skip
    reference, nll = score(model, chains)
    rhat = function_space_diagnostics(model, chains, grid[::20]).rhat
    assert rhat is not None
    rows: dict[str, Row] = {"HMC, standard deviation": {**reference, "NLL": nll, "R-hat": float(rhat.max())}}
    for name, make in FAMILIES.items():
        model = make_model()
        guide = make(model)
        elbo = pb.objectives.ELBO(temperature=1.0) if "full weight" in name else None
        epochs = 2 if options.quick else options.steps
        loader = Batches(x, y, batch_size=len(x))
        pb.fit(model, guide, loader, epochs=epochs, lr=options.lr, elbo=elbo, seed=seed, progress=False)
        if name.startswith("Laplace"):
            point = dict(guide.sample(1).at(0))
            guide = guides.Laplace(model, init=point, structure="full").fit(model, [(x, y)])
        found, nll = score(model, guide)
        rows[name] = {**{region: found[region] / reference[region] for region in REGIONS}, "NLL": nll}
    return rows


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--steps", type=int, default=5000, help="on all data (default %(default)s)")
    parser.add_argument("--lr", type=float, default=5e-3)
    Experiment("The default prior on a curve with a gap", run).main(parser)


if __name__ == "__main__":
    main()
