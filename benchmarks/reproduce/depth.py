"""Depth from one image of synthetic scenes: is the aleatoric part at edges, and the epistemic at unseen objects?

A scene is a plane that recedes, and boxes before it. Its image is shaded by the angle to the light and darkened with
the distance. The depths to learn are noisy, with a standard deviation of 0.05, and of 0.6 at edges, as of a sensor that
mixes two depths there. Half of the test scenes also have a ball with stripes, a kind of object that training did not
have.

The table has means over pixels of predicted standard deviations: aleatoric at edges and elsewhere (true: 0.6 and 0.05),
of test scenes as in training; epistemic inside balls and elsewhere, of scenes with balls, edges left out; and RMSE of
the true depth in both.

    python -m benchmarks.reproduce.depth --json depth.json
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import pyrobnn as pb
from benchmarks.reproduce.experiment import Batches, Experiment, Row, arguments
from models.depth import depth
from pyrobnn import guides

NOISE, NOISE_AT_EDGES = 0.05, 0.6
METHODS: dict[str, tuple[Callable[[pb.SupervisedModel], guides.Guide], int]] = {
    "MC dropout": (functools.partial(guides.MCDropout, p=0.05), 20),
    "ensemble of 3": (functools.partial(guides.DeltaMixture, num_members=3), 3),
}
"""Guide and number of draws."""


class Scenes(NamedTuple):
    """Images and depths ``[N, 1, S, S]``, and what is where ``[N, 1, S, S]``."""

    images: Tensor
    measured: Tensor
    true: Tensor
    edges: Tensor
    balls: Tensor


def scenes(count: int, seed: int, *, size: int = 32, boxes: int = 3, balls: int = 0) -> Scenes:
    """Scenes drawn by ``seed``."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(count, 1, 1, 1, generator=generator) * (high - low) + low

    down, right = torch.meshgrid(torch.arange(size) / size, torch.arange(size) / size, indexing="ij")
    true = uniform(3.0, 4.0) + uniform(2.0, 4.0) * (1 - down) + uniform(-0.5, 0.5) * right
    light = uniform(0.7, 1.0).expand(true.shape)
    is_ball = torch.zeros(true.shape, dtype=torch.bool)
    for _ in range(boxes):
        top, left = uniform(0.0, 0.7), uniform(0.0, 0.7)
        height, width, near, side = uniform(0.2, 0.45), uniform(0.2, 0.45), uniform(1.5, 3.0), uniform(0.2, 0.5)
        inside = (down >= top) & (down < top + height) & (right >= left) & (right < left + width)
        is_side = right > left + width * (1 - side)  # which faces away from the light, and recedes
        found = near + is_side * (right - left - width * (1 - side)) * 2.0
        nearer = inside & (found < true)
        true, light = torch.where(nearer, found, true), torch.where(nearer, torch.where(is_side, 0.5, 0.9), light)
    for _ in range(balls):
        radius, stripes = uniform(0.15, 0.25), uniform(20.0, 40.0)
        y, x = (direction - uniform(0.25, 0.75) for direction in (down, right))
        height = (1 - (y.square() + x.square()) / radius.square()).clamp_min(0.0).sqrt()
        nearer = height > 0
        true = torch.where(nearer, uniform(1.5, 2.5) - height * radius * 2.0, true)
        light = torch.where(nearer, (0.2 + 0.8 * height) * (0.6 + 0.4 * (stripes * (y + x)).sin().sign()), light)
        is_ball = is_ball | nearer
    edges = F.max_pool2d(true, 3, 1, 1) + F.max_pool2d(-true, 3, 1, 1) > 0.8
    noise = torch.where(edges, NOISE_AT_EDGES, NOISE)
    images = light * (-0.25 * true).exp() * 2.0
    images = images + 0.01 * torch.randn(true.shape, generator=generator)
    measured = true + noise * torch.randn(true.shape, generator=generator)
    return Scenes(images, measured, true, edges, is_ball)


def run(seed: int, options: argparse.Namespace) -> dict[str, Row]:
    """Both methods on the scenes of one seed."""
    count = 8 if options.quick else options.images
    train = scenes(count, 3 * seed)
    known, unseen = (scenes(max(4, count // 4), 3 * seed + 1 + balls, balls=balls) for balls in (0, 1))
    image_mean, image_std = train.images.mean(), train.images.std()
    depth_mean, depth_std = train.measured.mean(), train.measured.std()
    rows = {}
    for label in options.methods:
        make, draws = METHODS[label]
        torch.manual_seed(seed)
        model = depth(count, channels=1, width=options.width, levels=2, beta=0.5)
        guide = make(model)
        batches = Batches(
            (train.images - image_mean) / image_std, (train.measured - depth_mean) / depth_std, batch_size=8
        )
        epochs = 1 if options.quick else options.epochs
        cosine = functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs)
        pb.fit(model, guide, batches, epochs=epochs, lr=options.lr, scheduler=cosine, seed=seed, progress=False)
        found = [
            pb.predict(model, guide, (part.images - image_mean) / image_std, draws, seed=seed).rescaled(
                depth_mean, depth_std
            )
            for part in (known, unseen)
        ]
        noise, spread = found[0].aleatoric.sqrt(), found[1].epistemic.sqrt()
        inside, elsewhere = unseen.balls & ~unseen.edges, ~unseen.balls & ~unseen.edges
        rows[label] = {
            "aleatoric, edges": float(noise[known.edges].mean()),
            "aleatoric, elsewhere": float(noise[~known.edges].mean()),
            "epistemic, unseen": float(spread[inside].mean()),
            "epistemic, elsewhere": float(spread[elsewhere].mean()),
            "RMSE": float((found[0].mean - known.true).square().mean().sqrt()),
            "RMSE, unseen": float((found[1].mean - unseen.true)[inside].square().mean().sqrt()),
        }
        if options.figure and seed == options.seeds[0]:
            draw(options.figure.format(method=label.replace(" ", "_")), unseen, found[1])
    return rows


def draw(path: str, shown: Scenes, prediction: pb.Prediction, count: int = 3) -> None:
    """Images, true depths, and both maps of a few scenes with balls."""
    import matplotlib.pyplot as plt

    maps = {
        "image": shown.images,
        "depth": shown.true,
        "aleatoric sd": prediction.aleatoric.sqrt(),
        "epistemic sd": prediction.epistemic.sqrt(),
    }
    figure, axes = plt.subplots(count, len(maps), figsize=(2 * len(maps), 2 * count), layout="constrained")
    for row in range(count):
        for axis, (title, values) in zip(axes[row], maps.items(), strict=True):
            axis.imshow(values[row, 0], cmap="gray" if title == "image" else "viridis")
            axis.set(title=title if not row else "", xticks=[], yticks=[])
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--images", type=int, default=128, help="training images (default %(default)s)")
    parser.add_argument("--width", type=int, default=8, help="channels at full resolution (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=30, help="default %(default)s")
    parser.add_argument("--lr", type=float, default=5e-3, help="learning rate (default %(default)s)")
    parser.add_argument("--figure", metavar="PATH", help="maps of the first seed; {method} in it is replaced")
    Experiment("Depth of synthetic scenes (standard deviations, in units of depth)", run).main(parser)


if __name__ == "__main__":
    main()
