"""Frozen parameters that a model shares with the network it was made from, such as the base below adapters.

They exist once in memory, whatever the posterior: snapshots of training and checkpoints leave them out, and a
checkpoint keeps a digest of their values instead, so that it is not filled into a model with another base.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pyrobnn.model.bayesianize import bayesian_modules

__all__ = ["own_state", "shared_digest", "shared_parameters", "trained_state"]


def shared_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The shared parameters of the converted networks in a module, by the name they have in it.

    Raises:
        ValueError: If one of them is not frozen any more: training would change the original network.
    """
    shared = {id(parameter) for parameter in _shared(module)}
    found = {}
    for name, parameter in module.named_parameters() if shared else ():
        if id(parameter) in shared:
            if parameter.requires_grad:
                raise ValueError(
                    f"model: the parameter {name!r} has the memory of the network that the model was made from, so it "
                    "must stay frozen; to train it, convert the network with share_frozen=False."
                )
            found[name] = parameter
    return found


def own_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict without the shared parameters."""
    shared = {id(parameter) for parameter in shared_parameters(module).values()}
    if not shared:
        return module.state_dict()
    kept = module.state_dict(keep_vars=True)
    return {name: value.detach() for name, value in kept.items() if id(value) not in shared}


def trained_state(module: nn.Module) -> dict[str, Tensor]:
    """What training may change: the state dict without shared parameters and without the placeholders of sites."""
    networks = bayesian_modules(module)
    placeholders = {id(network.network.get_parameter(name)) for network in networks for name in network.parameter_names}
    fixed = {id(parameter) for parameter in shared_parameters(module).values()} | placeholders
    kept = module.state_dict(keep_vars=True)
    return {name: value.detach() for name, value in kept.items() if id(value) not in fixed}


def shared_digest(module: nn.Module) -> str | None:
    """SHA-256 of names, dtypes and values of the shared parameters; None if there are none."""
    parameters = shared_parameters(module)
    if not parameters:
        return None
    digest = hashlib.sha256()
    for name, parameter in sorted(parameters.items()):
        digest.update(f"{name} {parameter.dtype} {list(parameter.shape)}".encode())
        digest.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _shared(module: nn.Module) -> Iterator[nn.Parameter]:
    for network in bayesian_modules(module):
        for name in network.shared:
            yield network.network.get_parameter(name)
