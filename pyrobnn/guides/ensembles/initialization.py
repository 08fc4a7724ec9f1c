"""Starting points of the members of an ensemble."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from pyrobnn.core.arguments import check_non_negative, check_positive
from pyrobnn.core.pyro_compat import full_name
from pyrobnn.guides.base import Guide
from pyrobnn.guides.ensembles.fresh_weights import draw_fresh_weights
from pyrobnn.model.bayesianize import BayesianModule, bayesian_modules
from pyrobnn.model.draws import Draws
from pyrobnn.model.initialization import (
    Init,
    check_start_sites,
    initial_values,
    known_sites,
    network_of,
    num_draws,
    unwrapped,
)
from pyrobnn.model.layout import Layout
from pyrobnn.model.network_copy import copied
from pyrobnn.steps.member_buffers import network_buffers

__all__ = ["MemberInit", "member_initialization"]

MemberInit: TypeAlias = Init | Sequence[nn.Module | Mapping[str, Tensor]]
_Start: TypeAlias = tuple[Init, Mapping[str, Tensor]]


def member_initialization(
    layout: Layout, model: Any, init: MemberInit, num_members: int, spread: float
) -> tuple[Tensor, list[Mapping[str, Tensor]]]:
    """Starting points of all members.

    Args:
        layout: The sites, and their order in the flat vector.
        model: The model.
        init: None (the first member is the network as it was converted, the others are copies of it whose weights were
            drawn anew, by ``reset_parameters()`` of their modules or as torch's constructors do), ``"prior"`` or
            ``"he"`` (a draw for each member), a function ``(site name, prior) -> value`` (called for each member), a
            guide (a draw for each member, of an ensemble M of its members), M draws or more (the first M), a sequence
            of M networks, network state dicts or dicts of site values, or one of those or of guides that are points
            (all members start there, with noise of ``spread`` times the root mean square of each site).
        num_members: Number M of members.
        spread: Relative size of that noise.

    Returns:
        Flat unconstrained values ``[M, d]``, and each member's buffers by name in the model.

    Raises:
        TypeError: If ``init`` is of another kind.
        ValueError: If it does not fit the model, or all members would start at the same point.
    """
    check_non_negative("spread", spread)
    starts, vectorized = _listed(layout, model, init, num_members)
    rows, buffers = [], []
    for values, own in starts:
        if isinstance(values, Mapping):  # sites that others cover are left to them
            values = {name: value for name, value in values.items() if name in layout}
        rows.append(layout.join(initial_values(model, layout, values)))
        buffers.append(own)
    flat = torch.stack(rows)
    if vectorized and num_members > 1:
        check_positive("spread", spread, f"number to make {num_members} members differ")
        scale = layout.join({n: v.square().mean().sqrt().expand_as(v) for n, v in layout.split(flat[0]).items()})
        flat = flat + spread * scale * torch.randn_like(flat)
    if num_members > 1 and bool((flat == flat[0]).all()):
        raise ValueError(
            f"init: all {num_members} members would start at the same point and never part; pass init='prior', a "
            "function (site name, prior) -> value, or a list with a start for each member."
        )
    return flat, buffers


def _sites_and_buffers(model: Any, start: nn.Module | Mapping[str, Tensor], sites: Collection[str]) -> _Start:
    """A network, its state dict, or site values, as site values and buffers by their names in the model.

    Raises:
        TypeError: If it is something else.
        ValueError: If a network or state dict does not fit the model's.
    """
    if not isinstance(start, nn.Module | Mapping):
        raise TypeError(f"init: expected networks, state dicts or site values, got {type(start).__name__}.")
    converted = bayesian_modules(model) if isinstance(model, nn.Module) else []
    own = {name for module in converted for name in module.network.state_dict()}
    if isinstance(start, Mapping):
        known = known_sites(model, sites)
        if set(start) <= known:
            return dict(start), Draws.of(start).buffers
        if not set(unwrapped(start, own)) & own:
            unknown = next(name for name in start if name not in known)
            raise ValueError(f"init: there is no latent site {unknown!r}; the model has {', '.join(list(sites)[:8])}.")
    if len(converted) != 1:
        raise ValueError(f"init: the model holds {len(converted)} converted networks; give dicts of site values.")
    network = network_of(converted[0], start, own_buffers=True)
    values, buffers = converted[0].values_of(network), dict(network.named_buffers())
    names = network_buffers(model)
    prefix = next(name for name, module in model.named_modules() if module is converted[0].network)
    return values, {n: buffers[local] for n in names if (local := n.removeprefix(f"{prefix}.")) in buffers}


def _listed(layout: Layout, model: Any, init: MemberInit, num_members: int) -> tuple[Sequence[_Start], bool]:
    """One start for each member, and whether they are all the same."""
    if isinstance(init, Guide):
        return _drawn(layout, model, init, num_members)
    if isinstance(init, Mapping) and (count := num_draws(init, layout)) is not None and count > 1:
        if count < num_members:
            raise ValueError(f"init: {count} draws for num_members={num_members}; give one for each.")
        init = [Draws.of(init).at(index) for index in range(num_members)]
    if isinstance(init, Sequence) and not isinstance(init, str):
        if len(init) != num_members:
            raise ValueError(f"init: {len(init)} starting points for num_members={num_members}; give one for each.")
        return [_sites_and_buffers(model, start, layout) for start in init], False
    if init is None:
        first: _Start = (None, {})
        return [first, *(_reinitialized(layout, model) for _ in range(num_members - 1))], False
    if init in ("prior", "he") or (callable(init) and not isinstance(init, nn.Module)):
        return [(init, {})] * num_members, False
    if isinstance(init, nn.Module | Mapping):
        return [_sites_and_buffers(model, init, layout)] * num_members, True
    return [(init, {})] * num_members, True


def _drawn(layout: Layout, model: Any, guide: Guide, num_members: int) -> tuple[Sequence[_Start], bool]:
    """Draws of a guide, or its only point for all members."""
    points = guide.facts.num_points if guide.facts.is_ready else 1
    if points == 1:
        point = guide.starting_point()
        check_start_sites(model, layout, point, guide)
        return [(point, point.buffers)] * num_members, True
    if points is not None and points < num_members:
        raise ValueError(
            f"init: the {type(guide).__name__} guide has {points} points for num_members={num_members}, so that some "
            "would start equal and never part; make as many members, or pass another start."
        )
    draws = guide.sample(num_members)
    check_start_sites(model, layout, draws, guide)
    each = [draws.at(index) for index in range(num_members)]
    return [(draw, draw.buffers) for draw in each], False


def _reinitialized(layout: Layout, model: Any) -> _Start:
    """The model's networks, reinitialized; sites that are not weights start as in any guide."""
    values: dict[str, Tensor] = {}
    buffers: dict[str, Tensor] = {}
    for prefix, module in model.named_modules() if isinstance(model, nn.Module) else ():
        if isinstance(module, BayesianModule):
            network = copied(module.network, hollow=module.shared)  # layers that are drawn anew must not write there
            used = {
                alias
                for name, aliases in module.parameter_names.items()
                if any(s == (full := full_name(module, name)) or s.startswith(f"{full}.") for s in layout)
                for alias in aliases
            }
            draw_fresh_weights(network, used)
            values |= module.values_of(network)
            path = f"{prefix}.net." if prefix else "net."
            buffers |= {path + name: buffer for name, buffer in network.named_buffers()}
    return values, buffers
