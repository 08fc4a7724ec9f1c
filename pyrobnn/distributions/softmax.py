r"""The categorical distribution of a network's outputs, :math:`p(y = c) = e^{o_c} / \sum_k e^{o_k}`, at training speed.

Its log density is torch's fused cross-entropy. ``dist.Categorical`` normalizes its logits on construction, again on
expansion by a plate, and gathers: about ten small kernels, a tenth of a small network's step. It is still what
everything else (enumeration, entropy) is delegated to, when asked.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions import constraints
from torch import Tensor

__all__ = ["Softmax", "rows_first"]

_LANES = 16  # single-precision numbers in a register


def rows_first(normalize: Callable[[Tensor, int], Tensor], outputs: Tensor) -> Tensor:
    """``normalize(outputs, -1)`` of outputs ``[..., C]``, computed over many rows at a time on a CPU.

    Along a last dimension of fewer than sixteen classes torch's softmax takes three to eight times as long.

    Args:
        normalize: ``torch.softmax`` or ``torch.log_softmax``.
        outputs: The outputs.
    """
    if outputs.device.type != "cpu" or outputs.shape[-1] >= _LANES:
        return normalize(outputs, -1)
    return normalize(outputs.movedim(-1, 0), 0).movedim(0, -1)


class Softmax(dist.TorchDistribution):
    """Categorical with unnormalized log probabilities ``outputs``.

    Args:
        outputs: Shape ``[*batch shape, C]``.
        validate_args: As for every distribution of torch.
        ignore_index: A value that means no observation: its log probability is 0, without a gradient.
        class_weight: Weights ``[C]``: :meth:`log_prob` of a class counts as often as its weight says.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"outputs": constraints.independent(constraints.real, 1)}
    has_enumerate_support = True

    def __init__(
        self,
        outputs: Tensor,
        validate_args: bool | None = None,
        *,
        ignore_index: int | None = None,
        class_weight: Tensor | None = None,
    ) -> None:
        self.outputs, self.ignore_index, self.class_weight = outputs, ignore_index, class_weight
        super().__init__(outputs.shape[:-1], validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> Any:
        """The whole numbers ``0 … C - 1``."""
        return constraints.integer_interval(0, self.outputs.shape[-1] - 1)

    @cached_property
    def categorical(self) -> dist.Categorical:
        """The same distribution as Pyro has it."""
        return dist.Categorical(logits=self.outputs)

    @property
    def logits(self) -> Tensor:
        """Normalized log probabilities ``[*batch shape, C]``."""
        return self.categorical.logits

    @property
    def probs(self) -> Tensor:
        """Probabilities ``[*batch shape, C]``."""
        return self.categorical.probs

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of classes ``value``; under Pyro's validation, refuses values outside the support."""
        weight = None if self.class_weight is None else self.class_weight.to(self.outputs.dtype)
        # The fused kernel's error message is uninformative.
        if dist.is_validation_enabled() or value.shape != self.batch_shape:
            ignored = None if self.ignore_index is None else value == self.ignore_index
            known = value if ignored is None else value.masked_fill(ignored, 0)
            log_prob = self.categorical.log_prob(known)
            if weight is not None:
                log_prob = log_prob * weight[known.long()]
            return log_prob if ignored is None else log_prob.masked_fill(ignored, 0.0)
        rows, labels = self.outputs.reshape(-1, self.outputs.shape[-1]), value.reshape(-1).long()
        index = -100 if self.ignore_index is None else self.ignore_index  # the former is torch's default
        scores = F.cross_entropy(rows, labels, weight=weight, reduction="none", ignore_index=index)
        return -scores.reshape(value.shape)

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """Classes ``[*sample shape, *batch shape]``."""
        shape = torch.Size(sample_shape)
        probs = rows_first(torch.softmax, self.outputs.detach().reshape(-1, self.outputs.shape[-1]))
        return torch.multinomial(probs.contiguous(), shape.numel(), replacement=True).T.reshape(
            shape + self.batch_shape
        )

    def entropy(self) -> Tensor:
        """Entropy in nats ``[*batch shape]``."""
        return self.categorical.entropy()

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All classes on a new first dimension."""
        return self.categorical.enumerate_support(expand=expand)

    def expand(self, batch_shape: Any, _instance: Any = None) -> dist.TorchDistribution:
        """Itself for its own shape, the case inside a plate."""
        if torch.Size(batch_shape) == self.batch_shape:
            return self
        outputs = self.outputs.expand(*batch_shape, self.outputs.shape[-1])
        return Softmax(outputs, validate_args=False, ignore_index=self.ignore_index, class_weight=self.class_weight)
