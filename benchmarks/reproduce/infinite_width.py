"""Gaussian processes of infinitely wide networks: UCI regression beside GPyTorch's exact process, and digits.

* UCI: splits, standardization and network (one hidden layer, ReLU, He's prior) of
  :mod:`benchmarks.reproduce.functional`, whose table has mean field, ensemble and DE-GP. The limit of that network with
  the noise of the largest evidence; the same with the prior's scales of the largest evidence, too; and an exact process
  of GPyTorch (extra ``gp``) with a squared-exponential kernel of one length for each input, constant mean, 100 steps of
  Adam at 0.1 on its marginal likelihood. All read the training rows alone.
* Digits (8×8, scikit-learn): 1,000 rows to train, 797 to test, drawn by the seed. Networks of the same architecture,
  dense and convolutional, trained as a point (MAP) and as an ensemble of 5, and their limit, which is a regression on
  one-hot vectors. 300 steps of Adam at 3e-3 in batches of 128; no number was tuned.

    python -m benchmarks.reproduce.infinite_width
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

import pyrobnn as pb
from benchmarks.reproduce import datasets
from benchmarks.reproduce.experiment import Batches, Experiment, Pair, Row, arguments
from benchmarks.reproduce.uci import Standardizer
from pyrobnn import guides, priors
from pyrobnn.function_space import infinite_width

SETS = ("yacht", "energy", "bostonHousing", "concrete")


def limits(train: Pair, test: Pair, scale: float) -> dict[str, Row]:
    """The infinitely wide network, with its prior as it is and with the prior of the largest evidence."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(train[0].shape[1], 50), nn.ReLU(), nn.Linear(50, 1))
    model = pb.SupervisedModel(net, pb.likelihoods.Normal(), priors.he(), num_data=len(train[0])).double()
    tuned = pb.tune_prior(model, [train], evidence="infinite_width").model
    rows = {}
    for name, chosen in (("NNGP", model), ("NNGP, tuned prior", tuned)):
        gp = infinite_width(chosen, *train)
        found = gp.predict(test[0])
        rows[name] = _scores(found.mean, found.log_prob(test[1]), test[1], scale)
    return rows


def squared_exponential(train: Pair, test: Pair, scale: float, steps: int) -> Row:
    """GPyTorch's exact Gaussian process."""
    import gpytorch

    class Process(gpytorch.models.ExactGP):
        def __init__(self) -> None:
            super().__init__(train[0], train[1][:, 0], gpytorch.likelihoods.GaussianLikelihood())
            self.mean = gpytorch.means.ConstantMean()
            own = gpytorch.kernels.RBFKernel(ard_num_dims=train[0].shape[1])
            self.kernel = gpytorch.kernels.ScaleKernel(own)

        def forward(self, x: Tensor) -> gpytorch.distributions.MultivariateNormal:
            return gpytorch.distributions.MultivariateNormal(self.mean(x), self.kernel(x))

    gp = Process().double()
    objective = gpytorch.mlls.ExactMarginalLogLikelihood(gp.likelihood, gp)
    optimizer = torch.optim.Adam(gp.parameters(), lr=0.1)
    with gpytorch.settings.max_cholesky_size(10_000):
        for _ in range(steps):
            optimizer.zero_grad()
            loss = -objective(gp(train[0]), train[1][:, 0])
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            found = gp.likelihood(gp.eval()(test[0]))
    density = torch.distributions.Normal(found.mean, found.variance.sqrt()).log_prob(test[1][:, 0])
    return _scores(found.mean.unsqueeze(1), density, test[1], scale)


def _scores(mean: Tensor, log_density: Tensor, y: Tensor, scale: float) -> Row:
    return {
        "RMSE": float((mean - y).square().mean().sqrt()) * scale,
        "log likelihood": float(log_density.mean()) - math.log(scale),
    }


def uci(name: str, split: int, options: argparse.Namespace) -> dict[str, Row]:
    """One set and split."""
    train, test = datasets.uci(name, split)
    inputs, targets = Standardizer(train[0]), Standardizer(train[1])
    fitted = inputs(train[0]).double(), targets(train[1]).double()
    known = inputs(test[0]).double(), targets(test[1]).double()
    scale = float(targets.scale)
    rows = limits(fitted, known, scale)
    rows["GPyTorch, squared exponential"] = squared_exponential(fitted, known, scale, 2 if options.quick else 100)
    return {f"{name}: {method}": row for method, row in rows.items()}


def dense() -> nn.Module:
    """Two layers of 200 units."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10)
    )


def convolutional() -> nn.Module:
    """Two convolutions of 16 channels without pooling, whose limit needs pairs of equal positions alone."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(16 * 64, 10),
    )  # fmt: skip


GUIDES: dict[str, tuple[Callable[[pb.SupervisedModel], guides.Guide], int]] = {
    "MAP": (guides.MAP, 1),
    "ensemble of 5": (lambda model: guides.DeltaMixture(model, num_members=5), 5),
}


def digits(seed: int, options: argparse.Namespace) -> dict[str, Row]:
    """Both architectures, finite and infinitely wide."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    x = (torch.tensor(images, dtype=torch.float32) / 8 - 1).reshape(-1, 1, 8, 8)[order]
    y = torch.tensor(labels)[order]
    rows = {}
    for name, make in (("dense", dense), ("convolutional", convolutional)):
        for label, (guide_of, draws) in GUIDES.items():
            torch.manual_seed(seed)
            model = pb.SupervisedModel(make(), pb.likelihoods.Categorical(), priors.he(), num_data=1000)
            guide = guide_of(model)
            batches = Batches(x[:1000], y[:1000], batch_size=128)
            epochs = 1 if options.quick else round(options.steps / len(batches))
            cosine = functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs)
            pb.fit(model, guide, batches, epochs=epochs, lr=3e-3, scheduler=cosine, seed=seed, progress=False)
            found = pb.predict(model, guide, x[1000:], draws, seed=0)
            rows[f"digits, {name}: {label}"] = _classes(found.mean, y[1000:])
        model = pb.SupervisedModel(make(), pb.likelihoods.Categorical(), priors.he(), num_data=1000)
        found = infinite_width(model, x[:1000], y[:1000]).predict(x[1000:], 100, seed=0)
        rows[f"digits, {name}: infinitely wide"] = _classes(found.mean, y[1000:])
    return rows


def _classes(probabilities: Tensor, labels: Tensor) -> Row:
    chosen = probabilities.double().clamp_min(1e-12)[torch.arange(len(labels)), labels]
    return {
        "accuracy": float((probabilities.argmax(1) == labels).double().mean()),
        "log likelihood": float(chosen.log().mean()),
        "ECE": float(pb.metrics.expected_calibration_error(probabilities, labels)),
    }


def run(seed: int, options: argparse.Namespace) -> dict[str, Row]:
    """All sets for one seed, which is a split of UCI."""
    rows: dict[str, Row] = {}
    for name in options.sets:
        rows |= digits(seed, options) if name == "digits" else uci(name, seed, options)
    return rows


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--sets", nargs="+", choices=(*SETS, "digits"), default=[*SETS, "digits"], help="default: all")
    parser.add_argument("--steps", type=int, default=300, help="training steps on digits (default %(default)s)")
    Experiment("Infinitely wide networks", run, lambda name: name.partition(":")[0]).main(parser)


if __name__ == "__main__":
    main()
