"""The command line: exit codes, one-line errors, and JSON that is nothing but JSON."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib
import pytest

from pyrobnn import __version__, demo
from pyrobnn.cli import main

ROW = {
    "method": "MAP",
    "accuracy": 0.99,
    "nll": 0.05,
    "ece": 0.02,
    "brier": 0.01,
    "auroc_mutual_information": None,
    "auroc_entropy": 0.98,
    "elbo": None,
    "step_ratio": 1.2,
    "seconds": 3.0,
}
METRICS = {"num_train": 1082, "num_test": 361, "num_unknown": 354, "epochs": 2, "seed": 3, "methods": [ROW]}


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, int, int]]:
    """Stands in for the demo itself and notes how it was called."""
    called: list[tuple[Path, int, int]] = []

    def run(output: Path, epochs: int, seed: int, progress: bool) -> dict[str, object]:
        called.append((output, epochs, seed))
        return METRICS

    monkeypatch.setattr(demo, "run", run)
    return called


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"pyrobnn {__version__}\n"


def test_without_a_command_it_prints_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "demo" in capsys.readouterr().out


def test_help_names_every_option_and_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["demo", "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for option in ("--output", "--epochs", "--seed", "--json", "demo-output"):
        assert option in text


def test_options_reach_the_demo(runs: list[tuple[Path, int, int]], tmp_path: Path) -> None:
    assert main(["demo", "--output", str(tmp_path), "--epochs", "2", "--seed", "3"]) == 0
    assert runs == [(tmp_path, 2, 3)]


def test_the_default_folder(runs: list[tuple[Path, int, int]]) -> None:
    assert main(["demo"]) == 0
    assert runs[0][0] == Path("demo-output")


def test_it_prints_the_table_and_the_files(
    runs: list[tuple[Path, int, int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["demo", "--output", str(tmp_path)])
    text = capsys.readouterr().out
    assert demo.format_table([ROW]) in text
    for name in demo.FILES:
        assert str(tmp_path / name) in text


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["--epochs", "0"], "--epochs"),
        (["--epochs", "-3"], "--epochs"),
        (["--epochs", "many"], "--epochs"),
        (["--epochs", "1.5"], "--epochs"),
        (["--seed", "-1"], "--seed"),
        (["--seed", str(2**32)], "--seed"),
        (["--speed", "9"], "--speed"),
    ],
)
def test_wrong_arguments_give_one_line_and_code_2(
    arguments: list[str], option: str, runs: list[tuple[Path, int, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["demo", *arguments])
    out, err = capsys.readouterr()
    assert stopped.value.code == 2
    assert out == ""
    assert len(err.splitlines()) == 1
    assert option in err
    assert runs == []


def test_an_output_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    assert main(["demo", "--output", str(tmp_path / "file")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert f"{tmp_path / 'file'}: expected a folder" in err
    assert (tmp_path / "file").read_text() == "mine"


def test_an_output_below_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["demo", "--output", str(tmp_path / "file" / "out")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_an_interruption_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run", interrupt)
    assert main(["demo", "--output", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "pyrobnn demo: interrupted\n"


def test_figures_need_no_screen(runs: list[tuple[Path, int, int]]) -> None:
    main(["demo"])
    assert matplotlib.get_backend().lower() == "agg"


def test_json_is_all_that_a_real_run_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--json", "--epochs", "1", "--output", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "metrics.json").read_text())
