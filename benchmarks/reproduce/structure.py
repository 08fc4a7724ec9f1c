"""Posteriors over structure on MNIST or CIFAR-10: calibration, unknown inputs, attacks, statistics per structure.

A deep Bayesian structure network against one point for the structure (MAP), fixed and random structures, MC dropout and
mean field over the weights; then networks with stochastic architectures, with running statistics shared by all
structures and with those of each structure's own. Accuracy, NLL and ECE (in per cent) on the test images; AUROC of
notMNIST and Fashion-MNIST against them by entropy; accuracy and mean entropy of FGSM and BIM attacks on the posterior
mean. "In training" is accuracy on training images under a batch's own statistics, "one structure" that of one draw on
test images, the gap their difference. MNIST's images are averaged down to 14×14 pixels.

``--tune`` chooses one setting for each method (:data:`SETTINGS`) by its NLL on 2,000 validation images, taken from the
training set. Size of the network, epochs and draws are the same for all methods and are stated, not chosen.

    python -m benchmarks.reproduce.structure --tune --seeds 3 4 5 --json structure.json
    python -m benchmarks.reproduce.structure --epochs 25 --test 10000 --methods DBSN MAP
    python -m benchmarks.reproduce.structure --data cifar10 --network paper --images 50000 --epochs 100 --batch 64 \
        --test 10000 --draws 100 --device cuda
"""

from __future__ import annotations

import argparse
import functools
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import Tensor

import pyrobnn as pb
from benchmarks.reproduce import datasets
from benchmarks.reproduce.experiment import Batches, Experiment, Row, arguments, flip_and_shift, validation_subset
from benchmarks.reproduce.tuning import Scores, Setting
from models import dbsn, nsa
from pyrobnn import guides, structure
from pyrobnn.metrics import accuracy, auroc, expected_calibration_error
from pyrobnn.model.bayesianize import frozen_buffers
from pyrobnn.model.substitution import SubstituteMessenger
from pyrobnn.robustness import FGSM, PGD

NSA = ("stochastic, shared statistics", "stochastic, own statistics")
"""Networks with stochastic architectures, by whose running statistics they have."""

VALIDATION = 2000
"""Images that a tuning seed validates on."""

RANGE = (0.0, 1.0)
"""Of pixels."""

_STRUCTURE_RATE = Setting("learning rate of the structure", 1e-2, (1e-3, 3e-3, 1e-2))
_RATE = Setting("learning rate", 1e-2, (3e-3, 1e-2, 3e-2))

SETTINGS = {
    "DBSN": _STRUCTURE_RATE,
    "MAP": _STRUCTURE_RATE,
    "MAP, fixed structure": _RATE,
    "random structure": _RATE,
    "MC dropout": Setting("p", 0.1, (0.05, 0.1, 0.2)),
    "mean field": _RATE,
    NSA[0]: _RATE,
    NSA[1]: _RATE,
}
"""What is chosen for each method: three candidates each."""

Images = dict[str, Any]


