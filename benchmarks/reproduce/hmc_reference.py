"""Every posterior of this library against Hamiltonian Monte Carlo, on networks small enough for it.

Digits (scikit-learn's, a subset) with 64-20-10 units, and a UCI regression set with 50 hidden units and a known noise
level: four long HMC chains on all data are the reference, their R-hat and effective sample size are of predictions at
test inputs. All methods have the same model and data. Classes: share of test inputs with the reference's class
(agreement) and total variation of the predictive distribution. Regression: difference of predictive means in standard
deviations of the noise; predictive standard deviation over the reference's, with the noise and without (the epistemic
part). The rows "HMC, halves" compare two chains with the other two: no method can be asked for less.

    python -m benchmarks.reproduce.hmc_reference --seeds 0 1 2 --json hmc_reference.json
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

import pyrobnn as pb
from benchmarks.reproduce import datasets
from benchmarks.reproduce.experiment import Batches, Experiment, Row, arguments
from benchmarks.reproduce.uci import Standardizer
from pyrobnn import guides, priors
from pyrobnn.diagnostics import function_space_diagnostics
from pyrobnn.prediction import ClassPrediction
from pyrobnn.sampling import HMC, SGHMC, SGLD, Cyclical, StochasticGradientKernel

NOISE = 0.3
"""Standard deviation of the targets about the network's output, in the targets' standard deviations."""
DRAWS = 400
ADAM = 1e-2
"""Learning rate of what is trained by Adam."""


class Problem(NamedTuple):
    """Data, a network, a likelihood."""

    name: str
    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    net: nn.Module
    likelihood: Callable[[], pb.likelihoods.Likelihood]
    lr: float  # of SGD on the mean loss, which SWAG and SG-MCMC take as theirs

    def model(self) -> pb.SupervisedModel:
        """The Bayesian network, the same for all methods."""
        return pb.SupervisedModel(self.net, self.likelihood(), priors.he(), num_data=len(self.x))

    @property
    def batches(self) -> Batches:
        """Minibatches of a hundred."""
        return Batches(self.x, self.y, batch_size=min(100, len(self.x)))


def digits(seed: int, images: int) -> Problem:
    """Digits of 8 × 8 pixels."""
    from sklearn.datasets import load_digits

    content = load_digits()
    x, y = torch.tensor(content.data, dtype=torch.float32) / 16, torch.tensor(content.target)
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    train, test = rows[:images], rows[-500:]
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(64, 20), nn.Tanh(), nn.Linear(20, 10))
    return Problem("digits", x[train], y[train], x[test], y[test], net, pb.likelihoods.Categorical, 5e-2)


def regression(name: str, split: int) -> Problem:
    """A UCI set, standardized."""
    train, test = datasets.uci(name, split)
    inputs, targets = Standardizer(train[0]), Standardizer(train[1])
    torch.manual_seed(split)
    net = nn.Sequential(nn.Linear(train[0].shape[1], 50), nn.Tanh(), nn.Linear(50, 1))
    noise = functools.partial(pb.likelihoods.Normal, NOISE)
    values = inputs(train[0]), targets(train[1]), inputs(test[0]), targets(test[1])
    return Problem(name, *values, net, noise, 2e-3)


def run(seed: int, options: argparse.Namespace) -> dict[str, Row]:
    """All sets and methods with one seed, which for a UCI set is its split."""
    rows: dict[str, Row] = {}
    for name in options.sets:
        problem = digits(seed, options.images) if name == "digits" else regression(name, seed)
        rows |= {f"{name}: {method}": row for method, row in compare(problem, seed, options).items()}
    return rows


class Case(NamedTuple):
    """What a method is given."""

    problem: Problem
    model: pb.SupervisedModel
    seed: int
    options: argparse.Namespace
    chains: guides.Guide | None = None  # those of SGLD, once they are run


def compare(problem: Problem, seed: int, options: argparse.Namespace) -> dict[str, Row]:
    """All methods on one problem."""
    rows: dict[str, Row] = {}
    model = problem.model()
    started = time.process_time()
    reference = hmc(Case(problem, model, seed, options))
    seconds = time.process_time() - started
    diagnostics = function_space_diagnostics(model, reference, problem.test_x[:50])
    values = reference.sample(reference.num_members)
    every = predict(problem, model, values)
    half = reference.num_members // 2  # members go chain by chain
    parts = [{name: value[rows] for name, value in values.items()} for rows in (slice(half), slice(half, None))]
    halves = [predict(problem, model, part) for part in parts]
    rows["HMC"] = scores(problem, every)
    rows["HMC"] |= {"R-hat": diagnostics.max_rhat or float("nan"), "ESS": diagnostics.min_ess, "seconds": seconds}
    rows["HMC, halves"] = distance(problem, halves[0], halves[1])
    chains: guides.Guide | None = None
    for method, fit in METHODS.items():
        target = problem.model()
        started = time.process_time()
        guide = fit(Case(problem, target, seed, options, chains))
        seconds = time.process_time() - started
        chains = guide if method == "SGLD" else chains
        found = predict(problem, target, guide)
        rows[method] = distance(problem, found, every) | scores(problem, found) | {"seconds": seconds}
    return rows


def predict(problem: Problem, model: pb.SupervisedModel, posterior: object) -> pb.Prediction:
    """At the test inputs: of all members of an ensemble, of 400 draws of anything else."""
    draws = DRAWS
    if isinstance(posterior, dict):
        draws = len(next(iter(posterior.values())))
    elif isinstance(posterior, guides.DeltaMixture | guides.Chains):
        draws = posterior.num_members
    keep = not isinstance(posterior, guides.Laplace)  # whose predictive has a closed form, if draws are not asked for
    return pb.predict(model, posterior, problem.test_x, num_samples=draws, return_draws=keep, seed=0)


def distance(problem: Problem, found: pb.Prediction, reference: pb.Prediction) -> Row:
    """How far two predictives are apart."""
    if isinstance(found, ClassPrediction):
        agree = (found.mean.argmax(-1) == reference.mean.argmax(-1)).float().mean()
        return {"agreement": float(agree * 100), "TV": float((found.mean - reference.mean).abs().sum(-1).mean() / 2)}
    return {
        "mean difference": float((found.mean - reference.mean).abs().mean() / NOISE),
        "sd ratio": float((found.total / reference.total).sqrt().mean()),
        "epistemic sd ratio": float(found.epistemic.sqrt().mean() / reference.epistemic.sqrt().mean()),
    }


def scores(problem: Problem, found: pb.Prediction) -> Row:
    """Against the test targets, standardized ones for a regression."""
    row = {"NLL": float(-found.log_prob(problem.test_y).mean())}
    if isinstance(found, ClassPrediction):
        return row | {"accuracy": float((found.mean.argmax(-1) == problem.test_y).float().mean() * 100)}
    return row | {"RMSE": float((found.mean - problem.test_y).square().mean().sqrt())}


# -------------------------------------------------------------------------------------------------------- posteriors


def hmc(case: Case) -> guides.Chains:
    """The reference."""
    options, data = case.options, (case.problem.x, case.problem.y)
    warmup_steps, draws, leapfrogs = (
        (60, 20, 8) if options.quick else (options.warmup_steps, options.hmc_draws, options.leapfrogs)
    )
    kernel = HMC(num_leapfrog=leapfrogs, compile=False if options.quick else "auto")
    settings = {
        "num_samples": draws,
        "warmup_steps": warmup_steps,
        "num_chains": 4,
        "seed": case.seed,
        "progress": False,
    }
    return pb.sample(case.model, data, kernel=kernel, **settings)


def train(make: Callable[[pb.SupervisedModel], guides.Guide], case: Case, speed: float = 1.0) -> guides.Guide:
    """Steps of Adam, the learning rate falling to zero by a cosine."""
    guide, batches = make(case.model), case.problem.batches
    epochs = 2 if case.options.quick else max(1, case.options.steps // len(batches))
    cosine = functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs)
    settings = {"epochs": epochs, "lr": speed * ADAM, "scheduler": cosine, "seed": case.seed, "progress": False}
    pb.fit(case.model, guide, batches, **settings)
    return guide


def laplace(case: Case) -> guides.Guide:
    """A full Gauss–Newton matrix at the mode; it predicts by linearization."""
    point = train(guides.MAP, case)
    every_row = [(case.problem.x, case.problem.y)]
    return guides.Laplace(case.model, init=point, structure="full").fit(case.model, every_row)


def swag(case: Case) -> guides.Guide:
    """Adam to the mode, then iterates of SGD at a constant step, one for each epoch."""
    point = {name: value[0] for name, value in train(guides.MAP, case).sample(1).items()}
    guide = guides.SWAG(case.model, init=point)
    epochs = 4 if case.options.quick else 100
    sgd = functools.partial(torch.optim.SGD, momentum=0.9)
    settings = {"epochs": epochs, "lr": case.problem.lr, "optimizer": sgd, "seed": case.seed, "progress": False}
    pb.fit(case.model, guide, case.problem.batches, callbacks=[guide.collector(start=epochs // 2)], **settings)
    return guide


def sgld(case: Case) -> guides.Guide:
    """SGLD at a constant step."""
    return sgmcmc(SGLD(2 * case.problem.lr / len(case.problem.x)), case)


def cyclical(case: Case) -> guides.Guide:
    """SGHMC in cycles, half of each without noise; ten draws come from the rest."""
    step_size = case.problem.lr / len(case.problem.x)
    return sgmcmc(Cyclical(SGHMC(step_size), cycle_length=20 if case.options.quick else case.options.cycle), case)


def sgmcmc(kernel: StochasticGradientKernel, case: Case) -> guides.Guide:
    """Four chains, a hundred draws of each."""
    options = case.options
    cycle, draws = (20, 5) if options.quick else (options.cycle, 100)
    settings = {"num_samples": draws, "warmup_steps": 2 * cycle, "thinning": max(1, cycle // 20), "num_chains": 4}
    return pb.sample(case.model, case.problem.batches, kernel=kernel, seed=case.seed, progress=False, **settings)


def distilled(case: Case) -> guides.Guide:
    """A generator of SGLD's draws, of all chains together: hidden units in four orders, so many axes."""
    assert isinstance(case.chains, guides.Chains)
    steps = 3 if case.options.quick else case.options.distillation_steps
    settings = {"batch_size": min(100, case.chains.num_members), "steps": steps, "components": 100}
    return pb.distill(case.chains, seed=case.seed, progress=False, **settings)


