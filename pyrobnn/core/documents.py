"""Documents with tensors in a directory, written atomically and read back exactly.

A document (``<name>.json``) names its tensor file (``<stem>-<token>.safetensors``), that file's size and SHA-256, and
holds digests of its own entries, so nothing in either file can change unnoticed. It takes its place last, by one atomic
rename: a write that fails or is cut short leaves what was there before. The generation before it is kept until the next
write, and a reader whose document was replaced meanwhile reads the new one, so readers need no lock. Writers do
(:mod:`pyrobnn.core.locks`). No pickle is used, so reading a file runs no code of its author.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pyro
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from pyrobnn._version import __version__
from pyrobnn.core import schema
from pyrobnn.core.files import CheckpointError, check_regular

__all__ = ["Document", "read", "sealed", "write"]

_FORMAT_VERSION = 1
_MAX_DOCUMENT_BYTES = 2**30
_MAX_TRIES = 1000


@dataclass(frozen=True)
class Document:
    """A kind of document with its tensors.

    Attributes:
        format: What it calls itself.
        document: File name of the JSON.
        stem: Beginning of the tensor file's name.
        entries: What its content must look like, by entry.
    """

    format: str
    document: str
    stem: str
    entries: Mapping[str, schema.Check] = field(default_factory=dict)

    def check(self, document: Any) -> None:
        """Checks everything but the format and its version.

        Raises:
            Mismatch: Where it is not what it must be.
        """
        entries = {
            "format": schema.text,
            "format_version": schema.whole(1),
            "versions": schema.table(schema.text),
            "tensors": schema.record({"file": self._file, "bytes": schema.whole(0), "sha256": schema.text}),
            "digests": schema.table(schema.text),
        }
        schema.record({**entries, **self.entries})(document, "")

    def _file(self, value: Any, where: str) -> None:
        if not isinstance(value, str) or not re.fullmatch(rf"{self.stem}-[0-9a-f]{{8}}\.safetensors", value):
            raise schema.Mismatch(where, f"a file name {self.stem}-<8 hexadecimal digits>.safetensors", value)


def sealed(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document with digests of its entries, and of the entries of those that are dicts."""
    content = {name: value for name, value in document.items() if name != "digests"}
    return {**content, "digests": dict(_digests(content))}


