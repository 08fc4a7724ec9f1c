"""Size, latency and error of exported programs, beside pyrobnn's own predict.

For each network and number K of draws: the program in a file of torch and of ONNX, in single precision and with rounded
weights; the time of one call for a batch, as a multiple of ``pb.predict`` under the same draws, kept in memory; the
largest difference from it. Each pair of calls is timed back to back (:mod:`benchmarks.timing`).

    python -m benchmarks.exported --networks mlp lenet --draws 1 10 --batch 32 --rounds 9
    python -m benchmarks.exported --json exported.json
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it also runs as a file

import pyrobnn as pb
from benchmarks.networks import lenet, mlp, resnet20
from benchmarks.timing import CLOCKS, Alternating, environment
from pyrobnn.exporting import Exported

PRECISIONS = ("float32", "bfloat16", "int8")


class Transformer(nn.Module):
    """Two layers of width 64 with four heads over 32 tokens, pooled: 81,162 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(200, 64)
        layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(64, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of sequences."""
        return self.head(self.encoder(self.embedding(tokens)).mean(1))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor]]] = {
    "mlp": (mlp, lambda rows: torch.randn(rows, 784)),
    "lenet": (lenet, lambda rows: torch.randn(rows, 1, 28, 28)),
    "resnet20": (resnet20, lambda rows: torch.randn(rows, 3, 32, 32)),
    "transformer": (Transformer, lambda rows: torch.randint(200, (rows, 32))),
}


@dataclass(frozen=True)
class Row:
    """A program.

    Attributes:
        network: The network.
        draws: Number K of draws.
        format: ``"torch"`` or ``"onnx"``.
        precision: How weights are kept.
        mebibytes: Size of the file.
        milliseconds: Median time of a call.
        ratio: Median over the pairs of its time to that of predict.
        low: 20th percentile of that ratio.
        high: 80th percentile.
        seconds: Time of the export.
        error: Largest absolute difference from predict, of the mean probabilities.
        epistemic_error: That of the mutual information.
    """

    network: str
    draws: int
    format: str
    precision: str
    mebibytes: float
    milliseconds: float
    ratio: float
    low: float
    high: float
    seconds: float
    error: float
    epistemic_error: float


def caller(exported: Exported, x: Tensor) -> Callable[[], Any]:
    """A call of the program on a batch, by one thread."""
    if exported.format == "torch":
        program = torch.export.load(exported.path).module()

        def run() -> Any:
            with torch.no_grad():
                return program(x)

        return run
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(exported.path, options, providers=["CPUExecutionProvider"])
    given = {"x": x.numpy()}
    return lambda: session.run(None, given)


def measured(
    name: str, draws: int, batch: int, rounds: int, precisions: list[str], clock: str, method: str
) -> Iterator[Row]:
    """The rows of a network at one number of draws."""
    make, inputs = NETWORKS[name]
    torch.manual_seed(0)
    model = pb.SupervisedModel(make(), pb.likelihoods.Categorical(), num_data=1000)
    guide = pb.guides.MeanField(model, init_scale=0.02)
    x = inputs(batch)
    kept = dict(guide.sample(draws))
    with tempfile.TemporaryDirectory() as folder:
        for format, suffix in (("torch", ".pt2"), ("onnx", ".onnx")):
            for precision in precisions:
                started = time.perf_counter()
                exported = pb.export(
                    *(model, kept, x, Path(folder) / f"program{suffix}"),
                    num_samples=draws,
                    format=format,  # type: ignore[arg-type]
                    precision=precision,  # type: ignore[arg-type]
                    method=method,  # type: ignore[arg-type]
                )
                seconds = time.perf_counter() - started
                run = caller(exported, x)
                turns = Alternating(lambda: pb.predict(model, kept, x, draws), rounds, 0.0, clock)
                for _ in turns:
                    run()
                timing = turns.result(name)
                yield Row(
                    *(name, draws, format, precision, exported.num_bytes / 2**20),
                    *(timing.milliseconds, timing.ratio, timing.low, timing.high, seconds),
                    *(exported.errors["mean"], exported.errors["epistemic"]),
                )


def table(rows: list[Row]) -> str:
    """The rows as a markdown table."""
    lines = [
        "| network | K | format | weights | MiB | ms | of predict | 20-80 % | error of mean | of epistemic |",
        "|---|---:|---|---|---:|---:|---:|---|---:|---:|",
    ]
    lines += [
        f"| {r.network} | {r.draws} | {r.format} | {r.precision} | {r.mebibytes:.2f} | {r.milliseconds:.2f} | "
        f"**{r.ratio:.2f}** | {r.low:.2f}-{r.high:.2f} | {r.error:.1e} | {r.epistemic_error:.1e} |"
        for r in rows
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--draws", nargs="+", type=int, default=[1, 10, 30])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--method", choices=("auto", "vmap", "loop"), default="auto", help="how draws run")
    parser.add_argument("--batch", type=int, default=32, help="rows of a call (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="pairs of calls (default %(default)s)")
    parser.add_argument("--clock", choices=CLOCKS, default="cpu")
    parser.add_argument("--json", help="also write everything to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    header = environment(1, options.clock)
    print("\n".join(f"- {key}: {value}" for key, value in header.items()), flush=True)
    rows: list[Row] = []
    for name in options.networks:
        for draws in options.draws:
            for row in measured(
                name, draws, options.batch, options.rounds, options.precisions, options.clock, options.method
            ):
                rows.append(row)
                print(table([row]).splitlines()[-1], flush=True)
                if options.json:
                    content = {"environment": header, "rows": [asdict(entry) for entry in rows]}
                    Path(options.json).write_text(json.dumps(content, indent=2) + "\n")
    print(f"\n{table(rows)}")


if __name__ == "__main__":
    main()
