"""Draws the README's picture: one network, two clusters of data, two posteriors of the same model."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS
from torch import nn

import pyrobnn as pb


def main() -> None:
    """Writes ``docs/images/regression.png``; takes a few minutes, nearly all of it NUTS."""
    pyro.set_rng_seed(0)
    x = torch.cat([torch.linspace(-1.8, -0.6, 20), torch.linspace(0.7, 1.6, 20)])[:, None]
    y = torch.sin(3 * x) + 0.1 * torch.randn_like(x)
    net = nn.Sequential(nn.Linear(1, 30), nn.Tanh(), nn.Linear(30, 1))
    rules = [("0.*", dist.Normal(0.0, 2.0)), ("*", pb.priors.lecun())]
    model = pb.SupervisedModel(net, pb.likelihoods.Normal(0.1), prior=rules, num_data=len(x))
    grid = torch.linspace(-3, 3, 200)[:, None]

    guide = pb.guides.MeanField(model)
    loader = [(x, y)]
    pb.fit(model, guide, loader, epochs=6000, lr=5e-3, progress=False)
    mcmc = MCMC(NUTS(model, max_tree_depth=7), num_samples=200, warmup_steps=200, disable_progbar=True)
    mcmc.run(x, y)

    figure, axes = plt.subplots(1, 2, figsize=(5.2, 3.3), sharey=True, layout="constrained")
    for axis, name, posterior in ((axes[0], "MeanField", guide), (axes[1], "NUTS", mcmc.get_samples())):
        pred = pb.predict(model, posterior, grid, num_samples=200, seed=0)
        pb.plots.regression_band(grid, pred.mean, pred.aleatoric, pred.epistemic, train=(x, y), ax=axis)
        axis.set_title(name)
        axis.set_ylim(-3.5, 2.5)
    handles, names = axes[0].get_legend_handles_labels()
    for axis in axes:
        axis.get_legend().remove()
    figure.legend(handles, names, loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    axes[1].set_ylabel("")
    figure.savefig(Path(__file__).parents[2] / "docs" / "images" / "regression.png", dpi=200)


if __name__ == "__main__":
    main()