def _digests(content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in content.items():
        inner = {f"{name}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {}
        for where, part in (inner or {name: value}).items():
            yield where, hashlib.sha256(json.dumps(part).encode()).hexdigest()[:16]


# ---------------------------------------------------------------------------------------------------- writing


def write(
    directory: Path, kind: Document, content: dict[str, Any], tensors: Mapping[str, Tensor], argument: str = "path"
) -> None:
    """Writes a new tensor file and a draft of the document that names it, then renames the draft.

    The directory exists, and the caller holds its lock.

    Raises:
        TypeError: If a tensor is of a kind that cannot be saved.
        CheckpointError: If a pipe, a device or a directory is where the document belongs.
        OSError: If writing fails; what was there before is untouched.
    """
    storable = _storable(tensors)
    token = secrets.token_hex(4)
    data, draft = directory / f"{kind.stem}-{token}.safetensors", directory / f".{kind.document}.{token}"
    check_regular(directory / kind.document, argument)
    previous = _named_file(directory, kind)
    try:
        _remove_leftovers(directory, kind, {previous})
        safetensors.torch.save_file(storable, data)
        _flush(data)
        document = {
            "format": kind.format,
            "format_version": _FORMAT_VERSION,
            "versions": {"pyrobnn": __version__, "torch": str(torch.__version__), "pyro": pyro.__version__},
            "tensors": {"file": data.name, "bytes": data.stat().st_size, "sha256": _digest(data)},
            **content,
        }
        draft.write_text(_readable(sealed(document)) + "\n", encoding="utf-8")
        _flush(draft)
        os.replace(draft, directory / kind.document)
        with contextlib.suppress(OSError):  # not every system can
            _flush(directory)
    except (OSError, SafetensorError) as error:
        raise OSError(f"{argument}: could not write to {directory} ({error}); what was there is untouched.") from error
    finally:
        _remove_leftovers(directory, kind, {_named_file(directory, kind), previous})


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


def _named_file(directory: Path, kind: Document) -> str | None:
    """The tensor file of the present document, ``""`` if that is damaged, None if there is none."""
    try:
        return str(json.loads((directory / kind.document).read_text(encoding="utf-8"))["tensors"]["file"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""


def _remove_leftovers(directory: Path, kind: Document, kept: set[str | None]) -> None:
    """Removes drafts, and the tensor files but for those ``kept``, which documents name."""
    if "" in kept:
        return  # a damaged document: nothing is deleted
    token = "[0-9a-f]" * 8
    for pattern in (f"{kind.stem}-{token}.safetensors", f".{kind.document}.{token}"):
        for leftover in directory.glob(pattern):
            if leftover.name not in kept:
                with contextlib.suppress(OSError):
                    leftover.unlink()


# ---------------------------------------------------------------------------------------------------- reading


def read(directory: Path, kind: Document, argument: str = "path") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The document and its tensors, checked against their description and the recorded digests.

    Raises:
        FileNotFoundError: If there is no such document in ``directory``.
        CheckpointError: If it is damaged or of another version; the message names the place.
        OSError: If the file system refuses.
    """
    text = _text(directory, kind, argument)
    for _ in range(_MAX_TRIES):
        try:
            document = _parsed(text, directory, kind, argument)
            return document, _tensors(document, directory, kind, argument)
        except CheckpointError:
            if (present := _text(directory, kind, argument)) == text:
                raise
            text = present  # written anew meanwhile
    raise CheckpointError(f"{argument}: {directory} is written to faster than it can be read.")


def _damaged(directory: Path, kind: Document, argument: str, reason: object) -> NoReturn:
    raise CheckpointError(f"{argument}: {directory} is a damaged {kind.format}: {reason}.")


def _text(directory: Path, kind: Document, argument: str) -> bytes:
    file = directory / kind.document
    size = check_regular(file, argument)
    if size is None:
        raise FileNotFoundError(f"{argument}: {directory} is no {kind.format}: there is no {file}.")
    if size > _MAX_DOCUMENT_BYTES:
        _damaged(directory, kind, argument, f"{kind.document} has {size} bytes")
    try:
        return file.read_bytes()
    except OSError as error:
        raise OSError(f"{argument}: {file} cannot be read ({error.strerror or error}).") from error


def _parsed(text: bytes, directory: Path, kind: Document, argument: str) -> dict[str, Any]:
    try:
        document = json.loads(text.decode(), object_pairs_hook=_without_repetition)
    except (ValueError, RecursionError) as error:
        _damaged(directory, kind, argument, f"{kind.document}: {error}")
    if not isinstance(document, dict) or document.get("format") != kind.format:
        _damaged(directory, kind, argument, f"{kind.document} is not one of its kind")
    version = document.get("format_version")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        _damaged(directory, kind, argument, f"its format version is {version!r}")
    if version > _FORMAT_VERSION:
        raise CheckpointError(
            f"{argument}: {directory} has format version {version} of a newer pyrobnn, but this one ({__version__}) "
            f"reads up to version {_FORMAT_VERSION}; upgrade pyrobnn to load it."
        )
    try:
        kind.check(document)
    except (schema.Mismatch, RecursionError) as error:
        _damaged(directory, kind, argument, f"{kind.document}: {error}")
    written, found = document["digests"], sealed(document)["digests"]
    if list(written.items()) != list(found.items()):
        changed = [name for name in {**found, **written} if written.get(name) != found.get(name)]
        where = f"the entry {changed[0]!r}" if changed else "the order of entries"
        _damaged(directory, kind, argument, f"{kind.document}: {where} is not what was written")
    return document


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the entry {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return found


def _tensors(document: dict[str, Any], directory: Path, kind: Document, argument: str) -> dict[str, Tensor]:
    named = document["tensors"]
    file = directory / named["file"]
    size = check_regular(file, argument)
    if size is None:
        _damaged(directory, kind, argument, f"No such file: {file}")
    try:
        if size != named["bytes"] or _digest(file) != named["sha256"]:
            _damaged(directory, kind, argument, f"{file.name} is not the file that was written")
        return safetensors.torch.load_file(file)
    except (FileNotFoundError, SafetensorError, KeyError, TypeError, RuntimeError) as error:
        _damaged(directory, kind, argument, f"{file.name}: {error}")
