"""Adversarial Sampling on MNIST or CIFAR-10: accuracies of 100 sampled networks, of their average, and under rejection.

The forms of the paper's tables: the lowest and the highest accuracy among the sampled networks, that of the ensemble,
and the ensemble's on the least uncertain part of the test set (by total uncertainty), for each strength λ.

    python -m benchmarks.reproduce.adversarial_sampling --seeds 0 1 2 --json adversarial.json
    python -m benchmarks.reproduce.adversarial_sampling --data cifar10 --images 50000 --epochs 200 --device cuda
"""

from __future__ import annotations

import argparse
import copy
import functools

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pyrobnn as pb
from benchmarks.networks import resnet20
from benchmarks.reproduce import datasets
from benchmarks.reproduce.experiment import Batches, Experiment, Row, arguments, flip_and_shift, subset
from pyrobnn.guides import MAP, MeanField
from pyrobnn.objectives import AdversarialELBO

STRENGTHS = (0.0, 0.2, 0.5, 0.8, 1.0)


def network() -> nn.Module:
    """A perceptron with two hidden layers."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10)
    )


def run(seed: int, options: argparse.Namespace) -> dict[str, Row]:
    """All strengths with one seed."""
    mnist = options.data == "mnist"
    train = subset(datasets.mnist() if mnist else datasets.cifar10(), options.images, seed)
    test = datasets.mnist("t10k") if mnist else datasets.cifar10("test")
    test = test[0][: options.test], test[1][: options.test]
    if options.quick:
        train, test = (train[0][:200], train[1][:200]), (test[0][:200], test[1][:200])
    train, test = ((F.avg_pool2d(x, options.shrink), y) for x, y in (train, test))
    loader = Batches(*train, batch_size=100, augment=None if mnist else flip_and_shift)
    fit = functools.partial(pb.fit, loader=loader, lr=options.lr, seed=seed, device=options.device, progress=False)
    torch.manual_seed(seed)
    net = network() if mnist else resnet20(width=options.width)
    prior = dist.Normal(0.0, options.prior)
    start = pb.SupervisedModel(net, pb.likelihoods.Categorical(), prior, num_data=len(train[0]))
    init = None
    if options.pretrain:
        point = MAP(start)
        fit(start, point, epochs=1 if options.quick else options.pretrain)
        init = {name: value[0] for name, value in point.sample(1).items()}
    rows = {}
    for strength in options.strengths:
        model = copy.deepcopy(start)
        guide = MeanField(model, init, init_scale=options.init_scale)
        elbo = AdversarialELBO(strength, options.step_size, options.steps, temperature=options.temperature)
        fit(model, guide, epochs=1 if options.quick else options.epochs, elbo=elbo)
        if not mnist:  # a network with BatchNorm, evaluated under draws other than those of training
            pb.recalibrate_batch_norm(model, guide, loader)
        rows[f"λ = {strength}"] = evaluate(model, guide, test, 10 if options.quick else options.draws)
    return rows


def evaluate(model: pb.SupervisedModel, guide: MeanField, test: tuple[Tensor, Tensor], draws: int) -> Row:
    """Accuracies in per cent."""
    x, y = test
    prediction = pb.predict(model, guide, x, num_samples=draws, return_draws=True, seed=0, max_bytes=2**30)
    assert prediction.draws is not None
    single = (prediction.draws.argmax(-1).cpu() == y).float().mean(-1) * 100
    correct = (prediction.mean.argmax(-1).cpu() == y).float() * 100
    row = {
        "lowest": float(single.min()),
        "mean": float(single.mean()),
        "highest": float(single.max()),
        "ensembled": float(correct.mean()),
        "NLL": float(-prediction.log_prob(y.to(prediction.mean.device)).mean()),
    }
    order = prediction.total.cpu().argsort()
    for fraction in (0.2, 0.4, 0.6, 0.8):
        row[f"retain {fraction:.0%}"] = float(correct[order[: int(fraction * len(y))]].mean())
    row["scale"] = float(guide.flat_log_scale.detach().exp().mean())
    return row


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--data", choices=("mnist", "cifar10"), default="mnist", help="cifar10 takes ResNet-20")
    parser.add_argument("--width", type=int, default=16, help="channels of ResNet-20's first stage")
    parser.add_argument("--test", type=int, default=10_000, help="test images (default %(default)s)")
    parser.add_argument("--draws", type=int, default=100, help="sampled networks (default %(default)s)")
    parser.add_argument("--images", type=int, default=5000, help="training images (default %(default)s)")
    parser.add_argument("--shrink", type=int, default=1, help="average this many pixels a side (default %(default)s)")
    parser.add_argument("--pretrain", type=int, default=0, help="epochs of the point the posterior starts from")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--prior", type=float, default=0.3, help="prior standard deviation (default %(default)s)")
    parser.add_argument("--init-scale", type=float, default=0.02)
    parser.add_argument("--temperature", type=float, default=0.1, help="weight of the KL (default %(default)s)")
    parser.add_argument("--step-size", type=float, default=0.02)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--strengths", type=float, nargs="+", default=list(STRENGTHS))
    Experiment("Adversarial Sampling, accuracy in per cent", run).main(parser)


if __name__ == "__main__":
    main()
