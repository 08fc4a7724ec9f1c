"""Counts with more zeros than Poisson's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyrobnn.core.explanations import explained
from pyrobnn.distributions import with_cdf
from pyrobnn.model.likelihoods.information import FisherInformation
from pyrobnn.model.likelihoods.paired import PairedOutputs
from pyrobnn.model.likelihoods.supports import check_counts

__all__ = ["ZeroInflatedPoisson"]


@explained
class ZeroInflatedPoisson(PairedOutputs):
    r"""Counts that are 0 with probability π, else Poisson: outputs ``[B, 2 D]`` are log rates, then logits of π.

    .. math::  P(0) = \pi + (1 - \pi) e^{-\lambda}, \qquad P(k) = (1 - \pi) \lambda^k e^{-\lambda} / k!

    (Lambert 1992).

    Args:
        dim: Dimension of the outputs that holds log rates, then logits; 1 for images ``[B, 2 C, H, W]``.
        missing: Whether counts may be NaN (not observed), as in :class:`~pyrobnn.likelihoods.Likelihood`.

    Raises:
        ValueError: If ``dim`` is no int or the dimension of the data.
    """

    first, second = "log rates", "logits of further zeros"

    def __init__(self, *, dim: int = -1, missing: bool = False) -> None:
        super().__init__(0.0, dim=dim, missing=missing)

    def parameters_of(self, outputs: Tensor) -> dict[str, Tensor]:
        """``log_rate`` and ``gate_logits``."""
        log_rate, gate_logits = self.halves(outputs)
        return {"log_rate": log_rate, "gate_logits": gate_logits}

    def distribution(self, parameters: Mapping[str, Tensor]) -> with_cdf.ZeroInflatedPoisson:
        """Poisson with further zeros."""
        return with_cdf.ZeroInflatedPoisson(parameters["log_rate"], parameters["gate_logits"])

    @torch.no_grad()
    def fisher_information(self, outputs: Tensor) -> FisherInformation:
        """In closed form, of log rate and logit together."""
        if type(self) is not ZeroInflatedPoisson:  # a subclass may have another density
            return super().fisher_information(outputs)
        log_rate, logits = self.halves(outputs)
        rate, gate, other = log_rate.exp(), logits.sigmoid(), (-logits).sigmoid()
        none = (-rate).exp()
        zero = gate + other * none
        # The scores of a zero are derivatives of log P(0); those of other counts k are k - λ and -π.
        by_rate, by_logit = -other * rate * none, -gate * other * (-rate).expm1()
        first = by_rate.square() / zero + other * rate * (1.0 - rate * none)
        cross = by_rate * by_logit / zero - gate * other * rate * none
        second = by_logit.square() / zero + gate.square() * (1.0 - zero)
        root = first.clamp_min(torch.finfo(first.dtype).tiny).sqrt()
        lower = cross / root
        rest = (second - lower.square()).clamp_min(0.0).sqrt()
        rows = [torch.stack([root, torch.zeros_like(root)], -1), torch.stack([lower, rest], -1)]
        return self.in_pairs(outputs, torch.stack(rows, -2))

    def check_targets(self, outputs: Tensor, y: Tensor) -> None:
        """Non-negative whole numbers, as floats."""
        self.check_shape(outputs, y)
        check_counts(self, y)

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {name: value for name, value in super().config().items() if name != "floor"}
