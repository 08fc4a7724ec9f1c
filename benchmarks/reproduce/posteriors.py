"""Posteriors on MNIST, from scratch and by Bayesian fine-tuning: quality, unknown inputs, cost.

Accuracy, NLL and ECE on the test images; AUROC of notMNIST, Fashion-MNIST, KMNIST and perturbed test images against
them by mutual information (by entropy for the point estimate, which has none); training time as a multiple of MAP's,
to which fine-tuning, SWAG and Laplace add their own part; time of a prediction per draw.

    python -m benchmarks.reproduce.posteriors --seeds 0 1 2 --json posteriors.json
"""

from __future__ import annotations

import argparse
import copy
import functools
import time
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyrobnn as pb
from benchmarks.reproduce import datasets
from benchmarks.reproduce.experiment import Batches, Experiment, Row, arguments, subset
from pyrobnn import guides
from pyrobnn.calibration import expected_calibration_error
from pyrobnn.detection import auroc
from pyrobnn.elbo import perturbed

EPSILON = 0.5
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
        self.batches = Batches(*subset(datasets.mnist(), count, seed))
        self.prior = dist.Normal(0.0, (2e-4 * count) ** -0.5)  # weight decay 2e-4 in the mean loss
        self.epochs = 1 if options.quick else options.epochs
        torch.manual_seed(seed)
        self.start = network()

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

    def swag(self, net: nn.Module) -> Fitted:
        """A constant step from the MAP network, an iterate collected each epoch."""
        model = self.model(net)
        guide = guides.SWAG(model)
        sgd = functools.partial(torch.optim.SGD, momentum=0.9)
        epochs = 2 if self.options.quick else self.epochs // 2
        collect = [guide.collector(start=0)]
        pb.fit(model, guide, self.batches, epochs=epochs, lr=2e-2, optimizer=sgd, callbacks=collect, progress=False)
        return model, guide

    def laplace(self, net: nn.Module) -> Fitted:
        """The last layer's Gaussian at the MAP network, prior precision by evidence."""
        model = self.model(net)
        every_row = list(zip(self.batches.x.split(500), self.batches.y.split(500), strict=True))
        guide = guides.Laplace(model).fit(model, every_row)
        guide.optimize_prior_precision()
        return model, guide


def last_layer_ensemble(model: pb.SupervisedModel) -> guides.Guide:
    """LiBRe's posterior: the last layer in ten members, the rest one point."""
    start = model.net.network
    head = functools.partial(guides.DeltaMixture, num_members=10, init=start, spread=0.1)
    return guides.GuideMap(model, [("net.7.*", head), ("*", functools.partial(guides.Map, init=start))])


def run(seed: int, options: argparse.Namespace) -> dict[str, Row]:
    """All posteriors with one seed."""
    trainer, images = Trainer(options, seed), _images(seed, options.quick)
    rows: dict[str, Row] = {}

    def record(name: str, fit: Callable[[], Fitted], draws: int, adds: bool = False) -> Fitted:
        started = time.process_time()
        fitted = fit()
        seconds = time.process_time() - started
        rows[name] = evaluate(*fitted, images, draws)
        base = rows["MAP"].get("seconds", seconds)
        rows[name] |= {"seconds": seconds, "× MAP": seconds / base + adds}
        return fitted

    draws = 5 if options.quick else 50
    model, guide = record("MAP", lambda: trainer.fit(guides.Map), 1)
    trained = copy.deepcopy(model.net.network).requires_grad_()  # the model's own are placeholders for draws
    with torch.no_grad():
        for name, value in guide.sample(1).items():
            trained.get_parameter(name.removeprefix("net.")).copy_(value[0])
    record("mean field from scratch", lambda: trainer.fit(functools.partial(guides.MeanField, init_scale=3e-3)), draws)
    record("fine-tuned mean field", lambda: trainer.finetune(trained, "mean_field"), draws, adds=True)
    regularized = functools.partial(trainer.finetune, auxiliary=perturbed(EPSILON), lr=1e-3, scale_lr=1e-2, weight=3.0)
    record("… with the regulariser", lambda: regularized(trained, "mean_field"), draws, adds=True)
    record("fine-tuned low-rank sharing", lambda: trainer.finetune(trained, "low_rank_sharing"), 5, adds=True)
    record("fine-tuned last-layer ensemble", lambda: trainer.finetune(trained, last_layer_ensemble), 10, adds=True)
    record("MC dropout", lambda: trainer.fit(functools.partial(guides.MCDropout, p=0.1)), draws)
    record("ensemble of 5", lambda: trainer.fit(functools.partial(guides.DeltaMixture, num_members=5)), 5)
    record("SWAG", lambda: trainer.swag(trained), draws, adds=True)
    record("Laplace, last layer", lambda: trainer.laplace(trained), draws, adds=True)
    for row in rows.values():
        del row["seconds"]
    return rows


def _images(seed: int, quick: bool) -> dict[str, Any]:
    """Test images with labels, and the unknown ones."""
    x, y = datasets.mnist("t10k")
    count = 200 if quick else 2000
    others = {"notMNIST": datasets.not_mnist()[0], "Fashion": datasets.fashion()[0], "KMNIST": datasets.kmnist()[0]}
    torch.manual_seed(seed)
    noisy = x[:count] + torch.empty_like(x[:count]).uniform_(-EPSILON, EPSILON)
    known = (x[:200], y[:200]) if quick else (x, y)
    return {"known": known, **{name: value[:count] for name, value in others.items()}, "perturbed": noisy}


def evaluate(model: pb.SupervisedModel, guide: guides.Guide, images: dict[str, Any], draws: int) -> Row:
    """One row of the table."""
    x, y = images["known"]
    started = time.process_time()
    known = pb.predict(model, guide, x, num_samples=draws, seed=0)
    seconds = time.process_time() - started
    probs = known.mean.cpu()
    row = {
        "accuracy": float((probs.argmax(-1) == y).float().mean() * 100),
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
    parser.add_argument("--images", type=int, default=5000, help="training images (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=20, help="epochs of MAP and of what starts from scratch")
    parser.add_argument("--finetune-epochs", type=int, default=3)
    Experiment("Posteriors on MNIST, small convolutional network", run).main(parser)


if __name__ == "__main__":
    main()
