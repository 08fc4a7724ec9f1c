"""Checkpoints: tensors and a readable specification, from which model and guide are rebuilt without data.

A checkpoint is a directory with two files.

* ``spec.json``: versions, the network's fingerprint (parameters, buffers, module classes; loading refuses any
  other network), the prior of each parameter, the likelihood, the guide and its sites.
* ``tensors-<token>.safetensors``: parameters and persistent buffers of the model (``model.<name>``) and the
  guide (``guide.<name>``). Weights that are random are left out: their values are the guide's draws.

Both are written and read by :mod:`pyrobnn.core.storage`: atomically, without pickle. A save that fails or is cut
short leaves the earlier checkpoint as it was.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrobnn import guides
from pyrobnn.core.storage import Document, load_state, read, save_state, write
from pyrobnn.guides import Guide
from pyrobnn.model import likelihoods, priors
from pyrobnn.model.bayesianize import BayesianModule, bayesianize
from pyrobnn.model.declarations import declared_num_data, latent_sampler
from pyrobnn.model.layout import Layout
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.reporting.fingerprint import (
    as_table,
    differences,
    fingerprint,
    freeze,
    frozen_parameters,
    refuse_differences,
    saved_state,
    shape_and_dtype,
    site_table,
)

__all__ = ["load", "load_state", "save", "save_state"]

_CHECKPOINT = Document("pyrobnn checkpoint", "spec.json", "tensors")
_Path = str | os.PathLike[str]


def save(path: _Path, model: nn.Module, guide: Guide) -> None:
    """Saves a model and its guide.

    Args:
        path: The checkpoint's directory. An earlier checkpoint in it is replaced, other files are left alone.
        model: A :class:`~pyrobnn.SupervisedModel`, or a PyroModule of your own, of which only the state is
            kept, so that :func:`load` needs a freshly built one.
        guide: Its guide.

    Raises:
        TypeError: If an argument is of the wrong kind, or a tensor of a kind that cannot be saved.
        ValueError: If the guide is another model's.
        OSError: If writing fails (a full disk); what was there before is untouched.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a PyroModule, whose parameters are its own, got {type(model).__name__}.")
    if not isinstance(guide, Guide):
        raise TypeError(f"guide: expected one of pyrobnn.guides, got {type(guide).__name__}.")
    if type(model) is SupervisedModel:
        found = differences("site", site_table(Layout.of(model)), site_table(guide.layout))
        refuse_differences("guide", "it is not this model's", found, "Save a model with the guide built from it.")
    content = {
        "model": _model_spec(model),
        "guide": {
            "class": _class_name(guide, guides),
            "config": guide.config(),
            "frozen": frozen_parameters(guide),
            "sites": site_table(guide.layout),
        },
    }
    tensors = {f"model.{name}": tensor for name, tensor in saved_state(model).items()}
    tensors |= {f"guide.{name}": tensor for name, tensor in saved_state(guide).items()}
    write(Path(path), _CHECKPOINT, content, tensors)


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
        ValueError: If the checkpoint is damaged or of a newer format, or what is given is not what was saved.
    """
    if (net is None) == (model is None):
        raise TypeError("net: pass either the plain network as net= or, for a model of your own, the model as model=.")
    for name, given, kind in (("net", net, nn.Module), ("model", model, nn.Module), ("guide", guide, Guide)):
        if given is not None and not isinstance(given, kind):
            raise TypeError(f"{name}: expected a {kind.__name__}, got {type(given).__name__}.")
    spec, tensors = read(Path(path), _CHECKPOINT)
    try:
        if net is not None:
            model = _rebuild_model(spec["model"], net, tensors)
        assert model is not None
        _check_num_data(spec["model"], model)
        _check_output(spec["model"], model)
        _fill("model", model, tensors)
        model.to(device)
        if guide is None:
            guide = _rebuild_guide(spec["guide"], model, tensors)
        _check_guide(spec["guide"], guide)
        _fill("guide", guide, tensors)
    except KeyError as error:
        raise ValueError(f"path: {_CHECKPOINT.document} in {path} is damaged: it lacks {error}.") from error
    return model, guide.to(device)


# ------------------------------------------------------------------------------------------ the specification


def _model_spec(model: nn.Module) -> dict[str, Any]:
    spec: dict[str, Any] = {"class": _class_name(model), "frozen": frozen_parameters(model)}
    if isinstance(model, SupervisedModel):
        spec["num_data"] = model.num_data
    if type(model) is SupervisedModel:
        likelihood = model.likelihood
        spec["class"] = "SupervisedModel"
        spec["output"] = _output_spec(model)
        spec["network"] = fingerprint(model.net.network)
        spec["priors"] = {name: _prior_spec(prior) for name, prior in model.net.site_priors.items()}
        spec["likelihood"] = {
            "class": _class_name(likelihood, likelihoods),
            "config": likelihood.config(),
            "sites": {name: _prior_spec(prior) for name, prior in likelihood.site_priors.items()},
        }
    return spec


def _output_spec(model: SupervisedModel) -> Any:
    """A key, name or index as it is; of a function only that there is one, since it cannot be saved."""
    return {"function": True} if callable(model.output) else model.output


def _prior_spec(prior: priors.Prior) -> dict[str, Any]:
    return {"summary": prior.extra_repr()} | prior.spec()  # the summary is for readers of the file, and not used


def _class_name(instance: object, namespace: Any = None) -> str:
    """The bare name of a class of ``namespace``, the full name of any other."""
    kind = type(instance)
    is_known = getattr(namespace, kind.__name__, None) is kind
    return kind.__name__ if is_known else f"{kind.__module__}.{kind.__qualname__}"


# ------------------------------------------------------------------------------------------------- rebuilding


def _rebuild_model(spec: dict[str, Any], net: nn.Module, tensors: Mapping[str, Tensor]) -> SupervisedModel:
    if spec["class"] != "SupervisedModel":
        raise TypeError(
            f"net: the checkpoint holds a {spec['class']}; build one and pass it as model= instead of net=."
        )
    if isinstance(spec.get("output"), dict):
        raise TypeError(
            "net: the model was saved with a function as output=, which no file holds; build the model with that "
            "function and pass it as model= instead of net=."
        )
    if isinstance(net, BayesianModule):
        raise TypeError("net: it already is a Bayesian network; pass the plain torch network.")
    saved, given = spec["network"], fingerprint(net)
    found = [
        *differences("parameter", saved["parameters"], given["parameters"]),
        *differences("buffer", saved["buffers"], given["buffers"]),
        *differences("module", as_table(saved["modules"]), as_table(given["modules"])),
    ]
    refuse_differences("net", "it is not the network that was saved", found, "Build it as it was built then.")
    rebuilt = {name: _rebuild_prior(name, prior) for name, prior in spec["priors"].items()}
    network = bayesianize(net, [(nn.Module, lambda name, parameter, module: rebuilt.get(name))])
    likelihood = _rebuild_likelihood(spec["likelihood"], tensors).to(next(net.parameters()).device)
    model = SupervisedModel(network, likelihood, num_data=spec["num_data"], output=spec.get("output"))
    freeze(model, spec["frozen"])
    return model


def _rebuild_likelihood(spec: dict[str, Any], tensors: Mapping[str, Tensor]) -> likelihoods.Likelihood:
    kind = _known_class(spec["class"], likelihoods, likelihoods.Likelihood)
    if kind is None:
        raise ValueError(
            f"likelihood: {spec['class']!r} is not one of pyrobnn's; build the model and pass it as model=."
        )
    arguments = dict(spec["config"])
    for name, prior_spec in spec["sites"].items():
        # A likelihood's latent site bears the name of the constructor argument that took its prior.
        prior = _rebuild_prior(name, prior_spec)
        prior.load_state_dict(_under(f"model.likelihood.prior:{name}.", tensors))
        arguments[name] = prior.conditional()
    return _adopt_dtype(kind(**arguments), _under("model.likelihood.", tensors))


def _rebuild_prior(name: str, spec: dict[str, Any]) -> priors.Prior:
    for unknown in (f for f in _families(spec) if _known_class(f, dist, dist.Distribution) is None):
        raise ValueError(f"prior of {name!r}: this Pyro has no distribution {unknown!r}.")
    try:
        return priors.from_spec(spec)
    except ValueError as error:
        raise ValueError(f"prior of {name!r}: {error}") from error


def _families(spec: Mapping[str, Any]) -> Iterator[str]:
    """The families of all distributions that a prior's spec names."""
    for key, value in spec.items():
        if isinstance(value, dict):
            yield from _families(value)
        elif key == "family" and value != "MixtureSameFamily":
            yield value


