r"""Per-example draws (exemplar reparameterization): each datum has weights of its own.

.. math::  y_n = W_n x_n, \qquad W_n = \mu + \sigma \circ \varepsilon_n \text{ independent over the batch.}

Convolutions run as one grouped convolution over all examples. For a linear layer on ``[B, in]`` the outputs' exact
distribution is that of local reparameterization, which is drawn from instead: weights ``[B, out, in]`` would cost a
hundred times as much. On sequences ``[B, T, in]`` the outputs of an example share its weights, so there they are made.
Several calls in one run of the network share them, too, if all have B rows; after drawn outputs they are refused.
The KL is that of the one distribution of the weights and is counted once. Deng, Zhang, Yang, Dong & Zhu,
*BayesAdapter* (2020).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyrobnn.estimators.base import Estimator
from pyrobnn.estimators.local_reparameterization import LocalReparameterization, drawn_outputs
from pyrobnn.estimators.weight import GaussianWeight, Layer

__all__ = ["PerExample"]


class PerExample(Estimator):
    """Independent weights for each example; memory of a layer is ``B`` times its weights in convolutions."""

    name = "per_example"
    handles = LocalReparameterization.handles

    def layer(self, layer: Layer, x: Tensor, weight: GaussianWeight, bias: Tensor | None) -> Any:
        """Grouped convolution, or for a linear layer the outputs' own distribution."""
        if not layer.spatial:
            if x.dim() <= 2:
                return drawn_outputs(layer, x, weight, bias)
            weights = _weights(weight, len(x))
            output = torch.bmm(x.reshape(len(x), -1, x.shape[-1]), weights.transpose(1, 2))
            return _with_bias(output.view(*x.shape[:-1], -1), bias, channel=-1)
        batch = len(x)
        weights = _weights(weight, batch).flatten(0, 1)
        joined = x.reshape(1, -1, *x.shape[2:])
        output = layer(joined, weights, groups=batch * layer.groups)
        return _with_bias(output.view(batch, -1, *output.shape[2:]), bias, channel=1)


def _weights(weight: GaussianWeight, rows: int) -> Tensor:
    """One for each row, the same in all calls of a run."""
    weight.used("one weight for each row", rows)
    return weight.loc + weight.deviations(rows)


def _with_bias(output: Tensor, bias: Tensor | None, channel: int) -> Tensor:
    if bias is None:
        return output
    shape = [1] * output.dim()
    shape[channel] = -1
    if isinstance(bias, GaussianWeight):
        shape[0] = len(output)
        return output + _weights(bias, len(output)).view(shape)
    return output + bias.view(shape)