MEAN_FIELD = functools.partial(guides.MeanField, init_scale=0.02)
LOW_RANK = functools.partial(guides.LowRankNormal, rank=10, init_scale=0.02)

METHODS: dict[str, Callable[[Case], guides.Guide]] = {
    "MAP": functools.partial(train, guides.MAP),
    "mean field": functools.partial(train, MEAN_FIELD),
    "low rank, r = 10": functools.partial(train, LOW_RANK, speed=0.3),
    "ensemble of 5": functools.partial(train, functools.partial(guides.DeltaMixture, num_members=5)),
    "MC dropout, p = 0.1": functools.partial(train, functools.partial(guides.MCDropout, p=0.1)),
    "Laplace, linearized": laplace,
    "SWAG": swag,
    "SGLD": sgld,
    "cSGHMC": cyclical,
    "APD of SGLD": distilled,
}
"""How each posterior is fitted, in this order."""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--sets", nargs="+", default=["digits", "bostonHousing"], help="digits, or names of UCI sets")
    parser.add_argument("--images", type=int, default=400, help="training digits (default %(default)s)")
    parser.add_argument("--steps", type=int, default=3000, help="of Adam (default %(default)s)")
    parser.add_argument("--warmup-steps", type=int, default=200, help="transitions of HMC (default %(default)s)")
    parser.add_argument("--hmc-draws", type=int, default=250, help="of each of four chains (default %(default)s)")
    parser.add_argument("--leapfrogs", type=int, default=64, help="in a transition (default %(default)s)")
    parser.add_argument("--cycle", type=int, default=2000, help="steps of a cycle; SGLD's warmup lasts two")
    parser.add_argument("--distillation-steps", type=int, default=3000, help="of the generator (default %(default)s)")
    Experiment("Posteriors against HMC", run, lambda method: method.partition(":")[0]).main(parser)


if __name__ == "__main__":
    main()
