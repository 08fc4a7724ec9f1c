"""The state of a whole training run: what a checkpoint holds, so that a resumed run continues bit for bit."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyrobnn.core import random_state, schema
from pyrobnn.core.batch_form import FORM
from pyrobnn.core.files import CheckpointError
from pyrobnn.core.storage import described, restoring, write_state
from pyrobnn.model.declarations import declared_num_data
from pyrobnn.objectives.terms import read_terms, write_terms
from pyrobnn.training import recording
from pyrobnn.training.history import History
from pyrobnn.training.run import Run
from pyrobnn.training.state import different_tensor, generators, group_sizes, read_tensors, write_tensors

__all__ = ["read_run", "recorded", "save_run", "write_run"]

_STATE_DICT = schema.table(schema.instance(Tensor, "a tensor"))
_TENSORS = schema.record({"model": _STATE_DICT, "guide": _STATE_DICT})
_REAL = schema.either("a number", schema.instance(float, "a float"), schema.whole(-(2**63)))
_PLAIN = schema.table(schema.anything)
_RUN = schema.record(
    {
        "tensors": _TENSORS,
        "best": schema.optional(_TENSORS),
        "best_value": _REAL,
        "epochs_since_best": schema.whole(0),
        "kinds": schema.table(schema.text),
        "optimizer": _PLAIN,
        "scheduler": schema.optional(_PLAIN),
        "num_steps": schema.whole(0),
        "terms": schema.table(_STATE_DICT),
        "data": schema.record(
            {
                "num_data": schema.optional(schema.whole(0)),
                "rows": schema.items(schema.whole(0)),
                "form": schema.optional(FORM),
            }
        ),
        "players": schema.items(
            schema.record(
                {
                    "name": schema.text,
                    "module": _STATE_DICT,
                    "optimizer": _PLAIN,
                    "num_steps": schema.whole(0),
                    "terms": schema.table(_STATE_DICT),
                }
            )
        ),
        "history": schema.record(
            {name: schema.items(_REAL) for name, value in History().to_dict().items() if isinstance(value, list)}
            | {
                "terms": schema.table(schema.items(_REAL)),
                "steps": schema.whole(0),
                "planned": schema.whole(0),
                "stopped": schema.text,
                "divergence_name": schema.text,
            }
        ),
        "random": schema.record({"generators": schema.items(schema.anything)}, others=schema.anything),
    }
)


@contextlib.contextmanager
def recorded(run: Run, directory: Path | None, resume: bool) -> Iterator[None]:
    """The run's directory for a block (:func:`pyrobnn.training.recording.recorded`).

    Of several processes the first reads and writes it, and the others get the state from there.
    """

    restored: list[bool] = []

    def restore(state: Any, found: Path) -> None:
        write_run(run, state, found)
        restored.append(True)

    with contextlib.ExitStack() as stack:

        def begin() -> dict[str, Any] | None:
            given = recording.recorded(directory, resume, restore, lambda: run.is_finished, "fit")
            stack.enter_context(given)
            return read_run(run) if restored else None

        if run.ranks is None:
            begin()
        elif (state := run.ranks.first(begin)) is not None:
            _restore(run, state)
        yield


def save_run(run: Run, directory: Path) -> None:
    """Writes the run's state, in the first of several processes; the caller is in :func:`recorded`.

    Raises:
        OSError: If writing fails; what was there before is untouched.
    """
    if run.ranks is None:
        write_state(directory, read_run(run), "checkpoint")
    else:
        run.ranks.first(lambda: write_state(directory, read_run(run), "checkpoint"))


def read_run(run: Run) -> dict[str, Any]:
    """The state from which the run can be resumed."""
    return {
        "tensors": read_tensors(run.model, run.guide),
        "best": run.best,
        "best_value": run.best_value,
        "epochs_since_best": run.epochs_since_best,
        "kinds": _kinds(run),
        "optimizer": run.torch_optimizer.state_dict(),
        "scheduler": None if run.scheduler is None else run.scheduler.state_dict(),
        "num_steps": run.elbo.num_steps,
        "terms": read_terms(run.elbo.terms),
        "data": _read_data(run),
        "players": [player.read() for player in run.players],
        "history": run.history.to_dict(),
        "random": random_state.read_all(_generators(run)) | run.read_random(),
    }


def _read_data(run: Run) -> dict[str, Any]:
    """What is known of the run's data."""
    return {"num_data": declared_num_data(run.model), "rows": list(run.stated_rows), "form": run.form}


