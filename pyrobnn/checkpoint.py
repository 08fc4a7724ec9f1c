"""Checkpoints: tensors and a readable specification, from which model and guide are rebuilt without data.

A checkpoint is a directory with two files.

* ``spec.json``: versions, the network's fingerprint (parameters, buffers, module classes; loading refuses any
  other network), the prior of each parameter, the likelihood, the guide and its sites
  (:mod:`pyrobnn.reporting.specification`); a digest of each entry, and of the other file.
* ``tensors-<token>.safetensors``: parameters and persistent buffers of the model (``model.<name>``) and the
  guide (``guide.<name>``). Weights that are random are left out: their values are the guide's draws. So are frozen ones
  that the model shares with the network it was made from (``bayesianize(..., share_frozen=True)``), of which
  ``spec.json`` has a digest.

Both are written and read atomically and without pickle. A save that fails or is cut short leaves the earlier
checkpoint as it was. The tensor file before the present one is kept until the next save, for readers that have just
begun.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn import guides
from pyrobnn.core.documents import Document, read, write
from pyrobnn.core.explanations import explained
from pyrobnn.core.files import CheckpointError, check_directory
from pyrobnn.core.locks import DirectoryInUseError, locked
from pyrobnn.core.module_state import fill
from pyrobnn.core.storage import load_state, save_state
from pyrobnn.guides import Guide
from pyrobnn.model.declarations import declared_num_data
from pyrobnn.model.layout import Layout
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.reporting.fingerprint import (
    differences,
    refuse_differences,
    saved_state,
    shape_and_dtype,
    site_table,
)
from pyrobnn.reporting.rebuilding import rebuild_guide, rebuild_model, under
from pyrobnn.reporting.specification import GUIDE, check_model, class_name, guide_spec, model_spec, output_spec

__all__ = ["CheckpointError", "DirectoryInUseError", "load", "load_state", "save", "save_state", "specification"]

_CHECKPOINT = Document("pyrobnn checkpoint", "spec.json", "tensors", {"model": check_model, "guide": GUIDE})
_PATIENCE = 60.0  # seconds for another save to end
_Path = str | os.PathLike[str]


@explained
def save(path: _Path, model: nn.Module, guide: Guide) -> None:
    """Saves a model and its guide.

    Args:
        path: The checkpoint's directory. An earlier checkpoint in it is replaced, other files are left alone.
        model: A :class:`~pyrobnn.SupervisedModel`, or a PyroModule of your own, of which only the state is
            kept, so that :func:`load` needs a freshly built one.
        guide: Its guide.

    Raises:
        TypeError: If an argument is of the wrong kind, or a tensor of a kind that cannot be saved.
        ValueError: If the guide is another model's, or the path is empty.
        OSError: If writing fails (a full disk); what was there before is untouched.
    """
    directory = check_directory("path", path)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a PyroModule, whose parameters are its own, got {type(model).__name__}.")
    if not isinstance(guide, Guide):
        raise TypeError(f"guide: expected one of pyrobnn.guides, got {type(guide).__name__}.")
    if type(model) is SupervisedModel:
        found = differences("site", site_table(Layout.of(model)), site_table(guide.layout))
        refuse_differences("guide", "it is not this model's", found, "Save a model with the guide built from it.")
    content = {"model": model_spec(model), "guide": guide_spec(guide)}
    tensors = {f"model.{name}": tensor for name, tensor in saved_state(model).items()}
    tensors |= {f"guide.{name}": tensor for name, tensor in saved_state(guide).items()}
    with locked(directory, _CHECKPOINT.document, "save", wait=_PATIENCE):
        write(directory, _CHECKPOINT, content, tensors)


@explained
def load(
    path: _Path,
    net: nn.Module | None = None,
    *,
    model: nn.Module | None = None,
    guide: Guide | None = None,
    device: torch.device | str | None = None,
) -> tuple[nn.Module, Guide]:
    """Rebuilds what :func:`save` saved; no data are needed and nothing is unpickled.

    Args:
        path: The checkpoint's directory.
        net: A plain network of the saved architecture. It is copied; its random weights do not matter, except
            that guides built on the loaded model later start from them.
        model: Instead of ``net``, for a PyroModule or a likelihood of your own: the model, built as it was
            before saving; its state is filled in place.
        guide: Only for a family of your own, or a model whose sites are not known without data: the guide,
            built as it was before saving; its state is filled in place.
        device: Where to put both; by default where ``net`` or ``model`` is.

    Returns:
        The model and the guide, equal in every parameter and buffer to those saved.

    Raises:
        TypeError: If not exactly one of ``net`` and ``model`` is given, or an argument is of the wrong kind.
        FileNotFoundError: If ``path`` is no checkpoint.
        CheckpointError: If the checkpoint is damaged or of another format; a ValueError.
        ValueError: If what is given is not what was saved.
    """
    if (net is None) == (model is None):
        raise TypeError("net: pass either the plain network as net= or, for a model of your own, the model as model=.")
    for name, given, kind in (("net", net, nn.Module), ("model", model, nn.Module), ("guide", guide, Guide)):
        if given is not None and not isinstance(given, kind):
            raise TypeError(f"{name}: expected a {kind.__name__}, got {type(given).__name__}.")
    directory = check_directory("path", path)
    spec, tensors = read(directory, _CHECKPOINT)
    source = f"{_CHECKPOINT.document} in {directory}"
    if net is not None:
        model = rebuild_model(source, spec["model"], net, tensors)
    assert model is not None
    _check_num_data(spec["model"], model)
    _check_output(spec["model"], model)
    _check_model(spec["model"], model)
    _fill("model", model, tensors)
    model.to(device)
    if guide is None:
        guide = rebuild_guide(source, spec["guide"], model, tensors)
    _check_guide(spec["guide"], guide)
    _fill("guide", guide, tensors)
    return model, guide.to(device)


@explained
def specification(path: _Path) -> dict[str, Any]:
    """What a checkpoint says about its model and guide, without the network that :func:`load` needs.

    Args:
        path: The checkpoint's directory.

    Returns:
        The content of ``spec.json``, checked against its digests: ``versions``, ``tensors``, ``model``, ``guide``.

    Raises:
        FileNotFoundError: If ``path`` is no checkpoint.
        CheckpointError: If the checkpoint is damaged or of another format; a ValueError.
    """
    return read(check_directory("path", path), _CHECKPOINT)[0]


# --------------------------------------------------------------------------------------- filling and refusing


def _fill(argument: str, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    saved = under(f"{argument}.", tensors)
    tables = ({n: shape_and_dtype(t) for n, t in state.items()} for state in (saved, saved_state(module)))
    verdict = "its state is not the one that was saved"
    refuse_differences(argument, verdict, differences("tensor", *tables), "Build it as it was built then.")
    fill(module, saved)  # but for tied names and placeholders, which were left out


def _check_num_data(spec: dict[str, Any], model: nn.Module) -> None:
    given = declared_num_data(model)
    if "num_data" in spec and given is not None and given != spec["num_data"]:
        raise ValueError(f"model: it has num_data={given}, but was saved with num_data={spec['num_data']}.")


def _check_output(spec: dict[str, Any], model: nn.Module) -> None:
    if type(model) is SupervisedModel and "output" in spec and output_spec(model) != spec["output"]:
        raise ValueError(f"model: it has output={model.output!r}, but was saved with output={spec['output']!r}.")


def _check_model(spec: dict[str, Any], model: nn.Module) -> None:
    """Priors and likelihood have settings that are no tensors."""
    if type(model) is not SupervisedModel or spec["class"] != "SupervisedModel":
        return
    saved, given = spec, model_spec(model)
    tables = [{name: _without_summary(prior) for name, prior in each["priors"].items()} for each in (saved, given)]
    found = differences("prior of", *tables)
    parts = [
        {"likelihood": _settings(each["likelihood"]), "default_prior": {"stated": not each["default_prior"]}}
        for each in (saved, given)
    ]
    found += differences("entry", *parts)
    refuse_differences("model", "it is not the one that was saved", found, "Build it as it was built then.")
    if saved.get("shared_sha256") != given.get("shared_sha256"):
        raise ValueError(
            "net: its frozen parameters, which the saved model shared and the checkpoint does not hold, have other "
            "values, or others are frozen; pass the network with the same pretrained weights, prepared as it was then."
        )


def _without_summary(prior: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in prior.items() if name != "summary"}


def _settings(likelihood: Mapping[str, Any]) -> dict[str, Any]:
    return {"class": likelihood["class"].rpartition(".")[2], **likelihood["config"]}


def _check_guide(spec: dict[str, Any], guide: Guide) -> None:
    if (given := class_name(guide, guides)) != spec["class"]:
        raise ValueError(f"guide: it is a {given}, but the checkpoint holds a {spec['class']}.")
    found = differences("site", spec["sites"], site_table(guide.layout))
    refuse_differences("guide", "its sites are not those saved", found, "Build the model as it was built then.")
