"""The programs: modules from inputs to the posterior predictive that torch can trace.

They run the network's own code under each pinned draw, and the likelihood's own reduction, so that they compute what
:func:`pyrobnn.predict` computes. Draws run in one call by :func:`torch.func.vmap`, or one after another where torch has
no rule for a layer. What is the same in all draws is stored once, and computed once by vmap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from pyrobnn.exporting.open_sizes import OpenSizes
from pyrobnn.exporting.pinned import PinnedWeights
from pyrobnn.exporting.weights import FrozenTensors, Precision
from pyrobnn.model.likelihoods import Likelihood
from pyrobnn.model.likelihoods.predictions import Prediction
from pyrobnn.model.likelihoods.reductions import Reduction
from pyrobnn.model.network_copy import copied
from pyrobnn.model.standardization import Standardizer
from pyrobnn.model.substitution import SubstituteMessenger
from pyrobnn.model.supervised import OutputSpec, select_output

__all__ = ["DrawsProgram", "Program", "RunMethod", "default_method", "unpacked"]

RunMethod: TypeAlias = Literal["auto", "loop", "vmap"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LOOPED = (*_CONVOLUTIONS, nn.RNNBase, nn.Embedding, nn.LayerNorm, nn.MultiheadAttention)
_UNLIMITED = 2**62  # bytes: a budget would be compared with the size of a batch, which a program leaves open


class Program(nn.Module):
    """Base class: inputs to ``(mean, total, aleatoric, epistemic)``, and quantiles ``[Q, N, …]`` if they are asked for.

    Args:
        weights: The pinned weights.
        likelihood: The likelihood; it is copied.
        output: What of the network's return value the likelihood is given.
        num_samples: Number K of draws.
        quantiles: Levels of quantiles.
        scaler: Units of inputs and targets, None if the network was trained on them as they are.
        precision: How weights are kept.
        search: Dtype in which quantiles are searched for.
    """

    has_derivatives: ClassVar[bool] = False
    """Whether it differentiates the network; derivatives are written out before torch traces it."""

    def __init__(
        self,
        weights: PinnedWeights,
        likelihood: Likelihood,
        output: OutputSpec,
        num_samples: int,
        *,
        quantiles: Sequence[float] = (),
        scaler: Standardizer | None = None,
        precision: Precision = "float32",
        search: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        self.likelihood: Any
        self.scaler: Any
        self.network = weights.network
        own: Any = copied(likelihood).eval().requires_grad_(False)
        own.notice = _say_nothing  # it looks at values, which a program has none of
        self.likelihood, self.scaler = own, None if scaler is None else copied(scaler)
        self.num_samples, self.levels, self.search = num_samples, tuple(quantiles), search
        self.method: RunMethod = "loop"
        self._output = (output,)
        self.shared = FrozenTensors(weights.shared, precision, exact=weights.buffers)

    def forward(self, x: Any) -> tuple[Tensor, ...]:
        """The prediction at inputs ``x``, as they are passed to :func:`pyrobnn.predict`."""
        if self.scaler is not None:
            x = self.scaler.inputs(x)
        return self.finished(self.prediction(x))

    def prediction(self, x: Any) -> Prediction:
        """The prediction in the network's units."""
        raise NotImplementedError

    def finished(self, prediction: Prediction) -> tuple[Tensor, ...]:
        """The outputs of a prediction."""
        if self.scaler is not None:
            prediction = self.scaler.undo(prediction)
        found = (prediction.mean, prediction.total, prediction.aleatoric, prediction.epistemic)
        return (*found, prediction.traced_quantile(self.levels, self.search)) if self.levels else found

    @property
    def runs_together(self) -> bool:
        """Whether draws run in one call, which some layers cannot be traced in."""
        return self.method == "vmap"

    @property
    def advice(self) -> str:
        """What else may work where torch cannot trace the program."""
        return "predictor='weights' needs no derivatives of the network."

    @property
    def output_names(self) -> tuple[str, ...]:
        """What :meth:`forward` returns."""
        return ("mean", "total", "aleatoric", "epistemic", *(("quantiles",) if self.levels else ()))

    def reduction(self) -> Reduction:
        """What reduces the draws; it keeps all of them."""
        found: Reduction = self.likelihood.reduction(self.num_samples, keep=True, max_bytes=_UNLIMITED)
        return found

    def outputs(self, values: Mapping[str, Tensor], x: Any) -> Tensor:
        """The network's outputs with these tensors."""
        args, kwargs = unpacked(x)
        found = functional_call(self.network, dict(values), args, kwargs, tie_weights=False)
        return select_output(found, self._output[0])


class DrawsProgram(Program):
    """The network under K draws of its weights; arguments as for :class:`Program`.

    Args:
        method: ``"vmap"`` or ``"loop"``.
    """

    def __init__(self, weights: PinnedWeights, *args: Any, method: RunMethod = "loop", **options: Any) -> None:
        super().__init__(weights, *args, **options)
        precision = options.get("precision", "float32")
        self.varying = FrozenTensors(weights.varying, precision, exact=weights.buffers, leading=1)
        self.latents = FrozenTensors(weights.latents, "float32")
        self.method = method

    @property
    def advice(self) -> str:
        """What else may work where torch cannot trace the program."""
        if self.runs_together:
            return "method='loop' runs draws one after another, for layers that vmap has no rule for."
        return "let the network's forward compute the same by operators on tensors."

    def prediction(self, x: Any) -> Prediction:
        """The prediction of the draws."""
        reduction = self.reduction()
        shared, varying, latents = self.shared(), self.varying(), self.latents()

        def one(own: dict[str, Tensor], sites: dict[str, Tensor]) -> dict[str, Tensor]:
            with SubstituteMessenger(sites):
                return reduction.summary(self.outputs({**shared, **own}, x))

        if not varying and not latents:
            summary = {name: value.unsqueeze(0) for name, value in one({}, {}).items()}
        elif self.method == "vmap":
            with OpenSizes():
                summary = vmap(one)(varying, latents)
        else:
            each = [one(_at(varying, index), _at(latents, index)) for index in range(self.num_samples)]
            summary = {name: torch.stack([found[name] for found in each]) for name in each[0]}
        reduction.add(summary)
        return reduction.finish(None)


def default_method(network: nn.Module, format: str) -> RunMethod:
    """How draws of a network run: in torch's format together where all layers are linear, else one after another.

    One call for all draws saves torch's overhead of a call, which onnxruntime does not have. Convolutions of K draws
    would be one with K groups, which CPUs are slow at, and attention would leave the caches.
    """
    return "loop" if format == "onnx" or any(isinstance(part, _LOOPED) for part in network.modules()) else "vmap"


def unpacked(x: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of the network for inputs, as :func:`pyrobnn.predict` passes them on."""
    if isinstance(x, Mapping):
        return (), dict(x)
    return (tuple(x), {}) if isinstance(x, tuple | list) else ((x,), {})


def _at(values: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
    return {name: value[index] for name, value in values.items()}


def _say_nothing(parameters: Mapping[str, Tensor]) -> None:
    pass
