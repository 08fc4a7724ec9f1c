"""Each notebook runs in smoke mode without an error or a warning, and is committed with the outputs of a full run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

TUTORIALS = Path(__file__).parents[1] / "tutorials"
NAMES = [
    "01_quickstart",
    "02_pyro_users",
    "03_bayesian_finetuning",
    "04_choosing_a_posterior",
    "05_structure_uncertainty",
    "06_sampling_and_distillation",
    "07_data_uncertainty",
    "08_sde_networks",
    "09_calibration_and_conformal",
    "10_out_of_distribution",
    "11_active_learning_and_bandits",
    "12_function_space",
    "13_attacks_and_defences",
    "14_influence",
    "15_structured_gan",
    "16_domain_adaptation",
    "17_scikit_learn",
    "18_distributed",
    "19_bayesian_lora",
    "20_export",
]
NEEDED = {"19_bayesian_lora": ("transformers", "peft")}
"""Optional packages that a notebook needs."""
OF_ARVIZ = {"02_pyro_users"}
"""Notebooks that call ArviZ, whose names differ between 0.x and 1.x."""
# Two components and no letter, slash, dot, colon or "<" before them: no fraction, URL, relative path or closing tag.
ABSOLUTE_PATH = re.compile(r"(?<![\w/.:<])/[\w.-]+/[\w.-]+|\b[A-Z]:\\\w")
TRACEBACK = "Traceback (most recent call last)"


def read(name: str) -> Any:
    return nbformat.read(TUTORIALS / f"{name}.ipynb", as_version=4)


def outputs(notebook: Any) -> Iterator[tuple[int, Any]]:
    for index, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            yield index, output


def text(output: Any) -> str:
    parts = [part for kind, part in output.get("data", {}).items() if kind.startswith("text/")]
    return "\n".join([*parts, output.get("text", ""), *output.get("traceback", [])])


def assert_clean(notebook: Any) -> None:
    for index, output in outputs(notebook):
        assert output.output_type != "error", f"cell {index} failed: {text(output)}"
        assert output.get("name") != "stderr", f"cell {index} printed a warning: {text(output)}"
        assert TRACEBACK not in text(output), f"cell {index} shows a traceback: {text(output)}"
        found = ABSOLUTE_PATH.search(text(output))
        assert found is None, f"cell {index} shows the path {found and found.group()!r}"


def test_no_notebook_is_forgotten() -> None:
    assert sorted(path.stem for path in TUTORIALS.glob("*.ipynb")) == NAMES


@pytest.mark.notebook
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.arviz] if name in OF_ARVIZ else []) for name in NAMES]
)
def test_runs_in_smoke_mode(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in NEEDED.get(name, ()):
        pytest.importorskip(package, reason=package)
    monkeypatch.setenv("PYROBNN_SMOKE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("PYTHONWARNINGS", raising=False)  # a reader's Python shows warnings
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel chooses the inline one
    notebook = read(name)
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()  # raises the first error of a cell, with its traceback
    assert_clean(notebook)
    assert list(tmp_path.iterdir()) == [], "the notebook leaves files behind"


@pytest.mark.parametrize("name", NAMES)
def test_is_committed_with_the_outputs_of_a_whole_run(name: str) -> None:
    notebook = read(name)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert any("image/png" in output.get("data", {}) for _, output in outputs(notebook))
    assert (TUTORIALS / f"{name}.ipynb").stat().st_size < 1_000_000
    assert_clean(notebook)


@pytest.mark.parametrize(
    ("line", "is_path"),
    [
        ("/home/someone/project/file.py:21: Warning", True),
        ("saved to '/var/tmp/run'", True),
        (r"C:\Users\someone", True),
        ("<tr><td>1</td></tr>", False),
        ("N / B, 3/4/5 and run/spec.json", False),
        ("https://example.org/a/b", False),
    ],
)
def test_absolute_paths_are_recognized(line: str, is_path: bool) -> None:
    assert (ABSOLUTE_PATH.search(line) is not None) == is_path
