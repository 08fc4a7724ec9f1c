r"""Adversarial logit pairing: outputs at an input and at its perturbed version should be close.

.. math::  L = -(1-c)\, \log p(y \mid x', w) - c\, \log p(y \mid x, w) + \lambda\, \| z(x) - z(x') \|^2

for each datum, with z the outputs of the network under the same draw w. Gradients go through both. Kannan, Kurakin &
Goodfellow, *Adversarial Logit Pairing* (2018), mix clean and perturbed inputs in halves. Engstrom, Ilyas & Athalye
(2018) found that the defence does not stand up to attacks of many steps.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from pyrobnn.core import schedules
from pyrobnn.core.explanations import explained
from pyrobnn.estimators import EstimatorSpec
from pyrobnn.objectives.terms import Evaluation, Run, Term
from pyrobnn.robustness.training.objective import AdversarialTraining, clean_run, over_data
from pyrobnn.robustness.training.perturbation import Perturbation

__all__ = ["LogitPairing"]


@explained
class LogitPairing(AdversarialTraining):
    """Adversarial training with logit pairing (ALP). The term ``"logit_pairing"`` is in ``history.terms``.

    Args:
        perturbation: How inputs are made worse, such as :class:`ProjectedGradient`.
        weight: Weight λ of the squared distance, summed over outputs, relative to the loss per datum; or its schedule.
        clean_share: Weight c of the log likelihood at inputs as they are.
        num_particles: As for :class:`AdversarialTraining`.
        temperature: As there.
        estimator: As there.
        terms: Further terms.

    Raises:
        TypeError: As for :class:`AdversarialTraining`.
        ValueError: If ``weight`` is negative, and as there.
    """

    def __init__(
        self,
        perturbation: Perturbation,
        weight: schedules.Schedule = 0.5,
        *,
        clean_share: float = 0.5,
        num_particles: int = 1,
        temperature: schedules.Schedule | None = None,
        estimator: EstimatorSpec = None,
        terms: Sequence[Term] = (),
    ) -> None:
        weight = schedules.resolve("weight", weight, allow_zero=True, zero_constant=True)
        super().__init__(
            perturbation,
            clean_share=clean_share,
            num_particles=num_particles,
            temperature=temperature,
            estimator=estimator,
            terms=[_SquaredDistance(weight), *terms],
        )


class _SquaredDistance(Term):
    """N times the mean squared distance of outputs at perturbed inputs from those at inputs as they are."""

    name = "logit_pairing"

    def __call__(self, runs: Sequence[Run], evaluation: Evaluation) -> Tensor:
        """Under the draw."""
        run = runs[0]
        distance = (run.outputs - clean_run(run, evaluation).outputs).square()
        return over_data(distance.flatten(1).sum(1), run, evaluation)
