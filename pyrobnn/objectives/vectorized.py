"""All members of an ensemble in one vectorized run of the model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pyro
import torch
from torch import Tensor

from pyrobnn.model.divergence import prior_terms
from pyrobnn.model.draws import Draws
from pyrobnn.objectives.parts import Parts
from pyrobnn.objectives.terms import num_data, observed_score
from pyrobnn.steps import Step
from pyrobnn.steps.normal_prior import is_fixed_normal

__all__ = ["evaluate_members"]


def evaluate_members(
    model: Any, step: Step, args: tuple[Any, ...], kwargs: Mapping[str, Any], weights: Mapping[str, float]
) -> Parts | None:
    """All members in one run; None if they are to run one after another, as where the loss is not finite.

    Raises:
        ValueError: If vectorized runs were demanded, but are not possible.
    """
    draws = step.draw(0)
    seen: list[Any] = []

    def one(values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        own = Draws(values)
        with own.running(model, update=True) as messages:
            model(*args, **kwargs)
        priors = prior_terms(messages.latent)
        inside = {name: term for name, term in priors.items() if not is_fixed_normal(step.layout[name], term)}
        seen[:] = messages, {name: term for name, term in priors.items() if name not in inside}
        divergence = step.divergence(own, inside).total if inside else torch.zeros(())
        return torch.as_tensor(observed_score(messages)), divergence

    try:
        # Validation needs the values of tensors, which vmap does not provide; non-finite losses are detected anyway.
        with pyro.validation_enabled(False):
            log_likelihood, inside = torch.func.vmap(one, randomness="different")(dict(draws))
    except ValueError:  # the loop can say of which member and what
        return None
    except RuntimeError as error:
        step.stop_vectorizing(error)
        return None
    messages, fixed = seen
    divergence = step.divergence(draws, fixed)
    values = {"log_likelihood": log_likelihood.mean(), "divergence": divergence.total + inside.mean()}
    parts = Parts(values, weights, num_data(model, messages), divergence_name=divergence.name)
    return parts if math.isfinite(float(parts.loss.detach())) else None
