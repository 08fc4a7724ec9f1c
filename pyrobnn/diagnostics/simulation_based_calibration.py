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

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
from pyro.infer import MCMC
from torch import Tensor

from pyrobnn.core import random_state
from pyrobnn.core.arguments import check_positive_int
from pyrobnn.core.progress import progress_bar
from pyrobnn.diagnostics._draws import at_draw, log_prob_sum, undisturbed
from pyrobnn.guides.base import Guide
from pyrobnn.model.declarations import declared_num_data
from pyrobnn.model.draws import Draws
from pyrobnn.model.network_copy import copied
from pyrobnn.model.substitution import SubstituteMessenger

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["SimulationBasedCalibration", "sbc"]

Infer: TypeAlias = Callable[[Any, tuple[Any, ...]], Guide | Mapping[str, Tensor] | MCMC]
Quantities: TypeAlias = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]

_LOG_LIKELIHOOD = "log likelihood"
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
        telling = [index for index, name in enumerate(self.names) if name != _LOG_LIKELIHOOD]
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
        seed: Seeds the simulations, and torch, numpy, Python and Pyro at the start.
        progress: Show a progress bar.

    Returns:
        The ranks with their test; ``passed()`` and ``plot()``.

    Raises:
        TypeError: If ``infer`` returns something else.
        ValueError: If an argument is out of range, the inputs are not all data of the model, the observed site is not
            there, or the posterior has fewer draws than ``num_samples`` or lacks a site.
    """
    _check(model, num_simulations, num_points, num_samples, num_bins)
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    _check_inputs(model, arguments)
    device = next((p.device for p in getattr(model, "parameters", tuple)()), torch.device("cpu"))
    with random_state.local(seed):
        # The inference may seed the generators: what is random here uses seeds drawn beforehand.
        seeds = torch.randint(2**62, (num_simulations, 2), device="cpu").tolist()
        ranks: list[Tensor] = []
        names: tuple[str, ...] = ()
        for before, after in progress_bar(seeds, shown=progress, unit="simulation"):
            with random_state.seeded(before, device):
                truth, target = _simulate(model, arguments, observed)
            own = copied(model)
            data = (*arguments, target)
            posterior = infer(own, data)
            with random_state.seeded(after, device), undisturbed(own):
                draws = _draws(posterior, num_samples)
                if missing := sorted(set(truth) - set(draws)):
                    raise ValueError(f"infer: the posterior it returned lacks the site {missing[0]!r} of the model.")
                rows = [_evaluate(own, draws.at(i), data, quantities, num_points) for i in range(num_samples)]
                true = _evaluate(own, truth, data, quantities, num_points)
                names = tuple(true)
                found = torch.stack([torch.stack([row[name] for name in names]) for row in rows])
                value = torch.stack([true[name] for name in names])
                ties = (found == value).sum(0)
                ranks.append((found < value).sum(0) + (torch.rand(len(ties), device="cpu") * (ties + 1)).long())
    return SimulationBasedCalibration(names, torch.stack(ranks), num_samples, num_bins)


def _simulate(model: Any, arguments: tuple[Any, ...], observed: str) -> tuple[dict[str, Tensor], Tensor]:
    """Parameters from the prior, and data given them."""
    with undisturbed(model), SubstituteMessenger({}) as run:
        model(*arguments)
    values = {message["name"]: message["value"] for message in run.latent}
    if observed not in values:
        raise ValueError(
            f"observed: the model drew no site {observed!r} when it was called without targets; it drew "
            f"{', '.join(values) or 'none'}."
        )
    return values, values.pop(observed)


def _draws(posterior: Any, num_samples: int) -> Draws:
    """L draws, those of a longer run evenly thinned."""
    if isinstance(posterior, Guide):
        points = posterior.facts.num_points or 1
        available = points if points > 1 else num_samples
        draws = Draws.of(posterior.sample(num_samples))
    elif isinstance(posterior, MCMC | Mapping):
        samples = posterior if isinstance(posterior, Mapping) else posterior.get_samples()
        available = min((len(value) for value in samples.values()), default=0)
        draws = Draws.of(samples).at(torch.linspace(0, max(available - 1, 0), num_samples).round().long())
    else:
        raise TypeError(
            f"infer: expected it to return a guide, draws {{site: [K, ...]}} or a finished MCMC, got "
            f"{type(posterior).__name__}."
        )
    if available < num_samples:
        raise ValueError(
            f"num_samples: the posterior has {available} draws, fewer than the {num_samples} to rank among; "
            "draw more, or lower num_samples (and num_bins, which divides num_samples + 1)."
        )
    return draws


def _evaluate(
    model: Any, values: dict[str, Tensor], data: tuple[Any, ...], quantities: Quantities | None, num_points: int
) -> dict[str, Tensor]:
    """The quantities at one draw, element by element."""
    found: dict[str, Tensor] = {}
    if quantities is not None:
        found.update({name: torch.as_tensor(value) for name, value in quantities(values).items()})
    else:
        with at_draw(model, values) as run:
            outputs = model(*data)
        if isinstance(outputs, Tensor) and outputs.dim():
            rows = np.unique(np.linspace(0, len(outputs) - 1, num_points).round().astype(int))
            found.update({f"f(x_{row})": outputs[row] for row in rows})
        found[_LOG_LIKELIHOOD] = torch.tensor(sum(log_prob_sum(message, scaled=False) for message in run.observed))
        found.update({name: value for name, value in values.items() if value.numel() == 1})
    elements: dict[str, Tensor] = {}
    for name, value in found.items():
        flat = value.detach().double().cpu().reshape(-1)
        elements.update({name if len(flat) == 1 else f"{name}[{i}]": element for i, element in enumerate(flat)})
    return elements


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
