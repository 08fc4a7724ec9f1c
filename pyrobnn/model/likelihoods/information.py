r"""Fisher information of an observation in the network's outputs.

.. math::  \Lambda(f) = E_{y \sim p(y \mid f)}\big[\nabla_f \log p\, \nabla_f \log p^\top\big].

For classes (softmax or sigmoid), Gaussian noise of a given scale and Poisson counts :math:`\Lambda` is also the Hessian
of :math:`-\log p` in the outputs (Martens 2020). It has a block for each target, since targets are independent given
the outputs, and a block is a diagonal, less or plus outer products,

.. math::  \Lambda_t = \mathrm{diag}(d_t) - l_t l_t^\top + \sum_r s_{tr} s_{tr}^\top,

so that thousands of classes need no matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pyrobnn.model.likelihoods.base import Likelihood

__all__ = ["SAMPLED_COLUMNS", "FisherInformation", "sampled_information"]

SAMPLED_COLUMNS = 20
"""Scores drawn for each datum where the information has no closed form, or too large a one."""


@dataclass(frozen=True)
class FisherInformation:
    """The information of ``B`` data in their ``O`` outputs: ``T`` blocks of ``m`` outputs each.

    Attributes:
        index: Which of a datum's flattened outputs are in which block, ``[T, m]``; each is in one block.
        diagonal: ``d``, ``[B, T, m]``; None for 0.
        lowered: ``l``, ``[B, T, m]``; None for 0. ``l² / d`` must add up to at most 1 in each block.
        scores: ``s``, ``[B, T, m, R]``; None for none.
    """

    index: Tensor
    diagonal: Tensor | None = None
    lowered: Tensor | None = None
    scores: Tensor | None = None

    @classmethod
    def of_independent(cls, diagonal: Tensor) -> FisherInformation:
        """Outputs that are informed about one by one: the information of each, of the outputs' shape ``[B, ...]``."""
        flat = diagonal.reshape(len(diagonal), -1, 1)
        return cls(torch.arange(flat.shape[1], device=flat.device).unsqueeze(-1), flat)

    @property
    def columns(self) -> int:
        """Number of columns of :meth:`root`, all blocks together."""
        blocks, size = self.index.shape
        return blocks * ((0 if self.diagonal is None else size) + (0 if self.scores is None else self.scores.shape[-1]))

    def matrices(self) -> Tensor:
        """The blocks, ``[B, T, m, m]``."""
        root = self.root()
        return root @ root.mT

    def on_diagonal(self) -> Tensor:
        """The diagonal of each block, ``[B, T, m]``."""
        total: Tensor | float = 0.0
        if self.diagonal is not None:
            total = total + self.diagonal
        if self.lowered is not None:
            total = total - self.lowered.square()
        if self.scores is not None:
            total = total + self.scores.square().sum(-1)
        return torch.as_tensor(total)

    def root(self) -> Tensor:
        r"""``[B, T, m, c]``, with :math:`\Lambda_t = R_t R_t^\top`.

        With :math:`u = D^{-1/2} l`, :math:`D - l l^\top = R R^\top` for :math:`R = D^{1/2} (I - \alpha u u^\top)` and
        :math:`\alpha = (1 - \sqrt{1 - |u|^2}) / |u|^2`.
        """
        parts = [] if self.scores is None else [self.scores]
        if self.diagonal is not None:
            wide = self.diagonal.sqrt()
            root = torch.diag_embed(wide)
            if self.lowered is not None:
                u, alpha = self._whitened()
                root = root - (alpha * wide * u).unsqueeze(-1) * u.unsqueeze(-2)
            parts.insert(0, root)
        return torch.cat(parts, -1)

    def part(self, rows: slice) -> FisherInformation:
        """That of some of the data."""
        parts = [None if part is None else part[rows] for part in (self.diagonal, self.lowered, self.scores)]
        return FisherInformation(self.index, *parts)

    def scaled(self, scale: Tensor) -> FisherInformation:
        """That of targets whose log likelihoods have factors ``[B, T]``.

        Raises:
            ValueError: If they are not one for each block.
        """
        blocks = len(self.index)
        if scale.dim() != 2 or scale.shape[1] != blocks:
            raise ValueError(f"scale: expected a factor for each of {blocks} blocks, got shape {list(scale.shape)}.")

        def times(part: Tensor | None, power: float) -> Tensor | None:
            if part is None:
                return None
            return part * scale.to(part).pow(power).reshape(*scale.shape, *(1,) * (part.dim() - 2))

        return FisherInformation(
            self.index, times(self.diagonal, 1.0), times(self.lowered, 0.5), times(self.scores, 0.5)
        )

    def sketched(self, columns: int) -> FisherInformation:
        r"""An unbiased estimate with few columns: :math:`R_t z_t` of standard normal z, in one block of all outputs."""
        drawn: Tensor | float = 0.0
        if self.diagonal is not None:
            wide = self.diagonal.sqrt().unsqueeze(-1)
            noise = torch.randn(*self.diagonal.shape, columns, dtype=wide.dtype, device=wide.device)
            if self.lowered is not None:
                u, alpha = self._whitened()
                noise = noise - (alpha * u).unsqueeze(-1) * (u.unsqueeze(-1) * noise).sum(-2, keepdim=True)
            drawn = wide * noise
        if self.scores is not None:
            shape = (*self.scores.shape[:2], self.scores.shape[-1], columns)
            drawn = drawn + self.scores @ torch.randn(shape, dtype=self.scores.dtype, device=self.scores.device)
        scores = torch.as_tensor(drawn).flatten(1, 2).unsqueeze(1) / columns**0.5
        return FisherInformation(self.index.reshape(1, -1), scores=scores)

    def _whitened(self) -> tuple[Tensor, Tensor]:
        """``u`` and ``α`` of :meth:`root`."""
        assert self.diagonal is not None and self.lowered is not None
        wide = self.diagonal.sqrt()
        u = torch.where(wide > 0, self.lowered / wide, 0.0)
        square = u.square().sum(-1, keepdim=True)
        return u, torch.where(square > 0, (1.0 - (1.0 - square).clamp_min(0.0).sqrt()) / square, 0.0)

    def weighted(self, weight: Tensor | None, dtype: torch.dtype) -> FisherInformation:
        """That of data whose log likelihoods have weights ``[B]``, in a given precision."""

        def scaled(part: Tensor | None, power: float) -> Tensor | None:
            if part is None:
                return None
            part = part.to(dtype)
            if weight is None:
                return part
            return part * weight.to(dtype).pow(power).reshape(-1, *(1,) * (part.dim() - 1))

        return FisherInformation(
            self.index, scaled(self.diagonal, 1.0), scaled(self.lowered, 0.5), scaled(self.scores, 0.5)
        )


def sampled_information(likelihood: Likelihood, outputs: Tensor) -> FisherInformation:
    r"""An unbiased estimate from ``SAMPLED_COLUMNS`` scores :math:`\nabla_f \log p(y)` of targets that are drawn.

    Args:
        likelihood: What the outputs mean.
        outputs: The network's outputs ``[B, ...]``.
    """
    scores = []
    for _ in range(SAMPLED_COLUMNS):
        with torch.enable_grad():
            leaf = outputs.detach().clone().requires_grad_()
            observation = likelihood(leaf)
            log_prob = observation.log_prob(observation.sample()).sum()
        scores.append(torch.autograd.grad(log_prob, leaf)[0].reshape(len(outputs), -1))
    stacked = torch.stack(scores, -1) / SAMPLED_COLUMNS**0.5  # [B, O, R]
    index = torch.arange(stacked.shape[1], device=outputs.device).unsqueeze(0)
    return FisherInformation(index, scores=stacked.unsqueeze(1))
