"""Each script of examples/ runs as a user starts it, and prints finite scores of this library beside a baseline's."""

from __future__ import annotations

import math
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"
BASELINES = {
    "csv_regression": ["BayesianRidge", "GaussianProcessRegressor"],
    "group_effects": ["gradient boosting", "ridge regression"],
    "growing_data": ["plain torch", "scikit-learn"],
    "image_classification": ["plain torch"],
    "lstm_forecast": ["plain torch", "ridge regression"],
    "padded_transformer": ["plain torch", "logistic regression"],
}
NUMBER = re.compile(r"(?:RMSE|NLL|accuracy|coverage of 90 %) (\S+)")


def run(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> list[str]:
    """The lines that a script prints in smoke mode."""
    path = EXAMPLES / f"{name}.py"
    monkeypatch.setattr(sys, "argv", [str(path), "--smoke", *arguments])
    runpy.run_path(str(path), run_name="__main__")
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out.splitlines()


def numbers(line: str) -> list[float]:
    return [float(value) for value in NUMBER.findall(line)]


def test_no_example_is_forgotten() -> None:
    assert sorted(path.stem for path in EXAMPLES.glob("*.py")) == sorted(BASELINES)
    page = (EXAMPLES.parent / "docs" / "examples.md").read_text(encoding="utf-8")
    assert all(f"examples/{name}.py" in page for name in BASELINES)


@pytest.mark.parametrize("name", BASELINES)
def test_prints_scores_of_this_library_and_of_each_baseline(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = run(name, capsys, monkeypatch)
    for method in ["pyrobnn", *BASELINES[name]]:
        found = [number for line in lines if method in line for number in numbers(line)]
        assert found, f"no scores of {method} in {lines}"
        assert all(math.isfinite(number) for number in found)


def test_a_regression_reads_a_csv_file_of_ones_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The column to predict is not the last; it is twice the first, so that a linear model is exact.
    rows = [f"{x / 50},{2 * x / 50},{x % 7}" for x in range(50)]
    (tmp_path / "own.csv").write_text("\n".join(["first,wanted,other", *rows]), encoding="utf-8")
    lines = run("csv_regression", capsys, monkeypatch, "--csv", str(tmp_path / "own.csv"), "--target", "wanted")
    (linear,) = [line for line in lines if line.startswith("BayesianRidge")]
    assert numbers(linear)[0] < 1e-3


def test_padding_has_no_influence_on_the_transformer() -> None:
    example = runpy.run_path(str(EXAMPLES / "padded_transformer.py"))
    torch.manual_seed(0)
    net = example["Transformer"]()
    short, long = (torch.tensor([0, 5, 1, 7, 2]), 1), (torch.arange(18) % 8, 1)
    (letters, is_padding), labels = example["padded"]([short, long])
    assert letters.shape == (2, 18) and is_padding.sum() == 13 and labels.tolist() == [1, 1]
    alone, beside = net(*example["padded"]([short])[0])[0], net(letters, is_padding)[0]
    assert torch.allclose(alone, beside, atol=1e-5)
    assert not torch.allclose(net(letters, torch.zeros_like(is_padding))[0], alone, atol=1e-3)  # the mask matters


def test_labels_of_the_strings_say_which_letter_comes_first() -> None:
    example = runpy.run_path(str(EXAMPLES / "padded_transformer.py"))
    for letters, label in example["strings"](20, 0.0, seed=3):
        assert label == (letters.tolist().index(example["A"]) < letters.tolist().index(example["B"]))
