"""Posteriors on MNIST or CIFAR-10, from scratch and by Bayesian fine-tuning: quality, unknown inputs, cost.

Accuracy, NLL and ECE on the test images; AUROC of notMNIST, Fashion-MNIST, KMNIST and perturbed test images against
them by mutual information (by entropy for the point estimate, which has none); training time as a multiple of MAP's,
to which fine-tuning, SWAG and Laplace add their own part; time of a prediction per draw. The uncertainty regularizer
sees perturbed images made of half a batch, and may have a learning rate of its own.

    python -m benchmarks.reproduce.posteriors --seeds 0 1 2 --json posteriors.json
    python -m benchmarks.reproduce.posteriors --methods "*regularized*"
    python -m benchmarks.reproduce.posteriors --data cifar10 --network resnet20 --images 50000 --device cuda
"""

from __future__ import annotations

import argparse
import copy
import functools
import time
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pyrobnn as pb
from benchmarks.networks import resnet20
from benchmarks.reproduce import datasets
from benchmarks.reproduce.experiment import Batches, Experiment, Row, arguments, flip_and_shift, subset
from pyrobnn import guides
from pyrobnn.metrics import accuracy, auroc, expected_calibration_error
from pyrobnn.objectives import perturbed

EPSILON = {"mnist": 0.5, "cifar10": 0.1}
"""Amplitude of the uniform noise on perturbed images, whose pixels lie between 0 and 1."""

Fitted = tuple[pb.SupervisedModel, guides.Guide]


def network() -> nn.Module:
    """A small convolutional network, 203,000 weights."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, 2, 2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 5, 2, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1568, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


class Trainer:
    """One seed's data, and the ways to fit a posterior to them."""

    def __init__(self, options: argparse.Namespace, seed: int) -> None:
        self.options, self.seed = options, seed
        count = 300 if options.quick else options.images
        mnist = options.data == "mnist"
        data = subset(datasets.mnist() if mnist else datasets.cifar10(), count, seed)
        self.batches = Batches(*data, augment=None if mnist else flip_and_shift)
        self.prior = dist.Normal(0.0, (2e-4 * count) ** -0.5)  # weight decay 2e-4 in the mean loss
        self.epochs = 1 if options.quick else options.epochs
        torch.manual_seed(seed)
        self.start = network() if options.network == "cnn" else resnet20(data[0].shape[1], options.width)
        self.head = [name for name, module in self.start.named_modules() if isinstance(module, nn.Linear)][-1]

    def model(self, net: nn.Module | None = None) -> pb.SupervisedModel:
        """The Bayesian network, from the initial or from given weights."""
        net = self.start if net is None else net
        return pb.SupervisedModel(net, pb.likelihoods.Categorical(), self.prior, num_data=len(self.batches.x))

    def fit(self, make: Callable[[pb.SupervisedModel], guides.Guide], **options: Any) -> Fitted:
        """Trains from the initial weights."""
        model = self.model()
        guide = make(model)
        settings = {"epochs": self.epochs, "lr": 1e-3, "seed": self.seed, "progress": False} | options
        pb.fit(model, guide, self.batches, device=self.options.device, **settings)
        return model, guide

    def finetune(self, net: nn.Module, posterior: Any, **options: Any) -> Fitted:
        """Bayesian fine-tuning of the MAP network."""
        settings = {"epochs": 1 if self.options.quick else self.options.finetune_epochs, "seed": self.seed}
        settings |= {"device": self.options.device, "progress": False} | options
        return pb.finetune(net, self.batches, posterior, prior=self.prior, **settings)

    def last_layer_ensemble(self, model: pb.SupervisedModel) -> guides.Guide:
        """LiBRe's posterior: the last layer in ten members, the rest one point."""
        start = model.net.network
        members = {"num_members": 10, "members_per_step": 1}
        head = functools.partial(guides.DeltaMixture, **members, init=start, spread=0.1)
        return guides.Composite(model, [(f"net.{self.head}.*", head), ("*", functools.partial(guides.MAP, init=start))])

    def swag(self, net: nn.Module) -> Fitted:
        """A constant step from the MAP network, an iterate collected each epoch."""
        model = self.model(net)
        guide = guides.SWAG(model)
        sgd = functools.partial(torch.optim.SGD, momentum=0.9)
        epochs = 2 if self.options.quick else self.epochs // 2
        collect = [guide.collector(start=0)]
        settings = {"epochs": epochs, "lr": 2e-2, "optimizer": sgd, "callbacks": collect, "progress": False}
        pb.fit(model, guide, self.batches, device=self.options.device, **settings)
        if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
            device = self.options.device
            pb.recalibrate_batch_norm(model, guide, [x.to(device) for x, _ in self.batches])
        return model, guide

    def laplace(self, net: nn.Module) -> Fitted:
        """The last layer's Gaussian at the MAP network, prior precision by evidence."""
        model = self.model(net)
        model.to(self.options.device)
        x, y = (part.to(self.options.device) for part in (self.batches.x, self.batches.y))
        every_row = list(zip(x.split(500), y.split(500), strict=True))
        guide = guides.Laplace(model).fit(model, every_row)
        guide.optimize_prior_precision()
        return model, guide


