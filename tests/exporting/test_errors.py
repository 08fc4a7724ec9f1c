"""What cannot be exported is named."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.exporting.errors import operator_in
from tests.exporting.networks import classifier, perceptron, rows


class Choosy(nn.Module):
    """Decides by a value."""

    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.sum()) > 0 else -x


class Fixed(nn.Module):
    """Knows a size of batches."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x.tolist()), -1)


class Noisy(nn.Module):
    """Draws numbers in evaluation mode."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


def built(layer: nn.Module) -> tuple[pb.SupervisedModel, pb.guides.MAP]:
    model = pb.SupervisedModel(nn.Sequential(layer, perceptron(3)), pb.likelihoods.Categorical(), num_data=20)
    return model, pb.guides.MAP(model)


def test_a_decision_by_values_is_named_by_its_module(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(pb.ExportError, match=r"^model: torch cannot export the module '0' \(Choosy\)"):
        pb.export(*built(Choosy()), rows(4), tmp_path / "a.pt2")
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")  # torch prints its graph
    pb.predict(*classifier(), rows(4))  # torch was left as it was


def test_a_network_that_is_random_is_refused(tmp_path: Path) -> None:
    with pytest.raises(pb.ExportError, match=r"^model: mean of the program differs by .* draws random numbers"):
        pb.export(*built(Noisy()), rows(4), tmp_path / "a.pt2")


def test_an_operator_without_a_form_in_onnx_is_named(tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"needs the package {package}")
    model = pb.SupervisedModel(perceptron(3), pb.likelihoods.Dirichlet(), num_data=20)
    with pytest.raises(pb.ExportError, match=r"^format: ONNX has no form of the operator \w+\.digamma"):
        pb.export(model, pb.guides.MAP(model), rows(4), tmp_path / "a.onnx", format="onnx")


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"model": nn.Linear(6, 3)}, TypeError, r"^model: expected a SupervisedModel"),
        ({"guide": 3}, TypeError, r"^guide: "),
        ({"example": rows(4).numpy()}, TypeError, r"^example: "),
        ({"example": rows(0)}, ValueError, r"^example: it holds no rows"),
        ({"path": "a.pth"}, ValueError, r"^path: expected a file \.pt2"),
        ({"path": "no/such/folder/a.pt2"}, ValueError, r"^path: there is no directory"),
        ({"format": "tflite"}, ValueError, r"^format: expected 'torch' or 'onnx'"),
        ({"num_samples": 0}, ValueError, r"^num_samples: "),
        ({"predictor": "gaussian_process"}, ValueError, r"^predictor: expected 'weights'"),
        ({"predictor": "linearized"}, TypeError, r"^guide: MeanField declares no linearization"),
        ({"quantiles": [1.5]}, ValueError, r"^quantiles: expected a probability"),
        ({"quantiles": 0.5}, TypeError, r"^quantiles: expected a list"),
        ({"precision": "int4"}, ValueError, r"^precision: expected 'float32'"),
        ({"method": "map"}, ValueError, r"^method: expected 'auto'"),
        ({"scaler": 2.0}, TypeError, r"^scaler: expected a pyrobnn.Standardizer"),
        ({"dynamic_dims": [-1]}, ValueError, r"^dynamic_dims: "),
    ],
)
def test_bad_arguments(change: dict[str, Any], kind: type[Exception], message: str, tmp_path: Path) -> None:
    model, guide = classifier()
    arguments = {"model": model, "guide": guide, "example": rows(4), "path": tmp_path / "a.pt2", **change}
    with pytest.raises(kind, match=message):
        pb.export(**arguments)


def test_quantiles_of_classes_and_means_of_members_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"quantiles: they are defined for real-valued targets"):
        pb.export(*classifier(), rows(4), tmp_path / "a.pt2", 2, quantiles=[0.5])
    model, _ = classifier()
    with pytest.raises(pb.ExportError, match=r"^predictor: DeltaMixture has several points"):
        pb.export(model, pb.guides.DeltaMixture(model), rows(4), tmp_path / "a.pt2", predictor="mean")
    with pytest.raises(TypeError, match=r"^predictor: 'mean' needs a guide"):
        pb.export(model, classifier()[1].sample(2), rows(4), tmp_path / "a.pt2", predictor="mean")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"^export: it needs the package onnxscript.*'pyrobnn\[export\]'"):
        pb.export(*classifier(), rows(4), tmp_path / "a.onnx", format="onnx")


def test_operators_are_found_in_causes() -> None:
    error = RuntimeError("failed")
    error.__cause__ = ValueError("no rule for <OpOverload(op='aten.digamma', overload='default')>")
    assert operator_in(error) == "aten.digamma"
    assert operator_in(RuntimeError("aten::sort.stable has no kernel")) == "aten.sort.stable"
    assert operator_in(RuntimeError("other")) is None
