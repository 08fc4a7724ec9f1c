"""Tensors and JSON in a directory, written atomically and read back exactly.

A document (``<name>.json``) names its tensor file (``<stem>-<token>.safetensors``) and that file's SHA-256,
and takes its place last, by one atomic rename: a write that fails or is cut short leaves what was there before.
No pickle is used, so reading a file runs no code of its author. :func:`save_state` and :func:`load_state`
keep nested structures this way, such as the state of a training run; :mod:`pyrobnn.checkpoint` keeps models.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pyro
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from pyrobnn._version import __version__

__all__ = ["Document", "load_state", "read", "save_state", "write"]

_FORMAT_VERSION = 1


def save_state(path: str | os.PathLike[str], tree: Any) -> None:
    """Saves a nested structure, such as the state of an optimizer, as JSON and safe tensors.

    Args:
        path: A directory; it may be that of a checkpoint.
        tree: Dicts, lists and tuples of tensors, numbers, strings, bools and None; keys may be all of these
            but lists, dicts and tensors. Subclasses come back as the plain kind, tensors on the CPU.

    Raises:
        TypeError: If the structure holds anything else.
        OSError: If writing fails; what was there before is untouched.
    """
    tensors: dict[str, Tensor] = {}
    encoded = _encode(tree, "state", tensors)
    write(Path(path), _TRAINING_STATE, {"state": encoded}, tensors)


def load_state(path: str | os.PathLike[str]) -> Any:
    """Reads what :func:`save_state` saved; every number and tensor is exactly what it was.

    Raises:
        FileNotFoundError: If there is no saved state at ``path``.
        ValueError: If it is damaged or of a newer format.
    """
    document, tensors = read(Path(path), _TRAINING_STATE)
    try:
        return _decode(document["state"], tensors)
    except KeyError as error:
        raise ValueError(f"path: {_TRAINING_STATE.document} in {path} is damaged: it lacks {error}.") from error


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


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "$float" in value:
        return float(value["$float"])
    if "$tensor" in value:
        return tensors[value["$tensor"]]
    if "$tuple" in value:
        return tuple(_decode(value["$tuple"], tensors))
    if "$dict" in value:
        return {_decode(key, tensors): _decode(item, tensors) for key, item in value["$dict"]}
    return {key: _decode(item, tensors) for key, item in value.items()}


# ------------------------------------------------------------------------------------ directories, atomically


@dataclass(frozen=True)
class Document:
    """A kind of document with its tensors.

    Attributes:
        format: What it calls itself.
        document: File name of the JSON.
        stem: Beginning of the tensor file's name.
    """

    format: str
    document: str
    stem: str


_TRAINING_STATE = Document("pyrobnn training state", "state.json", "state")


def write(directory: Path, kind: Document, content: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Writes a new tensor file and a draft of the document that names it, then renames the draft.

    Raises:
        TypeError: If a tensor is of a kind that cannot be saved.
        OSError: If writing fails; what was there before is untouched.
    """
    storable = _storable(tensors)
    is_new = not directory.exists()
    token = secrets.token_hex(4)
    data, draft = directory / f"{kind.stem}-{token}.safetensors", directory / f".{kind.document}.{token}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(storable, data)
        _flush(data)
        document = {
            "format": kind.format,
            "format_version": _FORMAT_VERSION,
            "versions": {"pyrobnn": __version__, "torch": str(torch.__version__), "pyro": pyro.__version__},
            "tensors": {"file": data.name, "sha256": _digest(data)},
            **content,
        }
        draft.write_text(_readable(document) + "\n", encoding="utf-8")
        _flush(draft)
        os.replace(draft, directory / kind.document)
        with contextlib.suppress(OSError):  # not every system can
            _flush(directory)
    except (OSError, SafetensorError) as error:
        raise OSError(f"path: could not write to {directory} ({error}); what was there is untouched.") from error
    finally:
        _remove_leftovers(directory, kind)
        if is_new:
            with contextlib.suppress(OSError):
                directory.rmdir()  # only if it is empty


def _storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU, no two of which share memory, as safetensors requires."""
    storable: dict[str, Tensor] = {}
    pointers: set[int] = set()
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.is_meta or tensor.dtype == torch.complex128:
            raise TypeError(
                f"{name}: cannot save a tensor of layout {tensor.layout}, {tensor.dtype}, on {tensor.device}."
            )
        plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        pointer = plain.untyped_storage().data_ptr()
        storable[name] = plain.clone() if pointer in pointers else plain
        pointers.add(pointer)
    return storable


def _readable(value: Any, margin: str = "\n") -> str:
    """JSON, indented, with the innermost dicts and all lists on one line: tables stay tables."""
    if not (isinstance(value, dict) and any(isinstance(item, dict) for item in value.values())):
        return json.dumps(value, allow_nan=False)
    deeper = margin + "  "
    items = (f"{json.dumps(key)}: {_readable(item, deeper)}" for key, item in value.items())
    return "{" + deeper + f",{deeper}".join(items) + margin + "}"


def _flush(path: Path) -> None:
    """Makes sure that the file's (or the directory's) contents are on the disk."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove_leftovers(directory: Path, kind: Document) -> None:
    """Removes the tensor files and drafts that the present document does not name."""
    kept = None
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        try:
            kept = json.loads((directory / kind.document).read_text(encoding="utf-8"))["tensors"]["file"]
        except (ValueError, KeyError, TypeError):
            return  # a damaged document: nothing is deleted
    token = "[0-9a-f]" * 8
    for pattern in (f"{kind.stem}-{token}.safetensors", f".{kind.document}.{token}"):
        for leftover in directory.glob(pattern):
            if leftover.name != kept:
                with contextlib.suppress(OSError):
                    leftover.unlink()


def read(directory: Path, kind: Document) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The document and its tensors, checked against the recorded format and digest.

    Raises:
        FileNotFoundError: If there is no such document in ``directory``.
        ValueError: If it is damaged or of a newer format.
    """

    def damaged(reason: object) -> NoReturn:
        raise ValueError(f"path: {directory} is a damaged {kind.format}: {reason}.")

    file = directory / kind.document
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"path: {directory} is no {kind.format}: there is no {file}.") from None
    except ValueError as error:
        damaged(f"{kind.document}: {error}")
    if not isinstance(document, dict) or document.get("format") != kind.format:
        damaged(f"{kind.document} is not one of its kind")
    version = document.get("format_version")
    if not isinstance(version, int):
        damaged(f"its format version is {version!r}")
    if version > _FORMAT_VERSION:
        writer = document.get("versions", {}).get("pyrobnn")
        raise ValueError(
            f"path: {directory} has format version {version} (pyrobnn {writer}), but this pyrobnn "
            f"({__version__}) reads up to version {_FORMAT_VERSION}; upgrade pyrobnn to load it."
        )
    try:
        data = directory / Path(document["tensors"]["file"]).name
        if _digest(data) != document["tensors"]["sha256"]:
            damaged(f"{data.name} is not the file that was written")
        return document, safetensors.torch.load_file(data)
    except (FileNotFoundError, KeyError, TypeError, SafetensorError) as error:
        damaged(error)
