r"""fit(): one training loop over (model, guide, loader).

Each step draws from the guide, runs the model on one batch and takes a gradient step on the objective per datum,
:math:`-\frac{1}{N}\,\mathrm{ELBO}`, so that learning rates mean what they mean in ordinary training. What is
reported is per datum too, in nats.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from tqdm.auto import tqdm

from pyrobnn.bayesianize import evaluating, frozen_buffers
from pyrobnn.checkpoint import load_state, save_state
from pyrobnn.elbo import ELBOParts, MeanFieldELBO, NonFiniteLossError
from pyrobnn.guides.base import Guide
from pyrobnn.substitution import Substitution

__all__ = ["Callback", "History", "fit", "train_step"]


@dataclass
class History:
    """What happened in training, one entry per epoch; nats per datum.

    Attributes:
        elbo: The (untempered) evidence lower bound, averaged over the epoch's steps.
        log_likelihood: Its expected log likelihood.
        kl: Its divergence: KL to the prior, or ``-log p(w)`` for a point estimate (``divergence_name``).
        loss: The tempered objective that was minimised.
        validation: Log predictive density of the validation data, if there are any.
        learning_rate: Learning rate of the first parameter group.
        seconds: Wall time.
        steps: Gradient steps in all.
        stopped: Why training ended: ``"epochs"``, ``"patience"``, ``"callback"`` or ``"interrupted"``.
        divergence_name: What ``kl`` holds.
    """

    elbo: list[float] = field(default_factory=list)
    log_likelihood: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    steps: int = 0
    stopped: str = ""
    divergence_name: str = "KL"

    @property
    def epochs(self) -> int:
        """Number of finished epochs."""
        return len(self.elbo)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON."""
        return asdict(self)


Callback = Callable[[History], bool | None]


def fit(
    model: nn.Module,
    guide: Guide,
    loader: Iterable[Any],
    *,
    epochs: int = 20,
    lr: float = 1e-3,
    scale_lr: float | None = None,
    optimizer: Callable[..., Optimizer] | Optimizer | PyroOptim | None = None,
    scheduler: Callable[[Optimizer], LRScheduler] | None = None,
    elbo: MeanFieldELBO | None = None,
    clip_norm: float | None = None,
    validation: Iterable[Any] | None = None,
    patience: int | None = None,
    callbacks: Sequence[Callback] = (),
    seed: int | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
    checkpoint: str | Path | None = None,
    resume: bool = False,
) -> History:
    """Fits a guide to a model.

    Args:
        model: The Pyro model, called as ``model(x, y)``.
        guide: A guide of this library built for it. (Any other goes through Pyro's own ``SVI``.)
        loader: Yields batches ``(x, y)``; a :class:`~torch.utils.data.DataLoader` whose data set has the model's
            ``num_data`` rows.
        epochs: Passes over the data, in all (a resumed run continues up to this number).
        lr: Learning rate.
        scale_lr: Learning rate of the guide's scale parameters; ``lr`` if None.
        optimizer: None for Adam; a function from parameter groups to a torch optimizer (such as
            ``functools.partial(torch.optim.SGD, momentum=0.9)``, which is given the groups and ``lr``); a torch
            optimizer over these parameters; or a ``pyro.optim`` optimizer.
        scheduler: A function from the optimizer to a learning-rate schedule, stepped after each epoch.
        elbo: The objective; ``MeanFieldELBO()`` if None.
        clip_norm: Largest norm of the gradient of the objective per datum.
        validation: Batches for the log predictive density after each epoch.
        patience: Stop after so many epochs without a better validation value, and go back to the best epoch.
        callbacks: Called with the history after each epoch; one that returns True ends the training.
        seed: Seeds torch, numpy, Python and Pyro at the start.
        device: Moves the model, the guide and each batch there.
        progress: Show a progress bar.
        checkpoint: A directory to which the whole training state is saved after each epoch.
        resume: Continue from ``checkpoint`` if it is there, bit for bit as if training had never stopped.

    Returns:
        The history. Ctrl-C ends the training early and returns what was learned.

    Raises:
        NonFiniteLossError: If the objective becomes NaN or infinite: the message names the epoch, the step and the
            part to blame; model and guide hold the last good state, ``error.history`` what happened until then.
        TypeError: If the guide is not of this library, or a batch is not ``(x, y)``.
        ValueError: If the loader does not fit the model, is empty, or a batch holds what the model cannot take.
    """
    _check_arguments(model, guide, loader, epochs, patience, validation, checkpoint, resume)
    if seed is not None:
        pyro.set_rng_seed(seed)
    if device is not None:
        model.to(device)
        guide.to(device)
    run = _Run(model, guide, elbo or MeanFieldELBO(), _make_optimizer(model, guide, optimizer, lr, scale_lr))
    run.scheduler = scheduler(run.torch_optimizer) if scheduler is not None else None
    run.loader, run.clip_norm, run.device = loader, clip_norm, device
    if resume and checkpoint is not None and Path(checkpoint).exists():
        run.restore(load_state(checkpoint))
    modes = [(module, module.training) for module in model.modules()]
    bar = tqdm(total=epochs, initial=run.history.epochs, disable=not progress, unit="epoch")
    try:
        model.train()
        while run.history.epochs < epochs and not run.history.stopped:
            # Pyro validates (at the user's setting) while each batch is seen for the first time; after that it
            # would only repeat itself.
            with pyro.validation_enabled(pyro.settings.get("validate_distributions_pyro") and not run.history.epochs):
                run.epoch(validation)
            bar.set_postfix_str(run.summary())
            bar.update()
            if patience is not None and run.epochs_since_best >= patience:
                run.history.stopped = "patience"
            elif any([callback(run.history) is True for callback in callbacks]):
                run.history.stopped = "callback"
            if checkpoint is not None:
                save_state(checkpoint, run.state())
    except KeyboardInterrupt:
        run.history.stopped = "interrupted"
    finally:
        bar.close()
        for module, training in modes:
            module.training = training
    run.history.stopped = run.history.stopped or "epochs"
    if patience is not None and run.best is not None:
        _write_state(model, guide, run.best)
    return run.history


