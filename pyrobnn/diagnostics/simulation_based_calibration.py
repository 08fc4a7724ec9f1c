r"""Simulation-based calibration: does an inference find the posterior, whatever the data?

Draw parameters from the prior and data from the model, :math:`\theta \sim p(\theta)`, :math:`y \sim p(y \mid \theta)`,
infer, and count how many of L posterior draws of a quantity f lie below its true value:

.. math::  r = \sum_{l=1}^{L} 1\{f(\theta_l) < f(\theta)\}.

If the draws come from the posterior, r is uniform on 0, …, L. Posteriors that are too narrow give too many ranks at
both ends, too wide ones too many in the middle, biased ones more at one end. Quantities of the function (outputs at
inputs) mean the same for every network; the log likelihood, which depends on the data too, finds faults that others
miss, but leans to one side under any, so the verdict is that of the others.

Talts et al., *Validating Bayesian inference algorithms with simulation-based calibration* (2018); Modrák et al.,
*Simulation-based calibration checking for Bayesian computation: the choice of test quantities* (2023).
"""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from pyrobnn.core import random_state
from pyrobnn.core.arguments import check_positive_int
from pyrobnn.core.executors import Units, check_executor, unit_seeds
from pyrobnn.core.progress import progress_bar
from pyrobnn.diagnostics._simulation import LOG_LIKELIHOOD, Infer, Quantities, simulated_ranks
from pyrobnn.model.declarations import declared_num_data

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["SimulationBasedCalibration", "sbc"]

_EXPECTED = 5  # ranks in a bin, from which the χ² distribution is a fair approximation


@dataclass(frozen=True, eq=False)
class SimulationBasedCalibration:
    """Ranks of true values among posterior draws, for n simulations and Q quantities.

    Attributes:
        names: Names of the quantities.
        ranks: Ranks ``[n, Q]``, from 0 to ``num_samples``.
        num_samples: Posterior draws L of each simulation.
        num_bins: Bins of the test.
    """

    names: tuple[str, ...]
    ranks: Tensor
    num_samples: int
    num_bins: int

    @property
    def counts(self) -> Tensor:
        """Ranks by bin ``[Q, num_bins]``."""
        bins = self.ranks * self.num_bins // (self.num_samples + 1)
        return torch.stack([torch.bincount(column, minlength=self.num_bins) for column in bins.T])

    @property
    def p_values(self) -> Tensor:
        """p-values of the χ² test of uniform ranks ``[Q]``, each for itself."""
        from scipy.stats import chisquare

        return torch.from_numpy(chisquare(self.counts.numpy(), axis=1).pvalue)

    @property
    def p_value(self) -> float:
        """One for all quantities: the smallest times their number (Bonferroni)."""
        return min(1.0, float(self.p_values.min()) * len(self.names))

    def passed(self, level: float = 0.01) -> bool:
        """Whether no quantity rejects calibration; a correct inference fails with probability ``level``."""
        return self.p_value >= level

    def plot(
        self, name: str | None = None, *, kind: Literal["ecdf", "histogram"] = "ecdf", ax: Axes | None = None
    ) -> Axes:
        """Ranks of one quantity.

        Args:
            name: The quantity; the one with the smallest p-value if None.
            kind: ``"ecdf"``: :func:`pyrobnn.plots.rank_ecdf`; ``"histogram"``: :func:`pyrobnn.plots.rank_histogram`.
            ax: Axes to draw into.

        Raises:
            ValueError: If there is no such quantity or kind.
        """
        from pyrobnn.reporting import plots  # which loads matplotlib

        index = int(self.p_values.argmin()) if name is None else self._index(name)
        ranks, title = self.ranks[:, index], f"{self.names[index]}, p = {float(self.p_values[index]):.2g}"
        if kind == "ecdf":
            ax = plots.rank_ecdf(ranks, self.num_samples, ax=ax)
        elif kind == "histogram":
            ax = plots.rank_histogram(ranks, self.num_samples, num_bins=self.num_bins, ax=ax)
        else:
            raise ValueError(f"kind: expected 'ecdf' or 'histogram', got {kind!r}.")
        ax.set_title(title)
        return ax

    def _index(self, name: str) -> int:
        if name not in self.names:
            raise ValueError(f"name: there is no quantity {name!r}; choose from {', '.join(self.names)}.")
        return self.names.index(name)

    def __str__(self) -> str:
        found = f"{len(self.ranks)} simulations, {len(self.names)} quantities, p = {self.p_value:.2g}"
        if self.passed():
            return f"calibrated as far as these tell: {found}"
        telling = [index for index, name in enumerate(self.names) if name != LOG_LIKELIHOOD]
        worst = min(telling, key=lambda index: float(self.p_values[index]), default=None)
        if worst is None or float(self.p_values[worst]) * len(self.names) >= 0.01:
            return f"not calibrated: seen in the log likelihood's ranks alone, which do not say how; {found}"
        return f"not calibrated: the posterior of {self.names[worst]} is {self._shape(worst)}; {found}"

    def _shape(self, index: int) -> str:
        """What a quantity's ranks say: the larger of the z-scores of their mean (variance 1/12) and spread (1/180)."""
        centered = (self.ranks[:, index].double() + 0.5) / (self.num_samples + 1) - 0.5
        slope = float(centered.mean()) * 12.0**0.5
        spread = (float(centered.square().mean()) - 1.0 / 12.0) * 180.0**0.5
        return "biased" if abs(slope) > abs(spread) else "too narrow" if spread > 0 else "too wide"

    __repr__ = __str__


