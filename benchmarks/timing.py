"""Timing in adjacent pairs: each block of a contender directly follows a block of the baseline.

On a shared machine absolute times drift by tens of per cent within minutes. Two blocks run back to back in one process
drift together, so the ratio of a pair is steady, and the median over pairs shrugs off the interrupted ones.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

__all__ = ["CLOCKS", "Alternating", "Timing", "environment", "markdown_table", "write_json"]

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
"""Elapsed time, or this process's processor time, which on a busy machine is the steadier with one thread."""


@dataclass(frozen=True)
class Timing:
    """How long one call of a contender takes, beside its baseline.

    Attributes:
        name: The contender.
        milliseconds: Median time of a call.
        ratio: Median over the pairs of contender's to baseline's time.
        low, high: 20th and 80th percentile of that ratio.
        above: Median over the pairs of contender's minus baseline's time, in milliseconds.
        rounds: Number of pairs.
    """

    name: str
    milliseconds: float
    ratio: float
    low: float
    high: float
    above: float
    rounds: int


class Alternating:
    """Times the body of a ``for`` loop against a baseline: ``for _ in Alternating(baseline): contender()``.

    Being an iterator it can also pace a loop that belongs to someone else, as a data loader in a training loop.

    Args:
        baseline: The call to compare with.
        rounds: Number of pairs of blocks; one more pair warms both sides up and is not counted.
        block_seconds: Length of a block, which holds one call at least.
        clock: A key of :data:`CLOCKS`.
    """

    def __init__(self, baseline: Callable[[], Any], rounds: int, block_seconds: float, clock: str = "wall") -> None:
        self.baseline = baseline
        self.rounds = rounds
        self.block_seconds = block_seconds
        self.clock = CLOCKS[clock]
        self.pairs: list[tuple[float, float]] = []

    def __iter__(self) -> Iterator[None]:
        self.pairs = []
        for index in range(self.rounds + 1):
            baseline = _Stopwatch(self.block_seconds, self.clock)
            while baseline.goes_on():
                self.baseline()
            contender = _Stopwatch(self.block_seconds, self.clock)
            while contender.goes_on():
                yield
            if index:
                self.pairs.append((baseline.mean, contender.mean))

    def result(self, name: str) -> Timing:
        """Medians over the pairs, once the loop has ended."""
        ratios = sorted(contender / baseline for baseline, contender in self.pairs)
        return Timing(
            name=name,
            milliseconds=1e3 * statistics.median(contender for _, contender in self.pairs),
            ratio=statistics.median(ratios),
            low=_quantile(ratios, 0.2),
            high=_quantile(ratios, 0.8),
            above=1e3 * statistics.median(contender - baseline for baseline, contender in self.pairs),
            rounds=len(self.pairs),
        )


class _Stopwatch:
    """Counts calls until a block is over."""

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self.seconds, self.clock, self.count, self.elapsed = seconds, clock, -1, 0.0
        self.start = clock()

    def goes_on(self) -> bool:
        self.count += 1
        self.elapsed = self.clock() - self.start
        return self.count == 0 or self.elapsed < self.seconds

    @property
    def mean(self) -> float:
        return self.elapsed / self.count


def _quantile(ordered: Sequence[float], level: float) -> float:
    return ordered[round(level * (len(ordered) - 1))]


def environment(threads: int, clock: str) -> dict[str, str]:
    """Hardware and versions, for the head of a report."""
    versions = []
    for package in ("torch", "pyro-ppl", "pyrobnn", "bayesian-torch", "posteriors", "torchopt"):
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            versions.append(f"{package} not installed")
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": f"{_processor()}, {os.cpu_count()} cores, {threads} thread(s) used",
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "versions": ", ".join(versions),
        "clock": clock,
        "load": f"{os.getloadavg()[0]:.1f} at the start (1-minute average)",
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def markdown_table(title: str, timings: Sequence[Timing], *, above: bool = False) -> str:
    """The timings as a markdown table.

    Args:
        title: Heading above the table.
        timings: The rows.
        above: Add the column of milliseconds above the baseline.
    """
    extra = (" ms above |", "---:|") if above else ("", "")
    lines = [
        f"### {title}",
        "",
        f"| contender | ms | ratio | 20-80 % |{extra[0]}",
        f"|---|---:|---:|---|{extra[1]}",
    ]
    for t in timings:
        row = f"| {t.name} | {t.milliseconds:.2f} | **{t.ratio:.2f}** | {t.low:.2f}-{t.high:.2f} |"
        lines.append(row + (f" {t.above:.2f} |" if above else ""))
    return "\n".join(lines)


def write_json(path: str, header: dict[str, str], tables: Mapping[str, Sequence[Timing]], **more: Any) -> None:
    """Everything that was measured, as JSON."""
    rows = {title: [asdict(timing) for timing in timings] for title, timings in tables.items()}
    Path(path).write_text(json.dumps({"environment": header, "timings": rows, **more}, indent=2) + "\n")
