r"""A training step of a Gaussian with diagonal plus low-rank covariance as one node of the graph.

For a draw :math:`w = \mu + \delta`, :math:`\delta = \sigma\varepsilon + Fz`, with :math:`D = \mathrm{diag}(\sigma^2)`,
:math:`B = D^{-1/2} F` and :math:`C = I + B^\top B`, the gradients of a loss with the KL at weight λ are

.. math::  dL/dF &= g z^\top + \lambda (p F - D^{-1} F C^{-1}), \\
           dL/d\psi &= \sigma \varepsilon g + \lambda (p \sigma^2 - 1 + q),
           \qquad q_i = (D^{-1} F C^{-1})_i \cdot F_i,

where g is the gradient by w, ψ = log σ, and p the precision of a Normal prior. With
:math:`T = g z^\top - \lambda D^{-1} F C^{-1}` the sum :math:`\sigma \varepsilon g + \lambda q` is
:math:`\delta g - T \cdot F` by rows. Time goes into passes over F, one forward and one backward
(:mod:`~pyrobnn.steps.low_rank_passes`). The token is that of :mod:`pyrobnn.steps.mean_field`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from pyrobnn.model.divergence import Divergence, PriorTerm, refuse_missing
from pyrobnn.model.draws import Draws
from pyrobnn.model.layout import Layout
from pyrobnn.steps.base import GradientBuffers, Lease, Pool, Step, refuse_second_derivatives
from pyrobnn.steps.flat import collect
from pyrobnn.steps.low_rank_loops import passes_for
from pyrobnn.steps.low_rank_passes import Columns
from pyrobnn.steps.noise import AntitheticNoise
from pyrobnn.steps.normal_prior import FlatNormalPrior, NormalWindow

__all__ = ["LowRankStep"]

Terms: TypeAlias = tuple[dict[str, Tensor], bool]


class LowRankStep(Step):
    """Draws of ``N(μ, diag(σ²) + F Fᵀ)`` over a flat vector.

    Args:
        layout: The sites.
        loc: Means ``[d]``.
        log_scale: ψ ``[d]``, half the log of the covariance's diagonal part.
        factor: The transpose of F, ``[r, d]``.
        cross_entropies: From a draw and priors to the cross-entropies of their sites, in the graph of the parameters,
            and whether all are exact; for priors that are no fixed Normals.
        antithetic: Whether eight draws in a row share one block of random numbers.
    """

    compiles = True

    def __init__(
        self,
        layout: Layout,
        loc: nn.Parameter,
        log_scale: nn.Parameter,
        factor: nn.Parameter,
        cross_entropies: Callable[[Draws, Mapping[str, PriorTerm]], Terms],
        *,
        antithetic: bool = True,
    ) -> None:
        self.layout, self._cross_entropies, self._antithetic = layout, cross_entropies, antithetic
        self.parameters = loc, log_scale, factor
        self._pool: Pool[_Memory] = Pool(lambda: _Memory(layout, loc, log_scale, factor), *self.parameters)
        self._prior: FlatNormalPrior | None = None

    def draw(self, index: int | None, noise: Tensor | None = None, *, avoid: Tensor | None = None) -> Draws:
        """``μ + σε + Fz`` by site; given noise holds ε, then z."""
        lease = self._pool.take()
        with torch.no_grad():
            lease.memory.noise.refresh(self._antithetic, noise)
            lease.memory.draw(() if self._prior is None else [n.window for n in self._prior.windows])
        record = _Record(lease)
        token, *pieces = _Node.apply(*self.parameters, record)
        values = self.layout.constrain(dict(zip(self.layout, pieces, strict=True)))
        return Draws(values, record=(record, token))

    def noise(self, index: int) -> Tensor:
        """The noise of the next draw, whose signs may be all that changes."""
        lease = self._pool.take()
        lease.memory.noise.refresh(self._antithetic)
        lease.release()
        return lease.memory.noise.values

    def divergence(self, draws: Draws, priors: Mapping[str, PriorTerm]) -> Divergence:
        """The KL: the joint entropy, and cross-entropies of fixed Normal priors, in one pass; of others by site."""
        refuse_missing(self.layout, priors)
        record, token = draws.record
        prior = self._prior = FlatNormalPrior.of(self._prior, self.layout, priors, self.parameters[0])
        memory = record.lease.in_use()
        with torch.no_grad():
            joint = -memory.entropy()
            flat = sum((memory.cross_entropy(normal) for normal in prior.windows), start=torch.zeros_like(joint))
        record.windows, record.gaps, record.is_counted = prior.windows, prior.gaps, True
        terms, exact = self._cross_entropies(draws, {n: t for n, t in priors.items() if n not in prior.names})
        total = sum(terms.values(), start=joint + flat + token)
        names = prior.names

        def by_site() -> Mapping[str, Tensor]:
            found = terms | self._cross_entropies(draws, {name: priors[name] for name in names})[0]
            return {name: found[name] for name in priors}

        return Divergence(torch.as_tensor(total), joint, exact, sites=by_site)

    def restart(self, remaining: int | None = None) -> None:
        """Forgets what is left of antithetic groups."""
        self._pool.clear()


class _Memory:
    """Tensors that are used by one draw at a time.

    Attributes:
        noise: ε and z, ``[d + r]``.
        deviation: δ.
        by_loc: The draw; after the backward pass the gradient by the means.
        by_log_scale: σ; then the gradient by ψ.
        by_factor: The gradient by the transposed factor, ``[r, d]``.
        cholesky: That of C, in double precision.
        values: Parts of the draw by site.
    """

    def __init__(self, layout: Layout, loc: nn.Parameter, log_scale: nn.Parameter, factor: nn.Parameter) -> None:
        self.layout = layout
        self.loc, self.log_scale, self.factor = loc.detach(), log_scale.detach(), factor.detach()
        self._buffers = GradientBuffers(loc), GradientBuffers(log_scale), GradientBuffers(factor)
        rank, size = self.factor.shape
        self.noise = AntitheticNoise(self.loc.new_empty(size + rank))
        self._epsilon, self._weights = self.noise.values.split([size, rank])
        self.deviation, self.zero = torch.empty_like(self.loc), self.loc.new_zeros(())
        self.by_loc = self.by_log_scale = self.loc
        self.by_factor = self.factor
        self.values: list[Tensor] = []
        self.cholesky: Tensor | None = None
        self._passes = passes_for(self.factor)
        self._gram = self.loc.new_zeros((rank, rank), dtype=torch.float64)  # rounding must not hide the identity
        self._squares: dict[tuple[int, int], Tensor] = {}

    def draw(self, windows: Sequence[slice]) -> None:
        """Makes a draw, in buffers for gradients that are not ``parameter.grad`` now.

        The factor, the largest of all, is read once: what entropy and cross-entropies need of it is computed, too.

        Args:
            windows: Those that priors are expected for.
        """
        by_loc, self.by_log_scale, self.by_factor = map(GradientBuffers.free, self._buffers)
        if by_loc is not self.by_loc:
            self.by_loc, self.values = by_loc, list(self.layout.split(by_loc).values())
        self.cholesky = None
        self._gram.zero_()
        self._squares.clear()
        begin = 0
        for window in windows:
            self._pass(slice(begin, window.start))
            self._squares[window.start, window.stop] = self._pass(window)
            begin = window.stop
        self._pass(slice(begin, len(self.loc)))

    def _pass(self, window: slice) -> Tensor:
        """The draw's elements in a window, their part of ``Bᵀ B``; returns the sum of squares of σ and F there."""
        torch.exp(self.log_scale[window], out=self.by_log_scale[window])
        return self._passes.forward(self._columns(window), self._weights, self._gram)

    def _columns(self, window: slice) -> Columns:
        return Columns(
            self.factor, self.loc, self._epsilon, self.deviation, self.by_loc, self.by_log_scale, self.by_factor
        ).at(window)

    def entropy(self) -> Tensor:
        """``½ (d (1 + log 2π) + log det Σ)``, NaN if C is singular in this precision."""
        size, gram = len(self.loc), self._gram
        cholesky, failed = torch.linalg.cholesky_ex(gram + torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
        self.cholesky = torch.where(failed > 0, math.nan, cholesky)
        half_log_det = self.cholesky.diagonal().log().sum().to(self.loc.dtype)
        return 0.5 * size * (1.0 + math.log(2.0 * math.pi)) + self.log_scale.sum() + half_log_det

    def cross_entropy(self, normal: NormalWindow) -> Tensor:
        """``E[-log p]`` of the sites of a window."""
        window, precision = normal.window, normal.precision
        squares = self._squares.get((window.start, window.stop))
        if squares is None or isinstance(precision, Tensor):
            rows = self.by_log_scale[window], *self.factor[:, window].unbind()
            weights = precision if isinstance(precision, Tensor) else torch.ones_like(rows[0])
            squares = sum(((row * row).dot(weights) for row in rows), start=self.zero)
        spread = squares * (0.5 * precision if isinstance(precision, float) else 0.5)
        return normal.half_squares(self.loc[window]) + spread + normal.log_normalizer

    def write_gradients(self, weight: float, windows: Sequence[NormalWindow], gaps: Sequence[slice]) -> None:
        """Gradients by ψ and F, from that by the draw."""
        rank = len(self._weights)
        mixing = self.loc.new_zeros((rank, rank + 1))
        mixing[:, rank] = self._weights
        if weight:
            assert self.cholesky is not None
            mixing[:, :rank] = torch.cholesky_inverse(self.cholesky).mul_(-weight)
        for window, precision in [*((n.window, n.precision) for n in windows), *((gap, 0.0) for gap in gaps)]:
            precisions = precision if isinstance(precision, Tensor) else self.loc.new_tensor([precision])
            self._passes.backward(self._columns(window), mixing, precisions, weight)


class _Record:
    """What a draw needs until its backward pass: its memory, and which priors its divergence counted."""

    def __init__(self, lease: Lease[_Memory]) -> None:
        self.lease = lease
        self.is_counted = False
        self.windows: Sequence[NormalWindow] = []
        self.gaps: Sequence[slice] = []

    def gradients(self, weight: float, by_values: Sequence[Tensor | None]) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients by means, log scales and factor, in buffers that autograd takes over."""
        memory = self.lease.in_use()
        collect(by_values, memory.values, memory.by_loc)
        if self.is_counted and weight:
            memory.write_gradients(weight, self.windows, self.gaps)
            for normal in self.windows:
                normal.add_gradient(memory.by_loc[normal.window], memory.loc[normal.window], weight)
        else:
            memory.write_gradients(0.0, [], [slice(0, len(memory.loc))])
        self.lease.release()
        return memory.by_loc.detach(), memory.by_log_scale.detach(), memory.by_factor.detach()


class _Node(torch.autograd.Function):
    """From the parameters to the token and the sites' values."""

    @staticmethod
    def forward(ctx: Any, loc: Tensor, log_scale: Tensor, factor: Tensor, record: _Record) -> tuple[Tensor, ...]:
        ctx.record = record
        ctx.set_materialize_grads(False)
        memory = record.lease.memory
        return (memory.zero.detach(), *[value.detach() for value in memory.values])

    @staticmethod
    def backward(ctx: Any, weight: Tensor | None, *by_values: Tensor | None) -> tuple[Tensor, Tensor, Tensor, None]:
        refuse_second_derivatives()
        return *ctx.record.gradients(0.0 if weight is None else float(weight), by_values), None
