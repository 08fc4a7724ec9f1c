r"""What a network computes under posterior draws, before it becomes probabilities: what detectors are given.

A prediction has averaged, normalized log probabilities. Scores such as the energy need the outputs themselves,
:math:`f_k(x)` for each draw k, and scores of features need what the last layer is given, :math:`\varphi_k(x)`. Both are
computed batch by batch under the same K draws, so that memory is that of one batch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.core.arguments import check_int, check_positive_int
from pyrobnn.core.batches import Reader
from pyrobnn.core.explanations import explained
from pyrobnn.detection.last_layer_inputs import FeaturePredictor
from pyrobnn.guides.base import Guide
from pyrobnn.model.declarations import declared_likelihood
from pyrobnn.model.likelihoods import ClassLikelihood, Likelihood
from pyrobnn.model.likelihoods.predictions import ClassPrediction
from pyrobnn.model.likelihoods.reductions import KeptDraws, widened
from pyrobnn.prediction.predict import predict_batches
from pyrobnn.prediction.predictor import PredictorFactory

__all__ = ["NetworkOutputs", "network_outputs"]


@dataclass(frozen=True, eq=False)
class NetworkOutputs:
    """Outputs of a network at N inputs under K draws.

    Attributes:
        logits: Unnormalized log probabilities ``[K, N, C]``.
        features: What the last layer is given, ``[K, N, F]``; None if it was not asked for.
        weight: The last layer's weight matrix under each draw, ``[K, C, F]``; None without features, or if the outputs
            are not that matrix times the features, and a bias.
        bias: Its bias, ``[K, C]``.
        targets: Labels ``[N]``, if they are known.
        seed: The seed of the draws.
    """

    logits: Tensor
    features: Tensor | None = field(default=None, repr=False)
    weight: Tensor | None = field(default=None, repr=False)
    bias: Tensor | None = field(default=None, repr=False)
    targets: Tensor | None = field(default=None, repr=False)
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.logits, Tensor) or self.logits.dim() != 3 or not self.logits.is_floating_point():
            found = tuple(self.logits.shape) if isinstance(self.logits, Tensor) else type(self.logits).__name__
            raise ValueError(f"logits: expected a floating-point tensor [K, N, C], got {found}.")
        for name in ("features", "weight", "bias", "targets"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, Tensor):
                raise TypeError(f"{name}: expected a tensor or None, got {type(value).__name__}.")
        draws, rows = self.logits.shape[:2]
        if not draws or not rows:
            raise ValueError("logits: they hold no draws or no inputs.")
        wrong = ~self.logits.isfinite().all(-1).all(0)
        if bool(wrong.any()):
            raise ValueError(f"logits: those of input {int(wrong.nonzero()[0, 0])} are NaN or infinite; leave it out.")
        if self.features is not None and (self.features.dim() != 3 or self.features.shape[:2] != (draws, rows)):
            raise ValueError(
                f"features: expected shape [{draws}, {rows}, F] as the logits have, got {tuple(self.features.shape)}."
            )

    def __len__(self) -> int:
        return self.logits.shape[1]

    @property
    def num_samples(self) -> int:
        """Number K of draws."""
        return len(self.logits)

    @functools.cached_property
    def log_probs(self) -> Tensor:
        """Log probabilities under each draw, ``[K, N, C]``."""
        return self.logits.log_softmax(-1)

    @functools.cached_property
    def log_mean(self) -> Tensor:
        """The log of the mean probabilities, ``[N, C]``."""
        return self.log_probs.logsumexp(0) - math.log(self.num_samples)


@explained
def network_outputs(
    model: nn.Module,
    guide: Any,
    data: Any,
    num_samples: int = 20,
    *,
    features: bool = False,
    layer: str | None = None,
    batch: Reader | None = None,
    batch_size: int | None = None,
    predictor: str | PredictorFactory | None = None,
    likelihood: Likelihood | None = None,
    max_bytes: int = 256 * 2**20,
    seed: int = 0,
) -> Iterator[NetworkOutputs]:
    """Outputs of the network under draws, batch by batch; the same seed gives the same draws in every call.

    Args:
        model: A model with a likelihood of classes.
        guide: The posterior: a guide, or draws ``{site: [K, *site shape]}``.
        data: Inputs or a loader, as for :func:`pyrobnn.predict`. Memory is that of one batch.
        num_samples: Number K of draws.
        features: Also record what the last layer is given. Draws are then run one by one.
        layer: The layer whose inputs are the features, by its name in the network; None takes the one with a weight
            matrix that ran last.
        batch: How to read what the loader yields, as for :func:`pyrobnn.predict`.
        batch_size: Rows that the network sees at a time, as for :func:`pyrobnn.predict`; a tensor of inputs is cut
            into batches of this size.
        predictor: As for :func:`pyrobnn.predict`; a linearized network has no features under a draw.
        likelihood: What the outputs mean; the model's own if None.
        max_bytes: Budget for draws and activations.
        seed: Fixes the draws.

    Returns:
        An iterator of :class:`NetworkOutputs`.

    Raises:
        TypeError: If the likelihood is none of classes, or an argument is of the wrong kind.
        ValueError: If there are several labels for each input, there are no inputs or no such layer, a number is out of
            range, or features of a linearized network are asked for.
    """
    own = likelihood if likelihood is not None else declared_likelihood(model)
    if not isinstance(own, ClassLikelihood):
        kind = "none" if own is None else type(own).__name__
        raise TypeError(f"likelihood: detectors need a likelihood of classes, such as Categorical, got {kind}.")
    check_int("seed", seed, 0)
    check_positive_int("num_samples", num_samples)
    if layer is not None and not isinstance(layer, str):
        raise TypeError(f"layer: expected the name of a layer in the network or None, got {layer!r}.")
    options: dict[str, Any] = {"batch": batch, "max_bytes": max_bytes, "seed": seed}
    if features:
        linearized = isinstance(guide, Guide) and guide.facts.predictor == "linearized"
        if predictor not in (None, "weights") or (predictor is None and linearized):
            raise ValueError(
                "features: a linearized network has none under a draw; pass predictor='weights', which runs draws of "
                "the weights, or use scores of the outputs."
            )
        predictor = functools.partial(FeaturePredictor, layer=layer)
    raw = RawOutputs(own)
    if isinstance(data, Tensor) and batch_size is not None:
        check_positive_int("batch_size", batch_size)
        data = [(part, None) for part in data.split(batch_size)] if len(data) else data
        options["batch"] = None
    elif batch_size is not None:
        options["batch_size"] = batch_size
    found = predict_batches(
        model, guide, data, num_samples, predictor=predictor, likelihood=raw, return_draws=True, **options
    )
    return _read(found, seed)


def joined(outputs: NetworkOutputs | Iterable[NetworkOutputs]) -> Iterable[NetworkOutputs]:
    """One batch or several, as several.

    Raises:
        TypeError: If it is neither.
    """
    if isinstance(outputs, NetworkOutputs):
        return [outputs]
    if not isinstance(outputs, Iterable) or isinstance(outputs, Tensor | Mapping | str):
        raise TypeError(
            f"outputs: expected NetworkOutputs or batches of them (detection.network_outputs), got "
            f"{type(outputs).__name__}."
        )
    return outputs


def _read(found: Iterable[tuple[Any, Tensor | None]], seed: int) -> Iterator[NetworkOutputs]:
    count = 0
    for prediction, targets in found:
        count += 1
        kept = prediction.parameters
        labels = None if targets is None else targets.to(kept["logits"].device)
        yield NetworkOutputs(kept["logits"], kept.get("features"), kept.get("weight"), kept.get("bias"), labels, seed)
    if not count:
        raise NoInputsError("data: it holds no inputs.")


class NoInputsError(ValueError):
    """Data without inputs."""


class RawOutputs(ClassLikelihood):
    """A likelihood whose predictions keep the unnormalized log probabilities of each draw.

    Args:
        own: The likelihood that reads the outputs.
    """

    def __init__(self, own: ClassLikelihood) -> None:
        super().__init__()
        self.own = own

    def log_probabilities(self, outputs: Tensor) -> Tensor:
        """Log probabilities, classes last."""
        return self.own.log_probabilities(outputs)

    def logits(self, outputs: Tensor) -> Tensor:
        """Unnormalized log probabilities, classes last."""
        return self.own.logits(outputs)

    def target_shape(self, outputs: Tensor) -> torch.Size:
        """One label for each input."""
        shape = self.own.target_shape(outputs)
        if len(shape) != 1:
            raise ValueError(
                f"model: detectors score inputs with one label each, but targets here are of shape {tuple(shape)}; "
                "apply a score function, such as detection.energy, to the outputs yourself."
            )
        return shape

    def reduction(self, num_samples: int, *, keep: bool, max_bytes: int) -> RawReduction:
        """What was computed under each draw."""
        return RawReduction(self, num_samples)


class RawReduction:
    """Keeps the outputs of each draw.

    Args:
        likelihood: What reads the outputs.
        num_samples: Number of draws to come.
    """

    def __init__(self, likelihood: RawOutputs, num_samples: int) -> None:
        self.likelihood, self.num_samples = likelihood, num_samples
        self.kept = KeptDraws(num_samples, None)

    def summary(self, outputs: Tensor) -> dict[str, Tensor]:
        """The unnormalized log probabilities ``[B, C]``."""
        self.likelihood.target_shape(outputs)
        return {"logits": self.likelihood.logits(widened(outputs))}

    def add(self, summary: Mapping[str, Tensor]) -> None:
        """Keeps the summaries of some draws."""
        self.kept.add(summary)

    def finish(self, targets: Tensor | None) -> ClassPrediction:
        """All draws as parameters of a prediction whose other fields are not filled."""
        parameters = self.kept.joined()
        assert parameters is not None
        first = parameters["logits"][0]
        empty = first[:, 0]
        return ClassPrediction(
            first, empty, empty, empty, self.num_samples, self.likelihood, parameters=parameters, log_mean=first
        )