def train_step(
    model: nn.Module,
    guide: Guide,
    elbo: MeanFieldELBO,
    optimizer: Optimizer | PyroOptim,
    args: tuple[Any, ...],
    clip_norm: float | None = None,
) -> ELBOParts:
    """One gradient step on the objective per datum; what :func:`fit` does with each batch."""
    if isinstance(optimizer, PyroOptim):
        parameters = _trainable(model, guide)
    else:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for parameter in parameters:
        parameter.grad = None
    num_data = getattr(model, "num_data", 1)
    parts = elbo.backward(model, guide, args, scale=1.0 / num_data)
    if clip_norm is not None:
        nn.utils.clip_grad_norm_(parameters, clip_norm)
    if isinstance(optimizer, PyroOptim):
        optimizer(parameters)
    else:
        optimizer.step()
    return parts


# ---------------------------------------------------------------------------------------------------- one run


class _Run:
    """The state of one training run: what a checkpoint holds."""

    def __init__(self, model: nn.Module, guide: Guide, elbo: MeanFieldELBO, optimizer: Optimizer | PyroOptim) -> None:
        self.model, self.guide, self.elbo, self.optimizer = model, guide, elbo, optimizer
        self.scheduler: LRScheduler | None = None
        self.loader: Iterable[Any] = ()
        self.clip_norm: float | None = None
        self.device: torch.device | str | None = None
        self.history = History(divergence_name=guide.divergence_name)
        self.best: dict[str, Any] | None = None
        self.best_value = -float("inf")
        self.epochs_since_best = 0

    @property
    def torch_optimizer(self) -> Optimizer:
        if isinstance(self.optimizer, PyroOptim):
            raise TypeError("scheduler: a pyro.optim optimizer brings its own schedule; pass a torch optimizer instead.")
        return self.optimizer

    def epoch(self, validation: Iterable[Any] | None) -> None:
        started, first = time.perf_counter(), self.history.epochs == 0
        good = _read_state(self.model, self.guide)
        totals, rows = dict.fromkeys(("elbo", "log_likelihood", "kl", "loss"), 0.0), 0
        for index, batch in enumerate(self.loader):
            x, y = _unpack(batch, self.device)
            _check_finite(x, index)
            if first:
                _check_targets(self.model, x, y)
            try:
                parts = train_step(self.model, self.guide, self.elbo, self.optimizer, (x, y), self.clip_norm)
            except NonFiniteLossError as error:
                self._fail(error, good, index)
            size = len(y)
            rows += size
            for name, value in parts.per_datum().items():
                totals[name] += size * value
            self.history.steps += 1
        if rows == 0:
            raise ValueError("loader: it yielded no batch; the data set is empty or drop_last left nothing.")
        if first:
            _check_rows(self.model, self.loader, rows)
        if hasattr(self.guide, "reset_noise"):
            self.guide.reset_noise()
        for name, total in totals.items():
            getattr(self.history, name).append(total / rows)
        if not isinstance(self.optimizer, PyroOptim):
            self.history.learning_rate.append(float(self.optimizer.param_groups[0]["lr"]))
        if validation is not None:
            self._validate(validation)
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step((self.history.validation or self.history.elbo)[-1])
        elif self.scheduler is not None:
            self.scheduler.step()
        self.history.seconds.append(time.perf_counter() - started)

    def _validate(self, batches: Iterable[Any]) -> None:
        value = _log_predictive(self.model, self.guide, batches, self.device)
        self.history.validation.append(value)
        self.epochs_since_best += 1
        if value > self.best_value:
            self.best, self.best_value, self.epochs_since_best = _read_state(self.model, self.guide), value, 0

    def _fail(self, error: NonFiniteLossError, good: dict[str, Any], index: int) -> None:
        """Keeps the present state if it is finite, else goes back to the start of the epoch."""
        where = "the state just before this step was kept"
        if not all(bool(tensor.isfinite().all()) for tensor in _tensors(self.model, self.guide)):
            _write_state(self.model, self.guide, good)
            where = "the state at the start of this epoch was restored"
        message = f"epoch {self.history.epochs + 1}, step {index + 1} of it: {error} ({where})"
        failure = NonFiniteLossError(message)
        failure.history = self.history  # type: ignore[attr-defined]
        raise failure from error

    def summary(self) -> str:
        history = self.history
        text = f"ELBO {history.elbo[-1]:.4f} = {history.log_likelihood[-1]:.4f} - {history.kl[-1]:.4f}"
        return text + (f", validation {history.validation[-1]:.4f}" if history.validation else "") + " nats/datum"

    def state(self) -> dict[str, Any]:
        generator = getattr(self.loader, "generator", None)
        return {
            "state": _read_state(self.model, self.guide),
            "best": self.best,
            "best_value": self.best_value,
            "epochs_since_best": self.epochs_since_best,
            "optimizer": self.torch_optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "num_steps": self.elbo.num_steps,
            "history": self.history.to_dict(),
            "random": _random_state(),
            "generator": None if generator is None else generator.get_state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        _write_state(self.model, self.guide, state["state"])
        self.best, self.best_value = state["best"], state["best_value"]
        self.epochs_since_best = state["epochs_since_best"]
        self.torch_optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        self.elbo.num_steps = state["num_steps"]
        self.history = History(**state["history"])
        if self.history.stopped in ("epochs", "interrupted"):
            self.history.stopped = ""
        generator = getattr(self.loader, "generator", None)
        if generator is not None and state["generator"] is not None:
            generator.set_state(state["generator"])
        _set_random_state(state["random"])


def _log_predictive(
    model: nn.Module, guide: Guide, batches: Iterable[Any], device: torch.device | str | None, num_samples: int = 8
) -> float:
    """Mean log predictive density, with the same draws' noise at every epoch so that epochs compare."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        draws = guide.sample(num_samples)
    total, rows = 0.0, 0
    with torch.no_grad(), evaluating(model), frozen_buffers(model):
        for batch in batches:
            x, y = _unpack(batch, device)
            by_draw = []
            for index in range(num_samples):
                with Substitution({name: value[index] for name, value in draws.items()}) as run:
                    model(x, y)
                by_draw.append(sum(m["fn"].log_prob(m["value"]).reshape(len(y), -1).sum(-1) for m in run.observed))
            stacked = torch.stack(by_draw)  # type: ignore[arg-type]
            total += float((stacked.logsumexp(0) - float(np.log(num_samples))).sum())
            rows += len(y)
    if rows == 0:
        raise ValueError("validation: it yielded no batch.")
    return total / rows


# ------------------------------------------------------------------------------------------------- parameters


def _trainable(model: nn.Module, guide: nn.Module) -> list[nn.Parameter]:
    return [p for module in (guide, model) for p in module.parameters() if p.requires_grad]


def _make_optimizer(
    model: nn.Module, guide: Guide, optimizer: Any, lr: float, scale_lr: float | None
) -> Optimizer | PyroOptim:
    if isinstance(optimizer, PyroOptim):
        return optimizer
    parameters = _trainable(model, guide)
    if isinstance(optimizer, Optimizer):
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        missing = [n for m in (guide, model) for n, p in m.named_parameters() if p.requires_grad and id(p) not in known]
        if missing:
            raise ValueError(
                f"optimizer: it does not hold the parameter {missing[0]!r} ({len(missing)} in all); build it over the "
                "parameters of both the guide and the model, or pass a function of parameter groups."
            )
        return optimizer
    scales = {id(p) for p in (guide.scale_parameters() if hasattr(guide, "scale_parameters") else [])}
    groups = [{"params": [p for p in parameters if id(p) not in scales], "lr": lr}]
    if scales:
        own = [p for p in parameters if id(p) in scales]
        groups.append({"params": own, "lr": lr if scale_lr is None else scale_lr})
    if optimizer is not None:
        return optimizer(groups, lr=lr)
    fused = all(p.device.type in ("cpu", "cuda") and p.dtype in (torch.float32, torch.float64) for p in parameters)
    return torch.optim.Adam(groups, lr=lr, fused=fused)


def _tensors(model: nn.Module, guide: nn.Module) -> list[Tensor]:
    return [t for m in (model, guide) for t in m.state_dict().values() if t.is_floating_point()]


def _read_state(model: nn.Module, guide: nn.Module) -> dict[str, Any]:
    return {
        key: {name: value.detach().clone() for name, value in module.state_dict().items()}
        for key, module in (("model", model), ("guide", guide))
    }


def _write_state(model: nn.Module, guide: nn.Module, state: dict[str, Any]) -> None:
    model.load_state_dict(state["model"])
    guide.load_state_dict(state["guide"])


def _random_state() -> dict[str, Any]:
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "python": list(random.getstate()),
    }


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


# ------------------------------------------------------------------------------------------------------ checks


def _check_arguments(
    model: Any, guide: Any, loader: Any, epochs: int, patience: int | None, validation: Any, checkpoint: Any, resume: bool
) -> None:
    if not isinstance(guide, Guide):
        raise TypeError(
            f"guide: expected one of pyrobnn.guides, got {type(guide).__name__}; fit a guide from elsewhere with "
            "pyro.infer.SVI(model, guide, optimizer, pyrobnn.elbo.MeanFieldELBO())."
        )
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise ValueError(f"epochs: expected a positive int, got {epochs!r}.")
    if patience is not None and validation is None:
        raise ValueError("patience: early stopping needs validation batches; pass validation=.")
    if resume and checkpoint is None:
        raise ValueError("resume: nothing to resume from; pass checkpoint= the directory of the earlier run.")
    data, num_data = getattr(loader, "dataset", None), getattr(model, "num_data", None)
    if num_data is not None and hasattr(data, "__len__") and len(data) != num_data:
        raise ValueError(
            f"num_data: the model was told of {num_data} data, but the loader's data set has {len(data)}; the KL would be "
            "weighed wrongly. Build the model with num_data=len(loader.dataset)."
        )


def _check_rows(model: nn.Module, loader: Any, rows: int) -> None:
    """A loader without a data set shows its size only once it has been read."""
    num_data = getattr(model, "num_data", rows)
    if not hasattr(getattr(loader, "dataset", None), "__len__") and rows != num_data:
        raise ValueError(
            f"num_data: the model was told of {num_data} data, but the loader yielded {rows} rows in one pass; build the "
            f"model with num_data={rows}."
        )


def _unpack(batch: Any, device: torch.device | str | None) -> tuple[Any, Tensor]:
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        kind = f"{type(batch).__name__} of length {len(batch)}" if hasattr(batch, "__len__") else type(batch).__name__
        raise TypeError(f"loader: expected batches (x, y), got a {kind}; wrap the data set so that it yields pairs.")
    x, y = batch
    if not isinstance(y, Tensor):
        raise TypeError(f"loader: the targets y of a batch are a {type(y).__name__}, expected a tensor.")
    return (x, y) if device is None else (_move(x, device), y.to(device))


def _move(x: Any, device: torch.device | str) -> Any:
    if isinstance(x, dict):
        return {key: _move(value, device) for key, value in x.items()}
    if isinstance(x, tuple | list):
        return type(x)(_move(value, device) for value in x)
    return x.to(device) if isinstance(x, Tensor) else x


def _check_finite(x: Any, index: int) -> None:
    """One sum per batch: any NaN or infinity shows in it, at a tenth of the price of looking at each element."""
    for value in x.values() if isinstance(x, dict) else x if isinstance(x, tuple | list) else (x,):
        if isinstance(value, Tensor) and value.is_floating_point() and not bool(value.sum().isfinite()):
            rows = (~value.isfinite()).reshape(len(value), -1).any(1).nonzero().flatten().tolist()
            if rows:
                raise ValueError(
                    f"x: batch {index} holds NaN or infinite inputs in {len(rows)} rows (the first is row {rows[0]}); nothing "
                    "was changed by this batch. Clean or impute the data."
                )


def _check_targets(model: Any, x: Any, y: Tensor) -> None:
    likelihood = getattr(model, "likelihood", None)
    if likelihood is None or not hasattr(model, "predictive"):
        return
    with torch.no_grad(), torch.random.fork_rng(devices=[]), evaluating(model), frozen_buffers(model):
        likelihood.check_targets(model.predictive(x), y)
