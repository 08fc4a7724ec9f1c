"""All members of an ensemble in one vectorized run of the model."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from pyrobnn.core.attention import attention_under_vmap
from pyrobnn.core.first_line import first_line
from pyrobnn.core.handlers import validation_enabled
from pyrobnn.model.divergence import prior_terms
from pyrobnn.model.draws import Draws
from pyrobnn.objectives.parts import Parts
from pyrobnn.objectives.terms import num_data, observed_score
from pyrobnn.steps import Step
from pyrobnn.steps.normal_prior import is_fixed_normal

__all__ = ["evaluate_members", "fall_back", "looped"]


def evaluate_members(
    model: Any, step: Step, args: tuple[Any, ...], kwargs: Mapping[str, Any], weights: Mapping[str, float]
) -> Parts | None:
    """The parts of all members from one vectorized run.

    Returns:
        The parts; None if members must run one after another instead: the model does not work under vmap, or the loss
        is not finite, so that the loop can name the member and the term.

    Raises:
        ValueError: If vectorized runs were requested explicitly, but are not possible.
    """
    draws = step.draw(0)
    traced: list[Any] = []  # what vmap cannot return: the handler, and the priors that are the same for all members

    def one(values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        own = Draws(values)
        with own.running(model, update=True) as messages:
            model(*args, **kwargs)
        priors = prior_terms(messages.latent)
        varying = {name: term for name, term in priors.items() if not is_fixed_normal(step.layout[name], term)}
        traced[:] = messages, {name: term for name, term in priors.items() if name not in varying}
        divergence = step.divergence(own, varying).total if varying else torch.zeros(())
        return torch.as_tensor(observed_score(messages)), divergence

    try:
        # Validation needs the values of tensors, which vmap does not provide; non-finite losses are detected anyway.
        with validation_enabled(False), attention_under_vmap(next(iter(draws.values())).device):
            log_likelihood, varying_divergence = torch.func.vmap(one, randomness="different")(dict(draws))
    except ValueError:
        return None
    except Exception as error:  # torch raises all kinds
        fall_back(step, error)
        return None
    messages, fixed = traced
    divergence = step.divergence(draws, fixed)
    values = {"log_likelihood": log_likelihood.mean(), "divergence": divergence.total + varying_divergence.mean()}
    parts = Parts(values, weights, num_data(model, messages), divergence_name=divergence.name)
    return parts if math.isfinite(float(parts.loss.detach())) else None


def fall_back(step: Step, error: Exception) -> None:
    """From now on members run one after another, since vmap cannot run the model or differentiate it; warns of it.

    Raises:
        ValueError: If vectorized runs were requested explicitly.
    """
    step.stop_vectorizing(error)
    reason = first_line(error)
    warnings.warn(
        "vmap: torch cannot run this model for all members at once, so they run one after another from now on, "
        f"which gives the same but is slower; vmap=False says so ({reason}).",
        stacklevel=3,
    )


@contextlib.contextmanager
def looped(step: Step) -> Iterator[None]:
    """Members run one after another for the block."""
    step.vectorized = False
    try:
        yield
    finally:
        step.vectorized = True
