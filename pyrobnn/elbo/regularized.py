r"""The uncertainty regulariser of BayesAdapter: draws must disagree on inputs that are not data.

.. math::  L = -\frac1N \mathrm{ELBO} + \alpha\, E_{\tilde x} \max\big(0,\, \gamma - \mathrm{MI}_2(\tilde x)\big),
           \qquad \mathrm{MI}_2 = H\Big(\frac{p_a + p_b}{2}\Big) - \frac{H(p_a) + H(p_b)}{2},

with :math:`p_a, p_b` the predictions of two independent draws at an auxiliary input. :math:`\mathrm{MI}_2` is a
Jensen–Shannon divergence, at most :math:`\ln 2`: a threshold above that could never be met and would push for ever.
Deng, Zhang, Yang, Dong & Zhu, *BayesAdapter* (2020).

The two draws are exchangeable, so the expected gradient is twice the one through the first of them: a step costs two
passes over the auxiliary inputs, one of them without gradients. Both run in evaluation mode, as predictions will be,
and never touch running statistics. They enter the layers as the ELBO's own do: with one draw for all inputs, what the
gradient tells of a Gaussian's scales is mostly noise, and mean field learns to disagree only with draws of their own
for each example (``estimator="per_example"``), as in the paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from pyrobnn import schedules
from pyrobnn.arguments import check_non_negative, check_positive
from pyrobnn.bayesianize import evaluating, frozen_buffers
from pyrobnn.elbo.draw_plan import DrawPlan
from pyrobnn.elbo.mean_field import MeanFieldELBO
from pyrobnn.elbo.parts import ELBOParts
from pyrobnn.estimators import EstimatorSpec
from pyrobnn.guides.base import Guide
from pyrobnn.substitution import Substitution
from pyrobnn.supervised import SupervisedModel

__all__ = ["RegularizedELBO", "perturbed"]

Auxiliary = Callable[[Any], Any] | Iterable[Any]


def perturbed(epsilon: float) -> Callable[[Tensor], Tensor]:
    """Auxiliary inputs made of the batch: uniform noise between ``-epsilon`` and ``epsilon`` is added.

    Raises:
        ValueError: If ``epsilon`` is not positive.
    """
    check_positive("epsilon", epsilon, "amplitude in units of the inputs")

    def perturb(x: Tensor) -> Tensor:
        return x + torch.empty_like(x).uniform_(-epsilon, epsilon)

    return perturb


class RegularizedELBO(MeanFieldELBO):
    """The ELBO with the uncertainty regulariser, for models with a likelihood of classes.

    Args:
        auxiliary: Inputs to be uncertain about: a function of the batch's inputs (:func:`perturbed`), or an
            iterable of input batches (a loader; pairs ``(x, y)`` lose their ``y``), begun again when it ends.
        threshold: The mutual information γ in nats that is enough, above 0 and at most ``ln 2``.
        weight: Weight α of the regulariser beside the objective per datum.
        num_particles: As for :class:`~pyrobnn.elbo.MeanFieldELBO`.
        temperature: Likewise.
        estimator: Likewise, for the ELBO's draws and the regulariser's.

    Attributes:
        disagreement: Mean :math:`\\mathrm{MI}_2` on the last auxiliary inputs, in nats.

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
        temperature: schedules.Schedule = 1.0,
        estimator: EstimatorSpec = None,
    ) -> None:
        super().__init__(num_particles, temperature, estimator=estimator)
        if not callable(auxiliary) and not isinstance(auxiliary, Iterable):
            raise TypeError(
                "auxiliary: expected a function of the inputs or an iterable of inputs, got "
                f"{type(auxiliary).__name__}."
            )
        check_positive("threshold", threshold)
        if threshold > math.log(2.0):
            raise ValueError(
                f"threshold: the mutual information of two draws lies between 0 and ln 2 = {math.log(2.0):.4f} nats, "
                f"got {threshold}; a larger one can never be reached."
            )
        check_non_negative("weight", weight)
        self.auxiliary = auxiliary
        self.threshold = threshold
        self.weight = weight
        self.disagreement: Tensor | None = None
        self._batches: Iterator[Any] | None = None

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The objective in sum units as a tensor to call ``backward()`` on."""
        loss = super().differentiable_loss(model, guide, *args, **kwargs)
        assert self.parts is not None
        plan = self._plan(guide)
        penalty = self._penalty(model, plan.draw(guide), guide, plan, self._inputs(args))
        return loss + 2.0 * self.weight * self.parts.num_data * (penalty - 0.5 * penalty.detach())

    def backward(
        self,
        model: Any,
        guide: Guide,
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None = None,
        scale: float = 1.0,
    ) -> ELBOParts:
        """Adds the gradients of ``scale`` times the objective (sum units) to the parameters; the ELBO's parts."""
        parts = super().backward(model, guide, args, kwargs, scale)
        plan = self._plan(guide)
        values, covered = plan.write(guide)
        penalty = self._penalty(model, values, guide, plan, self._inputs(args))
        (penalty * (2.0 * self.weight * parts.num_data * scale)).backward()
        if covered is not None:
            guide.discard_counted()
            guide.pull_back(0.0)
        return parts

    def _penalty(self, model: Any, values: dict[str, Tensor], guide: Guide, plan: DrawPlan, x: Any) -> Tensor:
        """Mean hinge on the auxiliary inputs, with gradients to ``values``."""
        if not isinstance(model, SupervisedModel) or not model.likelihood.is_discrete:
            raise TypeError(
                "model: the uncertainty regulariser compares class probabilities; it needs a SupervisedModel with a "
                "likelihood of classes."
            )
        likelihood = model.likelihood
        with evaluating(model), frozen_buffers(model):
            with torch.no_grad():
                others = plan.draw(guide) if plan.layerwise else _other_draw(guide, values)
                with Substitution(others):
                    second = likelihood.probabilities(model.predictive(x))
            with Substitution(values):
                first = likelihood.probabilities(model.predictive(x))
        mean = 0.5 * (first + second)
        information = _entropy(mean) - 0.5 * (_entropy(first) + _entropy(second))
        self.disagreement = information.detach().mean()
        return (self.threshold - information).clamp_min(0.0).mean()

    def _inputs(self, args: tuple[Any, ...]) -> Any:
        if callable(self.auxiliary):
            return self.auxiliary(args[0])
        for _ in range(2):
            if self._batches is None:
                self._batches = iter(self.auxiliary)
            for batch in self._batches:
                x = batch[0] if isinstance(batch, tuple | list) else batch
                return x.to(args[0].device) if torch.is_tensor(x) and torch.is_tensor(args[0]) else x
            self._batches = None
        raise ValueError("auxiliary: it yields no batch of inputs.")


def _other_draw(guide: Guide, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """A shared draw beside ``values``: of a few equally likely points, another point."""
    draws = guide.sample(2)
    name = next(iter(values))
    same = bool((draws[name][0] == values[name]).all())
    return {site: value[1 if same else 0] for site, value in draws.items()}


def _entropy(probabilities: Tensor) -> Tensor:
    """Entropy in nats, whose gradient is finite where a probability is zero."""
    return -torch.xlogy(probabilities, probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny)).sum(-1)
