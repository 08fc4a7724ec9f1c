"""The rows of the demo's table: one posterior each, of the same model, measured in the same way."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyrobnn import guides
from pyrobnn.demo.digits import Digits, make_model, network
from pyrobnn.guides import Guide
from pyrobnn.metrics.calibration import expected_calibration_error
from pyrobnn.metrics.detection import auroc
from pyrobnn.metrics.scores import accuracy, brier, nll
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.objectives import ELBO
from pyrobnn.prediction import Prediction, predict
from pyrobnn.training import History, fit, make_optimizer, train_step

__all__ = ["COLUMNS", "METHODS", "TIMINGS", "Method", "Result", "evaluate", "fit_method", "step_ratios"]


LEARNING_RATE = 1e-2


def train_by_adam(
    model: SupervisedModel,
    guide: Guide,
    data: Digits,
    epochs: int,
    seed: int,
    progress: bool,
    lr: float = LEARNING_RATE,
) -> History:
    """Adam with a learning rate that falls along a cosine."""
    cosine = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs)
    options: dict[str, Any] = {"lr": lr, "scheduler": cosine, "seed": seed}
    return _fit(model, guide, data.loader(), epochs=epochs, progress=progress, **options)


def train_swag(
    model: SupervisedModel, guide: guides.SWAG, data: Digits, epochs: int, seed: int, progress: bool
) -> History:
    """SWAG goes on from the point for half as many epochs (at least the two it takes), by SGD at a constant rate."""
    history = train_by_adam(model, guide, data, epochs, seed, progress)
    sgd = partial(torch.optim.SGD, momentum=0.9)
    options: dict[str, Any] = {"lr": 0.05, "optimizer": sgd, "callbacks": [guide.collector(start=0)]}
    _fit(model, guide, data.loader(), epochs=max(2, epochs // 2), progress=progress, **options)
    return history


def train_laplace(
    model: SupervisedModel, guide: guides.Laplace, data: Digits, epochs: int, seed: int, progress: bool
) -> History:
    """Laplace takes the curvature at the point, and the prior's precision that serves the validation data best."""
    history = train_by_adam(model, guide, data, epochs, seed, progress)
    held_out = [data.validation]
    guide.fit(model, data.loader(), prior_precision="held_out", held_out=held_out, progress=progress)
    return history


@dataclass(frozen=True)
class Method:
    """A posterior family to compare.

    Attributes:
        name: As in the table.
        make_guide: Builds the guide of a model.
        num_samples: Draws for predictions; 1 for a point estimate, whose draws do not differ.
        train: Fits the guide, called with model, guide, data, epochs, seed and whether to show progress.
    """

    name: str
    make_guide: Callable[[SupervisedModel], Guide]
    num_samples: int = 100
    train: Callable[..., History] = train_by_adam


def _low_rank_readout(model: SupervisedModel) -> Guide:
    """Correlated weights in the last layer, a point below it."""
    readout = partial(guides.LowRankNormal, init_scale=0.02)
    return guides.Composite(model, [("net.readout.*", readout), ("*", guides.MAP)])


METHODS = (
    Method("MAP", guides.MAP, num_samples=1),
    Method("mean field", partial(guides.MeanField, init_scale=0.02)),
    # Weights of the low-rank factor are of the size of standard deviations: smaller steps for them.
    Method("last-layer low rank", _low_rank_readout, train=partial(train_by_adam, lr=0.3 * LEARNING_RATE)),
    Method("last-layer Laplace", guides.Laplace, train=train_laplace),
    Method("SWAG", guides.SWAG, train=train_swag),
    Method("MC dropout", guides.MCDropout),
    Method("deep ensemble of 5", guides.DeltaMixture, num_samples=5),
)
"""The rows in order; a new posterior family is one more line."""

TIMINGS = ("step_ratio", "seconds")
"""The measured times among the metrics: all else follows from the seed."""

