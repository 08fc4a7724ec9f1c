"""Posteriors on MNIST or CIFAR-10, from scratch and by Bayesian fine-tuning: quality, unknown inputs, cost.

Accuracy, NLL and ECE on the test images; AUROC of notMNIST, Fashion-MNIST, KMNIST and perturbed test images against
them by mutual information (by entropy for the point estimate, which has none); training time as a multiple of MAP's,
to which fine-tuning, SWAG and Laplace add their own part; time of a prediction per draw. "NLL of one" is the mean NLL
of single draws: for an ensemble, that of its members. The uncertainty regularizer sees perturbed images made of half a
batch. "MAP, as many epochs more" is fine-tuning with a point: what the epochs alone are worth.

``--tune`` chooses one setting for each method (:data:`SETTINGS`) by its NLL on 2,000 validation images, taken from the
training set. With the regularizer the score is one minus the AUROC of perturbed validation images, plus one for each
per cent of accuracy below that of the same fine-tuning without it, less half a per cent. Unknown images are not used.

    python -m benchmarks.reproduce.posteriors --tune --seeds 3 4 5 --json posteriors.json
    python -m benchmarks.reproduce.posteriors --methods "*regularized*"
    python -m benchmarks.reproduce.posteriors --tune --data cifar10 --network resnet20 --images 50000 --device cuda
"""

from __future__ import annotations

import argparse
import copy
import functools
import sys
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
from benchmarks.reproduce.experiment import Batches, Experiment, Row, arguments, flip_and_shift, validation_subset
from benchmarks.reproduce.tuning import Scores, Setting, choose
from pyrobnn import guides
from pyrobnn.metrics import accuracy, auroc, expected_calibration_error
from pyrobnn.objectives import perturbed

EPSILON = {"mnist": 0.5, "cifar10": 0.1}
"""Amplitude of the uniform noise on perturbed images, whose pixels lie between 0 and 1."""

VALIDATION = 2000
"""Images that a tuning seed validates on."""

REGULARIZED = ", regularized"
"""What the names of fine-tuning with the regularizer end in."""


def _rate(default: float) -> Setting:
    return Setting("learning rate", default, (default / 3, default, default * 3))


SETTINGS = {
    "MAP": _rate(1e-3),
    "MAP, as many epochs more": _rate(2e-4),
    "mean field from scratch": _rate(1e-3),
    "fine-tuned mean field": _rate(2e-4),
    f"fine-tuned mean field{REGULARIZED}": Setting("multiple of the default rate", 1.0, (0.3, 1.0, 3.0)),
    "fine-tuned low-rank sharing": _rate(2e-4),
    f"fine-tuned low-rank sharing{REGULARIZED}": Setting("rate of factors / of weights", 20.0, (5.0, 20.0, 80.0)),
    "fine-tuned last-layer ensemble": _rate(2e-4),
    "MC dropout": Setting("p", 0.1, (0.05, 0.1, 0.2)),
    "ensemble of 5": _rate(1e-3),
    "SWAG": _rate(2e-2),
    "Laplace, last layer": Setting("multiple of the prior precision", 10.0, (1.0, 10.0, 100.0)),
}
"""What is chosen for each method: three candidates each."""

RATE_TO_DISAGREE = {"cnn": 2e-3, "resnet20": 4e-4}
"""Learning rates of ``pb.finetune`` with the regularizer, for the depths of the two networks."""

