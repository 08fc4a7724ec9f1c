"""Unknown and adversarial images against MNIST by a point, MC dropout, SGLD and a generator distilled from its draws.

The tables of *Adversarial Distillation of Bayesian Neural Network Posteriors* (Wang et al. 2018). Test digits against
as many images of each unknown set, in per cent: area under the ROC curve, area under precision and recall with the
unknown (PR+) or the known images (PR-) as the positive class. The score is the variation ratio, in both meanings that
the paper allows: the share of draws against the winning class ("votes"; a point has none) and one minus the largest
mean probability ("1 - max p"). Unknown images are taken as they are, and times five as in the published code.

``--attacks`` adds a second table: FGSM and PGD against one posterior, found by the model variance of another, of the
attacks that succeed. One attacked draw and successes only: as published. ``--attack-draws 10`` attacks a mean. Rows
named adaptive are of attacks that know the detector: they lower the variance of the posterior that they are found by.

``--tune`` chooses one setting for each method (:data:`SETTINGS`) by its NLL on 2,000 validation digits, taken from the
training set. Unknown and adversarial images are not used.

    python -m benchmarks.reproduce.detection --tune --attacks --seeds 3 4 5 --json detection.json
    python -m benchmarks.reproduce.detection --hidden 400 400 --images 50000 --epochs 60 --steps 50500 --thinning 50 \
        --attacks
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable
from typing import NamedTuple

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pyrobnn as pb
from benchmarks.reproduce import datasets
from benchmarks.reproduce.experiment import Batches, Experiment, Row, arguments, subset, validation_subset
from benchmarks.reproduce.tuning import Scores, Setting, choose
from pyrobnn import guides
from pyrobnn.metrics import accuracy, aupr, auroc, probability_variance
from pyrobnn.robustness import FGSM, PGD, Evasion
from pyrobnn.sampling import SGLD

LEARNING_RATE = 0.05
"""Of SGD on the mean loss, and of SGLD: its step size is twice that over the number of data."""
PRIOR_VARIANCE = 0.02
"""Weight decay 1e-3 on the mean loss of 50,000 images."""
BATCH = 100
VALIDATION = 2000
"""Digits that a tuning seed validates on."""

_RATE = Setting("learning rate", LEARNING_RATE, (0.015, LEARNING_RATE, 0.15))

SETTINGS = {
    "SGD": _RATE,
    "MC dropout": Setting("p", 0.5, (0.1, 0.25, 0.5)),
    "SGLD": _RATE,
    "APD": Setting("principal axes", 30.0, (10.0, 30.0, 100.0)),
}
"""What is chosen for each method, three candidates each. Without it ``--dropout`` and ``--components`` count."""


class Posterior(NamedTuple):
    """A model, its posterior, and the draws that predict."""

    model: pb.SupervisedModel
    guide: guides.Guide
    draws: int


class Trainer:
    """One seed's digits, and the ways to fit a posterior to them."""

    def __init__(self, options: argparse.Namespace, seed: int) -> None:
        self.options, self.seed = options, seed
        count, held = (300, 100) if options.quick else (options.images, VALIDATION)
        (x, y), self.held = validation_subset(datasets.mnist(), count, held, seed)
        self.data = Batches(x.to(options.device), y.to(options.device), batch_size=BATCH)
        torch.manual_seed(seed)
        widths = [784, *options.hidden, 10]
        layers: list[nn.Module] = [nn.Flatten()]
        for fan_in, fan_out in itertools.pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        self.net = nn.Sequential(*layers[:-1])
        self.after_hidden = [f"{2 * layer + 1}.weight" for layer in range(1, len(widths) - 1)]

    def model(self) -> pb.SupervisedModel:
        """The Bayesian network, from the initial weights."""
        prior = dist.Normal(0.0, PRIOR_VARIANCE**0.5)
        fresh = pb.SupervisedModel(self.net, pb.likelihoods.Categorical(), prior, num_data=len(self.data.x))
        return fresh.to(self.options.device)

    def fit(self, draws: int, lr: float, guide_of: type[guides.Guide], **settings: object) -> Posterior:
        """Trained by plain SGD."""
        model, options = self.model(), self.options
        guide = guide_of(model, **settings)
        pb.fit(
            model,
            guide,
            self.data,
            epochs=1 if options.quick else options.epochs,
            lr=lr,
            optimizer=torch.optim.SGD,
            device=options.device,
            seed=self.seed,
            progress=False,
        )
        return Posterior(model, guide, draws)

    def sgd(self, lr: float) -> Posterior:
        """A point."""
        return self.fit(1, lr, guides.MAP)

    def dropout(self, p: float) -> Posterior:
        """Dropout after each hidden layer."""
        where = self.after_hidden
        return self.fit(self.options.draws, LEARNING_RATE, guides.MCDropout, p=p, where=where, per_example=True)

    def sgld(self, lr: float) -> Posterior:
        """A chain at the step size that SGD with this learning rate has."""
        model, options = self.model(), self.options
        warmup_steps, thinning, steps = (
            (10, 1, 30) if options.quick else (options.warmup_steps, options.thinning, options.steps)
        )
        chain = pb.sample(
            model,
            self.data,
            kernel=SGLD(2.0 * lr / len(self.data.x)),
            num_samples=(steps - warmup_steps) // thinning,
            warmup_steps=warmup_steps,
            thinning=thinning,
            device=options.device,
            max_bytes=2**35,
            seed=self.seed,
            progress=False,
        )
        return Posterior(model, chain, options.draws)

    def apd(self, chain: Posterior, components: float) -> Posterior:
        """A generator of the chain's draws."""
        options = self.options
        generator = pb.distill(
            chain.guide,
            components=int(components) or None,
            steps=2 if options.quick else options.distillation_steps,
            batch_size=min(options.distillation_batch, chain.guide.num_members),
            lr=options.distillation_lr,
            device=options.device,
            max_bytes=2**35,
            seed=self.seed,
            progress=False,
        )
        return Posterior(chain.model, generator, options.draws)


