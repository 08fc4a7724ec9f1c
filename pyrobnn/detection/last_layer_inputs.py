"""What the last layer of a network is given under each draw of the weights, and its weight matrix there."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from pyrobnn.core.denormals import denormals_as_zero
from pyrobnn.model.bayesianize import BayesianModule
from pyrobnn.model.draws import Draws
from pyrobnn.model.last_layer import layers_named, recorded_calls
from pyrobnn.model.likelihoods.predictions import Prediction
from pyrobnn.model.likelihoods.reductions import widened
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.prediction.draws import PinnedDraws, check_posterior
from pyrobnn.prediction.predictor import Predictor, PredictorOptions
from pyrobnn.prediction.runners import Runner, inputs_on

__all__ = ["FeaturePredictor", "features_by_row"]

_TOLERANCE = 1e-3  # of outputs that are the weight matrix times the features, and the bias
_ROUNDINGS = 2.0  # to the network's dtype: of the product, and of its sum with the bias


class FeaturePredictor(Predictor):
    """A predictor that runs draws one by one and keeps the outputs, the last layer's inputs and its weights.

    Args:
        model: The model.
        guide: A guide, or draws ``{site: [K, …]}``.
        options: How to predict.
        layer: Name of the layer in the network; None finds the one with a weight matrix that ran last.

    Raises:
        TypeError: If the posterior is of another kind or precision.
        ValueError: If there is no such layer, or the posterior is another model's.
    """

    def __init__(self, model: nn.Module, guide: Any, options: PredictorOptions, *, layer: str | None = None) -> None:
        check_posterior(model, guide)
        self.runner = Runner(model, options.likelihood, "loop", options.max_bytes, options.batch_size)
        self.draws = PinnedDraws(
            guide, options.num_samples, self.runner.draws_bytes, replayed=options.replayed, seed=options.seed
        )
        net: nn.Module = model.net if isinstance(model, SupervisedModel) else model
        net = net.network if isinstance(net, BayesianModule) else net
        self.layers = layers_named(net, layer)

    def __call__(self, x: Any, targets: Tensor | None = None) -> Prediction:
        """The outputs, features and weights of all draws as parameters of a prediction."""
        reduction = self.runner.likelihood.reduction(self.draws.num_samples, keep=True, max_bytes=0)
        x = inputs_on(x, self.runner.device)
        with torch.no_grad(), denormals_as_zero(), self.runner.ready():
            for chunk in self.draws:
                draws = Draws.of(chunk)
                for index in range(len(next(iter(draws.values())))):
                    found = self._under(draws.at(index), x, reduction)
                    reduction.add({name: value.unsqueeze(0) for name, value in found.items()})
        return reduction.finish(targets)

    def joint(self, x: Any) -> NoReturn:
        """Refused: what it keeps beside the outputs is by input."""
        raise NotImplementedError("predictor: FeaturePredictor keeps features input by input; use 'weights'.")

    def _under(self, draw: Draws, x: Any, reduction: Any) -> dict[str, Tensor]:
        weights: dict[str, Tensor] = {}

        def keep(module: nn.Module, *_: Any) -> None:  # a draw's weights are there only while the layer runs
            weights.clear()
            for name in ("weight", "bias"):
                value = getattr(module, name, None)
                if isinstance(value, Tensor):
                    weights[name] = value.detach()

        hooks = [module.register_forward_hook(keep) for module in self.layers.values()]
        try:
            with recorded_calls(self.layers) as calls:
                outputs = self.runner.outputs(draw, x)
        finally:
            for hook in hooks:
                hook.remove()
        summary: dict[str, Tensor] = reduction.summary(outputs)
        if calls.last is None:
            raise ValueError("layer: no layer with a weight matrix ran, so there are no features; name a layer.")
        if calls.inputs is None or calls.count != 1:
            raise ValueError(
                f"layer: {calls.last!r} ran last, but {calls.count} times or not with one tensor; name another layer."
            )
        # Half precision is widened, as the outputs are, before anything is averaged or multiplied.
        rows = features_by_row(calls.last, widened(calls.inputs), self.layers[calls.last], len(outputs))
        summary["features"] = rows
        kept = {name: widened(value) for name, value in weights.items()}
        weight, bias = kept.get("weight"), kept.get("bias")
        if weight is not None and weight.shape == (summary["logits"].shape[-1], rows.shape[-1]):
            bias = weight.new_zeros(len(weight)) if bias is None else bias
            expected, logits = rows @ weight.mT + bias, summary["logits"]
            tolerance = max(_TOLERANCE, _ROUNDINGS * torch.finfo(outputs.dtype).eps)
            if bias.shape == weight.shape[:1] and torch.allclose(
                logits, expected.to(logits), rtol=tolerance, atol=tolerance * float(logits.abs().max())
            ):
                summary |= {"weight": weight, "bias": bias}
        return summary


def features_by_row(name: str, inputs: Tensor, layer: nn.Module, rows: int, argument: str = "layer") -> Tensor:
    """Features ``[N, F]`` in the inputs of a layer; those at several positions are averaged.

    Args:
        name: The layer's name.
        inputs: What it is given.
        layer: The layer.
        rows: Number N of rows of the outputs.
        argument: What errors name.

    Raises:
        ValueError: If it is not given one row for each.
    """
    if not inputs.dim() or len(inputs) != rows or inputs.dim() < 2:
        raise ValueError(
            f"{argument}: {name!r} is given inputs of shape {tuple(inputs.shape)} for {rows} rows of outputs; features "
            "must have one row for each; name another layer."
        )
    if inputs.dim() == 2:
        return inputs
    if isinstance(layer, nn.Linear):
        return inputs.flatten(1, -2).mean(1)
    return inputs.flatten(2).mean(-1)
