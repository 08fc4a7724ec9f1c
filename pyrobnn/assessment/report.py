"""report(): a page of what a model is worth on data of one's own."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import nn

from pyrobnn._version import __version__
from pyrobnn.assessment.base import Assessor, Settings
from pyrobnn.assessment.classes import ClassAssessor, check_class_names
from pyrobnn.assessment.real import RealAssessor
from pyrobnn.assessment.stream import Source, check_loader, shapes_of
from pyrobnn.calibration import TemperatureScaling
from pyrobnn.core import random_state
from pyrobnn.core.arguments import check_int, check_positive_int
from pyrobnn.core.batches import Reader
from pyrobnn.core.explanations import explained
from pyrobnn.diagnostics import CheckReport, check
from pyrobnn.guides import Guide
from pyrobnn.prediction import ClassPrediction, MomentPrediction, Prediction
from pyrobnn.reporting.description import Description, describe
from pyrobnn.reporting.report import Report

__all__ = ["ModelReport", "report"]

_KINDS: tuple[tuple[type[Prediction], type[Assessor]], ...] = (
    (ClassPrediction, ClassAssessor),
    (MomentPrediction, RealAssessor),
)

_DETECTION = """How well an uncertainty tells these inputs from those of the test data. AUROC: 0.5 is chance, 1 perfect.
AUPR depends on the numbers of both. FPR 95: the share of test inputs that raise a false alarm when 95 % of the others
are found. A point estimate has no epistemic part."""

_SELECTIVE = """The error among the most certain inputs, if the others are left to someone else. The area under the
curve is the mean of the error over all shares; its excess is what the best order of the inputs would save."""

_CHECKS = "What pyrobnn.check says, given the training data. A warning is a reason to look, not a failure."


@dataclass(frozen=True, eq=False)
class ModelReport:
    """What :func:`report` found; :meth:`write` makes the page.

    Attributes:
        title: Heading of the page.
        subtitle: One line below it.
        values: All numbers by name, as plain ones, for JSON.
        sections: What appends the sections to a page.
    """

    title: str
    subtitle: str
    values: dict[str, Any]
    sections: list[Callable[[Report], None]] = field(repr=False)

    def write(self, path: str | Path) -> Path:
        """Writes the page, one file that needs no other.

        Args:
            path: File to write or replace; its folder is made if need be.

        Returns:
            The path.

        Raises:
            ValueError: If the path is empty.
        """
        page = Report(self.title, self.subtitle)
        self.add_to(page)
        return page.write(path)

    def add_to(self, page: Report) -> None:
        """Appends the sections to a page of your own."""
        for section in self.sections:
            section(page)

    def __str__(self) -> str:
        rows = [(name, score["value"], score["low"], score["high"]) for name, score in self.values["scores"].items()]
        return "\n".join(f"{name:<15} {value:.4g} ({low:.4g} to {high:.4g})" for name, value, low, high in rows)


@explained
def report(
    model: nn.Module,
    guide: Any,
    *,
    test: Iterable[Any],
    ood: Mapping[str, Iterable[Any]] | None = None,
    calibration: Iterable[Any] | None = None,
    train: Iterable[Any] | None = None,
    num_samples: int = 100,
    seed: int = 0,
    num_bootstrap: int = 1000,
    num_examples: int = 8,
    title: str = "Model report",
    class_names: Sequence[str] | None = None,
    feature_names: Sequence[str] | None = None,
    images: bool | None = None,
    command: str | None = None,
    batch: Reader | None = None,
    **options: Any,
) -> ModelReport:
    """What a model is worth on your own data, as a page and as numbers.

    ::

        found = pb.report(model, guide, test=test_loader, ood={"noise": noise_loader})
        found.write("report.html")

    The page has scores with 95 % bootstrap intervals, calibration, selective risk, the most and least certain inputs,
    what was made Bayesian, and how it was made; detection with ``ood``, probabilities after temperature scaling with
    ``calibration``, and the results of :func:`~pyrobnn.check` with ``train``. What is not given has no section. Data
    are read batch by batch; a few numbers are kept of each target, and a few inputs.

    Args:
        model: The model.
        guide: Its posterior, as for :func:`~pyrobnn.predict`.
        test: A loader of held-out ``(x, y)`` that can be read more than once.
        ood: Loaders of inputs from elsewhere, by name; targets in them are not looked at.
        calibration: A loader of ``(x, y)`` that temperature scaling is fitted to (classes only); neither training nor
            test data.
        train: The loader of the training data, for the checks.
        num_samples: Number K of posterior draws.
        seed: Seeds draws and resamples; torch's random state is left alone.
        num_bootstrap: Number of resamples of the test inputs.
        num_examples: Number of most and of least certain inputs.
        title: Heading of the page.
        class_names: Names of the classes.
        feature_names: Names of the numbers of an input, for tables.
        images: Whether inputs are images; None: those of shape ``[H, W]`` or ``[1 or 3, H, W]`` are.
        command: The command that made the report, which is then quoted.
        batch: How batches are read, as for :func:`~pyrobnn.fit`.
        options: Further options of :func:`~pyrobnn.predict_batches`.

    Returns:
        The report.

    Raises:
        TypeError: If something is no loader, or targets are neither classes nor real-valued.
        ValueError: If a loader is empty or has no targets, ``ood`` has other shapes than ``test``, or ``calibration``
            is given for a regression.
    """
    loaders = {"test": test} | {f"ood[{name!r}]": data for name, data in _checked_ood(ood).items()}
    for name, data in (*loaders.items(), ("calibration", calibration), ("train", train)):
        if data is not None or name == "test":
            check_loader(name, data)
    if calibration is not None and (calibration is test or calibration is train):
        raise ValueError("calibration: it is the test or the training data; pass data held out from both.")
    check_positive_int("num_bootstrap", num_bootstrap)
    check_int("seed", seed, 0)
    check_int("num_examples", num_examples, 0)
    for name, names in (("class_names", class_names), ("feature_names", feature_names)):
        if names is not None and (isinstance(names, str) or not all(isinstance(entry, str) for entry in names)):
            raise TypeError(f"{name}: expected a list of texts, got {names!r}.")
    if command is not None and not isinstance(command, str):
        raise TypeError(f"command: expected a text, got {command!r}.")
    Report(title)  # refuses a blank title before the work

    source = Source(model, guide, num_samples, seed, batch, options)
    with random_state.local(seed):
        calibrator = None if calibration is None else _calibrator(source, calibration)
        settings = Settings(num_bootstrap, seed, num_examples, class_names, feature_names, images, calibrator)
        assessor = _of_test(source, test, settings)
        for name, data in (ood or {}).items():
            for seen in source.stream(f"ood[{name!r}]", data, targets=False):
                source.check_shapes(f"ood[{name!r}]", seen.inputs)
                assessor.add_outside(name, seen)
        checks = None
        if train is not None:
            checks = check(model, guide, train, held_out=test, num_samples=max(25, num_samples), batch=batch)
    return _assembled(assessor, source, checks, title, command)


def _assembled(
    assessor: Assessor, source: Source, checks: CheckReport | None, title: str, command: str | None
) -> ModelReport:
    detection = assessor.detection()
    values = assessor.finish() | {"detection": detection, "made": _made(assessor, source, command)}
    sections: list[Callable[[Report], None]] = [assessor.write_scores]

    def selective(page: Report) -> None:
        page.section("Selective prediction", _SELECTIVE)
        assessor.write_selective(page)

    def detected(page: Report) -> None:
        page.section("Detection", _DETECTION)
        assessor.write_detection(page, detection)

    def examples(page: Report) -> None:
        page.section("Most and least certain inputs", "By the total uncertainty of the prediction.")
        assessor.write_examples(page)

    def checked(page: Report) -> None:
        assert checks is not None
        page.section("Diagnostics", _CHECKS)
        rows = [{"check": c.name, "result": c.status, "value": c.value, "reason": c.reason} for c in checks.checks]
        page.table(rows, formats={"value": ".3g"})

    def made(page: Report) -> None:
        page.section("How this was made", f"Intervals of scores: {_intervals(assessor)}")
        page.table([{"what": name, "value": str(value)} for name, value in values["made"].items()])

    sections.append(selective)
    sections += [detected] if any(detection.values()) else []
    sections += [examples] if assessor.settings.num_examples else []
    sections += [] if checks is None else [checked]
    sections += [_conversion(describe(source.model, source.guide if isinstance(source.guide, Guide) else None)), made]
    if checks is not None:
        values["checks"] = {c.name: c.status for c in checks.checks}
    subtitle = f"{type(source.guide).__name__}, {source.num_samples} draws, {assessor.num_inputs:,} test inputs"
    return ModelReport(title, subtitle, values, sections)


def _conversion(table: Description) -> Callable[[Report], None]:
    names = ("parameter", "site", "shape", "prior", "posterior", "kl", "status")
    rows = [{name: None if row[name] is None else str(row[name]) for name in names} for row in table.rows]

    def write(page: Report) -> None:
        page.section("What became of the network", "\n\n".join(table.notes))
        page.table(rows)

    return write


def _intervals(assessor: Assessor) -> str:
    count, seed = assessor.settings.num_bootstrap, assessor.settings.seed
    return (
        f"2.5 % and 97.5 % of {count:,} bootstrap resamples of the test inputs (seed {seed}). They say how much the "
        "scores would vary with other test data, not with another training."
    )


def _made(assessor: Assessor, source: Source, command: str | None) -> dict[str, object]:
    device = next((str(parameter.device) for parameter in source.model.parameters()), "cpu")
    found: dict[str, object] = {
        "pyrobnn": __version__,
        "torch": torch.__version__,
        "pyro": pyro.__version__,
        "Python": platform.python_version(),
        "device": device,
        "posterior": type(source.guide).__name__,
        "posterior draws": source.num_samples,
        "seed": source.seed,
        "bootstrap resamples": assessor.settings.num_bootstrap,
        "test inputs": assessor.num_inputs,
    }
    found |= {f"inputs of {name}": len(next(iter(scores.values()))) for name, scores in assessor.outside.items()}
    return found | ({} if command is None else {"command": command})


def _of_test(source: Source, test: Iterable[Any], settings: Settings) -> Assessor:
    assessor: Assessor | None = None
    for seen in source.stream("test", test, targets=True):
        shapes = shapes_of(seen.inputs)
        if assessor is None:
            kinds = [made for kind, made in _KINDS if isinstance(seen.prediction, kind)]
            if not kinds:
                name = type(seen.prediction).__name__
                raise TypeError(f"model: expected one of classes or of real-valued targets, got a {name}.")
            if isinstance(seen.prediction, ClassPrediction):
                check_class_names(settings.class_names, seen.prediction)
            assessor, source.shapes = kinds[0](settings), shapes
        elif shapes != source.shapes:  # sequences of several lengths, of which no shape is expected
            source.shapes = None
        assessor.add(seen)
    assert assessor is not None
    return assessor


def _calibrator(source: Source, calibration: Iterable[Any]) -> TemperatureScaling:
    parts = []
    for seen in source.stream("calibration", calibration, targets=True):
        if not isinstance(seen.prediction, ClassPrediction):
            raise ValueError(
                "calibration: temperature scaling is for classes, and this model predicts real-valued targets; "
                "pb.calibration.QuantileRecalibration recalibrates these."
            )
        parts.append(seen.prediction.without_draws())
    return TemperatureScaling().fit(Prediction.join(parts))


def _checked_ood(ood: Any) -> Mapping[str, Iterable[Any]]:
    if ood is None:
        return {}
    if not isinstance(ood, Mapping) or not all(isinstance(name, str) and name for name in ood):
        raise TypeError(f"ood: expected loaders by name, such as {{'noise': loader}}, got {type(ood).__name__}.")
    return ood
