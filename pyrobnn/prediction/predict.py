r"""predict(): the posterior predictive at given inputs, with its uncertainty decomposed.

A *predictor* (:mod:`pyrobnn.prediction.predictor`) computes it, from draws of the weights or from the linearized
network. The ``K`` draws are *pinned*: they are the same for every batch, so results do not depend on how the inputs are
cut into batches. The likelihood's reduction (:mod:`pyrobnn.model.likelihoods.reductions`) accumulates the outputs draw
by draw.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from pyrobnn.core import random_state
from pyrobnn.core.batches import Batch, Reader, inputs_of
from pyrobnn.core.explanations import explained
from pyrobnn.core.finite import check_inputs
from pyrobnn.core.progress import progress_bar
from pyrobnn.core.training_rows import were_trained_on
from pyrobnn.core.trees import is_empty, refuse_arrays
from pyrobnn.guides.base import Guide
from pyrobnn.model.likelihoods import Likelihood
from pyrobnn.model.likelihoods.predictions import Prediction
from pyrobnn.prediction.execution import Execution, Precision
from pyrobnn.prediction.function_posterior import FunctionPosterior, check_predicted, own_predictor
from pyrobnn.prediction.gaussian_process import GaussianProcessPredictor
from pyrobnn.prediction.linearized import LinearizedPredictor
from pyrobnn.prediction.predictor import Link, PredictorFactory, PredictorOptions, WeightsPredictor
from pyrobnn.prediction.second_entries import check_rows, check_second_entry
from pyrobnn.prediction.vectorization import Method

__all__ = ["input_blocks", "predict", "predict_batches", "predictor_of"]

_PREDICTORS: dict[str, PredictorFactory] = {
    "weights": WeightsPredictor,
    "linearized": LinearizedPredictor,
    "gaussian_process": GaussianProcessPredictor,
}


@explained
def predict(
    model: nn.Module,
    guide: Any,
    data: Any,
    num_samples: int = 100,
    *,
    batch: Reader | None = None,
    batch_size: int | None = None,
    predictor: str | PredictorFactory | None = None,
    likelihood: Likelihood | None = None,
    link: Link = "samples",
    return_draws: bool = False,
    method: Method = "auto",
    max_bytes: int = 256 * 2**20,
    precision: Precision | None = None,
    memory_format: torch.memory_format | None = None,
    compile: bool = False,
    seed: int | None = None,
    progress: bool = False,
) -> Prediction:
    """The posterior predictive at given inputs.

    Args:
        model: A :class:`~pyrobnn.SupervisedModel`, or any Pyro model that returns the network's outputs when
            called with inputs only (then ``likelihood`` is needed).
        guide: The posterior: a guide of this library, or draws ``{site: [K, *site shape]}`` (from
            ``MCMC.get_samples()``, say), or a posterior over functions (:func:`pyrobnn.function_space.infinite_width`).
        data: A tensor of inputs, a tuple or dict of tensors for networks with several inputs, or a loader
            that yields inputs or pairs ``(x, y)``. A model of one's own is called as ``model(x)``, as ``fit`` calls
            ``model(x, y)``.
        num_samples: Number K of posterior draws.
        batch: For loaders that yield something else, as for :func:`pyrobnn.fit`: a function from that to
            ``(inputs, targets)``, with None for targets that are unknown, or a :class:`~pyrobnn.Batch`.
        batch_size: Rows that the network sees at a time; it declares that each input has one entry for each row, and
            that rows do not interact. None runs each batch, and whatever is passed without a loader, in one call, as
            ``fit`` does; only one long tensor is cut, if a trial shows that it does not matter
            (:mod:`pyrobnn.prediction.rows`).
        predictor: How the predictive is computed: ``"weights"``, draws of the weights run through the network;
            ``"linearized"``, the network's linearization at the mode (a :class:`~pyrobnn.guides.Laplace`);
            ``"gaussian_process"``, the Gaussian with the mean and covariance of an ensemble's members; a function of
            model, guide and :class:`~pyrobnn.prediction.PredictorOptions` that makes a
            :class:`~pyrobnn.prediction.Predictor`. None takes the guide's default: ``"linearized"`` for a Laplace
            approximation over hidden layers, whose plain draws underfit, else ``"weights"``.
        likelihood: The likelihood; the model's if None.
        link: How the linearized network's outputs become class probabilities: ``"samples"`` or ``"probit"``.
        return_draws: Keep the parameters of each draw, ``[K, N, …]``.
        method: ``"loop"`` writes one draw at a time into the network, ``"vmap"`` runs several at once, ``"auto"`` takes
            what is faster: vmap on a GPU, and on a CPU for small activations (:mod:`pyrobnn.prediction.vectorization`);
            the loop for recurrent networks and whatever else torch cannot vmap.
        max_bytes: Budget for draws, activations and kept results.
        precision: ``"bfloat16"`` or ``"float16"`` runs the network under :func:`torch.autocast`, draws of the weights
            and what is computed from the outputs in their own precision; None for the network's own throughout. On a
            CPU with instructions for bfloat16 large layers take half the time; probabilities differ by about 0.002.
            Draws run one after another. Ignored by predictors other than ``"weights"``, as is ``memory_format``.
        memory_format: ``torch.channels_last`` (or ``torch.channels_last_3d``) lays inputs out so before the network
            sees them, which is faster for most convolutions; None leaves them as they are.
        compile: Compile the network with ``torch.compile``, as a function of weights and inputs for all draws, also
            those of later calls. That takes seconds to minutes once for inputs of a shape; a smaller last batch runs
            uncompiled. Where it cannot be done, a warning says so, and the network runs as usual. Ignored by
            predictors other than ``"weights"``.
        seed: Fixes the draws (for one ``max_bytes``, if that is below 16 MiB: draws are made in blocks that fit half of
            it) and what a loader draws, and leaves torch's random state alone; None takes a seed from it.
        progress: Show a progress bar.

    Returns:
        The prediction. Modes, buffers and ``requires_grad`` of the model are as before.

    Raises:
        TypeError: If the inputs or the posterior are of the wrong kind.
        ValueError: If there are no inputs, one of them is NaN or infinite, ``num_samples`` is not positive,
            ``predictor`` is unknown, the posterior is another model's (a site is missing, unknown, of another shape or
            not finite), or batches have outputs of different shapes (sequences of several lengths), which
            :func:`predict_batches` allows.
    """
    predicted = predict_batches(
        model,
        guide,
        data,
        num_samples,
        batch=batch,
        batch_size=batch_size,
        predictor=predictor,
        likelihood=likelihood,
        link=link,
        return_draws=return_draws,
        method=method,
        max_bytes=max_bytes,
        precision=precision,
        memory_format=memory_format,
        compile=compile,
        seed=seed,
        progress=progress,
    )
    parts: list[Prediction] = []
    kept_bytes = 0
    for part, _ in predicted:
        parts.append(part)
        kept_bytes += part.kept_bytes
        if not return_draws and kept_bytes > max_bytes / 4:  # the budget is for all of the data, not for each batch
            parts = [earlier.without_draws() for earlier in parts]
    if not parts:
        raise ValueError("data: it holds no inputs.")
    if len(parts) == 1:
        return parts[0]
    if len(shapes := {part.mean.shape[1:]: part.mean.shape for part in parts}) > 1:
        first, second = [list(shape) for shape in shapes.values()][:2]
        raise ValueError(
            f"data: predictions of shapes {first} and {second} cannot be one prediction; take them batch by batch from "
            "predict_batches, or pad all inputs to one length."
        )
    return Prediction.join(parts)


@explained
def predict_batches(
    model: nn.Module,
    guide: Any,
    data: Any,
    num_samples: int = 100,
    *,
    batch: Reader | None = None,
    batch_size: int | None = None,
    predictor: str | PredictorFactory | None = None,
    likelihood: Likelihood | None = None,
    link: Link = "samples",
    return_draws: bool = False,
    method: Method = "auto",
    max_bytes: int = 256 * 2**20,
    precision: Precision | None = None,
    memory_format: torch.memory_format | None = None,
    compile: bool = False,
    seed: int | None = None,
    progress: bool = False,
) -> Iterator[tuple[Prediction, Tensor | None]]:
    """Like :func:`predict`, batch by batch: yields ``(prediction, targets or None)``, of the same K draws.

    Memory stays that of one batch, however long the data: feed streaming metrics from it. Between batches the
    modes of the model are as before the call. Errors are those of :func:`predict`, raised at the first batch.
    """
    if (make := predictor_of(predictor, guide)) is not WeightsPredictor:  # which checks it itself
        check_predicted(model, guide, predictor)
    if batch is not None and not callable(batch):
        raise TypeError(f"batch: expected a function from a batch to (inputs, targets), got {batch!r}.")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, Integral)):
        raise TypeError(f"seed: expected an int or None, got {seed!r}.")
    blocks, count = input_blocks(data, batch, seed)
    options = PredictorOptions(
        num_samples=num_samples,
        likelihood=likelihood,
        return_draws=return_draws,
        method=method,
        max_bytes=max_bytes,
        seed=seed,
        replayed=count != 1,
        link=link,
        batch_size=batch_size,
        execution=Execution(precision, memory_format, compile),
    )
    predicted = make(model, guide, options)
    is_known = were_trained_on(guide, data)
    for index, (x, y) in enumerate(progress_bar(blocks, total=count, shown=progress, unit="batch")):
        check_inputs(x, index)
        prediction = predicted(x, y)
        if y is not None:
            check_rows(y, prediction.mean)
            check_second_entry(model, x, y, prediction.target_shape, prediction.likelihood)
        prediction.is_of_training_data = is_known
        yield prediction, y


def predictor_of(predictor: str | PredictorFactory | None, guide: Any) -> PredictorFactory:
    """The predictor of a name, or the guide's default.

    Raises:
        ValueError: If the name is unknown.
    """
    if isinstance(guide, FunctionPosterior):
        return own_predictor
    if predictor is None:
        predictor = guide.facts.predictor if isinstance(guide, Guide) else "weights"
    if callable(predictor):
        return predictor
    if predictor not in _PREDICTORS:
        known = " or ".join(repr(name) for name in _PREDICTORS)
        raise ValueError(f"predictor: expected {known}, or a function that makes a Predictor, got {predictor!r}.")
    return _PREDICTORS[predictor]


def input_blocks(
    data: Any, reader: Reader | None, seed: int | None = None
) -> tuple[Iterable[tuple[Any, Any]], int | None]:
    """The inputs batch by batch, ``(x, y or None)``, and how many batches there are if known.

    Args:
        data: Inputs or a loader.
        reader: How to read what a loader yields.
        seed: Of the random numbers that a loader takes; None takes them from torch's random state.
    """
    if isinstance(data, Tensor | tuple | Mapping | PackedSequence):
        return ([], 0) if is_empty(data) else ([(data, None)], 1)
    if isinstance(data, Batch):
        return [(data.inputs, data.targets)], 1
    if isinstance(data, np.ndarray):
        refuse_arrays(data, "data: the inputs")
    if not isinstance(data, Iterable):
        raise TypeError(f"data: expected inputs (a tensor, tuple or dict) or a loader, got {type(data).__name__}.")
    loaded = random_state.iterated(data, None if seed is None else int(seed) % 2**32)
    return (inputs_of(raw, reader=reader) for raw in loaded), len(data) if isinstance(data, Sized) else None
