"""The last layer of a network that is to be fine-tuned, by a run on the first batch of its data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.core import random_state
from pyrobnn.core.batches import Batch, Reader
from pyrobnn.model.bayesianize import evaluating, frozen_buffers
from pyrobnn.model.last_layer import last_layer_of
from pyrobnn.model.priors import last_layer
from pyrobnn.model.supervised import OutputSpec, run_network, select_output

__all__ = ["last_layer_by_run"]


def last_layer_by_run(
    net: nn.Module, prior: Any, loader: Iterable[Any], reader: Reader | None, output: OutputSpec
) -> tuple[Any, Iterable[Any]]:
    """Rules that give only that layer a prior, and the loader, of which nothing is lost if it is an iterator.

    Args:
        net: The network, which is left as it is.
        prior: The layer's prior.
        loader: The data.
        reader: How to read what it yields.
        output: What of the network's return value counts.

    Raises:
        ValueError: If there are no data, or no single last layer.
    """
    device = next((parameter.device for parameter in net.parameters()), torch.device("cpu"))
    with random_state.preserved(device):
        first = next(iter(loader), None)
        if first is None:
            raise ValueError("loader: it yielded no batch.")
        x = Batch.read(first, device, reader).inputs

        def run() -> Tensor:
            return select_output(run_network(net, x), output)

        with evaluating(net), frozen_buffers(net):
            name = last_layer_of(net, run)
    return last_layer(net, prior, name), chain([first], loader) if isinstance(loader, Iterator) else loader
