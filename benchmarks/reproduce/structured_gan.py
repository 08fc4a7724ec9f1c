"""MNIST at 14 x 14 pixels with few labels: a structured GAN beside supervised training, Pi-model and conditional GAN.

All methods have the same classifier, a perceptron with dropout, and the same labels, as many of each class. Each has
one setting with three candidates (:data:`SETTINGS`); ``--tune`` chooses it on 10,000 held-out training digits, with
seeds of its own. What all share is :data:`COMMON`. Test labels are used for the table alone, once, after the last
epoch. Samples are judged by a classifier of 20,000 other training digits.

    python -m benchmarks.reproduce.structured_gan --tune --epochs 30 --methods supervised Pi-model SGAN
"""

from __future__ import annotations

import argparse
import functools
from statistics import fmean

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy

from benchmarks.reproduce import datasets
from benchmarks.reproduce.experiment import Experiment, Pair, Row, arguments
from benchmarks.reproduce.tuning import Scores, Setting
from models.conditional_gan import ConditionalGAN, Joined
from models.late_ramp import LateRamp
from models.semi_supervised import SemiSupervisedBatches
from models.structured_gan import SGANOptions, StructuredGAN
from models.structured_gan_scores import controllability, style_grid, style_information
from pyrobnn import schedules
from pyrobnn.training import DiscriminatorWatch, Game, GamePlayer, Phase

PIXELS, STYLE, CLASSES = 196, 16, 10
COMMON = {
    "unlabeled": 10_000,
    "batch": 100,
    "labeled_batch": 50,
    "lr": 1e-3,
    "consistency": 10.0,
    "ramp": 10,
}
"""``ramp``: epochs over which weights rise."""

_START = Setting("epoch from which C learns from samples", 8, (0, 8, 14))
SETTINGS = {
    "supervised": Setting("learning rate", 1e-3, (3e-4, 1e-3, 3e-3)),
    "Pi-model": Setting("weight", 10.0, (3.0, 10.0, 30.0)),
    "conditional": _START,
    "SGAN": _START,
}
"""What ``--tune`` chooses for each method."""


def network() -> nn.Module:
    """The classifier of all methods."""
    return Joined(PIXELS, CLASSES, (256, 256), dropout=0.3)


@functools.cache
def images(split: str) -> Pair:
    """Pixels ``[N, 196]`` between 0 and 1, and digits."""
    x, y = datasets.mnist(split)
    return avg_pool2d(x, 2).flatten(1), y


