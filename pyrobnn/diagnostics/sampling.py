r"""Diagnostics of Markov chains: of the density, of energies, and of the step size of SG-MCMC.

* :func:`log_density_diagnostics`: R-hat and effective sample size of :math:`\log p(D, w)`, the one number in which all
  weights meet.
* :func:`energy_bfmi`: the fraction of missing information of HMC's energies (Betancourt 2016): how far resampling the
  momenta takes a chain from one energy to the next, compared with how far energies spread. Below 0.3 it is slow.
* SG-MCMC has no Metropolis test, so its step size leaves a bias. :func:`kinetic_temperature`: the mean square of
  velocities must be that of the temperature T, and minibatch noise or too large a step raises it.
  :func:`step_size_agreement`: predictions of two runs, of which one has a smaller step, differ by no more than their
  Monte Carlo errors where the bias is negligible.

Trace and rank plots, and whatever else ArviZ has, work on ``to_arviz(model, chains, x, y)``, which holds the sampler's
figures as ``sample_stats``. R-hat of predictions: :mod:`pyrobnn.diagnostics.function_space`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrobnn.core.arguments import check_positive
from pyrobnn.core.explanations import explained
from pyrobnn.diagnostics import _arviz
from pyrobnn.diagnostics._batches import batches
from pyrobnn.diagnostics._draws import Posterior, read_chains, undisturbed
from pyrobnn.diagnostics.function_space import function_values
from pyrobnn.diagnostics.importance import log_joint
from pyrobnn.guides.chains import Chains

__all__ = [
    "LogDensityDiagnostics",
    "StepSizeAgreement",
    "Temperature",
    "energy_bfmi",
    "kinetic_temperature",
    "log_density_diagnostics",
    "step_size_agreement",
]


@dataclass(frozen=True, eq=False)
class LogDensityDiagnostics:
    """Agreement and efficiency of chains in their log density.

    Attributes:
        values: ``log p(D, w)`` of each draw, ``[C, S]``, in nats.
        rhat: R-hat; None with a single chain.
        ess_bulk: Effective number of draws for its center, over all chains.
        ess_tail: The same for its 5 % and 95 % quantiles.
    """

    values: Tensor
    rhat: float | None
    ess_bulk: float
    ess_tail: float

    def __str__(self) -> str:
        rhat = "needs several chains" if self.rhat is None else f"{self.rhat:.3f}"
        num_chains, num_samples = self.values.shape
        return (
            f"log density, {num_chains} x {num_samples} draws, {self.values.mean():.4g} ± {self.values.std():.2g} "
            f"nats: "
            f"R-hat {rhat}, effective sample size {min(self.ess_bulk, self.ess_tail):.0f}"
        )


@dataclass(frozen=True)
class Temperature:
    """Temperature of the velocities, over all chains and draws.

    Attributes:
        mean: Its mean.
        error: Monte Carlo standard error of that.
        expected: The temperature T of the sampler.
    """

    mean: float
    error: float
    expected: float

    @property
    def bias(self) -> float:
        """By which share it is too warm (or, if negative, too cold)."""
        return self.mean / self.expected - 1.0

    def agrees(self, tolerance: float = 0.1) -> bool:
        """Whether the bias is at most ``tolerance``, or within three standard errors of zero."""
        return abs(self.bias) <= max(tolerance, 3.0 * self.error / self.expected)

    def __str__(self) -> str:
        return f"temperature {self.mean:.3g} ± {self.error:.2g}, expected {self.expected:.3g} ({self.bias:+.1%})"


@dataclass(frozen=True, eq=False)
class StepSizeAgreement:
    """Two runs compared, per input and output ``[N, ...]``.

    Attributes:
        difference: Mean of the first run less that of the second, in standard deviations of the second's draws.
        error: Monte Carlo standard error of that.
        spread: Standard deviation of the first run's draws over that of the second's.
    """

    difference: Tensor
    error: Tensor
    spread: Tensor

    @property
    def max_z(self) -> float:
        """The largest difference in standard errors; of n values up to about ``√(2 log n) + 1`` come by chance."""
        return float((self.difference.abs() / self.error).max())

    def agrees(self, tolerance: float = 0.1) -> bool:
        """Whether the root mean square difference and the median spread are off by no more than ``tolerance``.

        The difference counts beyond its Monte Carlo error.
        """
        excess = (self.difference.square() - self.error.square()).mean().clamp(min=0.0).sqrt()
        return bool(excess <= tolerance) and abs(float(self.spread.median()) - 1.0) <= tolerance

    def __str__(self) -> str:
        return (
            f"two step sizes, {self.difference.numel()} values: means differ by "
            f"{float(self.difference.square().mean().sqrt()):.2g} sd (Monte Carlo error "
            f"{float(self.error.square().mean().sqrt()):.2g}), spreads by a factor of {float(self.spread.median()):.2f}"
        )


@explained
def log_density_diagnostics(
    model: Any,
    posterior: Posterior,
    *args: Any,
    num_samples: int | None = None,
    batch_size: int | None = None,
    **kwargs: Any,
) -> LogDensityDiagnostics:
    """R-hat and effective sample size of the log density: ``log_density_diagnostics(model, chains, x, y)``.

    Args:
        model: The model.
        posterior: :class:`~pyrobnn.guides.Chains`, a list of guides, or a finished :class:`pyro.infer.MCMC`.
        *args: All data, as arguments of the model.
        num_samples: Draws per chain; None takes all of a run, 500 of a guide.
        batch_size: Rows that a :class:`~pyrobnn.SupervisedModel` sees at a time, which declares that each input has one
            entry for each row and that rows do not interact; None for one call of the model, as in training.
        **kwargs: Keyword arguments of the model.

    Raises:
        TypeError: If the posterior is of the wrong kind.
        ValueError: If there are fewer than four draws, or the density is the same in all of them.
    """
    pieces = batches(model, args, kwargs, batch_size)
    with undisturbed(model, pieces):
        chains = read_chains(model, posterior, num_samples, args, kwargs)
        if chains.num_samples < 4:
            raise ValueError(f"num_samples: R-hat needs at least 4 draws per chain, got {chains.num_samples}.")
        values = np.empty(chains.shape)
        for chain, draw, sites in chains:
            values[chain, draw] = log_joint(model, sites, pieces)
    if np.ptp(values) == 0.0:
        raise ValueError("posterior: its draws all have one density, as of a point estimate.")
    return LogDensityDiagnostics(
        values=torch.from_numpy(values),
        rhat=float(_arviz.split_rhat(values)) if len(values) > 1 else None,
        ess_bulk=float(_arviz.effective_sample_size(values, "bulk")),
        ess_tail=float(_arviz.effective_sample_size(values, "tail")),
    )


@explained
def energy_bfmi(chains: Chains) -> Tensor:
    """E-BFMI of each chain of HMC or NUTS, ``[C]``; below 0.3 momenta move a chain too little between energies.

    Raises:
        TypeError: If ``chains`` are no :class:`~pyrobnn.guides.Chains`.
        ValueError: If their sampler recorded no energies.
    """
    energy = _figure(chains, "energy", "draw them by HMC or NUTS")
    return torch.from_numpy(_arviz.energy_bfmi(energy.double().cpu().numpy())).float()


@explained
def kinetic_temperature(chains: Chains, temperature: float = 1.0) -> Temperature:
    """Temperature of the velocities of SGHMC or SGNHT.

    Args:
        chains: The draws.
        temperature: The temperature T that the sampler was given.

    Raises:
        TypeError: If ``chains`` are no :class:`~pyrobnn.guides.Chains`.
        ValueError: If their sampler has no velocities, or ``temperature`` is not positive.
    """
    check_positive("temperature", temperature)
    found = _figure(chains, "kinetic_temperature", "SGLD has no velocities; compare two step sizes instead")
    values = found.double().cpu().numpy()
    effective = float(_arviz.effective_sample_size(values, "mean")) if values.shape[1] >= 4 else float(values.size)
    return Temperature(float(values.mean()), float(values.std(ddof=1) / np.sqrt(effective)), float(temperature))


@explained
def step_size_agreement(
    model: Any,
    first: Posterior,
    second: Posterior,
    *args: Any,
    num_samples: int | None = None,
    batch_size: int | None = None,
    **kwargs: Any,
) -> StepSizeAgreement:
    """Predictions of two runs that differ in their step size, say by half.

    Args:
        model: The model, as for :func:`~pyrobnn.diagnostics.function_space_diagnostics`.
        first: Draws by the larger step.
        second: Draws by the smaller one.
        *args: Inputs at which to compare.
        num_samples: Draws per chain; None takes all.
        batch_size: Rows that a :class:`~pyrobnn.SupervisedModel` sees at a time, which declares that each input has one
            entry for each row and that rows do not interact; None for one call of the model, as in training.
        **kwargs: Keyword arguments of the model.

    Raises:
        TypeError: If a posterior is of the wrong kind.
        ValueError: If there are fewer than four draws, or a value is the same in all draws of a run.
    """
    means, errors, spreads = [], [], []
    for posterior in (first, second):
        values = function_values(model, posterior, args, kwargs, num_samples, batch_size)
        spread = values.std(axis=(0, 1), ddof=1)
        if not (spread > 0).all():
            raise ValueError("args: at some inputs all draws of a run predict the same; leave those out.")
        means.append(values.mean(axis=(0, 1)))
        errors.append(spread / np.sqrt(_arviz.effective_sample_size(values, "mean")))
        spreads.append(spread)
    tensors = [
        (means[0] - means[1]) / spreads[1],
        np.hypot(*errors) / spreads[1],
        spreads[0] / spreads[1],
    ]
    return StepSizeAgreement(*(torch.from_numpy(np.ascontiguousarray(value)).float() for value in tensors))


def _figure(chains: Any, name: str, hint: str) -> Tensor:
    if not isinstance(chains, Chains):
        raise TypeError(f"chains: expected Chains, as pyrobnn.sample returns them, got {type(chains).__name__}.")
    if name not in chains.stat_names:
        recorded = ", ".join(chains.stat_names) or "nothing"
        raise ValueError(f"chains: their sampler recorded no {name!r} (but {recorded}); {hint}.")
    return chains.stats[name]