def posteriors(seed: int, options: argparse.Namespace) -> dict[str, Posterior]:
    """All four, fitted to the same images at the settings chosen."""
    trainer, values = Trainer(options, seed), dict(options.settings)
    if not options.tune:
        values |= {"MC dropout": options.dropout, "APD": options.components}
    chain = trainer.sgld(values["SGLD"])
    return {
        "SGD": trainer.sgd(values["SGD"]),
        "MC dropout": trainer.dropout(values["MC dropout"]),
        "SGLD": chain,
        "APD": trainer.apd(chain, values["APD"]),
    }


def tune(seed: int, options: argparse.Namespace) -> Scores:
    """NLL of all candidates on validation digits; generators learn from the best chain."""
    trainer = Trainer(options, seed)
    x, y = trainer.held
    scores: dict[str, dict[float, float]] = {}

    def attempt(name: str, fit: Callable[[float], Posterior]) -> dict[float, Posterior]:
        fitted = {value: fit(value) for value in SETTINGS[name].candidates}
        found = {value: predict(posterior, x, options) for value, posterior in fitted.items()}
        scores[name] = {value: float(-each.log_prob(y.to(each.mean.device)).mean()) for value, each in found.items()}
        print(f"tuning seed {seed}  {name}: {scores[name]}", file=sys.stderr, flush=True)
        return fitted

    attempt("SGD", trainer.sgd)
    attempt("MC dropout", trainer.dropout)
    chains = attempt("SGLD", trainer.sgld)
    best = chains[choose([scores])["SGLD"]]
    attempt("APD", lambda components: trainer.apd(best, components))
    return scores


