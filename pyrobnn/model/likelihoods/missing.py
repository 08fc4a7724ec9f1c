"""Missing targets: NaN marks a target that was not observed."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor

__all__ = ["MissingTargets"]


class MissingTargets(dist.TorchDistribution):
    """A distribution under which NaN (a target that was not observed) has log probability 0 and no gradient.

    Args:
        base: The distribution of single numbers (no event dimensions).
        placeholder: A number in its support; ``base.log_prob`` is computed there in place of NaN.

    Raises:
        ValueError: If ``base`` has event dimensions.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, base: dist.TorchDistribution, placeholder: float) -> None:
        if base.event_shape:
            raise ValueError(
                f"missing: targets can be missing one by one; {type(base).__name__} has events of shape "
                f"{tuple(base.event_shape)}."
            )
        self.base, self.placeholder = base, placeholder
        super().__init__(base.batch_shape, validate_args=False)

    @property
    def support(self) -> Any:
        """The support of ``base``, for values that are not NaN."""
        return self.base.support

    @property
    def mean(self) -> Tensor:
        """The mean."""
        return self.base.mean

    @property
    def variance(self) -> Tensor:
        """The variance."""
        return self.base.variance

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, 0 where the value is NaN."""
        missing = value.isnan()
        # NaN is replaced before log_prob, not only masked after it: its gradient there is NaN, and so is 0 times that.
        return self.base.log_prob(value.masked_fill(missing, self.placeholder)).masked_fill(missing, 0.0)

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """Values ``[*sample shape, *batch shape]``, none of which is missing."""
        return self.base.sample(torch.Size(sample_shape))

    def expand(self, batch_shape: Any, _instance: Any = None) -> dist.TorchDistribution:
        """The same on a larger batch shape."""
        return MissingTargets(self.base.expand(torch.Size(batch_shape)), self.placeholder)
