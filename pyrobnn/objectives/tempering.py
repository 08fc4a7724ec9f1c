r"""Tempering: weighting the divergence against the likelihood, and the weight under the default prior.

.. math::  \mathcal{L}_\lambda = E_q[\log p(D \mid w)] - \lambda\, \mathrm{KL}(q \,\|\, p).

λ < 1 sharpens the posterior (a cold posterior in the sense of Wenzel et al. 2020 for variational inference); a
schedule that rises from 0 to 1, ``pyrobnn.schedules.Linear(0.0, 1.0, num_steps + 1, hold=True)``, is KL annealing
(Bowman et al. 2016; Sønderby et al. 2016).

A mean field with D > N independent numbers has more divergence to pay than N data can repay: at :math:`\lambda = 1`
it stays near the prior, where HMC under the same prior does not. The default prior of the library (``prior=None``)
therefore comes with :math:`\lambda = \min(1, N / D)`. That is a cold posterior and no bound of the evidence: it fits
the data, and it is too sure away from them. ``temperature=1`` is the ELBO.

Pyro takes the scale of an analytic KL from the guide and that of a sampled
one from both sides, so a handler must wrap model *and* guide.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pyro.poutine.util import site_is_subsample
from torch import nn

from pyrobnn.core.arguments import check_non_negative
from pyrobnn.core.explanations import explained
from pyrobnn.core.handlers import ExclusiveMessenger
from pyrobnn.guides.base import Guide
from pyrobnn.model.bayesianize import has_default_prior
from pyrobnn.model.declarations import declared_num_data

__all__ = ["DefaultTemperature", "Tempered", "tempered"]


class DefaultTemperature:
    """The weight of the divergence where none is stated: 1, or ``min(1, N / D)`` under the default prior.

    N is the number of data that the model declares, D that of the numbers for which the guide has a density. Point
    estimates and mixtures of points have none, so theirs is 1.
    """

    def __init__(self) -> None:
        self._sized: tuple[Guide, int] | None = None  # of the last guide: its facts take longer than a small network

    def __getstate__(self) -> dict[str, Any]:
        """Copies and files do not hold the guide."""
        return {"_sized": None}

    def __call__(self, model: Any, guide: Any) -> float:
        """The weight for a model and its guide."""
        if not isinstance(guide, Guide) or not isinstance(model, nn.Module):
            return 1.0
        if (num_data := declared_num_data(model)) is None or not has_default_prior(model):
            return 1.0
        if self._sized is None or self._sized[0] is not guide:
            self._sized = guide, sum(guide.layout[name].shape.numel() for name in guide.facts.density)
        size = self._sized[1]
        return 1.0 if size <= num_data else num_data / size


@explained
class Tempered(ExclusiveMessenger):
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


def tempered(
    model: Any, guide: Any, weights: Callable[[Any, Any], Mapping[str, float]], further: Sequence[str]
) -> tuple[Any, Any]:
    """Model and guide of other libraries for Pyro's own ELBO, which knows no terms but its two.

    Args:
        model: The model.
        guide: The guide.
        weights: From model and guide to the weights of the objective's terms.
        further: Names of the objective's further terms.

    Raises:
        TypeError: If there are any.
    """
    if further:
        raise TypeError(
            f"guide: the terms {', '.join(further)} of the objective need a guide of pyrobnn, got "
            f"{type(guide).__name__}."
        )
    temperature = weights(model, guide)["divergence"]
    if temperature == 1.0:
        return model, guide
    return Tempered(temperature)(model), Tempered(temperature)(guide)
