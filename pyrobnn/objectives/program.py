r"""A training step as a graph of tensors, for batches of one form.

The function of tensors that is recorded takes the parameters of model and guide, the buffers that a step writes to, the
noise of the draws, the weights of the objective's terms and the batch, and writes the gradients to tensors that are
given to it. Buffers that no step writes to, those of priors above all, are constants of the graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.core import compilation, random_state
from pyrobnn.core.first_line import first_line
from pyrobnn.core.handlers import validation_enabled
from pyrobnn.core.trees import leaves, map_leaves
from pyrobnn.guides.base import Guide
from pyrobnn.model.bayesianize import frozen_buffers
from pyrobnn.objectives.objective import Objective
from pyrobnn.objectives.parts import Parts, mean_parts
from pyrobnn.objectives.terms import Evaluation
from pyrobnn.steps.given_noise import GivenNoiseStep

__all__ = ["Program", "StepInputs"]

_CLOSE = 1e-3  # relative difference of numbers that are the same but for rounding
_KINKS = 0.1  # the same of a parameter's gradient, where rounding turned units on or off


@dataclass
class StepInputs:
    """What changes from step to step.

    Attributes:
        args, kwargs: Arguments of the model, trees of tensors.
        noises: The noise of each draw; None where a draw takes its random numbers itself.
        weights: Weights of the terms.
        scale: Factor of the objective.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    noises: Sequence[Tensor | None]
    weights: Mapping[str, float]
    scale: float


class _Pair(nn.Module):
    """Model and guide as one module, in which parameters and buffers are replaced."""

    def __init__(self, model: nn.Module, guide: nn.Module) -> None:
        super().__init__()
        self.model, self.guide = model, guide

    def forward(self, function: Callable[[], Any]) -> Any:
        return function()


