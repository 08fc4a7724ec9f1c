"""All uses of names of Pyro that are not public; ``tests/test_pyro_internals.py`` checks them."""

from __future__ import annotations

import copy
import weakref
from abc import ABCMeta

import pyro.poutine.runtime as runtime
from pyro.distributions import constraints
from pyro.nn import PyroModule
from pyro.poutine.messenger import Messenger
from torch import nn
from torch.distributions import Distribution

__all__ = [
    "AbstractModuleMeta",
    "announce_parameter",
    "full_name",
    "is_handler_active",
    "sole_handler",
    "unvalidated",
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
