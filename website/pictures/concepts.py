"""Draws the pictures of the pages in docs/concepts: ``python -m website.pictures.concepts [name ...]``.

Each takes seconds. They are as wide as a phone shows them legibly.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pyrobnn as pb
from pyrobnn.reporting.figures import BLACK, BLUE, GREEN, ORANGE, SKY, VERMILLION

FOLDER = Path(__file__).parents[2] / "docs" / "images" / "concepts"
WIDTH = 5.2  # inches


def curve() -> tuple[Tensor, Tensor]:
    """Forty noisy points of a sine with a gap in the middle."""
    x = torch.cat([torch.linspace(-1.8, -0.6, 20), torch.linspace(0.7, 1.6, 20)])[:, None]
    return x, torch.sin(3 * x) + 0.1 * torch.randn_like(x)


def perceptron(hidden: int = 30, outputs: int = 1, inputs: int = 1) -> nn.Module:
    """One hidden layer."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs))


def panels(rows: int, columns: int, height: float) -> tuple[Figure, np.ndarray]:
    """A figure of the common width."""
    return plt.subplots(
        rows, columns, figsize=(WIDTH, height), sharex=True, sharey=True, layout="constrained", squeeze=False
    )


def functions() -> Figure:
    """Functions of a network under draws from the prior and from the posterior."""
    x, y = curve()
    rules = [("0.*", dist.Normal(0.0, 2.0)), ("*", pb.priors.lecun())]
    model = pb.SupervisedModel(perceptron(), pb.likelihoods.Normal(0.1), prior=rules, num_data=len(x))
    grid = torch.linspace(-3, 3, 200)[:, None]
    kernel = pb.sampling.HMC(num_leapfrog=40, compile=False)
    chains = pb.sample(model, (x, y), kernel=kernel, num_samples=60, warmup_steps=200, init="prior", progress=False)
    prior = pb.Predictive(model, num_samples=12, return_sites=["_RETURN"])(grid)["_RETURN"].squeeze(-1)
    posterior = pb.Predictive(model, guide=chains, num_samples=12, return_sites=["_RETURN"])(grid)["_RETURN"].squeeze(
        -1
    )
    figure, axes = panels(1, 2, 2.5)
    for ax, drawn, title in zip(axes[0], (prior, posterior), ("prior", "posterior"), strict=True):
        ax.plot(grid, drawn.T, color=BLUE, linewidth=1, alpha=0.6)
        ax.set(title=f"12 draws, {title}", xlabel="x", ylim=(-4, 4))
    axes[0][1].plot(x, y, "o", color=BLACK, markersize=3)
    axes[0][0].set_ylabel("f(x)")
    return figure


def priors() -> Figure:
    """Functions under three priors of the weights."""
    grid = torch.linspace(-3, 3, 200)[:, None]
    kinds = {
        "Normal(0, 1)": dist.Normal(0.0, 1.0),
        "He scaling": pb.priors.he(),
        "He, heavy tails": pb.priors.he(family="student_t"),
    }
    figure, axes = plt.subplots(1, 3, figsize=(WIDTH, 2.4), sharex=True, layout="constrained")
    net = nn.Sequential(nn.Linear(1, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 1))
    for ax, (name, prior) in zip(axes, kinds.items(), strict=True):
        model = pb.SupervisedModel(net, pb.likelihoods.Normal(0.1), prior=prior, num_data=10)
        drawn = pb.Predictive(model, num_samples=12, return_sites=["_RETURN"])(grid)["_RETURN"].squeeze(-1)
        ax.plot(grid, drawn.T, color=BLUE, linewidth=1, alpha=0.6)
        ax.set(title=name, xlabel="x")
        ax.tick_params(labelsize=8)
    axes[0].set_ylabel("f(x)")
    return figure


