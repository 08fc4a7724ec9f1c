"""Base class of likelihoods with two outputs for each target."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrobnn.core.arguments import check_non_negative
from pyrobnn.model.likelihoods.base import Likelihood
from pyrobnn.model.likelihoods.information import FisherInformation

__all__ = ["PairedOutputs", "warn_of_floor"]

_AT_FLOOR, _SHARE = 1.01, 0.01


class PairedOutputs(Likelihood):
    r"""Base class: outputs ``[B, 2 D]`` along one dimension are one number of each target, then another.

    The second is made positive, :math:`\mathrm{softplus}(r) + \mathrm{floor}`.

    Args:
        floor: The smallest value of the second parameter, which keeps the likelihood bounded.
        dim: Dimension of the outputs that holds both. The default suits ``[B, 2 D]``; use 1 for images ``[B, 2 C, H,
            W]`` with targets ``[B, C, H, W]``.
        missing: Whether targets may be NaN (not observed), as in :class:`~pyrobnn.likelihoods.Likelihood`.

    Raises:
        ValueError: If ``floor`` is negative, or ``dim`` is no int or the dimension of the data.
    """

    first: ClassVar[str] = "means"
    second: ClassVar[str] = "raw scales"
    floored: ClassVar[str] = "standard deviation"

    def __init__(self, floor: float = 1e-3, *, dim: int = -1, missing: bool = False) -> None:
        super().__init__(missing=missing)
        check_non_negative("floor", floor, self.floored)
        if isinstance(dim, bool) or not isinstance(dim, int) or dim == 0:
            raise ValueError(f"dim: expected an int, a dimension of the outputs other than 0, got {dim!r}.")
        self.floor, self.dim = float(floor), dim
        self._has_warned = False

    def halves(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Both halves of the outputs, each of the targets' shape.

        Raises:
            ValueError: If the outputs cannot be halved.
        """
        dims = outputs.dim()
        if dims < 2 or not 1 - dims <= self.dim < dims or outputs.shape[self.dim] % 2:
            raise ValueError(
                f"net: {type(self).__name__} expects outputs [B, 2 D], {self.first} then {self.second} along "
                f"dim={self.dim}, got shape {tuple(outputs.shape)}; give the last layer two outputs per target, or "
                "pass dim= the dimension that holds them (1 for images [B, 2 C, H, W])."
            )
        first, second = outputs.chunk(2, self.dim)
        return first, second

    def positive(self, raw: Tensor) -> Tensor:
        """The second parameter; without a floor at least the smallest number whose square is a normal one."""
        if not self.floor:  # a softplus that is 0 has no distribution
            return F.softplus(raw).clamp_min(torch.finfo(raw.dtype).tiny ** 0.5)
        return F.softplus(raw) + self.floor

    def joined(self, first: Tensor, second: Tensor) -> FisherInformation:
        """The information in the outputs, given that in the first half and in the second (raw) half, elementwise."""
        return FisherInformation.of_independent(torch.cat([first, second], self.dim))

    def in_pairs(self, outputs: Tensor, scores: Tensor) -> FisherInformation:
        """The information of scores ``[*targets, 2, R]`` in both outputs of each target."""
        positions = torch.arange(outputs[0].numel(), device=outputs.device).reshape(1, *outputs.shape[1:])
        index = torch.stack([half.flatten() for half in self.halves(positions)], -1)
        return FisherInformation(index, scores=scores.reshape(len(outputs), -1, *scores.shape[-2:]))

    def notice(self, parameters: Mapping[str, Tensor]) -> None:
        """Warns once if more than a hundredth of the scales is at the floor."""
        if not self._has_warned and self.floor and "scale" in parameters:
            self._has_warned = warn_of_floor(self, parameters["scale"], self.floor)

    def target_shape(self, outputs: Tensor) -> torch.Size:
        """Half of the outputs."""
        return self.halves(outputs)[0].shape

    def check_shape(self, outputs: Tensor, y: Tensor) -> None:
        """Refuses targets of another shape; says which ``dim`` would make them fit.

        Raises:
            TypeError: If ``y`` is no tensor.
            ValueError: If its shape is not :meth:`target_shape`.
        """
        try:
            super().check_shape(outputs, y)
        except ValueError as error:
            halved = [
                dim
                for dim in range(1, outputs.dim())
                if outputs.shape[dim] % 2 == 0 and outputs.chunk(2, dim)[0].shape == getattr(y, "shape", None)
            ]
            if not halved:
                raise
            raise ValueError(
                f"dim: y of shape {tuple(y.shape)} fits outputs of shape {tuple(outputs.shape)} if {self.first} and "
                f"{self.second} are along dimension {halved[0]}; pass {type(self).__name__}(dim={halved[0]})."
            ) from error

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {"floor": self.floor, "dim": self.dim, **super().config()}


def warn_of_floor(likelihood: Likelihood, scale: Tensor, floor: float) -> bool:
    """Warns if more than a hundredth of the scales is at its floor; returns whether it did."""
    share = float((scale <= _AT_FLOOR * floor).double().mean())
    if share <= _SHARE:
        return False
    warnings.warn(
        f"likelihood: {share:.0%} of the scales of {type(likelihood).__name__} are at their floor, {floor:g}, so that "
        "its density is set by the floor; raise floor, train for less long, or look for targets that repeat.",
        stacklevel=2,
    )
    return True
