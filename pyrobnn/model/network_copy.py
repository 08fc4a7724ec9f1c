"""Networks that can become Bayesian, and copies of networks."""

from __future__ import annotations

import contextlib
import copy
import types
import weakref
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pyrobnn.core.processes import refuse_wrapped
from pyrobnn.core.trees import leaves

__all__ = ["check_network", "check_sites", "copied"]


def copied(net: nn.Module, *, share_frozen: bool = False, hollow: Collection[str] = ()) -> nn.Module:
    """A deep copy; tensors that a run left in attributes (``self.hidden = h``) are copied without their graph.

    Args:
        net: The network.
        share_frozen: Frozen parameters of the copy use the memory of the original's. They are parameters of their own,
            so that a copy that is moved to another device leaves the original where it is; parameters of special
            classes (quantized weights) are the original's.
        hollow: Names of parameters that the copy has without values, on the device ``meta``.
    """
    memo: dict[int, Any] = {
        id(value): value.detach().clone()
        for module in net.modules()
        for value in leaves(vars(module))
        if isinstance(value, Tensor) and not value.is_leaf
    }
    for parameter in net.parameters() if share_frozen else ():
        if not parameter.requires_grad:
            is_plain = type(parameter) is nn.Parameter
            memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False) if is_plain else parameter
    for name in hollow:
        memo[id(net.get_parameter(name))] = nn.Parameter(
            torch.empty_like(net.get_parameter(name), device="meta"), requires_grad=False
        )
    return copy.deepcopy(net, memo)


def check_network(net: nn.Module) -> None:
    """Refuses networks in which weights cannot be replaced by draws.

    Raises:
        TypeError: If a module is compiled by ``torch.jit``, or a wrapper for several devices.
        ValueError: If the network has uninitialized parameters, parameters without values, a module that contains
            itself, or functions that hold on to its modules, which a copy's would not.
    """
    _check_cycles(net, "", set())
    refuse_wrapped(net=net)
    held = {id(value) for module in net.modules() for value in (module, *module.parameters(recurse=False))}
    for name, module in net.named_modules():
        where = f"the module {name!r}" if name else "it"
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(
                f"net: {where} is compiled by torch.jit, so its weights cannot be replaced by draws; pass the module "
                "it was made from."
            )
        for local, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            full = f"{name}.{local}" if name else local
            kind = "parameter" if isinstance(tensor, nn.Parameter) else "buffer"
            if is_lazy(tensor):
                raise ValueError(f"net: the {kind} {full!r} is lazy; run one batch through the network first.")
            if tensor.is_meta:
                raise ValueError(
                    f"net: the {kind} {full!r} is on the device 'meta' and has no values; move the network by "
                    "to_empty(device=...) and load its weights first."
                )
        for attribute in _references(module, held):
            raise ValueError(
                f"net: {where} has an attribute {attribute!r} that refers to the network's own modules or weights (a "
                "lambda or weak reference), which would still be those of the original in a copy; make it a method, or "
                "look the module up in forward."
            )


def _check_cycles(module: nn.Module, name: str, above: set[int]) -> None:
    if id(module) in above:
        raise ValueError(
            f"net: the module {name!r} contains itself (a child that refers to its parent by an attribute); keep the "
            "reference in a list or tuple, which does not register it."
        )
    for local, child in module.named_children():
        _check_cycles(child, f"{name}.{local}" if name else local, above | {id(module)})


def _references(module: nn.Module, held: Collection[int]) -> Iterator[str]:
    """Names of attributes with functions or weak references that refer to one of the objects ``held``.

    Not of those that a copy makes anew, such as the compiled ``forward`` of ``torch.compile``.
    """
    kept: Any = None
    with contextlib.suppress(RuntimeError):  # parametrized modules refuse to be pickled, not to be copied
        kept = module.__getstate__()
    for attribute, value in vars(module).items():
        if isinstance(kept, dict) and attribute not in kept:
            continue
        if attribute.startswith("_") and attribute.endswith(("_hooks", "_modules", "_parameters", "_buffers")):
            continue
        if any(id(found) in held for leaf in leaves(value) for found in _closed_over(leaf)):
            yield attribute


def _closed_over(leaf: Any) -> list[Any]:
    if isinstance(leaf, weakref.ref):  # recurrent layers have some of their weights, and renew them
        return [leaf()] if isinstance(leaf(), nn.Module) else []
    if not isinstance(leaf, types.FunctionType):
        return []
    cells = [cell.cell_contents for cell in leaf.__closure__ or () if _is_filled(cell)]
    values = (*cells, *(leaf.__defaults__ or ()), *(leaf.__kwdefaults__ or {}).values())
    return [*values, *(value.__self__ for value in values if isinstance(value, types.MethodType))]


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def check_sites(network: nn.Module, names: Collection[str]) -> None:
    """Refuses weights with a prior that the network itself rewrites; prepares embeddings.

    Args:
        network: The network, whose embeddings return dense gradients afterwards (the same numbers).
        names: Names of the parameters that are drawn, each tied one once.

    Raises:
        ValueError: If an embedding rewrites its weights in place (``max_norm``).
    """
    for name, module in network.named_modules():
        if not isinstance(module, nn.Embedding | nn.EmbeddingBag):
            continue
        module.sparse = False  # a draw's gradient is one dense vector
        weight = f"{name}.weight" if name else "weight"
        if module.max_norm is not None and weight in names:
            raise ValueError(
                f"net: the embedding {name!r} has max_norm={module.max_norm}, by which it rewrites its weights in each "
                f"run, the draws among them; set max_norm=None, or keep it deterministic by a first rule "
                f"({weight!r}, None)."
            )
