"""ONNX: ``onnxruntime.InferenceSession(path).run(None, {"x": array})``."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from pyrobnn.core.extras import import_extra
from pyrobnn.core.trees import leaves
from pyrobnn.exporting.errors import ExportError, operator_in

__all__ = ["import_onnx", "run_onnx", "write_onnx"]

_LARGEST = 2**31 - 2**20  # bytes of a message of protobuf


def import_onnx() -> None:
    """Refuses to begin where a package that ONNX needs is not installed.

    Raises:
        ImportError: If one is not.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        import_extra("export", package, "export")


def write_onnx(
    graph: ExportedProgram, path: Path, metadata: dict[str, Any], inputs: tuple[str, ...], outputs: tuple[str, ...]
) -> None:
    """Writes a graph, with what is known of it under the key ``pyrobnn`` of the metadata.

    Raises:
        ExportError: If ONNX has no operator for one of torch's, which the message names.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of packages about each other
            made: Any = torch.onnx.export(graph, dynamo=True, verbose=False)
    except Exception as error:
        raise ExportError(
            f"format: ONNX has no form of the operator {operator_in(error) or 'that torch could not translate'} "
            f"({type(error).__name__}); format='torch' takes all of torch's operators."
        ) from error
    made.model.metadata_props["pyrobnn"] = json.dumps(metadata)
    _name(made.model, inputs, outputs)
    made.save(str(path), external_data=sum(value.nbytes for value in graph.state_dict.values()) > _LARGEST)


def run_onnx(path: Path, x: Any) -> tuple[Tensor, ...]:
    """The outputs of the program in a file, by one thread of onnxruntime on the CPU."""
    runtime: Any = import_extra("export", "onnxruntime", "export")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(
            f"format: onnxruntime has no implementation of an operator of the program ({str(error)[:200]}); "
            "format='torch' takes all of torch's operators."
        ) from error
    tensors = [leaf for leaf in leaves(x) if isinstance(leaf, Tensor)]
    given = {entry.name: value.numpy() for entry, value in zip(session.get_inputs(), tensors, strict=True)}
    return tuple(torch.as_tensor(value) for value in session.run(None, given))


def _name(model: Any, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
    """Names inputs, outputs and the open first dimension, where torch made up names."""
    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    taken = {*inputs, *outputs}
    for index, value in enumerate([*values, *model.graph.initializers.values()]):
        if value.name in taken:
            value.name = f"{value.name}_{index}_inner"
    for value, name in zip([*model.graph.inputs, *model.graph.outputs], [*inputs, *outputs], strict=True):
        value.name = name
    batch = next((str(value.shape[0]) for value in model.graph.inputs if _is_open(value, 0)), None)
    for value in values:
        for dim in range(0 if value.shape is None else len(value.shape)):
            if _is_open(value, dim) and str(value.shape[dim]) == batch:
                value.shape[dim] = "batch"


def _is_open(value: Any, dim: int) -> bool:
    return bool(value.shape) and not isinstance(value.shape[dim], int)
