"""What every experiment shares: seeds, a table of means and standard errors, JSON, training data as a loader."""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.reproduce.tuning import Scores, Setting, check_budget, check_seeds, choose

__all__ = ["Batches", "Experiment", "arguments", "flip_and_shift", "subset", "validation_subset"]

Row = dict[str, float]
Pair = tuple[Tensor, Tensor]


@dataclass
class Batches:
    """Shuffled batches of tensors in memory: what a data loader does, without a copy for each row.

    Attributes:
        x: Inputs ``[N, ...]``.
        y: Targets ``[N, ...]``.
        batch_size: Rows of a batch; a last batch that is not full is left out.
        augment: What is done to a batch's inputs.
    """

    x: Tensor
    y: Tensor
    batch_size: int = 128
    augment: Callable[[Tensor], Tensor] | None = None

    @property
    def dataset(self) -> range:
        """Something as long as the data set."""
        return range(len(self.x))

    def __len__(self) -> int:
        return max(1, len(self.x) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.x))
        size = min(self.batch_size, len(order))
        for start in range(0, len(order) - size + 1, size):
            rows = order[start : start + size]
            yield (self.x[rows] if self.augment is None else self.augment(self.x[rows])), self.y[rows]


def flip_and_shift(x: Tensor) -> Tensor:
    """The augmentation of CIFAR-10: half of the images mirrored, the batch shifted by up to four pixels."""
    mirrored = torch.rand(len(x), 1, 1, 1) < 0.5
    x = torch.where(mirrored, x.flip(-1), x)
    down, right = (int(shift) for shift in torch.randint(0, 9, (2,)))
    height, width = x.shape[-2:]
    return F.pad(x, (4, 4, 4, 4))[..., down : down + height, right : right + width]


def subset(data: Pair, count: int, seed: int) -> Pair:
    """``count`` rows chosen by ``seed``."""
    rows = torch.randperm(len(data[0]), generator=torch.Generator().manual_seed(seed))[:count]
    return data[0][rows], data[1][rows]


def validation_subset(data: Pair, count: int, held: int, seed: int) -> tuple[Pair, Pair]:
    """``count`` rows to train on and ``held`` others to validate on, chosen by ``seed``."""
    x, y = subset(data, count + held, seed)
    return (x[:count], y[:count]), (x[count:], y[count:])


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options of every experiment."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a few steps of everything, to see that it runs")
    parser.add_argument("--json", metavar="PATH", help="write all numbers to a JSON file too")
    return parser


class Experiment:
    """Runs a function for each seed and shows the mean and standard error of each method's numbers.

    Args:
        title: Heading of the table.
        run: ``(seed, options) -> {method: {column: number}}``; it finds ``options.settings``, ``{method: value}``.
        section: The heading of the table that a method's row is in, where there is more than one.
        settings: What is chosen for each method, see :mod:`benchmarks.reproduce.tuning`.
        tune: ``(tuning seed, options) -> {method: {candidate: score}}``, on validation rows. It adds the options
            ``--tune`` and ``--tuning-seeds``.
    """

    def __init__(
        self,
        title: str,
        run: Callable[[int, argparse.Namespace], dict[str, Row]],
        section: Callable[[str], str] | None = None,
        settings: Mapping[str, Setting] | None = None,
        tune: Callable[[int, argparse.Namespace], Scores] | None = None,
    ) -> None:
        self.title = title
        self.run = run
        self.section = section
        self.settings = dict(settings or {})
        self.tune = tune
        check_budget(self.settings)
        self.scores: dict[int, Scores] = {}
        self.results: dict[str, list[Row]] = {}

    def main(self, parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> dict[str, list[Row]]:
        """Parses the command line, runs all seeds, prints the table, writes the JSON file."""
        if self.tune is not None:
            parser.add_argument("--tune", action="store_true", help="choose each method's setting on validation rows")
            parser.add_argument("--tuning-seeds", type=int, nargs="+", default=[100, 101], help="default: 100 101")
        options = parser.parse_args(argv)
        torch.set_num_threads(options.threads)
        started = time.perf_counter()
        options.settings = {method: setting.default for method, setting in self.settings.items()}
        if self.tune is not None and options.tune:
            options.settings |= self._chosen(options)
        for seed in options.seeds:
            for method, row in self.run(seed, options).items():
                self.results.setdefault(method, []).append(row)
                print(f"seed {seed}  {method}: {_line(row)}", file=sys.stderr, flush=True)
        print(self.table(len(options.seeds), time.perf_counter() - started))
        if options.json:
            content = {"title": self.title, "options": vars(options), "scores": self.scores, "results": self.results}
            Path(options.json).write_text(json.dumps(content, indent=1))
        return self.results

    def _chosen(self, options: argparse.Namespace) -> dict[str, float]:
        assert self.tune is not None
        check_seeds(options.seeds, options.tuning_seeds)
        for seed in options.tuning_seeds:
            self.scores[seed] = self.tune(seed, options)
        chosen = choose(self.scores.values())
        print("| method | setting | candidates | chosen |\n|---|---|---|---|")
        for method, value in chosen.items():
            tried = ", ".join(f"{candidate:g}" for candidate in self.settings[method].candidates)
            print(f"| {method} | {self.settings[method].name} | {tried} | {value:g} |", flush=True)
        return chosen

    def table(self, seeds: int, seconds: float) -> str:
        """Markdown: mean ± standard error over the seeds."""
        sections: dict[str, dict[str, list[Row]]] = {}
        for method, rows in self.results.items():
            sections.setdefault(self.section(method) if self.section else "", {})[method] = rows
        lines = [f"### {self.title}"]
        for heading, results in sections.items():
            columns = list(dict.fromkeys(name for rows in results.values() for row in rows for name in row))
            lines += ["", heading, ""] if heading else [""]
            lines += ["| method | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
            for method, rows in results.items():
                cells = [_cell([row[name] for row in rows if name in row]) for name in columns]
                lines.append(f"| {method} | " + " | ".join(cells) + " |")
        machine = f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}"
        return "\n".join([*lines, "", f"{seeds} seeds, mean ± standard error; {machine}; {seconds:.0f} s in all"])


def _cell(values: list[float]) -> str:
    if not values:
        return ""
    if any(math.isnan(value) for value in values):  # what a seed did not reach has no mean
        return "nan"
    spread = f" ± {stdev(values) / len(values) ** 0.5:.3g}" if len(values) > 1 else ""
    return f"{fmean(values):.4g}{spread}"


def _line(row: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in row.items())