def _known_class(name: str, namespace: Any, base: type) -> Any:
    """The subclass of ``base`` with the name in ``namespace``, else None: names from files are not trusted."""
    kind = getattr(namespace, name, None)
    return kind if isinstance(kind, type) and issubclass(kind, base) and kind is not base else None


def _rebuild_guide(spec: dict[str, Any], model: nn.Module, tensors: Mapping[str, Tensor]) -> Guide:
    build = _family(spec)
    if latent_sampler(model) is None:
        raise TypeError(
            f"guide: the latent sites of {type(model).__name__} are not known without data; build the guide "
            "as it was before saving (with example=) and pass it as guide=."
        )
    guide = _adopt_dtype(build(model), _under("guide.", tensors))
    freeze(guide, spec["frozen"])
    return guide


def _family(spec: dict[str, Any]) -> Callable[..., Guide]:
    """The class of a saved guide with its options; a composite's rules hold those of its parts."""
    kind = _known_class(spec["class"], guides, Guide)
    if kind is None:
        raise ValueError(f"guide: {spec['class']!r} is not one of pyrobnn.guides; build it and pass it as guide=.")
    return kind.family(spec["config"], _family)


def _adopt_dtype(module: Any, tensors: Mapping[str, Tensor]) -> Any:
    dtypes = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    return module.to(dtypes.pop()) if len(dtypes) == 1 else module


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


