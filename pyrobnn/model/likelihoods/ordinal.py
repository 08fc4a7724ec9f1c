"""Ordered classes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyrobnn.core.arguments import check_int
from pyrobnn.core.explanations import explained
from pyrobnn.distributions.softmax import Softmax
from pyrobnn.model.likelihoods.classes import ClassLikelihood
from pyrobnn.model.likelihoods.information import FisherInformation
from pyrobnn.model.likelihoods.stated import StatedNumbers
from pyrobnn.model.likelihoods.supports import check_ignore_index, check_labels

__all__ = ["Ordinal"]


@explained
class Ordinal(ClassLikelihood):
    r"""Ordered classes ``0 … C - 1`` by cumulative logits (proportional odds): one output for each label.

    .. math::  P(y \le c \mid x) = \mathrm{sigmoid}(\theta_{c} - f(x)), \qquad \theta_0 < \dots < \theta_{C-2}

    (McCullagh 1980). Outputs ``[B, ..., 1]``, labels ``[B, ...]``.

    Args:
        num_classes: Number C of classes; its thresholds are learned, from those of equally probable classes on.
            Samplers hold them fixed.
        thresholds: C - 1 increasing numbers, which stay fixed; instead of ``num_classes``.
        ignore_index: A label that means "not observed": it has log probability 0 and no gradient.

    Raises:
        TypeError: If ``ignore_index`` is no int.
        ValueError: If there are not two classes at least, thresholds do not increase, or not exactly one of
            ``num_classes`` and ``thresholds`` is given.
    """

    def __init__(
        self,
        num_classes: int | None = None,
        *,
        thresholds: Tensor | list[float] | None = None,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__()
        if (num_classes is None) == (thresholds is None):
            raise ValueError("num_classes: give the number of classes, or their fixed thresholds, and not both.")
        check_ignore_index(ignore_index)
        if num_classes is not None:
            check_int("num_classes", num_classes, 2)
        self.ignore_index = ignore_index
        self.is_learned = thresholds is None
        start = _equally_probable(num_classes) if num_classes is not None else _checked(thresholds)
        self.num_classes = len(start) + 1
        stated = None if thresholds is None else torch.as_tensor(thresholds, dtype=torch.float64).detach().clone()
        self.add_plain("cuts", _Thresholds(start, stated))

    def thresholds(self) -> Tensor:
        """The present thresholds ``[C - 1]``."""
        found: Tensor = self._plain["cuts"]()
        return found

    def log_probabilities(self, outputs: Tensor) -> Tensor:
        """Log probabilities ``[B, ..., C]``."""
        self.target_shape(outputs)
        distance = self.thresholds().to(outputs.dtype) - outputs  # θ - f, [B, ..., C - 1]
        below, above = F.logsigmoid(distance), F.logsigmoid(-distance)
        # sigmoid(u) - sigmoid(l) = sigmoid(u) sigmoid(-l) (1 - exp(l - u)), without cancellation
        gaps = self.thresholds().diff().to(outputs.dtype)
        inner = below[..., 1:] + above[..., :-1] + (-(-gaps).expm1()).log()
        return torch.cat([below[..., :1], inner, above[..., -1:]], -1)

    def distribution(self, parameters: Mapping[str, Tensor]) -> Softmax:
        """Categorical with the log probabilities."""
        return Softmax(parameters["logits"], ignore_index=self.ignore_index)

    @torch.no_grad()
    def fisher_information(self, outputs: Tensor) -> FisherInformation:
        """The mean square of the scores of the classes."""
        if type(self) is not Ordinal:  # a subclass may have another density
            return super().fisher_information(outputs)
        probs = self.log_probabilities(outputs).exp()
        below = F.pad((self.thresholds().to(outputs.dtype) - outputs).sigmoid(), (1, 0))
        above = F.pad((outputs - self.thresholds().to(outputs.dtype)).sigmoid(), (0, 1))
        return FisherInformation.of_independent((probs * (below - above).square()).sum(-1, keepdim=True))

    def observed_mask(self, y: Tensor) -> Tensor | None:
        """True for labels other than ``ignore_index``."""
        return None if self.ignore_index is None else y != self.ignore_index

    @property
    def target_weighting(self) -> str | None:
        """``ignore_index``, if given."""
        return None if self.ignore_index is None else "ignore_index"

    def target_shape(self, outputs: Tensor) -> torch.Size:
        """The output's shape without its last dimension."""
        if outputs.dim() < 2 or outputs.shape[-1] != 1:
            raise ValueError(
                f"net: Ordinal expects outputs [B, ..., 1], one number for each label, got shape "
                f"{tuple(outputs.shape)}; end the network in Linear(..., 1)."
            )
        return outputs.shape[:-1]

    def check_targets(self, outputs: Tensor, y: Tensor) -> None:
        """Integer labels in ``0 … C - 1``, or ``ignore_index``."""
        self.check_shape(outputs, y)
        check_labels(self, y, self.num_classes, self.ignore_index, f"Ordinal has {self.num_classes} classes")

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        given = {"num_classes": self.num_classes} if self.is_learned else {"thresholds": self.thresholds().tolist()}
        return {**given, "ignore_index": self.ignore_index}


class _Thresholds(StatedNumbers):
    """Increasing numbers, trained as the first and the logarithms of the gaps, or fixed."""

    values: Tensor

    def __init__(self, start: Tensor, stated: Tensor | None) -> None:
        super().__init__(stated)
        self.learned = stated is None
        if self.learned:
            self.first = nn.Parameter(start[:1].clone())
            self.log_gaps = nn.Parameter(start.diff().log())
        else:
            self.register_buffer("values", start)

    def numbers(self) -> Tensor:
        return self.values

    def forward(self) -> Tensor:
        if not self.learned:
            return self.values
        return torch.cat([self.first, self.first + self.log_gaps.exp().cumsum(0)])


def _equally_probable(classes: int) -> Tensor:
    return torch.tensor([math.log(c / (classes - c)) for c in range(1, classes)])


def _checked(thresholds: Any) -> Tensor:
    found = torch.as_tensor(thresholds).detach().clone()
    found = found if found.is_floating_point() else found.to(torch.get_default_dtype())
    if found.dim() != 1 or not len(found) or not bool(found.isfinite().all()) or bool((found.diff() <= 0).any()):
        raise ValueError(f"thresholds: expected increasing finite numbers [C - 1], got {thresholds!r}.")
    return found
