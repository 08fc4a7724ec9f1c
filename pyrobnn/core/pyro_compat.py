"""Names of Pyro, and of torch beside it, that are not public; ``tests/core/test_pyro_compat.py`` checks them.

Those for recording graphs are in :mod:`pyrobnn.core.torch_compat`.
"""

from __future__ import annotations

import copy
import functools
import weakref
from abc import ABCMeta
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro.poutine.runtime as runtime
import torch
import torch.nn.modules.module as all_modules
import torch.utils.checkpoint as checkpoint
from pyro.distributions import constraints
from pyro.nn import PyroModule
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import Distribution

__all__ = [
    "AbstractModuleMeta",
    "announce_parameter",
    "before_loading",
    "full_name",
    "has_forward_hooks",
    "intercept_checkpoints",
    "is_handler_active",
    "is_in_transform",
    "sole_handler",
    "strictly_vectorized",
    "transforms_left",
    "unvalidated",
    "validation_kept",
    "version",
]


class AbstractModuleMeta(type(PyroModule), ABCMeta):  # type: ignore[misc]
    """Metaclass of PyroModules with abstract members: Pyro's own metaclass cannot be combined with ``abc.ABC``."""


class _ParameterReference:
    """A weak reference that pickles as an empty one, so that a model can be saved after ``announce_parameter``."""

    def __init__(self, parameter: nn.Parameter | None = None) -> None:
        self._reference = None if parameter is None else weakref.ref(parameter)

    def __call__(self) -> nn.Parameter | None:
        return None if self._reference is None else self._reference()

    def __reduce__(self) -> tuple[type[_ParameterReference], tuple[()]]:
        return _ParameterReference, ()


def before_loading(module: nn.Module, hook: Callable[..., None]) -> None:
    """Has ``hook(module, state_dict, prefix, ...)`` called before a state dict is loaded, also in a larger module.

    The public name of this came with torch 2.5.
    """
    module._register_load_state_dict_pre_hook(hook, with_module=True)


def full_name(module: PyroModule, name: str) -> str:
    """The name Pyro gives the attribute ``name`` of ``module`` inside its outermost PyroModule."""
    prefix = module._pyro_name
    return f"{prefix}.{name}" if prefix else name


def is_handler_active() -> bool:
    """Whether any effect handler is active, which would receive messages."""
    return runtime.am_i_wrapped()


def sole_handler() -> Messenger | None:
    """The active effect handler where there is exactly one."""
    stack = runtime._PYRO_STACK
    return stack[0] if len(stack) == 1 else None


def announce_parameter(name: str, parameter: nn.Parameter) -> None:
    """Sends active handlers a param message for a parameter of a module (``SVI`` collects parameters this way).

    The message is the one that Pyro itself sends under ``module_local_params``: the global parameter store is
    neither read nor written, so two networks in one process share nothing.
    """
    parameter.unconstrained = _ParameterReference(parameter)  # type: ignore[attr-defined]  # what SVI.step reads from a value
    runtime.effectful(type="param")(lambda *_, **__: parameter)(name, parameter, constraint=constraints.real, name=name)


def unvalidated(distribution: Distribution) -> Distribution:
    """The distribution without validation, whatever was in force when it was built; the original is left alone."""
    bare = copy.copy(distribution)
    for name, part in vars(distribution).items():
        if isinstance(part, Distribution):
            setattr(bare, name, unvalidated(part))
    bare._validate_args = False  # last, as Pyro's Independent passes it on to its base
    return bare


@contextmanager
def validation_kept() -> Iterator[None]:
    """After this, torch's distributions are validated, or not, as they were before."""
    enabled = Distribution._validate_args
    try:
        yield
    finally:
        Distribution.set_default_validate_args(enabled)


def intercept_checkpoints(again: Callable[[Callable[..., Any]], Callable[..., Any] | None]) -> None:
    """Lets ``torch.utils.checkpoint`` call another function in the backward pass than in the forward pass.

    Args:
        again: From the function that is checkpointed to the one that is called in the backward pass: the same one
            where checkpoints are none of our concern, or None to run without a checkpoint. A reentrant checkpoint whose
            function is changed becomes a non-reentrant one.
    """
    inner = "_checkpoint_without_reentrant_generator"
    inner = f"{inner}_impl" if hasattr(checkpoint, f"{inner}_impl") else inner
    generator, reentrant = getattr(checkpoint, inner), checkpoint.CheckpointFunction.apply

    @functools.wraps(generator)
    def checkpointed(function: Any, *args: Any, **kwargs: Any) -> Any:
        changed = again(function)
        return iter((None,)) if changed is None else generator(changed, *args, **kwargs)

    @functools.wraps(reentrant)
    def apply(function: Any, preserve: Any, *args: Any) -> Any:
        if again(function) is function:
            return reentrant(function, preserve, *args)
        return checkpoint.checkpoint(function, *args, use_reentrant=False, preserve_rng_state=preserve)

    setattr(checkpoint, inner, checkpointed)
    checkpoint.CheckpointFunction.apply = apply


def is_in_transform(tensor: Tensor) -> bool:
    """Whether the tensor belongs to a function transform (``vmap``, ``grad`` …) that is under way."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(tensor))


def version(tensor: Tensor) -> int:
    """How often the tensor has been changed in place; -1 for inference tensors, which torch does not let be changed."""
    return -1 if tensor.is_inference() else tensor._version


@contextmanager
def strictly_vectorized(is_strict: bool = True) -> Iterator[None]:
    """Has :func:`torch.func.vmap` raise where it would loop, with a warning, over an operation without a rule."""
    functions: Any = torch._C._functorch
    before = functions._is_vmap_fallback_enabled()
    functions._set_vmap_fallback_enabled(before and not is_strict)
    try:
        yield
    finally:
        functions._set_vmap_fallback_enabled(before)


@contextmanager
def transforms_left() -> Iterator[None]:
    """Leaves the function transforms that an error in the block left open: torch's own tracing does not."""
    functions: Any = torch._C._functorch
    depth = functions.get_dynamic_layer_stack_depth()
    try:
        yield
    finally:
        functions.pop_dynamic_layer_stack_and_undo_to_depth(depth)


def has_forward_hooks(module: nn.Module) -> bool:
    """Whether functions are called before or after the forward of the module, or of one in it."""
    if all_modules._global_forward_hooks or all_modules._global_forward_pre_hooks:
        return True
    return any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
