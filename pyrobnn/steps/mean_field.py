r"""A mean-field training step as one node of the graph, from two flat vectors to the sites' values.

A draw is written in place. The node's backward pass turns the gradients by the sites' values into those by means and
log scales with a handful of fused passes,

.. math::  dL/d\mu = dL/dw + \lambda p (\mu - m), \qquad
           dL/d\psi = \sigma \varepsilon\, dL/dw + \lambda (p \sigma^2 - 1),

with :math:`p = 1 / s^2` of a prior :math:`N(m, s^2)`. The weight λ of the KL is the gradient of a *token*, a zero that
the node returns with the values and that the KL's value is added to: whatever scales the loss scales λ too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.estimators.base import Estimator
from pyrobnn.estimators.uses import in_one_run
from pyrobnn.model.divergence import Divergence, PriorTerm
from pyrobnn.model.draws import Draws
from pyrobnn.model.layout import Layout
from pyrobnn.steps.base import Lease, Pool, Step, refuse_second_derivatives
from pyrobnn.steps.mean_field_memory import Drawn, MeanFieldMemory
from pyrobnn.steps.normal_prior import FlatNormalPrior

__all__ = ["MeanFieldStep"]

_SMALLEST_PULL = 1e-20  # below it (annealing starts at 0) dividing by it might overflow


class MeanFieldStep(Step):
    """Draws of independent Gaussians over a flat vector.

    Args:
        layout: The sites.
        loc: Means ``[d]``.
        log_scale: Log standard deviations ``[d]``.
        marginal: The distribution of a site on its support, for priors that are no fixed Normals.
        estimators: Estimators by site, for the layers that draw.
        antithetic: Whether eight draws in a row share one block of random numbers.
    """

    def __init__(
        self,
        layout: Layout,
        loc: nn.Parameter,
        log_scale: nn.Parameter,
        marginal: Any,
        estimators: Mapping[str, Estimator] | None = None,
        *,
        antithetic: bool = True,
    ) -> None:
        self.layout, self._marginal, self._antithetic = layout, marginal, antithetic
        self.loc, self.log_scale = loc, log_scale
        self._estimators = dict(estimators or {})
        self.compiles = not self._estimators
        self._pool: Pool[MeanFieldMemory] = Pool(lambda: MeanFieldMemory(layout, loc, log_scale), loc, log_scale)
        self._prior: FlatNormalPrior | None = None

    def draw(self, index: int | None, noise: Tensor | None = None, *, avoid: Tensor | None = None) -> Draws:
        """``μ + σε`` by site, or distributions that layers draw from; values wherever the noise is given."""
        estimators = self._estimators if noise is None else {}  # layers would draw noise of their own
        lease = self._pool.take()
        memory = lease.memory
        with torch.no_grad():
            memory.begin(layerwise=bool(estimators))
            torch.exp(self.log_scale, out=memory.scale)
            if not estimators:
                memory.antithetic.refresh(self._antithetic, noise)
                torch.addcmul(self.loc, memory.noise, memory.scale, out=memory.value)
        record = _Record(lease, estimators)
        token, *pieces = _Node.apply(self.loc, self.log_scale, record)
        drawn = Drawn(record, token)
        values, contexts = dict(zip(self.layout, pieces, strict=True)), []
        if estimators:
            weights = memory.weights_under(values, drawn, estimators, self._antithetic)
            values = {n: w if n in estimators else w.shared for n, w in weights.items()}
            contexts.append(in_one_run({name: weights[name] for name in estimators}))
        return Draws(self.layout.constrain(values), record=drawn, contexts=contexts)

    def noise(self, index: int) -> Tensor:
        """The noise of the next draw, whose signs may be all that changes."""
        lease = self._pool.take()
        lease.memory.antithetic.refresh(self._antithetic)
        lease.release()
        return lease.memory.noise

    def divergence(self, draws: Draws, priors: Mapping[str, PriorTerm]) -> Divergence:
        """The KL: of fixed Normal priors on flat vectors, of others site by site."""
        drawn: Drawn = draws.record
        record: _Record = drawn.record
        record.prior = self._prior = FlatNormalPrior.of(self._prior, self.layout, priors, self.loc)
        flat = self._flat_kl(record) + drawn.token
        return Divergence.beside(flat, record.prior.names, self._marginal, priors, draws)

    @torch.no_grad()
    def _flat_kl(self, record: _Record) -> Tensor | float:
        """The value of the KL from fixed Normal priors; its gradient is the node's."""
        memory = record.lease.in_use()
        total: Tensor | float = 0.0
        assert record.prior is not None
        for normal in record.prior.windows:
            window, precision = normal.window, normal.precision
            scale, has_variance = memory.scale[window], memory.has_variance
            if isinstance(precision, float):
                spread = (scale.sum() if has_variance else scale.dot(scale)) * (0.5 * precision)
            else:
                spread = (scale if has_variance else scale * scale).dot(precision) * 0.5
            distance, entropy = normal.half_squares(self.loc[window]), self.log_scale[window].sum()
            total = total + distance + spread - entropy + (normal.log_scale_sum - 0.5 * normal.size)
        return total

    def restart(self, remaining: int | None = None) -> None:
        """Forgets what is left of antithetic groups."""
        self._pool.clear()


