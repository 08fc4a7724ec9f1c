"""CamVid street scenes: a U-Net with a concrete posterior over its cells' structure, and maps of its uncertainty.

Mean intersection over union (void left out), pixel accuracy and NLL with one and with many structures; AUROC of wrong
against right pixels by predictive entropy and by mutual information.

    python -m benchmarks.reproduce.segmentation --seeds 0 --figure segmentation.png
    python -m benchmarks.reproduce.segmentation --full --device cuda --json segmentation.json
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.classification import MulticlassJaccardIndex

import pyrobnn as pb
from benchmarks.reproduce import datasets
from benchmarks.reproduce.experiment import Batches, Experiment, Row, arguments
from models.segmentation import segmentation
from pyrobnn import plots, schedules
from pyrobnn.guides import MAP, Composite, ConcreteStructure, Guide
from pyrobnn.metrics import auroc

CLASSES, VOID = 11, 11

SMALL = {"shrink": 2, "width": 16, "levels": 3, "nodes": 3, "epochs": 18, "batch": 4, "lr": 5e-3}
FULL = {"shrink": 1, "width": 32, "levels": 4, "nodes": 4, "epochs": 300, "batch": 8, "lr": 5e-3}
QUICK = {"shrink": 4, "width": 4, "levels": 2, "nodes": 3, "epochs": 1, "batch": 4, "lr": 5e-3}

Pair = tuple[Tensor, Tensor]


class Mirrored(Batches):
    """Batches of which half of the images are mirrored, with their labels."""

    def __iter__(self) -> Iterator[Pair]:
        for x, y in super().__iter__():
            flipped = torch.rand(len(x), 1, 1) < 0.5
            yield torch.where(flipped.unsqueeze(1), x.flip(-1), x), torch.where(flipped, y.flip(-1), y)


def scenes(split: str, shrink: int, count: int | None = None) -> Pair:
    """Images and labels of a split, both smaller by a factor."""
    x, y = (part[:count] for part in datasets.camvid(split))
    return F.avg_pool2d(x, shrink), y[:, shrink // 2 :: shrink, shrink // 2 :: shrink].contiguous()


def run(seed: int, options: argparse.Namespace) -> dict[str, Row]:
    """One fit, read with one structure and with many."""
    settings = SMALL | (FULL if options.full else {}) | (QUICK if options.quick else {})
    settings |= {name: value for name in settings if (value := getattr(options, name)) is not None}
    count = 12 if options.quick else None
    (x, y), (test_x, test_y) = (scenes(split, settings["shrink"], count) for split in ("train", "test"))
    mean, std = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True)
    train = Mirrored((x - mean) / std, y, batch_size=settings["batch"])
    test = list(zip(((test_x - mean) / std).split(16), test_y.split(16), strict=True))

    model, guide = fit(train, settings, seed, options)
    draws = 3 if options.quick else options.draws
    rows = {f"{k} structures" if k > 1 else "1 structure": evaluate(model, guide, test, k, seed) for k in (1, draws)}
    if options.figure and seed == options.seeds[0]:
        chosen = torch.tensor([i % len(test_x) for i in options.figure_images])
        prediction = pb.predict(model, guide, ((test_x - mean) / std)[chosen], num_samples=draws, seed=seed)
        names = datasets.CAMVID_CLASSES
        figure = plots.uncertainty_maps(test_x[chosen], test_y[chosen], prediction, class_names=names)
        figure.savefig(options.figure, dpi=150)
    return rows


def fit(
    train: Mirrored, settings: dict[str, Any], seed: int, options: argparse.Namespace
) -> tuple[pb.SupervisedModel, Guide]:
    """A point for the weights and a concrete distribution over the structure."""
    steps = len(train) * settings["epochs"]
    torch.manual_seed(seed)
    shape = {name: settings[name] for name in ("width", "levels", "nodes")}
    model = segmentation(len(train.x), classes=CLASSES, void=VOID, **shape)
    # The paper's schedules, in proportion to the length of this training: τ from 3 to 1, β from 1 to 1/2.
    structure = functools.partial(
        ConcreteStructure,
        temperature=schedules.Exponential(3.0, 2.2 / steps, floor=1.0),
        beta=schedules.Linear(1.0, 0.5, steps),
    )
    guide = Composite(model, [("*structure*", structure), ("*", MAP)])
    cosine = functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=settings["epochs"])
    pb.fit(
        model,
        guide,
        train,
        epochs=settings["epochs"],
        lr=settings["lr"],
        scheduler=cosine,
        seed=seed,
        device=options.device,
        progress=False,
    )
    pb.recalibrate_batch_norm(model, guide, train)
    return model, guide


def evaluate(model: pb.SupervisedModel, guide: Guide, test: list[Pair], draws: int, seed: int) -> Row:
    """One row of the table; void counts nowhere."""
    iou = MulticlassJaccardIndex(CLASSES, ignore_index=VOID)
    parts: dict[str, list[Tensor]] = {"right": [], "log_prob": [], "total": [], "epistemic": []}
    for prediction, y in pb.predict_batches(model, guide, test, draws, seed=seed):
        assert y is not None
        known = y != VOID
        iou.update(prediction.predicted.cpu(), y)
        parts["right"].append((prediction.predicted.cpu() == y)[known])
        parts["log_prob"].append(prediction.log_prob(y.to(prediction.mean.device)).cpu()[known])
        for name in ("total", "epistemic"):
            parts[name].append(getattr(prediction, name).cpu()[known])
    pixels = {name: torch.cat(values) for name, values in parts.items()}
    right = pixels["right"]
    row = {
        "mean IoU": float(iou.compute()) * 100,
        "accuracy": float(right.float().mean()) * 100,
        "NLL": float(-pixels["log_prob"].mean()),
        "AUROC, entropy": auroc(pixels["total"][right], pixels["total"][~right]),
    }
    if draws > 1:
        row["AUROC, mutual information"] = auroc(pixels["epistemic"][right], pixels["epistemic"][~right])
    return row


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--full", action="store_true", help="whole images, a wider network, more epochs: for a GPU")
    parser.add_argument("--draws", type=int, default=20, help="structures of a prediction (default %(default)s)")
    parser.add_argument("--shrink", type=int, help="images smaller by this factor (default 2; full: 1)")
    for name, kind in (("width", int), ("levels", int), ("nodes", int), ("epochs", int), ("batch", int), ("lr", float)):
        parser.add_argument(f"--{name}", type=kind, help=f"default {SMALL[name]}; full: {FULL[name]}")
    parser.add_argument("--figure", metavar="PATH", help="write maps of the first seed's uncertainty there")
    parser.add_argument("--figure-images", type=int, nargs="+", default=[20, 110, 200], help="test images on it")
    Experiment("CamVid: structure as a random variable (IoU and accuracy in per cent)", run).main(parser)


if __name__ == "__main__":
    main()