class Trainer:
    """One seed's data, and the ways to fit to them."""

    def __init__(self, options: argparse.Namespace, seed: int) -> None:
        self.options, self.seed = options, seed
        self.is_mnist = options.data == "mnist"
        everything = datasets.mnist() if self.is_mnist else datasets.cifar10()
        data, held = validation_subset(everything, options.images, 100 if options.quick else VALIDATION, seed)
        self.held = self.shrink(held[0]), held[1]
        augment = None if self.is_mnist else flip_and_shift
        self.batches = Batches(self.shrink(data[0]), data[1], options.batch, augment)
        self.num_steps = options.epochs * len(self.batches)

    def shrink(self, x: Tensor) -> Tensor:
        """Images as the network sees them: fewer pixels; in CIFAR-10's shape those of others."""
        if not self.is_mnist and x.shape[1] == 1:
            x = F.pad(x, (2, 2, 2, 2)).expand(-1, 3, -1, -1)
        return F.avg_pool2d(x, self.options.shrink or (2 if self.is_mnist else 1))

    def model(self, is_random: bool) -> pb.SupervisedModel:
        """The Bayesian network, the same initial weights for all methods."""
        torch.manual_seed(self.seed)
        size = dbsn.SMALL if self.options.network == "small" else {}
        size = size | {"in_channels": self.batches.x.shape[1]}
        if self.options.growth:
            size["growth"] = self.options.growth
        return dbsn.dbsn(len(self.batches.x), is_random=is_random, **size)

    def fit(self, name: str, value: float | None = None) -> tuple[pb.SupervisedModel, guides.Guide]:
        """A method, trained from scratch and with statistics recalibrated under its posterior.

        Args:
            name: Of the method.
            value: That of its setting; that of ``--lr`` or ``--structure-lr``, or dropout's default, if None.
        """
        setting = SETTINGS[name]
        is_random = name in NSA or dbsn.METHODS[name].is_random
        model = self.model(is_random)
        guide = self.guide(name, model, SETTINGS[name].default if value is None else value)
        device = self.options.device
        model.to(device)
        guide.to(device)
        lr = value if value is not None and setting is _RATE else self.options.lr
        structure_lr = value if value is not None and setting is _STRUCTURE_RATE else self.options.structure_lr
        optimizer = dbsn.adam(model, guide, lr, structure_lr)
        decay = functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=self.options.epochs)
        settings = {"epochs": self.options.epochs, "seed": self.seed, "progress": False, "device": device}
        pb.fit(model, guide, self.batches, optimizer=optimizer, scheduler=decay, clip_norm=5.0, **settings)
        pb.recalibrate_batch_norm(model, guide, self.batches)
        return model, guide

    def guide(self, name: str, model: pb.SupervisedModel, value: float) -> guides.Guide:
        """The posterior of a method; ``value`` is that of its setting."""
        if name in NSA:
            return nsa.StructureSet(model, self.options.structures, own_statistics=name == NSA[1])
        if name == "DBSN":
            annealed = dbsn.annealing(self.num_steps)
            return dbsn.deep_bayesian_structure(model, **annealed)
        if name == "MC dropout":
            return dbsn.dropout(model, value)
        return dbsn.METHODS[name].guide(model)

    def draws(self, name: str) -> int:
        """Draws of a prediction: one of a point, each structure of a set."""
        if name in NSA:
            return self.options.structures
        return 1 if name.startswith("MAP") else self.options.draws


def run(seed: int, options: argparse.Namespace) -> dict[str, Row]:
    """All methods with one seed."""
    _shorten(options)
    trainer, rows, entropies = Trainer(options, seed), {}, {}
    images = _images(trainer, options)
    for name in options.methods or [*dbsn.METHODS, *NSA]:
        started = time.process_time()
        model, guide = trainer.fit(name, options.settings[name] if options.tune else None)
        seconds = time.process_time() - started
        rows[name], entropies[name] = evaluate(model, guide, images, trainer.draws(name), options)
        if name in NSA:
            rows[name] |= disparity(model, guide, trainer.batches, images["known"])
        rows[name]["seconds"] = seconds
        if name == "DBSN":
            table = structure.distribution(model, guide)
            rows[name]["entropy of structure"] = float(table.entropy())
            if options.plot:
                table.plot().figure.savefig(_path(options.plot, seed, "cell"))
    if options.plot:
        _plot_entropies(entropies, _path(options.plot, seed, "entropies"))
        _plot_robustness(rows, options.epsilons, _path(options.plot, seed, "robustness"))
    return rows


def tune(seed: int, options: argparse.Namespace) -> Scores:
    """NLL of all candidates on validation images."""
    _shorten(options)
    trainer = Trainer(options, seed)
    x, y = trainer.held
    scores: dict[str, dict[float, float]] = {}
    for name in options.methods or SETTINGS:
        scores[name] = {}
        for value in SETTINGS[name].candidates:
            model, guide = trainer.fit(name, value)
            found = pb.predict(model, guide, x, num_samples=trainer.draws(name), seed=0)
            scores[name][value] = float(-found.log_prob(y.to(found.mean.device)).mean())
            print(f"tuning seed {seed}  {name} {value:g}: NLL {scores[name][value]:.4g}", file=sys.stderr, flush=True)
    return scores


