"""What a posterior declares for predictions of the linearized network: a Gaussian around a mode."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Linearization"]


@dataclass(frozen=True)
class Linearization:
    """A Gaussian over some sites; the others are points.

    Attributes:
        mode: Values of all sites of the posterior, at which the network is linearized.
        covered: The sites with a Gaussian, in the order of the Jacobians' columns.
        covariance: From Jacobians ``[..., O, n]`` by these sites to ``J Σ Jᵀ [..., O, O]``.
        product: From rows ``[..., n]`` by these sites to ``rows Σ``, of the same shape.
    """

    mode: Mapping[str, Tensor]
    covered: Sequence[str]
    covariance: Callable[[Tensor], Tensor]
    product: Callable[[Tensor], Tensor]
