"""export(): one file with a program from inputs to the posterior predictive, which needs this library no more."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from pyrobnn.core import random_state
from pyrobnn.core.arguments import check_int, check_probability
from pyrobnn.core.explanations import explained
from pyrobnn.core.files import check_path
from pyrobnn.core.finite import check_inputs
from pyrobnn.core.trees import is_empty, leaves, map_leaves, refuse_arrays
from pyrobnn.exporting.checking import check_differences, doubled, largest_differences, reference_outputs
from pyrobnn.exporting.errors import ExportError
from pyrobnn.exporting.linearized import LinearizedProgram
from pyrobnn.exporting.onnx_format import import_onnx, run_onnx, write_onnx
from pyrobnn.exporting.pinned import pinned_weights
from pyrobnn.exporting.program import DrawsProgram, Program, RunMethod, default_method
from pyrobnn.exporting.result import Exported
from pyrobnn.exporting.torch_format import run_torch, write_torch
from pyrobnn.exporting.tracing import input_names, traced
from pyrobnn.exporting.weights import Precision
from pyrobnn.guides.base import Guide
from pyrobnn.model.bayesianize import evaluating
from pyrobnn.model.draws import Draws
from pyrobnn.model.standardization import Standardizer
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.prediction.draws import check_posterior
from pyrobnn.prediction.linearized import LinearizedPredictor
from pyrobnn.prediction.predictor import Predictor, PredictorOptions, WeightsPredictor

__all__ = ["export"]

_SUFFIXES = {"torch": ".pt2", "onnx": ".onnx"}


@explained
def export(
    model: nn.Module,
    guide: Any,
    example: Any,
    path: str | Path,
    num_samples: int = 30,
    *,
    format: Literal["torch", "onnx"] = "torch",
    predictor: Literal["weights", "linearized", "mean"] | None = None,
    quantiles: Sequence[float] = (),
    scaler: Standardizer | None = None,
    precision: Precision = "float32",
    method: RunMethod = "auto",
    dynamic_dims: Sequence[int] = (0,),
    seed: int | None = None,
    max_bytes: int = 256 * 2**20,
) -> Exported:
    """Writes the posterior predictive as one program, for machines that have torch or onnxruntime alone.

    The program takes what :func:`pyrobnn.predict` takes and returns ``(mean, total, aleatoric, epistemic)``, and
    ``quantiles`` if there are any. It runs the network under K pinned draws, in evaluation mode::

        exported = pb.export(model, guide, x[:8], "digits.onnx", num_samples=10, format="onnx")

        import onnxruntime  # elsewhere
        session = onnxruntime.InferenceSession("digits.onnx")
        mean, total, aleatoric, epistemic = session.run(None, {"x": x})

    After it is written, the program is read back and compared with ``predict`` on the example.

    Args:
        model: The model.
        guide: The posterior: a guide, or draws ``{site: [K, *site shape]}``.
        example: A batch of inputs, as for ``predict``: a tensor, or a tuple or dict of tensors. Errors are measured on
            it, so that many typical rows say more.
        path: The file, which ends with ``.pt2`` or ``.onnx``.
        num_samples: Number K of draws. The file holds K times the weights that differ between draws.
        format: ``"torch"``: ``torch.export.load(path).module()(x)``. ``"onnx"``: any runtime of ONNX; the tensors of a
            dict are its inputs by name, a single one is ``"x"``, those of a tuple ``"x_0"``, ``"x_1"`` … (extra
            ``export``).
        predictor: ``"weights"``, ``"linearized"`` (a :class:`~pyrobnn.guides.Laplace`) or ``"mean"``, the network at
            the guide's mean, with no epistemic part. None takes what ``predict`` takes.
        quantiles: Levels of quantiles of real-valued targets, computed from the mixture over draws ``[Q, N, …]``.
        scaler: Units of inputs and targets: the program then takes inputs, and returns numbers, in the data's units.
        precision: ``"float32"`` keeps weights as they are. ``"bfloat16"`` and ``"int8"`` keep rounded ones, in a file
            of a half or a quarter; ``errors`` of the result says what that costs. The arithmetic stays as it is.
        method: How draws run: ``"vmap"`` together, ``"loop"`` one after another, in a program K times as long;
            ``"auto"`` together in torch's format where all layers are linear.
        dynamic_dims: Dimensions of inputs whose size is left open; others have the sizes of the example.
        seed: Fixes the draws. None takes a seed from torch's random state; it is in the result.
        max_bytes: Budget for the covariance of a linearized network with a closed form.

    Returns:
        What was written, with its errors.

    Raises:
        ExportError: If it cannot be exported: the message names the module or operator. A ValueError.
        TypeError: If an argument is of the wrong kind.
        ValueError: If one is out of range, or the file has another suffix than the format.
        ImportError: If a package that ONNX needs is not installed.
    """
    target = _checked_path(path, format)
    _check(model, example, predictor, quantiles, scaler, precision, method, dynamic_dims)
    assert isinstance(model, SupervisedModel)
    if format == "onnx":
        import_onnx()
    seed = random_state.fresh_seed() if seed is None else seed
    options = PredictorOptions(num_samples, max_bytes=max_bytes, seed=seed)
    levels = tuple(float(level) for level in quantiles)
    reference, program = _made(
        model,
        guide,
        predictor,
        options,
        default_method(model.net.network, format) if method == "auto" else method,
        quantiles=levels,
        scaler=scaler,
        precision=precision,
        search=torch.float64 if format == "torch" else torch.float32,  # erf of onnxruntime is in single precision
    )
    inputs = map_leaves(_on_cpu, example)
    twice = doubled(inputs)
    rows = twice if all(not leaf.dim() or len(leaf) == 1 for leaf in leaves(inputs)) else inputs  # 1 would be fixed
    program.cpu().eval()
    try:
        graph = traced(program, rows, dynamic_dims)
    except ExportError:
        if method != "auto" or not program.runs_together:
            raise
        program.method = "loop"
        graph = traced(program, rows, dynamic_dims)
    made = Exported(
        target, format, input_names(inputs), program.output_names, program.num_samples, seed, precision, 0, {}
    )
    handle, name = tempfile.mkstemp(suffix=_SUFFIXES[format], dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        if format == "onnx":
            write_onnx(graph, temporary, made.metadata(), made.inputs, made.outputs)
            found = run_onnx(temporary, twice)
        else:
            write_torch(graph, temporary, made.metadata())
            found = run_torch(temporary, twice)
        with evaluating(model):
            expected = reference_outputs(reference, twice, levels, scaler)
        differences = largest_differences(made.outputs, found, expected)
        if precision == "float32":
            check_differences(differences)
        size = temporary.stat().st_size
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return replace(made, num_bytes=size, errors={name: found for name, (found, _) in differences.items()})


def _made(
    model: SupervisedModel,
    guide: Any,
    predictor: str | None,
    options: PredictorOptions,
    method: RunMethod,
    **settings: Any,
) -> tuple[Predictor, Program]:
    """The predictor that the program is compared with, and the program."""
    if predictor is None:
        predictor = guide.facts.predictor if isinstance(guide, Guide) else "weights"
    if predictor == "linearized":
        linearized = LinearizedPredictor(model, guide, options)
        return linearized, LinearizedProgram(linearized, **settings)
    if predictor == "mean":
        check_posterior(model, guide)
        guide, options = _central(guide), replace(options, num_samples=1)
    weights = WeightsPredictor(model, guide, options)
    pinned = pinned_weights(model, weights.draws)
    program = DrawsProgram(pinned, model.likelihood, model.output, options.num_samples, method=method, **settings)
    return weights, program


def _central(guide: Any) -> Draws:
    """The guide's mean as one draw."""
    if not isinstance(guide, Guide):
        raise TypeError("predictor: 'mean' needs a guide, which declares its mean; average the draws by hand.")
    facts = guide.facts
    if (facts.num_points or 1) > 1 or facts.chain_shape is not None or facts.num_components is not None:
        raise ExportError(
            f"predictor: {type(guide).__name__} has several points, and the mean of several networks is none of them; "
            "pass num_samples= instead."
        )
    point = guide.starting_point()
    return Draws({name: value.detach().unsqueeze(0) for name, value in point.items()})


