"""All draws of a prediction in one call (``method="vmap"``) beside one after another (``"loop"``), under kept draws.

    python -m benchmarks.vectorization --networks small mlp lenet resnet20 attention --draws 10 100 --rows 1 16 64 256

For each the bytes of activations of a draw, by which ``"auto"`` chooses on a CPU, and the ratio of vmap's time to the
loop's: below 1 vmap is faster.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it also runs as a file

from benchmarks.networks import WORKLOADS
from benchmarks.timing import CLOCKS, Alternating, environment
from pyrobnn.guides import MeanField
from pyrobnn.model.likelihoods import Categorical
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.prediction import predict
from pyrobnn.prediction.rows import measured


class Attention(nn.Module):
    """Two layers of attention over 16 places, 64 wide, and the mean over places."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.last = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs ``[B, 10]`` of inputs ``[B, 16, 64]``."""
        return self.last(self.encoder(x).mean(1))


NETWORKS: dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]] = {
    "small": lambda: (nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)), (64,)),
    "mlp": lambda: (WORKLOADS["mlp"]().net, (784,)),
    "lenet": lambda: (WORKLOADS["lenet"]().net, (1, 28, 28)),
    "resnet20": lambda: (WORKLOADS["resnet20"]().net, (3, 32, 32)),
    "attention": lambda: (Attention(), (16, 64)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--draws", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 64, 256, 1024])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=CLOCKS, default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print("\n".join(f"- {key}: {value}" for key, value in environment(options.threads, options.clock).items()))
    print("\n| network | rows | KiB of activations | draws | loop, ms | vmap / loop | 20-80 % |")
    print("|---|---:|---:|---:|---:|---:|---|", flush=True)
    for name in options.networks:
        torch.manual_seed(0)
        net, shape = NETWORKS[name]()
        model = SupervisedModel(net, Categorical(), num_data=1000)
        for draws in options.draws:
            kept = MeanField(model).sample(draws)
            for rows in options.rows:
                x = torch.randn(rows, *shape)
                with torch.no_grad():
                    nbytes = measured(net, x, net.eval())[1]
                loop = functools.partial(predict, model, kept, x, draws, method="loop")
                turns = Alternating(loop, options.rounds, 0.02, options.clock)
                for _ in turns:
                    predict(model, kept, x, draws, method="vmap")
                found = turns.result(name)
                milliseconds = found.milliseconds - found.above
                row = (name, rows, f"{nbytes / 1024:.0f}", draws, f"{milliseconds:.1f}", f"**{found.ratio:.2f}**")
                print("| " + " | ".join(map(str, row)) + f" | {found.low:.2f}-{found.high:.2f} |", flush=True)


if __name__ == "__main__":
    main()
