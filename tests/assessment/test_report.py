"""The page's numbers are those of the metrics; sections come and go with the arguments; bad ones are named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyrobnn as pb
from pyrobnn import metrics

FAST: dict[str, Any] = {"num_samples": 8, "num_bootstrap": 20, "num_examples": 3}
torch.manual_seed(0)
IMAGES, LABELS = torch.rand(40, 5, 5), torch.randint(0, 3, (40,))
X, Y = torch.randn(40, 2), torch.randn(40, 1)
CLASSES = pb.SupervisedModel(
    nn.Sequential(nn.Flatten(), nn.Linear(25, 3)), pb.likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=40
)
REAL = pb.SupervisedModel(nn.Linear(2, 1), pb.likelihoods.Normal(0.8), dist.Normal(0.0, 1.0), num_data=40)
OF_CLASSES, OF_REAL = pb.guides.MeanField(CLASSES, init_scale=0.3), pb.guides.MeanField(REAL, init_scale=0.3)
BATCHES = [(IMAGES[:16], LABELS[:16]), (IMAGES[16:], LABELS[16:])]
REAL_BATCHES = [(X[:16], Y[:16]), (X[16:], Y[16:])]
HEADING = re.compile(r"<h2>(.*?)</h2>")


def of_classes(**options: Any) -> Any:
    return pb.report(CLASSES, OF_CLASSES, **{"test": BATCHES, **FAST, **options})


def of_real(**options: Any) -> Any:
    return pb.report(REAL, OF_REAL, **{"test": REAL_BATCHES, **FAST, **options})


def headings(found: Any, folder: Path) -> list[str]:
    return HEADING.findall(found.write(folder / "page.html").read_text())


def test_numbers_of_classes_are_those_of_the_metrics(tmp_path: Path) -> None:
    outside = torch.rand(10, 5, 5) * 3
    found = of_classes(ood={"bright": [outside]})
    prediction = pb.predict(CLASSES, OF_CLASSES, IMAGES, 8, seed=0)
    elsewhere = pb.predict(CLASSES, OF_CLASSES, outside, 8, seed=0)
    right = {
        "accuracy": metrics.accuracy(prediction.mean, LABELS),
        "nll": metrics.nll(prediction.mean, LABELS),
        "brier": metrics.brier(prediction.mean, LABELS),
        "ece": metrics.expected_calibration_error(prediction.mean, LABELS),
    }
    page = found.write(tmp_path / "page.html").read_text()
    for name, value in right.items():
        score = found.values["scores"][name]
        assert score["value"] == pytest.approx(float(value), abs=1e-6)
        assert score["low"] <= score["value"] + 0.05  # the ECE of resamples is larger
        assert f"{float(value):.3f}" in page
    measured = found.values["detection"]["bright"]["entropy [nats]"]
    expected = metrics.detection_report(prediction.total, elsewhere.total)
    assert {name: measured[name] for name in expected} == pytest.approx(expected)
    low, high = measured["auroc_interval"]
    assert low < measured["auroc"] < high


def test_numbers_of_a_regression_are_those_of_its_report(tmp_path: Path) -> None:
    found = of_real(num_bootstrap=200)
    right = pb.regression_report(REAL, OF_REAL, REAL_BATCHES, 8, seed=0).as_dict()
    for name, score in found.values["scores"].items():
        assert score["value"] == pytest.approx(right[name], abs=1e-6)
        assert score["low"] < score["value"] < score["high"]
    assert f"{right['rmse']:.4g}" in found.write(tmp_path / "page.html").read_text()
    assert found.values["coverage"]["90%"] == pytest.approx(right["picp"])


def test_sections_follow_the_arguments(tmp_path: Path) -> None:
    always = ["Scores", "Reliability", "Classes", "Selective prediction", "Most and least certain inputs"]
    last = ["What became of the network", "How this was made"]
    assert headings(of_classes(), tmp_path) == [*always, *last]
    assert headings(of_classes(num_examples=0), tmp_path) == [*always[:4], *last]
    full = of_classes(ood={"a": [IMAGES]}, train=BATCHES, calibration=[(IMAGES[:20], LABELS[:20])])
    assert headings(full, tmp_path) == [*always[:4], "Detection", always[4], "Diagnostics", *last]
    assert set(full.values) >= {"calibrated_scores", "temperature", "checks", "detection"}
    assert headings(of_real(), tmp_path)[:3] == ["Scores", "Calibration", "Predictions"]
    assert "Detection" in headings(of_real(ood={"far": [X + 5]}), tmp_path)


def test_temperature_is_that_of_the_calibration_data() -> None:
    held_out = [(IMAGES[:20], LABELS[:20].flip(0))]
    found = of_classes(calibration=held_out)
    scaling = pb.calibration.TemperatureScaling().fit(pb.predict(CLASSES, OF_CLASSES, held_out, 8, seed=0))
    assert found.values["temperature"] == pytest.approx(float(scaling.temperature))
    after = scaling(pb.predict(CLASSES, OF_CLASSES, BATCHES, 8, seed=0)).mean
    right = metrics.nll(after, LABELS)
    assert found.values["calibrated_scores"]["nll"]["value"] == pytest.approx(float(right), abs=1e-5)
    accuracy = found.values["scores"]["accuracy"]["value"]
    assert found.values["calibrated_scores"]["accuracy"]["value"] == accuracy


def test_the_seed_fixes_the_page_and_leaves_the_random_state(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    first = of_classes().write(tmp_path / "a.html").read_bytes()
    assert torch.equal(torch.get_rng_state(), state)
    assert of_classes().write(tmp_path / "b.html").read_bytes() == first


def test_images_and_rows_of_tables_are_shown(tmp_path: Path) -> None:
    page = of_classes(class_names=["<one>", "two", "three"]).write(tmp_path / "a.html").read_text()
    assert page.count('<div class="images">') == 3  # most, least, wrong
    assert "&lt;one&gt;" in page
    assert "<one>" not in page
    page = of_real(feature_names=["length", "width"]).write(tmp_path / "b.html").read_text()
    assert '<div class="images">' not in page
    assert '<th scope="col" class="number">length</th>' in page


def test_most_and_least_certain_are_those_of_all_batches() -> None:
    from pyrobnn.assessment.examples import Extremes

    keys = torch.randperm(40).float()
    extremes = Extremes(4)
    for first in (0, 16):
        part = slice(first, 40 if first else 16)
        extremes.add(keys[part], first, IMAGES[part], lambda i: {})
    numbers = [example.number for example in extremes.examples]
    assert numbers == keys.argsort()[:4].tolist()
    assert all(torch.equal(example.inputs[0], IMAGES[example.number]) for example in extremes.examples)


def test_how_it_was_made_is_stated(tmp_path: Path) -> None:
    found = of_classes(command="pyrobnn report <x>", seed=3)
    page = found.write(tmp_path / "page.html").read_text()
    assert "pyrobnn report &lt;x&gt;" in page
    assert "20 bootstrap resamples of the test inputs (seed 3)" in page
    assert found.values["made"]["posterior draws"] == 8


def test_several_labels_of_an_input() -> None:
    net = nn.Conv2d(1, 3, 1)
    model = pb.SupervisedModel(net, pb.likelihoods.Categorical(class_dim=1), dist.Normal(0.0, 1.0), num_data=6)
    x, y = torch.randn(6, 1, 4, 4), torch.randint(0, 3, (6, 4, 4))
    guide = pb.guides.MeanField(model)
    found = pb.report(model, guide, test=[(x, y)], **FAST)
    assert found.values["num_targets"] == 96
    mean = pb.predict(model, guide, x, 8, seed=0).mean
    assert found.values["scores"]["accuracy"]["value"] == pytest.approx(float(metrics.accuracy(mean, y)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test": []}, "test: it holds no inputs"),
        ({"test": IMAGES}, "test: expected a loader"),
        ({"test": [IMAGES]}, r"test: expected a loader of \(x, y\), got inputs without targets"),
        ({"test": iter(BATCHES)}, "test: a list_iterator can be read only once"),
        ({"ood": [IMAGES]}, "ood: expected loaders by name"),
        ({"ood": {"a": []}}, r"ood\['a'\]: it holds no inputs"),
        ({"ood": {"a": [torch.rand(4, 1, 5, 5)]}}, r"ood\['a'\]: expected inputs of shapes \[\(5, 5\)\] as in test"),
        ({"calibration": []}, "calibration: it holds no inputs"),
        ({"calibration": BATCHES}, "calibration: it is the test or the training data"),
        ({"class_names": ["a"]}, "class_names: expected one for each of 3 classes, got 1"),
        ({"title": " "}, "title: expected text"),
        ({"num_bootstrap": 0}, "num_bootstrap: expected a positive int"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        of_classes(**options)


def test_calibration_of_a_regression_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^calibration: temperature scaling is for classes"):
        of_real(calibration=[(X, Y)])
