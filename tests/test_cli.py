"""The command line: exit codes, one-line errors, and JSON that is nothing but JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib
import pytest
import torch

import pyrobnn as pb
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


# ------------------------------------------------------------------------------------------------ pyrobnn report

MODULE = """
import torch
from torch.utils.data import DataLoader, TensorDataset

def net():
    return torch.nn.Linear(3, 2)

def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 3, generator=generator)
    test = DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), 10)
    far = DataLoader(TensorDataset(10 + x, torch.zeros(30)), 10)
    return {"train": test, "test": test, "ood": {"far": far}, "num_bootstrap": 20}

def nothing():
    return {"train": []}

number = 3
"""


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint beside a module that has its network and data."""
    (tmp_path / "own_project.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "own_project", raising=False)
    torch.manual_seed(0)
    model = pb.SupervisedModel(torch.nn.Linear(3, 2), pb.likelihoods.Categorical(), num_data=30)
    pb.save(tmp_path / "checkpoint", model, pb.guides.MeanField(model))
    return tmp_path


def test_a_report_of_a_checkpoint(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["report", "checkpoint", "--net", "own_project:net", "--data", "own_project:data", "--samples", "5"]
    assert main([*arguments, "--output", "pages/own.html", "--title", "Own data"]) == 0
    printed = capsys.readouterr().out
    assert "accuracy" in printed and "Written: pages/own.html" in printed
    page = (saved / "pages" / "own.html").read_text()
    assert "Own data" in page and "far" in page
    assert main([*arguments, "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["scores"]) >= {"accuracy"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"--net": "own_project"}, "--net: expected a function as package.module:function"),
        ({"--net": "own_project:missing"}, "--net: own_project:missing: module 'own_project' has no attribute"),
        ({"--net": "no_such_module:net"}, "--net: no_such_module:net: No module named"),
        ({"--net": "own_project:number"}, "--net: own_project:number is a int, no function"),
        ({"--net": "own_project:nothing"}, "--net: own_project:nothing must return the plain network, a torch module"),
        ({"--output": "."}, "--output: . is a directory; expected a file"),
        ({"--data": "own_project:nothing"}, "--data: own_project:nothing must return a mapping of loaders with 'test'"),
        ({"--data": "own_project:net"}, "--data: own_project:net must return a mapping"),
        ({"checkpoint": "nowhere"}, "CHECKPOINT: nowhere cannot be loaded"),
    ],
)
def test_mistakes_in_a_report_are_one_line(
    saved: Path, capsys: pytest.CaptureFixture[str], changed: dict[str, str], message: str
) -> None:
    given = {"checkpoint": "checkpoint", "--net": "own_project:net", "--data": "own_project:data"} | changed
    checkpoint = given.pop("checkpoint")
    assert main(["report", checkpoint, *[word for pair in given.items() for word in pair]]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


# ----------------------------------------------------------------------------------- pyrobnn describe, pyrobnn check


def test_a_checkpoint_is_described_without_its_network(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", "checkpoint"]) == 0
    printed = capsys.readouterr().out
    assert "net.weight" in printed and "posterior: MeanField" in printed and "fitted to 30 data" in printed
    assert main(["describe", "checkpoint", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["parameter"], row["posterior"], row["kl"]) for row in rows] == [
        ("weight", "MeanField", None),
        ("bias", "MeanField", None),
    ]


def test_with_its_network_a_checkpoint_is_described_as_by_describe(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["describe", "checkpoint", "--net", "own_project:net"]) == 0
    printed = capsys.readouterr().out
    assert printed == f"{pb.describe(*pb.load('checkpoint', net=torch.nn.Linear(3, 2)))}\n"
    assert "exact" in printed


def test_checks_of_a_checkpoint(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["check", "checkpoint", "--net", "own_project:net", "--data", "own_project:data", "--samples", "25"]
    code = main([*arguments, "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert {"check", "result", "value", "reason"} == set(rows[0])
    # The guide was not fitted, so it cannot be better than a constant.
    assert code == 1 and any(row["result"] == "fail" for row in rows)
    assert main([*arguments, "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == rows  # the seed fixes the draws
    assert main(arguments) == 1
    assert rows[0]["check"] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["describe", "nowhere"], "CHECKPOINT: nowhere cannot be read: path: nowhere is no pyrobnn checkpoint"),
        (["describe", "checkpoint", "--net", "own_project:missing"], "--net: own_project:missing"),
        (
            ["check", "checkpoint", "--net", "own_project:net", "--data", "own_project:net"],
            "--data: own_project:net must return a mapping of loaders with 'train' among them",
        ),
        (
            ["check", "checkpoint", "--net", "own_project:net", "--data", "own_project:data", "--samples", "3"],
            "num_samples: the checks need at least 25 draws, got 3",
        ),
    ],
)
def test_mistakes_in_describe_and_check_are_one_line(
    saved: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
