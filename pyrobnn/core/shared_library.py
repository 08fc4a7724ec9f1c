"""Shared libraries of C++ compiled at run time, kept on disk between processes.

A library is kept under the digest of all that decides what it does: its source, the compiler and its version, the
flags, and the processor. Its file's name also has the digest of its content, so that a file that was damaged or put
there by another program is not loaded but compiled anew. Files appear by one atomic rename, so that any number of
processes may compile at the same time. The directory is, in this order, ``$PYROBNN_CACHE``, ``pyrobnn`` within
``$TORCHINDUCTOR_CACHE_DIR`` or ``$XDG_CACHE_HOME``, or ``~/.cache/pyrobnn``; of more than 256 libraries those that were
not used for longest are removed.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

__all__ = ["CompilerError", "cache_directory", "compiler", "shared_library"]

_MOST = 256  # libraries that are kept, of 20 to 50 kB
_ABANDONED = 86_400  # seconds
_FLAGS = (
    "-O3",
    "-march=native",
    "-std=c++17",
    "-fopenmp-simd",  # the pragmas alone: no threads
    "-fno-math-errno",
    "-fno-trapping-math",
    "-shared",
    "-fPIC",
)
_LIBRARIES = ("-lmvec", "-lm")


class CompilerError(RuntimeError):
    """There is no suitable compiler, or it failed; the message says why."""


def shared_library(source: str) -> ctypes.CDLL:
    """The library of a source in C++, from disk if it was compiled before.

    Raises:
        CompilerError: If it cannot be compiled.
        OSError: If it cannot be loaded.
    """
    key = hashlib.sha256("\n".join((source, *_FLAGS, compiler(), _processor())).encode()).hexdigest()[:32]
    try:
        directory = cache_directory()
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = _found(directory, key) or _compiled(source, directory, key)
    except OSError:  # nowhere to write: it is compiled for this process alone
        with tempfile.TemporaryDirectory() as temporary:
            return ctypes.CDLL(str(_compiled(source, Path(temporary), key)))
    return ctypes.CDLL(str(found))


def cache_directory() -> Path:
    """Where libraries are kept."""
    if own := os.environ.get("PYROBNN_CACHE"):
        return Path(own)
    for variable in ("TORCHINDUCTOR_CACHE_DIR", "XDG_CACHE_HOME"):
        if given := os.environ.get(variable):
            return Path(given) / "pyrobnn"
    return Path(os.path.expanduser("~")) / ".cache" / "pyrobnn"


@functools.cache
def compiler() -> str:
    """The compiler's path and version: GCC with the vectorized functions of glibc 2.35 or newer.

    Raises:
        CompilerError: If there is none.
    """
    name, version = platform.libc_ver()
    if platform.machine() != "x86_64" or name != "glibc" or tuple(map(int, version.split(".")[:2])) < (2, 35):
        raise CompilerError("vectorized functions need glibc 2.35 or newer on an x86-64 processor")
    path = shutil.which(os.environ.get("CXX", "g++"))
    if path is None:
        raise CompilerError("g++ was not found")
    done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    if done.returncode or "Free Software Foundation" not in done.stdout:
        raise CompilerError(f"{path} is not GCC")
    return f"{path}\n{done.stdout}"


def _processor() -> str:
    """What ``-march=native`` depends on."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        wanted = {line.partition("\t")[0]: line for line in lines if line.startswith(("model name", "flags"))}
        return "\n".join(wanted.values())
    return platform.processor()


def _found(directory: Path, key: str) -> Path | None:
    """The library of a key, if it is this user's and its content is what its name says."""
    for path in directory.glob(f"{key}-*.so"):
        if path.stat().st_uid != os.getuid():
            continue
        if path.stem == f"{key}-{_digest(path)}":
            os.utime(path)  # used last now
            return path
        path.unlink(missing_ok=True)
    return None


def _compiled(source: str, directory: Path, key: str) -> Path:
    with tempfile.TemporaryDirectory(dir=directory, prefix="compiling-") as temporary:
        written, made = Path(temporary, "source.cpp"), Path(temporary, "made.so")
        written.write_text(source)
        command = [compiler().partition("\n")[0], *_FLAGS, str(written), "-o", str(made), *_LIBRARIES]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CompilerError(f"g++ failed: {done.stderr.strip().splitlines()[0] if done.stderr else ''}")
        path = directory / f"{key}-{_digest(made)}.so"
        os.replace(made, path)
    _remove_oldest(directory)
    return path


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]


def _remove_oldest(directory: Path) -> None:
    with contextlib.suppress(OSError):  # another process may be doing the same
        by_age = sorted(directory.glob("*.so"), key=lambda path: path.stat().st_mtime)
        for path in by_age[:-_MOST]:
            path.unlink(missing_ok=True)
        for path in directory.glob("compiling-*"):  # of processes that were killed
            if time.time() - path.stat().st_mtime > _ABANDONED:
                shutil.rmtree(path, ignore_errors=True)
