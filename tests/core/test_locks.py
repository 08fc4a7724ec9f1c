"""One writer at a time, named to the others; locks end with the block or with the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from pyrobnn.checkpoint import DirectoryInUseError, save_state
from pyrobnn.core import locks
from pyrobnn.core.locks import locked

HOLD = """
    import runpy, sys
    from pathlib import Path
    with runpy.run_path(sys.argv[2])["locked"](Path(sys.argv[1]), "state.json", "sample"):
        print("locked", flush=True)
        sys.stdin.read()
"""


def holder(path: Path) -> subprocess.Popen[str]:
    """A process that holds the lock until its input ends."""
    command = [sys.executable, "-c", textwrap.dedent(HOLD), str(path), locks.__file__]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    return process


def test_another_process_is_named_and_its_end_frees_the_lock(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        for attempt in (
            lambda: save_state(tmp_path, {}),
            lambda: locked(tmp_path, "state.json", "fit", argument="path").__enter__(),
        ):
            with pytest.raises(
                DirectoryInUseError, match=rf"^path: .* by sample in process {process.pid} on .* since 20"
            ):
                attempt()
        save_state(tmp_path / "another", {})
        assert process.stdin is not None
        process.stdin.close()
    assert list(tmp_path.iterdir()) == [tmp_path / "another"]
    save_state(tmp_path, {})


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert (tmp_path / ".state.json.lock").exists()
    save_state(tmp_path, {})
    assert not (tmp_path / ".state.json.lock").exists()


def test_without_locks_of_the_file_system_the_process_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*args: object) -> None:
        raise OSError(95, "Operation not supported")

    assert locks.fcntl is not None
    monkeypatch.setattr(locks.fcntl, "lockf", unsupported)
    with holder(tmp_path) as process:
        with pytest.raises(DirectoryInUseError, match=rf"in process {process.pid} on"):
            save_state(tmp_path, {})
        process.kill()
    save_state(tmp_path, {})


def test_a_second_lock_of_the_same_process_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "run")
    with locked(tmp_path / "run", "state.json", "fit"):
        for path in (tmp_path / "run", link):
            with pytest.raises(DirectoryInUseError, match=rf"by fit in process {os.getpid()} "):
                save_state(path, {})
        with locked(tmp_path / "run", "spec.json", "save"):
            pass
    save_state(link, {})


def test_an_error_frees_the_lock_and_leaves_no_directory(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locked(tmp_path / "run", "state.json", "fit"):
        raise KeyError
    assert not (tmp_path / "run").exists()
    with locked(tmp_path / "run", "state.json", "fit"):
        pass


def test_saves_wait_for_each_other(tmp_path: Path) -> None:
    """Eight threads; each holds the lock alone."""
    inside, seen = [], []

    def write() -> None:
        with locked(tmp_path, "state.json", "save", wait=60.0):
            inside.append(0)
            seen.append(len(inside))
            inside.pop()

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1] * 8


def test_a_directory_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match=r"^path: could not write to .*untouched"):
            save_state(path, {})
