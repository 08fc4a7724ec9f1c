r"""fit(): one training loop over (model, guide, loader).

Each step draws from the guide, runs the model on one batch and takes a gradient step on the objective per
datum, :math:`-\frac{1}{N}\,\mathrm{ELBO}`, so that learning rates mean what they mean in ordinary training.
What is reported is per datum too, in nats.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyrobnn.core import random_state
from pyrobnn.core.arguments import check_positive_int
from pyrobnn.core.batches import Reader
from pyrobnn.core.denormals import denormals_as_zero
from pyrobnn.core.exclusive import in_one_thread
from pyrobnn.core.explanations import explained
from pyrobnn.core.files import check_directory
from pyrobnn.core.gradient_modes import gradients_enabled
from pyrobnn.core.handlers import validation_enabled
from pyrobnn.core.processes import refuse_process_group, refuse_wrapped
from pyrobnn.core.progress import progress_bar
from pyrobnn.core.training_rows import remember
from pyrobnn.guides.base import Guide
from pyrobnn.objectives import ELBO, Objective
from pyrobnn.objectives.compiled import CompiledObjective
from pyrobnn.training.checks import check_arguments, check_optimizer, check_options
from pyrobnn.training.fabric import check_fabric
from pyrobnn.training.held_out import held_out
from pyrobnn.training.history import Callback, History
from pyrobnn.training.joint_run import DrawsOfRanks
from pyrobnn.training.length import default_patience, epochs_of
from pyrobnn.training.optimizers import OptimizerSpec, make_optimizer
from pyrobnn.training.players import Player
from pyrobnn.training.resume import recorded, save_run
from pyrobnn.training.run import Run
from pyrobnn.training.schedule import LearningRates, SchedulerPer, check_scheduler_per
from pyrobnn.training.starting import check_draws, lost_ranks_explained, started
from pyrobnn.training.state import write_tensors
from pyrobnn.training.trackers.base import Tracker, TrackerCalls

__all__ = ["fit"]


@explained
def fit(
    model: nn.Module,
    guide: Guide,
    loader: Iterable[Any],
    *,
    batch: Reader | None = None,
    epochs: int | None = None,
    lr: float = 1e-3,
    scale_lr: float | None = None,
    optimizer: OptimizerSpec = None,
    scheduler: Callable[[Optimizer], LRScheduler] | None = None,
    scheduler_per: SchedulerPer = None,
    elbo: Objective | None = None,
    players: Sequence[Player] = (),
    clip_norm: float | None = None,
    validation: Iterable[Any] | None = None,
    early_stopping: bool = False,
    patience: int | None = None,
    callbacks: Sequence[Callback] = (),
    trackers: Sequence[Tracker] = (),
    log_every: int | None = None,
    seed: int | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    accumulate: int = 1,
    data_parallel: DrawsOfRanks = None,
    fabric: Any = None,
    compile: bool = False,
) -> History:
    """Fits a guide to a model.

    Args:
        model: The Pyro model, called as ``model(x, y)``; as ``model(x, y, weight)`` where batches have weights.
        guide: A guide of this library built for it. (Any other goes through Pyro's own ``SVI``.)
        loader: Yields batches ``(x, y)``, ``(x, y, weight)`` with a weight of the log likelihood for each row, or
            mappings with the targets under ``"labels"``, ``"label"``, ``"targets"``, ``"target"`` or ``"y"`` and the
            network's keyword arguments in addition. Inputs ``x`` may be tuples or mappings of the network's arguments
            (:class:`~pyrobnn.Batch`). The data set, or the sampler of a subset, has the model's ``num_data`` rows.
        batch: For loaders that yield something else (graphs, say): a function from that to ``(inputs, targets)``,
            ``(inputs, targets, weight)`` or a :class:`~pyrobnn.Batch`; also for ``validation``.
        epochs: Passes over the data, in all (a resumed run continues up to this number). None: as many as make 2,000
            gradient steps, and at least 20 (:func:`~pyrobnn.training.default_epochs`).
        lr: Learning rate.
        scale_lr: Learning rate of the guide's scale parameters, if it has any; ``lr`` if None.
        optimizer: None for Adam; a function from parameter groups to a torch optimizer (such as
            ``functools.partial(torch.optim.SGD, momentum=0.9)``, which is given the groups and ``lr``); a
            torch optimizer over these parameters; or a ``pyro.optim`` optimizer. The last two have learning
            rates of their own.
        scheduler: A function from the optimizer to a learning-rate schedule. A ``ReduceLROnPlateau`` (in either mode)
            watches the validation value, or the ELBO if there is none.
        scheduler_per: Whether the schedule advances after each ``"step"`` or each ``"epoch"``. None: after each step
            if it is a ``OneCycleLR`` or a ``CyclicLR``, else after each epoch.
        elbo: The objective; ``ELBO()`` if None.
        players: Further objectives with parameters and optimizers of their own, which take turns on every batch
            (:class:`~pyrobnn.training.Player`).
        clip_norm: Largest norm of the gradient of the objective per datum.
        validation: Batches for the log predictive density after each epoch.
        early_stopping: Stop by the validation value, with a default ``patience``. Without ``validation``, a tenth of
            the rows of ``loader`` is held out, always the same ones. They are no part of the posterior: the model's
            ``num_data`` is that of the other rows during the call. Rows that depend on each other (times, groups)
            are better split by hand.
        patience: Stop after so many epochs without a better validation value, and go back to the best epoch. None: a
            tenth of ``epochs``, and at least 10, with ``early_stopping``; else training goes on to its end.
        callbacks: Called with the history after each epoch; one that returns True ends the training.
        trackers: Objects with a method ``log(values, step)``, which is called after each epoch
            (:mod:`pyrobnn.training.trackers`).
        log_every: Steps between further calls of trackers, with the values of a single step; None: after epochs only.
        seed: Seeds torch, NumPy, Python and Pyro for this call; their states are restored afterwards.
        device: Moves the model, the guide and each batch there.
        progress: Show a progress bar; where standard error is no terminal, lines.
        checkpoint: A directory to which the whole training state is saved after each epoch. No other run may write
            to it meanwhile.
        resume: Continue from ``checkpoint`` if it is there, bit for bit as if training had never stopped; on another
            number of processes with the same data in the same order.
        accumulate: Batches in a gradient step: its gradient is that of their union, however many rows each has.
        data_parallel: Train on the processes of the group of ``torch.distributed`` (those of ``torchrun``) together:
            the gradient of a step is that of the union of their batches. ``"own_draws"``: each process draws weights
            of its own, so that a step averages as many draws as there are processes. ``"same_draws"``: one draw for
            all, as in one process. Each process makes the same call, with the ``DataLoader`` of the whole data set,
            whose ``batch_size`` is that of all processes together and of which each reads its share; or with batches
            of its own share. ``num_data`` is that of the whole set. The first process's model and guide are copied to
            the others. BatchNorm normalizes by each process's rows; running statistics are averaged at the end of an
            epoch. The first process writes ``checkpoint``, shows progress and calls trackers.
        fabric: A ``lightning.fabric.Fabric`` that was launched (extra ``lightning``), whose device and precision are
            used, with the strategy ``"ddp"`` or one device; ``data_parallel`` is ``"own_draws"`` then, if None.
        compile: Compile training steps with ``torch.compile``: the network, the draw, the divergence and their
            gradients become one graph for each shape of batch, with the same numbers but for rounding. Compiling takes
            from seconds for a perceptron to two minutes for a residual network, once on a machine. What the network's
            Python code does besides computing tensors happens once. Where a step cannot be compiled (no compiler, an
            ensemble, estimators at the layers, further terms of the objective) it runs as usual, after one warning.

    Gradients are enabled for the call, whatever the mode around it.

    Returns:
        The history. Ctrl-C ends the training early and returns what was learned.

    Warns:
        UserWarning: If inputs are far from unit scale, or if after a third of the run (5 epochs and 300 steps at least)
            the likelihood is no better than that of a constant predictor; or if steps cannot be compiled.

    Raises:
        NonFiniteLossError: If the objective becomes NaN or infinite: the message names the epoch, the step
            and the non-finite part; model and guide hold the last good state, ``error.history`` what happened
            until then.
        TypeError: If the guide is not of this library, a batch is of no known form, or an argument is of a kind
            that cannot do what was requested.
        ValueError: If the loader does not fit the model, is empty, or a batch holds what the model cannot
            take; or if ``checkpoint`` is that of another run, or empty.
        CheckpointError: If what ``checkpoint`` holds is damaged; a ValueError.
        RuntimeError: In a process group of several processes, without ``data_parallel``
            (:func:`~pyrobnn.independent_processes`).
        RankLostError: If another process died or hangs; the last checkpoint can be resumed from.
        RankFailedError: If another process raised an error, which it repeats.
        ImportError: If ``fabric`` is given and Lightning is not installed.
        DirectoryInUseError: If another process or thread writes to ``checkpoint``.
        OSError: If the disk is full; the last state that was saved stays there.
    """
    draws = check_draws(data_parallel, fabric)
    if draws is None:
        refuse_process_group("fit", "; or pass data_parallel='own_draws' to train one posterior on all of them")
    refuse_wrapped(model=model, guide=guide)
    check_options(elbo, scheduler, players, callbacks, checkpoint, device)
    check_positive_int("accumulate", accumulate)
    check_arguments(
        model, guide, loader, epochs, patience, clip_norm, validation, early_stopping, checkpoint, resume, batch, draws
    )
    if fabric is not None:
        device = check_fabric(fabric, model, guide, device)
    check_optimizer(optimizer, scheduler, checkpoint)
    check_scheduler_per(scheduler, scheduler_per)
    calls = TrackerCalls(trackers, log_every)
    directory = None if checkpoint is None else check_directory("checkpoint", checkpoint)
    with contextlib.ExitStack() as stack:
        stack.enter_context(gradients_enabled())
        stack.enter_context(in_one_thread(model=model, guide=guide))
        if early_stopping and validation is None:
            loader, validation = stack.enter_context(held_out(model, loader))
        remember(guide, loader)
        stack.enter_context(random_state.local(seed))
        if device is not None:
            model.to(device)
            guide.to(device)
        further = [parameter for player in players for parameter in player.parameters]
        made = make_optimizer(model, guide, optimizer, lr, scale_lr, further)
        objective = elbo or ELBO()
        run = started(
            draws,
            accumulate,
            seed,
            fabric,
            model=model,
            guide=guide,
            elbo=objective,
            optimizer=made,
            rates=LearningRates(scheduler, made, scheduler_per),
            loader=loader,
            validation=validation,
            clip_norm=clip_norm,
            device=device,
            reader=batch,
            players=players,
            calls=calls,
            compiled=CompiledObjective(objective) if compile else None,
        )
        batches = run.batches_per_epoch
        run.epochs = epochs_of(batches) if epochs is None else epochs
        patience = default_patience(run.epochs) if early_stopping and patience is None else patience
        with lost_ranks_explained(run, directory), recorded(run, directory, resume), denormals_as_zero():
            run.rates.check(run.epochs, batches)
            run.history.planned = run.epochs
            _train(run, patience, callbacks, directory, progress)
        if patience is not None and run.best is not None:
            write_tensors(model, guide, run.best)
        return run.history


def _train(
    run: Run,
    patience: int | None,
    callbacks: Sequence[Callback],
    directory: Path | None,
    progress: bool,
) -> None:
    """Epochs until there are enough, or something stops them; each module's mode is restored."""
    history = run.history
    modes = [(module, module.training) for module in run.model.modules()]
    shown = progress and (run.ranks is None or run.ranks.is_first)
    bar = progress_bar(total=run.epochs, initial=history.epochs, shown=shown, unit="epoch")
    try:
        run.model.train()
        while not run.is_finished:
            # Pyro validates (at the user's setting) while each batch is seen for the first time; after that
            # it would only repeat itself.
            with validation_enabled(pyro.settings.get("validate_distributions_pyro") and not history.epochs):
                run.epoch()
            bar.set_postfix_str(history.summary())
            bar.update()
            run.calls.after_epoch(history.latest, history.epochs, history.steps)
            if patience is not None and run.epochs_since_best >= patience:
                history.stopped = "patience"
            elif run.agreed([callback(history) for callback in callbacks].count(True) > 0):
                history.stopped = "callback"
            if directory is not None:
                save_run(run, directory)
    except KeyboardInterrupt:
        history.stopped = "interrupted"
    finally:
        bar.close()
        for module, training in modes:
            module.training = training
    history.stopped = history.stopped or "epochs"
