"""The toy of adversarial posterior distillation: twenty points, predictions of SGLD and of its generator.

Ten points of each class at (2, 2) and (-2, -2) with covariance 0.3 I, a network with ten hidden units (Wang et al.,
2018).
Predictions are compared on a grid over [-6, 6]², as the mean and largest difference of class probabilities.

    python -m benchmarks.reproduce.distillation_toy --seeds 0 1 2 --json toy.json --figure toy.png
"""

from __future__ import annotations

import argparse

import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyrobnn as pb
from benchmarks.reproduce.experiment import Experiment, Row, arguments
from pyrobnn.guides import MAP, Chains

GRID = torch.cartesian_prod(torch.linspace(-6, 6, 41), torch.linspace(-6, 6, 41))


def data(seed: int) -> tuple[Tensor, Tensor]:
    """Twenty points and their classes."""
    generator = torch.Generator().manual_seed(seed)
    noise = 0.3**0.5 * torch.randn(20, 2, generator=generator)
    y = torch.arange(20) // 10
    return noise + torch.where(y == 0, 2.0, -2.0)[:, None], y


def run(seed: int, options: argparse.Namespace) -> dict[str, Row]:
    """A point estimate, SGLD and its generators with one seed."""
    x, y = data(seed)
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(2, 10), nn.ReLU(), nn.Linear(10, 2))
    model = pb.SupervisedModel(net, pb.likelihoods.Categorical(), dist.Normal(0.0, options.prior), num_data=20)
    point = MAP(model)
    pb.fit(model, point, [(x, y)], epochs=100 if options.quick else 1000, lr=1e-2, seed=seed, progress=False)
    draws, steps = (50, 20) if options.quick else (options.draws, options.steps)
    # One run gives the draws and, beside them, as many again, which tell how far two halves of a chain are apart.
    chains = pb.sample(
        model,
        (x, y),
        kernel=pb.sampling.SGLD(options.step_size),
        num_samples=2 * draws,
        warmup_steps=500,
        thinning=options.thinning,
        init=point,
        seed=seed,
        progress=False,
    )
    rows = chains.flat_draws(torch.arange(2 * draws))
    first, second = (Chains(model, 1, draws, [half[:, None]]) for half in rows.split(draws))
    apart = {"match_moments": False}
    sgld = predicted(model, first, seed)
    found = {"deterministic": predicted(model, point, seed), "SGLD, later draws": predicted(model, second, seed)}
    table: dict[str, Row] = {}
    for name, more in (("APD", {}), ("APD, moments as they come", apart)):
        settings = {"steps": steps, "lr": options.lr, "latent_dim": options.latent, "batch_size": min(100, draws)}
        settings |= {"components": options.components or None}
        generator = pb.distill(first, seed=seed, progress=False, **settings, **more)
        found[name] = predicted(model, generator, seed)
        table[name] = {"storage": generator.storage_ratio or 0.0}
    for name, probs in found.items():
        difference = (probs - sgld).abs()
        row = {"mean difference": float(difference.mean()), "largest": float(difference.max())}
        table[name] = row | {"confidence": float(probs.amax(1).mean())} | table.get(name, {})
    table["SGLD"] = {"confidence": float(sgld.amax(1).mean())}
    if options.figure and seed == options.seeds[0]:
        draw({"deterministic": found["deterministic"], "SGLD": sgld, "APD": found["APD"]}, (x, y), options.figure)
    return table


def predicted(model: pb.SupervisedModel, guide: pb.guides.Guide, seed: int) -> Tensor:
    """Class probabilities on the grid, of 2000 draws."""
    return pb.predict(model, guide, GRID, 2000, seed=seed).mean


def draw(found: dict[str, Tensor], points: tuple[Tensor, Tensor], path: str) -> None:
    """The probability of the first class of each method."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(found), figsize=(4 * len(found), 3.6), layout="constrained", sharey=True)
    x, y = points
    for ax, (name, probs) in zip(axes, found.items(), strict=True):
        image = ax.imshow(
            probs[:, 0].view(41, 41).T, origin="lower", extent=(-6, 6, -6, 6), vmin=0, vmax=1, cmap="RdBu"
        )
        for label, marker in enumerate("o^"):
            ax.plot(*x[y == label].T, marker, color="black", markersize=4)
        ax.set_title(name)
    figure.colorbar(image, ax=axes, label="p(class 0)")
    figure.savefig(path)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument(
        "--draws", type=int, default=2000, help="draws of SGLD that are distilled (default %(default)s)"
    )
    parser.add_argument("--thinning", type=int, default=5)
    parser.add_argument("--step-size", type=float, default=0.02)
    parser.add_argument("--prior", type=float, default=1.0, help="standard deviation of the weights' prior")
    parser.add_argument("--steps", type=int, default=3000, help="steps of the generator (default %(default)s)")
    parser.add_argument("--lr", type=float, help="of the generator (default: that of pb.distill)")
    parser.add_argument("--components", type=int, default=30, help="of the generator; 0: weights, as in the paper")
    parser.add_argument("--latent", type=int, default=100, help="length of the generator's noise, as in the paper")
    parser.add_argument("--figure", metavar="PATH", help="write the three maps of the first seed there")
    Experiment("Distillation toy: class probabilities against SGLD's on a grid", run).main(parser)


if __name__ == "__main__":
    main()
