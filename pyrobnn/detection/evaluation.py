"""How well scores tell known inputs from named sets of outliers: one table, with bootstrap intervals over inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from pyrobnn.core.arguments import check_int, check_positive_int, check_probability
from pyrobnn.core.batches import Reader, inputs_of
from pyrobnn.core.explanations import explained
from pyrobnn.detection.base import FORMS, Detector, Form, check_forms
from pyrobnn.detection.disagreement import ModelVariance, MutualInformation, VoteShare
from pyrobnn.detection.gaussian_features import Mahalanobis, RelativeMahalanobis
from pyrobnn.detection.input_sets import check_shape, inputs_in, named_sets
from pyrobnn.detection.neighbors import KNN
from pyrobnn.detection.network_outputs import NoInputsError, network_outputs
from pyrobnn.detection.odin import ODIN
from pyrobnn.detection.output_scores import GEN, Energy, Entropy, MaxLogit, MaxSoftmax
from pyrobnn.detection.report import DetectionReport, DetectionRow
from pyrobnn.detection.virtual_logit import ViM
from pyrobnn.guides.base import Guide
from pyrobnn.metrics.detection_intervals import detection_intervals

__all__ = ["DETECTORS", "evaluate"]

_BATCH = 256  # rows at a time of inputs that are one tensor

DETECTORS: dict[str, Callable[[], Detector]] = {
    "msp": MaxSoftmax,
    "max_logit": MaxLogit,
    "energy": Energy,
    "entropy": Entropy,
    "gen": GEN,
    "mutual_information": MutualInformation,
    "vote_share": VoteShare,
    "model_variance": ModelVariance,
    "mahalanobis": Mahalanobis,
    "relative_mahalanobis": RelativeMahalanobis,
    "knn": KNN,
    "vim": ViM,
}
"""Detectors by name, with their default options; ``"odin"`` is one more."""

Found: TypeAlias = dict[tuple[str, Form], Tensor]


@explained
def evaluate(
    model: nn.Module,
    guide: Any,
    in_: Any,
    out: Mapping[str, Any],
    scores: Sequence[str | Detector | ODIN] = ("msp", "max_logit", "energy", "entropy", "gen", "mutual_information"),
    *,
    train: Any = None,
    forms: Sequence[Form] = FORMS,
    num_samples: int = 20,
    layer: str | None = None,
    batch: Reader | None = None,
    num_resamples: int = 500,
    level: float = 0.95,
    seed: int = 0,
    max_bytes: int = 256 * 2**20,
) -> DetectionReport:
    """Measures of detection of each score, form and set of outliers.

    Args:
        model: A model with a likelihood of classes, one label for each input.
        guide: The posterior: a guide, or draws ``{site: [K, *site shape]}``.
        in_: Known inputs that were not trained on: a tensor, or a loader that can be read several times.
        out: Outliers by name, likewise.
        scores: Names of :data:`DETECTORS`, ``"odin"``, or detectors.
        train: Training data, a loader of ``(x, y)``, to which detectors are fitted that are not yet.
        forms: Forms of scores: of the averaged prediction, mean and variance over draws. A posterior of one point has
            only the first.
        num_samples: Number K of draws; those of a guide that is one point are one.
        layer: The layer whose inputs are the features, as for :func:`~pyrobnn.detection.network_outputs`.
        batch: How to read what loaders yield, as for :func:`pyrobnn.predict`.
        num_resamples: Bootstrap resamples of the inputs, the same for all scores.
        level: Probability of the intervals.
        seed: Fixes draws and resamples.
        max_bytes: Budget for draws and activations.

    Returns:
        The table. A set that a detector was tuned on is left out of its rows.

    Raises:
        TypeError: If something is of the wrong kind.
        ValueError: If a set is empty or of another shape, a score is unknown or needs ``train``, or a number is out of
            its range.
    """
    wanted = check_forms(forms)
    check_positive_int("num_samples", num_samples)
    check_positive_int("num_resamples", num_resamples)
    check_probability("level", level)
    check_int("seed", seed, 0)
    sets = named_sets(in_, out)
    if isinstance(guide, Guide) and guide.facts.num_points == 1:
        num_samples = 1
    if num_samples == 1:
        wanted = ("averaged",)
    detectors = _resolved(scores, model, guide, num_samples, batch, seed)
    options = {"num_samples": num_samples, "layer": layer, "batch": batch, "seed": seed, "max_bytes": max_bytes}
    _fit(detectors, model, guide, train, options)
    first: list[Any] = []

    def found(name: str, data: Any) -> Found:
        def checked() -> Iterator[Any]:
            for raw in inputs_in(data, None, _BATCH) if isinstance(data, Tensor) else data:
                x = inputs_of(raw, reader=batch)[0]
                if isinstance(x, Tensor) and x.dim() and not len(x):
                    continue
                if not first:
                    first.append(x)
                check_shape(name, x, first[0])
                yield raw

        return _scored(detectors, wanted, model, guide, checked, options)

    try:
        known = found("in_", sets.in_)
    except NoInputsError as error:
        raise ValueError("in_: it holds no inputs.") from error
    rows, left_out = [], []
    for name, data in sets.out.items():
        try:
            unknown = found(name, data)
        except NoInputsError as error:
            raise ValueError(f"out: {name!r} holds no inputs.") from error
        tuned = {d.name for d in detectors if isinstance(d, ODIN) and name in d.tuned_on}
        left_out += [(score, name) for score in tuned]
        for (score, form), values in unknown.items():
            if score in tuned:
                continue
            pair = known[score, form], values
            intervals = detection_intervals(*pair, num_resamples=num_resamples, level=level, seed=seed)
            rows.append(DetectionRow.of(name, score, form, *pair, intervals))
    return DetectionReport(rows, level, left_out)


def _resolved(
    scores: Any, model: nn.Module, guide: Any, num_samples: int, batch: Reader | None, seed: int
) -> list[Detector | ODIN]:
    if isinstance(scores, str) or not isinstance(scores, Sequence) or not scores:
        raise TypeError(f"scores: expected a list of names or detectors, got {scores!r}.")
    found: list[Detector | ODIN] = []
    for score in scores:
        if isinstance(score, Detector | ODIN):
            found.append(score)
        elif isinstance(score, str) and score in DETECTORS:
            found.append(DETECTORS[score]())
        elif score == "odin":
            found.append(ODIN(model, guide, num_samples=num_samples, batch=batch, seed=seed))
        else:
            raise ValueError(f"scores: expected detectors, 'odin' or some of {', '.join(DETECTORS)}, got {score!r}.")
    names = [detector.name for detector in found]
    if len(set(names)) < len(names):
        raise ValueError(f"scores: two detectors have one name: {', '.join(names)}; evaluate them one after the other.")
    return found


def _fit(detectors: list[Detector | ODIN], model: nn.Module, guide: Any, train: Any, options: dict[str, Any]) -> None:
    """Fits what is not fitted, all in one pass over the training data."""
    missing = [d for d in detectors if isinstance(d, Detector) and not d.is_fitted]
    if not missing:
        return
    if train is None:
        raise ValueError(f"train: {missing[0].name!r} is fitted to training data; pass a loader of (x, y).")
    states = [detector.start() for detector in missing]
    with torch.no_grad():
        for outputs in network_outputs(model, guide, train, features=True, **options):
            for detector, state in zip(missing, states, strict=True):
                detector.add(state, outputs)
        for detector, state in zip(missing, states, strict=True):
            detector.finish(state)


def _scored(
    detectors: list[Detector | ODIN],
    forms: tuple[Form, ...],
    model: nn.Module,
    guide: Any,
    blocks: Callable[[], Iterator[Any]],
    options: dict[str, Any],
) -> Found:
    """All scores of a set, of one pass over it, and one more for each detector that reads the inputs themselves."""
    parts: dict[tuple[str, Form], list[Tensor]] = {}
    of_outputs = [detector for detector in detectors if isinstance(detector, Detector)]
    features = any(detector.needs_features for detector in of_outputs)
    if of_outputs:
        for outputs in network_outputs(model, guide, blocks(), features=features, **options):
            for detector in of_outputs:
                mine = tuple(form for form in forms if form in detector.forms)
                for form, score in detector.scores(outputs, mine).items():
                    parts.setdefault((detector.name, form), []).append(score)
    for odin in detectors:
        if isinstance(odin, ODIN):
            parts[odin.name, "averaged"] = [odin(inputs_of(raw, reader=options["batch"])[0]) for raw in blocks()]
    if not all(parts.values()):
        raise NoInputsError("data: it holds no inputs.")
    return {key: torch.cat(values) for key, values in parts.items()}
