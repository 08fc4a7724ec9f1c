"""A training step with drawn structure, as a multiple of the step of the same network with fixed structure.

Baseline: the cell network of ``models.dbsn`` with fixed structure and points for the weights. Contenders: a point for
the structure, a concrete posterior with one draw a step, and with four, each for its share of the batch; points for the
weights in all of them.

    python -m benchmarks.structure --threads 1 --rounds 15
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it also runs as a file

from benchmarks.timing import CLOCKS, Alternating, environment, markdown_table, write_json
from benchmarks.training_step import single_step
from models import dbsn
from pyrobnn.estimators import PerGroup
from pyrobnn.guides import MAP, Guide
from pyrobnn.model.supervised import SupervisedModel

SIZES: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "small": (dbsn.SMALL, (128, 1, 14, 14)),
    "medium": ({"nodes": 5, "cells": 1}, (32, 3, 32, 32)),
}
"""Options of the network, and the shape of a batch."""


def step_of(size: str, make_guide: Callable[[SupervisedModel], Guide], is_random: bool, groups: int = 1) -> Any:
    """One step on random images."""
    options, shape = SIZES[size]
    torch.manual_seed(0)
    x, y = torch.rand(shape), torch.randint(10, shape[:1])
    model = dbsn.dbsn(60_000, is_random=is_random, **options)
    return single_step(model, make_guide(model), x, y, PerGroup(groups) if groups > 1 else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="default: all")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="pairs of blocks (default %(default)s)")
    parser.add_argument("--block-seconds", type=float, default=0.5, help="length of a block (default %(default)s)")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="wall, or cpu for a busy machine")
    parser.add_argument("--json", metavar="PATH", help="write everything to a JSON file too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pyro.enable_validation(False)  # as in fit from its second epoch on
    header = environment(options.threads, options.clock)
    print("\n".join(f"- {key}: {value}" for key, value in header.items()), flush=True)
    tables = {}
    for size in options.sizes:
        contenders = {
            "fixed structure": (MAP, False, 1),
            "a point for the structure": (dbsn.learned_structure, True, 1),
            "concrete, one draw": (dbsn.deep_bayesian_structure, True, 1),
            "concrete, four draws": (dbsn.deep_bayesian_structure, True, 4),
        }
        timings = []
        for name, contender in contenders.items():
            step = functools.partial(step_of, size)
            turns = Alternating(step(MAP, False), options.rounds, options.block_seconds, options.clock)
            run = step(*contender)
            for _ in turns:
                run()
            timings.append(turns.result(name))
        tables[size] = timings
        print(f"\n{markdown_table(f'Structure step, {size} cell network', timings)}", flush=True)
    if options.json:
        write_json(options.json, header, tables)


if __name__ == "__main__":
    main()
