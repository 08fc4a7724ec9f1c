"""A run of a stochastic gradient kernel: its start, its steps, what it records, and how it ends."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal

import pyro
import torch
from torch import Tensor

from pyrobnn.core import random_state, schema
from pyrobnn.core.batch_form import FORM
from pyrobnn.core.batches import Reader
from pyrobnn.core.handlers import validation_enabled
from pyrobnn.core.module_state import fill_tensors
from pyrobnn.core.progress import progress_bar
from pyrobnn.core.storage import described, restoring
from pyrobnn.model.declarations import declared_num_data, example_if_needed
from pyrobnn.model.layout import Layout
from pyrobnn.objectives.parts import NonFiniteLossError
from pyrobnn.sampling.initialization import ChainInit, check_start, initial_points
from pyrobnn.sampling.kernels.base import StochasticGradientKernel
from pyrobnn.sampling.sampling_mode import untrained
from pyrobnn.sampling.sgmcmc.batches import Batches
from pyrobnn.sampling.sgmcmc.gradients import PotentialGradient
from pyrobnn.sampling.sgmcmc.noise import Noise
from pyrobnn.sampling.sgmcmc.store import DiskStore, MemoryStore
from pyrobnn.training.state import generators

__all__ = ["Run", "SamplingDivergedWarning", "described_kernel", "start_run"]

_TENSOR = schema.instance(Tensor, "a tensor")
_POSITION = {
    "epoch": schema.whole(0),
    "index": schema.whole(0),
    "rows": schema.whole(0),
    "form": schema.optional(FORM),
    "random": schema.anything,
}
_STATE = schema.record(
    {
        "settings": schema.table(schema.anything),
        "step": schema.whole(0),
        "collected": schema.whole(0),
        "flat": schema.optional(_TENSOR),
        "state": schema.table(_TENSOR),
        "noise": _TENSOR,
        "batches": schema.record(_POSITION),
        "random": schema.table(schema.anything),
    }
)


class SamplingDivergedWarning(UserWarning):
    """A chain diverged; the draws kept before that are returned."""


def start_run(
    model: Callable[..., Any],
    data: Any,
    kernel: StochasticGradientKernel,
    *,
    warmup_steps: int,
    thinning: int,
    num_chains: int,
    init: ChainInit,
    vmap: bool | Literal["auto"],
    device: torch.device | str | None,
    reader: Reader | None = None,
) -> Run:
    """Chains at their starting points, for :func:`pyrobnn.sample` and :func:`pyrobnn.distillation.online_distill`.

    The arguments are those of :func:`pyrobnn.sample`. The model must be in sampling mode; the run has no store yet.
    """
    batches = Batches(model, data, device, reader)
    batches.check()
    args = batches.peek()
    example = example_if_needed(model, args)
    layout = Layout.of(model, example=example)
    start = initial_points(layout, model, init, num_chains)
    check_start(model, layout, start, args)
    run = Run(model, kernel, batches, PotentialGradient(model, layout, start, vmap), warmup_steps, thinning)
    run.layout, run.example = layout, example
    return run


class Run:
    """Steps of a stochastic gradient kernel, and where they have got to."""

    store: MemoryStore | DiskStore
    layout: Layout
    example: tuple[Any, ...] | None

    def __init__(
        self,
        model: Callable[..., Any],
        kernel: StochasticGradientKernel,
        batches: Batches,
        gradient: PotentialGradient,
        warmup_steps: int,
        thinning: int,
    ) -> None:
        self.model, self.kernel, self.batches, self.gradient = model, kernel, batches, gradient
        self.warmup_steps, self.thinning = warmup_steps, thinning
        self.flat = gradient.flat
        self.state = kernel.start(self.flat, warmup_steps)
        self.noise = Noise(self.flat)
        self.step = self.collected = self.since_record = 0

    def until(self, num_samples: int, progress: bool) -> None:
        """Steps until so many draws are kept, or something ends them."""
        validates = pyro.settings.get("validate_distributions_pyro")
        bar = progress_bar(total=num_samples, initial=self.store.kept, shown=progress, unit="draw")
        try:
            with untrained(self.model):
                while self.store.kept < num_samples:
                    args = self.batches.next()
                    with validation_enabled(validates and self.batches.is_first):
                        gradient = self.gradient(args)
                    self._advance(gradient, bar)
        except NonFiniteLossError as error:
            self._stopped(f"step {self.step + 1}: {str(error).partition(';')[0]}", error)
        except KeyboardInterrupt:
            if not self.store.kept:
                raise
        finally:
            self.noise.close()
            bar.close()

    @torch.no_grad()
    def _advance(self, gradient: Tensor, bar: Any) -> None:
        step = self.step
        self.kernel.update(self.flat, gradient, self.state, step, self.noise)
        self.step += 1
        self.since_record += 1
        keeps = False
        if step >= self.warmup_steps and self.kernel.collects(step):
            self.collected += 1
            keeps = self.collected % self.thinning == 0
        if keeps:
            if not bool(self.flat.isfinite().all()):
                raise NonFiniteLossError("the chains' values became non-finite")
            self.store.keep(self.flat, self.kernel.statistics(self.flat, self.state, step))
            bar.update()
        if isinstance(self.store, DiskStore) and (keeps or self.since_record >= self.thinning):
            self.since_record = 0
            self.store.record(self.read(keeps))

    def _stopped(self, reason: str, error: Exception) -> None:
        if not self.store.kept:
            raise NonFiniteLossError(
                f"sampling diverged before a draw was kept, at {reason}; lower the step size, or start nearer to the "
                "posterior with init=."
            ) from error
        warnings.warn(
            f"sampling diverged at {reason}; the {self.store.kept} draws of each chain kept until then are returned, "
            "of which the last may be far off. Lower the step size.",
            SamplingDivergedWarning,
            stacklevel=5,
        )

    def settings(self) -> dict[str, Any]:
        """What a resumed run must have in common with the one it continues."""
        return {
            "kernel": described_kernel(self.kernel),
            "warmup_steps": self.warmup_steps,
            "thinning": self.thinning,
            "num_chains": len(self.flat),
            "sites": {site.name: list(site.shape) for site in self.gradient.layout.values()},
            "dtype": str(self.flat.dtype),
            "num_data": declared_num_data(self.model),
        }

    def read(self, at_draw: bool) -> dict[str, Any]:
        """Everything that the rest of the run depends on; the values are those of the last draw if it was just kept."""
        return {
            "settings": self.settings(),
            "step": self.step,
            "collected": self.collected,
            "flat": None if at_draw else self.flat,
            "state": self.state,
            "noise": self.noise.read(),
            "batches": self.batches.read(),
            "random": random_state.read_all(generators(self.batches.data)),
        }

    @torch.no_grad()
    def write(self, state: dict[str, Any], store: DiskStore) -> None:
        """Goes back to what :meth:`read` read.

        Raises:
            CheckpointError: If the state is damaged.
            ValueError: If it is that of a run with other settings.
        """
        with described("directory", store.directory, "sampling"):
            _STATE(state, "state.run")
        settings = self.settings()
        if differing := [name for name, value in settings.items() if state["settings"].get(name) != value]:
            name = differing[0]
            raise ValueError(
                f"resume: the run in {store.directory} had {name} {state['settings'].get(name)!r}, but now it is "
                f"{settings[name]!r}; pass the same arguments as then."
            )
        self.batches.check_form(state["batches"])
        with restoring("directory", store.directory):
            self.step, self.collected = state["step"], state["collected"]
            fill_tensors({"flat": self.flat}, {"flat": store.last() if state["flat"] is None else state["flat"]})
            fill_tensors(self.state, state["state"])
            self.noise.write(state["noise"])
            self.batches.write(state["batches"])
            random_state.write_all(state["random"], generators(self.batches.data))


def described_kernel(kernel: object) -> str:
    """The kernel's settings as text; functions by name, since their addresses differ from process to process."""
    fields = getattr(kernel, "__dataclass_fields__", None)
    if fields is not None:
        return f"{type(kernel).__name__}({', '.join(f'{n}={described_kernel(getattr(kernel, n))}' for n in fields)})"
    return getattr(kernel, "__qualname__", type(kernel).__name__) if callable(kernel) else repr(kernel)
