"""The networks that are timed, each with a batch of random data.

The MLP is dominated by memory traffic over its weights, LeNet by a mixture, ResNet-20 by its convolutions, and the
tiny network by the fixed cost of each weight tensor.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["WORKLOADS", "Workload", "latent_parameters", "resnet20"]


@dataclass(frozen=True)
class Workload:
    """A network and the data it is timed with.

    Attributes:
        name: The network's name on the command line.
        title: Its description in tables.
        net: The network.
        x: One batch of inputs ``[B, ...]``.
        y: Class labels ``[B]``.
        num_data: Size of the data set the batch stands for.
    """

    name: str
    title: str
    net: nn.Module
    x: Tensor
    y: Tensor
    num_data: int

    def inputs(self, count: int) -> Tensor:
        """``count`` random inputs, for prediction."""
        return torch.randn(count, *self.x.shape[1:])


def mlp() -> nn.Module:
    """784-400-400-10, the network of Blundell et al. (2015): 478,410 weights in 6 tensors."""
    sizes = (784, 400, 400, 10)
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def lenet() -> nn.Module:
    """After LeNet-5 (LeCun et al. 1998), with ReLU and max pooling: 61,706 weights in 10 tensors."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )


class _Block(nn.Module):
    """Two convolutions and a shortcut without parameters (option A of He et al. 2016): strided, zero-padded."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.padding = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(residual + x)


def resnet20(channels: int = 3, width: int = 16) -> nn.Module:
    """ResNet-20 for small images (He et al. 2016): 269,722 weights in 59 tensors, 38 of them BatchNorm's.

    Args:
        channels: Channels of the images.
        width: Channels of the first stage, 16 in the paper.
    """
    blocks, inputs = [], width
    for outputs, stride in ((width, 1), (2 * width, 2), (4 * width, 2)):
        for index in range(3):
            blocks.append(_Block(inputs, outputs, stride if index == 0 else 1))
            inputs = outputs
    stem = (nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10))


def tiny() -> nn.Module:
    """Thirty linear layers of two units: 60 weight tensors and next to no arithmetic."""
    return nn.Sequential(*(nn.Linear(2, 2) for _ in range(30)))


def _make(
    name: str, title: str, make: Callable[[], nn.Module], shape: tuple[int, ...], classes: int, num_data: int
) -> Workload:
    torch.manual_seed(0)
    net = make()
    return Workload(name, title, net, torch.randn(shape), torch.randint(classes, shape[:1]), num_data)


WORKLOADS: dict[str, Callable[[], Workload]] = {
    "mlp": lambda: _make("mlp", "MLP 784-400-400-10, batch 128", mlp, (128, 784), 10, 60_000),
    "lenet": lambda: _make("lenet", "LeNet, batch 128", lenet, (128, 1, 28, 28), 10, 60_000),
    "resnet20": lambda: _make("resnet20", "ResNet-20, batch 64", resnet20, (64, 3, 32, 32), 10, 50_000),
    "tiny": lambda: _make("tiny", "60 weight tensors, batch 16", tiny, (16, 2), 2, 1_000),
}


def latent_parameters(net: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that every contender treats as random: all but BatchNorm's, which stay deterministic."""
    return {
        f"{prefix}.{name}" if prefix else name: parameter
        for prefix, module in net.named_modules()
        if not isinstance(module, nn.BatchNorm2d)
        for name, parameter in module.named_parameters(recurse=False)
    }
