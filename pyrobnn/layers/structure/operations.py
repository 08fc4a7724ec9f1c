"""Operations of a choice: the one without an output, and batch normalization whose scale is α."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyrobnn.core.arguments import check_positive_int
from pyrobnn.core.explanations import explained

__all__ = ["WeightedBatchNorm2d", "Zero"]


@explained
class Zero(nn.Module):
    """The operation without an output: zeros. A :class:`~pyrobnn.structure.Choice` does not compute it.

    Args:
        channels: Channels of the output, if they are others than the input's; inputs are then ``[B, C, H, W]``.
        stride: Step between the output's rows and columns, likewise.

    Raises:
        ValueError: If one of them is no positive int.
    """

    def __init__(self, channels: int | None = None, stride: int = 1) -> None:
        super().__init__()
        check_positive_int("stride", stride)
        if channels is not None:
            check_positive_int("channels", channels)
        self.channels, self.stride = channels, stride

    def forward(self, x: Tensor) -> Tensor:
        """Zeros of the operation's output shape."""
        if self.channels is None and self.stride == 1:
            return torch.zeros_like(x)
        kept = x[:, :, :: self.stride, :: self.stride]
        if self.channels is None:
            return torch.zeros_like(kept)
        return torch.zeros_like(kept[:, :1]).repeat(1, self.channels, 1, 1)

    def output_shape(self, shape: torch.Size) -> torch.Size:
        """The shape of the output for inputs of a shape.

        Raises:
            ValueError: If channels or stride change and the inputs are no batch of images.
        """
        if self.channels is None and self.stride == 1:
            return shape
        if len(shape) != 4:
            raise ValueError(
                f"Zero: with other channels or a stride its inputs are [B, C, H, W], got the shape {tuple(shape)}."
            )
        batch, channels, height, width = shape
        sizes = (-(-height // self.stride), -(-width // self.stride))
        return torch.Size((batch, channels if self.channels is None else self.channels, *sizes))

    def extra_repr(self) -> str:
        """The options that are not at their defaults."""
        options = {
            "channels": self.channels if self.channels else None,
            "stride": self.stride if self.stride > 1 else None,
        }
        return ", ".join(f"{name}={value}" for name, value in options.items() if value is not None)


class WeightedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalization that is multiplied by weights passed with its input, in the same pass over memory.

    Args:
        channels: Channels of the input ``[B, C, H, W]``.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=False)
        del self.weight  # an attribute in place of a parameter: it is there during a call
        self.weight = None  # type: ignore[assignment]

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """``weight · BN(x)``, with weights ``[C]``."""
        self.weight = weight  # type: ignore[assignment]
        try:
            return super().forward(x)
        finally:
            self.weight = None  # type: ignore[assignment]

    def unweighted(self) -> nn.BatchNorm2d:
        """A copy without weights."""
        like = next(self.buffers())
        norm = nn.BatchNorm2d(
            self.num_features, self.eps, self.momentum, affine=False, device=like.device, dtype=like.dtype
        )
        norm.load_state_dict(self.state_dict())
        return norm.train(self.training)
