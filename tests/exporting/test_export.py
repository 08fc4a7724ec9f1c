"""Programs that run where this library is not, beside what predict computes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pyrobnn as pb
from tests.exporting.networks import Tagger, classifier, laplace, regression, rows, tokens

BATCHES = (1, 3, 17)

TORCH = """
import sys
sys.modules["pyrobnn"] = sys.modules["pyro"] = None
import numpy, torch
program = torch.export.load(sys.argv[1]).module()
found = {}
for size in (1, 3, 17):
    with torch.no_grad():
        for index, value in enumerate(program(torch.from_numpy(numpy.load(f"{sys.argv[2]}/x{size}.npy")))):
            found[f"{size}_{index}"] = value.numpy()
numpy.savez(f"{sys.argv[2]}/found.npz", **found)
"""
ONNX = """
import sys
sys.modules["pyrobnn"] = sys.modules["pyro"] = sys.modules["torch"] = None
import numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
found = {}
for size in (1, 3, 17):
    for index, value in enumerate(session.run(None, {"x": numpy.load(f"{sys.argv[2]}/x{size}.npy")})):
        found[f"{size}_{index}"] = value
numpy.savez(f"{sys.argv[2]}/found.npz", **found)
"""


def alone(script: str, path: Path, folder: Path) -> dict[str, Any]:
    """The outputs of a program in a process that cannot import this library."""
    for size in BATCHES:
        np.save(folder / f"x{size}.npy", rows(size, seed=size).numpy())
    command = [sys.executable, "-c", script, str(path), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    return dict(np.load(folder / "found.npz"))


def outputs(prediction: pb.Prediction) -> list[Tensor]:
    return [prediction.mean, prediction.total, prediction.aleatoric, prediction.epistemic]


def test_torch_runs_a_classifier_in_a_process_of_its_own(tmp_path: Path) -> None:
    model, guide = classifier()
    exported = pb.export(model, guide, rows(4), tmp_path / "a.pt2", num_samples=5, seed=3)
    found = alone(TORCH, exported.path, tmp_path)
    for size in BATCHES:
        expected = outputs(pb.predict(model, guide, rows(size, seed=size), num_samples=5, seed=3))
        for index, value in enumerate(expected):
            np.testing.assert_allclose(found[f"{size}_{index}"], value.numpy(), rtol=0, atol=1e-5)
    assert float(expected[3].min()) > 1e-3  # draws disagree, so that equality says something
    assert exported.outputs == ("mean", "total", "aleatoric", "epistemic")
    assert exported.num_bytes == exported.path.stat().st_size
    assert max(exported.errors.values()) < 1e-5
    assert str(exported).startswith(f"{exported.path}: torch, 5 draws in float32")


def test_onnxruntime_runs_a_regression_in_a_process_of_its_own(tmp_path: Path) -> None:
    """In the units of the data, with quantiles; the noise is a site with draws of its own."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"needs the package {package}")
    model, guide = regression()
    scaler = pb.Standardizer(3.0 * rows(20) + 1.0, 5.0 * rows(20, 1) - 2.0)
    levels = (0.05, 0.5, 0.975)
    exported = pb.export(
        *(model, guide, rows(4), tmp_path / "a.onnx"),
        num_samples=5,
        format="onnx",
        quantiles=levels,
        scaler=scaler,
        seed=3,
    )
    found = alone(ONNX, exported.path, tmp_path)
    for size in BATCHES:
        x = scaler.inputs(rows(size, seed=size))
        prediction = scaler.undo(pb.predict(model, guide, x, num_samples=5, seed=3))
        for index, value in enumerate([*outputs(prediction), prediction.quantile(levels)]):
            np.testing.assert_allclose(found[f"{size}_{index}"], value.numpy(), rtol=1e-5, atol=1e-5)
    import onnx

    written = onnx.load(exported.path)
    assert [entry.name for entry in written.graph.output] == list(exported.outputs)
    assert written.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    (kept,) = [entry.value for entry in written.metadata_props if entry.key == "pyrobnn"]
    assert json.loads(kept) == json.loads(json.dumps(exported.metadata()))