def families() -> Figure:
    """The posterior of a network with two weights, and four families."""
    x = torch.linspace(-1, 1, 12)[:, None]
    y = 1.2 * torch.tanh(1.5 * x) + 0.3 * torch.randn_like(x)
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Tanh(), nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        net[0].weight.fill_(1.0), net[2].weight.fill_(1.0)
    prior = dist.Normal(0.0, 2.0)
    model = pb.SupervisedModel(net, pb.likelihoods.Normal(0.3), prior=prior, num_data=12)
    w = torch.linspace(-5, 5, 241)
    first, last = torch.meshgrid(w, w, indexing="ij")
    mean = last[..., None] * torch.tanh(first[..., None] * x.squeeze())
    density = dist.Normal(mean, 0.3).log_prob(y.squeeze()).sum(-1) + prior.log_prob(first) + prior.log_prob(last)
    density = (density - density.max()).exp()

    loader = [(x, y)]
    point = pb.guides.MAP(model)
    pb.fit(model, point, loader, epochs=400, lr=2e-2, progress=False)
    field = pb.guides.MeanField(model, init=point)
    pb.fit(model, field, loader, epochs=800, lr=1e-2, progress=False)
    laplace = pb.guides.Laplace(model, init=point, structure="full").fit(model, loader)
    members = pb.guides.DeltaMixture(model, num_members=8, init="prior")
    pb.fit(model, members, loader, epochs=3000, lr=2e-2, progress=False)
    kernel = pb.sampling.HMC(num_leapfrog=20, compile=False)
    chains = pb.sample(
        model,
        (x, y),
        kernel=kernel,
        num_samples=75,
        warmup_steps=150,
        num_chains=8,
        init="prior",
        seed=1,
        progress=False,
    )
    figure, axes = panels(2, 2, 5.0)
    shown = {"MeanField": field, "Laplace, full": laplace, "DeltaMixture, 8 members": members, "HMC, 8 chains": chains}
    for ax, (name, guide) in zip(axes.flat, shown.items(), strict=True):
        ax.contourf(w, w, density.T, levels=[0.02, 0.1, 0.3, 0.6, 1.01], cmap="Greys", alpha=0.8)
        drawn = guide.sample(8 if guide is members else 300)
        place = [drawn[f"net.{i}.weight"].flatten() for i in (0, 2)]
        size = 30 if guide is members else 3
        ax.scatter(*place, s=size, color=VERMILLION, alpha=0.9 if guide is members else 0.4)
        ax.set(title=name, xlim=(-5, 5), ylim=(-5, 5))
    for ax in axes[1]:
        ax.set_xlabel("first weight")
    for ax in axes[:, 0]:
        ax.set_ylabel("last weight")
    return figure


def two_uncertainties() -> Figure:
    """Noise that depends on the input, and a gap without data."""
    x = torch.cat([torch.rand(120) * 1.6 - 2.6, torch.rand(120) * 1.8 + 0.6])[:, None]
    y = torch.sin(2 * x) + (0.05 + 0.35 * (x > 0)) * torch.randn_like(x)
    model = pb.SupervisedModel(perceptron(40, 2), pb.likelihoods.HeteroscedasticNormal(), num_data=len(x))
    guide = pb.guides.DeltaMixture(model, num_members=10)
    loader = DataLoader(TensorDataset(x, y), 60, shuffle=True)
    pb.fit(model, guide, loader, epochs=600, lr=1e-2, progress=False, seed=0)
    grid = torch.linspace(-3.6, 3.4, 200)[:, None]
    pred = pb.predict(model, guide, grid, num_samples=10)
    figure, axes = plt.subplots(2, 1, figsize=(WIDTH, 4.4), sharex=True, layout="constrained", height_ratios=(3, 2))
    axes[0].plot(x, y, ".", color=BLACK, markersize=3)
    axes[0].plot(grid, pred.mean, color=BLUE)
    deviation = pred.total.sqrt()
    axes[0].fill_between(
        grid.squeeze(), *((pred.mean + sign * 2 * deviation).squeeze() for sign in (-1, 1)), color=SKY, alpha=0.4
    )
    axes[0].set(ylabel="y", ylim=(-4, 4), title="mean and ± 2 standard deviations")
    axes[1].plot(grid, pred.aleatoric.sqrt(), color=ORANGE, linestyle="--", label="aleatoric: noise")
    axes[1].plot(grid, pred.epistemic.sqrt(), color=GREEN, label="epistemic: ignorance")
    axes[1].set(xlabel="x", ylabel="std. deviation")
    axes[1].legend(frameon=False)
    return figure


def elbo() -> Figure:
    """The ELBO and its parts while a mean field trains."""
    x, y = curve()
    model = pb.SupervisedModel(perceptron(), pb.likelihoods.Normal(0.1), prior=dist.Normal(0.0, 1.0), num_data=len(x))
    guide = pb.guides.MeanField(model)
    history = pb.fit(model, guide, [(x, y)], epochs=3000, lr=5e-3, progress=False, seed=0)
    figure, ax = plt.subplots(figsize=(WIDTH, 3.0), layout="constrained")
    kl = [-value for value in history.kl]
    ax.plot(_smooth(history.log_likelihood), color=GREEN, linestyle="--", label="E[log p(y | w)]")
    ax.plot(_smooth(kl), color=ORANGE, linestyle="-.", label="- KL(q || prior)")
    ax.plot(_smooth(history.elbo), color=BLUE, label="ELBO = their sum")
    ax.set(xlabel="epoch", ylabel="nats per datum", ylim=(-16, 4))
    ax.legend(frameon=False, loc="upper center", ncols=3, fontsize=8.5)
    return figure


def _smooth(values: list[float]) -> np.ndarray:
    """Means over fifty epochs, each of which has one draw."""
    return np.convolve(values, np.full(50, 1 / 50), mode="valid")


