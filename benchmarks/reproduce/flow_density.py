r"""Density of whole images, 28 × 28 pixels, by a coupling flow.

MNIST with uniform noise between the 256 levels of a pixel, so that there is a density, and
:math:`y = \mathrm{logit}(0.05 + 0.9\, x)` for pixels x in [0, 1]. ``ConditionalFlow(784, context=1, coupling=True)`` is
given a constant; its weights are learned as a point. Beside it a normal distribution of full covariance (shrunk towards
its diagonal by the share that validates best) and independent normal pixels. Bits per dimension of the levels: uniform
pixels have 8. Learning rate, clipping and the number of maps were chosen on 2,000 training images by the training
density, the epoch on 2,000 validation images.

    python -m benchmarks.reproduce.flow_density --images 10000 --epochs 40 --json flow_density.json
    python -m benchmarks.reproduce.flow_density --images 50000 --epochs 100 --transforms 10 --hidden 1024 --device cuda
"""

from __future__ import annotations

import argparse
import math
import time

import torch
from torch import Tensor, nn

import pyrobnn as pb
from benchmarks.reproduce import datasets
from benchmarks.reproduce.experiment import Batches, Experiment, Row, arguments, subset

PIXELS, MARGIN = 784, 0.05
HELD = 2000


def logits(levels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noisy pixels ``[N, 784]`` on the scale of logits, and the log of their derivative by the level, ``[N]``."""
    noisy = (levels + torch.rand(levels.shape, generator=generator)) / 256
    inside = MARGIN + (1 - 2 * MARGIN) * noisy
    slope = math.log((1 - 2 * MARGIN) / 256) - inside.log() - (1 - inside).log()
    return inside.logit(), slope.sum(1)


def bits(log_density: Tensor, slope: Tensor) -> float:
    """Bits per dimension of the levels."""
    return float(-(log_density.double() + slope.double()).mean()) / (PIXELS * math.log(2))


def gaussian(train: Tensor, validation: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> dict[str, Row]:
    """Normal distributions with the moments of the training images."""
    y = train.double()
    mean, covariance = y.mean(0), y.T.cov()
    diagonal = covariance.diagonal().diag()

    def scored(share: float, data: tuple[Tensor, Tensor]) -> float:
        shrunk = (1 - share) * covariance + share * diagonal
        return bits(torch.distributions.MultivariateNormal(mean, shrunk).log_prob(data[0].double()), data[1])

    best = min((0.01, 0.03, 0.1, 0.3), key=lambda share: scored(share, validation))
    return {
        "independent normal pixels": {"bits per dimension": scored(1.0, test)},
        "normal, full covariance": {"bits per dimension": scored(best, test)},
    }


def run(seed: int, options: argparse.Namespace) -> dict[str, Row]:
    """All densities with one seed."""
    generator = torch.Generator().manual_seed(seed)
    count = 200 if options.quick else options.images
    images, labels = datasets.mnist("train")
    chosen = subset((images, labels), count + HELD, seed)[0]
    held = datasets.mnist("t10k")[0][:HELD]
    levels = [(part.flatten(1) * 255).round() for part in (chosen[:count], chosen[count:], held)]
    train, validation, test = (logits(part, generator) for part in levels)
    found = gaussian(train[0], validation, test)
    torch.manual_seed(seed)
    widths = (options.hidden, options.hidden)
    likelihood = pb.likelihoods.ConditionalFlow(
        PIXELS, 1, transform="affine", coupling=True, num_transforms=options.transforms, hidden=widths, num_nodes=8
    )
    model = pb.SupervisedModel(nn.Linear(1, 1), likelihood, num_data=count)
    guide = pb.guides.MAP(model)
    constant = torch.zeros(count, 1)
    mean, std = train[0].mean(0), train[0].std(0) + 0.1
    shift = std.log().sum()
    y = (train[0] - mean) / std
    beside = [(torch.zeros(HELD, 1), (validation[0] - mean) / std)]
    started = time.process_time()
    history = pb.fit(
        model, guide, Batches(constant, y, 100), epochs=2 if options.quick else options.epochs, lr=5e-4,
        clip_norm=10.0, seed=seed, validation=beside, early_stopping=True,
        device=options.device, progress=False,
    )  # fmt: skip
    with torch.no_grad():
        outputs = model.cpu().predictive(torch.zeros(HELD, 1))
        density = model.likelihood(outputs).log_prob((test[0] - mean) / std) - shift
    found[f"coupling flow, {options.transforms} maps"] = {
        "bits per dimension": bits(density, test[1]),
        "epochs": float(history.epochs),
        "processor minutes": (time.process_time() - started) / 60,
    }
    return found


def main(argv: list[str] | None = None) -> dict[str, list[Row]]:
    """Parses the options and runs all seeds."""
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, default=10_000, help="to train on (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--transforms", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=256, help="width of each of two layers of a map")
    return Experiment("Density of 28 × 28 images, MNIST", run).main(parser, argv)


if __name__ == "__main__":
    main()