def run(path: Path, x: Any) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return tuple(torch.export.load(path).module()(x))


def test_members_with_batch_statistics_of_their_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv1d(1, 2, 3), nn.BatchNorm1d(2), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(4, 3)
    )
    model = pb.SupervisedModel(net, pb.likelihoods.Categorical(), num_data=8)
    guide = pb.guides.DeltaMixture(model, num_members=2)
    x = rows(8).unsqueeze(1)
    pb.fit(model, guide, [(x, torch.arange(8) % 3)], epochs=2, lr=0.1, progress=False)
    exported = pb.export(model, guide, x, tmp_path / "a.pt2", num_samples=2)
    other = rows(3, seed=5).unsqueeze(1)
    expected = pb.predict(model, guide, other, num_samples=2, seed=exported.seed)
    torch.testing.assert_close(run(exported.path, other), tuple(outputs(expected)), rtol=0, atol=1e-5)
    assert float(expected.epistemic.max()) > 1e-3


def test_what_draws_share_is_computed_once(tmp_path: Path) -> None:
    """A last layer has draws; the layer before it is one product, though draws run one after another."""
    model, guide = laplace(pb.likelihoods.Categorical(), torch.arange(20) % 3, 3, "last_layer")
    exported = pb.export(model, guide, rows(4), tmp_path / "a.pt2", num_samples=4, method="loop")
    graph = torch.export.load(exported.path).graph
    products = [node for node in graph.nodes if node.target is torch.ops.aten.linear.default]
    assert len(products) == 1 + 4
    assert exported.errors["epistemic"] < 1e-5


def test_the_linearized_network_in_closed_form_and_under_draws(tmp_path: Path) -> None:
    found = laplace(pb.likelihoods.Normal(0.3), rows(20, 1), 1, "kronecker")
    exported = pb.export(*found, rows(4), tmp_path / "a.pt2", num_samples=3, quantiles=(0.1,))
    x = rows(7, seed=5)
    expected = pb.predict(*found, x)  # no draws are needed
    values = (*outputs(expected), expected.quantile([0.1]))
    torch.testing.assert_close(run(exported.path, x), values, rtol=1e-4, atol=1e-5)
    assert float(expected.epistemic.min()) > 1e-3
    found = laplace(pb.likelihoods.Categorical(), torch.arange(20) % 3, 3, "full")
    exported = pb.export(*found, rows(4), tmp_path / "b.pt2", num_samples=3)
    expected = pb.predict(*found, x, num_samples=3, seed=exported.seed)
    torch.testing.assert_close(run(exported.path, x), tuple(outputs(expected)), rtol=0, atol=1e-5)


def test_a_transformer_takes_its_inputs_by_name(tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"needs the package {package}")
    import onnxruntime

    model = pb.SupervisedModel(Tagger(), pb.likelihoods.Categorical(), num_data=20)
    guide = pb.guides.MeanField(model, init_scale=0.1)
    options: dict[str, Any] = {"num_samples": 2, "format": "onnx", "dynamic_dims": (0, 1), "method": "vmap"}
    exported = pb.export(model, guide, tokens(4), tmp_path / "a.onnx", **options)
    x = tokens(3, length=9)
    session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
    found = session.run(["mean"], {name: value.numpy() for name, value in x.items()})[0]
    expected = pb.predict(model, guide, x, num_samples=2, seed=exported.seed).mean
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-5)


def test_the_mean_in_whole_numbers_says_its_error(tmp_path: Path) -> None:
    model, guide = classifier()
    exported = pb.export(model, guide, rows(9), tmp_path / "a.pt2", predictor="mean", precision="int8")
    assert exported.num_samples == 1
    mean, total, aleatoric, epistemic = run(exported.path, rows(9))
    torch.testing.assert_close(total, aleatoric)
    assert float(epistemic.abs().max()) < 1e-6
    point = {name: value.detach().unsqueeze(0) for name, value in guide.starting_point().items()}
    error = (mean - pb.predict(model, point, rows(9), 1).mean).abs().max()
    assert exported.errors["mean"] == pytest.approx(float(error), rel=1e-3)
    assert 1e-5 < exported.errors["mean"] < 0.05
