r"""Hamiltonian Monte Carlo for networks: several chains at once, whole leapfrogs compiled.

With momenta :math:`p \sim N(0, M)` and the energy :math:`H(q, p) = U(q) + \tfrac12 p^\top M^{-1} p`, a trajectory of L
leapfrogs proposes :math:`(q', p')`, which is accepted with probability :math:`\min(1, e^{H(q, p) - H(q', p')})`, in
each chain by itself. As the trajectory preserves volume and can be run backwards, the posterior is invariant, exactly.
Chains are rows of one matrix ``[C, d]``; noise is drawn outside compiled code.

Duane, Kennedy, Pendleton & Roweth, *Hybrid Monte Carlo* (1987); Neal, *MCMC using Hamiltonian dynamics* (2011).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from pyrobnn.core import random_state
from pyrobnn.core.arguments import check_number, check_positive, check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.core.progress import progress_bar
from pyrobnn.sampling.hmc.adaptation import Warmup, check_step_size
from pyrobnn.sampling.hmc.failures import DIVERGED, warn_of_failed_chains
from pyrobnn.sampling.hmc.leapfrog import Compile, Leapfrogs, State, check_compile
from pyrobnn.sampling.hmc.metric import DiagonalMetric, finite_or_refused, first_step_size
from pyrobnn.sampling.hmc.potential import Potential
from pyrobnn.sampling.kernels.base import ChainResult, FullBatchKernel

__all__ = ["HMC"]

_LONGEST = 1024  # leapfrogs in a trajectory of given length, however small the step size is at first


@explained
@dataclass(frozen=True)
class HMC(FullBatchKernel):
    """Hamiltonian Monte Carlo on all data, for :func:`pyrobnn.sample`.

    Args:
        step_size: Step size ε; the first one where it adapts. None: found by doubling or halving, for each chain.
        num_leapfrog: Leapfrogs L in a trajectory.
        trajectory_length: Length ε L instead, in units of the posterior's standard deviations where the mass matrix
            adapts, with the chains' median ε; trajectories then have at most 1024 leapfrogs. π/2, the best for a
            Gaussian, if both are None.
        adapt_step_size: Adapt ε of each chain during warmup by dual averaging.
        adapt_mass: ``"diagonal"``: set the mass matrix from the variances seen in warmup. None: leave it the identity.
        target_accept: Acceptance probability that each chain's step size aims at.
        jitter: Each transition of a chain takes a step size of its own, uniform between 1 - ``jitter`` and
            1 + ``jitter`` times ε, so that no trajectory goes round a closed orbit.
        compile: Compile leapfrogs: True, False, or ``"auto"``, where a compiler is found and the run is long enough. On
            a CPU they become loops in C++ for GCC, which takes less than a second, and are kept on disk
            (:mod:`pyrobnn.core.shared_library`); where that cannot be done, ``torch.compile`` is used.

    Statistics of each draw: ``acceptance_rate`` (probability), ``energy`` (H of the draw, for E-BFMI), ``energy_error``
    (of the proposal), ``lp`` (-U), ``diverging``, ``step_size``, ``n_steps`` (L). In single precision energies are
    exact to about 1e-7 of U: where U exceeds 1e5 nats, use ``model.double()``.

    Warns:
        UserWarning: If chains did not move, or many of their transitions diverged; it names them.

    Raises:
        TypeError: If ``num_leapfrog`` and ``trajectory_length`` are both given.
        ValueError: If an argument is out of range, or ``step_size`` is None and must not adapt.
    """

    step_size: float | None = None
    num_leapfrog: int | None = None
    trajectory_length: float | None = None
    adapt_step_size: bool = True
    adapt_mass: Literal["diagonal"] | None = "diagonal"
    target_accept: float = 0.8
    jitter: float = 0.1
    compile: Compile = "auto"

    def __post_init__(self) -> None:
        if self.num_leapfrog is not None and self.trajectory_length is not None:
            raise TypeError("trajectory_length: it is given together with num_leapfrog; pass one of them.")
        if self.num_leapfrog is not None:
            check_positive_int("num_leapfrog", self.num_leapfrog)
        if self.trajectory_length is not None:
            check_positive("trajectory_length", self.trajectory_length)
        check_step_size(self.step_size, self.adapt_step_size, self.target_accept)
        if self.adapt_mass not in ("diagonal", None):
            raise ValueError(f"adapt_mass: expected 'diagonal' or None, got {self.adapt_mass!r}.")
        check_number("jitter", self.jitter, 0.0, 1.0, below=True)
        check_compile(self.compile)

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
        """Runs all chains; see :meth:`FullBatchKernel.run`.

        Raises:
            ValueError: If the model has no potential (:class:`~pyrobnn.sampling.hmc.potential.Potential` says why).
            NonFiniteLossError: If the potential is not finite where a chain starts.
            RuntimeError: If ``compile=True`` and compiling fails.
        """
        potential = Potential(model, args)
        q = init.detach().clone()
        potential.check_start(q)
        draws = q.new_empty(num_chains, num_samples, q.shape[-1])
        stats: dict[str, list[Tensor]] = {}
        total = warmup_steps + num_samples * thinning
        with torch.no_grad(), progress_bar(total=total, shown=progress, title="HMC", leave=False) as bar:
            chain = Chains(self, potential, q, warmup_steps, total, seed)
            for index in range(total):
                kept, rest = divmod(index - warmup_steps + 1, thinning)
                is_kept = index >= warmup_steps and rest == 0
                found = chain.transition(index, report=is_kept)
                if is_kept:
                    draws[:, kept - 1] = chain.state[0]
                    for name, figure in found.items():
                        stats.setdefault(name, []).append(figure)
                if progress:
                    bar.update()
        joined = {name: torch.stack(values, 1) for name, values in stats.items()}
        warn_of_failed_chains("HMC", joined)
        return ChainResult(draws, joined)


class Chains:
    """The chains of a run and what moves them."""

    def __init__(
        self, kernel: HMC, potential: Potential, start: Tensor, warmup_steps: int, total: int, seed: int | None
    ) -> None:
        self.kernel, self.total, self.num_warmup = kernel, total, warmup_steps
        self.generator = torch.Generator(start.device)
        if seed is None:
            seed = random_state.fresh_seed()
        self.generator.manual_seed(seed)
        usual = kernel.num_leapfrog or 16
        self.leapfrogs = Leapfrogs(potential, start, num_leapfrog=usual, total=total * usual, compile=kernel.compile)
        value, gradient = self.leapfrogs.value_and_grad(start)
        self.state: State = (start, torch.zeros_like(start), gradient, value)
        num_chains = len(start)
        if kernel.step_size is None:
            sizes = self._first_step_size(torch.ones_like(start[0]), start.new_full((num_chains,), 0.1))
        else:
            sizes = start.new_full((num_chains,), kernel.step_size)
        self.warmup = Warmup(
            warmup_steps,
            start,
            sizes,
            target=kernel.target_accept,
            adapts_step_size=kernel.adapt_step_size,
            adapts_mass=kernel.adapt_mass is not None,
            find=self._first_step_size,
        )

    def transition(self, index: int, *, report: bool = True) -> dict[str, Tensor]:
        """Moves all chains; returns the statistics, ``[C]`` each, if requested."""
        warmup = self.warmup
        q, _, gradient, value = self.state
        step_size = self._jittered(warmup.step_size)
        length = self._length(warmup.typical_step_size)
        metric = DiagonalMetric(warmup.inverse_mass)
        momentum, kinetic = self._momentum(metric)
        proposed = self.leapfrogs((q, momentum, gradient, value), length, step_size, warmup.inverse_mass)
        before, after = value + kinetic, proposed[3] + metric.kinetic(proposed[1])
        error = finite_or_refused(after - before)
        acceptance = error.neg().clamp_(max=0.0).exp_()
        accepted = acceptance.new_empty(acceptance.shape).uniform_(generator=self.generator) < acceptance
        if bool(accepted.all()):
            self.state = proposed
        elif bool(accepted.any()):
            rows = accepted.unsqueeze(-1)
            self.state = (
                torch.where(rows, proposed[0], q),
                momentum,
                torch.where(rows, proposed[2], gradient),
                torch.where(accepted, proposed[3], value),
            )
        if index < self.num_warmup:
            warmup.update(index, self.state[0], acceptance)
        if not report:
            return {}
        return {
            "acceptance_rate": acceptance,
            "energy": torch.where(accepted, after, before),
            "energy_error": error,
            "lp": -self.state[3],
            "diverging": error > DIVERGED,
            "step_size": step_size.squeeze(-1),
            "n_steps": torch.full_like(accepted, length, dtype=torch.int64),
        }

    def _length(self, step_size: float) -> int:
        if self.kernel.num_leapfrog is not None:
            return self.kernel.num_leapfrog
        length = math.pi / 2 if self.kernel.trajectory_length is None else self.kernel.trajectory_length
        return min(max(1, math.ceil(length / step_size * (1.0 - 1e-6))), _LONGEST)  # but for rounding in step_size

    def _jittered(self, step_size: Tensor) -> Tensor:
        """Step sizes ``[C, 1]`` of one transition."""
        sizes = step_size.unsqueeze(-1)
        if self.kernel.jitter == 0:
            return sizes
        uniform = torch.rand(sizes.shape, generator=self.generator, device=sizes.device, dtype=sizes.dtype)
        return uniform.mul_(2.0 * self.kernel.jitter).add_(1.0 - self.kernel.jitter).mul_(sizes)

    def _momentum(self, metric: DiagonalMetric) -> tuple[Tensor, Tensor]:
        """Momenta of all chains and their kinetic energies."""
        noise = torch.empty_like(self.state[0]).normal_(generator=self.generator)
        return metric.momentum(noise), 0.5 * noise.square().sum(-1)

    def _first_step_size(self, inverse_mass: Tensor, step_size: Tensor) -> Tensor:
        return first_step_size(DiagonalMetric(inverse_mass), self.leapfrogs, self.state, step_size, self.generator)
