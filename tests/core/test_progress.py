"""Lines in a file, a bar in a terminal and in a notebook."""

from __future__ import annotations

import io
import sys
import types
from collections.abc import Iterator

import pytest
import tqdm
from torch.utils.data import DataLoader, IterableDataset

from pyrobnn.core import progress
from pyrobnn.core.progress import LineProgress, progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_file_gets_one_line_an_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    bar = progress_bar(total=3, unit="epoch")
    for value in range(3):
        bar.set_postfix_str(f"loss {value}")
        bar.update()
    bar.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"epoch {n + 1}/3 (0 s): loss {n}" for n in range(3)]


def test_a_long_run_gets_a_hundred_lines_with_the_first_and_the_last(capsys: pytest.CaptureFixture[str]) -> None:
    list(progress_bar(range(10_050), unit="draw", title="HMC"))
    lines = capsys.readouterr().err.splitlines()
    assert 90 <= len(lines) <= 102
    assert lines[0].startswith("HMC: draw 1/10050 ")
    assert lines[-1].startswith("HMC: draw 10050/10050 ")


def test_a_resumed_run_counts_on(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(total=10, initial=8, unit="epoch") as bar:
        bar.set_postfix({"critic": "0.1"})
        bar.update(2)
    assert capsys.readouterr().err.startswith("epoch 10/10 (0 s): critic=0.1")


def test_without_a_known_end_there_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 1000, 4))  # seconds
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    assert list(progress_bar(iter("abcdefg"), unit="batch")) == list("abcdefg")
    assert [line.split(" (")[0] for line in capsys.readouterr().err.splitlines()] == ["batch 3", "batch 6"]


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    bar = progress_bar(total=3, unit="epoch")
    bar.update()
    bar.close()
    assert isinstance(bar, tqdm.tqdm)
    assert "\r" in sys.stderr.getvalue()  # type: ignore[attr-defined]


def test_a_notebook_gets_a_bar_without_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without ipywidgets, for which tqdm.auto warns, it is the bar of a terminal."""

    class ZMQInteractiveShell:
        """What a kernel's shell is called."""

    module = types.ModuleType("IPython")
    module.get_ipython = ZMQInteractiveShell  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", module)
    monkeypatch.setattr(progress.importlib.util, "find_spec", lambda name: None)
    bar = progress_bar(total=3)
    bar.close()
    assert type(bar) is tqdm.tqdm


def test_nothing_is_shown_where_it_is_not_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress_bar([1, 2], shown=False)) == [1, 2]
    assert not isinstance(progress_bar(total=3, shown=False), LineProgress)
    assert capsys.readouterr().err == ""


def test_a_stream_has_no_length() -> None:
    """A DataLoader has the method, which raises for streams."""

    class Stream(IterableDataset[int]):
        def __iter__(self) -> Iterator[int]:
            yield from range(3)

    loader = DataLoader(Stream(), batch_size=None)
    assert list(progress_bar(loader, shown=False)) == list(progress_bar(loader)) == [0, 1, 2]
