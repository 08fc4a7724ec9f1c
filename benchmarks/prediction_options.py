"""Prediction in half precision, with channels last and compiled: time, and what it does to a classifier of digits.

    python -m benchmarks.prediction_options --rounds 7

Speed: ``predict`` of kept draws with random weights, as a multiple of ``predict`` as it is by default. Errors: a small
convolutional network trained on scikit-learn's digits, mean field, the same draws either way, on 360 held-out rows.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it also runs as a file

from benchmarks.networks import WORKLOADS
from benchmarks.timing import Alternating, Timing, environment, markdown_table
from benchmarks.training_step import arguments, bayesian
from pyrobnn.guides import MeanField
from pyrobnn.model.likelihoods import Categorical
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.prediction import predict
from pyrobnn.training import fit

VARIANTS: dict[str, dict[str, Any]] = {
    "by default, again": {},
    "bfloat16": {"precision": "bfloat16"},
    "channels last": {"memory_format": torch.channels_last},
    "both": {"precision": "bfloat16", "memory_format": torch.channels_last},
    "compiled": {"compile": True},
    "compiled, both": {"compile": True, "precision": "bfloat16", "memory_format": torch.channels_last},
}


def measure(name: str, inputs: int, draws: int, rounds: int, clock: str, only: str = "") -> list[Timing]:
    """Each variant beside the default."""
    workload = WORKLOADS[name]()
    model, guide = bayesian(workload, MeanField)
    kept, x, timings = guide.sample(draws), workload.inputs(inputs), []
    for variant, options in VARIANTS.items():
        if (x.dim() != 4 and "memory_format" in options) or only not in variant:
            continue
        turns = Alternating(lambda: predict(model, kept, x, draws), rounds, 0.0, clock)
        for _ in turns:
            predict(model, kept, x, draws, **options)
        timings.append(turns.result(variant))
    return timings


def digits(seed: int) -> tuple[TensorDataset, Tensor, Tensor]:
    """Training data, and 360 held-out inputs with their labels."""
    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(seed))
    x = torch.as_tensor(found.data, dtype=torch.float32).reshape(-1, 1, 8, 8)[order] / 16
    y = torch.as_tensor(found.target)[order]
    return TensorDataset(x[360:], y[360:]), x[:360], y[:360]


def errors(seed: int, draws: int) -> str:
    """Rows of a table: differences of class probabilities, accuracy and NLL."""
    train, x, y = digits(seed)
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(1024, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    model = SupervisedModel(net, Categorical(), num_data=len(train))
    guide = MeanField(model)
    fit(model, guide, DataLoader(train, batch_size=64, shuffle=True), epochs=20, progress=False, seed=seed)
    rows, wanted = [], None
    for variant, options in {"float32": {}, **VARIANTS}.items():
        found = predict(model, guide, x, draws, seed=seed, **options)
        wanted = wanted or found
        apart = (found.mean - wanted.mean).abs()
        accuracy = (found.mean.argmax(-1) == y).float().mean()
        nll = -found.mean.gather(1, y.unsqueeze(1)).log().mean()
        rows.append(f"| {seed} | {variant} | {apart.max():.1e} | {apart.mean():.1e} | {accuracy:.4f} | {nll:.4f} |")
    return "\n".join(rows)


def main() -> None:
    parser = arguments(__doc__, rounds=7)
    parser.set_defaults(networks=["mlp", "lenet", "resnet20"])
    parser.add_argument("--draws", type=int, default=8, help="posterior draws (default %(default)s)")
    parser.add_argument("--inputs", type=int, default=256, help="number of inputs (default %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="of the classifier of digits")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    header = environment(options.threads, options.clock)
    print("\n".join(f"- {key}: {value}" for key, value in header.items()), flush=True)
    for name in options.networks:
        found = measure(name, options.inputs, options.draws, options.rounds, options.clock, options.only)
        print(f"\n{markdown_table(f'{name}, {options.draws} draws of {options.inputs} inputs', found)}", flush=True)
    print("\n| seed | | largest difference | mean difference | accuracy | NLL |\n|---|---|---:|---:|---:|---:|")
    for seed in options.seeds:
        print(errors(seed, 50), flush=True)


if __name__ == "__main__":
    main()