# --------------------------------------------------------------------------------------- filling and refusing


def _fill(argument: str, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    saved = _under(f"{argument}.", tensors)
    tables = ({n: shape_and_dtype(t) for n, t in state.items()} for state in (saved, saved_state(module)))
    verdict = "its state is not the one that was saved"
    refuse_differences(argument, verdict, differences("tensor", *tables), "Build it as it was built then.")
    # Not strict: tied names and placeholders were left out on purpose, and all else has just been checked.
    module.load_state_dict(saved, strict=False)


def _check_num_data(spec: dict[str, Any], model: nn.Module) -> None:
    given = declared_num_data(model)
    if "num_data" in spec and given is not None and given != spec["num_data"]:
        raise ValueError(f"model: it has num_data={given}, but was saved with num_data={spec['num_data']}.")


def _check_output(spec: dict[str, Any], model: nn.Module) -> None:
    if type(model) is SupervisedModel and "output" in spec and _output_spec(model) != spec["output"]:
        raise ValueError(f"model: it has output={model.output!r}, but was saved with output={spec['output']!r}.")


def _check_guide(spec: dict[str, Any], guide: Guide) -> None:
    if (given := _class_name(guide, guides)) != spec["class"]:
        raise ValueError(f"guide: it is a {given}, but the checkpoint holds a {spec['class']}.")
    found = differences("site", spec["sites"], site_table(guide.layout))
    refuse_differences("guide", "its sites are not those saved", found, "Build the model as it was built then.")
