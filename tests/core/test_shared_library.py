"""Libraries compiled at run time: kept on disk, found again, and never loaded if they are not what they should be."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pyrobnn.core import shared_library as module
from pyrobnn.core.shared_library import CompilerError, cache_directory, compiler, shared_library


def has_gcc() -> bool:
    try:
        return bool(compiler())
    except CompilerError:
        return False


needs_gcc = pytest.mark.skipif(not has_gcc(), reason="no GCC with the vectorized functions of glibc on this machine")


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYROBNN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def source(answer: int) -> str:
    return f'extern "C" long answer() {{ return {answer}; }}\n'


def answer(library: ctypes.CDLL) -> int:
    library.answer.restype = ctypes.c_long
    return int(library.answer())


def compilations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    compiled = module._compiled

    def counted(text: str, directory: Path, key: str) -> Path:
        seen.append(text)
        return compiled(text, directory, key)

    monkeypatch.setattr(module, "_compiled", counted)
    return seen


@needs_gcc
def test_a_source_is_compiled_once(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = compilations(monkeypatch)
    assert [answer(shared_library(source(n))) for n in (41, 42, 41, 42)] == [41, 42, 41, 42]
    assert len(seen) == 2
    assert len(list(directory.iterdir())) == 2  # and nothing else is left


@needs_gcc
@pytest.mark.parametrize("what", ["flags", "processor", "compiler"])
def test_what_a_library_depends_on_is_part_of_its_key(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shared_library(source(1))
    seen = compilations(monkeypatch)
    shared_library(source(1))
    assert not seen
    if what == "flags":
        monkeypatch.setattr(module, "_FLAGS", (*module._FLAGS, "-O2"))
    elif what == "processor":
        monkeypatch.setattr(module, "_processor", lambda: "another")
    else:
        monkeypatch.setattr(module, "compiler", lambda: f"{compiler()} of another version")
    shared_library(source(1))
    assert len(seen) == 1


@needs_gcc
@pytest.mark.parametrize("damage", [b"", b"not a library"])
def test_a_damaged_library_is_compiled_anew(directory: Path, damage: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    assert answer(shared_library(source(7))) == 7
    (path,) = directory.iterdir()
    path.unlink()  # written anew, as this process has mapped the old file
    path.write_bytes(damage)
    seen = compilations(monkeypatch)
    assert answer(shared_library(source(7))) == 7
    assert len(seen) == 1


@needs_gcc
def test_a_library_of_another_source_is_not_loaded(directory: Path) -> None:
    shared_library(source(1))
    (first,) = directory.iterdir()
    shared_library(source(2))
    (second,) = set(directory.iterdir()) - {first}
    key = first.stem.partition("-")[0]
    content = second.read_bytes()
    first.unlink()
    (directory / first.name).write_bytes(content)  # the key of one, the content of the other
    assert answer(shared_library(source(1))) == 1
    assert sum(path.name.startswith(key) for path in directory.iterdir()) == 1


@needs_gcc
def test_a_library_of_another_user_is_not_loaded(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared_library(source(3))
    seen = compilations(monkeypatch)
    monkeypatch.setattr(os, "getuid", lambda: 12345678)
    shared_library(source(3))
    assert len(seen) == 1


@needs_gcc
def test_the_oldest_go_when_there_are_too_many(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST", 2)
    for n in (1, 2):
        shared_library(source(n))
        for age, path in enumerate(sorted(directory.iterdir(), key=lambda p: p.stat().st_mtime, reverse=True), 1):
            os.utime(path, (1e9 - age, 1e9 - age))
    shared_library(source(1))  # the older of the two, used now
    seen = compilations(monkeypatch)
    shared_library(source(3))
    assert len(list(directory.iterdir())) == 2
    shared_library(source(1))
    assert len(seen) == 1
    shared_library(source(2))
    assert len(seen) == 2


@needs_gcc
def test_what_killed_processes_left_is_removed(directory: Path) -> None:
    old, new = directory / "compiling-old", directory / "compiling-new"
    for path in (old, new):
        path.mkdir(parents=True)
    os.utime(old, (1e9, 1e9))
    shared_library(source(5))
    assert new.exists() and not old.exists()


@needs_gcc
def test_many_may_compile_at_the_same_time() -> None:
    code = "import sys; from pyrobnn.core.shared_library import shared_library as s; print(s(sys.argv[1]).answer())"
    commands = [[sys.executable, "-c", code, source(9)]] * 2
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    assert [process.communicate()[0].strip() for process in running] == ["9", "9"]
    with ThreadPoolExecutor(4) as threads:
        assert [answer(found) for found in threads.map(shared_library, [source(10)] * 4)] == [10] * 4


@needs_gcc
def test_without_a_directory_it_is_compiled_for_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PYROBNN_CACHE", str(tmp_path / "file" / "below"))
    assert answer(shared_library(source(11))) == 11


@needs_gcc
def test_what_the_compiler_refuses_is_told() -> None:
    with pytest.raises(CompilerError, match=r"g\+\+ failed: .*error"):
        shared_library("no C++")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"PYROBNN_CACHE": "/a", "TORCHINDUCTOR_CACHE_DIR": "/b", "XDG_CACHE_HOME": "/c"}, "/a"),
        ({"TORCHINDUCTOR_CACHE_DIR": "/b", "XDG_CACHE_HOME": "/c"}, "/b/pyrobnn"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/pyrobnn"),
        ({"HOME": "/d"}, "/d/.cache/pyrobnn"),
    ],
)
def test_the_directory(variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYROBNN_CACHE", "TORCHINDUCTOR_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_directory() == Path(expected)


@pytest.mark.parametrize(
    ("libc", "which", "message"),
    [
        (("glibc", "2.31"), "g++", "glibc 2.35"),
        (("musl", "1.2"), "g++", "glibc 2.35"),
        (("glibc", "2.36"), None, r"g\+\+ was not found"),
        (("glibc", "2.36"), sys.executable, "is not GCC"),
    ],
)
def test_unsuitable_compilers(
    libc: tuple[str, str], which: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.platform, "libc_ver", lambda: libc)
    monkeypatch.setattr(module.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(module.shutil, "which", lambda name: which)
    with pytest.raises(CompilerError, match=message):
        compiler.__wrapped__()
