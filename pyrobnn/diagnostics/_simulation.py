"""One simulation of simulation-based calibration: parameters and data from the model, an inference, ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from pyro.infer import MCMC
from torch import Tensor

from pyrobnn.core import random_state
from pyrobnn.diagnostics._draws import at_draw, log_prob_sum, undisturbed
from pyrobnn.guides.base import Guide
from pyrobnn.model.draws import Draws
from pyrobnn.model.network_copy import copied
from pyrobnn.model.substitution import SubstituteMessenger

__all__ = ["LOG_LIKELIHOOD", "Infer", "Quantities", "simulated_ranks"]

Infer: TypeAlias = Callable[[Any, tuple[Any, ...]], Guide | Mapping[str, Tensor] | MCMC]
Quantities: TypeAlias = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]

LOG_LIKELIHOOD = "log likelihood"


def simulated_ranks(
    model: Any,
    infer: Infer,
    arguments: tuple[Any, ...],
    observed: str,
    quantities: Quantities | None,
    num_points: int,
    num_samples: int,
    before: int,
    after: int,
    own_seed: int,
) -> dict[str, Any]:
    """One simulation: the quantities' names, and the ranks of their true values ``[Q]``."""
    device = next((p.device for p in getattr(model, "parameters", tuple)()), torch.device("cpu"))
    with random_state.seeded(before, device):
        truth, target = _simulate(model, arguments, observed)
    own = copied(model)
    data = (*arguments, target)
    with random_state.local(own_seed):
        posterior = infer(own, data)
    with random_state.seeded(after, device), undisturbed(own):
        draws = _draws(posterior, num_samples)
        if missing := sorted(set(truth) - set(draws)):
            raise ValueError(f"infer: the posterior it returned lacks the site {missing[0]!r} of the model.")
        rows = [_evaluate(own, draws.at(i), data, quantities, num_points) for i in range(num_samples)]
        true = _evaluate(own, truth, data, quantities, num_points)
        found = torch.stack([torch.stack([row[name] for name in true]) for row in rows])
        value = torch.stack(list(true.values()))
        ties = (found == value).sum(0)
        ranks = (found < value).sum(0) + (torch.rand(len(ties), device="cpu") * (ties + 1)).long()
    return {"names": list(true), "ranks": ranks}


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
        found[LOG_LIKELIHOOD] = torch.tensor(sum(log_prob_sum(message, scaled=False) for message in run.observed))
        found.update({name: value for name, value in values.items() if value.numel() == 1})
    elements: dict[str, Tensor] = {}
    for name, value in found.items():
        flat = value.detach().double().cpu().reshape(-1)
        elements.update({name if len(flat) == 1 else f"{name}[{i}]": element for i, element in enumerate(flat)})
    return elements
