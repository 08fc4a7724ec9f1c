r"""Kronecker-factored Gauss–Newton curvature of linear and convolutional layers (KFAC).

For a layer ``s = W a`` (bias as one more column, ``a`` extended by 1) the block of H is approximated by

.. math::  H_W \approx \frac1R\, G \otimes A, \qquad A = \sum_r a_r a_r^\top, \qquad
           G = \sum_r \sum_c g_{rc} g_{rc}^\top, \qquad g_{rc} = \nabla_{s_r} (f^\top \rho_c),

where r runs over the ``R`` inputs the layer saw in the whole data set (examples, times positions of a convolution or a
sequence) and :math:`\rho_c` over the columns of the root of the outputs' Fisher information: one backward pass per
column. It is exact where inputs and gradients are independent, so for a single datum or constant inputs.

Martens & Grosse (2015); for convolutions Grosse & Martens (2016); Ritter, Botev & Barber (2018). The packages
laplace-torch and curvlinops hold the same factors for plain networks; here they are taken where weights are sample
sites of a Pyro model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyrobnn.core.attention import attention_as_trained
from pyrobnn.curvature.fisher import SAMPLED_COLUMNS, fisher_roots
from pyrobnn.model.substitution import SubstituteMessenger
from pyrobnn.model.supervised import SupervisedModel

__all__ = ["KroneckerFactors", "add_batch", "input_rows", "is_supported", "kronecker_layers"]


def kronecker_layers(net: nn.Module) -> dict[str, nn.Module]:
    """The layers that can be factored: linear ones, and 2-d convolutions in one group, padded with zeros."""
    functional = {  # attention computes with its output's weights, and does not call that layer
        f"{name}.out_proj" if name else "out_proj"
        for name, module in net.named_modules()
        if isinstance(module, nn.MultiheadAttention)
    }
    return {name: m for name, m in net.named_modules() if is_supported(m) and name not in functional}


def is_supported(module: nn.Module) -> bool:
    """Whether a layer's outputs are a weight matrix times rows of its inputs (:func:`input_rows`)."""
    if isinstance(module, nn.Conv2d):
        return module.groups == 1 and module.padding_mode == "zeros"
    return isinstance(module, nn.Linear)


@dataclass
class KroneckerFactors:
    """Running sums of one layer's factors, in double precision.

    Attributes:
        layer: The layer.
        has_bias: Whether the bias is one of the weights (the last column of A).
        of_inputs: A, ``[a, a]``.
        of_outputs: G, ``[g, g]``.
        rows: R; a row counts by the weight of its datum.
    """

    layer: nn.Module
    has_bias: bool
    of_inputs: Tensor | float = 0.0
    of_outputs: Tensor | float = 0.0
    rows: float = 0
    calls: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def add_inputs(self, x: Tensor, weight: Tensor | None = None) -> None:
        """Adds the layer's inputs of one batch, of data with weights ``[B]``."""
        rows = input_rows(self.layer, x.detach()).double()
        if self.has_bias:
            rows = torch.cat([rows, rows.new_ones(len(rows), 1)], 1)
        self.add_rows(rows, None if weight is None else weight.repeat_interleave(len(rows) // len(weight)))

    def add_rows(self, rows: Tensor, weight: Tensor | None = None) -> None:
        """Adds inputs ``[R, a]`` with a column of ones for the bias, and weights ``[R]``."""
        weighted = rows if weight is None else rows * weight.to(rows).unsqueeze(-1)
        self.of_inputs = self.of_inputs + rows.T @ weighted
        self.rows += len(rows) if weight is None else float(weight.sum())

    def add_gradients(self, gradient: Tensor) -> None:
        """Adds gradients by the layer's outputs, of one batch and column."""
        dim = 1 if isinstance(self.layer, nn.Conv2d) else -1
        rows = gradient.movedim(dim, -1).flatten(0, -2).double()
        self.of_outputs = self.of_outputs + rows.T @ rows


def add_batch(
    model: SupervisedModel,
    values: Mapping[str, Tensor],
    names: Sequence[str],
    factors: Mapping[str, Any],
    x: Any,
    weight: Tensor | None = None,
    targets: Tensor | None = None,
) -> None:
    """Adds one batch to the factors of each layer.

    Args:
        model: The model, in evaluation mode.
        values: Values of all its sites.
        names: Sites of the factored layers' weights.
        factors: The sums, by layer name.
        x: A batch of inputs.
        weight: Weights ``[B]`` of the data's log likelihoods.
        targets: The targets, for likelihoods that mask or weight them.

    Raises:
        ValueError: If a layer was not called exactly once: its curvature is no Kronecker product then.
    """
    # The graph must reach every factored layer, so their weights are leaves.
    leaves = {name: values[name].detach().clone().requires_grad_() for name in names}
    with torch.enable_grad(), SubstituteMessenger({**values, **leaves}), _recorded(factors), attention_as_trained():
        outputs = model.predictive(x)
        roots = fisher_roots(model.likelihood, outputs, weight, max_exact=SAMPLED_COLUMNS, targets=targets)
    for name, layer in factors.items():
        if len(layer.calls) != 1:
            raise ValueError(
                f"structure: the layer {name!r} was called {len(layer.calls)} times in one run of the network, so its "
                "curvature is no Kronecker product; use structure='diagonal' or 'last_layer', or give it no prior."
            )
        layer.add_inputs(layer.calls[0][0], weight)
    layer_outputs = [layer.calls[0][1] for layer in factors.values()]
    for index, column in enumerate(roots):
        keep = index < len(roots) - 1
        gradients = torch.autograd.grad(
            outputs, layer_outputs, column, retain_graph=keep, allow_unused=True, materialize_grads=True
        )
        for layer, gradient in zip(factors.values(), gradients, strict=True):
            layer.add_gradients(gradient)
    for layer in factors.values():
        layer.calls.clear()


@contextmanager
def _recorded(factors: Mapping[str, KroneckerFactors]) -> Iterator[None]:
    """Writes down inputs and outputs of the layers while the block lasts."""

    def hook(sums: KroneckerFactors) -> Any:
        def record(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            sums.calls.append((inputs[0], output))
            return output.clone()  # later operations may be in place, but the gradient of this output is needed

        return record

    handles = [sums.layer.register_forward_hook(hook(sums)) for sums in factors.values()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def input_rows(layer: nn.Module, x: Tensor) -> Tensor:
    """What the layer's weight matrix is multiplied with, ``[R, a]``."""
    if not isinstance(layer, nn.Conv2d):
        return x.flatten(0, -2)
    if layer.padding == "same":
        totals = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        (top, left) = (total // 2 for total in totals)
        x = F.pad(x, (left, totals[1] - left, top, totals[0] - top))
    padding = (0, 0) if isinstance(layer.padding, str) else layer.padding
    patches = F.unfold(x, layer.kernel_size, dilation=layer.dilation, padding=padding, stride=layer.stride)
    return patches.movedim(1, -1).flatten(0, -2)
