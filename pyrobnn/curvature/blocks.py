r"""Gaussians with precision ``H + m P``: curvature plus a multiple of a diagonal prior precision.

A dense matrix is factored at its multiplier, :math:`P^{-1/2} H P^{-1/2} + m I = L L^\top`, when it is first needed. It
costs a tenth of an eigendecomposition; eigenvalues (without vectors) are computed where the evidence is to be had at
many multipliers. Diagonal and Kronecker-factored curvature is kept in a basis ``B`` with :math:`B B^\top = P^{-1}` in
which it is diagonal, :math:`B^\top H B = \mathrm{diag}(\lambda)`, a vector or a Kronecker product. Then

.. math::  (H + m P)^{-1} = B\, \mathrm{diag}\!\big(\tfrac{1}{\lambda_i + m}\big)\, B^\top, \qquad
           \log\det(H + m P) = \log\det P + \sum_i \log(\lambda_i + m),

exactly and for every multiplier ``m`` of the prior precision, without another decomposition.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["Basis", "Block", "DecomposedBlock", "DiagonalBlock", "KroneckerBlock"]


@dataclass(frozen=True)
class Basis:
    """Where the curvature is diagonal.

    Attributes:
        spectrum: λ, ``[n]``, in double precision.
        project: ``Bᵀ v`` for vectors ``[..., n]`` in double precision.
    """

    spectrum: Tensor
    project: Callable[[Tensor], Tensor]


class Block(nn.Module):
    """``n`` weights of a flat vector and the Gaussian over them.

    Args:
        index: Where they are in the flat vector, ``[n]``.
        like: A tensor of the dtype and device to use.

    Attributes:
        multiplier: ``m``.
        log_prior_det: ``log det P``.
        log_prior: Log prior density at the mode, at ``m = 1``.
        prior_squares: :math:`\\sum_i P_i (w_i - \\mu_i)^2` at the mode, for Normal priors of means μ.
    """

    def __init__(self, index: Tensor, like: Tensor) -> None:
        super().__init__()
        self.size = len(index)
        self.register_buffer("index", index.to(like.device), persistent=False)
        self.register_buffer("multiplier", like.new_ones(()))
        for name in ("log_prior_det", "log_prior", "prior_squares"):
            self.register_buffer(name, like.new_zeros(()))

    index: Tensor
    multiplier: Tensor
    log_prior_det: Tensor
    log_prior: Tensor
    prior_squares: Tensor

    # ------------------------------------------------------------------ what a kind of curvature implements

    def spectrum(self) -> Tensor:
        """The eigenvalues λ of ``P^-½ H P^-½``, ``[n]``, none negative."""
        raise NotImplementedError

    def basis(self) -> Basis:
        """The basis in which the curvature is diagonal; of a dense block a decomposition that is made for the call."""
        raise NotImplementedError

    def log_det(self) -> Tensor:
        """``log det(H + m P)``, in double precision."""
        raise NotImplementedError

    def deviations(self, num_samples: int) -> Tensor:
        """Draws around the mean ``[num_samples, n]``."""
        raise NotImplementedError

    def half_covariance(self, rows: Tensor) -> Tensor:
        """``V [..., n]`` with ``V Vᵀ = rows Σ rowsᵀ``, for ``rows [..., n]``."""
        raise NotImplementedError

    def covariance_times(self, rows: Tensor) -> Tensor:
        """``rows Σ [..., n]``: what each row solves for, in ``(H + m P) x = row``."""
        raise NotImplementedError

    def variances(self) -> Tensor:
        """Marginal variances ``[n]``."""
        raise NotImplementedError

    def square(self, deviation: Tensor) -> Tensor:
        """``dᵀ (H + m P) d`` of deviations ``[..., n]``."""
        raise NotImplementedError

    # ---------------------------------------------------------------------------------- what follows

    def log_prob(self, deviation: Tensor) -> Tensor:
        """Log density of deviations ``[..., n]`` from the mean."""
        constant = self.log_det().to(deviation.dtype) - self.size * math.log(2.0 * math.pi)
        return 0.5 * (constant - self.square(deviation))

    def entropy(self) -> Tensor:
        """Entropy in nats."""
        entropy = 0.5 * (self.size * (1.0 + math.log(2.0 * math.pi)) - self.log_det())
        return entropy.to(self.multiplier.dtype)

    def log_evidence(self) -> Tensor:
        """What the block adds to the log evidence: log prior plus Occam factor."""
        return self._log_evidence(self.multiplier.double(), self.log_det())

    def log_evidence_at(self, multiplier: Tensor, spectrum: Tensor) -> Tensor:
        """:meth:`log_evidence` at other multipliers ``[...]``, from the eigenvalues :meth:`spectrum`."""
        log_det = (spectrum.double() + multiplier.unsqueeze(-1)).log().sum(-1)
        return self._log_evidence(multiplier, self.log_prior_det.double() + log_det)

    def _log_evidence(self, multiplier: Tensor, log_det: Tensor) -> Tensor:
        log_prior = self.log_prior + 0.5 * (self.size * multiplier.log() - (multiplier - 1.0) * self.prior_squares)
        return log_prior + 0.5 * (self.size * math.log(2.0 * math.pi) - log_det)

    def _set_prior(self, prior_precision: Tensor) -> None:
        self.log_prior_det.copy_(prior_precision.log().sum())
        self.multiplier.fill_(1.0)


class DecomposedBlock(Block):
    """A block that knows its eigenvectors.

    Attributes:
        eigenvalues: λ, ``[n]``.
    """

    eigenvalues: Tensor

    def __init__(self, index: Tensor, like: Tensor) -> None:
        super().__init__(index, like)
        self.register_buffer("eigenvalues", like.new_zeros(self.size))

    def expand(self, white: Tensor) -> Tensor:
        """``B v`` for vectors ``[..., n]``."""
        raise NotImplementedError

    def project(self, rows: Tensor) -> Tensor:
        """``Bᵀ v`` for vectors ``[..., n]``."""
        raise NotImplementedError

    def weighted_squares(self, weights: Tensor) -> Tensor:
        """The diagonal of ``B diag(weights) Bᵀ``, ``[n]``."""
        raise NotImplementedError

    @property
    def precision(self) -> Tensor:
        """``λ + m``: the precision along the basis, ``[n]``."""
        return self.eigenvalues + self.multiplier

    def spectrum(self) -> Tensor:
        """The eigenvalues."""
        return self.eigenvalues

    def basis(self) -> Basis:
        """The one that the block knows, in its precision."""
        return Basis(self.eigenvalues.double(), lambda rows: self.project(rows.to(self.eigenvalues)).double())

    def log_det(self) -> Tensor:
        """``log det(H + m P)``, in double precision."""
        return self.log_prior_det.double() + (self.eigenvalues.double() + self.multiplier.double()).log().sum()

    def deviations(self, num_samples: int) -> Tensor:
        """Draws around the mean ``[num_samples, n]``."""
        like = self.eigenvalues
        noise = torch.randn(num_samples, self.size, dtype=like.dtype, device=like.device)
        return self.expand(noise * self.precision.rsqrt())

    def half_covariance(self, rows: Tensor) -> Tensor:
        """``V`` with ``V Vᵀ = rows Σ rowsᵀ``."""
        return self.project(rows) * self.precision.rsqrt()

    def covariance_times(self, rows: Tensor) -> Tensor:
        """``rows Σ``."""
        return self.expand(self.project(rows) / self.precision)

    def variances(self) -> Tensor:
        """Marginal variances ``[n]``."""
        return self.weighted_squares(1.0 / self.precision)

    def square(self, deviation: Tensor) -> Tensor:
        """``dᵀ (H + m P) d``."""
        # B Bᵀ = P⁻¹, so the inverse of B is Bᵀ P.
        white = self.project(deviation / self.weighted_squares(torch.ones_like(self.eigenvalues)))
        return (white.square() * self.precision).sum(-1)

    def _keep(self, eigenvalues: Tensor, prior_precision: Tensor) -> None:
        self.eigenvalues.copy_(eigenvalues.reshape(-1).clamp_min(0.0))
        self._set_prior(prior_precision)


class DiagonalBlock(DecomposedBlock):
    """Curvature known on the diagonal only."""

    prior_scale: Tensor

    def __init__(self, index: Tensor, like: Tensor) -> None:
        super().__init__(index, like)
        self.register_buffer("prior_scale", like.new_ones(self.size))

    def set(self, curvature: Tensor, prior_precision: Tensor) -> None:
        """Takes the diagonal of H and that of P, ``[n]`` each."""
        self.prior_scale.copy_(prior_precision.rsqrt())
        self._keep(curvature / prior_precision, prior_precision)

    def expand(self, white: Tensor) -> Tensor:
        """``B v``."""
        return white * self.prior_scale

    def project(self, rows: Tensor) -> Tensor:
        """``Bᵀ v``."""
        return rows * self.prior_scale

    def weighted_squares(self, weights: Tensor) -> Tensor:
        """The diagonal of ``B diag(weights) Bᵀ``."""
        return weights * self.prior_scale.square()


class KroneckerBlock(DecomposedBlock):
    r"""A layer's ``[g, a]`` weights (bias as the last column) with curvature :math:`G \otimes A`, row by row.

    The prior precision must be the same for every output unit, :math:`P = I_g \otimes \mathrm{diag}(p)`, for the
    decomposition to stay a Kronecker product; each input (and the bias) may have its own.

    Args:
        index: Where the weights are in the flat vector, ``[g, a]``.
        like: A tensor of the dtype and device to use.
    """

    shape: torch.Size
    basis_out: Tensor
    basis_in: Tensor

    def __init__(self, index: Tensor, like: Tensor) -> None:
        super().__init__(index.reshape(-1), like)
        self.shape = index.shape
        for name, size in zip(("basis_out", "basis_in"), self.shape, strict=True):
            self.register_buffer(name, like.new_zeros(size, size))

    def set(self, of_outputs: Tensor, of_inputs: Tensor, prior_precision: Tensor) -> None:
        """Takes ``G [g, g]``, ``A [a, a]`` and the diagonal ``[g * a]`` of P.

        Raises:
            ValueError: If the prior precisions of two output units differ.
        """
        by_unit = prior_precision.reshape(self.shape)
        if not torch.allclose(by_unit, by_unit[:1].expand_as(by_unit), rtol=1e-5):
            raise ValueError("its prior has different scales for different output units")
        scale = by_unit[0].rsqrt()
        eigenvalues_out, vectors_out = torch.linalg.eigh(of_outputs)
        eigenvalues_in, vectors_in = torch.linalg.eigh(scale.unsqueeze(-1) * of_inputs * scale)
        self.basis_out.copy_(vectors_out)
        self.basis_in.copy_(scale.unsqueeze(-1) * vectors_in)
        self._keep(eigenvalues_out.clamp_min(0.0).outer(eigenvalues_in.clamp_min(0.0)), prior_precision)

    def expand(self, white: Tensor) -> Tensor:
        """``B v``."""
        return (self.basis_out @ white.unflatten(-1, self.shape) @ self.basis_in.T).flatten(-2)

    def project(self, rows: Tensor) -> Tensor:
        """``Bᵀ v``."""
        return (self.basis_out.T @ rows.unflatten(-1, self.shape) @ self.basis_in).flatten(-2)

    def weighted_squares(self, weights: Tensor) -> Tensor:
        """The diagonal of ``B diag(weights) Bᵀ``."""
        squares = self.basis_out.square() @ weights.unflatten(-1, self.shape) @ self.basis_in.square().T
        return squares.flatten(-2)
