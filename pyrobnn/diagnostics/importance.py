r"""How well the guide covers the posterior: the tail of its importance ratios.

.. math::  r_s = \frac{p(D \mid w_s)\, p(w_s)}{q(w_s)}, \qquad w_s \sim q.

If q is the posterior the ratios are equal; where q is too narrow, rare draws get huge ratios. The tail index
:math:`\hat k` of a Pareto distribution fitted to the largest ratios measures it: below
:math:`\min(1 - 1 / \log_{10} S,\; 0.7)` importance sampling from q would work, above 1 the ratios have no
mean.

In all weights of a network :math:`\hat k` is nearly always large, which is uninformative. For a guide whose
sites are independent it is therefore taken over a *subset* A of sites (by default the last layer), the others
held at one draw :math:`w_B`: q(w_A) is then compared with :math:`p(w_A \mid w_B, D)`.

Vehtari, Simpson, Gelman, Yao & Gabry, *Pareto smoothed importance sampling* (2024); Yao, Vehtari, Simpson &
Gelman, *Yes, but did it work? Evaluating variational inference* (2018).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyrobnn.core.arguments import check_int
from pyrobnn.core.explanations import explained
from pyrobnn.core.pyro_compat import full_name
from pyrobnn.core.random_state import preserved
from pyrobnn.diagnostics._arviz import pareto_k
from pyrobnn.diagnostics._batches import Piece, batches
from pyrobnn.diagnostics._draws import DrawsByChain, log_prob_sum, undisturbed
from pyrobnn.diagnostics._layout import matching
from pyrobnn.guides.base import Guide, check_guide
from pyrobnn.model.bayesianize import bayesian_modules
from pyrobnn.model.last_layer import layers_with_matrices, recorded_calls
from pyrobnn.model.substitution import SubstituteMessenger

__all__ = ["default_sites", "importance_k_hat", "k_hat_threshold", "last_layer_sites", "log_ratios"]


@explained
def importance_k_hat(
    model: Any,
    guide: Guide,
    *args: Any,
    sites: Sequence[str] | None = None,
    num_samples: int = 500,
    batch_size: int | None = None,
    **kwargs: Any,
) -> float:
    """Tail index k-hat of the guide's importance ratios: ``importance_k_hat(model, guide, x, y)``.

    Args:
        model: The Pyro model.
        guide: A guide of this library that has a density.
        *args: Arguments of the model with *all* of the training data, for the ratios are of the whole
            posterior.
        sites: Names or patterns of the sites A. None takes the last layer; for a guide with correlated sites
            all, the only choice there.
        num_samples: Number S of draws; fewer than 100 give an unreliable index.
        batch_size: Rows that a :class:`~pyrobnn.SupervisedModel` sees at a time, which declares that each input has one
            entry for each row and that rows do not interact; None for one call of the model, as in training.
        **kwargs: Keyword arguments of the model.

    Returns:
        k-hat; ``-inf`` if all ratios are equal.

    Raises:
        TypeError: If the guide is not of this library.
        ValueError: If it has no density, a pattern matches no site, sites of a correlated guide are chosen,
            there are fewer than 25 draws, or the rows are not the model's ``num_data``.
    """
    check_guide(model, guide)
    if not guide.facts.density:
        raise ValueError(f"guide: {type(guide).__name__} has no density, so it has no importance ratios.")
    if num_samples < 25:
        raise ValueError(f"num_samples: the tail of the ratios needs at least 25 draws, got {num_samples}.")
    pieces = batches(model, args, kwargs, batch_size)
    chosen = _choose_sites(model, guide, sites, pieces[0])
    with undisturbed(model):
        rows = pieces[-1].rows
        if isinstance(rows, slice) and rows.stop != model.num_data:
            raise ValueError(f"x, y: k-hat needs all {model.num_data} training data (num_data), got {rows.stop} rows.")
        return pareto_k(log_ratios(model, guide, pieces, chosen, num_samples).numpy())


@explained
def k_hat_threshold(num_samples: int) -> float:
    """The largest k-hat at which importance sampling with so many draws can be relied on."""
    check_int("num_samples", num_samples, 2)
    return min(1.0 - 1.0 / math.log10(num_samples), 0.7)


@explained
def last_layer_sites(model: Any, guide: Guide, *args: Any, **kwargs: Any) -> list[str]:
    """The sites of the layer with a weight matrix that runs last, as in :class:`~pyrobnn.guides.Laplace`.

    Args:
        model: The Pyro model.
        guide: A guide of this library; layers of which it has no site are passed over.
        *args: Arguments of one run of the model, which tells which layer is last. Without them it is the one with the
            last parameter of the last network by order of definition.
        **kwargs: Keyword arguments of that run.

    Returns:
        Names of sites; the last site alone if the model has no network.
    """
    converted = bayesian_modules(model) if isinstance(model, torch.nn.Module) else []
    names = list(guide.layout)
    layers = {}
    for network in converted:
        for name, module in layers_with_matrices(network.network).items():
            if own := _sites_of(names, full_name(network, name) if name else full_name(network, "")):
                layers[own[0]] = (own, module)
    if layers and (args or kwargs):
        watched = {first: module for first, (_, module) in layers.items()}
        device = next(converted[-1].parameters()).device
        with undisturbed(model), preserved(device):
            values = guide.sample(1).at(0)
            with SubstituteMessenger(values), recorded_calls(watched) as calls:
                model(*args, **kwargs)
        if calls.last is not None:
            return layers[calls.last][0]
    if not converted or not converted[-1].parameter_names:
        return names[-1:]
    last = full_name(converted[-1], list(converted[-1].parameter_names)[-1])
    return _sites_of(names, last.rpartition(".")[0])


def _sites_of(names: list[str], layer: str) -> list[str]:
    layer = layer.rstrip(".")
    return [name for name in names if name.startswith(f"{layer}.")] if layer else names


def default_sites(model: Any, guide: Guide, piece: Piece) -> list[str]:
    """The last layer in a run on a piece of the data, with the sites of the guide that it is correlated with."""
    chosen = set(last_layer_sites(model, guide, *piece.args, **piece.kwargs))
    for group in guide.facts.independent:
        if group & chosen:
            chosen |= group
    return [name for name in guide.layout if name in chosen]


def log_ratios(model: Any, guide: Guide, pieces: list[Piece], chosen: list[str], num_samples: int) -> Tensor:
    """Log importance ratios ``[S]`` up to a constant, in 64 bits."""
    held = {name: value[0] for name, value in guide.sample(1).items() if name not in chosen}

    def source(start: int, stop: int) -> dict[str, Tensor]:
        drawn = guide.sample(stop - start)
        return {n: held[n].expand(stop - start, *held[n].shape) if n in held else v for n, v in drawn.items()}

    ratios = torch.empty(num_samples, dtype=torch.float64)
    for _, draw, values in DrawsByChain([source], num_samples):
        ratios[draw] = log_joint(model, values, pieces) - _log_density(guide, values, chosen)
    return ratios


def log_joint(model: Any, values: dict[str, Tensor], pieces: list[Piece]) -> float:
    """``log p(data, values)`` in 64 bits, with the densities of the sites' own values."""
    total = 0.0
    for index, (rows, args, kwargs, weight) in enumerate(pieces):
        with SubstituteMessenger(values) as run:
            model(*args, **kwargs)
        # Batches add up to the data set, so their own scale N / B does not count; data seen at once keep
        # theirs.
        total += sum(log_prob_sum(message, scaled=rows is ..., weight=weight) for message in run.observed)
        if index == 0:
            total += sum(log_prob_sum(message, scaled=True) for message in run.latent)
    return total


def _log_density(guide: Guide, values: dict[str, Tensor], chosen: list[str]) -> float:
    return guide.log_prob({name: values[name][None] for name in chosen}).double().item()


def _choose_sites(model: Any, guide: Guide, sites: Sequence[str] | None, piece: Piece) -> list[str]:
    chosen = default_sites(model, guide, piece) if sites is None else matching(list(guide.layout), sites)
    if guide.facts.can_marginalize(chosen):
        return chosen
    if lacking := [name for name in chosen if name not in guide.facts.density]:
        raise ValueError(
            f"sites: {type(guide.part(lacking[0])).__name__} has no density of the site {lacking[0]!r}; choose among "
            f"{', '.join(sorted(guide.facts.density)[:8])}."
        )
    raise ValueError(
        f"sites: those of {type(guide.part(chosen[0])).__name__} are correlated, so a subset's density given the "
        "others is unknown; choose all sites that depend on each other, or leave sites at None."
    )
