"""Nested structures, such as the state of a training run, as JSON and safe tensors.

Both are written and read by :mod:`pyrobnn.core.documents`: atomically, with digests, without pickle.
:mod:`pyrobnn.checkpoint` keeps models.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pyrobnn.core import schema
from pyrobnn.core.documents import Document, read, write
from pyrobnn.core.files import CheckpointError, check_directory
from pyrobnn.core.first_line import first_line
from pyrobnn.core.locks import locked

__all__ = ["STATE", "load_state", "restoring", "save_state", "write_state"]

STATE = Document("pyrobnn training state", "state.json", "state", {"state": schema.anything})
_PATIENCE = 60.0  # seconds for another save to end


def save_state(path: str | os.PathLike[str], tree: Any) -> None:
    """Saves a nested structure, such as the state of an optimizer, as JSON and safe tensors.

    Args:
        path: A directory; it may be that of a checkpoint.
        tree: Dicts, lists and tuples of tensors, numbers, strings, bools and None; keys may be all of these
            but lists, dicts and tensors. Subclasses come back as the plain kind, tensors on the CPU.

    Raises:
        TypeError: If the structure holds anything else.
        ValueError: If the path is empty.
        DirectoryInUseError: If a run is writing to the directory.
        OSError: If writing fails; what was there before is untouched.
    """
    directory = check_directory("path", path)
    with locked(directory, STATE.document, "save_state", wait=_PATIENCE):
        write_state(directory, tree)


def write_state(directory: Path, tree: Any, argument: str = "path") -> None:
    """:func:`save_state` for callers that hold the directory's lock."""
    tensors: dict[str, Tensor] = {}
    encoded = _encode(tree, "state", tensors)
    write(directory, STATE, {"state": encoded}, tensors, argument)


def load_state(path: str | os.PathLike[str], argument: str = "path") -> Any:
    """Reads what :func:`save_state` saved; every number and tensor is exactly what it was.

    Args:
        path: The directory.
        argument: The argument to name in messages.

    Raises:
        FileNotFoundError: If there is no saved state at ``path``.
        CheckpointError: If it is damaged or of a newer format; a ValueError.
    """
    directory = check_directory(argument, path)
    document, tensors = read(directory, STATE, argument)
    try:
        return _decode(document["state"], "state", tensors)
    except (schema.Mismatch, RecursionError) as error:
        raise CheckpointError(f"{argument}: {STATE.document} in {directory} is damaged: {error}.") from error


@contextlib.contextmanager
def described(argument: str, directory: str | os.PathLike[str], kind: str) -> Iterator[None]:
    """A state that is not described as it should be, as the block finds, is none of this kind of run.

    Raises:
        CheckpointError: If the block raises :class:`~pyrobnn.core.schema.Mismatch`.
    """
    try:
        yield
    except schema.Mismatch as error:
        raise CheckpointError(f"{argument}: {directory} holds no state of a {kind} run: {error}.") from error


@contextlib.contextmanager
def restoring(argument: str, directory: str | os.PathLike[str]) -> Iterator[None]:
    """Whatever a loaded state leads to in the block is an error of the state.

    Raises:
        CheckpointError: If the block raises an error of another kind.
    """
    try:
        yield
    except CheckpointError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, StopIteration, TypeError, ValueError) as error:
        reason = first_line(error)
        raise CheckpointError(f"{argument}: the state in {directory} cannot be restored: {reason}") from error


def _encode(value: Any, where: str, tensors: dict[str, Tensor]) -> Any:
    """JSON, with ``{"$kind": ...}`` for what JSON cannot represent."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if abs(value) < float("inf") else {"$float": repr(float(value))}
    if isinstance(value, Tensor):
        while where in tensors:
            where += "'"
        tensors[where] = value
        return {"$tensor": where}
    if isinstance(value, list | tuple):
        items = [_encode(item, f"{where}.{i}", tensors) for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    if isinstance(value, dict):
        pairs = [(_encode(k, where, tensors), _encode(v, f"{where}.{k}", tensors)) for k, v in value.items()]
        if all(isinstance(key, str) and not key.startswith("$") for key, _ in pairs):
            return dict(pairs)
        return {"$dict": pairs}
    raise TypeError(
        f"{where}: expected a dict, list, tuple, tensor, number, string, bool or None, got {type(value).__name__}."
    )


def _decode(value: Any, where: str, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, f"{where}.{i}", tensors) for i, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    special = [key for key in value if key.startswith("$")]
    if not special:
        return {key: _decode(item, f"{where}.{key}", tensors) for key, item in value.items()}
    (kind, content), *others = value.items()
    if others:
        raise schema.Mismatch(where, f"nothing beside {kind!r}", others[0][0])
    if kind == "$float" and content in ("nan", "inf", "-inf"):
        return float(content)
    if kind == "$tensor" and isinstance(content, str) and content in tensors:
        return tensors[content]
    if kind == "$tuple" and isinstance(content, list):
        return tuple(_decode(content, where, tensors))
    if kind == "$dict" and isinstance(content, list) and all(isinstance(p, list) and len(p) == 2 for p in content):
        pairs = [(_decode(key, where, tensors), item) for key, item in content]
        return {_hashable(key, where): _decode(item, f"{where}.{key}", tensors) for key, item in pairs}
    expected = {
        "$float": "nan, inf or -inf",
        "$tensor": "the name of a tensor in the file",
        "$tuple": "a list",
        "$dict": "a list of pairs",
    }.get(kind, "$float, $tensor, $tuple or $dict")
    raise schema.Mismatch(f"{where}.{kind}", expected, content)


def _hashable(key: Any, where: str) -> Any:
    try:
        hash(key)
    except TypeError:
        raise schema.Mismatch(where, "a key that can be hashed", key) from None
    return key
