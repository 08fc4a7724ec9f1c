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
from pyrobnn.model.initialization import initial_values
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
        init: A guide (a draw of it for each chain), None (the first chain at the weights the network came with, the
            others at fresh ones, as for :class:`~pyrobnn.guides.DeltaMixture`), ``"prior"`` (a draw for each), a list
            of C networks, state dicts or dicts of site values, one of those (all chains start there), or a function
            ``(site name, prior) -> value``, called for each chain.
        num_chains: Number C of chains.

    Raises:
        TypeError: If ``init`` is of another kind.
        ValueError: If it does not fit the model.
    """
    if isinstance(init, Guide):
        draws = init.sample(num_chains)
        if missing := [name for name in layout if name not in draws]:
            raise ValueError(f"init: the guide has no site {missing[0]!r} of the model.")
        each = [draws.at(chain) for chain in range(num_chains)]
        return torch.stack([layout.join(initial_values(model, layout, dict(draw))) for draw in each])
    if isinstance(init, nn.Module | Mapping) or init == "prior_mean":
        row, buffers = member_initialization(layout, model, [init] if not isinstance(init, str) else init, 1, 0.0)
        _check_buffers(model, buffers)
        return row.repeat(num_chains, 1)
    rows, buffers = member_initialization(layout, model, init, num_chains, 0.0)
    if isinstance(init, Sequence):
        _check_buffers(model, buffers)
    return rows


def _check_buffers(model: Any, buffers: Iterable[Mapping[str, Tensor]]) -> None:
    """Refuses networks whose running statistics differ from the model's, which all chains use."""
    own = dict(model.named_buffers()) if isinstance(model, nn.Module) else {}
    for given in buffers:
        for name, value in given.items():
            if not name.endswith("num_batches_tracked") and not torch.equal(value, own[name]):
                raise ValueError(
                    f"init: a network's buffer {name!r} differs from the model's, which all chains use; build the "
                    "model with that network."
                )


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
