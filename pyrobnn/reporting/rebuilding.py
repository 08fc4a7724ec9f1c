"""Building model and guide from a checkpoint's specification; nothing in it is taken on trust.

Classes are looked up by name among those of the library. Sizes are compared with what is stored before memory is taken
for them. Whatever else the constructors refuse is an error of the entry that they were given.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import pyro.distributions as dist
from torch import Tensor, nn

from pyrobnn import guides
from pyrobnn.core import schema
from pyrobnn.core.files import CheckpointError
from pyrobnn.core.first_line import first_line
from pyrobnn.core.module_state import fill
from pyrobnn.guides import Guide
from pyrobnn.model import likelihoods, priors
from pyrobnn.model.bayesianize import BayesianModule, bayesianize
from pyrobnn.model.declarations import latent_sampler
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.reporting.fingerprint import as_table, differences, fingerprint, freeze, refuse_differences

__all__ = ["rebuild_guide", "rebuild_model", "under"]


def rebuild_model(source: str, spec: dict[str, Any], net: nn.Module, tensors: Mapping[str, Tensor]) -> SupervisedModel:
    """The model around a copy of a network.

    Args:
        source: The file, for messages.
        spec: What it says about the model.
        net: The network.
        tensors: All tensors that are stored.

    Raises:
        CheckpointError: If the specification describes no model.
        TypeError: If the model was of another class, or has a function that is not stored.
        ValueError: If the network is another one, or the likelihood not of this library.
    """
    if spec["class"] != "SupervisedModel":
        raise TypeError(
            f"net: the checkpoint holds a {spec['class']}; build one and pass it as model= instead of net=."
        )
    if isinstance(spec["output"], dict):
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
    rebuilt = {}
    for name, prior in spec["priors"].items():
        with _reading(source, f"model.priors.{name}"):
            if name not in saved["parameters"] or prior["shape"] != saved["parameters"][name]["shape"]:
                raise ValueError(f"the network has no parameter of this name and of shape {prior['shape']}")
            rebuilt[name] = _rebuild_prior(prior, tensors)
    kind = _known_class(spec["likelihood"]["class"], likelihoods, likelihoods.Likelihood)
    if kind is None:
        raise _UnknownClassError(
            f"likelihood: {spec['likelihood']['class']!r} is not one of pyrobnn's; build the model and pass it as "
            "model=."
        )
    with _reading(source, "model.likelihood"):
        likelihood = _rebuild_likelihood(kind, spec["likelihood"], tensors).to(next(net.parameters()).device)
    with _reading(source, "model"):
        rule = [(nn.Module, lambda name, parameter, module: rebuilt.get(name))]
        network = bayesianize(net, rule, share_frozen="shared_sha256" in spec)
        network.has_default_prior = spec["default_prior"]
        model = SupervisedModel(network, likelihood, num_data=spec["num_data"], output=spec["output"])
        freeze(model, spec["frozen"])
    return model


def rebuild_guide(source: str, spec: dict[str, Any], model: nn.Module, tensors: Mapping[str, Tensor]) -> Guide:
    """The guide of a model.

    Args:
        source: The file, for messages.
        spec: What it says about the guide.
        model: The model.
        tensors: All tensors that are stored.

    Raises:
        CheckpointError: If the specification describes no guide.
        TypeError: If the model's sites are not known without data.
        ValueError: If the family is not of this library.
    """
    own = under("guide.", tensors)
    _family_class(spec)
    if latent_sampler(model) is None:
        raise TypeError(
            f"guide: the latent sites of {type(model).__name__} are not known without data; build the guide "
            "as it was before saving (with example=) and pass it as guide=."
        )
    with _reading(source, "guide"):
        guide = _adopt_dtype(_family(_numbers(own), spec)(model), own)
        freeze(guide, spec["frozen"])
    return guide


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with the prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


@contextlib.contextmanager
def _reading(source: str, where: str) -> Iterator[None]:
    """Whatever an entry of the specification leads to is an error of that entry."""
    try:
        yield
    except _UnknownClassError:
        raise
    except Exception as error:
        reason = first_line(error)
        raise CheckpointError(f"path: {source} describes nothing that can be built: {where}: {reason}") from error


class _UnknownClassError(ValueError):
    """A class that is not the library's, which is no damage."""


def _rebuild_likelihood(
    kind: type[likelihoods.Likelihood], spec: dict[str, Any], tensors: Mapping[str, Tensor]
) -> likelihoods.Likelihood:
    arguments = dict(spec["config"])
    for name, prior_spec in spec["sites"].items():
        # A likelihood's latent site bears the name of the constructor argument that took its prior.
        prior = _rebuild_prior(prior_spec, tensors)
        fill(prior, under(f"model.likelihood.prior:{name}.", tensors))
        arguments[name] = prior.conditional()
    return _adopt_dtype(kind(**arguments), under("model.likelihood.", tensors))


def _rebuild_prior(spec: dict[str, Any], tensors: Mapping[str, Tensor]) -> priors.Prior:
    for unknown in (f for f in _families(spec) if _known_class(f, dist, dist.Distribution) is None):
        raise ValueError(f"this Pyro has no distribution {unknown!r}")
    stored = _numbers(tensors)
    for shape in _shapes(spec):
        if math.prod(shape) > stored:
            raise ValueError(f"a shape {shape} has more numbers than the {stored} that are stored")
    return priors.from_spec(spec)


def _numbers(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors.values())


def _shapes(spec: Mapping[str, Any]) -> Iterator[list[int]]:
    """The shapes of all parameters of distributions that a prior's spec names."""
    for key, value in spec.items():
        if key == "parameters":
            yield from value.values()
        elif isinstance(value, dict):
            yield from _shapes(value)


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


def _family_class(spec: Mapping[str, Any]) -> type[Guide]:
    kind = _known_class(spec["class"], guides, Guide)
    if kind is None:
        raise _UnknownClassError(
            f"guide: {spec['class']!r} is not one of pyrobnn.guides; build it and pass it as guide=."
        )
    return kind


def _family(stored: int, spec: Mapping[str, Any]) -> Callable[..., Guide]:
    """The class of a saved guide with its options; a composite's rules hold those of its parts.

    Raises:
        ValueError: If the options ask for more numbers than are ``stored``, before memory is taken for them.
    """
    kind = _family_class(spec)
    total = 1
    for name in kind.sizes:
        value = spec["config"].get(name)
        for count in value if isinstance(value, list) else [value]:
            schema.optional(schema.whole(1, stored))(count, f"config.{name}")
        total *= value if isinstance(value, int) else 1
    if total > stored:
        raise ValueError(f"config: {' × '.join(kind.sizes)} is {total}, but {stored} numbers are stored")
    return kind.family(spec["config"], partial(_family, stored))


def _adopt_dtype(module: Any, tensors: Mapping[str, Tensor]) -> Any:
    dtypes = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    return module.to(dtypes.pop()) if len(dtypes) == 1 else module
