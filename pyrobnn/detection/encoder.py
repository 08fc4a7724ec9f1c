"""What the last layer of a network is given, at one point of the posterior, in a copy that can be trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.curvature.features import LastLayer, features_of
from pyrobnn.detection.last_layer_inputs import features_by_row
from pyrobnn.guides.base import Guide
from pyrobnn.model.bayesianize import evaluating
from pyrobnn.model.draws import Draws
from pyrobnn.model.last_layer import LayerCalls, last_layer_of, layers_with_matrices, recorded_calls
from pyrobnn.model.likelihoods.reductions import widened
from pyrobnn.model.network_copy import copied
from pyrobnn.model.supervised import SupervisedModel, run_network, select_output
from pyrobnn.prediction.draws import check_posterior

__all__ = ["PointEncoder"]


class PointEncoder(nn.Module):
    """A copy of the network with the weights where other guides would start: a point, a mean, one member or draw.

    It is always run in evaluation mode.

    Args:
        model: The model.
        guide: A guide, or draws ``{site: [K, …]}``, of which the first is taken.
        last_layer: Name of the layer whose inputs are the features; None finds it with the first batch.

    Attributes:
        net: The copy; none of its weights requires a gradient.

    Raises:
        TypeError: If the model or the posterior is of another kind.
        ValueError: If there is no such layer, or the posterior is another model's.
    """

    def __init__(self, model: SupervisedModel, guide: Guide | Mapping[str, Tensor], last_layer: str | None) -> None:
        super().__init__()
        if not isinstance(model, SupervisedModel):
            raise TypeError(f"model: expected a SupervisedModel, got {type(model).__name__}.")
        check_posterior(model, guide)
        point = guide.starting_point() if isinstance(guide, Guide) else Draws.of(guide).at(0)
        with torch.no_grad(), point.running(model, update=False):
            weights = model.net.sample_weights()
            net = copied(model.net.network)
        self.trainable = {*weights, *(name for name, weight in net.named_parameters() if weight.requires_grad)}
        for name, weight in net.named_parameters():
            weight.requires_grad_(False)
            if name in weights:
                weight.data = weights[name].detach().clone()
        self.net, self.output, self.likelihood = net, model.output, (model.likelihood,)
        self.layers = list(layers_with_matrices(net))
        if last_layer is not None and last_layer not in self.layers:
            known = ", ".join(map(repr, self.layers)) or "none with a weight matrix"
            raise ValueError(f"last_layer: the network has no such layer {last_layer!r}; it has {known}.")
        self.last_layer = last_layer

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next((parameter.device for parameter in self.net.parameters()), torch.device("cpu"))

    def parameters_to_train(self) -> list[nn.Parameter]:
        """The weights that were trained or drawn, which from now on require gradients."""
        found = [weight for name, weight in self.net.named_parameters() if name in self.trainable]
        for weight in found:
            weight.requires_grad_()
        return found

    def forward(self, x: Any) -> tuple[Tensor, torch.Size]:
        """The features of each label ``[n, F]``, and the shape ``[N, …]`` of the labels, n in all.

        Where an input has one label, features at several positions are averaged.

        Args:
            x: A batch of inputs.

        Raises:
            ValueError: If the layer is not called once with one tensor, or which features belong to which label is not
                known.
        """
        if self.last_layer is None:
            with evaluating(self.net):
                self.last_layer = last_layer_of(self.net, lambda: self._run(x))
        name = self.last_layer
        layer = self.net.get_submodule(name)
        with evaluating(self.net), recorded_calls({name: layer}) as calls:
            outputs = self._run(x)
        shape = self.likelihood[0].target_shape(outputs)
        if calls.count != 1 or calls.inputs is None:
            raise ValueError(
                f"last_layer: {name!r} ran {calls.count} times, or not with one tensor, so that it has no features of "
                "its own; name another layer."
            )
        if len(shape) == 1:
            return widened(features_by_row(name, calls.inputs, layer, len(outputs), "last_layer")), shape
        return widened(_by_label(name, layer, calls, outputs, shape)), shape

    def _run(self, x: Any) -> Tensor:
        return select_output(run_network(self.net, x), self.output)


def _by_label(name: str, layer: nn.Module, calls: LayerCalls, outputs: Tensor, shape: torch.Size) -> Tensor:
    found = features_of(LastLayer(name, layer, True, True, False), calls, outputs)
    if found is None or found.rows.shape[:2].numel() != shape.numel():
        raise ValueError(
            f"last_layer: labels have shape {list(shape)}, and the outputs of {name!r} are not those of the network, "
            "one for each label, so that which features belong to which label is not known."
        )
    return found.rows.flatten(0, 1)
