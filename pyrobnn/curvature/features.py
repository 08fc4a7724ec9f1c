r"""Curvature of a last layer in closed form, from its inputs.

A linear layer (or convolution) whose outputs are the network's, :math:`s_{np} = W \varphi_{np}` at positions p of datum
n, has

.. math::  H = \sum_{n,p} \Lambda_{np} \otimes \varphi_{np} \varphi_{np}^\top,

so that one forward pass is all that is needed of the network. That the outputs are the layer's is checked on every
batch; other networks go by their Jacobians.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyrobnn.curvature.dense import add_products
from pyrobnn.curvature.kronecker import KroneckerFactors, input_rows, is_supported
from pyrobnn.model.last_layer import LayerCalls
from pyrobnn.model.likelihoods.information import FisherInformation

__all__ = ["Features", "LastLayer", "LastLayerSums", "features_of"]


@dataclass(frozen=True)
class LastLayer:
    """A layer that makes the outputs.

    Attributes:
        name: Its name in the network.
        module: The layer.
        is_linear: Whether the outputs are linear in its weights.
        is_output: Whether its outputs are the network's, so that curvature has a closed form.
        has_bias: Whether its bias is one of its sites.
    """

    name: str
    module: nn.Module
    is_linear: bool
    is_output: bool
    has_bias: bool


@dataclass(frozen=True)
class Features:
    """What a last layer sees of a batch.

    Attributes:
        rows: Its inputs ``[B, P, a]`` at P positions.
        order: Which of a datum's flattened outputs is which class at which position, ``[P, C]``.
    """

    rows: Tensor
    order: Tensor

    def by_position(self, information: FisherInformation) -> FisherInformation | None:
        """The information in blocks of a position, classes in the layer's order, or None if it is made otherwise."""
        positions, classes = self.order.shape
        flat = information.index.flatten()
        if information.index.shape[1] == 1:
            diagonal = information.on_diagonal().flatten(1)
            return FisherInformation(self.order, self._arranged(diagonal, flat))
        place = torch.empty_like(flat)
        place[self.order.flatten()] = torch.arange(len(flat), device=flat.device) // classes
        by_block = place[information.index]
        if information.index.shape != (positions, classes) or bool((by_block != by_block[:, :1]).any()):
            return None
        parts = (information.diagonal, information.lowered, information.scores)
        return FisherInformation(
            self.order, *(None if part is None else self._arranged(part.flatten(1, 2), flat) for part in parts)
        )

    def _arranged(self, values: Tensor, index: Tensor) -> Tensor:
        """Values ``[B, O, ...]`` in the order of ``index``, as ``[B, P, C, ...]``."""
        whole = torch.empty_like(values)
        whole[:, index] = values
        return whole[:, self.order]


def features_of(layer: LastLayer, calls: LayerCalls, outputs: Tensor) -> Features | None:
    """The features of a batch, or None if the outputs are not the layer's, called once."""
    x, s = calls.inputs, calls.output
    if calls.last != layer.name or calls.count != 1 or x is None or not isinstance(s, Tensor):
        return None
    if not is_supported(layer.module) or not s.dim() or s.numel() != outputs.numel() or len(s) != len(outputs):
        return None
    if not torch.equal(s.reshape(-1), outputs.reshape(-1)):
        return None
    classes = s.shape[1] if isinstance(layer.module, nn.Conv2d) else s.shape[-1]
    index = torch.arange(s[0].numel(), device=s.device)
    order = index.reshape(classes, -1).T if isinstance(layer.module, nn.Conv2d) else index.reshape(-1, classes)
    rows = input_rows(layer.module, x).reshape(len(s), order.shape[0], -1)
    if layer.has_bias:
        rows = torch.cat([rows, rows.new_ones(*rows.shape[:2], 1)], -1)
    return Features(rows, order)