def _counted(stated: int | list[int] | None) -> str:
    return " or ".join(map(str, stated if isinstance(stated, list) else [stated]))


def write_run(run: Run, state: Any, directory: Path) -> None:
    """Restores what :func:`read_run` returned, all of it or nothing.

    Raises:
        CheckpointError: If it is damaged.
        ValueError: If the state is that of another model, guide, optimizer, scheduler or loader.
    """
    with described("checkpoint", directory, "training"):
        _RUN(state, "state")
    _check_same(run, state)
    before = copy.deepcopy(read_run(run))
    try:
        with restoring("checkpoint", directory):
            _restore(run, state)
    except CheckpointError:
        _restore(run, before)
        raise


def _check_same(run: Run, state: dict[str, Any]) -> None:
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
    was, now = state["data"], _read_data(run)
    for name in ("num_data", "rows"):  # an empty list says nothing
        if was[name] != now[name] and (name == "num_data" or (was[name] and now[name])):
            what = "num_data: the model" if name == "num_data" else "loader: its data set"
            raise ValueError(
                f"{what} had {_counted(was[name])} data in the run to resume, but now has {_counted(now[name])}; a run "
                "is resumed with the data that it began with: fit the guide anew to others, without resume."
            )
    names = [player["name"] for player in state["players"]]
    if names != [player.name for player in run.players]:
        raise ValueError(f"players: the run to resume had {names}, but now there are {[p.name for p in run.players]}.")
    modules = [("model", run.model, state["tensors"]["model"]), ("guide", run.guide, state["tensors"]["guide"])]
    players = list(zip(run.players, state["players"], strict=True))
    modules += [(f"player {player.name!r}", player.module, saved["module"]) for player, saved in players]
    for name, module, saved in modules:
        if (difference := different_tensor(module, saved)) is not None:
            raise ValueError(f"checkpoint: it is that of another {name}: {difference}.")
    for name, kind in _kinds(run).items():
        if state["kinds"].get(name) != kind:
            raise ValueError(
                f"checkpoint: it is that of another {name}: it was {state['kinds'].get(name)}, but now it is {kind}."
            )
    optimizers = [("optimizer", run.torch_optimizer, state["optimizer"])]
    optimizers += [(f"optimizer of {p.name}", p.torch_optimizer, saved["optimizer"]) for p, saved in players]
    for name, optimizer, saved in optimizers:
        if (own := group_sizes(optimizer.state_dict())) != (found := group_sizes(saved)):
            raise ValueError(
                f"checkpoint: it is that of another {name}: its groups had {found} parameters, but now have {own}."
            )


def _kinds(run: Run) -> dict[str, str]:
    """The classes of what has a state dict that others of its kind would take, and a digest of what the state lacks."""
    parts = {"optimizer": run.torch_optimizer, "scheduler": run.scheduler}
    parts |= {f"optimizer of {player.name}": player.torch_optimizer for player in run.players}
    kinds = {name: type(part).__name__ for name, part in parts.items() if part is not None}
    return kinds if run.shared_digest is None else {**kinds, "frozen base (SHA-256)": run.shared_digest}


def _restore(run: Run, state: dict[str, Any]) -> None:
    write_tensors(run.model, run.guide, state["tensors"])
    run.torch_optimizer.load_state_dict(state["optimizer"])
    for player, own in zip(run.players, state["players"], strict=True):
        player.write(own)
    if run.scheduler is not None:
        run.scheduler.load_state_dict(state["scheduler"])
    run.best, run.best_value = state["best"], state["best_value"]
    run.epochs_since_best = state["epochs_since_best"]
    run.elbo.num_steps = state["num_steps"]
    write_terms(run.elbo.terms, state["terms"])
    run.form = state["data"]["form"]
    run.history = History(**state["history"])
    if run.history.stopped == "callback":  # the callback is called again
        run.history.stopped = ""
    random_state.write_all(state["random"], _generators(run))
    run.write_random(state["random"])


def _generators(run: Run) -> list[torch.Generator]:
    return generators(run.loader, run.validation)
