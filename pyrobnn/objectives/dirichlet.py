r"""Objectives of Dirichlet networks: concentrations γ(x) are brought close to a target β, and to Dir(1) at outliers.

A label y is evidence for its class, :math:`\beta = 1 + \lambda^{-1} \delta_y`, as if it had been seen
:math:`\lambda^{-1}` times under a uniform prior. The forms of the loss of a datum:

* ``"digamma"``: the negative ELBO of the class probabilities z,
  :math:`\lambda^{-1} [\psi(\gamma_0) - \psi(\gamma_y)] + \mathrm{KL}[\mathrm{Dir}(\gamma) \| \mathrm{Dir}(1)]`;
* ``"reverse"``: :math:`\mathrm{KL}[\mathrm{Dir}(\gamma) \| \mathrm{Dir}(\beta)]`, the same up to a constant (Malinin
  & Gales, *Reverse KL-Divergence Training of Prior Networks*, 2019, with :math:`\lambda^{-1} = 100`);
* ``"forward"``: :math:`\mathrm{KL}[\mathrm{Dir}(\beta) \| \mathrm{Dir}(\gamma)]` (Malinin & Gales, *Predictive
  Uncertainty Estimation via Prior Networks*, 2018, with the smoothed target
  :math:`\beta = \lambda^{-1} ((1 - C \epsilon) \delta_y + \epsilon)`, :math:`\lambda^{-1} = 1000`,
  :math:`\epsilon = 0.01`);
* ``"squared"``: :math:`E \|\delta_y - z\|^2`; with the divergence of Dir(1) from what evidence there is for other
  classes it is evidential deep learning (Sensoy, Kaplan & Kandemir 2018).

All are sums over the data, :math:`N / B \sum_i \omega_i \ell_i`, beside the divergence of the weights from their prior,
so that any guide can be trained. They replace the log likelihood, whose value is reported but does not count. One label
then weighs as much as :math:`\lambda^{-1}` labels against the prior; ``weight=λ`` undoes that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrobnn.core import schedules
from pyrobnn.core.arguments import check_positive
from pyrobnn.core.explanations import explained
from pyrobnn.distributions.dirichlet import dirichlet_kl, dirichlet_kl_to_uniform
from pyrobnn.estimators import EstimatorSpec
from pyrobnn.model.likelihoods import Dirichlet, Likelihood
from pyrobnn.model.substitution import summed_score
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.objectives.auxiliary import Auxiliary, OutlierTerm
from pyrobnn.objectives.elbo import ELBO
from pyrobnn.objectives.terms import Evaluation, Run, Term

__all__ = ["DirichletELBO", "DirichletOutliers", "DirichletTerm", "EvidenceForm", "MisleadingEvidence"]

EvidenceForm = Literal["digamma", "reverse", "forward", "squared"]
"""The loss of a datum."""


class _LabelledTerm(Term):
    """A sum over the data of a loss of concentrations and labels, under the weights and masks of the log likelihood."""

    def loss(self, gamma: Tensor, labels: Tensor) -> Tensor:
        """The loss ``[B, ...]`` of concentrations ``[B, ..., C]`` and labels in one-hot form, in double precision."""
        raise NotImplementedError

    def __call__(self, runs: Sequence[Run], evaluation: Evaluation) -> Tensor:
        """The sum at a draw, scaled to the data set.

        Raises:
            TypeError: If the model's likelihood is not ``Dirichlet``.
        """
        likelihood = _dirichlet(evaluation.model, type(self).__name__)
        run = runs[0]
        gamma = likelihood.concentrations(run.outputs)
        total = gamma.new_zeros(())
        for message in run.messages.observed:
            y = message["value"]
            seen = likelihood.observed_mask(y)
            labels = F.one_hot(y.long() if seen is None else y.long().where(seen, 0), gamma.shape[-1]).to(gamma.dtype)
            loss = self.loss(gamma.double(), labels.double()).to(gamma.dtype)
            if likelihood.class_weight is not None:
                loss = loss * (labels @ likelihood.class_weight.to(labels.dtype))
            if seen is not None:
                loss = torch.where(seen, loss, 0.0)
            total = total + summed_score(loss.reshape(len(loss), -1).sum(1), message)
        return total


@explained
class DirichletTerm(_LabelledTerm):
    """The loss of concentrations against what labels say, which is minimized.

    Args:
        form: Which loss.
        evidence: What a label counts for, :math:`λ^{-1}`. Not used by ``"squared"``.
        smoothing: None for the target :math:`1 + λ^{-1} δ_y`; a number ε for ``evidence`` times
            :math:`(1 - C ε) δ_y + ε`. Not used by ``"squared"``.
        weight: Factor in the loss, or its schedule.

    Raises:
        ValueError: If an argument is out of range; at the first step, if ``smoothing`` is not below 1 / C.
    """

    name = "dirichlet"

    def __init__(
        self,
        form: EvidenceForm = "reverse",
        *,
        evidence: float = 100.0,
        smoothing: float | None = None,
        weight: schedules.Schedule = 1.0,
    ) -> None:
        super().__init__(schedules.resolve("weight", weight, allow_zero=True))
        if form not in get_args(EvidenceForm):
            raise ValueError(f"form: expected 'digamma', 'reverse', 'forward' or 'squared', got {form!r}.")
        check_positive("evidence", evidence)
        if smoothing is not None:
            check_positive("smoothing", smoothing)
        self.form, self.evidence, self.smoothing = form, evidence, smoothing

    def target(self, labels: Tensor) -> Tensor:
        """The concentrations β ``[..., C]`` of labels in one-hot form.

        Raises:
            ValueError: If ``smoothing`` leaves the label less than the other classes.
        """
        if self.smoothing is None:
            return 1.0 + self.evidence * labels
        classes = labels.shape[-1]
        if self.smoothing * classes >= 1.0:
            raise ValueError(
                f"smoothing: expected less than 1 / {classes} for {classes} classes, got {self.smoothing}."
            )
        return self.evidence * ((1.0 - classes * self.smoothing) * labels + self.smoothing)

    def loss(self, gamma: Tensor, labels: Tensor) -> Tensor:
        """The loss ``[B, ...]``."""
        if self.form == "squared":
            return _squared(gamma, labels)
        beta = self.target(labels)
        return _FORMS[self.form](gamma, beta)


@explained
class MisleadingEvidence(_LabelledTerm):
    """The divergence of Dir(1) from the evidence for other classes than the label's, which is minimized.

    The concentration of the label is replaced by 1 in it. Sensoy et al. (2018) let the weight grow to 1 over ten
    epochs: ``schedules.Linear(0.0, 1.0, 10 * len(loader), hold=True)``.

    Args:
        weight: Factor in the loss, or its schedule.
    """

    name = "misleading_evidence"

    def __init__(self, weight: schedules.Schedule = 1.0) -> None:
        super().__init__(schedules.resolve("weight", weight, allow_zero=True))

    def loss(self, gamma: Tensor, labels: Tensor) -> Tensor:
        """The divergence ``[B, ...]``."""
        return dirichlet_kl_to_uniform(torch.where(labels > 0, 1.0, gamma))


@explained
class DirichletOutliers(OutlierTerm):
    """N times the mean divergence of Dir(γ) and Dir(1) at outliers: there is no evidence for any class.

    Args:
        outliers: An iterable of batches of outliers, begun again when it ends (pairs ``(x, y)`` lose their ``y``); or
            a function of the batch's inputs.
        weight: Factor in the loss, or its schedule.
        form: ``"reverse"`` for KL[Dir(γ) ‖ Dir(1)], ``"forward"`` for KL[Dir(1) ‖ Dir(γ)].

    Raises:
        TypeError: If ``outliers`` is neither; at the first step, if the model's likelihood is not ``Dirichlet``.
        ValueError: If ``form`` is neither, ``weight`` is negative, or at the first step ``outliers`` yields nothing.
    """

    name = "outliers"

    def __init__(
        self,
        outliers: Auxiliary,
        weight: schedules.Schedule = 1.0,
        *,
        form: Literal["reverse", "forward"] = "reverse",
    ) -> None:
        super().__init__(outliers, schedules.resolve("weight", weight, allow_zero=True))
        if form not in ("reverse", "forward"):
            raise ValueError(f"form: expected 'reverse' or 'forward', got {form!r}.")
        self.form = form

    def check(self, likelihood: Likelihood) -> None:
        """Needs concentrations."""
        _check(likelihood, type(self).__name__)

    def penalty(self, likelihood: Likelihood, outputs: Tensor) -> Tensor:
        """The divergence ``[B, ...]``."""
        assert isinstance(likelihood, Dirichlet)
        gamma = likelihood.concentrations(outputs)
        found = (
            dirichlet_kl_to_uniform(gamma) if self.form == "reverse" else dirichlet_kl(torch.ones_like(gamma), gamma)
        )
        return found.to(gamma.dtype)


@explained
class DirichletELBO(ELBO):
    """The objective of Dirichlet networks, for models with the likelihood :class:`~pyrobnn.likelihoods.Dirichlet`.

    ``history.terms`` has its parts by name: ``"dirichlet"``, ``"misleading_evidence"``, ``"outliers"``.

    Args:
        form: The loss of a datum, see :mod:`pyrobnn.objectives.dirichlet`.
        evidence: What a label counts for, as for :class:`DirichletTerm`.
        smoothing: Likewise.
        outliers: Inputs without evidence for any class, as for :class:`DirichletOutliers`; None for none. Their
            divergence is ``"forward"`` where the form is, else ``"reverse"``.
        outlier_weight: Their weight relative to the objective per datum, or its schedule.
        misleading_weight: Weight of :class:`MisleadingEvidence`, or its schedule; None for 1 where the form is
            ``"squared"``, and for none of it else.
        num_particles: As for :class:`~pyrobnn.objectives.ELBO`.
        temperature: Likewise, of the divergence of the weights.
        estimator: Likewise.

    Raises:
        TypeError: If ``outliers`` are no inputs; at the first step, if the model's likelihood is not ``Dirichlet``.
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        form: EvidenceForm = "reverse",
        *,
        evidence: float = 100.0,
        smoothing: float | None = None,
        outliers: Auxiliary | None = None,
        outlier_weight: schedules.Schedule = 1.0,
        misleading_weight: schedules.Schedule | None = None,
        num_particles: int = 1,
        temperature: schedules.Schedule | None = None,
        estimator: EstimatorSpec = None,
    ) -> None:
        terms: list[Term] = [DirichletTerm(form, evidence=evidence, smoothing=smoothing)]
        if misleading_weight is not None or form == "squared":
            terms.append(MisleadingEvidence(1.0 if misleading_weight is None else misleading_weight))
        if outliers is not None:
            terms.append(
                DirichletOutliers(outliers, outlier_weight, form="forward" if form == "forward" else "reverse")
            )
        super().__init__(num_particles, temperature, estimator=estimator, terms=terms, likelihood_weight=0.0)


