"""The demo: what it leaves behind, that its numbers are sane, and that the seed determines them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import arviz as az
import pytest
import torch

from pyrobnn import demo
from pyrobnn.checkpoint import load
from pyrobnn.guides import MeanField
from pyrobnn.prediction import predict
from pyrobnn.training import History

EPOCHS = 3


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "new" / "folder"


@pytest.fixture(scope="module")
def metrics(output: Path) -> dict[str, Any]:
    return demo.run(output, epochs=EPOCHS, seed=0)


def without_timings(metrics: dict[str, Any]) -> dict[str, Any]:
    rows = [{k: v for k, v in row.items() if k not in demo.TIMINGS} for row in metrics["methods"]]
    return metrics | {"methods": rows}


def test_the_split_holds_out_eight_and_nine() -> None:
    data = demo.load_digits(seed=3)
    # 178, 182, 177, 183, 181, 182, 181, 179 images of 0 to 7; 174 and 180 of 8 and 9 (UCI's own counts).
    assert torch.bincount(data.unknown[1]).tolist() == [0] * 8 + [174, 180]
    known = torch.bincount(data.train[1]) + torch.bincount(data.test[1])
    assert known.tolist() == [178, 182, 177, 183, 181, 182, 181, 179]
    assert data.train[0].mean().abs() < 1e-5
    assert data.train[0].std() == pytest.approx(1.0, abs=1e-5)


def test_no_image_is_in_both_parts() -> None:
    data = demo.load_digits(seed=0)
    train = {tuple(image.flatten().tolist()) for image in data.train[0]}
    test = {tuple(image.flatten().tolist()) for image in data.test[0]}
    assert not train & test


def test_the_seed_chooses_the_split() -> None:
    first, again, other = (demo.load_digits(seed).test[1] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_every_method_has_a_row_of_sane_metrics(metrics: dict[str, Any]) -> None:
    assert [row["method"] for row in metrics["methods"]] == [method.name for method in demo.METHODS]
    for row in metrics["methods"]:
        # After 3 of 50 epochs; chance is 1/8.
        assert row["accuracy"] > 0.75
        assert 0 < row["nll"] < torch.tensor(8.0).log()
        assert 0 <= row["ece"] < 0.5
        assert 0 < row["brier"] < 0.875  # what the uniform prediction gets
        assert row["auroc_entropy"] > 0.75
        assert row["step_ratio"] > 0
        assert row["seconds"] > 0


def test_a_point_estimate_has_neither_mutual_information_nor_elbo(metrics: dict[str, Any]) -> None:
    rows = {row["method"]: row for row in metrics["methods"]}
    assert rows["MAP"]["auroc_mutual_information"] is None
    assert rows["MAP"]["elbo"] is None
    assert rows["mean field"]["auroc_mutual_information"] > 0.6
    assert rows["mean field"]["elbo"] < 0


def test_all_files_are_written(output: Path, metrics: dict[str, Any]) -> None:
    assert sorted(path.name for path in output.iterdir()) == sorted(demo.FILES)
    assert json.loads((output / "metrics.json").read_text()) == metrics


def test_the_report_has_every_part_and_needs_nothing_else(output: Path, metrics: dict[str, Any]) -> None:
    page = (output / "report.html").read_text()
    for part in ("reliability diagram", "Most certain", "Least certain", "epistemic", "ELBO", "net.readout.weight"):
        assert part in page
    assert "k-hat" in page
    # Per method one figure of calibration; two of images, one of uncertainties, one of training.
    assert page.count("<img ") == len(demo.METHODS) + 4
    assert "http" not in page.replace("http-equiv", "")


def test_the_posterior_is_small_and_ready_for_leave_one_out(output: Path, metrics: dict[str, Any]) -> None:
    path = output / "posterior.nc"
    assert path.stat().st_size < 20e6
    data = az.from_netcdf(str(path))
    assert set(data.posterior.data_vars) == {"net.readout.weight", "net.readout.bias"}
    assert data.log_likelihood["y"].shape == (1, 100, metrics["num_train"])


def test_the_checkpoint_gives_back_the_predictions(output: Path, metrics: dict[str, Any]) -> None:
    model, guide = load(output / "checkpoint", net=demo.network())
    assert isinstance(guide, MeanField)
    data = demo.load_digits(metrics["seed"])
    probs = predict(model, guide, data.test[0], 100, seed=metrics["seed"]).mean
    accuracy = (probs.argmax(-1) == data.test[1]).float().mean().item()
    assert accuracy == pytest.approx(metrics["methods"][-1]["accuracy"], abs=1e-6)


def test_the_seed_determines_all_but_the_timings(metrics: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    torch.manual_seed(1)  # the state before does not matter
    again = demo.run(tmp_path, epochs=EPOCHS, seed=0)
    assert without_timings(again) == without_timings(metrics)
    assert without_timings(json.loads((tmp_path / "metrics.json").read_text())) == without_timings(metrics)
    assert (tmp_path / "notes.txt").read_text() == "mine"  # other files are left alone


def test_the_table_shows_a_dash_where_there_is_no_value(metrics: dict[str, Any]) -> None:
    header, _, *rows = demo.format_table(metrics["methods"]).splitlines()
    assert header.split("  ")[0] == "method"
    assert [row.split("  ")[0] for row in rows] == ["MAP", "mean field"]
    assert "–" in rows[0]
    assert "–" not in rows[1]
    assert f"{metrics['methods'][0]['accuracy']:.3f}" in rows[0]


def test_a_step_costs_a_multiple_of_the_plain_one() -> None:
    ratios = demo.step_ratios(demo.METHODS, demo.load_digits(), rounds=3)
    assert set(ratios) == {"MAP", "mean field"}
    assert all(ratio > 0 for ratio in ratios.values())


@pytest.mark.parametrize(("epochs", "seed", "name"), [(0, 0, "epochs"), (1, -1, "seed"), (1, 2**32, "seed")])
def test_wrong_arguments_are_refused_by_name(tmp_path: Path, epochs: int, seed: int, name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        demo.run(tmp_path / "out", epochs=epochs, seed=seed)
    assert not (tmp_path / "out").exists()


def test_an_interruption_ends_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrobnn.demo.methods.fit", lambda *args, **kwargs: History(stopped="interrupted"))
    with pytest.raises(KeyboardInterrupt):
        demo.run(tmp_path, epochs=1)


def test_a_file_as_output_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        demo.run(tmp_path / "file", epochs=10**6)
