"""Members of an ensemble trained one by one, each on batches of its own, over any executor."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyrobnn.core import random_state
from pyrobnn.core.arguments import check_int
from pyrobnn.core.exclusive import in_one_thread
from pyrobnn.core.executors import Units, check_executor, unit_seeds
from pyrobnn.core.explanations import explained
from pyrobnn.core.processes import refuse_process_group, refuse_wrapped
from pyrobnn.core.training_rows import remember
from pyrobnn.guides.base import check_guide
from pyrobnn.guides.delta_mixture import DeltaMixture
from pyrobnn.model.bayesianize import bayesian_modules
from pyrobnn.training.fit import fit
from pyrobnn.training.history import History

__all__ = ["fit_members"]

_OF_THE_CALL = ("seed", "checkpoint", "resume", "progress")


@explained
def fit_members(
    model: nn.Module,
    guide: DeltaMixture,
    loader: Iterable[Any],
    *,
    executor: Executor | None = None,
    seed: int | None = None,
    directory: str | Path | None = None,
    resume: bool = False,
    **options: Any,
) -> list[History]:
    """Trains each member of a deep ensemble by itself: members see batches of their own, and any machine can train one.

    :func:`pyrobnn.fit` trains all members on the same batches, in one process. Here every member is a call of
    :func:`pyrobnn.fit` with a seed of its own, and stops early by its own validation value. The results are the same
    bits whatever the executor is, and whether the call was resumed, where workers compute with as many threads
    (``ProcessPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,))``).

    Args:
        model: The Pyro model. All its trained parameters have priors: others would be shared by the members.
        guide: The ensemble; its members start where they are, and are overwritten at the end.
        loader: As for :func:`pyrobnn.fit`; a copy of it goes to each worker.
        executor: Where members are trained, such as a ``ProcessPoolExecutor``; None: here, one after another.
        seed: Seeds the seeds of the members, of which the first few do not depend on how many there are.
        directory: Where each member is written to when it is trained.
        resume: Whether to take the members that are in ``directory`` and train the others only.
        **options: Passed on to :func:`pyrobnn.fit` (``epochs``, ``lr``, ``validation``, ``early_stopping`` …).

    Returns:
        The history of each member.

    Raises:
        TypeError: If the guide is no deep ensemble, or arguments cannot be sent to another process.
        ValueError: If members would share a trained parameter, or ``directory`` holds another call's results.
        WorkerLostError: If a worker died: it names the members that are missing; the guide is as it was.
        RuntimeError: In a process group of several processes (:func:`~pyrobnn.independent_processes`).
        DirectoryInUseError: If another process or thread writes to ``directory``.
    """
    refuse_process_group("fit_members")
    refuse_wrapped(model=model, guide=guide)
    check_executor(executor)
    _check(model, guide, options)
    count = guide.num_members
    with random_state.local(seed):
        seeds = unit_seeds(count)
    settings = {"members": count, "weights": guide.layout.size, "seeds": seeds}
    units = Units("member", directory, resume, settings, drawn=("seeds",) if seed is None else ())
    with in_one_thread(model=model, guide=guide), units.recorded() as taken:
        own = {f"member-{index}": (index, taken["seeds"][index]) for index in range(count)}
        found = units.run(_fit_one, (model, guide, loader, options), own, executor)
    with torch.no_grad():
        for index, result in enumerate(found.values()):
            guide.flat_loc[index] = result["loc"].to(guide.flat_loc)
            guide.write_buffers(torch.tensor(index), result["buffers"])
    remember(guide, loader)
    return [History(**result["history"]) for result in found.values()]


def _fit_one(
    model: nn.Module, guide: DeltaMixture, loader: Iterable[Any], options: dict[str, Any], index: int, seed: int
) -> dict[str, Any]:
    """Trains one member, as an ensemble of one; model and guide are left as they are."""
    member = guide.only(model, index)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        history = fit(model, member, loader, seed=seed, progress=False, **options)
    finally:
        model.load_state_dict(before)
    return {
        "loc": member.flat_loc.detach()[0].cpu(),
        "buffers": {name: value[0].cpu() for name, value in member.own_buffers.stacked(torch.tensor([0])).items()},
        "history": history.to_dict(),
    }


def _check(model: Any, guide: Any, options: dict[str, Any]) -> None:
    if not isinstance(guide, DeltaMixture):
        raise TypeError(f"guide: expected the members of a DeltaMixture, got a {type(guide).__name__}.")
    check_guide(model, guide)
    if given := [name for name in _OF_THE_CALL if name in options]:
        raise TypeError(f"{given[0]}: it cannot be passed on to fit; directory= and seed= are those of all members.")
    check_int("num_members", guide.num_members, 1)
    placeholders = {id(m.network.get_parameter(n)) for m in bayesian_modules(model) for n in m.parameter_names}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in placeholders:
            raise ValueError(
                f"model: its parameter {name!r} is trained but has no prior, so members trained apart would disagree "
                "on it; name it in the prior rules (a likelihood's scale may be latent: Normal(LogNormal(0., 1.))), "
                "freeze it, or train all members at once with pyrobnn.fit."
            )
