"""Distributions and supports without their event dimensions."""

from __future__ import annotations

from typing import Any

from torch.distributions import Independent
from torch.distributions.constraints import Constraint

__all__ = ["base_constraint", "base_distribution"]


def base_constraint(support: Any) -> Constraint:
    """The constraint of single elements: the wrappers for event dimensions and mixtures taken off."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support


def base_distribution(distribution: Any) -> Any:
    """The distribution that ``to_event`` was called on: all :class:`~torch.distributions.Independent` taken off.

    Args:
        distribution: Any distribution of torch or Pyro.

    Returns:
        The innermost base, whose ``log_prob`` is by element where the site's elements are independent; the distribution
        itself where nothing is to take off.
    """
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    return distribution
