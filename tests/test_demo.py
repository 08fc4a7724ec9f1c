"""The demo: what it leaves behind, that its numbers are sane, and that the seed determines them."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import arviz as az
import pytest
import torch

from pyrobnn import demo
from pyrobnn.checkpoint import load
from pyrobnn.demo.methods import fit_method
from pyrobnn.guides import MAP, SWAG, Composite, Laplace, LowRankNormal, MeanField
from pyrobnn.prediction import predict
from pyrobnn.training import History

EPOCHS = 3
NAMES = [
    "MAP",
    "mean field",
    "last-layer low rank",
    "last-layer Laplace",
    "SWAG",
    "MC dropout",
    "deep ensemble of 5",
]


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
    known = sum(torch.bincount(labels) for _, labels in (data.train, data.validation, data.test))
    assert isinstance(known, torch.Tensor)
    assert known.tolist() == [178, 182, 177, 183, 181, 182, 181, 179]
    assert data.train[0].mean().abs() < 1e-5
    assert data.train[0].std() == pytest.approx(1.0, abs=1e-5)


def test_no_image_is_in_two_parts() -> None:
    data = demo.load_digits(seed=0)
    train, validation, test = (
        {tuple(image.flatten().tolist()) for image in images} for images, _ in (data.train, data.validation, data.test)
    )
    assert not train & test
    assert not train & validation
    assert not validation & test


def test_the_seed_chooses_the_split() -> None:
    first, again, other = (demo.load_digits(seed).test[1] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_every_method_has_a_row_of_sane_metrics(metrics: dict[str, Any]) -> None:
    assert [row["method"] for row in metrics["methods"]] == NAMES
    assert [method.name for method in demo.METHODS] == NAMES
    for row in metrics["methods"]:
        # After 3 of 50 epochs; chance is 1/8.
        assert row["accuracy"] > 0.75
        assert 0 < row["nll"] < torch.tensor(8.0).log()
        assert 0 <= row["ece"] < 0.6  # the low-rank row, with its small steps, has hardly begun
        assert 0 < row["brier"] < 0.875  # what the uniform prediction gets
        assert row["auroc_entropy"] > 0.75
        assert row["step_ratio"] > 0
        assert row["seconds"] > 0


def test_a_point_estimate_has_neither_mutual_information_nor_elbo(metrics: dict[str, Any]) -> None:
    rows = {row["method"]: row for row in metrics["methods"]}
    assert rows["MAP"]["auroc_mutual_information"] is None
    assert 0 <= rows["last-layer low rank"]["auroc_mutual_information"] <= 1  # with its small steps it has hardly begun
    assert all(
        rows[name]["auroc_mutual_information"] > 0.6 for name in NAMES if name not in ("MAP", "last-layer low rank")
    )
    assert rows["mean field"]["elbo"] < 0
    assert all(row["elbo"] is None for name, row in rows.items() if name != "mean field")  # they are points in part


def test_all_files_are_written(output: Path, metrics: dict[str, Any]) -> None:
    assert sorted(path.name for path in output.iterdir()) == sorted(demo.FILES)
    assert json.loads((output / "metrics.json").read_text()) == metrics


def test_the_report_has_every_part_and_needs_nothing_else(output: Path, metrics: dict[str, Any]) -> None:
    page = (output / "report.html").read_text()
    for part in (
        "Reliability",
        "Confidence",
        "Most certain",
        "Least certain",
        "epistemic",
        "ELBO",
        "net.readout.weight",
    ):
        assert part in page
    assert "k-hat" in page
    assert all(name in page for name in NAMES)
    # A panel for each method of reliability and of confidence, 16 images, three uncertainties, one training.
    assert page.count("<img ") == 2 * len(NAMES) + 16 + 3 + 1
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
    rows = {row["method"]: row for row in metrics["methods"]}
    assert accuracy == pytest.approx(rows["mean field"]["accuracy"], abs=1e-6)


def test_the_seed_determines_all_but_the_timings(
    metrics: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("pyrobnn.demo.run")  # what takes time there and makes no metric but timings
    monkeypatch.setattr(module, "step_ratios", lambda *args: dict.fromkeys(NAMES, 1.0))
    monkeypatch.setattr(module, "check", lambda *args, **kwargs: None)
    monkeypatch.setattr(module, "write_report", lambda *args: None)
    (tmp_path / "notes.txt").write_text("mine")
    torch.manual_seed(1)  # the state before does not matter
    again = demo.run(tmp_path, epochs=EPOCHS, seed=0)
    assert without_timings(again) == without_timings(metrics)
    assert without_timings(json.loads((tmp_path / "metrics.json").read_text())) == without_timings(metrics)
    assert (tmp_path / "notes.txt").read_text() == "mine"  # other files are left alone


def test_the_table_shows_a_dash_where_there_is_no_value(metrics: dict[str, Any]) -> None:
    header, _, *rows = demo.format_table(metrics["methods"]).splitlines()
    assert header.split("  ")[0] == "method"
    assert [row.split("  ")[0] for row in rows] == NAMES
    assert "–" in rows[0]
    assert not any("–" in row for row in rows[1:])
    assert f"{metrics['methods'][0]['accuracy']:.3f}" in rows[0]


def test_a_step_costs_a_multiple_of_the_plain_one() -> None:
    ratios = demo.step_ratios(demo.METHODS, demo.load_digits(), rounds=3)
    assert list(ratios) == NAMES
    assert all(ratio > 0 for ratio in ratios.values())


@pytest.fixture(scope="module")
def results() -> dict[str, demo.Result]:
    """The methods that have more to do than training, after the shortest of trainings."""
    data = demo.load_digits(seed=0)
    chosen = [method for method in demo.METHODS if method.name in ("last-layer Laplace", "SWAG")]
    return {method.name: fit_method(method, data, epochs=1, seed=0) for method in chosen}


def test_laplace_takes_the_curvature_where_training_ended(results: dict[str, demo.Result]) -> None:
    guide = results["last-layer Laplace"].guide
    assert isinstance(guide, Laplace)
    assert bool(guide.fitted)
    assert torch.equal(guide.mean, guide.flat_loc)
    assert guide.covered == ["net.readout.weight", "net.readout.bias"]


def test_swag_collects_even_after_the_shortest_training(results: dict[str, demo.Result]) -> None:
    guide = results["SWAG"].guide
    assert isinstance(guide, SWAG)
    assert int(guide.num_collected) == 2
    assert results["SWAG"].history.epochs == 1  # of the training before


def test_low_rank_is_for_the_readout_and_a_point_for_the_rest() -> None:
    method = next(method for method in demo.METHODS if method.name == "last-layer low rank")
    guide = method.make_guide(demo.make_model(num_data=8))
    assert isinstance(guide, Composite)
    assert isinstance(guide.part("net.readout.weight"), LowRankNormal)
    assert guide.part("net.readout.weight") is guide.part("net.readout.bias")
    assert isinstance(guide.part("net.conv1.weight"), MAP)


@pytest.mark.parametrize(("epochs", "seed", "name"), [(0, 0, "epochs"), (1, -1, "seed"), (1, 2**32, "seed")])
def test_wrong_arguments_are_refused_by_name(tmp_path: Path, epochs: int, seed: int, name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        demo.run(tmp_path / "out", epochs=epochs, seed=seed)
    assert not (tmp_path / "out").exists()


def test_an_interruption_ends_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrobnn.demo.methods.fit", lambda *args, **kwargs: History(stopped="interrupted"))
    with pytest.raises(KeyboardInterrupt):
        demo.run(tmp_path, epochs=1)


def test_an_interruption_of_what_follows_the_training_ends_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    histories = iter([History(stopped="epochs"), History(stopped="interrupted")])
    monkeypatch.setattr("pyrobnn.demo.methods.fit", lambda *args, **kwargs: next(histories))
    swag = next(method for method in demo.METHODS if method.name == "SWAG")
    with pytest.raises(KeyboardInterrupt):
        fit_method(swag, demo.load_digits(), epochs=1, seed=0)
    assert not list(histories)


def test_a_file_as_output_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        demo.run(tmp_path / "file", epochs=10**6)
