r"""The No-U-Turn sampler for several chains at once.

A transition draws momenta, grows a trajectory in both directions of time until it turns back, and draws one of its
states in proportion to :math:`e^{-H(q, p)}`, later ones preferred (:mod:`pyrobnn.sampling.hmc.trees`): the posterior is
invariant, exactly. So the length of trajectories, which HMC has to be told, is found anew at each transition.

All chains take each leapfrog together, as rows of one matrix ``[C, d]``, but need not be in the same transition: while
one still grows a large tree, another goes on with its next. Only during warmup they wait for each other, because they
adapt one mass matrix from all their states.

Hoffman & Gelman, *The No-U-Turn Sampler* (2014); Betancourt, *A Conceptual Introduction to Hamiltonian Monte Carlo*
(2017).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pyrobnn.core import random_state
from pyrobnn.core.arguments import check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.core.progress import progress_bar
from pyrobnn.sampling.hmc.adaptation import ChainCovariance, ChainVariance, Warmup, check_step_size
from pyrobnn.sampling.hmc.failures import warn_of_failed_chains
from pyrobnn.sampling.hmc.leapfrog import Compile, Leapfrogs, check_compile
from pyrobnn.sampling.hmc.metric import DenseMetric, DiagonalMetric, Metric, first_step_size
from pyrobnn.sampling.hmc.potential import Potential
from pyrobnn.sampling.hmc.trees import Trees
from pyrobnn.sampling.kernels.base import ChainResult, FullBatchKernel

__all__ = ["NUTS"]

_USUAL_DEPTH = 5  # of trees, by which the leapfrogs of a run are estimated beforehand
_DIAGONAL = DiagonalMetric, ChainVariance
_MASS: dict[str | None, tuple[type[Metric], type[ChainVariance] | type[ChainCovariance]]] = {
    "diagonal": _DIAGONAL,
    "dense": (DenseMetric, ChainCovariance),
    None: _DIAGONAL,
}


@explained
@dataclass(frozen=True)
class NUTS(FullBatchKernel):
    """The No-U-Turn sampler on all data, for :func:`pyrobnn.sample`.

    Args:
        step_size: Step size ε; the first one where it adapts. None: found by doubling or halving, for each chain.
        adapt_step_size: Adapt ε of each chain during warmup by dual averaging.
        adapt_mass: Set the mass matrix from the states seen in warmup: ``"diagonal"`` from their variances, ``"dense"``
            from their covariance, for up to a few thousand weights with strong correlations. None: leave it the
            identity.
        target_accept: Acceptance probability that each chain's step size aims at.
        max_tree_depth: Trajectories have less than 2 to this power leapfrogs.
        compile: Compile leapfrogs, as for :class:`~pyrobnn.sampling.HMC`: True, False, or ``"auto"``, where a compiler
            is found, the run is long enough and the mass matrix is not dense.

    Statistics of each draw: ``acceptance_rate`` (probability, mean over the trajectory), ``energy`` (H of the draw, for
    E-BFMI), ``lp`` (-U), ``diverging``, ``step_size``, ``n_steps`` (leapfrogs, one gradient each), ``tree_depth``
    (doublings that were completed). In single precision energies are exact to about 1e-7 of U: where U exceeds 1e5
    nats, use ``model.double()``. Memory beside the draws: about 2 ``tree_depth`` + 14 flat vectors of each chain.

    Warns:
        UserWarning: If chains did not move, or many of their transitions diverged; it names them.

    Raises:
        ValueError: If an argument is out of range, ``step_size`` is None and must not adapt, or ``compile`` is True
            where the mass matrix is dense.
    """

    step_size: float | None = None
    adapt_step_size: bool = True
    adapt_mass: Literal["diagonal", "dense"] | None = "diagonal"
    target_accept: float = 0.8
    max_tree_depth: int = 10
    compile: Compile = "auto"

    def __post_init__(self) -> None:
        check_step_size(self.step_size, self.adapt_step_size, self.target_accept)
        check_positive_int("max_tree_depth", self.max_tree_depth)
        if self.adapt_mass not in ("diagonal", "dense", None):
            raise ValueError(f"adapt_mass: expected 'diagonal', 'dense' or None, got {self.adapt_mass!r}.")
        check_compile(self.compile)
        if self.compile is True and self.adapt_mass == "dense":
            raise ValueError(
                "compile: leapfrogs with a dense mass matrix cannot be compiled; use compile='auto', or "
                "adapt_mass='diagonal'."
            )

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
        start = init.detach().clone()
        potential.check_start(start)
        total = warmup_steps + num_samples * thinning
        with torch.no_grad(), progress_bar(total=total * num_chains, shown=progress, title="NUTS", leave=False) as bar:
            chains = Chains(self, potential, start, warmup_steps, total, seed)
            for index in range(warmup_steps):
                chains.warm_up(index)
                bar.update(num_chains)
            result = chains.run(num_samples, thinning, bar.update)
        warn_of_failed_chains("NUTS", result.stats)
        return result


class Chains:
    """The chains of a run and what moves them.

    Attributes:
        trees: Their trees; ``trees.draw`` has the states.
    """

    def __init__(
        self, kernel: NUTS, potential: Potential, start: Tensor, warmup_steps: int, total: int, seed: int | None
    ) -> None:
        self._metric_of, estimator = _MASS[kernel.adapt_mass]
        self._generator = torch.Generator(start.device)
        self._generator.manual_seed(random_state.fresh_seed() if seed is None else seed)
        expected = total * (2 ** min(kernel.max_tree_depth, _USUAL_DEPTH) - 1)
        compile = kernel.compile if self._metric_of.compiles else False
        leapfrogs = Leapfrogs(potential, start, num_leapfrog=1, total=expected, compile=compile)
        value, gradient = leapfrogs.value_and_grad(start)
        sizes = start.new_full((len(start),), kernel.step_size or 0.1)
        self.trees = Trees(
            leapfrogs,
            start,
            gradient,
            value,
            metric=self._metric_of(estimator.identity(start[0])),
            step_size=sizes,
            max_depth=kernel.max_tree_depth,
            generator=self._generator,
        )
        if kernel.step_size is None:
            sizes = self._first_step_size(self.trees.metric.inverse_mass, sizes)
        self._warmup = Warmup(
            warmup_steps,
            start,
            sizes,
            target=kernel.target_accept,
            adapts_step_size=kernel.adapt_step_size,
            adapts_mass=kernel.adapt_mass is not None,
            estimator=estimator,
            find=self._first_step_size,
        )
        self.trees.set_step_size(self._warmup.step_size)
        self._all = np.ones(len(start), dtype=bool)

    def warm_up(self, index: int) -> None:
        """Transition ``index`` of warmup: each chain waits for the others, and all adapt."""
        trees, warmup = self.trees, self._warmup
        trees.begin(self._all)
        while trees.active.any():
            trees.grow()
        states = trees.draw.position
        warmup.update(index, states, torch.from_numpy(trees.statistics()["acceptance_rate"]).to(states))
        if warmup.inverse_mass is not trees.metric.inverse_mass:
            trees.metric = self._metric_of(warmup.inverse_mass)
        trees.set_step_size(warmup.step_size)

    def run(self, num_samples: int, thinning: int, advance: Callable[[int], Any]) -> ChainResult:
        """The draws of all chains, each of which goes through its transitions by itself.

        Args:
            num_samples: Draws S that are kept of each chain.
            thinning: Transitions for each of them.
            advance: Is told how many transitions have ended.
        """
        trees = self.trees
        num_chains, size = trees.draw.position.shape
        draws = trees.draw.position.new_empty(num_chains, num_samples, size)
        figures: dict[str, np.ndarray[Any, Any]] = {}
        done = np.zeros(num_chains, dtype=np.int64)
        trees.begin(self._all)
        while trees.active.any():
            ended = trees.grow()
            if not ended.any():
                continue
            done += ended
            advance(int(ended.sum()))
            rows = np.flatnonzero(ended & (done % thinning == 0))
            if len(rows):
                kept = done[rows] // thinning - 1
                draws[rows, kept] = trees.draw.position[rows]
                for name, values in trees.statistics().items():
                    table = figures.setdefault(name, np.zeros((num_chains, num_samples), dtype=values.dtype))
                    table[rows, kept] = values[rows]
            trees.begin(ended & (done < num_samples * thinning))
        return ChainResult(draws, {name: _on(draws, table) for name, table in figures.items()})

    def _first_step_size(self, inverse_mass: Tensor, step_size: Tensor) -> Tensor:
        metric, draw = self._metric_of(inverse_mass), self.trees.draw
        value = torch.from_numpy(draw.potential).to(draw.position)
        state = draw.position, torch.zeros_like(draw.position), draw.gradient, value
        return first_step_size(metric, self.trees.leapfrogs, state, step_size, self._generator)


def _on(draws: Tensor, table: np.ndarray[Any, Any]) -> Tensor:
    """Statistics on the draws' device, in their precision."""
    found = torch.from_numpy(table)
    return found.to(draws) if found.is_floating_point() else found.to(draws.device)