Fitted = tuple[pb.SupervisedModel, guides.Guide]
Method = tuple[Callable[[float], "Fitted"], int, bool]
"""Fits with a value of the setting; the draws of a prediction; whether its time comes on top of MAP's."""


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
        count, held = (300, 100) if options.quick else (options.images, VALIDATION)
        mnist = options.data == "mnist"
        data, self.held = validation_subset(datasets.mnist() if mnist else datasets.cifar10(), count, held, seed)
        self.batches = Batches(*data, augment=None if mnist else flip_and_shift)
        self.prior_scale = (2e-4 * count) ** -0.5  # weight decay 2e-4 in the mean loss
        self.epochs = 1 if options.quick else options.epochs
        torch.manual_seed(seed)
        self.start = network() if options.network == "cnn" else resnet20(data[0].shape[1], options.width)
        self.head = [name for name, module in self.start.named_modules() if isinstance(module, nn.Linear)][-1]

    def model(self, net: nn.Module | None = None, precision: float = 1.0) -> pb.SupervisedModel:
        """The Bayesian network, from the initial or from given weights; a multiple of the prior's precision."""
        prior = dist.Normal(0.0, self.prior_scale * precision**-0.5)
        net = self.start if net is None else net
        return pb.SupervisedModel(net, pb.likelihoods.Categorical(), prior, num_data=len(self.batches.x))

    def fit(self, make: Callable[[pb.SupervisedModel], guides.Guide], **options: Any) -> Fitted:
        """Trains from the initial weights."""
        model = self.model()
        torch.manual_seed(self.seed)  # members draw their starts, whatever was fitted before
        guide = make(model)
        settings = {"epochs": self.epochs, "lr": 1e-3, "seed": self.seed, "progress": False} | options
        pb.fit(model, guide, self.batches, device=self.options.device, **settings)
        return model, guide

    def finetune(self, net: nn.Module, posterior: Any, **options: Any) -> Fitted:
        """Bayesian fine-tuning of the MAP network."""
        settings = {"epochs": 1 if self.options.quick else self.options.finetune_epochs, "seed": self.seed}
        settings |= {"device": self.options.device, "progress": False} | options
        return pb.finetune(net, self.batches, posterior, prior=dist.Normal(0.0, self.prior_scale), **settings)

    def point(self, model: pb.SupervisedModel) -> guides.Guide:
        """The network itself, trained on."""
        return guides.MAP(model, init=model.net.network)

    def last_layer_ensemble(self, model: pb.SupervisedModel) -> guides.Guide:
        """LiBRe's posterior: the last layer in ten members, the rest one point."""
        start = model.net.network
        members = {"num_members": 10, "members_per_step": 1}
        head = functools.partial(guides.DeltaMixture, **members, init=start, spread=0.1)
        return guides.Composite(model, [(f"net.{self.head}.*", head), ("*", functools.partial(guides.MAP, init=start))])

    def swag(self, net: nn.Module, lr: float) -> Fitted:
        """A constant step from the MAP network, an iterate collected each epoch."""
        model = self.model(net)
        guide = guides.SWAG(model)
        sgd = functools.partial(torch.optim.SGD, momentum=0.9)
        epochs = 2 if self.options.quick else self.epochs // 2
        collect = [guide.collector(start=0)]
        settings = {"epochs": epochs, "lr": lr, "optimizer": sgd, "callbacks": collect, "progress": False}
        pb.fit(model, guide, self.batches, device=self.options.device, seed=self.seed, **settings)
        if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
            device = self.options.device
            pb.recalibrate_batch_norm(model, guide, [x.to(device) for x, _ in self.batches])
        return model, guide

    def laplace(self, net: nn.Module, precision: float) -> Fitted:
        """The last layer's Gaussian at the MAP network, under a prior of a multiple of the precision."""
        model = self.model(net, precision)
        model.to(self.options.device)
        x, y = (part.to(self.options.device) for part in (self.batches.x, self.batches.y))
        every_row = list(zip(x.split(500), y.split(500), strict=True))
        return model, guides.Laplace(model).fit(model, every_row)


