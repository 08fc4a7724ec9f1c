"""Pyro's own MCMC kernels on the flat potential: NUTS, HMC, or any other that takes a ``potential_fn``.

Pyro's kernels spend most of a leapfrog on sites, traces and autograd. Here they see one site, the flat vector of all
others, whose potential and gradient come together from one recorded graph (:mod:`pyrobnn.sampling.hmc.potential`): a
third of the time on a small network. Chains run one after another in this process. They are the reference that
:class:`~pyrobnn.sampling.HMC` and :class:`~pyrobnn.sampling.NUTS` are compared with.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrobnn.core import random_state
from pyrobnn.core.explanations import explained
from pyrobnn.core.handlers import validation_enabled
from pyrobnn.core.progress import progress_bar
from pyrobnn.sampling.hmc.failures import warn_of_failed_chains
from pyrobnn.sampling.hmc.potential import Potential, ValueAndGrad
from pyrobnn.sampling.kernels.base import ChainResult, FullBatchKernel

__all__ = ["PyroKernel", "flat_potential"]

PotentialFunction = Callable[[Mapping[str, Tensor]], Tensor]


@explained
@dataclass(frozen=True)
class PyroKernel(FullBatchKernel):
    """A kernel of ``pyro.infer`` on the flat potential.

    For example Pyro's NUTS with a dense mass matrix:
    ``PyroKernel(lambda potential: pyro.infer.NUTS(potential_fn=potential, step_size=0.1, full_mass=True))``.

    Args:
        make: From ``potential_fn``, a function of ``{"flat": tensor [d]}``, to a new kernel.

    Statistics of each draw: ``lp`` (-U), ``n_steps`` (gradients taken for the transition), ``moved`` (whether the state
    changed), and as far as the kernel reports them ``diverging`` and ``step_size``.
    """

    make: Callable[[PotentialFunction], Any]

    def run(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...],
        *,
        num_samples: int,
        warmup_steps: int,
        thinning: int,
        num_chains: int,
        init: Tensor,
        seed: int | None = None,
        progress: bool = True,
    ) -> ChainResult:
        """Runs the chains one after another; see :meth:`FullBatchKernel.run`.

        Raises:
            ValueError: If the model has no potential (:class:`~pyrobnn.sampling.hmc.potential.Potential` says why).
            NonFiniteLossError: If the potential is not finite where a chain starts.
        """
        potential = Potential(model, args)
        potential.check_start(init)
        draws: list[Tensor] = []
        stats: list[dict[str, Tensor]] = []
        total = num_chains * (warmup_steps + num_samples * thinning)
        with (
            contextlib.nullcontext() if seed is None else random_state.seeded(seed, init.device),
            validation_enabled(False),
            progress_bar(total=total, shown=progress, title="PyroKernel", leave=False) as bar,
        ):
            for start in init:
                states, figures = self._run_chain(potential, start, num_samples, warmup_steps, thinning, bar)
                draws.append(states)
                stats.append(figures)
        joined = {name: torch.stack([s[name] for s in stats]) for name in stats[0]}
        warn_of_failed_chains("PyroKernel", joined)
        return ChainResult(torch.stack(draws), joined)

    def _run_chain(
        self, potential: Potential, start: Tensor, num_samples: int, warmup_steps: int, thinning: int, bar: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        value_and_grad = potential.recorded(start)
        counted = _Counted(value_and_grad)
        kernel = self.make(counted)
        kernel.initial_params = {"flat": start.detach().clone()}
        kernel.setup(warmup_steps)
        state, kept = kernel.initial_params, start.new_empty(num_samples, len(start))
        figures: dict[str, list[float]] = {}
        for index in range(warmup_steps + num_samples * thinning):
            before, counted.calls = state["flat"], 0
            state = kernel.sample(state)
            bar.update()
            draw, rest = divmod(index - warmup_steps + 1, thinning)
            if index < warmup_steps or rest:
                continue
            flat = state["flat"].detach()
            kept[draw - 1] = flat
            found = {
                "lp": -float(value_and_grad(flat)[0]),
                "n_steps": counted.calls,
                "moved": not torch.equal(flat, before),
                "diverging": index - warmup_steps in _divergences(kernel),
                "step_size": float(getattr(kernel, "step_size", math.nan)),
            }
            for name, value in found.items():
                figures.setdefault(name, []).append(value)
        kernel.cleanup()
        return kept, {name: torch.tensor(values, device=start.device) for name, values in figures.items()}


def flat_potential(potential: Potential, like: Tensor) -> PotentialFunction:
    """The potential as the ``potential_fn`` of Pyro's kernels: of ``{"flat": tensor [d]}``, its gradient recorded."""
    return _Counted(potential.recorded(like))


class _Counted:
    """The potential as Pyro's kernels call it; counts the calls."""

    def __init__(self, value_and_grad: ValueAndGrad) -> None:
        self.value_and_grad = value_and_grad
        self.calls = 0

    def __call__(self, values: Mapping[str, Tensor]) -> Tensor:
        self.calls += 1
        return _WithGradient.apply(values["flat"], self.value_and_grad)


class _WithGradient(torch.autograd.Function):
    """A potential whose gradient is computed together with it."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, value_and_grad: ValueAndGrad) -> Tensor:
        value, gradient = value_and_grad(flat.detach())
        ctx.gradient = gradient  # nothing differentiates through it, and saving it properly takes longer
        return value

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None]:
        return outer * ctx.gradient, None


def _divergences(kernel: Any) -> list[int]:
    """Transitions after warmup that diverged, where the kernel reports it."""
    reported: dict[str, Any] = kernel.diagnostics() if hasattr(kernel, "diagnostics") else {}
    return list(reported.get("divergences", ()))