class _Record:
    """What a draw needs until its backward pass: its memory, and the prior that its KL counted."""

    def __init__(self, lease: Lease[MeanFieldMemory], estimators: Mapping[str, Estimator]) -> None:
        self.lease, self.is_layerwise = lease, bool(estimators)
        self.prior: FlatNormalPrior | None = None

    def pieces(self) -> Sequence[Tensor]:
        """The values that the node returns: the draw's, or the means'."""
        memory = self.lease.in_use()
        return memory.locs if self.is_layerwise else memory.values

    def gradients(self, weight: float, by_values: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
        """Gradients by means and log scales, in buffers that autograd takes over."""
        memory = self.lease.in_use()
        by_loc, by_log_scale = memory.collect(by_values), memory.by_log_scale
        normals = self.prior.windows if self.prior is not None and weight else []
        gaps = self.prior.gaps if self.prior is not None and weight else [slice(0, len(memory.loc))]
        if self.is_layerwise:
            self._by_layers(weight, normals, gaps)
        else:
            for normal in normals:
                self._of_window(weight, normal.window, normal.precision, by_loc)
            for gap in gaps:
                for chunk, inner in memory.chunks(gap):
                    torch.mul(memory.noise[chunk], by_loc[chunk], out=inner)
                    memory.scale[chunk].mul_(inner)
        for normal in normals:
            normal.add_gradient(by_loc[normal.window], memory.loc[normal.window], weight)
        self.lease.release()
        return by_loc.detach(), by_log_scale.detach()

    def _of_window(self, weight: float, window: slice, precision: float | Tensor, by_value: Tensor) -> None:
        """``dL/dψ = σ (ε dL/dw + λp σ) - λ`` where σ was, in as few passes over memory as can be."""
        memory = self.lease.memory
        constant = memory.constant(-weight)
        pull = weight * precision if isinstance(precision, float) else 0.0
        for chunk, inner in memory.chunks(window):
            scale, noise, gradient = memory.scale[chunk], memory.noise[chunk], by_value[chunk]
            if pull > _SMALLEST_PULL:
                torch.addcmul(scale, noise, gradient, value=1.0 / pull, out=inner)
                torch.addcmul(constant, scale, inner, value=pull, out=scale)
                continue
            near = precision
            if isinstance(precision, Tensor):
                near = precision[chunk.start - window.start : chunk.stop - window.start]
            torch.mul(noise, gradient, out=inner)
            torch.addcmul(constant, inner, scale, out=inner)
            torch.add(inner, scale * scale * near, alpha=weight, out=scale)

    def _by_layers(self, weight: float, normals: Sequence[Any], gaps: Sequence[slice]) -> None:
        """``2σ² (dL/dσ² + λp/2) - λ`` where layers drew by variances, plus what their deviations add."""
        memory = self.lease.memory
        memory.collect_variances()
        for normal in normals:
            window, precision = normal.window, normal.precision
            head, scale = memory.by_log_scale[window], memory.scale[window]
            constant = memory.constant(-weight)
            if memory.has_variance:
                head.add_(precision, alpha=0.5 * weight)
                torch.addcmul(constant, scale, head, value=2.0, out=head)
            elif isinstance(precision, float):
                torch.addcmul(constant, scale, scale, value=weight * precision, out=head)
            else:
                torch.addcmul(constant, scale, scale * precision, value=weight, out=head)
        for gap in gaps:
            tail = memory.by_log_scale[gap]
            if memory.has_variance:
                tail.mul_(memory.scale[gap]).mul_(2.0)
            else:
                tail.zero_()
        memory.add_deviations()


class _Node(torch.autograd.Function):
    """From the parameters to the token and the sites' values."""

    @staticmethod
    def forward(ctx: Any, loc: Tensor, log_scale: Tensor, record: _Record) -> tuple[Tensor, ...]:
        ctx.record = record
        ctx.set_materialize_grads(False)
        return (record.lease.memory.zero.detach(), *[piece.detach() for piece in record.pieces()])

    @staticmethod
    def backward(ctx: Any, weight: Tensor | None, *by_values: Tensor | None) -> tuple[Tensor, Tensor, None]:
        refuse_second_derivatives()
        return *ctx.record.gradients(0.0 if weight is None else float(weight), by_values), None