class LastLayerSums:
    """Running sums of a last layer's curvature over batches, in double precision, weights ``[C, a]`` before biases.

    Args:
        dense: The matrix to add to, of which the lower triangle counts; None to sum the diagonal. Kronecker factors are
            added where they are passed.
        has_bias: Whether the last column of the features belongs to the bias.
        max_bytes: Budget for intermediate products.

    Attributes:
        diagonal: The sum of the diagonal, ``[n]``; 0.0 if nothing was added.
    """

    def __init__(self, dense: Tensor | None, has_bias: bool, max_bytes: int) -> None:
        self.dense, self.has_bias, self.max_bytes = dense, has_bias, max_bytes
        self.diagonal: Tensor | float = 0.0

    def add(
        self,
        features: Features,
        information: FisherInformation,
        weight: Tensor | None,
        factors: KroneckerFactors | None,
    ) -> bool:
        """Adds a batch; False if its information is in no blocks of a position, and nothing was added.

        Args:
            features: What the layer sees.
            information: Fisher information in the network's outputs, weights included.
            weight: Weights of the data's log likelihoods.
            factors: Where Kronecker factors go.
        """
        arranged = features.by_position(information)
        if arranged is None:
            return False
        rows = features.rows.flatten(0, 1).double()
        arranged = arranged.weighted(None, torch.float64)
        if factors is not None:
            scale = None if weight is None else weight.repeat_interleave(features.rows.shape[1])
            factors.add_rows(rows, scale)
            factors.of_outputs = factors.of_outputs + _summed(arranged)
        elif self.dense is None:
            by_weight = arranged.on_diagonal().flatten(0, 1).T @ rows.square()
            parts = (by_weight[:, :-1].flatten(), by_weight[:, -1]) if self.has_bias else (by_weight.flatten(),)
            self.diagonal = self.diagonal + torch.cat(parts)
        else:
            self._add_dense(self.dense, arranged, rows)
        return True

    def _add_dense(self, total: Tensor, information: FisherInformation, rows: Tensor) -> None:
        classes, inputs = information.index.shape[1], rows.shape[1] - self.has_bias
        biases = classes * inputs  # where they begin
        weights, ones = rows[:, :inputs], rows[:, inputs:]
        if information.diagonal is not None:
            for c, scale in enumerate(information.diagonal.flatten(0, 1).unsqueeze(-1).unbind(1)):
                own, scaled = slice(c * inputs, (c + 1) * inputs), rows * scale
                total[own, own].addmm_(scaled[:, :inputs].T, weights)
                if self.has_bias:
                    total[biases + c, own] += scaled[:, inputs] @ weights
                    total[biases + c, biases + c] += scaled[:, inputs].sum()
        step = max(1, self.max_bytes // (8 * len(total)))
        for sign, columns in ((-1.0, information.lowered), (1.0, information.scores)):
            if columns is None:
                continue
            flat = columns.flatten(0, 1)
            for column in (flat.unsqueeze(-1) if flat.dim() == 2 else flat).unbind(-1):
                for start in range(0, len(rows), step):
                    chosen = slice(start, start + step)
                    part = column[chosen].unsqueeze(-1)
                    outer = (part * weights[chosen].unsqueeze(1)).flatten(1)
                    if self.has_bias:
                        outer = torch.cat([outer, column[chosen] * ones[chosen]], 1)
                    add_products(total, outer, sign)


def _summed(information: FisherInformation) -> Tensor:
    """The blocks added up, ``[C, C]``."""
    total: Tensor | float = 0.0
    if information.diagonal is not None:
        total = total + torch.diag(information.diagonal.sum((0, 1)))
    for sign, columns in ((-1.0, information.lowered), (1.0, information.scores)):
        if columns is not None:
            flat = columns.flatten(0, 1)
            flat = flat if flat.dim() == 2 else flat.movedim(-1, 1).flatten(0, 1)
            total = total + sign * flat.T @ flat
    return torch.as_tensor(total)