def half_of_them(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Auxiliary inputs made of half a batch, as in the paper."""
    return lambda x: change(x[: len(x) // 2])


def run(seed: int, options: argparse.Namespace) -> dict[str, Row]:
    """All posteriors with one seed."""
    trainer, images = Trainer(options, seed), _images(seed, options)
    rows: dict[str, Row] = {}
    draws = 5 if options.quick else options.draws

    def record(name: str, fit: Callable[[], Fitted], count: int, adds: bool = False) -> Fitted:
        started = time.process_time()
        fitted = fit()
        seconds = time.process_time() - started
        rows[name] = evaluate(*fitted, images, count)
        base = rows["MAP"].get("seconds", seconds)
        rows[name] |= {"seconds": seconds, "× MAP": seconds / base + adds}
        return fitted

    model, guide = record("MAP", lambda: trainer.fit(guides.MAP), 1)  # where the others start, and their measure
    trained = copy.deepcopy(model.net.network).requires_grad_()  # the model's own are placeholders for draws
    with torch.no_grad():
        for name, value in guide.sample(1).items():
            trained.get_parameter(name.removeprefix("net.")).copy_(value[0])
    for name, (fit, count, adds) in methods(trainer, trained, draws).items():
        if any(fnmatchcase(name, pattern) for pattern in options.methods):
            record(name, fit, count, adds)
    for row in rows.values():
        del row["seconds"]
    return rows


def methods(trainer: Trainer, trained: nn.Module, draws: int) -> dict[str, tuple[Callable[[], Fitted], int, bool]]:
    """Of each method: how to fit it, the draws of a prediction, and whether its time comes on top of MAP's."""
    finetune = functools.partial(trainer.finetune, trained)
    noise = half_of_them(perturbed(EPSILON[trainer.options.data]))
    regularized = functools.partial(finetune, auxiliary=noise, lr=trainer.options.regularized_lr)
    mean_field = functools.partial(guides.MeanField, init_scale=3e-3)
    ensemble = functools.partial(guides.DeltaMixture, num_members=5)
    return {
        "mean field from scratch": (lambda: trainer.fit(mean_field), draws, False),
        "fine-tuned mean field": (lambda: finetune("mean_field"), draws, True),
        "fine-tuned mean field, regularized": (lambda: regularized("mean_field"), draws, True),
        "fine-tuned low-rank sharing": (lambda: finetune("low_rank_sharing"), 5, True),
        "fine-tuned low-rank sharing, regularized": (lambda: regularized("low_rank_sharing"), 5, True),
        "fine-tuned last-layer ensemble": (lambda: finetune(trainer.last_layer_ensemble), 10, True),
        "MC dropout": (lambda: trainer.fit(functools.partial(guides.MCDropout, p=0.1)), draws, False),
        "ensemble of 5": (lambda: trainer.fit(ensemble), 5, False),
        "SWAG": (lambda: trainer.swag(trained), draws, True),
        "Laplace, last layer": (lambda: trainer.laplace(trained), draws, True),
    }


def _images(seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Test images with labels, and the unknown ones, of the same shape."""
    mnist = options.data == "mnist"
    x, y = datasets.mnist("t10k") if mnist else datasets.cifar10("test")
    count = 200 if options.quick else options.unknown
    others = {"notMNIST": datasets.not_mnist()[0], "Fashion": datasets.fashion()[0], "KMNIST": datasets.kmnist()[0]}
    if not mnist:
        others = {name: F.pad(value, (2, 2, 2, 2)).expand(-1, 3, -1, -1) for name, value in others.items()}
    torch.manual_seed(seed)
    epsilon = EPSILON[options.data]
    noisy = x[:count] + torch.empty_like(x[:count]).uniform_(-epsilon, epsilon)
    known = (x[:200], y[:200]) if options.quick else (x[: options.test], y[: options.test])
    return {"known": known, **{name: value[:count] for name, value in others.items()}, "perturbed": noisy}


def evaluate(model: pb.SupervisedModel, guide: guides.Guide, images: dict[str, Any], draws: int) -> Row:
    """One row of the table."""
    x, y = images["known"]
    started = time.process_time()
    known = pb.predict(model, guide, x, num_samples=draws, seed=0)
    seconds = time.process_time() - started
    probs = known.mean.cpu()
    row = {
        "accuracy": float(accuracy(probs, y)) * 100,
        "NLL": float(-known.log_prob(y.to(known.mean.device)).mean()),
        "ECE": float(expected_calibration_error(probs, y)),
        "ms a draw": seconds / draws * 1e3,
    }

    def score(prediction: pb.Prediction) -> Tensor:
        return (prediction.total if draws == 1 else prediction.epistemic).cpu()

    for name, unknown in images.items():
        if name != "known":
            row[name] = auroc(score(known), score(pb.predict(model, guide, unknown, num_samples=draws, seed=0)))
    return row


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--data", choices=("mnist", "cifar10"), default="mnist")
    parser.add_argument("--network", choices=("cnn", "resnet20"), default="cnn")
    parser.add_argument("--width", type=int, default=16, help="channels of ResNet-20's first stage")
    parser.add_argument("--draws", type=int, default=30, help="draws of a prediction (default %(default)s)")
    parser.add_argument("--test", type=int, default=10_000, help="test images (default %(default)s)")
    parser.add_argument("--unknown", type=int, default=1000, help="images of each unknown set (default %(default)s)")
    parser.add_argument("--images", type=int, default=10_000, help="training images (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=30, help="epochs of MAP and of what starts from scratch")
    parser.add_argument("--finetune-epochs", type=int, default=4)
    parser.add_argument("--regularized-lr", type=float, help="default: that of pb.finetune")
    parser.add_argument("--methods", nargs="+", default=["*"], metavar="NAME", help="or patterns of names, beside MAP")
    Experiment("Posteriors, from scratch and by fine-tuning", run).main(parser)


if __name__ == "__main__":
    main()
