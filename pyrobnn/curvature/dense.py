r"""A full matrix, factored when it is needed.

The curvature relative to the prior, :math:`A = P^{-1/2} H P^{-1/2}`, is kept in double precision: its largest
eigenvalue is of the order of the number of data, and the prior adds 1. With :math:`A + m I = L L^\top`,

.. math::  \Sigma = P^{-1/2} L^{-\top} L^{-1} P^{-1/2}, \qquad \log\det(H + m P) = \log\det P + 2 \sum_i \log L_{ii}.

Rounding L to single precision changes variances by :math:`\varepsilon \sqrt{\kappa}`, rounding A by
:math:`\varepsilon \kappa`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyrobnn.core.gradient_modes import gradients_enabled
from pyrobnn.curvature.blocks import Basis, Block

__all__ = ["DenseBlock", "add_products"]


@dataclass
class _Factor:
    """``L``, and what it was computed from."""

    curvature: Tensor
    scale: Tensor
    multiplier: float
    lower: Tensor
    log_det: Tensor
    variances: Tensor | None = None

    def belongs_to(self, curvature: Tensor, scale: Tensor, multiplier: float) -> bool:
        return self.curvature is curvature and self.scale is scale and self.multiplier == multiplier


class DenseBlock(Block):
    """A full matrix.

    Args:
        index: Where the weights are in the flat vector, ``[n]``.
        like: A tensor of the dtype and device to use.

    Attributes:
        curvature: ``A [n, n]``, of which the lower triangle counts.
        prior_scale: ``P^-½``, ``[n]``.
    """

    curvature: Tensor
    prior_scale: Tensor

    def __init__(self, index: Tensor, like: Tensor) -> None:
        super().__init__(index, like)
        self.register_buffer("curvature", like.new_zeros(self.size, self.size, dtype=torch.float64))
        self.register_buffer("prior_scale", like.new_ones(self.size))
        self._factor: _Factor | None = None
        self.register_load_state_dict_post_hook(_forget)

    def set(self, curvature: Tensor, prior_precision: Tensor) -> None:
        """Takes ``H [n, n]``, of which the lower triangle counts, and the diagonal ``[n]`` of P.

        The matrix may be :attr:`curvature` itself, where sums over batches were collected.
        """
        scale = prior_precision.double().rsqrt()
        self.curvature.copy_(curvature).mul_(scale).mul_(scale.unsqueeze(-1))
        self.prior_scale.copy_(scale)
        self._set_prior(prior_precision)
        self._factor = None

    def spectrum(self) -> Tensor:
        """The eigenvalues of A."""
        return _without_rounding_errors(torch.linalg.eigvalsh(self.curvature))

    def basis(self) -> Basis:
        """From a decomposition of A, of ten times the cost of a factorization."""
        eigenvalues, vectors = torch.linalg.eigh(self.curvature)
        scale = self.prior_scale.double()
        return Basis(_without_rounding_errors(eigenvalues), lambda rows: (rows * scale) @ vectors)

    def log_det(self) -> Tensor:
        """``log det(H + m P)``, in double precision."""
        return self.log_prior_det.double() + self._factored().log_det

    def deviations(self, num_samples: int) -> Tensor:
        """Draws around the mean ``[num_samples, n]``."""
        scale, lower = self.prior_scale, self._factored().lower
        noise = torch.randn(num_samples, self.size, dtype=scale.dtype, device=scale.device)
        white = torch.linalg.solve_triangular(lower, noise.to(lower), upper=False, left=False)
        return white.to(scale) * scale

    def half_covariance(self, rows: Tensor) -> Tensor:
        """``V`` with ``V Vᵀ = rows Σ rowsᵀ``."""
        lower = self._factored().lower
        scaled = (rows * self.prior_scale).to(lower).reshape(-1, self.size)
        return torch.linalg.solve_triangular(lower.mT, scaled, upper=True, left=False).to(rows).reshape(rows.shape)

    def covariance_times(self, rows: Tensor) -> Tensor:
        """``rows Σ``."""
        lower = self._factored().lower
        half = self.half_covariance(rows).to(lower).reshape(-1, self.size)
        solved = torch.linalg.solve_triangular(lower, half, upper=False, left=False)
        return solved.to(rows).reshape(rows.shape) * self.prior_scale

    def variances(self) -> Tensor:
        """Marginal variances ``[n]``."""
        factor = self._factored()
        if factor.variances is None:
            with gradients_enabled(), torch.no_grad():
                diagonal = torch.cholesky_inverse(factor.lower).diagonal()
                factor.variances = diagonal.to(self.prior_scale) * self.prior_scale.square()
        return factor.variances

    def square(self, deviation: Tensor) -> Tensor:
        """``dᵀ (H + m P) d``."""
        lower = self._factored().lower
        return ((deviation / self.prior_scale).to(lower) @ lower).to(deviation).square().sum(-1)

    def _factored(self) -> _Factor:
        known, multiplier = self._factor, float(self.multiplier)
        if known is not None and known.belongs_to(self.curvature, self.prior_scale, multiplier):
            return known
        with gradients_enabled(), torch.no_grad():  # ordinary tensors, whatever mode the first use is in
            lower = _cholesky(self.curvature, multiplier)
            log_det = 2.0 * lower.diagonal().log().sum()
            precise = torch.promote_types(self.prior_scale.dtype, torch.float32)  # no solver in half precision
            self._factor = _Factor(self.curvature, self.prior_scale, multiplier, lower.to(precise), log_det)
        return self._factor


def add_products(total: Tensor, rows: Tensor, sign: float = 1.0) -> None:
    """Adds ``± rowsᵀ rows`` to a matrix, of which the lower triangle counts, in strips that end at the diagonal."""
    size = len(total)
    width = max(64, -(-size // 16))
    for start in range(0, size, width):
        end = min(start + width, size)
        total[start:end, :end].addmm_(rows[:, start:end].T, rows[:, :end], alpha=sign)


def _cholesky(curvature: Tensor, multiplier: float) -> Tensor:
    """``L`` with ``L Lᵀ = A + m I``, for A positive semidefinite up to rounding."""
    shifted = curvature.clone()
    shifted.diagonal().add_(multiplier)
    lower, failed = torch.linalg.cholesky_ex(shifted)
    if not failed:
        return lower
    # m is below the rounding errors of A.
    eigenvalues, vectors = torch.linalg.eigh(curvature)
    root = vectors * (_without_rounding_errors(eigenvalues) + multiplier).sqrt()
    upper = torch.linalg.qr(root.mT).R
    return (upper * upper.diagonal().sign().unsqueeze(-1)).mT.contiguous()


def _without_rounding_errors(eigenvalues: Tensor) -> Tensor:
    """Eigenvalues that cannot be told from zero are zero."""
    smallest = len(eigenvalues) * torch.finfo(eigenvalues.dtype).eps * eigenvalues[-1]
    return eigenvalues.where(eigenvalues > smallest, 0.0)


def _forget(block: nn.Module, _: object) -> None:
    """Drops the factor of what the block held before."""
    assert isinstance(block, DenseBlock)
    block._factor = None
