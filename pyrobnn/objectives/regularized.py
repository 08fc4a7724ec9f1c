r"""The uncertainty regularizer of BayesAdapter: draws must disagree on inputs that are not data.

.. math::  L = -\frac1N \mathrm{ELBO} + \alpha\, E_{\tilde x} \max\big(0,\, \gamma - \mathrm{MI}_2(\tilde x)\big),
           \qquad \mathrm{MI}_2 = H\Big(\frac{p_a + p_b}{2}\Big) - \frac{H(p_a) + H(p_b)}{2},

with :math:`p_a, p_b` the predictions of two independent draws at an auxiliary input. :math:`\mathrm{MI}_2` is a
Jensen–Shannon divergence, at most :math:`\ln 2`: a threshold above that cannot be reached.
Deng, Zhang, Yang, Dong & Zhu, *BayesAdapter* (2020).

The two draws are exchangeable, so the expected gradient is twice the one through the first of them: a step costs two
passes over the auxiliary inputs, one of them without gradients. Both run in evaluation mode, as predictions will be,
and never touch running statistics. They are drawn by the estimator of the ELBO. With one draw for all inputs the
gradient with respect to the scales of a Gaussian is mostly noise; mean field learns to disagree only with a draw for
each example (``estimator="per_example"``), as in the paper. Members of an ensemble run with their own statistics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyrobnn.core import schedules
from pyrobnn.core.arguments import check_non_negative, check_positive
from pyrobnn.core.explanations import explained
from pyrobnn.estimators import EstimatorSpec
from pyrobnn.model.bayesianize import evaluating
from pyrobnn.model.draws import Draws
from pyrobnn.model.likelihoods import ClassLikelihood
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.objectives.auxiliary import Auxiliary, AuxiliaryTerm
from pyrobnn.objectives.elbo import ELBO
from pyrobnn.objectives.terms import Evaluation, Run

__all__ = ["DisagreementTerm", "RegularizedELBO", "perturbed"]


@explained
def perturbed(epsilon: float) -> Callable[[Tensor], Tensor]:
    """Auxiliary inputs made of the batch: uniform noise between ``-epsilon`` and ``epsilon`` is added.

    Raises:
        ValueError: If ``epsilon`` is not positive.
    """
    check_positive("epsilon", epsilon, "amplitude in units of the inputs")

    def perturb(x: Tensor) -> Tensor:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            kind = f"a tensor of {x.dtype}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
            raise TypeError(
                f"auxiliary: perturbed() adds noise to one tensor of floating-point inputs, got {kind}; pass "
                "a function of one's own from the inputs to auxiliary ones."
            )
        return x + torch.empty_like(x).uniform_(-epsilon, epsilon)

    return perturb


@explained
class DisagreementTerm(AuxiliaryTerm):
    """N times the mean hinge ``max(0, γ - MI₂)`` of two draws on auxiliary inputs.

    Args:
        auxiliary: A function of the batch's inputs, or an iterable of input batches.
        threshold: The mutual information γ in nats that is enough.
        weight: Weight α relative to the objective per datum.

    Attributes:
        disagreement: Mean :math:`\\mathrm{MI}_2` on the last auxiliary inputs, in nats.
    """

    name = "regularizer"

    def __init__(self, auxiliary: Auxiliary, threshold: float, weight: float) -> None:
        super().__init__(auxiliary, weight)
        self.threshold = threshold
        self.disagreement: Tensor | None = None

    def __call__(self, runs: Sequence[Run], evaluation: Evaluation) -> Tensor:
        """The value, whose gradient is twice that through the first of the two draws."""
        model, step = evaluation.model, evaluation.step
        if not isinstance(model, SupervisedModel) or not isinstance(model.likelihood, ClassLikelihood):
            raise TypeError(
                "model: the uncertainty regularizer compares class probabilities; it needs a SupervisedModel with a "
                "likelihood of classes."
            )
        x = self.inputs(evaluation)
        with evaluating(model):
            with torch.no_grad():
                draws = step.draw(None)
                second, component = _probabilities(model, draws, x), draws.component
                del draws  # its memory is for the draw with gradients
            first = _probabilities(model, step.draw(None, avoid=component), x)
        mean = 0.5 * (first + second)
        information = _entropy(mean) - 0.5 * (_entropy(first) + _entropy(second))
        self.disagreement = information.detach().mean()
        hinge = (self.threshold - information).clamp_min(0.0).mean()
        return model.num_data * (2.0 * hinge - hinge.detach())


@explained
class RegularizedELBO(ELBO):
    """The ELBO with the uncertainty regularizer, for models with a likelihood of classes.

    Args:
        auxiliary: Inputs to be uncertain about: a function of the batch's inputs (:func:`perturbed`), or an
            iterable of input batches (a loader; pairs ``(x, y)`` lose their ``y``), begun again when it ends.
        threshold: The mutual information γ in nats that is enough, above 0 and at most ``ln 2``.
        weight: Weight α of the regularizer relative to the objective per datum.
        num_particles: As for :class:`~pyrobnn.objectives.ELBO`.
        temperature: Likewise.
        estimator: Likewise, for the ELBO's draws and the regularizer's.

    Raises:
        TypeError: If ``auxiliary`` is neither; at the first step, if the model has no likelihood of classes.
        ValueError: If ``threshold`` or ``weight`` is out of range, or ``auxiliary`` yields nothing.
    """

    def __init__(
        self,
        auxiliary: Auxiliary,
        threshold: float = 0.5,
        weight: float = 1.0,
        *,
        num_particles: int = 1,
        temperature: schedules.Schedule | None = None,
        estimator: EstimatorSpec = None,
    ) -> None:
        check_positive("threshold", threshold)
        if threshold > math.log(2.0):
            raise ValueError(
                f"threshold: the mutual information of two draws lies between 0 and ln 2 = {math.log(2.0):.4f} nats, "
                f"got {threshold}; a larger one can never be reached."
            )
        check_non_negative("weight", weight)
        self.term = DisagreementTerm(auxiliary, threshold, weight)
        super().__init__(num_particles, temperature, estimator=estimator, terms=[self.term])

    @property
    def disagreement(self) -> Tensor | None:
        """Mean :math:`\\mathrm{MI}_2` on the last auxiliary inputs, in nats."""
        return self.term.disagreement


def _probabilities(model: SupervisedModel, draws: Draws, x: Any) -> Tensor:
    """Class probabilities under a draw, with its buffers; running statistics are not updated."""
    with draws.running(model, update=False):
        assert isinstance(model.likelihood, ClassLikelihood)
        return model.likelihood.probabilities(model.predictive(x))


def _entropy(probabilities: Tensor) -> Tensor:
    """Entropy in nats, whose gradient is finite where a probability is zero."""
    return -torch.xlogy(probabilities, probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny)).sum(-1)