def half_of_them(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Auxiliary inputs made of half a batch, as in the paper."""
    return lambda x: change(x[: len(x) // 2])


def run(seed: int, options: argparse.Namespace) -> dict[str, Row]:
    """All posteriors with one seed, at the settings chosen."""
    trainer, images = Trainer(options, seed), _images(seed, options)
    rows: dict[str, Row] = {}

    def record(name: str, method: Method) -> Fitted:
        fit, count, adds = method
        started = time.process_time()
        fitted = fit(options.settings[name])
        seconds = time.process_time() - started
        rows[name] = evaluate(*fitted, images, count)
        base = rows["MAP"].get("seconds", seconds)
        rows[name] |= {"seconds": seconds, "× MAP": seconds / base + adds}
        return fitted

    trained = network_of(record("MAP", map_method(trainer)))  # where the others start, and their measure
    for name, method in asked(trainer, trained).items():
        record(name, method)
    for row in rows.values():
        del row["seconds"]
    return rows


def tune(seed: int, options: argparse.Namespace) -> Scores:
    """Scores of all candidates on validation images; the others start from the best MAP network."""
    trainer = Trainer(options, seed)
    images = _validation_images(trainer)
    scores: dict[str, dict[float, float]] = {}
    rows: dict[str, dict[float, Row]] = {}
    networks: dict[float, nn.Module] = {}

    def attempt(name: str, method: Method) -> None:
        fit, count, _ = method
        rows[name], scores[name] = {}, {}
        for value in SETTINGS[name].candidates:
            fitted = fit(value)
            row = rows[name][value] = evaluate(*fitted, images, count)
            scores[name][value] = row["NLL"]
            if name == "MAP":
                networks[value] = network_of(fitted)
            print(f"tuning seed {seed}  {name}, {SETTINGS[name].name} {value:g}: {row}", file=sys.stderr, flush=True)
        without = name.removesuffix(REGULARIZED)
        if name != without:
            least = rows[without][choose([{without: scores[without]}])[without]]["accuracy"] - 0.5
            for value, row in rows[name].items():
                scores[name][value] = 1.0 - row["perturbed"] + max(0.0, least - row["accuracy"])

    attempt("MAP", map_method(trainer))
    trained = networks[choose([scores])["MAP"]]
    for name, method in asked(trainer, trained).items():
        attempt(name, method)
    return scores


def network_of(fitted: Fitted) -> nn.Module:
    """The network with a point's weights."""
    model, guide = fitted
    trained = copy.deepcopy(model.net.network).requires_grad_()  # the model's own are placeholders for draws
    with torch.no_grad():
        for name, value in guide.sample(1).items():
            trained.get_parameter(name.removeprefix("net.")).copy_(value[0])
    return trained


def map_method(trainer: Trainer) -> Method:
    """The point that the others start from."""
    return (lambda lr: trainer.fit(guides.MAP, lr=lr)), 1, False


def asked(trainer: Trainer, trained: nn.Module) -> dict[str, Method]:
    """The methods that ``--methods`` names; with the regularizer, the same without it as well."""
    options = trainer.options
    found = methods(trainer, trained, 5 if options.quick else options.draws)
    names = {name for name in found if any(fnmatchcase(name, pattern) for pattern in options.methods)}
    names |= {name.removesuffix(REGULARIZED) for name in names}
    return {name: method for name, method in found.items() if name in names}


def methods(trainer: Trainer, trained: nn.Module, draws: int) -> dict[str, Method]:
    """All methods beside MAP."""
    options = trainer.options
    finetune = functools.partial(trainer.finetune, trained)
    noise = half_of_them(perturbed(EPSILON[options.data]))
    rate = RATE_TO_DISAGREE[options.network]
    mean_field = functools.partial(guides.MeanField, init_scale=3e-3)
    ensemble = functools.partial(guides.DeltaMixture, num_members=5)

    def share(ratio: float) -> Fitted:
        return finetune("low_rank_sharing", auxiliary=noise, lr=rate, scale_lr=ratio * rate)

    return {
        "MAP, as many epochs more": (lambda lr: finetune(trainer.point, lr=lr), 1, True),
        "mean field from scratch": (lambda lr: trainer.fit(mean_field, lr=lr), draws, False),
        "fine-tuned mean field": (lambda lr: finetune("mean_field", lr=lr), draws, True),
        f"fine-tuned mean field{REGULARIZED}": (
            lambda multiple: finetune("mean_field", auxiliary=noise, lr=multiple * rate),
            draws,
            True,
        ),
        "fine-tuned low-rank sharing": (lambda lr: finetune("low_rank_sharing", lr=lr), 5, True),
        f"fine-tuned low-rank sharing{REGULARIZED}": (share, 5, True),
        "fine-tuned last-layer ensemble": (lambda lr: finetune(trainer.last_layer_ensemble, lr=lr), 10, True),
        "MC dropout": (lambda p: trainer.fit(functools.partial(guides.MCDropout, p=p)), draws, False),
        "ensemble of 5": (lambda lr: trainer.fit(ensemble, lr=lr), 5, False),
        "SWAG": (lambda lr: trainer.swag(trained, lr), draws, True),
        "Laplace, last layer": (lambda precision: trainer.laplace(trained, precision), draws, True),
    }


def _images(seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Test images with labels, and the unknown ones, of the same shape: the last of each set, since defaults of the
    library were found with the first."""
    mnist = options.data == "mnist"
    x, y = datasets.mnist("t10k") if mnist else datasets.cifar10("test")
    known, count = (200, 200) if options.quick else (options.test, options.unknown)
    others = {"notMNIST": datasets.not_mnist()[0], "Fashion": datasets.fashion()[0], "KMNIST": datasets.kmnist()[0]}
    if not mnist:
        others = {name: F.pad(value, (2, 2, 2, 2)).expand(-1, 3, -1, -1) for name, value in others.items()}
    images = {"known": (x[-known:], y[-known:])} | {name: value[-count:] for name, value in others.items()}
    return images | {"perturbed": _noisy(x[-count:], EPSILON[options.data], seed)}


def _validation_images(trainer: Trainer) -> dict[str, Any]:
    """Validation images with labels, and half of them perturbed."""
    x, y = trainer.held
    return {"known": (x, y), "perturbed": _noisy(x[: len(x) // 2], EPSILON[trainer.options.data], trainer.seed)}


def _noisy(x: Tensor, epsilon: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return x + (2.0 * torch.rand(x.shape, generator=generator) - 1.0) * epsilon


def evaluate(model: pb.SupervisedModel, guide: guides.Guide, images: dict[str, Any], draws: int) -> Row:
    """One row of the table."""
    x, y = images["known"]
    started = time.process_time()
    known = pb.predict(model, guide, x, num_samples=draws, seed=0, return_draws=True)
    seconds = time.process_time() - started
    probs = known.mean.cpu()
    assert known.draws is not None
    row = {
        "accuracy": float(accuracy(probs, y)) * 100,
        "NLL": float(-known.log_prob(y.to(known.mean.device)).mean()),
        "NLL of one": float(-known.draws.cpu()[:, torch.arange(len(y)), y].clamp_min(1e-30).log().mean()),
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
    parser.add_argument("--methods", nargs="+", default=["*"], metavar="NAME", help="or patterns of names, beside MAP")
    Experiment("Posteriors, from scratch and by fine-tuning", run, settings=SETTINGS, tune=tune).main(parser)


if __name__ == "__main__":
    main()
