r"""Annealed importance sampling: the log evidence by a path from the prior to the posterior.

A chain starts at a draw of the prior and moves, at inverse temperatures :math:`0 = \beta_0 < \dots < \beta_T = 1`, by a
transition of HMC that leaves :math:`p(w)\, p(D \mid w)^{\beta_t}` invariant. Its weight

.. math::  \log r = \sum_{t=1}^{T} (\beta_t - \beta_{t-1}) \log p(D \mid w_{t-1})

has :math:`E[r] = p(D)`, so that :math:`\log \frac1K \sum_k r_k` is a lower bound of the log evidence in expectation
that becomes exact as T or K grows. From exact draws of the posterior the chain can be run backwards, and
:math:`-\log \frac1K \sum_k r_k^{-1}` is then an upper bound in expectation: where both agree, they are right.
Temperatures are :math:`\beta_t = (t/T)^4`. Step sizes by temperature come from a run before, whose chains are not used.

Neal, *Annealed importance sampling* (2001); Grosse, Ancha & Roy, *Measuring the reliability of MCMC inference with
bidirectional Monte Carlo* (2016).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrobnn.core import random_state
from pyrobnn.core.arguments import check_int, check_positive, check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.diagnostics._batches import Piece, batches
from pyrobnn.diagnostics._draws import undisturbed
from pyrobnn.model.agreement import check_draws
from pyrobnn.model.declarations import latent_sampler
from pyrobnn.model.substitution import SubstituteMessenger
from pyrobnn.sampling.hmc.potential import Potential, ValueAndGrad
from pyrobnn.sampling.kernels.hmc import HMC, Chains

__all__ = ["AnnealedEvidence", "annealed_importance_sampling", "whole_data"]

_POWER = 4
_TARGET = 0.8  # acceptance probability that step sizes aim at
_GAIN = 0.1  # how fast they follow it, per transition, on the scale of logarithms


@dataclass(frozen=True, eq=False)
class AnnealedEvidence:
    """Weights of annealed chains.

    Attributes:
        log_weights: Log weight of each chain ``[K]``, in nats; with the sign of the log evidence in either direction.
        reverse: Whether chains ran from the posterior to the prior, which bounds from above.
        acceptance: Mean acceptance probability of the transitions.
    """

    log_weights: Tensor
    reverse: bool
    acceptance: float

    @property
    def _signed(self) -> Tensor:
        return -self.log_weights if self.reverse else self.log_weights

    @property
    def log_evidence(self) -> float:
        """The estimate in nats."""
        mean = float(self._signed.logsumexp(0)) - math.log(len(self._signed))
        return -mean if self.reverse else mean

    @property
    def standard_error(self) -> float:
        """Its standard error by the spread of the weights; NaN for a single chain. It is too small if few dominate."""
        ratios = (self._signed - self._signed.max()).exp()
        return float(ratios.std() / ratios.mean()) / len(ratios) ** 0.5

    @property
    def effective_samples(self) -> float:
        """Number of chains that the weights amount to."""
        ratios = (self._signed - self._signed.max()).exp()
        return float(ratios.sum().square() / ratios.square().sum())

    def __str__(self) -> str:
        bound = "upper" if self.reverse else "lower"
        return (
            f"log evidence {self.log_evidence:.2f} ± {self.standard_error:.2g} nats ({bound} bound in expectation; "
            f"{len(self.log_weights)} chains, {self.effective_samples:.1f} effective, acceptance {self.acceptance:.2f})"
        )


@explained
def annealed_importance_sampling(
    model: Any,
    *data: Any,
    num_chains: int = 16,
    num_temperatures: int = 500,
    num_leapfrog: int = 5,
    step_size: float | None = None,
    posterior: Mapping[str, Tensor] | None = None,
    seed: int | None = None,
) -> AnnealedEvidence:
    """The log evidence of a small network: ``annealed_importance_sampling(model, x, y)``.

    Args:
        model: The model, which draws its latent sites without data (any :class:`~pyrobnn.SupervisedModel`). In single
            precision weights have errors of about 1e-7 of the potential; ``model.double()`` has none.
        *data: Its arguments: all of the data.
        num_chains: Number K of chains.
        num_temperatures: Number T of temperatures, each with one transition.
        num_leapfrog: Leapfrogs of a transition.
        step_size: Step size at all temperatures, in units of the prior's standard deviations; None: found for each
            by a run before.
        posterior: Exact draws of the posterior ``{site: [K, *site shape]}``, from which chains run backwards (K is
            their number, whatever ``num_chains`` says).
        seed: Fixes all chains.

    Returns:
        The weights, with ``log_evidence`` and ``standard_error``.

    Raises:
        TypeError: If the model has no method ``sample_latents``.
        ValueError: If a number is out of range, or the model has no potential
            (:class:`~pyrobnn.sampling.hmc.potential.Potential` says why).
    """
    for name, count in (
        ("num_chains", num_chains),
        ("num_temperatures", num_temperatures),
        ("num_leapfrog", num_leapfrog),
    ):
        check_positive_int(name, count)
    if step_size is not None:
        check_positive("step_size", step_size)
    if seed is not None:
        check_int("seed", seed, 0, 2**32 - 1)
    if (sampler := latent_sampler(model)) is None:
        raise TypeError(
            f"model: {type(model).__name__} does not draw its latent sites without data; expected a SupervisedModel, "
            "or a model with a method sample_latents."
        )
    whole_data(model, data)
    if posterior is not None:
        check_draws(model, posterior, argument="posterior")
    with random_state.local(seed), undisturbed(model):
        path = _Path(Potential(sampler), Potential(model, data))
        prior = _from_prior(path, max(num_chains, 100))
        scale = prior.var(0).clamp_min(torch.finfo(prior.dtype).tiny)
        betas = [(t / num_temperatures) ** _POWER for t in range(num_temperatures + 1)]
        if step_size is None:
            trial, _, _ = _run(path, prior[:num_chains], betas, num_leapfrog, 0.1 / len(scale) ** 0.25, scale, True)
            sizes = trial
        else:
            sizes = [step_size] * num_temperatures
        if posterior is None:
            start = _from_prior(path, num_chains)
        else:
            start, betas, sizes = path.flat(posterior), betas[::-1], sizes[::-1]
        _, weights, acceptance = _run(path, start, betas, num_leapfrog, sizes, scale, False)
    log_weights = weights if posterior is None else -weights
    return AnnealedEvidence(log_weights, posterior is not None, acceptance)


def whole_data(model: Any, data: tuple[Any, ...]) -> list[Piece]:
    """The arguments as one call of the model, checked.

    Raises:
        TypeError: If the inputs are no tensors.
        ValueError: If there are none, the targets do not fit, or they are not all data of the model.
    """
    if not data:
        raise ValueError("data: expected the model's arguments with all of the data, such as x, y; got none.")
    pieces = batches(model, data, {}, None)
    rows = pieces[0].rows
    if isinstance(rows, slice) and rows.stop != model.num_data:
        raise ValueError(f"data: the evidence needs all {model.num_data} data (num_data), got {rows.stop} rows.")
    return pieces


class _Path:
    """The potentials between prior and posterior, ``(1 - β) V + β U``; it stands for a Potential in leapfrogs.

    Args:
        prior: V, with minus the log density of the prior.
        posterior: U, with minus that of the data in addition.
    """

    def __init__(self, prior: Potential, posterior: Potential) -> None:
        self.prior, self.posterior, self.beta = prior, posterior, 0.0

    def recorded(self, like: Tensor) -> ValueAndGrad:
        ends = self.prior.recorded(like), self.posterior.recorded(like)

        def value_and_grad(flat: Tensor) -> tuple[Tensor, Tensor]:
            (v, dv), (u, du) = (end(flat) for end in ends)
            return torch.lerp(v, u, self.beta), torch.lerp(dv, du, self.beta)

        return value_and_grad

    def log_likelihood(self, flat: Tensor) -> Tensor:
        """``log p(D | w)`` of each chain ``[C]``."""
        return self.prior.value_and_grad(flat)[0].double() - self.posterior.value_and_grad(flat)[0].double()

    def flat(self, draws: Mapping[str, Tensor]) -> Tensor:
        """Flat vectors ``[K, d]`` of draws."""
        layout = self.posterior.layout
        return layout.join(layout.unconstrain({name: draws[name] for name in layout}))


def _from_prior(path: _Path, count: int) -> Tensor:
    """Flat vectors ``[count, d]`` drawn from the prior."""
    rows = []
    for _ in range(count):
        with SubstituteMessenger({}) as run:
            path.prior.model()
        rows.append(path.flat({m["name"]: m["value"].unsqueeze(0) for m in run.latent}))
    return torch.cat(rows)


def _run(
    path: _Path,
    start: Tensor,
    betas: list[float],
    num_leapfrog: int,
    sizes: float | list[float],
    inverse_mass: Tensor,
    adapts: bool,
) -> tuple[list[float], Tensor, float]:
    """Step sizes by temperature, log weights ``[C]`` and the mean acceptance of chains along ``betas``."""
    total = len(betas) - 1
    first = sizes[0] if isinstance(sizes, list) else sizes
    kernel = HMC(first, num_leapfrog=num_leapfrog, adapt_step_size=False, adapt_mass=None, compile=False)
    chains = Chains(kernel, path, start, 0, total, random_state.fresh_seed())  # type: ignore[arg-type]
    chains.warmup.inverse_mass = inverse_mass
    weights, used, accepted = start.new_zeros(len(start), dtype=torch.float64), [], 0.0
    size = first
    for index, (before, beta) in enumerate(itertools.pairwise(betas)):
        q = chains.state[0]
        weights += (beta - before) * path.log_likelihood(q)
        path.beta = beta
        value, gradient = chains.leapfrogs.value_and_grad(q)
        chains.state = (q, chains.state[1], gradient, value)
        size = sizes[index] if isinstance(sizes, list) else size
        used.append(size)
        chains.warmup.step_size = torch.full_like(value, size)
        acceptance = float(chains.transition(index)["acceptance_rate"].mean())
        accepted += acceptance / total
        if adapts:
            size *= math.exp(_GAIN * (acceptance - _TARGET))
    return used, weights, accepted
