"""Parameters of likelihoods that are learned: where they start, and where they must not be taken as they are."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pyrobnn.model.likelihoods.base import Likelihood

__all__ = ["initialize_likelihood", "refuse_untrained"]


def initialize_likelihood(model: Any, targets: Any) -> None:
    """Starts what the model's only likelihood learns at the scale of a batch's targets (:meth:`Likelihood.initialize`).

    Nothing happens for models with several likelihoods, or several targets: which belong together is unknown.
    """
    found = _likelihoods(model)
    if len(found) == 1 and isinstance(targets, Tensor) and targets.is_floating_point() and targets.dim():
        found[0].initialize(targets)


def refuse_untrained(model: Any, held: str) -> None:
    """Refuses a likelihood whose parameters were neither stated nor trained, where they are held fixed.

    Args:
        model: The model.
        held: Who holds them fixed, for the message.

    Raises:
        ValueError: If there is one.
    """
    for likelihood in _likelihoods(model):
        if likelihood.untrained:
            raise ValueError(
                f"likelihood: the {likelihood.learned} of {type(likelihood).__name__} is to be learned, but {held} "
                f"holds it fixed, and it has not been trained. Train it first (fit){likelihood.or_else}."
            )


def _likelihoods(model: Any) -> list[Likelihood]:
    if not isinstance(model, nn.Module):
        return []
    return [module for module in model.modules() if isinstance(module, Likelihood)]
