r"""A mixture of Gaussians with independent targets in each component.

.. math::  p(y) = \sum_k \pi_k \prod_d N(y_d; \mu_{kd}, \sigma_{kd}^2).
"""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

__all__ = ["GaussianMixture"]


class GaussianMixture(dist.TorchDistribution):
    """Mixtures at each position of an event ``[D, *positions]``; positions are independent, the D targets are not.

    Args:
        logits: Unnormalized log shares ``[*batch, K, 1, *positions]``.
        loc: Means ``[*batch, K, D, *positions]``.
        scale: Standard deviations, likewise.
        event_dim: Number of dimensions of an event, ``1 + len(positions)``.
        missing: NaN means that a target was not observed; it is integrated out.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, logits: Tensor, loc: Tensor, scale: Tensor, event_dim: int, *, missing: bool = False) -> None:
        self.logits, self.loc, self.scale, self.missing = logits, loc, scale, missing
        self._k, self._d = -event_dim - 1, -event_dim
        batch = loc.shape[: self._k]
        super().__init__(batch, loc.shape[self._d :], validate_args=False)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> Any:
        """All numbers."""
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def shares(self) -> Tensor:
        """Probabilities of the components ``[*batch, K, 1, *positions]``."""
        return self.logits.softmax(self._k)

    @property
    def mean(self) -> Tensor:
        """The mean ``[*batch, D, *positions]``."""
        return (self.shares * self.loc).sum(self._k)

    @property
    def variance(self) -> Tensor:
        """The variance of each target."""
        offset = self.loc - self.mean.unsqueeze(self._k)
        return (self.shares * (self.scale.square() + offset.square())).sum(self._k)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of events ``[*batch]``."""
        value = value.unsqueeze(self._k)
        unseen = value.isnan() if self.missing else None
        if unseen is not None:
            value = value.masked_fill(unseen, 0.0)
        joint = self._component_log_prob(value, unseen) + self.logits.log_softmax(self._k)
        # Without the largest, which may be so large that it rounds the sum away and with it the shares in gradients.
        peak = joint.detach().amax(self._k, keepdim=True).clamp_min(torch.finfo(joint.dtype).min)
        found = ((joint - peak).logsumexp(self._k, keepdim=True) + peak).squeeze(self._k).squeeze(self._d)
        if unseen is not None:  # exactly 0, and no gradient, where nothing was observed
            found = found.masked_fill(unseen.all(self._d).squeeze(self._d), 0.0)
        positions = len(self.event_shape) - 1
        return found.flatten(-positions).sum(-1) if positions else found

    def _component_log_prob(self, value: Tensor, unseen: Tensor | None) -> Tensor:
        """Log densities ``[..., K, 1, *positions]`` of values ``[..., 1, D, *positions]`` without NaN."""
        each = dist.Normal(self.loc, self.scale, validate_args=False).log_prob(value)
        return (each if unseen is None else each.masked_fill(unseen, 0.0)).sum(self._d, keepdim=True)

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """Events ``[*sample shape, *batch, D, *positions]``, all D targets from one component."""
        shape = torch.Size(sample_shape)
        chances = self.shares.movedim(self._k, -1)
        chosen = torch.distributions.Categorical(probs=chances, validate_args=False).sample(shape).unsqueeze(self._k)
        index = chosen.expand(*shape, *self.batch_shape, 1, *self.event_shape)
        return self._drawn(index, shape).squeeze(self._k)

    def _drawn(self, index: Tensor, shape: torch.Size) -> Tensor:
        """Targets ``[*shape, *batch, 1, D, *positions]`` of the components ``index``, of the same shape."""
        loc, scale = (part.expand(*shape, *part.shape).gather(self._k, index) for part in (self.loc, self.scale))
        return loc + scale * torch.randn_like(loc)

    def marginal(self) -> dist.MixtureSameFamily:
        """The distribution of each target alone, batch shape ``[*batch, D, *positions]``."""
        logits = self.logits.movedim(self._k, -1)
        loc, scale = self.loc.movedim(self._k, -1), self.scale.movedim(self._k, -1)
        shares = dist.Categorical(logits=logits.expand_as(loc), validate_args=False)
        return dist.MixtureSameFamily(shares, dist.Normal(loc, scale, validate_args=False), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> GaussianMixture:
        """The same on a larger batch shape."""

        def larger(part: Tensor) -> Tensor:
            return part.expand(*batch_shape, *part.shape[self._k :])

        logits, loc, scale = larger(self.logits), larger(self.loc), larger(self.scale)
        return GaussianMixture(logits, loc, scale, len(self.event_shape), missing=self.missing)
