"""What ``import pyrobnn`` loads, and that what it leaves out is loaded when it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

SLOW = ("matplotlib", "scipy", "pandas", "arviz", "xarray", "sklearn", "torchvision", "torchmetrics")


def run(code: str) -> str:
    """The output of a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("module", ["pyrobnn", "pyrobnn.reporting.report"])
def test_import_loads_nothing_that_only_a_part_needs(module: str) -> None:
    assert run(f"import sys, {module}; print([m for m in {SLOW} if m in sys.modules])").strip() == "[]"


def test_all_public_names_are_there() -> None:
    run("import pyrobnn as pb; [getattr(pb, name) for name in pb.__all__]; assert set(pb.__all__) <= set(dir(pb))")


def test_figures_load_matplotlib_when_they_are_drawn() -> None:
    code = """
import sys, torch, pyrobnn as pb
pb.plots.reliability(torch.tensor([[0.9, 0.1], [0.4, 0.6]]), torch.tensor([0, 1]))
print("matplotlib" in sys.modules, "torchmetrics" in sys.modules)
pb.metrics.ExpectedCalibrationError()
print("torchmetrics" in sys.modules)
"""
    assert run("import matplotlib; matplotlib.use('Agg')" + code).split() == ["True", "False", "True"]
