"""Running a network so that its inputs are the same afterwards, whatever it does to them in place.

Draws must all see the same inputs, and a caller's tensor is not the network's to change. The first run of a network in
each mode gets copies and shows whether it changes them; if it does, so do all later runs.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from pyrobnn.core.pyro_compat import is_in_transform, version
from pyrobnn.core.trees import leaves, map_leaves

__all__ = ["with_inputs_kept"]

_checked_weights: weakref.WeakKeyDictionary[nn.Module, set[bool]] = weakref.WeakKeyDictionary()
_changes_inputs: weakref.WeakKeyDictionary[nn.Module, dict[bool, bool]] = weakref.WeakKeyDictionary()


def with_inputs_kept(
    network: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    run: Callable[..., Any],
    weights: Mapping[str, Tensor] | None = None,
) -> Any:
    """``run(*args, **kwargs)``, which runs the network, without a change of the arguments.

    Args:
        network: The network.
        args: Its arguments.
        kwargs: Its keyword arguments.
        run: What runs it.
        weights: The draws it runs with; None: what it holds in parameters that are not trained.

    Raises:
        RuntimeError: If the network changes an input in place that it left alone in its first run.
        ValueError: If it changes the weights that were drawn for it.
    """
    if network.training not in (checked := _checked_weights.setdefault(network, set())):
        if weights is None:
            weights = {name: value for name, value in network.named_parameters() if not value.requires_grad}
        if all(_is_plain(value) for value in weights.values()):
            checked.add(network.training)
            return _with_weights_kept(network, args, kwargs, run, weights)
    known = _changes_inputs.setdefault(network, {})
    changes = known.get(network.training)
    if changes is False:
        before = _versions(args, kwargs)
        outputs = run(*args, **kwargs)
        if before != _versions(args, kwargs):
            raise RuntimeError(
                "net: it changed its input in place, which it did not do in its first run, so that the input cannot "
                "be restored; let its forward change a copy (x = x.clone())."
            )
        return outputs
    copied_args, copied_kwargs = map_leaves(_copy, args), map_leaves(_copy, dict(kwargs))
    if changes:
        return run(*copied_args, **copied_kwargs)
    before = _versions(copied_args, copied_kwargs)
    outputs = run(*copied_args, **copied_kwargs)
    changed = before != _versions(copied_args, copied_kwargs)
    known[network.training] = changed or not _are_equal((args, kwargs), (copied_args, copied_kwargs))
    return outputs


def _with_weights_kept(
    network: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    run: Callable[..., Any],
    weights: Mapping[str, Tensor],
) -> Any:
    """A first run, which shows whether the network changes its weights: a draw would no longer be one."""
    before = {name: (version(value), value.detach().clone()) for name, value in weights.items()}
    outputs = with_inputs_kept(network, args, kwargs, run)
    for name, (old, value) in before.items():
        if version(weights[name]) != old or not _are_equal(value, weights[name].detach()):
            _checked_weights.pop(network, None)
            for other, (_, kept) in before.items():  # they may be those of a guide
                weights[other].data.copy_(kept)
            raise ValueError(
                f"net: its forward changes the weight {name!r} in place (a clamp, a renorm, max_norm of an embedding), "
                "but draws of weights are not the network's to change; compute what it needs from the weight "
                "(w.clamp(...)), or leave the parameter deterministic by a rule."
            )
    return outputs


def _is_plain(value: Tensor) -> bool:
    return type(value) in (Tensor, nn.Parameter) and not is_in_transform(value)


def _versions(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[int]:
    if len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
        return [version(args[0])]
    return [version(tensor) for leaf in leaves((args, kwargs)) for tensor in _tensors(leaf)]


def _tensors(leaf: Any) -> list[Tensor]:
    if isinstance(leaf, PackedSequence):
        return [leaf.data]
    return [leaf] if isinstance(leaf, Tensor) else []


def _copy(leaf: Any) -> Any:
    if isinstance(leaf, PackedSequence):
        return PackedSequence(leaf.data.clone(), *leaf[1:])
    copy = getattr(leaf, "clone", None)  # graphs have it, too
    return copy() if callable(copy) else leaf


def _are_equal(before: Any, after: Any) -> bool:
    """Whether values are the same: what is changed through ``.data`` has no new version."""
    for old, new in zip(leaves(before), leaves(after), strict=True):
        for a, b in zip(_tensors(old), _tensors(new), strict=True):
            if is_in_transform(a) or a.layout != torch.strided or a.is_quantized:
                continue
            if not bool(((a == b) | (a != a)).all()):
                return False
    return True
