r"""Choosing a model without target labels.

* :func:`target_entropy`: the mean entropy of predictions of targets; low where classes are separated, but also where a
  network is sure of nonsense.
* :func:`importance_weighted_risk`: the source's held-out loss, weighted by how target-like each row is (Sugiyama,
  Krauledat & Müller 2007),

  .. math::  \hat R = \frac1n \sum_i w_i \ell_i, \qquad
             w(x) = \frac{p_t(x)}{p_s(x)} \approx \frac{n_s}{n_t} \frac{P(t \mid f(x))}{P(s \mid f(x))},

  with a control variate that lowers its variance (DEV: You, Wang, Long & Jordan, *Towards Accurate Model Selection in
  Deep Unsupervised Domain Adaptation*, 2019). Weights come from a logistic regression on features of training rows.

Neither reads a label of the target. The released code of CAT reports the best of its checkpoints by target labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrobnn.core.arguments import check_positive
from pyrobnn.model.likelihoods.predictions import ClassPrediction

__all__ = ["WeightedRisk", "density_ratio", "importance_weighted_risk", "target_entropy"]


def target_entropy(prediction: ClassPrediction) -> float:
    """The mean entropy of the predictive distribution of targets, in nats."""
    return float(prediction.total.mean())


@dataclass(frozen=True)
class WeightedRisk:
    """An estimate of the target's risk.

    Attributes:
        value: The estimate, with the control variate.
        plain: Without it.
        standard_error: Of ``value``, given the weights.
        effective_size: :math:`(\\sum w)^2 / \\sum w^2`: of how many target rows it is worth.
    """

    value: float
    plain: float
    standard_error: float
    effective_size: float


def importance_weighted_risk(losses: Tensor, weights: Tensor) -> WeightedRisk:
    """The weighted mean of held-out losses of the source.

    Args:
        losses: Losses ``[n]``, such as errors or ``-log p``.
        weights: Density ratios ``[n]`` (:func:`density_ratio`).

    Raises:
        ValueError: If shapes differ, there are fewer than two rows, or a weight is negative or not finite.
    """
    if losses.shape != weights.shape or losses.dim() != 1 or len(losses) < 2:
        raise ValueError(
            f"losses, weights: expected two vectors of one length of at least 2, got {list(losses.shape)} and "
            f"{list(weights.shape)}."
        )
    losses, weights = losses.double(), weights.double()
    if not bool((weights.isfinite() & (weights >= 0)).all()):
        raise ValueError("weights: expected finite numbers of at least 0.")
    weighted = weights * losses
    variance = weights.var()
    control = 0.0 if float(variance) == 0.0 else float(torch.cov(torch.stack([weighted, weights]))[0, 1] / variance)
    terms = weighted - control * (weights - 1.0)
    effective = float(weights.sum().square() / weights.square().sum().clamp(min=1e-300))
    error = float((terms.var() / len(terms)).sqrt())
    return WeightedRisk(float(terms.mean()), float(weighted.mean()), error, effective)


def density_ratio(source: Tensor, target: Tensor, at: Tensor, *, penalty: float = 1.0) -> Tensor:
    """How much more likely features are in the target than in the source, by logistic regression.

    Args:
        source: Features of source rows ``[n, F]``, not those of the risk.
        target: Features of target rows ``[m, F]``.
        at: Where the ratio is wanted ``[k, F]``.
        penalty: Factor of the squared norm of the coefficients of standardized features, in nats.

    Returns:
        Ratios ``[k]``.

    Raises:
        ValueError: If features have different widths, or ``penalty`` is not positive.
    """
    check_positive("penalty", penalty)
    if len({part.shape[-1] for part in (source, target, at)}) > 1 or any(part.dim() != 2 for part in (source, target)):
        shapes = ", ".join(str(list(part.shape)) for part in (source, target, at))
        raise ValueError(f"features: expected matrices of one width, got {shapes}.")
    both = torch.cat([source, target]).double()
    middle, scale = both.mean(0), both.std(0).clamp(min=1e-12)
    rows = torch.cat([(both - middle) / scale, both.new_ones(len(both), 1)], 1)
    is_target = torch.cat([torch.zeros(len(source)), torch.ones(len(target))]).to(rows)
    ridge = torch.full((rows.shape[1],), 2.0 * penalty, dtype=rows.dtype)
    ridge[-1] = 0.0
    coefficients = rows.new_zeros(rows.shape[1])
    for _ in range(100):  # Newton's method on a convex function, with halved steps while it would rise
        probability = (rows @ coefficients).sigmoid()
        gradient = rows.mT @ (probability - is_target) + ridge * coefficients
        hessian = (rows * (probability * (1 - probability)).unsqueeze(1)).mT @ rows + torch.diag(ridge + 1e-9)
        step = torch.linalg.solve(hessian, gradient)
        coefficients = _descended(rows, is_target, ridge, coefficients, step)
        if float(step.abs().max()) < 1e-8:
            break
    points = torch.cat([(at.double() - middle) / scale, at.new_ones(len(at), 1, dtype=torch.float64)], 1)
    return (len(source) / len(target) * (points @ coefficients).exp()).to(at.dtype)


def _descended(rows: Tensor, labels: Tensor, ridge: Tensor, start: Tensor, step: Tensor) -> Tensor:
    def loss(coefficients: Tensor) -> Tensor:
        fit = F.binary_cross_entropy_with_logits(rows @ coefficients, labels, reduction="sum")
        return fit + 0.5 * (ridge * coefficients.square()).sum()

    before, length = loss(start), 1.0
    while float(loss(start - length * step)) > float(before) and length > 1e-6:
        length /= 2.0
    return start - length * step