def tempering() -> Figure:
    """A wide network and few data: the KL counted whole and counted N / D times."""
    x, y = curve()
    x, y = x[::4], y[::4]
    grid = torch.linspace(-3, 3, 200)[:, None]
    figure, axes = panels(1, 2, 2.6)
    kinds = {"KL counted once": pb.objectives.ELBO(temperature=1.0), "default: N / D times": None}
    for ax, (name, objective) in zip(axes[0], kinds.items(), strict=True):
        pyro.set_rng_seed(1)
        net = nn.Sequential(nn.Linear(1, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 1))
        model = pb.SupervisedModel(net, pb.likelihoods.Normal(0.1), num_data=len(x))
        guide = pb.guides.MeanField(model, init="he")
        pb.fit(model, guide, [(x, y)], epochs=2000, lr=5e-3, elbo=objective, progress=False)
        pred = pb.predict(model, guide, grid, num_samples=100)
        pb.plots.regression_band(grid, pred.mean, pred.aleatoric, pred.epistemic, train=(x, y), ax=ax)
        ax.get_legend().remove()
        ax.set(title=name, xlabel="x", ylim=(-3.5, 3.5))
    axes[0][1].set_ylabel("")
    return figure


def spirals(count: int) -> tuple[Tensor, Tensor]:
    """Two classes that overlap."""
    x = 1.2 * torch.randn(count, 2)
    return x, (x[:, 0] * x[:, 1] + 0.5 * torch.randn(count) > 0).long()


def calibration() -> Figure:
    """A reliability diagram before and after temperature scaling."""
    (x, y), (held, labels), (test, truth) = spirals(150), spirals(1000), spirals(4000)
    net = nn.Sequential(nn.Linear(2, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 2))
    prior = dist.Normal(0.0, 10.0)  # so wide that the network overfits
    model = pb.SupervisedModel(net, pb.likelihoods.Categorical(), prior=prior, num_data=len(x))
    guide = pb.guides.MAP(model)
    pb.fit(model, guide, [(x, y)], epochs=400, lr=1e-2, progress=False)
    scaling = pb.calibration.TemperatureScaling().fit(pb.predict(model, guide, held, 1), labels)
    before = pb.predict(model, guide, test, 1)
    figure, axes = panels(1, 2, 3.0)
    for ax, pred, name in zip(axes[0], (before, scaling(before)), ("before", "after"), strict=True):
        pb.plots.reliability(pred.mean, truth, num_bins=10, ax=ax)
        ax.get_legend().remove()
        ax.set(title=f"{name}: {ax.get_title()}", xlabel="confidence", xlim=(0.5, 1), ylim=(0.3, 1), aspect="auto")
    axes[0][1].set_ylabel("")
    return figure


def conformal() -> Figure:
    """Coverage of intervals of an overfitted network, and of conformal ones."""

    def data(count: int) -> tuple[Tensor, Tensor]:
        x = 4 * torch.rand(count, 1) - 2
        return x, torch.sin(2 * x) + 0.3 * torch.randn_like(x)

    (x, y), (held, targets), (test, truth) = data(60), data(300), data(3000)
    model = pb.SupervisedModel(perceptron(60), pb.likelihoods.Normal(0.15), num_data=len(x))
    guide = pb.guides.MAP(model)
    pb.fit(model, guide, [(x, y)], epochs=3000, lr=1e-2, progress=False)
    held_out, pred = pb.predict(model, guide, held, 1), pb.predict(model, guide, test, 1)
    levels = torch.linspace(0.5, 0.95, 10)
    plain, mended = [], []
    for level in levels.tolist():
        plain.append(float(pb.metrics.interval_coverage(*pred.interval(level), truth)))
        rule = pb.conformal.ConformalRegressor(confidence_level=level).conformalize(held_out, targets)
        mended.append(float(pb.metrics.interval_coverage(*rule.predict_interval(pred), truth)))
    figure, ax = plt.subplots(figsize=(WIDTH, 3.2), layout="constrained")
    ax.plot([0.5, 0.95], [0.5, 0.95], color=BLACK, linestyle="--", linewidth=1, label="as promised")
    ax.plot(levels, plain, "s-.", color=VERMILLION, label="the model's own intervals")
    ax.plot(levels, mended, "o-", color=BLUE, label="conformal intervals")
    ax.set(xlabel="level that was asked for", ylabel="share of targets inside", ylim=(0, 1))
    ax.legend(frameon=False, loc="lower right")
    return figure


