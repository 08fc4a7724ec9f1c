r"""Scores of a network's outputs, each larger for what is more abnormal.

For outputs s (unnormalized log probabilities) with probabilities p = softmax(s):

* maximum softmax probability :math:`-\max_c p_c` (Hendrycks & Gimpel 2017);
* maximum logit :math:`-\max_c s_c` (Hendrycks et al. 2022);
* energy :math:`-T \log \sum_c e^{s_c / T}` (Liu et al. 2020);
* entropy :math:`-\sum_c p_c \log p_c`;
* generalized entropy :math:`\sum_{j \le M} p_{(j)}^\gamma (1 - p_{(j)})^\gamma` over the M largest (GEN, Liu et al.
  2023).

The averaged prediction has mean *probabilities*; logit and energy, which normalized probabilities do not have, are
those of the mean outputs.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from pyrobnn.core.arguments import check_positive, check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.detection.base import Detector, Form, reduced
from pyrobnn.detection.network_outputs import NetworkOutputs

__all__ = [
    "GEN",
    "Energy",
    "Entropy",
    "MaxLogit",
    "MaxSoftmax",
    "energy",
    "generalized_entropy",
    "max_logit",
    "max_softmax",
    "softmax_entropy",
]


@explained
def max_softmax(logits: Tensor) -> Tensor:
    """Minus the largest probability ``[...]``.

    Args:
        logits: Unnormalized or normalized log probabilities ``[..., C]``, such as ``prediction.log_mean``.

    Raises:
        TypeError: If they are no floating-point tensor.
        ValueError: If there is no class.
    """
    return -_checked(logits).softmax(-1).amax(-1)


@explained
def max_logit(logits: Tensor) -> Tensor:
    """Minus the largest output ``[...]``.

    Args:
        logits: Unnormalized log probabilities ``[..., C]``.

    Raises:
        TypeError: As for :func:`max_softmax`.
        ValueError: As for :func:`max_softmax`.
    """
    return -_checked(logits).amax(-1)


@explained
def energy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Minus T times the log of the sum of ``exp(s / T)``, ``[...]``.

    Args:
        logits: Unnormalized log probabilities ``[..., C]``.
        temperature: T.

    Raises:
        TypeError: As for :func:`max_softmax`.
        ValueError: As for :func:`max_softmax`, or if the temperature is not positive.
    """
    check_positive("temperature", temperature)
    return -temperature * (_checked(logits) / temperature).logsumexp(-1)


@explained
def softmax_entropy(logits: Tensor) -> Tensor:
    """The entropy of the probabilities ``[...]``, in nats.

    Args:
        logits: Unnormalized or normalized log probabilities ``[..., C]``.

    Raises:
        TypeError: As for :func:`max_softmax`.
        ValueError: As for :func:`max_softmax`.
    """
    return torch.special.entr(_checked(logits).softmax(-1)).sum(-1)


@explained
def generalized_entropy(logits: Tensor, gamma: float = 0.1, num_classes: int | None = None) -> Tensor:
    r"""The sum of :math:`p^\gamma (1 - p)^\gamma` over the most probable classes ``[...]``.

    Args:
        logits: Unnormalized or normalized log probabilities ``[..., C]``.
        gamma: The exponent; a small one looks at all classes, 1 at the most probable.
        num_classes: How many of the largest probabilities are summed, at most C; None: all. The paper takes 100 of
            1,000.

    Raises:
        TypeError: As for :func:`max_softmax`.
        ValueError: As for :func:`max_softmax`, or if an option is not positive.
    """
    check_positive("gamma", gamma)
    log_probs = _checked(logits).log_softmax(-1)
    if num_classes is not None:
        check_positive_int("num_classes", num_classes)
        log_probs = log_probs.topk(min(num_classes, log_probs.shape[-1]), -1).values
    # 1 - p by expm1 keeps its digits where p is almost 1.
    return (gamma * (log_probs + (-torch.expm1(log_probs)).log())).exp().sum(-1)


class OutputScore(Detector):
    """A detector that is a function of the outputs of one draw, or of the averaged prediction."""

    is_unnormalized: ClassVar[bool] = False

    @abstractmethod
    def score(self, logits: Tensor) -> Tensor:
        """The score ``[...]`` of outputs ``[..., C]``."""

    @torch.no_grad()
    def scores(self, outputs: NetworkOutputs, forms: tuple[Form, ...]) -> dict[Form, Tensor]:
        """Of the averaged prediction, and the mean and variance over draws."""
        if self.is_unnormalized and not bool(outputs.logits.logsumexp(-1).abs().amax() > 1e-4):
            raise ValueError(
                f"outputs: they are normalized log probabilities, of which {self.name} is no score; use another one."
            )
        found: dict[Form, Tensor] = {}
        if "averaged" in forms:
            found["averaged"] = self.score(outputs.logits.mean(0) if self.is_unnormalized else outputs.log_mean)
        return found | (reduced(self.score(outputs.logits), forms) if set(forms) - {"averaged"} else {})


@explained
class MaxSoftmax(OutputScore):
    """Minus the largest probability (:func:`max_softmax`)."""

    name = "msp"

    def score(self, logits: Tensor) -> Tensor:
        """Minus the largest probability."""
        return max_softmax(logits)


@explained
class MaxLogit(OutputScore):
    """Minus the largest output (:func:`max_logit`)."""

    name = "max_logit"
    is_unnormalized = True

    def score(self, logits: Tensor) -> Tensor:
        """Minus the largest output."""
        return max_logit(logits)


@explained
class Energy(OutputScore):
    """The energy (:func:`energy`).

    Args:
        temperature: T.

    Raises:
        ValueError: If it is not positive.
    """

    name = "energy"
    is_unnormalized = True

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        check_positive("temperature", temperature)
        self.temperature = temperature

    def score(self, logits: Tensor) -> Tensor:
        """The energy."""
        return energy(logits, self.temperature)


@explained
class Entropy(OutputScore):
    """The entropy (:func:`softmax_entropy`); of the averaged prediction the total uncertainty, its mean over draws the
    aleatoric part."""

    name = "entropy"

    def score(self, logits: Tensor) -> Tensor:
        """The entropy."""
        return softmax_entropy(logits)


@explained
class GEN(OutputScore):
    """The generalized entropy (:func:`generalized_entropy`).

    Args:
        gamma: The exponent.
        num_classes: How many of the largest probabilities are summed; None: all.

    Raises:
        ValueError: If an option is not positive.
    """

    name = "gen"

    def __init__(self, gamma: float = 0.1, num_classes: int | None = None) -> None:
        super().__init__()
        check_positive("gamma", gamma)
        if num_classes is not None:
            check_positive_int("num_classes", num_classes)
        self.gamma, self.num_classes = gamma, num_classes

    def score(self, logits: Tensor) -> Tensor:
        """The generalized entropy."""
        return generalized_entropy(logits, self.gamma, self.num_classes)


def _checked(logits: Tensor) -> Tensor:
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        kind = f"a tensor of {logits.dtype}" if isinstance(logits, Tensor) else type(logits).__name__
        raise TypeError(f"logits: expected a floating-point tensor [..., C], got {kind}.")
    if not logits.dim() or not logits.shape[-1]:
        raise ValueError(f"logits: expected shape [..., C] with at least one class, got {tuple(logits.shape)}.")
    if bool(logits.isnan().any()):
        raise ValueError("logits: they hold NaN.")
    return logits if logits.element_size() >= 4 else logits.float()
