"""Where chains start, and whether the potential is finite there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.core import random_state
from pyrobnn.core.handlers import validation_enabled
from pyrobnn.core.pyro_compat import unvalidated
from pyrobnn.guides.base import Guide
from pyrobnn.guides.ensembles.initialization import MemberInit, member_initialization
from pyrobnn.model.bayesianize import frozen_buffers
from pyrobnn.model.draws import Draws
from pyrobnn.model.initialization import check_start_sites, initial_values, num_draws, refuse_other_buffers
from pyrobnn.model.layout import Layout
from pyrobnn.model.substitution import SubstituteMessenger
from pyrobnn.objectives.parts import NonFiniteLossError

__all__ = ["ChainInit", "chain_seed", "check_start", "initial_points"]

ChainInit = MemberInit | Guide


@contextlib.contextmanager
def chain_seed(seed: int | None) -> Iterator[None]:
    """Seeds torch, NumPy, Python and Pyro for the block, if there is a seed; restores their states after it."""
    with random_state.local(seed):
        if seed is not None:  # so that reinitialized networks differ from one that was built under the same seed
            torch.manual_seed(random_state.fresh_seed())
        yield


def initial_points(layout: Layout, model: Any, init: ChainInit, num_chains: int) -> Tensor:
    """Unconstrained starting points ``[C, P]``.

    Args:
        layout: Where each site lies in the flat vector.
        model: The model.
        init: A guide (a draw of it for each chain; its point if it has no draws yet), draws (one for each chain), None
            (the first chain at the weights the network came with, the others at fresh ones, as for
            :class:`~pyrobnn.guides.DeltaMixture`), ``"prior"`` (a draw for each), a list of C networks, state dicts or
            dicts of site values, one of those (all chains start there), or a function ``(site name, prior) -> value``,
            called for each chain.
        num_chains: Number C of chains.

    Raises:
        TypeError: If ``init`` is of another kind.
        ValueError: If it does not fit the model.
    """
    if isinstance(init, Guide) and init.facts.is_ready:
        draws = init.sample(num_chains)
        check_start_sites(model, layout, draws, init)
        return _rows(layout, model, [draws.at(chain) for chain in range(num_chains)])
    if isinstance(init, Mapping) and (count := num_draws(init, layout)) is not None and count > 1:
        if count < num_chains:
            raise ValueError(f"init: {count} draws for num_chains={num_chains}; give one for each.")
        return _rows(layout, model, [Draws.of(init).at(chain) for chain in range(num_chains)])
    if isinstance(init, Guide):
        return _rows(layout, model, [init.starting_point()]).repeat(num_chains, 1)
    if isinstance(init, nn.Module | Mapping) or init == "prior_mean":
        row, buffers = member_initialization(layout, model, [init] if not isinstance(init, str) else init, 1, 0.0)
        _check_buffers(model, buffers)
        return row.repeat(num_chains, 1)
    rows, buffers = member_initialization(layout, model, init, num_chains, 0.0)
    if isinstance(init, Sequence):
        _check_buffers(model, buffers)
    return rows


def _rows(layout: Layout, model: Any, draws: Sequence[Draws]) -> Tensor:
    _check_buffers(model, [draw.buffers for draw in draws])
    return torch.stack([layout.join(initial_values(model, layout, dict(draw))) for draw in draws])


def _check_buffers(model: Any, buffers: Iterable[Mapping[str, Tensor]]) -> None:
    """Refuses networks whose running statistics differ from the model's, which all chains use."""
    for given in buffers:
        refuse_other_buffers(model, given)


def check_start(model: Callable[..., Any], layout: Layout, flat: Tensor, args: tuple[Any, ...]) -> None:
    """Refuses starting points with a non-finite density.

    Args:
        model: The model.
        layout: Where each site lies in the flat vector.
        flat: Starting points ``[C, P]``.
        args: Arguments of the model: the first batch.

    Raises:
        NonFiniteLossError: If the log density is NaN or infinite in a chain; the message names the site.
    """
    module = model if isinstance(model, nn.Module) else nn.Module()
    for chain, row in enumerate(flat):
        values = layout.constrain(layout.split(row))
        with (
            torch.no_grad(),
            random_state.preserved(flat.device),
            frozen_buffers(module),
            validation_enabled(False),
        ):
            with SubstituteMessenger(values) as run:
                model(*args)
            non_finite = [f"the start of the site {n!r} is not finite" for n, v in values.items() if not _is_finite(v)]
            for message in (*run.latent, *run.observed):
                score = unvalidated(message["fn"]).log_prob(message["value"]).sum()
                if not _is_finite(score):
                    non_finite.append(f"the log density of the site {message['name']!r} is {float(score)}")
        if non_finite:
            raise NonFiniteLossError(
                f"the potential is not finite where chain {chain} starts: {'; '.join(non_finite)}. Check the data, "
                "or start elsewhere with init=."
            )


def _is_finite(value: Tensor) -> bool:
    return bool(value.isfinite().all())