def linearized() -> Figure:
    """Laplace over all layers, by draws of the weights and linearized."""
    x, y = curve()
    model = pb.SupervisedModel(perceptron(), pb.likelihoods.Normal(0.1), num_data=len(x))
    point = pb.guides.MAP(model)
    pb.fit(model, point, [(x, y)], epochs=2000, lr=1e-2, progress=False)
    guide = pb.guides.Laplace(model, init=point, structure="full").fit(model, [(x, y)])
    grid = torch.linspace(-2.4, 2.4, 200)[:, None]
    figure, axes = panels(1, 2, 2.6)
    for ax, (how, name) in zip(axes[0], (("weights", "draws of weights"), ("linearized", "linearized")), strict=True):
        pred = pb.predict(model, guide, grid, num_samples=200, predictor=how, seed=0)
        pb.plots.regression_band(grid, pred.mean, pred.aleatoric, pred.epistemic, train=(x, y), ax=ax)
        ax.get_legend().remove()
        ax.set(title=name, xlabel="x", ylim=(-5, 5))
    axes[0][1].set_ylabel("")
    return figure


def chains() -> Figure:
    """Chains that agree in a prediction, and chains that have not arrived."""
    x, y = curve()
    rules = [("0.*", dist.Normal(0.0, 2.0)), ("*", pb.priors.lecun())]
    model = pb.SupervisedModel(perceptron(), pb.likelihoods.Normal(0.1), prior=rules, num_data=len(x))
    place = torch.tensor([[-0.3]])
    figure, axes = panels(2, 1, 4.2)
    for ax, leapfrogs, warmup in zip(axes[:, 0], (80, 2), (300, 5), strict=True):
        kernel = pb.sampling.HMC(num_leapfrog=leapfrogs, compile=False)
        found = pb.sample(
            model, (x, y), kernel=kernel, num_samples=150, warmup_steps=warmup, num_chains=3, init="prior", seed=0,
            progress=False,
        )  # fmt: skip
        draws = {name: values.flatten(0, 1) for name, values in found.by_chain().items()}
        value = pb.Predictive(model, posterior_samples=draws, return_sites=["_RETURN"])(place)["_RETURN"].reshape(3, -1)
        rhat = pb.diagnostics.function_space_diagnostics(model, found, place).rhat
        assert rhat is not None
        for chain, color, line in zip(value, (BLUE, VERMILLION, GREEN), ("-", "--", "-."), strict=True):
            ax.plot(chain, color=color, linestyle=line, linewidth=1)
        ax.set(ylabel="f(-0.3)", title=f"{leapfrogs} leapfrogs, {warmup} warmup steps: R-hat {float(rhat.max()):.2f}")
    axes[1][0].set_xlabel("draw")
    return figure


def out_of_distribution() -> Figure:
    """Entropy of a point, and disagreement of an ensemble, in the plane."""
    x = torch.cat([0.35 * torch.randn(60, 2) + torch.tensor(center) for center in ([-1.0, 0.0], [1.0, 0.0])])
    y = torch.arange(2).repeat_interleave(60)
    side = torch.linspace(-5, 5, 120)
    grid = torch.cartesian_prod(side, side)
    net = nn.Sequential(nn.Linear(2, 50), nn.ReLU(), nn.Linear(50, 50), nn.ReLU(), nn.Linear(50, 2))
    model = pb.SupervisedModel(net, pb.likelihoods.Categorical(), num_data=len(x))
    point = pb.guides.MAP(model)
    pb.fit(model, point, [(x, y)], epochs=300, lr=1e-2, progress=False)
    members = pb.guides.DeltaMixture(model, num_members=10, init="prior", strategy="anchored")
    pb.fit(model, members, [(x, y)], epochs=300, lr=1e-2, progress=False)
    figure, axes = panels(1, 2, 2.9)
    shown = {"one network: entropy": (point, 1, "total"), "ensemble: disagreement": (members, 10, "epistemic")}
    for ax, (name, (guide, count, part)) in zip(axes[0], shown.items(), strict=True):
        value = getattr(pb.predict(model, guide, grid, count), part).reshape(120, 120)
        ax.contourf(side, side, value.T, levels=12, cmap="Blues")
        for label, color, marker in ((0, VERMILLION, "o"), (1, BLACK, "^")):
            ax.scatter(*x[y == label].T, s=6, color=color, marker=marker)
        ax.set(title=name, aspect="equal", xticks=[-4, 0, 4], yticks=[-4, 0, 4])
    return figure


PICTURES: dict[str, Callable[[], Figure]] = {
    draw.__name__: draw
    for draw in (
        functions, priors, families, two_uncertainties, elbo, tempering, calibration, conformal, linearized, chains,
        out_of_distribution,
    )
}  # fmt: skip


def main(names: list[str]) -> None:
    """Draws the pictures of these names, or all."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in names or PICTURES:
        pyro.set_rng_seed(0)
        figure = PICTURES[name]()
        figure.savefig(FOLDER / f"{name}.png", dpi=150)
        plt.close(figure)
        print(name)


if __name__ == "__main__":
    main(sys.argv[1:])