def split(labels: int, seed: int) -> tuple[Pair, Tensor]:
    """Labeled digits, as many of each class, and unlabeled ones, from the first 40,000 of the training set."""
    x, y = (part[:40_000] for part in images("train"))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    rows = torch.cat([order[y[order] == digit][: labels // CLASSES] for digit in range(CLASSES)])
    return (x[rows], y[rows]), x[order[: COMMON["unlabeled"]]]  # type: ignore[misc]


def batches_of(labeled: Pair, unlabeled: Tensor) -> SemiSupervisedBatches:
    """The batches of all methods."""
    return SemiSupervisedBatches(*labeled, unlabeled, CLASSES, int(COMMON["labeled_batch"]), int(COMMON["batch"]))


def classifier_alone(
    labeled: Pair, unlabeled: Tensor, epochs: int, seed: int, consistency: float = 0.0, lr: float = COMMON["lr"]
) -> nn.Module:
    """Supervised training, and with ``consistency`` the Pi-model; the running average of the classifier."""
    torch.manual_seed(seed)
    net = network()
    player = GamePlayer("C", net, lr=lr, averaging=0.99)
    ramp = schedules.GaussianRampUp(consistency, int(COMMON["ramp"])) if consistency else None

    def loss(batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        x, y, others = batch
        found = cross_entropy(net(x), y)
        if ramp is not None:
            distance = (net(others).softmax(1) - net(others).softmax(1)).square().sum(1).mean()
            found = found + ramp(game.history.epochs) * distance
        return found

    game = Game([Phase(player, loss)])
    game.play(batches_of(labeled, unlabeled), epochs=epochs, seed=seed, progress=False)
    assert player.average is not None
    return player.average


def weights(start: int) -> SGANOptions:
    """What the classifier of a structured GAN is trained with; from samples after the epoch ``start``."""
    ramp = int(COMMON["ramp"])
    return SGANOptions(
        generated=LateRamp(0.5, start, ramp),
        entropy=LateRamp(0.3, 0, ramp),
        balance=LateRamp(0.3, 0, ramp),
        consistency=schedules.GaussianRampUp(COMMON["consistency"], ramp),
        pseudo_labels=0.8,
        generator_averaging=0.999,
    )


def structured(labeled: Pair, unlabeled: Tensor, epochs: int, seed: int, style: bool, start: int) -> StructuredGAN:
    """The structured GAN, or without the game of the style a conditional GAN with a classifier."""
    torch.manual_seed(seed)
    pair = (
        (Joined(PIXELS, STYLE, (256, 256)), Joined(PIXELS + STYLE, 1, (256, 256), dropout=0.3))
        if style
        else (None, None)
    )
    sgan = StructuredGAN(
        Joined(CLASSES + STYLE, PIXELS, (256, 256), bounded=True),
        network(),
        Joined(PIXELS + CLASSES, 1, (256, 256), dropout=0.3),
        *pair,
        num_classes=CLASSES,
        latent_dim=STYLE,
        options=weights(start),
    )
    data = batches_of(labeled, unlabeled)
    game = sgan.game(lr=COMMON["lr"])
    sgan.pretraining(game).play(data, epochs=5, seed=seed, progress=False)
    game.play(data, epochs=epochs, seed=seed, progress=False, callbacks=[DiscriminatorWatch("D_xy")])
    return sgan.averaged(game)


@functools.cache
def judge() -> nn.Module:
    """A classifier of the last 20,000 training digits."""
    torch.manual_seed(0)
    x, y = (part[40_000:] for part in images("train"))
    net = Joined(PIXELS, CLASSES, (256, 256), dropout=0.3)
    data = [(x[rows], y[rows]) for rows in torch.randperm(len(x)).split(100)]
    Game([Phase(GamePlayer("C", net), lambda batch: cross_entropy(net(batch[0]), batch[1]))]).play(
        data, epochs=10, progress=False
    )
    return net.eval()


@torch.no_grad()
def error(net: nn.Module, data: Pair) -> float:
    """In per cent."""
    return 100.0 * float((net.eval()(data[0]).argmax(1) != data[1]).double().mean())


def trained(method: str, value: float, labels: int, seed: int, epochs: int) -> tuple[nn.Module, StructuredGAN | None]:
    """The classifier of a method at a value of its setting, and the GAN, if it has one."""
    labeled, unlabeled = split(labels, seed)
    if method == "supervised":
        return classifier_alone(labeled, unlabeled, epochs, seed, lr=value), None
    if method == "Pi-model":
        return classifier_alone(labeled, unlabeled, epochs, seed, value), None
    sgan = structured(labeled, unlabeled, epochs, seed, method == "SGAN", int(value))
    return sgan.classifier, sgan


def row_of(
    method: str, value: float, labels: int, seed: int, epochs: int, data: Pair, figure: str | None = None
) -> Row:
    """One row."""
    classifier, sgan = trained(method, value, labels, seed, epochs)
    row = {"error": error(classifier, data)}
    if sgan is None:
        return row
    row["controllability"] = 100.0 * controllability(sgan, judge())
    if method == "SGAN":
        row["style_information"] = style_information(sgan, *(part[:5000] for part in data))
        if figure is not None:
            draw(sgan, figure)
    return row


def conditional(seed: int, epochs: int) -> Row:
    """A conditional GAN of 20,000 digits with all labels: how often its samples have their class."""
    torch.manual_seed(seed)
    x, y = (part[:20_000] for part in images("train"))
    networks = Joined(CLASSES + STYLE, PIXELS, (256, 256), bounded=True), Joined(PIXELS + CLASSES, 1, (256, 256), 0.3)
    gan = ConditionalGAN(*networks, num_classes=CLASSES, latent_dim=STYLE)
    game = gan.game(lr=COMMON["lr"], averaging=0.999)
    data = [(x[rows], y[rows]) for rows in torch.randperm(len(x)).split(100)]
    game.play(data, epochs=epochs, seed=seed, progress=False)
    labels = torch.randint(CLASSES, (10_000,))
    made = gan.averaged(game).draw(10_000, labels)
    return {"controllability": 100.0 * float((judge()(made).argmax(1) == labels).double().mean())}


def draw(sgan: StructuredGAN, path: str) -> None:
    """The grid of classes (rows) and styles (columns) as an image."""
    from matplotlib import pyplot as plt

    torch.manual_seed(0)
    grid = style_grid(sgan, 12).unflatten(2, (14, 14))
    plt.imsave(path, grid.permute(0, 2, 1, 3).reshape(10 * 14, 12 * 14).numpy(), cmap="gray", vmin=0.0, vmax=1.0)


def run(seed: int, options: argparse.Namespace) -> dict[str, Row]:
    """All methods with all numbers of labels."""
    data = images("t10k")
    epochs = 1 if options.quick else options.epochs
    rows = {}
    if options.cgan:
        rows["GAN of all labels: conditional GAN"] = conditional(seed, epochs)
    for labels in options.labels:
        for method in options.methods:
            figure = options.figure if seed == options.seeds[0] and labels == options.labels[-1] else None
            value = options.settings[method]
            rows[f"{labels} labels: {method}"] = row_of(method, value, labels, seed, epochs, data, figure)
    return rows


def tune(seed: int, options: argparse.Namespace) -> Scores:
    """Of every method the validation error of its candidates, the mean over the numbers of labels."""
    x, y = (part[40_000:50_000] for part in images("train"))
    epochs = 1 if options.quick else options.epochs
    return {
        method: {
            value: fmean(error(trained(method, value, n, seed, epochs)[0], (x, y)) for n in options.labels)
            for value in SETTINGS[method].candidates
        }
        for method in options.methods
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--labels", type=int, nargs="+", default=[100], help="default: 100")
    parser.add_argument("--epochs", type=int, default=40, help="passes over the unlabeled digits (default %(default)s)")
    parser.add_argument("--methods", nargs="+", choices=list(SETTINGS), default=list(SETTINGS), help="default: all")
    parser.add_argument("--cgan", action="store_true", help="also a conditional GAN of digits with all labels")
    parser.add_argument("--figure", help="where to write the grid of styles of the first seed")
    heading = lambda method: method.split(":")[0]  # noqa: E731
    Experiment("Structured GAN on MNIST, 14 x 14", run, heading, SETTINGS, tune).main(parser)


if __name__ == "__main__":
    main()