def _squared(gamma: Tensor, labels: Tensor) -> Tensor:
    """Expected squared distance of the label's indicator and the probabilities."""
    gamma0 = gamma.sum(-1, keepdim=True)
    mean = gamma / gamma0
    return ((labels - mean).square() + mean * (1.0 - mean) / (gamma0 + 1.0)).sum(-1)


def _digamma(gamma: Tensor, beta: Tensor) -> Tensor:
    """Expected negative log likelihood of ``β - 1`` labels, plus the divergence from their prior Dir(1)."""
    surprise = torch.digamma(gamma.sum(-1, keepdim=True)) - torch.digamma(gamma)
    return ((beta - 1.0) * surprise).sum(-1) + dirichlet_kl_to_uniform(gamma)


_FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "digamma": _digamma,
    "reverse": dirichlet_kl,
    "forward": lambda gamma, beta: dirichlet_kl(beta, gamma),
}


def _dirichlet(model: object, name: str) -> Dirichlet:
    if not isinstance(model, SupervisedModel):
        raise TypeError(f"model: {name} needs a SupervisedModel, got {type(model).__name__}.")
    return _check(model.likelihood, name)


def _check(likelihood: Likelihood, name: str) -> Dirichlet:
    if not isinstance(likelihood, Dirichlet):
        raise TypeError(
            f"model: {name} compares concentrations; it needs the likelihood Dirichlet, got "
            f"{type(likelihood).__name__}."
        )
    return likelihood
