"""What a Pyro model may declare beside being callable: sites, number of data, likelihood, outputs, default prior.

Models of this library declare them; for any other Pyro model the functions here return None. This is the only module
that looks for these attributes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = [
    "declared_likelihood",
    "declared_num_data",
    "declared_outputs",
    "declares_default_prior",
    "example_if_needed",
    "latent_sampler",
]


def latent_sampler(model: Any) -> Callable[[], Any] | None:
    """The model's method ``sample_latents``, which draws every latent site without data; None if it has none."""
    return getattr(model, "sample_latents", None)


def example_if_needed(model: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Arguments for the run of the model that shows its latent sites; None if the model draws them without data."""
    return args if latent_sampler(model) is None else None


def declares_default_prior(model: Any) -> bool | None:
    """Whether the model says, as ``has_default_prior``, that no prior was stated for it; None if it does not say."""
    return getattr(model, "has_default_prior", None)


def declared_num_data(model: Any) -> int | None:
    """The number N of training data that the model declares as ``num_data``; None if it declares none."""
    declared = getattr(model, "num_data", None)
    return declared if isinstance(declared, int) else None


def declared_likelihood(model: Any) -> Any:
    """What the model declares as its ``likelihood``; None if it declares none."""
    return getattr(model, "likelihood", None)


def declared_outputs(model: Any) -> Callable[[Any], Any] | None:
    """The model's method ``predictive``, from inputs to the network's outputs; None if it has none."""
    return getattr(model, "predictive", None)