def _shorten(options: argparse.Namespace) -> None:
    if options.quick:
        options.images, options.epochs, options.test, options.unknown, options.attacked = 256, 1, 100, 50, 20


def evaluate(
    model: pb.SupervisedModel, guide: guides.Guide, images: Images, draws: int, options: argparse.Namespace
) -> tuple[Row, dict[str, Tensor]]:
    """One row of the table, and the entropies of each set of images."""
    predict = functools.partial(pb.predict, model, guide, num_samples=draws, seed=0)
    x, y = images["known"]
    known = predict(x)
    row = {
        "accuracy": _accuracy(known.mean, y),
        "NLL": float(-known.log_prob(y.to(known.mean.device)).mean()),
        "ECE": float(expected_calibration_error(known.mean.cpu(), y)) * 100,
    }
    entropies = {"known": known.total.cpu()}
    for name in ("notMNIST", "Fashion"):
        entropies[name] = predict(images[name]).total.cpu()
        row[name] = auroc(entropies["known"], entropies[name])
    x, y = (part[: options.attacked].to(options.device) for part in images["known"])
    attack = {"num_samples": min(draws, options.attack_draws), "seed": 1}
    ways: dict[str, Callable[[float], Tensor]] = {
        "FGSM": lambda epsilon: FGSM(epsilon, clip=RANGE)(model, guide, x, y, **attack),
        "BIM": lambda epsilon: PGD(epsilon, clip=RANGE, steps=options.attack_steps, random_start=False)(
            model, guide, x, y, **attack
        ),
    }
    for (name, make), epsilon in itertools.product(ways.items(), options.epsilons):
        attacked = predict(make(epsilon))
        row[f"{name} {epsilon:g}"] = _accuracy(attacked.mean, y)
        row[f"{name} {epsilon:g} entropy"] = float(attacked.total.mean())
        entropies[f"{name} {epsilon:g}"] = attacked.total.cpu()
    return row, entropies


@torch.no_grad()
def disparity(
    model: pb.SupervisedModel, guide: guides.Guide, batches: Batches, known: tuple[Tensor, Tensor], most: int = 20
) -> Row:
    """Accuracy in training mode, of single structures in prediction, and the gap between the two."""
    device = next(model.parameters()).device
    right, rows = 0, 0
    model.train()
    with frozen_buffers(model):
        for x, y in itertools.islice(batches, most):
            with SubstituteMessenger(guide.sample(1).at(0)):
                outputs = model.predictive(x.to(device)).cpu()
            right, rows = right + int((outputs.argmax(-1) == y).sum()), rows + len(y)
    model.eval()
    num = guide.num_members
    draws = pb.predict(model, guide, known[0], num_samples=num, seed=0, return_draws=True).draws
    training = right / rows * 100
    single = sum(_accuracy(draw, known[1]) for draw in draws) / num
    return {"in training": training, "one structure": single, "gap": training - single}


def _accuracy(probs: Tensor, y: Tensor) -> float:
    return float(accuracy(probs.cpu(), y.cpu())) * 100


def _images(trainer: Trainer, options: argparse.Namespace) -> Images:
    """Test images with labels, and the unknown ones, of the same shape."""
    x, y = datasets.mnist("t10k") if trainer.is_mnist else datasets.cifar10("test")
    known = (trainer.shrink(x[: options.test]), y[: options.test])
    others = {"notMNIST": datasets.not_mnist()[0], "Fashion": datasets.fashion()[0]}
    return {"known": known} | {name: trainer.shrink(value[: options.unknown]) for name, value in others.items()}


