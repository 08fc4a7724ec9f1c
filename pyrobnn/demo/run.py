"""run(): fits every method, and writes the report, the metrics, the posterior and a checkpoint."""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyro
from torch.utils.data import DataLoader, TensorDataset

from pyrobnn._version import __version__
from pyrobnn.checkpoint import save
from pyrobnn.core.files import check_directory
from pyrobnn.demo.digits import load_digits
from pyrobnn.demo.methods import COLUMNS, METHODS, Result, evaluate, fit_method, step_ratios
from pyrobnn.demo.page import write_report
from pyrobnn.diagnostics import check, to_arviz

__all__ = ["FILES", "format_table", "run"]

FILES = ("report.html", "metrics.json", "posterior.nc", "checkpoint")
"""What a run leaves in its output folder."""

SHOWN = "mean field"
"""The method whose posterior is stored and looked at closely."""

NUM_DRAWS = 100
"""Posterior draws that are stored, and that the checks look at."""


def run(output: str | Path, epochs: int = 50, seed: int = 0, progress: bool = False) -> dict[str, Any]:
    """Runs the demo.

    Args:
        output: Folder for :data:`FILES`; made if need be. Other files in it are left alone.
        epochs: Passes over the training data, for every method.
        seed: Seeds the split, the network, the training and the draws.
        progress: Show progress bars, on the standard error.

    Returns:
        The metrics, as in ``metrics.json``: ``"methods"`` has one row per method.

    Raises:
        ValueError: If ``epochs`` is not positive, ``seed`` is not one, or ``output`` is empty.
        OSError: If the output folder cannot be written; raised before any training.
    """
    if epochs < 1:
        raise ValueError(f"epochs: expected a positive number, got {epochs}.")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed: expected a number from 0 to 2**32 - 1, got {seed}.")
    output = _folder(check_directory("output", output))
    data = load_digits(seed)
    results = [fit_method(method, data, epochs, seed, progress) for method in METHODS]
    pyro.set_rng_seed(seed)
    ratios = step_ratios(METHODS, data)
    rows = [evaluate(result, data.test[1]) | {"step_ratio": ratios[result.method.name]} for result in results]
    metrics = {
        "version": __version__,
        "data": "scikit-learn digits: 0-7 known, 8 and 9 unknown",
        "num_train": len(data.train[1]),
        "num_test": len(data.test[1]),
        "num_unknown": len(data.unknown[1]),
        "epochs": epochs,
        "seed": seed,
        "methods": rows,
    }

    shown = next(result for result in results if result.method.name == SHOWN)
    pyro.set_rng_seed(seed)
    checks = check(
        shown.model,
        shown.guide,
        data.loader(),
        held_out=DataLoader(TensorDataset(*data.test), batch_size=1024),
        num_samples=NUM_DRAWS,
    )
    write_report(output / "report.html", data, results, shown, metrics, checks)
    _write_posterior(output / "posterior.nc", shown, data.train)
    save(output / "checkpoint", shown.model, shown.guide)
    (output / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    return metrics


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of ``metrics["methods"]`` as a text table; a dash where a value does not exist."""
    header = [title for title, _, _ in COLUMNS]
    body = [["–" if row[key] is None else format(row[key], style) for _, key, style in COLUMNS] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()
        for cells in (header, ["─" * width for width in widths], *body)
    )


def _folder(output: Path) -> Path:
    """Makes the folder and tries to write in it: a mistake should show before the training, not after."""
    if output.is_file():
        raise FileExistsError(errno.EEXIST, "expected a folder, this is a file", str(output))
    output.mkdir(parents=True, exist_ok=True)
    probe = output / ".writable"
    probe.touch()
    probe.unlink()
    return output


def _write_posterior(path: Path, shown: Result, train: tuple[Any, Any]) -> None:
    """The readout's draws and what leave-one-out needs of the training data."""
    data = to_arviz(
        shown.model,
        shown.guide,
        *train,
        num_samples=NUM_DRAWS,
        sites=["net.readout.*"],
        groups=["posterior", "posterior_predictive", "log_likelihood", "observed_data"],
    )
    data.to_netcdf(str(path))
