"""Divergences of relaxed choices from their priors, in log space, and of the choices themselves."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrobnn.distributions.concrete import binary_log_density, concrete_log_density, relaxed_of
from pyrobnn.guides.components.concrete_blocks import Block, relaxed_prior
from pyrobnn.model.layout import Site

__all__ = ["discrete_divergence", "log_density_of_values", "relaxed_divergence"]


def log_density_of_values(block: Block, value: Tensor, logits: Tensor, temperature: Any) -> Tensor:
    """Log density, by row, of relaxed choices in the space of their logarithms (of gates: their logits)."""
    log_density = concrete_log_density if block.num_choices else binary_log_density
    return log_density(relaxed_of(value, binary=not block.num_choices), logits, temperature)


def relaxed_divergence(
    block: Block, value: Tensor, log_q: Tensor, prior: Any, temperature: float | None = None
) -> Tensor:
    """``log q - log p`` of a draw, of the prior's batch shape.

    Args:
        block: What kind of choice it is.
        value: The site's value in the draw.
        log_q: Its log density by row.
        prior: The prior.
        temperature: Of the prior, if it is a relaxed choice; its own if None.
    """
    base: Any = relaxed_prior(prior)
    if base is not None:
        against = base.temperature if temperature is None else temperature
        scores = log_q - log_density_of_values(block, value, base.logits, against)
        return scores.reshape(*prior.batch_shape, -1).sum(-1)
    # A prior of another family, such as a Dirichlet, is a density of values: q's density is then that of values.
    relaxed = relaxed_of(value, binary=not block.num_choices)
    slope = -relaxed.sum(-1) if block.num_choices else F.softplus(relaxed) + F.softplus(-relaxed)
    return (log_q + slope).reshape(*prior.batch_shape, -1).sum(-1) - prior.log_prob(value)


def discrete_divergence(block: Block, site: Site, logits: Tensor, prior: Any) -> Tensor:
    """KL between the choices themselves, of the prior's batch shape.

    Raises:
        ValueError: If the prior is no relaxed choice.
    """
    base: Any = relaxed_prior(prior)
    if base is None:
        raise ValueError(f"kl: the prior of the site {site.name!r} is no relaxed choice; use kl='relaxed'.")
    ours, theirs = logits, base.logits
    if not block.num_choices:  # an open gate and a closed one
        ours, theirs = (torch.stack([part, torch.zeros_like(part)], -1) for part in (ours, theirs))
    log_q, log_p = ours.log_softmax(-1), theirs.log_softmax(-1)
    return (log_q.exp() * (log_q - log_p)).reshape(*prior.batch_shape, -1).sum(-1)