def _plot_entropies(entropies: dict[str, dict[str, Tensor]], path: Path) -> None:
    """Cumulative distributions of the predictive entropy, a panel for each set of images and the two weakest FGSM."""
    kinds = [kind for kind in next(iter(entropies.values())) if not kind.startswith("BIM")][:5]
    figure, axes = plt.subplots(1, len(kinds), figsize=(3 * len(kinds) + 2, 3), sharey=True, layout="constrained")
    for ax, kind in zip(axes, kinds, strict=True):
        for name, by_kind in entropies.items():
            ax.ecdf(by_kind[kind].numpy(), label=name)
        ax.set(title=kind, xlabel="entropy in nats")
    axes[0].set_ylabel("fraction of images")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize="small")
    figure.savefig(path)
    plt.close(figure)


def _plot_robustness(rows: dict[str, Row], epsilons: list[float], path: Path) -> None:
    """Accuracy and mean entropy of attacked images against the radius of the attack."""
    figure, axes = plt.subplots(2, 2, figsize=(9, 5), sharex=True, sharey="row", layout="constrained")
    for column, attack in enumerate(("FGSM", "BIM")):
        for name, row in rows.items():
            axes[0, column].plot([0.0, *epsilons], [row["accuracy"], *(row[f"{attack} {e:g}"] for e in epsilons)], ".-")
            axes[1, column].plot(epsilons, [row[f"{attack} {e:g} entropy"] for e in epsilons], ".-", label=name)
        axes[0, column].set_title(attack)
        axes[1, column].set_xlabel("radius")
    axes[0, 0].set_ylabel("accuracy in per cent")
    axes[1, 0].set_ylabel("mean entropy in nats")
    figure.legend(*axes[1, 0].get_legend_handles_labels(), loc="outside right center", fontsize="small")
    figure.savefig(path)
    plt.close(figure)


def _path(folder: str, seed: int, name: str) -> Path:
    Path(folder).mkdir(parents=True, exist_ok=True)
    return Path(folder) / f"{name}_{seed}.png"


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--data", choices=("mnist", "cifar10"), default="mnist")
    parser.add_argument("--network", choices=("small", "paper"), default="small")
    parser.add_argument("--growth", type=int, help="channels of a node (default: the network's, 8 or 16)")
    parser.add_argument("--shrink", type=int, help="images smaller by this factor (default: MNIST 2, CIFAR-10 1)")
    parser.add_argument("--methods", nargs="+", choices=[*dbsn.METHODS, *NSA], metavar="NAME", help="default: all")
    parser.add_argument("--images", type=int, default=5000, help="training images (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=5, help="default %(default)s")
    parser.add_argument("--batch", type=int, default=128, help="images of a batch (default %(default)s)")
    parser.add_argument("--lr", type=float, default=1e-2, help="Adam's, of the weights (default %(default)s)")
    parser.add_argument("--structure-lr", type=float, default=1e-2, help="and of the structure (default %(default)s)")
    parser.add_argument("--draws", type=int, default=20, help="draws of a prediction (default %(default)s)")
    parser.add_argument("--structures", type=int, default=5, help="of a stochastic architecture (default %(default)s)")
    parser.add_argument("--test", type=int, default=2000, help="test images (default %(default)s)")
    parser.add_argument("--unknown", type=int, default=500, help="images of each unknown set (default %(default)s)")
    parser.add_argument("--attacked", type=int, default=100, help="test images that are attacked (default %(default)s)")
    parser.add_argument("--attack-draws", type=int, default=5, help="draws that attacks see (default %(default)s)")
    parser.add_argument("--attack-steps", type=int, default=5, help="steps of BIM (default %(default)s)")
    parser.add_argument("--epsilons", type=float, nargs="+", default=[0.1, 0.2], help="radii of the attacks")
    parser.add_argument("--plot", metavar="FOLDER", help="draw the cell and the entropies' distributions there")
    Experiment("Posteriors over structure", run, settings=SETTINGS, tune=tune).main(parser)


if __name__ == "__main__":
    main()
