r"""Pyro's own MCMC kernels on the flat potential: NUTS, HMC, or any other that takes a ``potential_fn``.

Pyro's kernels spend most of a leapfrog on sites, traces and autograd. Here they see one site, the flat vector of all
others, whose potential and gradient come together from one recorded graph (:mod:`pyrobnn.sampling.hmc.potential`): a
third of the time on a small network. Chains run one after another in this process.

Hoffman & Gelman, *The No-U-Turn Sampler* (2014).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pyro.infer import NUTS as PyroNUTS
from torch import Tensor

from pyrobnn.core import random_state
from pyrobnn.core.arguments import check_positive, check_positive_int, check_probability
from pyrobnn.core.explanations import explained
from pyrobnn.core.handlers import validation_enabled
from pyrobnn.core.progress import progress_bar
from pyrobnn.sampling.hmc.failures import warn_of_failed_chains
from pyrobnn.sampling.hmc.potential import Potential, ValueAndGrad
from pyrobnn.sampling.kernels.base import ChainResult, FullBatchKernel

__all__ = ["NUTS", "PyroKernel", "flat_potential"]

PotentialFunction = Callable[[Mapping[str, Tensor]], Tensor]


class _OnFlatPotential(FullBatchKernel):
    """Runs what :meth:`new_kernel` makes."""

    def new_kernel(self, potential_fn: PotentialFunction) -> Any:
        """A kernel for one chain."""
        raise NotImplementedError

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
            progress_bar(total=total, shown=progress, title=type(self).__name__, leave=False) as bar,
        ):
            for start in init:
                states, figures = self._run_chain(potential, start, num_samples, warmup_steps, thinning, bar)
                draws.append(states)
                stats.append(figures)
        joined = {name: torch.stack([s[name] for s in stats]) for name in stats[0]}
        warn_of_failed_chains(type(self).__name__, joined)
        return ChainResult(torch.stack(draws), joined)

    def _run_chain(
        self, potential: Potential, start: Tensor, num_samples: int, warmup_steps: int, thinning: int, bar: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        value_and_grad = potential.recorded(start)
        counted = _Counted(value_and_grad)
        kernel = self.new_kernel(counted)
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


@explained
@dataclass(frozen=True)
class PyroKernel(_OnFlatPotential):
    """A kernel of ``pyro.infer`` on the flat potential.

    For example ``PyroKernel(lambda potential: pyro.infer.HMC(potential_fn=potential, step_size=0.01, num_steps=20))``.

    Args:
        make: From ``potential_fn``, a function of ``{"flat": tensor [d]}``, to a new kernel.

    Statistics of each draw: ``lp`` (-U), ``n_steps`` (gradients taken for the transition), ``moved`` (whether the state
    changed), and as far as the kernel reports them ``diverging`` and ``step_size``.
    """

    make: Callable[[PotentialFunction], Any]

    def new_kernel(self, potential_fn: PotentialFunction) -> Any:
        """A kernel for one chain."""
        return self.make(potential_fn)


@explained
@dataclass(frozen=True)
class NUTS(_OnFlatPotential):
    """Pyro's No-U-Turn sampler on the flat potential, for :func:`pyrobnn.sample`.

    Args:
        step_size: The first step size.
        adapt_step_size: Adapt it during warmup by dual averaging.
        adapt_mass: ``"diagonal"`` or ``"dense"``: set the mass matrix from the draws of warmup. None: leave it the
            identity.
        target_accept: Acceptance probability that the step size aims at.
        max_tree_depth: Trajectories have at most 2 to this power leapfrogs.

    Statistics: those of :class:`PyroKernel`; the depth of a trajectory's tree is about ``log2(n_steps + 1)``.

    Raises:
        ValueError: If an argument is out of range.
    """

    step_size: float = 0.1
    adapt_step_size: bool = True
    adapt_mass: Literal["diagonal", "dense"] | None = "diagonal"
    target_accept: float = 0.8
    max_tree_depth: int = 10

    def __post_init__(self) -> None:
        check_positive("step_size", self.step_size)
        check_positive_int("max_tree_depth", self.max_tree_depth)
        if self.adapt_mass not in ("diagonal", "dense", None):
            raise ValueError(f"adapt_mass: expected 'diagonal', 'dense' or None, got {self.adapt_mass!r}.")
        check_probability("target_accept", self.target_accept)

    def new_kernel(self, potential_fn: PotentialFunction) -> PyroNUTS:
        """A sampler for one chain."""
        return PyroNUTS(
            potential_fn=potential_fn,
            step_size=self.step_size,
            adapt_step_size=self.adapt_step_size,
            adapt_mass_matrix=self.adapt_mass is not None,
            full_mass=self.adapt_mass == "dense",
            target_accept_prob=self.target_accept,
            max_tree_depth=self.max_tree_depth,
        )


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