def _check(
    model: Any,
    example: Any,
    predictor: Any,
    quantiles: Any,
    scaler: Any,
    precision: Any,
    method: Any,
    dynamic_dims: Any,
) -> None:
    if not isinstance(model, SupervisedModel):
        raise TypeError(
            f"model: expected a SupervisedModel, whose network and likelihood are known, got {type(model).__name__}."
        )
    for name, given, known in (
        ("predictor", predictor, ("weights", "linearized", "mean", None)),
        ("precision", precision, get_args(Precision)),
        ("method", method, get_args(RunMethod)),
    ):
        if given not in known:
            raise ValueError(f"{name}: expected {' or '.join(map(repr, known))}, got {given!r}.")
    for name, entries in (("quantiles", quantiles), ("dynamic_dims", dynamic_dims)):
        if isinstance(entries, str) or not isinstance(entries, Sequence):
            raise TypeError(f"{name}: expected a list of numbers, got {entries!r}.")
    for level in quantiles:
        check_probability("quantiles", level)
    for dim in dynamic_dims:
        check_int("dynamic_dims", dim, 0)
    if scaler is not None and not isinstance(scaler, Standardizer):
        raise TypeError(f"scaler: expected a pyrobnn.Standardizer, got {scaler!r}.")
    _check_example(example)
    if scaler is not None and not isinstance(example, Tensor):
        raise TypeError("scaler: it standardizes one tensor of inputs; leave it out, and standardize before.")


def _check_example(example: Any) -> None:
    refuse_arrays(example, "example: the inputs")
    found = list(leaves(example))
    if isinstance(example, np.ndarray) or not found or not all(isinstance(leaf, Tensor) for leaf in found):
        kind = next((type(leaf).__name__ for leaf in found if not isinstance(leaf, Tensor)), "nothing")
        raise TypeError(f"example: expected a batch of inputs, a tensor or a tuple or dict of tensors, got {kind}.")
    if is_empty(example):
        raise ValueError("example: it holds no rows; pass a batch of inputs.")
    check_inputs(example, 0)


def _checked_path(path: Any, format: Any) -> Path:
    if format not in _SUFFIXES:
        raise ValueError(f"format: expected 'torch' or 'onnx', got {format!r}.")
    target = check_path("path", path)
    if target.suffix != _SUFFIXES[format]:
        raise ValueError(f"path: expected a file {_SUFFIXES[format]} for format={format!r}, got {target.name!r}.")
    if not target.absolute().parent.is_dir():
        raise ValueError(f"path: there is no directory {target.parent}; make it first.")
    if target.is_dir():
        raise ValueError(f"path: {target} is a directory; expected a file.")
    return target


def _on_cpu(leaf: Tensor) -> Tensor:
    return leaf.detach().cpu()
