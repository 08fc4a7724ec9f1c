"""The state of a whole training run: what a checkpoint holds, so that a resumed run continues bit for bit."""

from __future__ import annotations

from typing import Any

import torch

from pyrobnn.core import random_state
from pyrobnn.training.history import History
from pyrobnn.training.run import Run
from pyrobnn.training.state import generators, read_tensors, write_tensors

__all__ = ["read_run", "write_run"]


def read_run(run: Run) -> dict[str, Any]:
    """The state from which the run can be resumed."""
    return {
        "tensors": read_tensors(run.model, run.guide),
        "best": run.best,
        "best_value": run.best_value,
        "epochs_since_best": run.epochs_since_best,
        "optimizer": run.torch_optimizer.state_dict(),
        "scheduler": None if run.scheduler is None else run.scheduler.state_dict(),
        "num_steps": run.elbo.num_steps,
        "players": [player.read() for player in run.players],
        "history": run.history.to_dict(),
        "random": random_state.read_all(_generators(run)),
    }


def write_run(run: Run, state: dict[str, Any]) -> None:
    """Restores what :func:`read_run` returned.

    Raises:
        ValueError: If the state is that of another model, guide, optimizer, scheduler or loader.
    """
    if (run.scheduler is None) != (state["scheduler"] is None):
        raise ValueError(
            f"scheduler: the run to resume was made {'with' if run.scheduler is None else 'without'} one; pass the "
            "same arguments as then."
        )
    if len(_generators(run)) != len(state["random"]["generators"]):
        raise ValueError(
            f"loader: it has {len(_generators(run))} random generators of its own, but in the run to resume there were "
            f"{len(state['random']['generators'])}; build the loader as it was built then."
        )
    names = [player["name"] for player in state["players"]]
    if names != [player.name for player in run.players]:
        raise ValueError(f"players: the run to resume had {names}, but now there are {[p.name for p in run.players]}.")
    before = read_tensors(run.model, run.guide)
    try:
        write_tensors(run.model, run.guide, state["tensors"])
        run.torch_optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError) as error:
        write_tensors(run.model, run.guide, before)
        raise ValueError(f"checkpoint: it is that of another model, guide or optimizer: {error}") from error
    for player, own in zip(run.players, state["players"], strict=True):
        player.write(own)
    if run.scheduler is not None:
        run.scheduler.load_state_dict(state["scheduler"])
    run.best, run.best_value = state["best"], state["best_value"]
    run.epochs_since_best = state["epochs_since_best"]
    run.elbo.num_steps = state["num_steps"]
    run.history = History(**state["history"])
    if run.history.stopped == "callback":  # the callback is called again
        run.history.stopped = ""
    random_state.write_all(state["random"], _generators(run))


def _generators(run: Run) -> list[torch.Generator]:
    return generators(run.loader, run.validation)
