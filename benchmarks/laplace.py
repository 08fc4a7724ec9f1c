"""Laplace over the last layer, as a multiple of one forward pass over the data.

Baseline: the plain network over all batches, in evaluation mode without gradients. A fit is curvature and one draw, for
which the covariance is factored; ``tuned`` means that the prior precision is optimized by the evidence in between.
laplace-torch is measured if it is installed (with the packages that its ``asdl`` and ``curvlinops`` backends import).

    python -m benchmarks.laplace --size 64 --rounds 3
    python -m benchmarks.laplace --size 224 --rounds 3 --structures full diagonal
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


def ours(net: nn.Module, loader: DataLoader[Any], structure: str, tuned: bool, everywhere: bool) -> Callable[[], None]:
    """Curvature, the factorization, a draw."""
    model = SupervisedModel(net, Categorical(), dist.Normal(0.0, 1.0), num_data=len(loader.dataset))  # type: ignore[arg-type]

    def run() -> None:
        guide = Laplace(model, structure=STRUCTURES[structure], last_layer=None if everywhere else True)  # type: ignore[arg-type]
        guide.fit(model, loader)
        if tuned:
            guide.optimize_prior_precision()
        guide.sample(1)

    return run


def laplace_torch(
    net: nn.Module, loader: DataLoader[Any], structure: str, tuned: bool, everywhere: bool
) -> Callable[[], None]:
    """The same of laplace-torch, with its default backend."""
    from laplace import Laplace as Peer

    subset = "all" if everywhere else "last_layer"

    def run() -> None:
        guide = Peer(net, "classification", subset_of_weights=subset, hessian_structure=PEER_NAMES[structure])
        guide.fit(loader)
        if tuned:
            guide.optimize_prior_precision(method="marglik")
        guide.sample(1)

    return run


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
        for name, contender in (("pyrobnn", ours), ("laplace-torch", laplace_torch)):
            if contender is laplace_torch and not options.peer:
                continue
            try:
                run = contender(net, loader, structure, options.tuned, options.everywhere)
            except ImportError as error:
                print(f"{name}: {error}", file=sys.stderr)
                continue
            turns = Alternating(forward(net, loader), options.rounds, 0.0, options.clock)
            for _ in turns:
                run()
            timings.append(turns.result(f"{name}, {structure}{', tuned' if options.tuned else ''}"))
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
