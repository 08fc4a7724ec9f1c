r"""Stochastic gradient Langevin dynamics (Welling & Teh 2011).

.. math::  \theta_{t+1} = \theta_t - \frac{\varepsilon_t}{2} \nabla \hat U(\theta_t) + \xi_t, \qquad
           \xi_t \sim N(0, \varepsilon_t T I),

the Euler scheme of the overdamped Langevin diffusion, with a gradient from one minibatch and no Metropolis test. At a
constant ε the stationary covariance of a Gaussian of precision Λ is
:math:`T \Lambda^{-1} (I - \varepsilon\Lambda / 4)^{-1}` with full gradients; in one dimension minibatch noise of
variance V adds :math:`\tfrac{\varepsilon}{4} V / \Lambda`. Both errors vanish with ε. In terms of training on the mean
loss this is SGD with learning rate :math:`\eta = \varepsilon N / 2`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from pyrobnn.core.explanations import explained
from pyrobnn.sampling.kernels.base import Diffusion

__all__ = ["SGLD"]


@explained
@dataclass(frozen=True)
class SGLD(Diffusion):
    r"""SGLD: ``Δθ = -(ε/2) ∇U + N(0, εT)``.

    Args:
        step_size: ε, or a schedule of it. Welling & Teh let it decay; draws count equally here, so that a constant
            one is the usual choice.
        temperature: T, by which the variance of the noise is multiplied.

    Raises:
        ValueError: If an argument is not a positive number.
    """

    def advance(
        self,
        flat: Tensor,
        gradient: Tensor,
        state: dict[str, Tensor],
        step: int,
        noise: Callable[[], Tensor],
        step_size: float,
        temperature: float,
    ) -> None:
        """Two passes over the weights."""
        flat.add_(gradient, alpha=-0.5 * step_size)
        if temperature > 0:
            flat.add_(noise(), alpha=math.sqrt(step_size * temperature))
