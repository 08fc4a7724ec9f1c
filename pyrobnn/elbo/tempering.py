r"""Tempering: weighting the divergence against the likelihood.

.. math::  \mathcal{L}_\lambda = E_q[\log p(D \mid w)] - \lambda\, \mathrm{KL}(q \,\|\, p).

λ < 1 sharpens the posterior (a cold posterior in the sense of Wenzel et al. 2020 for variational inference); a
schedule that rises from 0 to 1 is KL annealing (Bowman et al. 2016; Sønderby et al. 2016). Pyro takes the scale of
an analytic KL from the guide and that of a sampled one from both sides, so a handler must wrap model *and* guide.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample

__all__ = ["Temperature", "Tempered", "linear_annealing"]

Temperature = float | Callable[[int], float]


class Tempered(Messenger):
    """Scales the log density of every latent site by ``temperature``; for any Pyro ELBO.

    Wrap both sides: ``SVI(Tempered(λ)(model), Tempered(λ)(guide), …)``.
    """

    def __init__(self, temperature: float) -> None:
        super().__init__()
        if not temperature >= 0:
            raise ValueError(f"temperature: expected a weight of the KL of at least 0, got {temperature}.")
        self.temperature = temperature

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and not site_is_subsample(msg):
            msg["scale"] = msg["scale"] * self.temperature


def linear_annealing(num_steps: int, start: float = 0.0, end: float = 1.0) -> Callable[[int], float]:
    """A temperature that goes linearly from ``start`` to ``end`` over the first ``num_steps`` steps.

    Raises:
        ValueError: If ``num_steps`` is not positive or a temperature is negative.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps: expected at least one step of annealing, got {num_steps}.")
    if start < 0 or end <= 0:
        raise ValueError(
            f"start, end: expected weights of the KL of at least 0, the last positive, got {start}, {end}."
        )
    return lambda step: start + (end - start) * min(1.0, step / num_steps)