COLUMNS = (
    ("method", "method", ""),
    ("accuracy", "accuracy", ".3f"),
    ("NLL", "nll", ".3f"),
    ("ECE", "ece", ".3f"),
    ("Brier", "brier", ".3f"),
    ("AUROC MI", "auroc_mutual_information", ".3f"),
    ("AUROC H", "auroc_entropy", ".3f"),
    ("step", "step_ratio", ".2f"),
    ("seconds", "seconds", ".1f"),
)
"""The table: title, key of the metric, format."""


@dataclass(frozen=True)
class Result:
    """A fitted method and what it predicts.

    Attributes:
        method: The method.
        model: The model.
        guide: Its fitted guide.
        history: The training's history.
        seconds: Wall time of training, with what follows it, and prediction.
        test: Predictions of the held-out images of known classes.
        unknown: Predictions of the images of unknown classes.
    """

    method: Method
    model: SupervisedModel
    guide: Guide
    history: History
    seconds: float
    test: Prediction
    unknown: Prediction


def fit_method(method: Method, data: Digits, epochs: int, seed: int, progress: bool = False) -> Result:
    """Fits a method and predicts; every method starts from the same network.

    Raises:
        KeyboardInterrupt: If the training was interrupted.
    """
    started = time.perf_counter()
    pyro.set_rng_seed(seed)
    model = make_model(num_data=len(data.train[1]))
    guide = method.make_guide(model)
    history = method.train(model, guide, data, epochs, seed, progress)
    test, unknown = (
        predict(model, guide, images, method.num_samples, seed=seed) for images, _ in (data.test, data.unknown)
    )
    return Result(method, model, guide, history, time.perf_counter() - started, test, unknown)


def evaluate(result: Result, labels: Tensor) -> dict[str, str | float | None]:
    """The metrics of one method, except its step time.

    Args:
        result: The fitted method.
        labels: Labels of the held-out images of known classes.

    Returns:
        Accuracy, NLL (nats), ECE (15 bins) and Brier score on known classes; AUROC of unknown against known classes
        by mutual information (None for a point estimate, which has none) and by predictive entropy; the final ELBO
        (nats per datum; None where the divergence is no KL); seconds of training and prediction.
    """
    probs, is_point = result.test.mean, result.method.num_samples == 1
    has_kl = result.history.divergence_name == "KL"
    return {
        "method": result.method.name,
        "accuracy": accuracy(probs, labels).item(),
        "nll": nll(probs, labels).item(),
        "ece": expected_calibration_error(probs, labels).item(),
        "brier": brier(probs, labels).item(),
        "auroc_mutual_information": None if is_point else auroc(result.test.epistemic, result.unknown.epistemic),
        "auroc_entropy": auroc(result.test.total, result.unknown.total),
        "elbo": result.history.elbo[-1] if has_kl else None,
        "seconds": result.seconds,
    }


def step_ratios(methods: Sequence[Method], data: Digits, rounds: int = 60) -> dict[str, float]:
    """Time of a training step as a multiple of the plain network's, by method.

    Each round takes one step of each kind on the same batch with the same optimizer. Times are those of the processor,
    because a busy machine would stretch them at random; the result is the ratio of the medians.
    """
    num_data, batch = len(data.train[1]), next(iter(data.loader()))
    steps = {"deterministic": _deterministic_step(*batch)}
    for method in methods:
        model = make_model(num_data)
        guide = method.make_guide(model)
        optimizer = make_optimizer(model, guide)
        steps[method.name] = partial(train_step, model, guide, ELBO(), optimizer, tuple(batch))
    times: dict[str, list[float]] = {name: [] for name in steps}
    with pyro.validation_enabled(False):  # as in `fit` after its first epoch
        for _ in range(rounds):
            for name, step in steps.items():
                started = time.process_time()
                step()
                times[name].append(time.process_time() - started)
    base = median(times.pop("deterministic"))
    return {name: median(values) / base for name, values in times.items()}


def _fit(*args: Any, **options: Any) -> History:
    """Training that an interruption ends: ``fit`` keeps what was learned, but nobody waits for half a comparison."""
    history = fit(*args, **options)
    if history.stopped == "interrupted":
        raise KeyboardInterrupt
    return history


def _deterministic_step(x: Tensor, y: Tensor) -> Callable[[], object]:
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), fused=True)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()

    return step
