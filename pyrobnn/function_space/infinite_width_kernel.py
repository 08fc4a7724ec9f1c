"""InfiniteWidthKernel: what :func:`~pyrobnn.function_space.gpytorch_kernel` makes; importing it needs GPyTorch."""

from __future__ import annotations

import math
from typing import Any

import torch
from gpytorch.constraints import Positive
from gpytorch.kernels import Kernel
from torch import Tensor, nn

from pyrobnn.function_space.limits import Limit
from pyrobnn.function_space.nngp import covariance, paired_covariance

__all__ = ["InfiniteWidthKernel"]


class InfiniteWidthKernel(Kernel):  # type: ignore[misc, unused-ignore]
    """The covariance of an infinitely wide network at rows of numbers ``[*batch, N, D]``.

    Args:
        limit: The limit, with the scales to start at.
        input_shape: Shape of one input of the network; None for vectors.
        batch_shape: So many sets of scales.
        active_dims: The columns that it sees; None for all.
        max_bytes: Budget for what is held beside the result.

    Attributes:
        sites: Names of the sites, in the order of ``scales``.
        scales: Prior standard deviations ``[*batch_shape, sites]``.
    """

    def __init__(
        self,
        limit: Limit,
        input_shape: tuple[int, ...] | None,
        batch_shape: tuple[int, ...],
        active_dims: tuple[int, ...] | None,
        max_bytes: int,
    ) -> None:
        super().__init__(batch_shape=torch.Size(batch_shape), active_dims=active_dims)
        self.sites = tuple(limit.scales)
        self._limit, self._input_shape, self._max_bytes = limit, input_shape, max_bytes
        start = torch.stack([limit.scales[site].detach() for site in self.sites])
        self.register_parameter("raw_scales", nn.Parameter(start.expand(*batch_shape, -1).clone()))
        self.register_constraint("raw_scales", Positive())
        self.scales = start

    @property
    def scales(self) -> Tensor:
        """Prior standard deviations."""
        found: Tensor = self.raw_scales_constraint.transform(self.raw_scales)
        return found

    @scales.setter
    def scales(self, values: Tensor | float) -> None:
        wanted = torch.as_tensor(values).to(self.raw_scales).expand(self.raw_scales.shape)
        self.initialize(raw_scales=self.raw_scales_constraint.inverse_transform(wanted))

    def forward(
        self, x1: Tensor, x2: Tensor, diag: bool = False, last_dim_is_batch: bool = False, **params: Any
    ) -> Tensor:
        """Covariances ``[*batch, N1, N2]``, or ``[*batch, N]`` of rows with each other if ``diag``.

        Raises:
            ValueError: If inputs are of another precision than the kernel, or of another size than the network's.
            NotImplementedError: If ``last_dim_is_batch``, which is for sums over single inputs.
        """
        if last_dim_is_batch:
            raise NotImplementedError("last_dim_is_batch: the network takes all inputs of a row together.")
        if not x1.dtype == x2.dtype == self.dtype:
            raise ValueError(
                f"x1, x2: expected inputs of the kernel's precision, {self.dtype}, got {x1.dtype} and {x2.dtype}; pass "
                "x.double() and make the whole Gaussian process double, gp.double()."
            )
        scales = self.scales
        lead = torch.broadcast_shapes(x1.shape[:-2], x2.shape[:-2], scales.shape[:-1])
        first, second, own = (
            value.expand(*lead, *value.shape[value.dim() - kept :]).reshape(-1, *value.shape[value.dim() - kept :])
            for value, kept in ((x1, 2), (x2, 2), (scales, 1))
        )
        same = torch.equal(x1, x2)
        blocks = [self._block(*rows, diag, same) for rows in zip(first, second, own, strict=True)]
        found = torch.stack(blocks).to(x1.dtype)
        return found.reshape(*lead, *found.shape[1:])

    def _block(self, x1: Tensor, x2: Tensor, scales: Tensor, diag: bool, same: bool) -> Tensor:
        limit = self._limit.under(dict(zip(self.sites, scales.double(), strict=True)))
        first, second = self._inputs(x1), self._inputs(x2)
        if diag:
            return paired_covariance(limit, first, second, self._max_bytes)
        return covariance(limit, first, None if same else second, self._max_bytes)

    def _inputs(self, x: Tensor) -> Tensor:
        """Rows in the shape of the network's inputs."""
        if self._input_shape is None:
            return x
        if x.shape[1] != math.prod(self._input_shape):
            raise ValueError(
                f"input_shape: one input has {math.prod(self._input_shape)} numbers, but a row has {x.shape[1]}."
            )
        return x.reshape(-1, *self._input_shape)
