"""Per-group draws: G draws in a step, each for its share of the batch.

The batch is cut into G parts of (nearly) equal size. With independent Gaussian weights (``MeanField``) each linear and
convolution layer runs on each part under a draw of its own, in mirrored pairs; other layers see the whole batch, so
batch normalization keeps its statistics, and other weights one shared draw. With any other guide the whole model runs
on each part under a draw of the guide; batch normalization then sees B/G examples at a time, and running statistics
follow the first part. Either way the KL is counted once. Less variance at little cost where a draw is cheap compared to
the network.
"""

from __future__ import annotations

import itertools
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyrobnn.core.arguments import check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.core.trees import num_rows, take_rows
from pyrobnn.estimators.base import Estimator
from pyrobnn.estimators.local_reparameterization import LocalReparameterization
from pyrobnn.estimators.weight import GaussianWeight, Layer

__all__ = ["PerGroup", "split_batch"]


@explained
class PerGroup(Estimator):
    """G draws for a batch.

    Args:
        groups: Number G of draws; mirrored pairs are complete for even G.

    Raises:
        ValueError: If ``groups`` is not a positive int.
    """

    name = "per_group"
    handles = LocalReparameterization.handles
    layerwise: ClassVar[bool] = False

    def __init__(self, groups: int = 4) -> None:
        check_positive_int("groups", groups)
        self.groups = groups

    def layer(self, layer: Layer, x: Tensor, weight: GaussianWeight, bias: Tensor | None) -> Any:
        """The layer on each part of the batch."""
        rows = len(x) if x.dim() > 1 else 0  # one row without a batch cannot be split
        _check_rows(self.groups, rows)
        weights = self._draws(weight, rows)
        biases: Any = [bias] * self.groups
        if isinstance(bias, GaussianWeight):
            biases = self._draws(bias, rows)
        if not layer.spatial and rows % self.groups == 0:
            return _batched_linear(x, weights, biases)
        # Unlike tensor_split, split has one backward for all parts, which does not pad each to the whole batch.
        parts = x.split([rows // self.groups + (part < rows % self.groups) for part in range(self.groups)])
        return torch.cat([layer(*part) for part in zip(parts, weights, biases, strict=True)])

    def _draws(self, weight: GaussianWeight, rows: int) -> Tensor:
        weight.used("one weight for each group of rows", rows)
        return weight.loc + weight.deviations(self.groups, mirrored=True)

    def __repr__(self) -> str:
        return f"PerGroup({self.groups})"


def _batched_linear(x: Tensor, weights: Tensor, biases: Any) -> Tensor:
    """All parts of a linear layer in one product; ``weights [G, out, in]``, ``biases [G, out]`` or a list of equals."""
    parts = x.reshape(len(weights), -1, x.shape[-1])
    if torch.is_tensor(biases):
        output = torch.baddbmm(biases.unsqueeze(1), parts, weights.transpose(1, 2))
    else:
        output = torch.bmm(parts, weights.transpose(1, 2))
        output = output if biases[0] is None else output + biases[0]
    return output.view(*x.shape[:-1], -1)


def split_batch(
    args: tuple[Any, ...], groups: int, *, whole_if_few: bool = False
) -> list[tuple[tuple[Any, ...], float]]:
    """The model's arguments in ``groups`` parts along the first dimension, and each part's weight in the mean.

    Args:
        args: The arguments.
        groups: Number of parts.
        whole_if_few: Where there are fewer rows than groups, each group gets all of them.

    Raises:
        ValueError: If there are fewer rows than groups (but for ``whole_if_few``), or the arguments' lengths differ.
    """
    if groups == 1:
        return [(args, 1.0)]
    try:
        rows = num_rows(args)
    except ValueError as error:
        raise ValueError(f"estimator: per_group splits arguments of equal length: {error}") from error
    if whole_if_few and rows < groups:
        return [(args, 1.0 / groups)] * groups
    _check_rows(groups, rows)
    bounds = [rows * index // groups for index in range(groups + 1)]
    return [
        (take_rows(args, slice(start, stop), rows), (stop - start) / rows) for start, stop in itertools.pairwise(bounds)
    ]


def _check_rows(groups: int, rows: int) -> None:
    if rows < groups:
        raise ValueError(f"groups: {groups} draws need at least as many rows in a batch, got {rows}.")
