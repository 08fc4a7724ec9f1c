r"""Tempering: weighting the divergence against the likelihood.

.. math::  \mathcal{L}_\lambda = E_q[\log p(D \mid w)] - \lambda\, \mathrm{KL}(q \,\|\, p).

λ < 1 sharpens the posterior (a cold posterior in the sense of Wenzel et al. 2020 for variational inference); a
schedule that rises from 0 to 1, ``pyrobnn.schedules.Linear(0.0, 1.0, num_steps + 1, hold=True)``, is KL annealing
(Bowman et al. 2016; Sønderby et al. 2016). Pyro takes the scale of an analytic KL from the guide and that of a sampled
one from both sides, so a handler must wrap model *and* guide.
"""

from __future__ import annotations

from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample

from pyrobnn.core.arguments import check_non_negative

__all__ = ["Tempered"]


class Tempered(Messenger):
    """Scales the log density of every latent site by ``temperature``; for any Pyro ELBO.

    Wrap both sides: ``SVI(Tempered(λ)(model), Tempered(λ)(guide), …)``.
    """

    def __init__(self, temperature: float) -> None:
        super().__init__()
        check_non_negative("temperature", temperature)
        self.temperature = temperature

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and not site_is_subsample(msg):
            msg["scale"] = msg["scale"] * self.temperature
