"""Errors that name the argument where a call fails because one is of the wrong kind.

Checks of arguments stand where the values are used, and say more than a type can. What none of them foresees would end
in an error of torch or Python deep inside. :func:`explained` compares the arguments of a call that failed that way with
its annotations and says which one does not fit. A call that succeeds pays nothing.
"""

from __future__ import annotations

import functools
import inspect
import math
import re
import reprlib
import traceback
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from numbers import Real
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import torch
from torch import nn

__all__ = ["explained", "fits"]

_Target = TypeVar("_Target", bound=Callable[..., Any])
_PACKAGE = Path(__file__).parent.parent
_INSTANCES = {"model": "a Pyro model", "guide": "a guide", "posterior": "a guide, draws or several of them"}
_KINDS = re.compile("must have the same dtype|expected scalar type|should be the same")  # torch's words for dtypes
_NAMED = re.compile(r"^[\w.]+( of)?( '[^']*')?(, \w+)*: ")


def explained(target: _Target) -> _Target:
    """Makes a public function, or the constructor of a class, name an argument of the wrong kind.

    Errors in the library's own words, and those that no argument's kind explains, are left as they are.

    Raises:
        TypeError: If the call failed otherwise and an argument does not fit its annotation, or inputs have another
            dtype than the model's weights; the cause is kept.
    """
    if isinstance(target, type):
        constructor: Any = target
        constructor.__init__ = _wrapped(constructor.__init__)
        return target
    return _wrapped(target)  # type: ignore[return-value]


def _wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def generate(*args: Any, **kwargs: Any) -> Iterator[Any]:
            try:
                yield from function(*args, **kwargs)
            except Exception as error:
                _explain(function, args, kwargs, error)
                raise

        return generate

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            _explain(function, args, kwargs, error)
            raise

    return call


def _explain(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], error: Exception) -> None:
    last = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    if _PACKAGE in last.parents and _NAMED.match(str(error)):
        return
    try:
        given = inspect.signature(function).bind(*args, **kwargs).arguments
    except TypeError:  # missing or unknown arguments, which Python names
        return
    for name, parameter in inspect.signature(function).parameters.items():
        if name not in given or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        try:
            hint = eval(parameter.annotation, inspect.unwrap(function).__globals__)
        except Exception:  # no annotation, or one that only type checkers can resolve
            continue
        is_class = isinstance(given[name], type) and name in _INSTANCES
        if is_class or (name == "model" and not callable(given[name])) or not fits(given[name], hint):
            expected = _INSTANCES.get(name, str(parameter.annotation))
            raise TypeError(f"{name}: expected {expected}, got {reprlib.repr(given[name])}.") from error
    if isinstance(error, RuntimeError) and _KINDS.search(str(error)) and isinstance(given.get("model"), nn.Module):
        dtypes = sorted({str(parameter.dtype) for parameter in given["model"].parameters()})
        raise TypeError(
            f"inputs: the network was given numbers of another kind than its weights, {', '.join(dtypes)} ({error}); "
            "convert the inputs, as by x.float(), or model and guide, as by model.double() and guide.double()."
        ) from error


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the kind that an annotation says, as far as that can be seen."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if isinstance(value, str) and torch.device in inner:
            return _is_device(value)
        return any(fits(value, option) for option in inner)
    if origin is Literal:
        return any(value is option or (type(value) is type(option) and value == option) for option in inner)
    if hint is Any or isinstance(hint, TypeVar):
        return True
    if hint is None or hint is type(None):
        return value is None
    if hint is bool:
        return _is_true_or_false(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if origin is tuple and inner:
        if not isinstance(value, tuple):
            return False
        if inner[-1] is Ellipsis:
            return all(fits(entry, inner[0]) for entry in value)
        return len(value) == len(inner) and all(map(fits, value, inner))
    kind = origin or hint
    if not isinstance(kind, type) or getattr(kind, "_is_protocol", False):
        return True
    if kind is not str and isinstance(value, str | bytes) and issubclass(kind, Collection | Iterator):
        return False  # a string is no list of names
    if not isinstance(value, kind):
        return False
    if isinstance(value, Mapping) and len(inner) == 2:
        return all(fits(key, inner[0]) and fits(entry, inner[1]) for key, entry in value.items())
    if isinstance(value, Collection) and len(inner) == 1:
        return all(fits(entry, inner[0]) for entry in value)
    return True


def _is_true_or_false(value: Any) -> bool:
    """Whatever Python can take for true or false does; a tensor of several elements does not."""
    try:
        bool(value)
    except (RuntimeError, ValueError):
        return False
    return True


def _is_device(name: str) -> bool:
    try:
        torch.device(name)
    except RuntimeError:
        return False
    return True