class Program:
    """One graph, for batches of one form.

    Args:
        objective, model, guide: What is trained.
        batch: A batch of that form.
        slots: Memory for gradients by parameter, which programs share.
        is_mean: Whether the objective is divided by the number of data.
    """

    def __init__(
        self,
        objective: Objective,
        model: nn.Module,
        guide: Guide,
        batch: StepInputs,
        slots: dict[nn.Parameter, Tensor],
        *,
        is_mean: bool,
    ) -> None:
        self.objective, self.model, self.guide, self.is_mean = objective, model, guide, is_mean
        self._tree: Any = map_leaves(lambda _: True, (batch.args, batch.kwargs))  # the form alone: batches are large
        self._has_noise = [noise is not None for noise in batch.noises]
        self._weights = batch.weights
        self.failure: str | None = None
        self._is_checked = False
        self._pair = _Pair(model, guide)
        self._modules, self._all_parameters = list(self._pair.modules()), list(self._pair.parameters())
        self._flags_then = self._flags()
        named = dict(self._pair.named_parameters())
        trained = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
        self.parameters = list(trained.values())
        self._names = list(trained)
        others = [*(name for name in named if name not in trained), *dict(self._pair.named_buffers())]
        self._others = {name: _place(self._pair, name) for name in others}
        self._constants: list[tuple[dict[str, Any], str, Tensor, int]] = []
        for parameter in self.parameters:
            if parameter not in slots:
                slots[parameter] = torch.zeros_like(parameter, requires_grad=False)
        self._slots = [slots[parameter] for parameter in self.parameters]
        self._has_gradient: list[bool] = []
        self._pieces: list[_Piece] = []
        self._step, self._groups = objective.plain_step(model, guide)
        like = self.parameters[0]
        self._device = like.device
        self._factors = torch.empty(len(batch.weights) + 1, dtype=like.dtype)
        self._channels_last = compilation.prefers_channels_last(model, like.device)
        self._compiled: Callable[..., Any]

    # ---------------------------------------------------------------------------------------------- in the graph

    def _evaluate(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Writes gradients to the slots; returns the values of all terms in all pieces."""
        given = iter(inputs)
        parameters = [next(given).detach().requires_grad_() for _ in self._names]
        replaced = dict(zip(self._names, parameters, strict=True)) | {name: next(given) for name in self._others}
        slots = [next(given) for _ in self._slots]
        factors = next(given).unbind()
        step = GivenNoiseStep(self._step, [next(given) if has_noise else None for has_noise in self._has_noise])
        args, kwargs = map_leaves(lambda _: self._laid_out(next(given)), self._tree)
        weights = self._weights

        def losses() -> list[Parts]:
            evaluation = Evaluation(self.model, self.guide, step, args, kwargs, checked=False)
            return list(self.objective.pieces(evaluation, weights, self._groups))

        with torch.enable_grad():
            found = torch.func.functional_call(self._pair, replaced, (losses,))
            by_name = dict(zip(weights, factors, strict=False))
            total = sum(piece.share * by_name[name] * value for piece in found for name, value in piece.values.items())
            scale = factors[-1] / found[0].num_data if self.is_mean else factors[-1]
            gradients = torch.autograd.grad(torch.as_tensor(total) * scale, parameters, allow_unused=True)
        for slot, gradient in zip(slots, gradients, strict=True):
            if gradient is not None:
                slot.copy_(gradient)
        self._has_gradient = [gradient is not None for gradient in gradients]
        self._pieces = [_Piece(list(p.values), p.num_data, p.share, p.divergence_name) for p in found]
        return tuple(value.detach() for piece in found for value in piece.values.values())

    def _laid_out(self, leaf: Tensor) -> Tensor:
        is_image = self._channels_last and leaf.dim() == 4 and leaf.is_floating_point()
        return leaf.contiguous(memory_format=torch.channels_last) if is_image else leaf

    # ------------------------------------------------------------------------------------------------- outside it

    def _inputs(self, batch: StepInputs) -> list[Tensor]:
        self._factors.copy_(torch.tensor([*batch.weights.values(), batch.scale], dtype=self._factors.dtype))
        noises = [noise for noise in batch.noises if noise is not None]
        data = [leaf.detach().contiguous() for leaf in leaves((batch.args, batch.kwargs))]
        others = [holder[key] for holder, key in self._others.values()]
        return [*self.parameters, *others, *self._slots, self._factors, *noises, *data]

    def run(self, batch: StepInputs) -> tuple[Sequence[Tensor], list[Tensor | None]]:
        """A step; its values, and the gradients of the parameters."""
        for parameter, slot in zip(self.parameters, self._slots, strict=True):
            if parameter.grad is slot:  # accumulated gradients, which the graph would overwrite
                parameter.grad = slot.clone()
        inputs = self._inputs(batch)
        try:
            values = self._compiled(*inputs)
        except Exception as error:  # the compiler was asked again, since something is of another kind
            if not self._is_checked:
                raise
            self.failure = f"a later step could not be compiled ({first_line(error)})"
            with torch.no_grad():
                values = self._evaluate(*inputs)
        return values, self._given(self._slots)

    def start(self, batch: StepInputs) -> tuple[Sequence[Tensor], list[Tensor | None]]:
        """The first step, uncompiled and compiled; sets ``failure`` if they differ or there is no graph."""
        inputs = self._inputs(batch)
        before = random_state.read(self._device)
        expected = _copies(inputs)
        with torch.no_grad():
            values = self._evaluate(*expected)  # under Pyro's validation, if it is on
        after = random_state.read(self._device)
        start, stop = len(self._names), len(self._names) + len(self._others)
        slots = expected[stop : stop + len(self._slots)]
        written = dict(zip(self._others, expected[start:stop], strict=True))
        try:
            self._keep_constants(written)
            inputs = self._inputs(batch)
            with validation_enabled(False), torch.no_grad():
                random_state.write(before, self._device)
                self._evaluate(*_copies(inputs))  # what is computed once, such as a vector of the priors, is now
                random_state.write(before, self._device)
                fixed = inputs[: start + len(self._others)]
                recording = compilation.record(self._evaluate, _copies(inputs), fixed=fixed)
            self._compiled = compilation.compiled(recording, device=self._device)
            random_state.write(before, self._device)
            found = self.run(batch)
            self.failure = _difference(values, self._given(slots), *found)
        except Exception as error:  # a compiler has many ways to fail
            self.failure = f"it could not be compiled ({first_line(error)})"
        if self.failure is None:
            self._is_checked = True
            return found
        random_state.write(after, self._device)
        with torch.no_grad():
            for name, (holder, key) in self._others.items():
                holder[key].copy_(written[name])
        return values, self._given(slots)

    def _keep_constants(self, written: Mapping[str, Tensor]) -> None:
        """Takes the buffers that no step writes to out of the inputs: they are parts of the graph, and are watched."""
        for name in dict(self._pair.named_buffers()):
            holder, key = self._others[name]
            tensor = holder[key]
            if written[name]._version == 0 and torch.equal(tensor, written[name]):
                self._constants.append((holder, key, tensor, tensor._version))
                del self._others[name]

    @property
    def is_current(self) -> bool:
        """Whether what the graph holds as constants, modes of modules and what is trained are as they were."""
        return self._flags() == self._flags_then and all(
            holder[key] is t and t._version == version for holder, key, t, version in self._constants
        )

    def _flags(self) -> list[bool]:
        """Modes of modules, and which parameters are trained."""
        return [*(m.training for m in self._modules), *(p.requires_grad for p in self._all_parameters)]

    def _given(self, slots: Sequence[Tensor]) -> list[Tensor | None]:
        return [slot if has else None for slot, has in zip(slots, self._has_gradient, strict=True)]

    def parts(self, values: Sequence[Tensor], weights: Mapping[str, float]) -> Parts:
        """The values as the objective's parts."""
        given = iter(values)
        pieces = [
            Parts({name: next(given) for name in piece.names}, weights, piece.num_data, piece.share, piece.divergence)
            for piece in self._pieces
        ]
        return mean_parts(pieces)

    def explain(self, batch: StepInputs) -> None:
        """The step uncompiled, for the error that names what is not finite."""
        step = GivenNoiseStep(self._step, batch.noises)
        options: dict[str, Any] = {"groups": self._groups, "guide": self.guide}
        with frozen_buffers(self.model), torch.no_grad():
            list(self.objective.losses(self.model, step, batch.args, batch.kwargs, **options))


@dataclass(frozen=True)
class _Piece:
    """A piece of the objective without its values."""

    names: list[str]
    num_data: int
    share: float
    divergence: str


def _place(module: nn.Module, name: str) -> tuple[dict[str, Any], str]:
    """The dictionary that holds a parameter or buffer, and its key there."""
    path, _, key = name.rpartition(".")
    owner = module.get_submodule(path)
    return (owner._parameters if key in owner._parameters else owner._buffers), key


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


def _difference(
    values: Sequence[Tensor],
    expected: Sequence[Tensor | None],
    found_values: Sequence[Tensor],
    found: Sequence[Tensor | None],
) -> str | None:
    """Says it if a compiled step computed another function than the uncompiled one.

    Rounding moves single units across the kink of a ReLU: one in 260,000 changes a gradient by 0.3 per cent. So the
    values of the terms are compared closely, and the norms of gradients for what another function would change.
    """
    size = math.sqrt(sum(float(value) ** 2 for value in values))
    if not math.isfinite(size):
        return None
    if any(abs(float(a) - float(b)) > _CLOSE * size for a, b in zip(values, found_values, strict=True)):
        return "the compiled step gave another value of the objective than the uncompiled one"
    pairs = [(a, b) for a, b in zip(expected, found, strict=True) if a is not None and b is not None]
    whole = math.sqrt(sum(float(right.square().sum()) for right, _ in pairs))
    for right, gradient in pairs:
        if not float((right - gradient).norm()) <= _KINKS * float(right.norm()) + _CLOSE * whole:
            return "the compiled step gave other gradients than the uncompiled one"
    return None
