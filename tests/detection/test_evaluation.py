"""The table of scores and outliers: its numbers by hand, what it leaves out, bad input."""

from __future__ import annotations

import json

import pytest
import torch

from pyrobnn import detection, guides, metrics, plots
from pyrobnn.detection import ODIN, evaluate, network_outputs
from tests.detection.networks import DRAWS, data, posterior

X, Y = data(60)
TEST, _ = data(30, seed=1)
OUT = {"near": 0.5 * torch.randn(25, 2, generator=torch.Generator().manual_seed(2)), "far": -3.0 * TEST[:20]}
OPTIONS = {"num_samples": DRAWS, "num_resamples": 20, "seed": 3}


def test_rows_are_those_of_the_detectors() -> None:
    model, guide = posterior()
    names = [*detection.DETECTORS, "odin"]
    scores = [detection.KNN(5) if name == "knn" else name for name in names]
    loaders = {name: [(x[:7], None), (x[7:], None)] for name, x in OUT.items()}
    report = evaluate(model, guide, TEST, loaders, scores, train=[(X[:40], Y[:40]), (X[40:], Y[40:])], **OPTIONS)
    assert len(report.rows) == 2 * (9 * 3 + 3 + 1)

    def outputs(x: torch.Tensor) -> detection.NetworkOutputs:
        (found,) = network_outputs(model, guide, [(x, Y if x is X else None)], DRAWS, features=True, seed=3)
        return found

    for name in names:
        detector = detection.KNN(5) if name == "knn" else None
        if name == "odin":
            odin = ODIN(model, guide, num_samples=DRAWS, seed=3)
            pairs = {"averaged": (odin(TEST), odin(OUT["far"]))}
        else:
            detector = (detector or detection.DETECTORS[name]()).fit(outputs(X))
            pairs = {
                form: (detector(outputs(TEST), form), detector(outputs(OUT["far"]), form)) for form in detector.forms
            }
        for form, pair in pairs.items():
            row = report["far", name, form]
            expected = metrics.detection_report(*pair)
            for measure, value in expected.items():
                assert getattr(row, measure) == pytest.approx(value, abs=0.02), (name, form)  # ties by rounding
            assert (row.num_in, row.num_out) == (30, 20)
            assert row.intervals["auroc"][0] <= row.auroc + 0.02
    again = evaluate(model, guide, TEST, OUT, ["energy"], **OPTIONS)
    assert again["near", "energy"].auroc == pytest.approx(report["near", "energy"].auroc, abs=1e-6)


def test_the_table_prints_saves_and_is_drawn() -> None:
    model, guide = posterior()
    report = evaluate(model, guide, TEST, OUT, ["msp", "mutual_information"], **OPTIONS)
    lines = str(report).splitlines()
    assert len(lines) == 1 + len(report.rows) == 1 + 2 * 4
    assert "msp (variance)" in lines[3]
    assert json.loads(json.dumps(report.to_dict()))["rows"][0]["out"] == "near"
    best = report.best("far")
    assert best.auroc == max(row.auroc for row in report.rows if row.out == "far")
    assert report.best("far", "fpr95_out").fpr95_out == min(row.fpr95_out for row in report.rows if row.out == "far")
    with pytest.raises(KeyError, match="no row"):
        report["far", "energy"]
    ax = plots.detection(report.by_set("auroc"))
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "msp", "msp (mean)", "msp (variance)", "mutual_information"
    ]  # fmt: skip
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["near", "far"]
    with pytest.raises(ValueError, match="by_set: it has no values"):
        plots.detection({})
    with pytest.raises(ValueError, match="by_set: expected finite"):
        plots.detection({"a": {"b": (0.5, float("nan"), 0.6)}})


def test_a_set_that_was_tuned_on_is_left_out() -> None:
    model, guide = posterior()
    odin = ODIN(model, guide, num_samples=DRAWS, seed=3).tune(
        X, {"near": OUT["near"]}, temperatures=[1.0], epsilons=[0.0]
    )
    report = evaluate(model, guide, TEST, OUT, ["msp", odin], forms=["averaged"], **OPTIONS)
    assert [(row.out, row.score) for row in report.rows] == [("near", "msp"), ("far", "msp"), ("far", "odin")]
    assert report.left_out == [("odin", "near")]
    assert "odin was tuned on near" in str(report)
    assert report["far", "odin"].auroc == pytest.approx(report["far", "msp"].auroc, abs=1e-3)  # T = 1, no step


def test_a_point_has_one_draw_and_one_form() -> None:
    model, _ = posterior()
    report = evaluate(model, guides.MAP(model), TEST, OUT, ["energy", "mahalanobis"], train=[(X, Y)], num_resamples=5)
    assert {row.form for row in report.rows} == {"averaged"}


def test_bad_use_is_refused() -> None:
    model, guide = posterior()
    with pytest.raises(ValueError, match=r"out: inputs of 'a' have shape \(3,\), but those of in_ have \(2,\)"):
        evaluate(model, guide, TEST, {"a": torch.rand(4, 3)}, **OPTIONS)
    with pytest.raises(ValueError, match="out: 'a' holds no inputs"):
        evaluate(model, guide, TEST, {"a": []}, **OPTIONS)
    with pytest.raises(ValueError, match="out: 'b' holds no inputs"):
        evaluate(model, guide, TEST, {"b": TEST[:0]}, ["odin"], **OPTIONS)
    with pytest.raises(ValueError, match="in_: it holds no inputs"):
        evaluate(model, guide, TEST[:0], OUT, **OPTIONS)
    with pytest.raises(ValueError, match="train: 'mahalanobis' is fitted to training data"):
        evaluate(model, guide, TEST, OUT, ["mahalanobis"], **OPTIONS)
    with pytest.raises(ValueError, match="outputs: Mahalanobis needs the classes of training data"):
        evaluate(model, guide, TEST, OUT, ["mahalanobis"], train=X, **OPTIONS)
    with pytest.raises(ValueError, match="k: the 50-th nearest of 30 training rows"):
        evaluate(model, guide, TEST, OUT, ["knn"], train=[(TEST, None)], **OPTIONS)
    with pytest.raises(ValueError, match="scores: expected detectors, 'odin' or some of msp, max_logit"):
        evaluate(model, guide, TEST, OUT, ["softmax"], **OPTIONS)
    with pytest.raises(ValueError, match="scores: two detectors have one name: knn, knn"):
        evaluate(model, guide, TEST, OUT, [detection.KNN(1), detection.KNN(2)], train=[(X, Y)], **OPTIONS)
    with pytest.raises(TypeError, match="scores: expected a list of names or detectors"):
        evaluate(model, guide, TEST, OUT, "msp", **OPTIONS)