def unknown(count: int, seed: int) -> dict[str, Tensor]:
    """Unknown images ``[count, 1, 28, 28]``, pixels from 0 to 1 but for Gaussian noise."""
    generator = torch.Generator().manual_seed(seed)

    def some(images: Tensor) -> Tensor:
        return images[torch.randperm(len(images), generator=generator)[:count]]

    color = some(datasets.cifar10("test")[0])
    gray = (color * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    return {
        "notMNIST": some(datasets.not_mnist()[0]),
        "Omniglot": some(datasets.omniglot()[0]),
        "CIFAR-10 gray": F.interpolate(gray, size=28, mode="bilinear", antialias=True, align_corners=False),
        "Gaussian": torch.randn(count, 1, 28, 28, generator=generator),
        "uniform": torch.rand(count, 1, 28, 28, generator=generator),
    }


def run(seed: int, options: argparse.Namespace) -> dict[str, Row]:
    """Both tables with one seed."""
    fitted = posteriors(seed, options)
    count = 100 if options.quick else options.test
    x, y = subset(datasets.mnist("t10k"), count, seed)
    rows: dict[str, Row] = {}
    known = {}
    for name, posterior in fitted.items():
        known[name] = predict(posterior, x, options)
        rows[f"test digits: {name}"] = {
            "accuracy": float(accuracy(known[name].mean.cpu(), y)) * 100,
            "NLL": float(-known[name].log_prob(y.to(known[name].mean.device)).mean()),
        }
        if isinstance(posterior.guide, guides.Generator):
            rows[f"test digits: {name}"]["storage"] = posterior.guide.storage_ratio or float("nan")
    for images, pixels in unknown(count, seed).items():
        for scale in (1, 5):
            for name, posterior in fitted.items():
                found = predict(posterior, scale * pixels, options)
                row = {}
                for score, value in scores(known[name]).items():
                    pair = value, scores(found)[score]
                    row |= {
                        f"ROC {score}": 100 * auroc(*pair),
                        f"PR+ {score}": 100 * aupr(*pair, positive="out"),
                        f"PR- {score}": 100 * aupr(*pair, positive="in"),
                    }
                rows[f"{images}{' × 5' if scale > 1 else ''}: {name}"] = row
    if options.attacks:
        rows |= attacks(fitted, x, y, options)
    return rows


def predict(posterior: Posterior, x: Tensor, options: argparse.Namespace) -> pb.Prediction:
    """The predictive, from the same draws each time."""
    model, guide, draws = posterior
    return pb.predict(model, guide, x.to(options.device), num_samples=draws, seed=0, max_bytes=2**30)


def scores(prediction: pb.Prediction) -> dict[str, Tensor]:
    """Both variation ratios."""
    found = {"1 - max p": prediction.least_confidence.cpu()}
    if prediction.num_samples > 1 and prediction.variation_ratio is not None:
        found["votes"] = prediction.variation_ratio.cpu()
    return found


def attacks(fitted: dict[str, Posterior], x: Tensor, y: Tensor, options: argparse.Namespace) -> dict[str, Row]:
    """The grid of sources, attacks and detectors: AUROC of the model variance, in per cent."""
    detectors = {name: posterior for name, posterior in fitted.items() if posterior.draws > 1}
    x, y = x.to(options.device), y.to(options.device)
    clean = {name: model_variance(posterior, x) for name, posterior in detectors.items()}
    rows = {}
    for source, (model, guide, _) in detectors.items():
        ball = {"epsilon": options.epsilon, "clip": (0.0, 1.0)}
        for attack in (FGSM(**ball), PGD(**ball, steps=40, random_start=False)):
            moved = attack(model, guide, x, y, num_samples=options.attack_draws, seed=0)
            struck = pb.predict(model, guide, moved, num_samples=options.attack_draws, seed=0).mean.argmax(-1) != y
            row = {"success": float(struck.float().mean() * 100)}
            for name, posterior in detectors.items():
                if bool(struck.any()):
                    row[f"by {name}"] = 100 * auroc(clean[name], model_variance(posterior, moved[struck]))
            rows[f"{type(attack).__name__} on {source}"] = row
    for name, posterior in detectors.items():
        for weight in options.adaptive_weights:
            rows[f"adaptive {weight:g} on {name}"] = adaptive(name, posterior, x, y, clean[name], weight, options)
    return rows


def adaptive(
    name: str, posterior: Posterior, x: Tensor, y: Tensor, clean: Tensor, weight: float, options: argparse.Namespace
) -> Row:
    """An attack on a posterior that knows its model variance is watched: a wrong prediction, and little variance."""
    model, guide, _ = posterior
    loss = Evasion("variance", weight=weight)
    attack = PGD(options.epsilon, clip=(0.0, 1.0), steps=40, loss=loss)
    moved = attack(model, guide, x, y, num_samples=options.adaptive_draws, seed=0)
    struck = pb.predict(model, guide, moved, num_samples=options.adaptive_draws, seed=0).mean.argmax(-1) != y
    row = {"success": float(struck.float().mean() * 100)}
    if bool(struck.any()):
        row[f"by {name}"] = 100 * auroc(clean, model_variance(posterior, moved[struck]))
    return row


def model_variance(posterior: Posterior, x: Tensor) -> Tensor:
    """``mean ‖p‖² - ‖mean p‖²`` over the draws."""
    model, guide, draws = posterior
    pieces = []
    for block in x.split(500):
        found = pb.predict(model, guide, block, num_samples=draws, return_draws=True, seed=0).draws
        assert found is not None
        pieces.append(probability_variance(found).cpu())
    return torch.cat(pieces)


def section(method: str) -> str:
    """The table that a row is in."""
    if method.startswith("test digits"):
        return "Test digits"
    if " on " in method:
        return "Against adversarial images: success of the attack, AUROC by model variance"
    return "Against unknown images, by variation ratio"


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--hidden", type=int, nargs="+", default=[100, 100], help="the paper's: 400 400")
    parser.add_argument("--images", type=int, default=10_000, help="training images (default %(default)s)")
    parser.add_argument("--test", type=int, default=2000, help="test digits, and images of each unknown set")
    parser.add_argument("--epochs", type=int, default=100, help="of SGD and MC dropout (default %(default)s)")
    parser.add_argument("--dropout", type=float, default=0.5, help="probability, after each hidden layer")
    parser.add_argument("--steps", type=int, default=20_500, help="of SGLD, warmup included (default %(default)s)")
    parser.add_argument("--warmup-steps", type=int, default=500, help="steps (default %(default)s)")
    parser.add_argument("--thinning", type=int, default=20, help="steps for a draw (default %(default)s)")
    parser.add_argument("--draws", type=int, default=100, help="draws of a prediction (default %(default)s)")
    parser.add_argument("--components", type=int, default=30, help="of the generator; 0: weights, as in the paper")
    parser.add_argument("--distillation-steps", type=int, default=5000, help="of the generator (default %(default)s)")
    parser.add_argument("--distillation-batch", type=int, default=100, help="draws (default %(default)s)")
    parser.add_argument("--distillation-lr", type=float, help="at its start (default: that of pb.distill)")
    parser.add_argument("--attacks", action="store_true", help="the table of adversarial images, too")
    parser.add_argument("--epsilon", type=float, default=0.3, help="of the attacks, of pixels from 0 to 1")
    parser.add_argument("--attack-draws", type=int, default=1, help="draws that are attacked (default %(default)s)")
    parser.add_argument("--adaptive-draws", type=int, default=10, help="draws of attacks that know the detector")
    parser.add_argument(
        "--adaptive-weights", type=float, nargs="*", default=[0.0, 10.0, 100.0], help="of the variance in them"
    )
    Experiment("Detection on MNIST", run, section, SETTINGS, tune).main(parser)


if __name__ == "__main__":
    main()
