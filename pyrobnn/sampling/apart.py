"""Chains that run by themselves, over any executor, each as a run of :func:`pyrobnn.sample` with a seed of its own."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import torch

from pyrobnn.core.batches import Batch
from pyrobnn.core.executors import Units, unit_seeds
from pyrobnn.core.trees import to_device
from pyrobnn.guides.chains import Chains
from pyrobnn.model.declarations import example_if_needed
from pyrobnn.model.layout import Layout
from pyrobnn.sampling.initialization import ChainInit, chain_seed, initial_points
from pyrobnn.sampling.sgmcmc.run import SamplingDivergedWarning, described_kernel

__all__ = ["apart"]


def apart(
    sample: Callable[..., Chains],
    model: Callable[..., Any],
    data: Any,
    init: ChainInit,
    num_chains: int,
    options: Mapping[str, Any],
    executor: Executor,
    seed: int | None,
    directory: str | Path | None,
    resume: bool,
) -> Chains:
    """Runs each chain on the executor and joins their draws.

    Args:
        sample: :func:`pyrobnn.sample`.
        model: The model.
        data: A loader, or the model's arguments.
        init: Where the chains start.
        num_chains: Number C of chains.
        options: Further arguments of :func:`pyrobnn.sample`.
        executor: Where chains run.
        seed: Seeds the starting points and the seeds of the chains.
        directory: Where each chain is written to.
        resume: Whether to take the chains that are there.

    Warns:
        SamplingDivergedWarning: If a chain diverged; all are cut to as many draws as it has.

    Raises:
        WorkerLostError: If a worker died.
        ValueError: If ``directory`` holds another call's chains.
    """
    example = example_if_needed(model, _arguments(data, options))
    layout = Layout.of(model, example=example)
    with chain_seed(seed):  # and no longer: other threads wait until it ends
        starts = initial_points(layout, model, init, num_chains)
        seeds = unit_seeds(num_chains)
    settings = {
        "num_chains": num_chains,
        "sites": {site.name: list(site.shape) for site in layout.values()},
        "kernel": described_kernel(options["kernel"]),
        **{name: options[name] for name in ("num_samples", "warmup_steps", "thinning")},
        "seeds": seeds,
        "starts": [float(row.double().sum()) for row in starts],
    }
    units = Units("chain", directory, resume, settings, drawn=() if seed is not None else ("seeds", "starts"))
    with units.recorded() as taken:
        own = {f"chain-{chain}": (starts[chain], taken["seeds"][chain]) for chain in range(num_chains)}
        found = units.run(_one, (sample, model, data, dict(options)), own, executor)
    return _joined(model, list(found.values()), example, options["num_samples"], starts.device)


def _one(
    sample: Callable[..., Chains],
    model: Callable[..., Any],
    data: Any,
    options: dict[str, Any],
    start: torch.Tensor,
    seed: int,
) -> dict[str, Any]:
    """One chain: its draws ``[S, P]`` and statistics ``[S]``; warnings of divergence are left to the caller."""
    layout = Layout.of(model, example=example_if_needed(model, _arguments(data, options)))
    values = layout.constrain(layout.split(start))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SamplingDivergedWarning)
        chain = sample(model, data, init=values, num_chains=1, seed=seed, progress=False, **options)
    flat = torch.cat([block.detach()[:, 0].cpu() for block in chain.blocks])
    return {"draws": flat, "stats": {name: value[0].cpu() for name, value in chain.stats.items()}}


def _joined(
    model: Callable[..., Any], found: list[dict[str, Any]], example: Any, num_samples: int, device: torch.device
) -> Chains:
    lengths = [len(one["draws"]) for one in found]
    least = min(lengths)
    if least < num_samples:
        warnings.warn(
            f"sampling diverged in chain {lengths.index(least)} after {least} draws, to which all chains are cut. "
            "Lower the step size.",
            SamplingDivergedWarning,
            stacklevel=5,
        )
    draws = torch.stack([one["draws"][:least] for one in found], 1)
    stats = {name: torch.stack([one["stats"][name][:least] for one in found]) for name in found[0]["stats"]}
    return Chains(model, len(found), least, [draws], stats=stats, example=example).to(device)


def _arguments(data: Any, options: Mapping[str, Any]) -> tuple[Any, ...]:
    """Arguments of one run of the model."""
    if isinstance(data, tuple):
        return to_device(data, options["device"])
    return Batch.read(next(iter(data)), options["device"], options["batch"], argument="data").args
