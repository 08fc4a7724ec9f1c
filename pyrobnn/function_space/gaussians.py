r"""Gaussians over function values at n points with C outputs, and the KL between them, from small factorizations.

A vector of ``n · C`` values has a covariance of ``(nC)²`` numbers, whose Cholesky costs ``(nC)³ / 3``. The two sides of
a functional KL have structure:

* **Priors** (:class:`BlockFunctions`) have independent outputs: C covariances ``K_c [n, n]``, or one for all
  (``K ⊗ I_C``): C Choleskys of n, or one.
* **Posteriors** (:class:`LowRankFunctions`) are ``N(m, Σ_r a_r a_rᵀ + λ I)`` with R vectors ``a_r``, of the members of
  an ensemble or the columns of a Jacobian. With ``S_{rs} = a_r · a_s``

  .. math::  \log\det = nC \log λ + \log\det(I + S / λ) \qquad (R^2 n C \text{ operations}),

  .. math::  \mathrm{tr}(K^{-1} Σ_q) = \sum_c \Big[ λ\,\mathrm{tr} K_c^{-1} + \sum_r a_{rc}^\top K_c^{-1} a_{rc} \Big].
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from numpy.polynomial.hermite_e import hermegauss
from torch import Tensor

from pyrobnn.core.arguments import check_non_negative

__all__ = ["BlockFunctions", "Jitter", "LowRankFunctions", "factorized", "functional_kl"]


@dataclass(frozen=True)
class Jitter:
    """What is added to the diagonal of a covariance.

    Attributes:
        amount: A share of the mean variance, which carries no gradient; or a variance.
        relative: Whether it is a share.
        by_point: Whether the mean is over the outputs at each point by itself. Over all points, as published, a few of
            large variance (context points far from the data) set the noise at all others.

    Raises:
        ValueError: If ``amount`` is negative or not finite.
    """

    amount: float = 0.05
    relative: bool = True
    by_point: bool = False

    def __post_init__(self) -> None:
        check_non_negative("amount", self.amount)

    @classmethod
    def of(cls, given: float | Jitter, name: str, *, by_point: bool = False) -> Jitter:
        """A number is a share of the mean variance, at each point by itself if so wanted.

        Raises:
            ValueError: If it is negative or not finite.
        """
        if isinstance(given, Jitter):
            return given
        check_non_negative(name, given)
        return cls(given, by_point=by_point)

    def __call__(self, variances: Tensor) -> Tensor:
        """The variance to add, detached, where functions ``[n, C]`` have these variances: a number, or ``[n, 1]``."""
        mean = variances.detach().mean(-1, keepdim=True) if self.by_point else variances.detach().mean()
        return self.amount * mean if self.relative else torch.full_like(mean, self.amount)

    def __str__(self) -> str:
        where = " at each point" if self.by_point else ""
        return f"{100 * self.amount:g} % of the mean variance{where}" if self.relative else f"{self.amount:g}"


@dataclass
class BlockFunctions:
    """Gaussian functions with independent outputs.

    Attributes:
        mean: ``[n, C]``, or a number for all.
        covariance: ``[n, n]`` for all outputs, or one for each, ``[C, n, n]``; the jitter is in it.
        jitter: What was added to it, for messages.
        name: What messages call it.
    """

    mean: Tensor | float
    covariance: Tensor
    jitter: str = "none"
    name: str = "prior"

    def with_noise(self, variance: float | Tensor) -> BlockFunctions:
        """The same plus independent noise of this variance."""
        eye = torch.eye(self.covariance.shape[-1], dtype=self.covariance.dtype, device=self.covariance.device)
        return replace(self, covariance=self.covariance + variance * eye)


@dataclass
class LowRankFunctions:
    """Gaussian functions whose covariance is a sum of R outer products, and noise.

    Attributes:
        mean: ``[n, C]``.
        factor: The vectors ``[R, n, C]``.
        ridge: Variance λ of the noise, a scalar, or one for each point ``[n, 1]``.
    """

    mean: Tensor
    factor: Tensor
    ridge: Tensor

    @classmethod
    def of_draws(cls, functions: Tensor, jitter: Jitter) -> LowRankFunctions:
        """The mean and covariance of M functions ``[M, n, C]``, divided by M as in the paper, plus the jitter."""
        mean = functions.mean(0)
        factor = (functions - mean) / math.sqrt(len(functions))
        return cls(mean, factor, jitter(factor.square().sum(0)))

    def with_noise(self, variance: float | Tensor) -> LowRankFunctions:
        """The same plus independent noise of this variance."""
        return replace(self, ridge=self.ridge + variance)

    def first(self, points: int) -> LowRankFunctions:
        """The functions at the first points alone."""
        ridge = self.ridge[:points] if self.ridge.dim() else self.ridge
        return LowRankFunctions(self.mean[:points], self.factor[:, :points], ridge)

    @property
    def variance(self) -> Tensor:
        """``[n, C]``."""
        return self.factor.square().sum(0) + self.ridge

    @property
    def covariance(self) -> Tensor:
        """``[nC, nC]``, the outputs at a point next to each other."""
        flat = self.factor.flatten(1)
        return flat.mT @ flat + self.ridge.expand(self.mean.shape).flatten().diag()

    def rsample(self, num_samples: int) -> Tensor:
        """Functions ``[num_samples, n, C]`` with gradients, in pairs that mirror each other at the mean."""
        half = (num_samples + 1) // 2
        moved = torch.tensordot(self.mean.new_empty(half, len(self.factor)).normal_(), self.factor, 1)
        moved = moved + self.ridge.sqrt() * self.mean.new_empty(half, *self.mean.shape).normal_()
        return self.mean + torch.cat([moved, -moved])[:num_samples]

    def at_nodes(self, num_nodes: int) -> tuple[Tensor, Tensor]:
        """Values ``[m, n, 1]`` of each point by itself at m Gauss-Hermite nodes, and their weights; of one output.

        The weighted sum of a polynomial of degree ``2 m - 1`` is its exact expectation.
        """
        nodes, weights = (torch.from_numpy(found).to(self.mean) for found in hermegauss(num_nodes))
        return self.mean + nodes.reshape(-1, 1, 1) * self.variance.sqrt(), weights / weights.sum()

    def log_determinant(self) -> Tensor:
        """Of the covariance.

        Raises:
            ValueError: If it is not positive definite.
        """
        flat = self.factor.flatten(1)
        rank, size = flat.shape
        noise = self.ridge.expand(self.mean.shape).flatten()
        ridge = float(noise.detach().min())
        name, jitter = "posterior", f"a ridge of {ridge:.3g}"
        if rank >= size:
            return _log_determinant(factorized(self.covariance, name, jitter))
        rounding = torch.finfo(flat.dtype).eps * float(self.mean.detach().abs().max())
        if ridge <= rounding**2:
            raise ValueError(
                f"jitter: the covariance of the functions has rank {rank} at most, of {size}, so it needs a positive "
                f"jitter, and the functions must differ; it is {ridge:.3g} (do all members start at the same weights?)."
            )
        white = flat * noise.rsqrt()
        inner = torch.eye(rank, dtype=flat.dtype, device=flat.device) + white @ white.mT
        return noise.log().sum() + _log_determinant(factorized(inner, name, jitter))


def functional_kl(q: LowRankFunctions | BlockFunctions, p: BlockFunctions) -> Tensor:
    """KL of Gaussian functions from others at the same points, in nats.

    Args:
        q: The posterior.
        p: The prior.

    Raises:
        ValueError: If a covariance is not positive definite.
    """
    root = factorized(p.covariance, p.name, p.jitter)
    points, outputs = _sizes(q, p)
    repeated = outputs if root.dim() == 2 else 1
    difference = torch.as_tensor(q.mean - p.mean).expand(points, outputs)
    if isinstance(q, LowRankFunctions):
        columns = torch.cat([q.factor, difference.unsqueeze(0)]).permute(2, 1, 0)  # [C, n, R + 1]
        log_determinant = q.log_determinant()
        # tr(K⁻¹ D) with the noise of each point in D: the columns of L⁻¹ weighed by it.
        eye = torch.eye(points, dtype=root.dtype, device=root.device)
        noise = q.ridge.expand(points, 1).squeeze(1)
        trace = (torch.linalg.solve_triangular(root, eye, upper=False).square() * noise).sum() * repeated
    else:
        own = factorized(q.covariance, q.name, q.jitter)
        columns = difference.mT.unsqueeze(-1)
        log_determinant = _log_determinant(own) * (outputs if own.dim() == 2 else 1)
        count = outputs if own.dim() == root.dim() == 2 else 1
        trace = torch.linalg.solve_triangular(root, own, upper=False).square().sum() * count
    white = torch.linalg.solve_triangular(root, columns, upper=False)
    total = trace + white.square().sum() + repeated * _log_determinant(root) - log_determinant
    return 0.5 * (total - points * outputs)


def factorized(covariance: Tensor, name: str, jitter: str) -> Tensor:
    """The lower Cholesky factor of a covariance ``[..., n, n]``.

    Args:
        covariance: The covariance.
        name: What it is of.
        jitter: What was added to its diagonal.

    Raises:
        ValueError: If it is not finite, or not positive definite; the message has the jitter and the smallest
            eigenvalue.
    """
    root, info = torch.linalg.cholesky_ex(covariance)
    if not bool(info.any()) and bool(root.isfinite().all()):
        return root
    if not bool(covariance.isfinite().all()):
        raise ValueError(f"{name}: its covariance is not finite; check the kernel, or the scale of the functions.")
    smallest = float(torch.linalg.eigvalsh(covariance.detach().double()).min())
    raise ValueError(
        f"{name}: its covariance at {covariance.shape[-1]} points is not positive definite after the jitter "
        f"({jitter}); its smallest eigenvalue is {smallest:.3g}. Pass a larger jitter, or use double precision "
        "(model.double())."
    )


def _sizes(q: LowRankFunctions | BlockFunctions, p: BlockFunctions) -> tuple[int, int]:
    """Numbers of points and outputs, which must agree."""
    points = p.covariance.shape[-1]
    means = [value.shape[1] for value in (q.mean, p.mean) if isinstance(value, Tensor) and value.dim() == 2]
    covariances = [p.covariance, *([q.covariance] if isinstance(q, BlockFunctions) else [])]
    blocks = [covariance.shape[0] for covariance in covariances if covariance.dim() == 3]
    counts = {*means, *blocks} or {1}
    if len(counts) > 1:
        raise ValueError(f"{p.name}: functions have different numbers of outputs, {sorted(counts)}.")
    own = q.mean.shape[0] if isinstance(q, LowRankFunctions) else q.covariance.shape[-1]
    if own != points:
        raise ValueError(f"{p.name}: its covariance is of {points} points, but there are {own} measurement points.")
    return points, counts.pop()


def _log_determinant(root: Tensor) -> Tensor:
    return 2.0 * root.diagonal(dim1=-2, dim2=-1).log().sum()
