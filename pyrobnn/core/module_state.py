"""Filling modules, and tensors by name, from plain dicts of tensors; training modes that come back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

__all__ = ["fill", "fill_tensors", "modes_restored"]


@contextmanager
def modes_restored(module: nn.Module) -> Iterator[None]:
    """After the block the module and all in it are in training or evaluation mode as they were before it."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def fill(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Fills parameters and buffers; those that are not named stay as they are.

    A state dict also carries the versions of the modules' formats, which some modules ask for as they are filled (batch
    norm, torchvision's MNASNet); a plain dict has none. So the tensors are put into the module's own state dict.

    Raises:
        ValueError: If the module has no tensor of a name, or one of another shape.
    """
    state = module.state_dict()
    if unexpected := [name for name in tensors if name not in state]:
        raise ValueError(f"there is no tensor {unexpected[0]!r} in the {type(module).__name__}")
    state.update(tensors)
    try:
        module.load_state_dict(state)
    except RuntimeError as error:  # torch's words for shapes that differ
        raise ValueError(str(error)) from error


def fill_tensors(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copies values into tensors of the same names, shapes and dtypes; nothing is broadcast.

    Raises:
        ValueError: If they differ.
    """
    shapes = [{name: (tuple(t.shape), t.dtype) for name, t in given.items()} for given in (own, tensors)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"expected tensors {shapes[0]}, got {shapes[1]}")
    for name, tensor in tensors.items():
        own[name].copy_(tensor)
