r"""Modules with a choice in them: operations on an edge, parts that may be absent, the number of blocks.

.. math::  \mathrm{Choice}(x) = \sum_k \alpha_k\, o_k(x), \qquad \mathrm{Gate}(x) = z \cdot f(x), \qquad
           \mathrm{Depth}(x) = \sum_d \alpha_d\, (b_d \circ \dots \circ b_1)(x).

They are ordinary modules for use inside any network; what is chosen is declared by
:mod:`pyrobnn.layers.structure.sites`, alone or shared between cells::

    edges = Edges([(0, 2), (1, 2)], ["zero", "identity", "conv"], temperature=1.0)
    choices = [Choice(operations(), edges=edges, edge=(0, 2)) for operations in …]

**BatchNorm.** What a layer sees depends on the choices made before it, so running statistics are averages over the
structures drawn in training, one set for all structures. Batch normalization after each operation must have no scale of
its own, which could undo α. With ``Choice(..., batch_norm=channels)`` α *is* the scale,
:math:`\alpha_k\,\mathrm{BN}(o_k(x))`, and its gradient comes with that of the normalization, at no cost. Re-estimate
the statistics under the posterior before evaluating, by :func:`pyrobnn.recalibrate_batch_norm`, those of a collapsed
network, which has one structure, by :func:`torch.optim.swa_utils.update_bn`. With G draws per batch, each on its own
part, a layer sees B/G examples at a time, and running statistics follow the first part.

Deng et al., *Measuring Uncertainty through Bayesian Learning of Deep Neural Network Structure* (2019).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.core.arguments import check_int, check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.layers.structure.mixture import mixture
from pyrobnn.layers.structure.operations import WeightedBatchNorm2d, Zero
from pyrobnn.layers.structure.sites import Edges, Gates

__all__ = ["Choice", "Depth", "Gate"]


@explained
class Choice(nn.Module):
    """One of several operations on an edge: their mixture, weighted by α.

    Args:
        operations: At least two modules of equal output shapes, by name (no dots) or in a list; :class:`Zero` may be
            among them.
        edges: The site that holds the edge's weights, for a site of many edges or one shared between cells; a site of
            its own if None.
        edge: The edge's name (or pair of nodes); with ``edges`` one of theirs.
        temperature: Temperature of the prior of a site of its own.
        logits: Prior logits ``[K]`` of a site of its own.
        batch_norm: The number of channels of the outputs, images ``[B, C, H, W]``, to batch-normalize each operation's
            output (but zeros) before α weighs it; None to take the outputs as they are.

    Raises:
        TypeError: If an operation is no module.
        ValueError: If names do not fit, all operations are ``Zero``, a prior is stated together with ``edges``, or
            ``batch_norm`` is no positive int. In a run, if two operations return different shapes, or what is to be
            normalized are no images of so many channels.
    """

    def __init__(
        self,
        operations: Mapping[str, nn.Module] | Sequence[nn.Module],
        *,
        edges: Edges | None = None,
        edge: str | tuple[Any, Any] = "edge",
        temperature: float | None = None,
        logits: Tensor | None = None,
        batch_norm: int | None = None,
    ) -> None:
        super().__init__()
        named = operations if isinstance(operations, Mapping) else _named(operations)
        for name, operation in named.items():
            if not isinstance(operation, nn.Module):
                raise TypeError(f"operations: {name!r} is a {type(operation).__name__}, expected a torch.nn.Module.")
        names = tuple(named)
        own = {"temperature": 1.0 if temperature is None else temperature, "logits": logits}
        self.edges = _site(edges, temperature, logits) or Edges([edge], names, **own)  # type: ignore[arg-type]
        self.index = self.edges.index(edge)
        self.edge = self.edges.names[self.index]
        fits = (
            names == self.edges.operations
            if isinstance(operations, Mapping)
            else len(names) == len(self.edges.operations)
        )
        if not fits:
            raise ValueError(
                f"operations: edge {self.edge!r} has {', '.join(names)}, but its site has "
                f"{', '.join(self.edges.operations)}; the two must agree, in order."
            )
        self.operations = nn.ModuleList(named.values())
        self._active = tuple(i for i, operation in enumerate(self.operations) if not isinstance(operation, Zero))
        if not self._active:
            raise ValueError(f"operations: on edge {self.edge!r} all are Zero, so there is nothing to choose.")
        if batch_norm is not None:
            check_positive_int("batch_norm", batch_norm)
        self.batch_norm = batch_norm
        self.norms = nn.ModuleList(WeightedBatchNorm2d(batch_norm) for _ in self._active if batch_norm is not None)

    def forward(self, x: Tensor) -> Tensor:
        """``Σ_k α_k o_k(x)``, or with ``batch_norm`` ``Σ_k α_k BN_k(o_k(x))``."""
        outputs = [self.operations[i](x) for i in self._active]
        shape = outputs[0].shape
        for position, i in enumerate(self._active):
            if outputs[position].shape != shape:
                self._refuse(i, outputs[position].shape, shape)
        if len(self._active) < len(self.operations):
            for i, operation in enumerate(self.operations):
                if isinstance(operation, Zero) and operation.output_shape(x.shape) != shape:
                    self._refuse(i, operation.output_shape(x.shape), shape)
        row = self.edges.row(self.index)
        if self.batch_norm is None:
            return mixture(row, outputs, self._active)
        if len(shape) != 4 or shape[1] != self.batch_norm:
            raise ValueError(
                f"batch_norm: on edge {self.edge!r} expected outputs of shape [B, {self.batch_norm}, H, W], got "
                f"{tuple(shape)}; state their number of channels, or None for outputs that are no images."
            )
        # Contiguous, because torch's kernel for channels-last inputs reads weights without minding their strides.
        scales = row[:, None].expand(-1, self.batch_norm).contiguous().unbind()
        parts = [norm(part, scales[i]) for norm, part, i in zip(self.norms, outputs, self._active, strict=True)]
        return functools.reduce(torch.add, parts)

    def operation(self, index: int) -> nn.Module:
        """An operation by its place, with the batch normalization behind it, if there is one, as an ordinary layer."""
        operation = self.operations[index]
        if self.batch_norm is None or index not in self._active:
            return operation
        norm = self.norms[self._active.index(index)]
        both = nn.Sequential(operation, norm.unweighted())  # type: ignore[operator]
        both.training = self.training
        return both

    def _refuse(self, index: int, shape: torch.Size, first: torch.Size) -> None:
        names = self.edges.operations
        raise ValueError(
            f"edge {self.edge!r}: its operation {names[index]!r} returns the shape {tuple(shape)}, but "
            f"{names[self._active[0]]!r} returns {tuple(first)}; a mixture needs operations of one output shape."
        )


@explained
class Gate(nn.Module):
    """Units, channels or a whole layer that may be absent: ``z · layer(x)``.

    Args:
        features: Number n of gates along dimension ``dim`` of the output; 1 for a layer as a whole.
        layer: The layer; the input itself if None.
        dim: The dimension of the output that the gates lie along.
        gates: The site that holds the gates, to share it; a site of its own if None.
        temperature: Temperature of the prior of a site of its own.
        logits: Prior log odds of being there, of a site of its own.

    Raises:
        ValueError: If ``features`` and ``gates`` do not fit, or a prior is stated together with ``gates``. In a run, if
            the output's size along ``dim`` is not ``features``.
    """

    def __init__(
        self,
        features: int = 1,
        layer: nn.Module | None = None,
        *,
        dim: int = 1,
        gates: Gates | None = None,
        temperature: float | None = None,
        logits: Tensor | None = None,
    ) -> None:
        super().__init__()
        check_positive_int("features", features)
        own = {"temperature": 1.0 if temperature is None else temperature, "logits": logits}
        self.gates = _site(gates, temperature, logits) or Gates(features, **own)  # type: ignore[arg-type]
        if len(self.gates.names) != features:
            raise ValueError(f"gates: the site has {len(self.gates.names)} gates, but there are {features} features.")
        self.layer, self.dim, self.features = layer, dim, features
        self.keeps_shape = True

    def forward(self, x: Tensor) -> Tensor:
        """``z · layer(x)``."""
        output = x if self.layer is None else self.layer(x)
        self.keeps_shape = output.shape == x.shape
        if self.features == 1:
            return output * self.gates.structure
        if not -output.dim() <= self.dim < output.dim() or output.shape[self.dim] != self.features:
            raise ValueError(
                f"features: {self.features} gates along dimension {self.dim}, but the output has the shape "
                f"{tuple(output.shape)}."
            )
        return (output.movedim(self.dim, -1) * self.gates.structure).movedim(-1, self.dim)


@explained
class Depth(nn.Module):
    """How many of the blocks are used, the first d of them: the mixture of the outputs after each.

    Args:
        blocks: The blocks, whose outputs have one shape.
        min_depth: The smallest number of blocks; 0 to allow none, where the input has the outputs' shape.
        depths: The site that holds the weights, to share it; a site of its own if None.
        name: What the stack of blocks is called; with ``depths`` one of its names.
        temperature: Temperature of the prior of a site of its own.
        logits: Prior logits of the depths, of a site of its own.

    Raises:
        ValueError: If there are fewer than two depths to choose from, or the site does not fit. In a run, if two
            depths have different output shapes.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        *,
        min_depth: int = 1,
        depths: Edges | None = None,
        name: str = "blocks",
        temperature: float | None = None,
        logits: Tensor | None = None,
    ) -> None:
        super().__init__()
        if not len(blocks):
            raise ValueError("blocks: there are none to choose a depth of.")
        check_int("min_depth", min_depth, 0, len(blocks) - 1)
        choices = [str(depth) for depth in range(min_depth, len(blocks) + 1)]
        own = {"temperature": 1.0 if temperature is None else temperature, "logits": logits}
        site = _site(depths, temperature, logits)
        self.depths = site or Edges([name], choices, dims=("stack", "depth"), **own)  # type: ignore[arg-type]
        self.index = self.depths.index(name)
        if list(self.depths.operations) != choices:
            raise ValueError(
                f"depths: the site has {', '.join(self.depths.operations)}, expected {', '.join(choices)}."
            )
        self.blocks, self.min_depth = nn.ModuleList(blocks), min_depth

    def forward(self, x: Tensor) -> Tensor:
        """``Σ_d α_d`` times the output after d blocks."""
        outputs = [x] if self.min_depth == 0 else []
        for depth, block in enumerate(self.blocks, 1):
            x = block(x)
            if depth >= self.min_depth:
                outputs.append(x)
        for output, depth in zip(outputs, self.depths.operations, strict=True):
            if output.shape != outputs[0].shape:
                raise ValueError(
                    f"blocks: of {self.depths.names[self.index]!r} the output after {depth} blocks has the shape "
                    f"{tuple(output.shape)}, but after {self.depths.operations[0]} it has {tuple(outputs[0].shape)}; a "
                    "mixture of depths needs one output shape."
                )
        return mixture(self.depths.row(self.index), outputs, range(len(outputs)))


def _named(operations: Sequence[nn.Module]) -> dict[str, nn.Module]:
    """Operations by the names of their classes, numbered where one occurs again."""
    named: dict[str, nn.Module] = {}
    for operation in operations:
        kind = type(operation).__name__.lower()
        numbered = (f"{kind}_{count}" for count in itertools.count(2))
        name = next(name for name in itertools.chain([kind], numbered) if name not in named)
        named[name] = operation
    return named


def _site(shared: Any, temperature: float | None, logits: Tensor | None) -> Any:
    """The shared site, whose prior is stated where it is made."""
    if shared is not None and (temperature is not None or logits is not None):
        raise ValueError("temperature, logits: a shared site has its own prior; state it where the site is made.")
    return shared
