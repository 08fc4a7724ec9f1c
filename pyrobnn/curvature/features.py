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
    """Running sums of a last layer's curvature over batches, in double precision, weights ``[C, a]`` (bias last).

    Args:
        kind: ``"dense"`` or ``"diagonal"``; Kronecker factors are added where they are passed.
        max_bytes: Budget for intermediate products.
    """

    def __init__(self, kind: str, max_bytes: int) -> None:
        self.kind, self.max_bytes = kind, max_bytes
        self.shape = (0, 0)
        self.matrix: Tensor | float = 0.0

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
        self.shape = (features.order.shape[1], rows.shape[1])
        arranged = arranged.weighted(None, torch.float64)
        if factors is not None:
            scale = None if weight is None else weight.repeat_interleave(features.rows.shape[1])
            factors.add_rows(rows, scale)
            factors.of_outputs = factors.of_outputs + _summed(arranged)
        elif self.kind == "diagonal":
            self.matrix = self.matrix + arranged.on_diagonal().flatten(0, 1).T @ rows.square()
        else:
            self.matrix = self._dense(arranged, rows)
        return True

    def _dense(self, information: FisherInformation, rows: Tensor) -> Tensor:
        classes, size = information.index.shape[1], rows.shape[1]
        total = self.matrix if isinstance(self.matrix, Tensor) else rows.new_zeros(classes * size, classes * size)
        if information.diagonal is not None:
            diagonal = information.diagonal.flatten(0, 1)
            for c in range(classes):
                window = slice(c * size, (c + 1) * size)
                total[window, window] += (rows * diagonal[:, c : c + 1]).T @ rows
        step = max(1, self.max_bytes // (8 * classes * size))
        for sign, columns in ((-1.0, information.lowered), (1.0, information.scores)):
            if columns is None:
                continue
            flat = columns.flatten(0, 1)
            for column in (flat.unsqueeze(-1) if flat.dim() == 2 else flat).unbind(-1):
                for start in range(0, len(rows), step):
                    chosen = slice(start, start + step)
                    outer = (column[chosen].unsqueeze(-1) * rows[chosen].unsqueeze(1)).flatten(1)
                    _add_lower(total, outer, sign)
        return total

    def in_order_of_sites(self, has_bias: bool) -> Tensor:
        """The sums in the order of the joined sites, weights before biases; of a matrix its lower triangle."""
        assert isinstance(self.matrix, Tensor)
        (classes, size), matrix = self.shape, self.matrix
        if self.kind == "diagonal":
            return torch.cat([matrix[:, :-1].flatten(), matrix[:, -1]]) if has_bias else matrix.flatten()
        if not has_bias:
            return matrix
        blocks, count = matrix.view(classes, size, classes, size), classes * (size - 1)
        ordered = matrix.new_empty(matrix.shape)
        ordered[:count, :count].view(classes, size - 1, classes, size - 1).copy_(blocks[:, :-1, :, :-1])
        ordered[count:, count:] = blocks[:, -1, :, -1]
        # Of a bias and a weight of a later class the sum is stored the other way round.
        is_stored = torch.ones(classes, classes, dtype=torch.bool, device=matrix.device).tril().unsqueeze(-1)
        transposed = blocks[:, :-1, :, -1].permute(2, 0, 1)
        ordered[count:, :count] = blocks[:, -1, :, :-1].where(is_stored, transposed).flatten(1)
        return ordered


def _add_lower(total: Tensor, rows: Tensor, sign: float) -> None:
    """Adds ``± rowsᵀ rows`` to a matrix, of which the lower triangle counts, in strips that end at the diagonal."""
    size = len(total)
    width = max(64, -(-size // 16))
    for start in range(0, size, width):
        end = min(start + width, size)
        total[start:end, :end].addmm_(rows[:, start:end].T, rows[:, :end], alpha=sign)


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
