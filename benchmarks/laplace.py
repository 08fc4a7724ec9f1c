"""Laplace over the last layer, as a multiple of one forward pass over the data.

Baseline: the plain network over all batches, in evaluation mode without gradients. Contenders are the constructor, the
fit (the curvature; of Kronecker factors with their decomposition), and the fit with one draw, for which a full matrix
is factored; ``tuned`` means that the prior precision is optimized by the evidence before the draw. laplace-torch is
measured if it is installed (with the packages that its ``asdl`` and ``curvlinops`` backends import).

    python -m benchmarks.laplace --size 64 --rounds 3
    python -m benchmarks.laplace --size 224 --images 24 --batch-size 8 --rounds 3
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it also runs as a file

from benchmarks.timing import CLOCKS, Alternating, environment, markdown_table, write_json
from pyrobnn.guides import Laplace
from pyrobnn.model.likelihoods import Categorical
from pyrobnn.model.supervised import SupervisedModel

STRUCTURES = {"full": "last_layer", "kronecker": "kronecker", "diagonal": "diagonal"}
PEER_NAMES = {"full": "full", "kronecker": "kron", "diagonal": "diag"}


def forward(net: nn.Module, loader: DataLoader[Any]) -> Callable[[], None]:
    """The network over all batches."""

    def run() -> None:
        with torch.no_grad():
            for x, _ in loader:
                net(x)

    return run


class Ours:
    """A guide of this library."""

    name = "pyrobnn"

    def __init__(self, net: nn.Module, loader: DataLoader[Any], structure: str, everywhere: bool) -> None:
        prior, rows = dist.Normal(0.0, 1.0), len(loader.dataset)  # type: ignore[arg-type]
        self.model, self.loader = SupervisedModel(net, Categorical(), prior, num_data=rows), loader
        self.structure, self.last_layer = STRUCTURES[structure], None if everywhere else True
        self.make()

    def make(self) -> None:
        """A guide."""
        self.guide = Laplace(self.model, structure=self.structure, last_layer=self.last_layer)  # type: ignore[arg-type]

    def fit(self) -> None:
        """Its curvature."""
        self.guide.fit(self.model, self.loader)

    def tune(self) -> None:
        """Its prior precision."""
        self.guide.optimize_prior_precision()


class Peer:
    """One of laplace-torch, with its default backend."""

    name = "laplace-torch"

    def __init__(self, net: nn.Module, loader: DataLoader[Any], structure: str, everywhere: bool) -> None:
        self.net, self.loader = net, loader
        subset = "all" if everywhere else "last_layer"
        self.options = {"subset_of_weights": subset, "hessian_structure": PEER_NAMES[structure]}
        self.make()

    def make(self) -> None:
        """A posterior."""
        import laplace

        self.guide = laplace.Laplace(self.net, "classification", **self.options)

    def fit(self) -> None:
        """Its curvature."""
        self.guide.fit(self.loader)

    def tune(self) -> None:
        """Its prior precision."""
        self.guide.optimize_prior_precision(method="marglik")


def stages(contender: Ours | Peer, tuned: bool) -> dict[str, Callable[[], None]]:
    """What is timed of a contender, by name."""

    def whole() -> None:
        contender.fit()
        if tuned:
            contender.tune()
        contender.guide.sample(1)

    return {"constructor": contender.make, "fit": contender.fit, f"fit{', tuned' if tuned else ''}, draw": whole}


def main() -> None:
    """Prints a table, and writes it as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64, help="height and width of the images")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--structures", nargs="+", default=list(STRUCTURES), choices=list(STRUCTURES))
    parser.add_argument("--everywhere", action="store_true", help="all layers (diagonal and Kronecker structures)")
    parser.add_argument("--tuned", action="store_true", help="with the prior precision optimized")
    parser.add_argument("--peer", action=argparse.BooleanOptionalAction, default=True, help="laplace-torch, too")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=list(CLOCKS), default="cpu")
    parser.add_argument("--json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    import torchvision

    net = torchvision.models.resnet18(num_classes=options.classes).eval()
    x = torch.randn(options.images, 3, options.size, options.size)
    data = TensorDataset(x, torch.randint(options.classes, (options.images,)))
    loader = DataLoader(data, batch_size=options.batch_size)
    timings = []
    for structure in options.structures:
        for kind in (Ours, Peer) if options.peer else (Ours,):
            try:
                contender = kind(net, loader, structure, options.everywhere)
            except ImportError as error:
                print(f"{kind.name}: {error}", file=sys.stderr)
                continue
            for stage, run in stages(contender, options.tuned).items():
                turns = Alternating(forward(net, loader), options.rounds, 0.0, options.clock)
                for _ in turns:
                    run()
                timings.append(turns.result(f"{contender.name}, {structure}: {stage}"))
                print(timings[-1], file=sys.stderr, flush=True)
    where = "all layers" if options.everywhere else "last layer"
    title = (
        f"{where} of resnet18, {options.images} images of 3x{options.size}x{options.size}, {options.classes} classes"
    )
    print(markdown_table(title, timings))
    if options.json:
        write_json(options.json, environment(options.threads, options.clock), {title: timings})


if __name__ == "__main__":
    main()
