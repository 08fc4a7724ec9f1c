"""Whether a guide or given draws belong to a model: names, shapes and finiteness of what they have for its sites.

Values of a wrong shape may broadcast and unknown names would be ignored, both without a word, so that everything that
takes a model together with a posterior asks here first. Nothing is drawn and no data are needed; models that are not of
this library show their sites only in a run, and are checked in theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyrobnn.core.handlers import ExclusiveMessenger, validation_enabled
from pyrobnn.model.declarations import latent_sampler
from pyrobnn.model.layout import Site
from pyrobnn.model.stochastic import stored_values

__all__ = ["check_draws", "check_given", "check_layout", "check_shape", "latent_shapes"]


class _Shapes(ExclusiveMessenger):
    """Records the shape of each latent site and gives it ``values``, or ones, so that nothing is drawn."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values
        self.shapes: dict[str, torch.Size] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or site_is_subsample(msg):
            return
        name, shape = msg["name"], msg["fn"].shape()
        self.shapes[name] = torch.Size(shape)
        value = self.values.get(name)
        # ones are valid scales, on which priors of other sites may depend
        msg["value"] = value if value is not None and value.shape == shape else torch.ones(()).expand(shape)
        msg["done"] = True


def latent_shapes(model: Any, values: Mapping[str, Tensor] | None = None) -> dict[str, torch.Size] | None:
    """The shape of each latent site of a model that declares them without data; None for other models.

    Args:
        model: The model.
        values: Values of sites on which the priors of others depend, on the model's device.
    """
    sampler = latent_sampler(model)
    if sampler is None:
        return None
    with torch.no_grad(), validation_enabled(False), _Shapes(values or {}) as run:
        sampler()
    return run.shapes


def check_layout(
    model: Callable[..., Any],
    layout: Mapping[str, Site],
    *,
    argument: str = "guide",
    partial: bool = False,
    tensors: Iterable[Tensor] = (),
) -> None:
    """Refuses a guide that was built for another model.

    Args:
        model: The model.
        layout: The guide's sites.
        argument: What the error names.
        partial: Whether other guides may have sites that this one lacks.
        tensors: Parameters and buffers of the guide, which are of the network's precision, whatever else they are.

    Raises:
        TypeError: If the guide is of another precision than the network.
        ValueError: If the model has a site that the guide lacks, or the reverse, or one of another shape.
    """
    own = [tensor for tensor in tensors if tensor.is_floating_point()]
    device = own[0].device if own else None
    ones = {name: torch.ones((), device=device).expand(site.shape) for name, site in layout.items()}
    if (expected := latent_shapes(model, ones)) is None:
        return
    advice = "build the guide from this model"
    _check_names(argument, expected, layout, partial, advice)
    for name, site in layout.items():
        check_shape(argument, name, site.shape, expected[name], advice)
    wanted = {dtype for name, dtype in _precisions(model).items() if name in layout}
    found = {tensor.dtype for tensor in own}
    if wanted and found and not wanted & found and not torch.is_autocast_enabled(own[0].device.type):
        of_model, of_guide = (str(min(dtypes, key=str)) for dtypes in (wanted, found))
        raise TypeError(
            f"{argument}: the guide is {of_guide}, but the network of the model is {of_model}; convert both, by "
            "model.to(dtype) and guide.to(dtype)."
        )


def check_draws(model: Any, draws: Mapping[str, Tensor], *, argument: str = "guide") -> None:
    """Refuses draws ``{site: [K, *site shape]}`` that are not of this model.

    Args:
        model: The model.
        draws: The draws.
        argument: What the error names.

    Raises:
        TypeError: If a value is no tensor, or one of another precision than the network.
        ValueError: If a site is missing, unknown, of another shape or not finite.
    """
    _check_tensors(argument, draws)
    if (expected := latent_shapes(model, {name: value[0] for name, value in draws.items()})) is None:
        return
    advice = "pass draws of this model"
    _check_names(argument, expected, draws, False, advice)
    _check_like(argument, model, draws, expected, advice)


def check_given(model: Any, values: Mapping[str, Tensor], *, argument: str = "given") -> None:
    """Refuses values ``{site: [*site shape]}`` of some sites that are not of this model.

    Args:
        model: The model.
        values: The values.
        argument: What the error names.

    Raises:
        TypeError: If a value is no tensor, or one of another precision than the network.
        ValueError: If a site is unknown, of another shape or not finite.
    """
    if not isinstance(values, Mapping):
        raise TypeError(f"{argument}: expected values by site, got {type(values).__name__}.")
    alone = {name: value.unsqueeze(0) if isinstance(value, Tensor) else value for name, value in values.items()}
    _check_tensors(argument, alone)
    if (expected := latent_shapes(model, values)) is not None:
        advice = "pass values of the sites of this model"
        _check_names(argument, expected, values, True, advice)
        _check_like(argument, model, alone, expected, advice)


def _check_tensors(argument: str, draws: Mapping[str, Tensor]) -> None:
    for name, value in draws.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            kind = f"tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(
                f"{argument}: the draws of the site {name!r} are a {kind}, expected a floating-point tensor "
                "[K, *site shape]."
            )
        if not value.dim() or not len(value):
            raise ValueError(
                f"{argument}: the draws of the site {name!r} have shape {list(value.shape)}, expected [K, *site shape] "
                "with at least one draw."
            )
        if not bool(value.sum().isfinite()) and not bool(value.isfinite().all()):
            raise ValueError(f"{argument}: the draws of the site {name!r} hold NaN or infinite values.")


def _check_like(
    argument: str, model: Any, draws: Mapping[str, Tensor], expected: Mapping[str, torch.Size], advice: str
) -> None:
    """Shapes and precisions of draws of known sites."""
    precisions = _precisions(model)
    for name, value in draws.items():
        check_shape(argument, name, value.shape[1:], expected[name], advice)
        wanted = precisions.get(name, value.dtype)
        if value.dtype != wanted and not torch.is_autocast_enabled(value.device.type):
            raise TypeError(
                f"{argument}: the draws of the site {name!r} are {value.dtype}, but the network is {wanted}; convert "
                f"them by .to({wanted})."
            )


def check_shape(argument: str, name: str, shape: torch.Size, expected: torch.Size, advice: str) -> None:
    """Refuses another shape of a site.

    Raises:
        ValueError: If it is another one.
    """
    if shape != expected:
        raise ValueError(
            f"{argument}: its site {name!r} has shape {list(shape)}, but in the model it has {list(expected)}; "
            f"{advice}."
        )


def _check_names(argument: str, expected: Iterable[str], found: Iterable[str], partial: bool, advice: str) -> None:
    expected, found = list(expected), list(found)
    missing = [name for name in expected if name not in set(found)]
    if missing and not partial:
        raise ValueError(
            f"{argument}: it lacks the model's site {missing[0]!r} ({len(missing)} missing in all), which would be "
            f"drawn from its prior; it has {', '.join(found[:8])}; {advice}."
        )
    if unknown := [name for name in found if name not in set(expected)]:
        raise ValueError(
            f"{argument}: it has the site {unknown[0]!r} ({len(unknown)} such in all), but there is no latent site of "
            f"that name in the model, which has {', '.join(expected[:8])}; {advice}."
        )


def _precisions(model: Any) -> dict[str, torch.dtype]:
    return {name: value.dtype for name, value in stored_values(model).items()}
