"""What torch's elementwise operators compute, as expressions in C++, and what others consist of.

In expressions ``{0}``, ``{1}`` are the arguments in the order of the operator's schema, and ``{f}`` is the suffix of
functions of the type at hand. Functions have vectorized versions in glibc (``libmvec``), exact to four units in the
last place.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyrobnn.sampling.hmc.tracing import product

__all__ = ["COST", "DECOMPOSITIONS", "DEFAULTS", "EXPRESSIONS", "power"]

_aten = torch.ops.aten
_LARGEST_BATCHED_PRODUCT = 2**16  # multiplications above which a library is faster than plain loops

EXPRESSIONS: dict[Any, str] = {
    _aten._to_copy.default: "{0}",
    _aten.abs.default: "__builtin_fabs{f}({0})",
    _aten.add.Scalar: "{0} + {2} * {1}",
    _aten.add.Tensor: "{0} + {alpha} * {1}",
    _aten.addcmul.default: "{0} + {value} * {1} * {2}",
    _aten.bitwise_and.Tensor: "{0} & {1}",
    _aten.bitwise_not.default: "!{0}",
    _aten.bitwise_or.Tensor: "{0} | {1}",
    _aten.clamp_max.default: "{0} > {1} ? {1} : {0}",
    _aten.clamp_min.default: "{0} < {1} ? {1} : {0}",
    _aten.clone.default: "{0}",
    _aten.cos.default: "cos{f}({0})",
    _aten.div.Scalar: "{0} / {1}",
    _aten.div.Tensor: "{0} / {1}",
    _aten.elu.default: "{0} > 0 ? {2} * {0} : {2} * {1} * expm1{f}({0} * {3})",
    _aten.eq.Scalar: "{0} == {1}",
    _aten.eq.Tensor: "{0} == {1}",
    _aten.erf.default: "erf{f}({0})",
    _aten.exp.default: "exp{f}({0})",
    _aten.expm1.default: "expm1{f}({0})",
    _aten.ge.Scalar: "{0} >= {1}",
    _aten.ge.Tensor: "{0} >= {1}",
    _aten.gt.Scalar: "{0} > {1}",
    _aten.gt.Tensor: "{0} > {1}",
    _aten.le.Scalar: "{0} <= {1}",
    _aten.le.Tensor: "{0} <= {1}",
    _aten.leaky_relu.default: "{0} > 0 ? {0} : {0} * {1}",
    _aten.leaky_relu_backward.default: "{1} > 0 ? {0} : {0} * {2}",
    _aten.lgamma.default: "lgamma{f}({0})",
    _aten.log.default: "log{f}({0})",
    _aten.log1p.default: "log1p{f}({0})",
    _aten.logical_not.default: "!{0}",
    _aten.lt.Scalar: "{0} < {1}",
    _aten.lt.Tensor: "{0} < {1}",
    _aten.masked_fill.Scalar: "{1} ? {2} : {0}",
    _aten.masked_fill.Tensor: "{1} ? {2} : {0}",
    _aten.maximum.default: "{0} > {1} || {0} != {0} ? {0} : {1}",
    _aten.minimum.default: "{0} < {1} || {0} != {0} ? {0} : {1}",
    _aten.mul.Scalar: "{0} * {1}",
    _aten.mul.Tensor: "{0} * {1}",
    _aten.ne.Scalar: "{0} != {1}",
    _aten.ne.Tensor: "{0} != {1}",
    _aten.neg.default: "-{0}",
    _aten.pow.Scalar: "pow{f}({0}, {1})",
    _aten.pow.Tensor_Scalar: "pow{f}({0}, {1})",
    _aten.pow.Tensor_Tensor: "pow{f}({0}, {1})",
    _aten.reciprocal.default: "1 / {0}",
    _aten.relu.default: "{0} < 0 ? 0 : {0}",
    _aten.rsqrt.default: "1 / __builtin_sqrt{f}({0})",
    _aten.rsub.Scalar: "{1} - {2} * {0}",
    _aten.rsub.Tensor: "{1} - {alpha} * {0}",
    _aten.sgn.default: "{0} > 0 ? 1 : {0} < 0 ? -1 : {0}",
    _aten.sigmoid.default: "1 / (1 + exp{f}(-{0}))",
    _aten.sigmoid_backward.default: "{0} * (1 - {1}) * {1}",
    _aten.sign.default: "{0} > 0 ? 1 : {0} < 0 ? -1 : {0}",
    _aten.silu.default: "{0} / (1 + exp{f}(-{0}))",
    _aten.sin.default: "sin{f}({0})",
    _aten.softplus.default: "{0} * {1} > {2} ? {0} : log1p{f}(exp{f}({0} * {1})) / {1}",
    _aten.softplus_backward.default: "{1} * {2} > {3} ? {0} : {0} / (1 + exp{f}(-{1} * {2}))",
    _aten.sqrt.default: "__builtin_sqrt{f}({0})",
    _aten.sub.Scalar: "{0} - {2} * {1}",
    _aten.sub.Tensor: "{0} - {alpha} * {1}",
    _aten.tanh.default: "tanh{f}({0})",
    _aten.tanh_backward.default: "{0} * (1 - {1} * {1})",
    _aten.threshold_backward.default: "{1} <= {2} ? 0 : {0}",
    _aten.where.ScalarOther: "{0} ? {1} : {2}",
    _aten.where.ScalarSelf: "{0} ? {1} : {2}",
    _aten.where.self: "{0} ? {1} : {2}",
    _aten.xlogy.Tensor: "{0} == 0 && {1} == {1} ? 0 : {0} * log{f}({1})",
}
"""Expressions by operator."""

DEFAULTS: dict[Any, tuple[float, ...]] = {
    _aten.add.Scalar: (0, 0, 1),
    _aten.elu.default: (0, 1, 1, 1),
    _aten.leaky_relu.default: (0, 0.01),
    _aten.rsub.Scalar: (0, 0, 1),
    _aten.softplus.default: (0, 1, 20),
    _aten.sub.Scalar: (0, 0, 1),
}
"""Arguments that need not be given, and zeros for those that must."""

COST = 10
"""Operations that a call of a function counts for."""

_POWERS = {0.5: "__builtin_sqrt{f}({0})", 2: "{0} * {0}", 3: "{0} * {0} * {0}", -1: "1 / {0}", -2: "1 / ({0} * {0})"}


def power(exponent: Any) -> str:
    """The expression of a power with an exponent that is a number."""
    return _POWERS.get(exponent, EXPRESSIONS[_aten.pow.Tensor_Scalar])


def _affine(c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return NotImplemented if alpha != 1 or beta != 1 else c + (torch.mm if a.dim() == 2 else torch.bmm)(a, b)


def _batched_product(a: Tensor, b: Tensor) -> Tensor:
    small = product(a, b)
    if small is not NotImplemented or a.numel() * b.shape[-1] > _LARGEST_BATCHED_PRODUCT:
        return small
    return (a.unsqueeze(-1) * b.unsqueeze(-3)).sum(-2)


def _logsumexp(x: Tensor, dims: list[int], keepdim: bool = False) -> Tensor:
    top = x.amax(dims, True)
    top = torch.where(top.abs() == torch.inf, 0.0, top)
    total = (x - top).exp().sum(dims, True).log() + top
    return total if keepdim else total.squeeze(dims)


def _log_softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    shifted = x - x.amax([dim], True)
    return shifted - shifted.exp().sum([dim], True).log()


def _softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    weights = (x - x.amax([dim], True)).exp()
    return weights / weights.sum([dim], True)


def _log_sigmoid(x: Tensor) -> tuple[Tensor, Tensor]:
    tail = (-x.abs()).exp()
    return x.clamp_max(0.0) - tail.log1p(), tail


def _mean(x: Tensor, dims: list[int] | None, keepdim: bool = False) -> Tensor:
    total = x.sum(dims, keepdim)
    return total / (x.numel() // max(total.numel(), 1))


def _clamp(x: Tensor, low: float | None = None, high: float | None = None) -> Tensor:
    x = x if low is None else x.clamp_min(low)
    return x if high is None else x.clamp_max(high)


def _gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    return x * 0.5 * (1.0 + (x * math.sqrt(0.5)).erf()) if approximate == "none" else NotImplemented


def _gelu_backward(g: Tensor, x: Tensor, *, approximate: str = "none") -> Tensor:
    if approximate != "none":
        return NotImplemented
    density = (x * x * -0.5).exp() * (1.0 / math.sqrt(2.0 * math.pi))
    return g * (0.5 * (1.0 + (x * math.sqrt(0.5)).erf()) + x * density)


def _elu_backward(g: Tensor, alpha: float, scale: float, input_scale: float, is_result: bool, x: Tensor) -> Tensor:
    slope = (x + alpha * scale) if is_result else (x * input_scale).exp() * (alpha * scale)
    return torch.where(x > 0, g * scale, g * slope * input_scale)


def _silu_backward(g: Tensor, x: Tensor) -> Tensor:
    share = x.sigmoid()
    return g * share * (1.0 + x * (1.0 - share))


def _binary_cross_entropy(x: Tensor, target: Tensor, weight: Any, pos_weight: Any, reduction: int) -> Tensor:
    if weight is not None or pos_weight is not None or reduction:
        return NotImplemented
    return (1.0 - target) * x - _log_sigmoid(x)[0]


def _is_class(x: Tensor, target: Tensor) -> Tensor:
    return torch.arange(x.shape[1], device=x.device) == target.unsqueeze(1)


def _nll_loss(x: Tensor, target: Tensor, weight: Any, reduction: int, ignored: int) -> tuple[Tensor, Tensor]:
    if weight is not None or reduction or x.dim() != 2 or bool((target == ignored).any()):
        return NotImplemented
    return -torch.where(_is_class(x, target), x, 0.0).sum([1]), x.new_zeros(())


def _nll_loss_backward(
    g: Tensor, x: Tensor, target: Tensor, weight: Any, reduction: int, ignored: int, total: Tensor
) -> Tensor:
    if weight is not None or reduction or x.dim() != 2 or bool((target == ignored).any()):
        return NotImplemented
    return torch.where(_is_class(x, target), -g.unsqueeze(1), 0.0)


def _is_vector_index(x: Tensor, indices: list[Tensor | None]) -> bool:
    only = indices[0]
    return x.dim() == 1 and len(indices) == 1 and only is not None and only.dim() == 1 and only.dtype == torch.int64


def _index(x: Tensor, indices: list[Any]) -> Tensor:
    return x.gather(0, indices[0] % len(x)) if _is_vector_index(x, indices) else NotImplemented


def _index_put(x: Tensor, indices: list[Any], values: Tensor, accumulate: bool = False) -> Tensor:
    if not accumulate or not _is_vector_index(x, indices):
        return NotImplemented
    return x.scatter_add(0, indices[0] % len(x), values.expand(len(indices[0])))


DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    _aten.mm.default: product,
    _aten.bmm.default: _batched_product,
    _aten.addmm.default: _affine,
    _aten.baddbmm.default: _affine,
    _aten.dot.default: lambda a, b: (a * b).sum(),
    _aten.mv.default: lambda a, b: (a * b).sum(-1),
    _aten.logsumexp.default: _logsumexp,
    _aten._log_softmax.default: _log_softmax,
    _aten._log_softmax_backward_data.default: lambda g, y, dim, dtype: g - y.exp() * g.sum([dim], True),
    _aten._softmax.default: _softmax,
    _aten._softmax_backward_data.default: lambda g, y, dim, dtype: y * (g - (g * y).sum([dim], True)),
    _aten.log_sigmoid_forward.default: _log_sigmoid,
    _aten.log_sigmoid_backward.default: lambda g, x, tail: g * (1.0 - x.sigmoid()),
    _aten.binary_cross_entropy_with_logits.default: _binary_cross_entropy,
    _aten.clamp.default: _clamp,
    _aten.elu_backward.default: _elu_backward,
    _aten.gelu.default: _gelu,
    _aten.gelu_backward.default: _gelu_backward,
    _aten.index.Tensor: _index,
    _aten.index_put.default: _index_put,
    _aten.nll_loss_backward.default: _nll_loss_backward,
    _aten.nll_loss_forward.default: _nll_loss,
    _aten.stack.default: lambda tensors, dim=0: torch.cat([tensor.unsqueeze(dim) for tensor in tensors], dim),
    _aten.silu_backward.default: _silu_backward,
    _aten.mean.dim: _mean,
    _aten.mean.default: lambda x: _mean(x, None),
}
"""Operators as several others, applied while a graph is recorded."""
