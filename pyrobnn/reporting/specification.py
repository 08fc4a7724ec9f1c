"""The readable part of a checkpoint: what it says about model and guide, and what it must look like."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import nn

from pyrobnn import guides
from pyrobnn.core.schema import (
    Check,
    anything,
    either,
    flag,
    items,
    number,
    optional,
    record,
    setting,
    table,
    tagged,
    text,
    whole,
)
from pyrobnn.guides import Guide
from pyrobnn.model import likelihoods, priors
from pyrobnn.model.shared import shared_digest
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.reporting.fingerprint import fingerprint, frozen_parameters, site_table

__all__ = ["GUIDE", "as_json", "check_model", "class_name", "guide_spec", "model_spec", "output_spec"]

# --------------------------------------------------------------------------------------- what it must look like

_SHAPE = items(whole(0))
_TENSOR = {"shape": _SHAPE, "dtype": text}


def _distribution(value: Any, where: str) -> None:
    """A family with the shapes of its parameters, or a mixture of one family."""
    kinds: dict[str, Mapping[str, Check]] = {
        "MixtureSameFamily": {"mixture": _distribution, "component": _distribution}
    }
    record({"family": text}, others=anything)(value, where)
    own = kinds.get(value["family"], {"parameters": table(_SHAPE)})
    record({"family": text, **own})(value, where)


_FIXED: dict[str, Check] = {"distribution": _distribution, "event_shape": _SHAPE}
_PRIOR = tagged(
    "prior",
    {
        "FixedPrior": {"summary": text, **_FIXED},
        "HorseshoePrior": {"summary": text, "scale": number},
        "LearnedScalePrior": {"summary": text},
        "LatentScalePrior": {"summary": text, "scale": record({"prior": text, "shape": _SHAPE, **_FIXED})},
        "ConcretePrior": {"summary": text},
        "BinaryConcretePrior": {"summary": text},
    },
    {"shape": _SHAPE},
)
_NETWORK = record(
    {
        "modules": table(text),
        "parameters": table(record({**_TENSOR, "tied": items(text)})),
        "buffers": table(record(_TENSOR)),
    }
)
_LIKELIHOOD = record({"class": text, "config": table(setting), "sites": table(_PRIOR)})
_OUTPUT = optional(either("a name, an index or null", text, whole(-(2**31)), record({"function": flag})))
_SUPERVISED = record(
    {
        "class": text,
        "frozen": items(text),
        "num_data": whole(1),
        "output": _OUTPUT,
        "network": _NETWORK,
        "default_prior": flag,
        "priors": table(_PRIOR),
        "likelihood": _LIKELIHOOD,
    },
    {"shared_sha256": text},
)
_OWN_MODEL = record({"class": text, "frozen": items(text)}, {"num_data": whole(1)})


def check_model(value: Any, where: str) -> None:
    """What is said about the model: all of a SupervisedModel, little of one of another class."""
    record({"class": text}, others=anything)(value, where)
    (_SUPERVISED if value["class"] == "SupervisedModel" else _OWN_MODEL)(value, where)


GUIDE = record(
    {
        "class": text,
        "config": table(setting),
        "frozen": items(text),
        "sites": table(
            record({"shape": _SHAPE, "unconstrained_shape": _SHAPE, "offset": whole(0), "prior": text}),
        ),
    }
)

# ------------------------------------------------------------------------------------------------- what is said


def model_spec(model: nn.Module) -> dict[str, Any]:
    """What a checkpoint says about a model, as JSON."""
    spec: dict[str, Any] = {"class": class_name(model), "frozen": frozen_parameters(model)}
    if isinstance(model, SupervisedModel):
        spec["num_data"] = model.num_data
    if type(model) is SupervisedModel:
        likelihood = model.likelihood
        spec["class"] = "SupervisedModel"
        spec["output"] = output_spec(model)
        spec["network"] = fingerprint(model.net.network)
        if (digest := shared_digest(model.net)) is not None:
            spec["shared_sha256"] = digest
        spec["default_prior"] = model.has_default_prior
        spec["priors"] = {name: _prior_spec(prior) for name, prior in model.net.site_priors.items()}
        spec["likelihood"] = {
            "class": class_name(likelihood, likelihoods),
            "config": as_json(likelihood.config()),
            "sites": {name: _prior_spec(prior) for name, prior in likelihood.site_priors.items()},
        }
    return spec


def guide_spec(guide: Guide) -> dict[str, Any]:
    """What a checkpoint says about a guide, as JSON."""
    return {
        "class": class_name(guide, guides),
        "config": as_json(guide.config()),
        "frozen": frozen_parameters(guide),
        "sites": site_table(guide.layout),
    }


def as_json(value: Any) -> Any:
    """As it is after it has been written and read."""
    return json.loads(json.dumps(value))


def output_spec(model: SupervisedModel) -> Any:
    """A key, name or index as it is; of a function only that there is one, since it cannot be saved."""
    return {"function": True} if callable(model.output) else model.output


def _prior_spec(prior: priors.Prior) -> dict[str, Any]:
    return {"summary": prior.extra_repr()} | prior.spec()  # the summary is for readers of the file, and not used


def class_name(instance: object, namespace: Any = None) -> str:
    """The bare name of a class of ``namespace``, the full name of any other."""
    kind = type(instance)
    is_known = getattr(namespace, kind.__name__, None) is kind
    return kind.__name__ if is_known else f"{kind.__module__}.{kind.__qualname__}"
