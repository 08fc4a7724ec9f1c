"""Paths and files that are not taken on trust: no empty paths, no pipes or devices where a file is expected."""

from __future__ import annotations

import os
import stat
from pathlib import Path

__all__ = ["CheckpointError", "check_directory", "check_path", "check_regular"]

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class CheckpointError(ValueError):
    """What is on disk is damaged, of another kind, or of another version; the message says where."""


def check_path(argument: str, path: object, what: str = "file", hint: str = "") -> Path:
    """A path, which need not exist.

    Args:
        argument: The argument's name.
        path: What was given.
        what: What is to be there, for messages.
        hint: What else to say of empty paths.

    Raises:
        TypeError: If it is no path.
        ValueError: If it is empty, which would be the working directory, or no path can be so.
    """
    if not isinstance(path, str | os.PathLike) or not isinstance(text := os.fspath(path), str):
        raise TypeError(f"{argument}: expected the path of a {what}, got {path!r}.")
    if not text.strip() or "\0" in text:
        raise ValueError(f"{argument}: expected the path of a {what}, got {text!r}{hint}.")
    return Path(text)


def check_directory(argument: str, path: object) -> Path:
    """:func:`check_path` of a directory."""
    return check_path(argument, path, "directory", "; the working directory is '.'")


def check_regular(path: Path, argument: str = "path") -> int | None:
    """The size of a regular file in bytes, None if there is nothing; files are not opened.

    Raises:
        CheckpointError: If there is something else, which reading might wait for without end.
        OSError: If the file system does not say.
    """
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        if not os.path.lexists(path):
            return None
        raise CheckpointError(f"{argument}: {path} is a link to nothing; expected a file.") from None
    except OSError as error:
        if path.is_symlink():
            raise CheckpointError(f"{argument}: {path} is a link that leads nowhere ({error.strerror}).") from None
        raise OSError(f"{argument}: {path} cannot be read ({error.strerror or error}).") from error
    if not stat.S_ISREG(found.st_mode):
        kind = next((name for test, name in _KINDS if test(found.st_mode)), "of an unknown kind")
        raise CheckpointError(f"{argument}: {path} is {kind}; expected a file.")
    return found.st_size
