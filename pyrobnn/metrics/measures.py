"""Uncertainty of a prediction, read off posterior draws of it.

Classification: ``S`` draws of class probabilities ``p_s``, ``probs: [S, ..., C]``, with mean ``p̄``. In nats,

    H(p̄)               =  mean_s H(p_s)         +  MI
    predictive_entropy     expected_entropy        mutual_information
    total                  aleatoric               epistemic

The mutual information between the label and the weights is the disagreement between draws: what more data
would remove. The same split of the quadratic entropy ``1 - ‖p‖²`` has ``probability_variance`` as its
epistemic part.

Regression: draws of a mean ``m_s`` and a noise variance ``v_s``, by the law of total variance

    Var(y)  =  mean_s v_s  +  Var_s(m_s)

Every measure is higher for less certain predictions, and is differentiable where all probabilities are
positive (the arg-max votes of ``variation_ratio`` excepted).

Sources: Depeweg et al., "Decomposition of uncertainty in Bayesian deep learning", ICML 2018,
arXiv:1710.07283; Houlsby et al., "Bayesian active learning for classification and preference learning", 2011,
arXiv:1112.5745; Gal, "Uncertainty in deep learning", PhD thesis 2016, section 3.3.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyrobnn.core.explanations import explained
from pyrobnn.metrics._checks import check_float, check_probs, check_same_shape


@explained
def entropy(probs: Tensor) -> Tensor:
    """Shannon entropy ``-sum_c p_c log p_c`` in nats, with ``0 log 0 = 0``.

    Args:
        probs: Class probabilities ``[..., C]``.

    Returns:
        Entropies ``[...]`` in ``[0, log C]``.

    Raises:
        TypeError: ``probs`` is not a floating-point tensor.
        ValueError: ``probs`` holds no probability distributions.
    """
    return torch.special.entr(check_probs(probs)).sum(-1)


@explained
def predictive_entropy(probs: Tensor) -> Tensor:
    """Total uncertainty: the entropy ``H(p̄)`` of the mean over draws, in nats.

    Args:
        probs: Class probabilities of the posterior draws, ``[S, ..., C]``.

    Returns:
        ``[...]`` in ``[0, log C]``.

    Raises:
        TypeError: ``probs`` is not a floating-point tensor.
        ValueError: ``probs`` holds no probability distributions.
    """
    return torch.special.entr(check_probs(probs, draws=True).mean(0)).sum(-1)


@explained
def expected_entropy(probs: Tensor) -> Tensor:
    """Aleatoric uncertainty: the mean over draws of the entropies ``H(p_s)``, in nats.

    Args:
        probs: Class probabilities of the posterior draws, ``[S, ..., C]``.

    Returns:
        ``[...]`` in ``[0, log C]``.

    Raises:
        TypeError: ``probs`` is not a floating-point tensor.
        ValueError: ``probs`` holds no probability distributions.
    """
    return torch.special.entr(check_probs(probs, draws=True)).sum(-1).mean(0)


@explained
def mutual_information(probs: Tensor) -> Tensor:
    """Epistemic uncertainty: ``H(p̄) - mean_s H(p_s)``, in nats; the BALD score of active learning.

    The difference cannot be negative (Jensen's inequality), so what rounding leaves below zero is set to
    zero.

    Args:
        probs: Class probabilities of the posterior draws, ``[S, ..., C]``.

    Returns:
        ``[...]`` in ``[0, log min(S, C)]``.

    Raises:
        TypeError: ``probs`` is not a floating-point tensor.
        ValueError: ``probs`` holds no probability distributions.
    """
    probs = check_probs(probs, draws=True)
    total = torch.special.entr(probs.mean(0)).sum(-1)
    aleatoric = torch.special.entr(probs).sum(-1).mean(0)
    return (total - aleatoric).clamp_min(0)


@explained
def probability_variance(probs: Tensor) -> Tensor:
    """Epistemic uncertainty ``mean_s ‖p_s‖² - ‖p̄‖²``: the variance over draws, summed over classes.

    To the Brier score what the mutual information is to the log score. Smith and Gal, "Understanding measures
    of uncertainty for adversarial example detection", 2018, arXiv:1803.08533, use the mean over classes
    instead.

    Args:
        probs: Class probabilities of the posterior draws, ``[S, ..., C]``.

    Returns:
        ``[...]`` in ``[0, 1)``.

    Raises:
        TypeError: ``probs`` is not a floating-point tensor.
        ValueError: ``probs`` holds no probability distributions.
    """
    return check_probs(probs, draws=True).var(0, correction=0).sum(-1)


@explained
def variation_ratio(probs: Tensor) -> Tensor:
    """Share of draws that do not vote for the most voted class: ``1 - max_c votes_c / S``.

    Each draw votes for its arg-max class; among equal probabilities it votes for the lowest class index. A
    tie between classes leaves the value unchanged, whichever of them is called the winner.

    Args:
        probs: Class probabilities of the posterior draws, ``[S, ..., C]``.

    Returns:
        ``[...]`` in ``[0, 1 - 1 / min(S, C)]``.

    Raises:
        TypeError: ``probs`` is not a floating-point tensor.
        ValueError: ``probs`` holds no probability distributions.
    """
    probs = check_probs(probs, draws=True)
    votes = probs.argmax(-1)
    modal_class = votes.mode(0).values
    return (votes != modal_class).to(probs.dtype).mean(0)


@explained
def least_confidence(probs: Tensor) -> Tensor:
    """One minus the largest mean probability: ``1 - max_c p̄_c``.

    The negated maximum softmax probability, shifted to be positive. The code of adversarial posterior
    distillation (Wang et al., ICML 2018, arXiv:1806.10317) calls this quantity "variation ratio"; compare its
    tables with this function, not with :func:`variation_ratio`.

    Args:
        probs: Class probabilities of the posterior draws, ``[S, ..., C]``.

    Returns:
        ``[...]`` in ``[0, 1 - 1 / C]``.

    Raises:
        TypeError: ``probs`` is not a floating-point tensor.
        ValueError: ``probs`` holds no probability distributions.
    """
    return 1 - check_probs(probs, draws=True).mean(0).amax(-1)


class VarianceDecomposition(NamedTuple):
    """Predictive variance and its parts, each ``[...]`` in the target's units squared."""

    total: Tensor
    """``aleatoric + epistemic``."""
    aleatoric: Tensor
    """Mean over draws of the noise variance."""
    epistemic: Tensor
    """Variance over draws of the mean."""


@explained
def variance_decomposition(means: Tensor, variances: Tensor) -> VarianceDecomposition:
    """Split the predictive variance by the law of total variance.

    The draws are the components of an equally weighted mixture, so the variance over draws is that of a
    population (divided by ``S``, not ``S - 1``): the total is exactly the mixture's variance.

    Args:
        means: Predictive means of the draws, ``[S, ...]``, in the target's units.
        variances: Noise variances of the draws, ``[S, ...]``, in the target's units squared.

    Returns:
        The total, aleatoric and epistemic variance, each ``[...]``.

    Raises:
        TypeError: An argument is not a floating-point tensor.
        ValueError: The shapes differ, a value is not finite, or a variance is negative.
    """
    means = check_float(means, "means", finite=True)
    variances = check_float(variances, "variances", finite=True)
    if means.ndim < 1:
        raise ValueError("means: expected shape [S, ...] (posterior draws first), got a scalar.")
    check_same_shape(variances, "variances", means.shape, "means")
    if (smallest := variances.detach().min()) < 0:
        raise ValueError(
            f"variances: expected values >= 0, got {smallest.item():.4g}. Pass variances, not log variances."
        )
    aleatoric, epistemic = variances.mean(0), means.var(0, correction=0)
    return VarianceDecomposition(aleatoric + epistemic, aleatoric, epistemic)