def sbc(
    model: Any,
    infer: Infer,
    num_simulations: int = 200,
    *,
    inputs: Any,
    observed: str = "y",
    quantities: Quantities | None = None,
    num_points: int = 4,
    num_samples: int = 99,
    num_bins: int = 10,
    seed: int | None = None,
    executor: Executor | None = None,
    directory: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
) -> SimulationBasedCalibration:
    """Checks an inference on data simulated from the model.

    For example ``sbc(model, lambda model, data: pb.sample(model, data, kernel=NUTS(), ...), inputs=x)``. Draws of a
    Markov chain are to be thinned until they are nearly independent (an effective sample size of about
    ``num_samples``): autocorrelation alone makes ranks pile up at both ends. A posterior that is wrong only far from
    the prior's typical data is not found; with 200 simulations, one wrong everywhere by half a standard deviation or a
    factor of 1.5 is.

    Args:
        model: The Pyro model, which draws its observation when called as ``model(*inputs)`` and scores it as
            ``model(*inputs, y)``. All its parameters without priors are taken as they are.
        infer: ``(model, data) -> posterior``, where ``model`` is a copy for each simulation, ``data`` is
            ``(*inputs, y)``, and the posterior a guide, draws ``{site: [K, ...]}``, or a finished
            :class:`pyro.infer.MCMC`. It may set seeds as it likes.
        num_simulations: Number n of simulations.
        inputs: The inputs, the same in all simulations, as many as ``num_data`` of the model; a tuple if the model
            takes several arguments before the targets.
        observed: Name of the observed site.
        quantities: ``{site: value} -> {name: tensor}``: what is ranked, element by element. None: the model's outputs
            at ``num_points`` of the inputs, the log likelihood, and each latent site that is one number.
        num_points: Number of these inputs, evenly spaced in their order.
        num_samples: Posterior draws L; 19 suffice, more make ranks finer.
        num_bins: Bins of the χ² test; it divides L + 1.
        seed: Seeds the simulations; in each, torch, NumPy, Python and Pyro have a seed of their own when ``infer`` is
            called.
        executor: Where simulations run, such as a ``concurrent.futures.ProcessPoolExecutor``; None: here, one after
            another, with the same ranks bit for bit, where workers compute with as many threads.
        directory: Where the ranks of each simulation are written to.
        resume: Whether to take the simulations that are in ``directory`` and run the others only.
        progress: Show a progress bar.

    Returns:
        The ranks with their test; ``passed()`` and ``plot()``.

    Raises:
        TypeError: If ``infer`` returns something else, or cannot be sent to another process.
        WorkerLostError: If a worker died: it names the simulations without a result.
        DirectoryInUseError: If another process or thread writes to ``directory``.
        ValueError: If an argument is out of range, the inputs are not all data of the model, the observed site is not
            there, or the posterior has fewer draws than ``num_samples`` or lacks a site.
    """
    _check(model, num_simulations, num_points, num_samples, num_bins)
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    _check_inputs(model, arguments)
    check_executor(executor)
    with random_state.local(seed):
        # The inference may seed the generators: what is random here uses seeds drawn beforehand.
        seeds = torch.randint(2**62, (num_simulations, 2), device="cpu").tolist()
        own_seeds = unit_seeds(num_simulations)
    settings = {"num_samples": num_samples, "observed": observed, "num_points": num_points}
    drawn = {"seeds": seeds, "own_seeds": own_seeds}
    units = Units("simulation", directory, resume, settings | drawn, drawn=drawn if seed is None else ())
    shared = (model, infer, arguments, observed, quantities, num_points, num_samples)
    with units.recorded() as taken, progress_bar(total=num_simulations, shown=progress, unit="simulation") as bar:
        each = zip(taken["seeds"], taken["own_seeds"], strict=True)
        simulations = {f"simulation-{i}": (*pair, own) for i, (pair, own) in enumerate(each)}
        found = units.run(simulated_ranks, shared, simulations, executor, bar.update)
    names = tuple(next(iter(found.values()))["names"])
    ranks = [one["ranks"] for one in found.values()]
    return SimulationBasedCalibration(names, torch.stack(ranks), num_samples, num_bins)


def _check(model: Any, num_simulations: Any, num_points: Any, num_samples: Any, num_bins: Any) -> None:
    if not callable(model):
        raise TypeError(f"model: expected a Pyro model, got {type(model).__name__}.")
    for name, count in (
        ("num_simulations", num_simulations),
        ("num_points", num_points),
        ("num_samples", num_samples),
        ("num_bins", num_bins),
    ):
        check_positive_int(name, count)
    if num_bins < 2 or (num_samples + 1) % num_bins:
        raise ValueError(
            f"num_bins: expected at least 2 that divide num_samples + 1 = {num_samples + 1}, got {num_bins}; bins of "
            "unequal size would look like ranks that are not uniform."
        )
    if num_simulations < _EXPECTED * num_bins:
        needed = _EXPECTED * num_bins
        raise ValueError(f"num_simulations: the test needs {needed} for {num_bins} bins, got {num_simulations}.")


def _check_inputs(model: Any, arguments: tuple[Any, ...]) -> None:
    num_data, rows = declared_num_data(model), next((len(a) for a in arguments if isinstance(a, Tensor)), None)
    if num_data is not None and rows is not None and rows != num_data:
        raise ValueError(
            f"inputs: the model was built with num_data={num_data}, but there are {rows} rows, which its posterior "
            "would weigh otherwise than the data were drawn. Build the model for as many."
        )
