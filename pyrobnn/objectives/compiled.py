r"""The gradients of an objective from one compiled graph.

What a training step does to tensors, :math:`(\theta, \varepsilon, x, y) \mapsto \nabla_\theta L`, is recorded at the
first batch of each form: network, draw, divergence and both backward passes become one graph, of which
``torch.compile`` makes a few loops. The noise ε of the draw stays outside, where it is the same as uncompiled. Each
graph is compared once with the same step uncompiled, before its gradients are used.

A graph holds what Python did at that time: the priors, N, and the code that ran. Weights of terms are inputs, so that
schedules need no new graph.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.core import compilation, random_state
from pyrobnn.core.handlers import validation_enabled
from pyrobnn.core.trees import leaves, map_leaves
from pyrobnn.guides.base import Guide
from pyrobnn.model.bayesianize import frozen_buffers
from pyrobnn.model.declarations import declared_num_data
from pyrobnn.model.draws import Draws
from pyrobnn.objectives.objective import Objective
from pyrobnn.objectives.parts import NonFiniteLossError, Parts, check_finite, mean_parts
from pyrobnn.objectives.training_draws import shares
from pyrobnn.steps import Step

__all__ = ["CompiledObjective"]

_FORMS = 4  # of batches; further ones run uncompiled, since each takes seconds or minutes to compile
_TOLERANCE = 1e-3  # of a graph's gradients beside the uncompiled ones, relative to the largest


class CompiledObjective:
    """An objective whose :meth:`backward` is compiled where it can be; else it is the objective's, and one warning.

    Args:
        objective: The objective.

    Attributes:
        reason: Why steps run uncompiled; None as long as they are compiled.
        num_graphs: Graphs made so far, one for each form of batch.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.reason: str | None = None
        self._programs: dict[Any, _Program] = {}

    @property
    def num_graphs(self) -> int:
        """Graphs made so far."""
        return len(self._programs)

    def backward(
        self,
        model: Any,
        guide: Guide,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any] | None = None,
        scale: float | None = 1.0,
    ) -> Parts:
        """Adds the gradients of ``scale`` times the objective to the parameters, as :meth:`Objective.backward` does.

        Raises:
            NonFiniteLossError: If the objective is NaN or infinite; no gradient has been added then.

        Warns:
            UserWarning: Once, if steps run uncompiled from now on; it says why.
        """
        objective, kwargs = self.objective, kwargs or {}
        step, groups = objective.step(model, guide)
        if self.reason is None:
            self.reason = self._obstacle(model, step, args, kwargs)
            if self.reason is not None:
                self._warn()
        if self.reason is not None:
            return objective.backward(model, guide, args, kwargs, scale)
        weights = objective.weights(model, guide)
        unweighted = tuple(weight == 0.0 for weight in weights.values())
        key = _form(args, kwargs), scale is None, declared_num_data(model), model.training, unweighted
        program = self._programs.get(key)
        if program is not None and not program.is_current:
            program = None
            del self._programs[key]
        if program is None and len(self._programs) == _FORMS:
            self.reason = f"the loader yields batches of more than {_FORMS} shapes (pad them, or set drop_last=True)"
            self._warn()
            return objective.backward(model, guide, args, kwargs, scale)
        count = len(shares(args, step.num_samples(objective.num_particles), groups))
        noises = [step.noise(index) for index in range(count)]
        noises = [None if noise is None else noise.clone() if count > 1 else noise for noise in noises]
        batch = _Batch(args, dict(kwargs), noises, weights, 1.0 if scale is None else scale)
        if program is None:
            program = self._programs[key] = _Program(objective, model, guide, batch, is_mean=scale is None)
            values, gradients = program.start(batch)
            self.reason = program.failure
            if self.reason is not None:
                self._warn()
        else:
            values, gradients = program.run(batch)
        parts = program.parts(values, weights)
        try:
            check_finite(parts)
        except NonFiniteLossError:
            program.explain(batch)
            raise
        for parameter, gradient in zip(program.parameters, gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        objective.num_steps += 1
        objective.parts = parts
        return parts

    def _obstacle(self, model: Any, step: Step, args: Any, kwargs: Any) -> str | None:
        objective = self.objective
        if not isinstance(model, nn.Module):
            return "the model is no module, whose parameters a graph could be given"
        if not step.compiles:
            return f"the training step of this guide and estimator ({type(step).__name__}) is not one graph of tensors"
        if not objective.compiles:
            names = [term.name for term in objective.terms if not term.vectorizes]
            return f"the objective {type(objective).__name__} has further terms ({', '.join(names) or 'inputs'})"
        if not all(isinstance(leaf, Tensor) for leaf in leaves((args, kwargs))):
            return "batches hold something else than tensors"
        device = next((leaf.device for leaf in leaves((args, kwargs))), torch.device("cpu"))
        if not compilation.has_compiler(device):
            return "there is no C++ compiler (such as g++; its path may be given as CXX)"
        return None

    def _warn(self) -> None:
        warnings.warn(
            f"compile: training runs uncompiled, because {self.reason}. It gives the same, at the usual speed; "
            "compile=False says so.",
            stacklevel=3,
        )


class _GivenNoise(Step):
    """A step whose draws are made from given noise."""

    def __init__(self, step: Step, noises: Sequence[Tensor | None]) -> None:
        self.layout, self._step, self._noises = step.layout, step, noises

    def num_samples(self, asked: int) -> int:
        """That of the step."""
        return self._step.num_samples(asked)

    def draw(self, index: int | None, noise: Tensor | None = None, *, avoid: Tensor | None = None) -> Draws:
        """The draw of that index."""
        return self._step.draw(index, self._noises[index] if noise is None and index is not None else noise)

    def divergence(self, draws: Draws, priors: Mapping[str, Any]) -> Any:
        """That of the step."""
        return self._step.divergence(draws, priors)


@dataclass
class _Batch:
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


class _Program:
    """One graph, for batches of one form."""

    def __init__(self, objective: Objective, model: nn.Module, guide: Guide, batch: _Batch, *, is_mean: bool) -> None:
        self.objective, self.model, self.guide, self.first, self.is_mean = objective, model, guide, batch, is_mean
        self.failure: str | None = None
        self._pair = _Pair(model, guide)
        named = dict(self._pair.named_parameters())
        trained = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
        self.parameters = list(trained.values())
        self._names = list(trained)
        others = [*(name for name in named if name not in trained), *dict(self._pair.named_buffers())]
        self._others = {name: _place(self._pair, name) for name in others}
        self._constants: list[tuple[dict[str, Any], str, Tensor, int]] = []
        self._slots = [torch.empty_like(parameter, requires_grad=False) for parameter in self.parameters]
        self._has_gradient: list[bool] = []
        self._pieces: list[_Piece] = []
        self._step, self._groups = objective.plain_step(model, guide)
        like = self.parameters[0]
        self._device = like.device
        self._factors = torch.empty(len(batch.weights) + 1, dtype=like.dtype)
        self._channels_last = compilation.prefers_channels_last(model, like.device)
        self._compiled: Callable[..., Any] = self._evaluate

    # ---------------------------------------------------------------------------------------------- in the graph

    def _evaluate(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Writes gradients to the slots; returns the values of all terms in all pieces."""
        given = iter(inputs)
        parameters = [next(given).detach().requires_grad_() for _ in self._names]
        replaced = dict(zip(self._names, parameters, strict=True)) | {name: next(given) for name in self._others}
        slots = [next(given) for _ in self._slots]
        factors = next(given).unbind()
        step = _GivenNoise(self._step, [None if noise is None else next(given) for noise in self.first.noises])
        args, kwargs = map_leaves(lambda _: self._laid_out(next(given)), (self.first.args, self.first.kwargs))
        weights = self.first.weights

        def losses() -> list[Parts]:
            options: dict[str, Any] = {"groups": self._groups, "guide": self.guide, "weights": weights}
            return list(self.objective.losses(self.model, step, args, kwargs, checked=False, **options))

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

    def _inputs(self, batch: _Batch) -> list[Tensor]:
        self._factors.copy_(torch.tensor([*batch.weights.values(), batch.scale], dtype=self._factors.dtype))
        noises = [noise for noise in batch.noises if noise is not None]
        data = [leaf.detach().contiguous() for leaf in leaves((batch.args, batch.kwargs))]
        others = [holder[key] for holder, key in self._others.values()]
        return [*self.parameters, *others, *self._slots, self._factors, *noises, *data]

    def run(self, batch: _Batch) -> tuple[Sequence[Tensor], list[Tensor | None]]:
        """A step; its values, and the gradients of the parameters."""
        for parameter, slot in zip(self.parameters, self._slots, strict=True):
            if parameter.grad is slot:  # accumulated gradients, which the graph would overwrite
                parameter.grad = slot.clone()
        values = self._compiled(*self._inputs(batch))
        return values, self._given(self._slots)

    def start(self, batch: _Batch) -> tuple[Sequence[Tensor], list[Tensor | None]]:
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
                graph = compilation.record(self._evaluate, _copies(inputs), fixed=fixed)
            self._compiled = compilation.compiled(graph, device=self._device)
            random_state.write(before, self._device)
            found = self.run(batch)
            self.failure = _difference([*values, *slots], [*found[0], *self._slots])
        except Exception as error:  # a compiler has many ways to fail
            self.failure = f"it could not be compiled ({compilation.first_line(error)})"
        if self.failure is None:
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
        """Whether what the graph holds as constants is as it was."""
        return all(holder[key] is t and t._version == version for holder, key, t, version in self._constants)

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

    def explain(self, batch: _Batch) -> None:
        """The step uncompiled, for the error that names what is not finite."""
        step = _GivenNoise(self._step, batch.noises)
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


def _form(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Structure, shapes and kinds of a batch."""
    return repr(map_leaves(lambda leaf: (tuple(leaf.shape), leaf.dtype, leaf.device), (args, dict(kwargs))))


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


def _difference(expected: Sequence[Tensor], found: Sequence[Tensor]) -> str | None:
    """Says it if numbers of the compiled step are others."""
    for right, value in zip(expected, found, strict=True):
        largest = float(right.abs().max()) if right.numel() else 0.0
        if math.isfinite(largest) and not float((right - value).abs().max()) <= _TOLERANCE * largest:
            return "the compiled step gave other gradients than the uncompiled one"
    return None
