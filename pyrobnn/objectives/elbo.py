r"""The evidence lower bound with exact KL terms wherever one is registered.

.. math::  \mathrm{ELBO} = \frac{N}{B} \sum_{i \in \mathrm{batch}} \log p(y_i \mid x_i, w)
           - \lambda\, \mathrm{KL}(q \,\|\, p), \qquad w \sim q.

The model runs once per draw with the draw substituted; only observed sites are scored, and the guide's step gives the
divergence of the latent ones, from the priors as that run applied them: on flat vectors where they are fixed Normals,
through :func:`torch.distributions.kl_divergence` where a closed form is registered for the pair, else as
``log q - log p`` of the draw. For guides that are not of this library the class behaves as Pyro's
``TraceMeanField_ELBO``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyrobnn.core import schedules
from pyrobnn.core.arguments import check_non_negative
from pyrobnn.core.explanations import explained
from pyrobnn.estimators import EstimatorSpec
from pyrobnn.objectives.objective import Objective
from pyrobnn.objectives.terms import DivergenceTerm, LogLikelihoodTerm, Term

__all__ = ["ELBO"]


@explained
class ELBO(Objective):
    """The ELBO; use it with :func:`pyrobnn.fit`, Pyro's ``SVI``, or as a module.

    Args:
        num_particles: Draws per evaluation. Running statistics of the network are updated by the first only.
        temperature: Weight λ of the divergence, or a schedule ``step -> λ`` counted over training steps. None for 1,
            and for ``min(1, N / D)`` where the model has the default prior (``prior=None``) and D numbers have a
            density: a tempered objective, no bound (:mod:`pyrobnn.objectives.tempering`). ``temperature=1`` is the
            ELBO for any prior.
        estimator: How draws enter the layers (:mod:`pyrobnn.estimators`): an estimator, its name, or ordered
            ``(pattern of site names, estimator)`` rules; None for that of the surrounding
            :func:`pyrobnn.estimators.use` block, else one shared draw.
        terms: Further terms of the objective.
        likelihood_weight: Factor of the negative log likelihood, at least 0.

    Raises:
        ValueError: If ``num_particles`` is no positive int, ``temperature`` is not positive, or ``likelihood_weight``
            negative.
    """

    def __init__(
        self,
        num_particles: int = 1,
        temperature: schedules.Schedule | None = None,
        *,
        estimator: EstimatorSpec = None,
        terms: Sequence[Term] = (),
        likelihood_weight: float = 1.0,
    ) -> None:
        check_non_negative("likelihood_weight", likelihood_weight)
        weight = None if temperature is None else schedules.resolve("temperature", temperature, allow_zero=True)
        own = [LogLikelihoodTerm(-likelihood_weight), DivergenceTerm(weight)]
        super().__init__([*own, *terms], num_particles, estimator=estimator)

    @property
    def temperature(self) -> schedules.Schedule | None:
        """Weight λ of the divergence, its schedule, or None for that of the model's prior."""
        term = self.terms[1]
        assert isinstance(term, DivergenceTerm)
        return term.weight if term.default is None else None

    def current_temperature(self, model: Any = None, guide: Any = None) -> float:
        """The weight λ of the next training step."""
        return self.terms[1].current_weight(self.num_steps, model, guide)
