r"""The gradients of an objective from one compiled graph.

What a training step does to tensors, :math:`(\theta, \varepsilon, x, y) \mapsto \nabla_\theta L`, is recorded at the
first batch of each form: network, draw, divergence and both backward passes become one graph, of which
``torch.compile`` makes a few loops. The noise ε of the draw stays outside, where it is the same as uncompiled. Each
graph is compared once with the same step uncompiled, before its gradients are used.

A graph holds what Python did at that time: the priors, N, the modes of modules, what is trained, and the code that ran.
It is made anew where one of these but the last is changed. Weights of terms are inputs, so that schedules need no new
graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.core import compilation
from pyrobnn.core.trees import leaves, map_leaves
from pyrobnn.guides.base import Guide
from pyrobnn.model.declarations import declared_num_data
from pyrobnn.objectives.objective import Objective
from pyrobnn.objectives.parts import NonFiniteLossError, Parts, check_finite
from pyrobnn.objectives.program import Program, StepInputs
from pyrobnn.objectives.training_draws import shares
from pyrobnn.steps import Step

__all__ = ["CompiledObjective"]

_WHAT = "training runs"
_FORMS = 4  # of batches; further ones run uncompiled, since each takes seconds or minutes to compile


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
        self._programs: dict[Any, Program] = {}
        self._slots: dict[nn.Parameter, Tensor] = {}
        self._has_too_many = False

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
                compilation.warn_uncompiled(_WHAT, self.reason)
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
            if not self._has_too_many:
                self._has_too_many = True
                compilation.warn_uncompiled(
                    _WHAT, f"the loader yields batches of more than {_FORMS} forms (those of further ones do)"
                )
            return objective.backward(model, guide, args, kwargs, scale)
        count = len(shares(args, step.num_samples(objective.num_particles), groups))
        noises = [_kept(step.noise(index), count) for index in range(count)]
        batch = StepInputs(args, dict(kwargs), noises, weights, 1.0 if scale is None else scale)
        if program is None:
            program = self._programs[key] = Program(objective, model, guide, batch, self._slots, is_mean=scale is None)
            values, gradients = program.start(batch)
        else:
            values, gradients = program.run(batch)
        self.reason = program.failure
        if self.reason is not None:
            compilation.warn_uncompiled(_WHAT, self.reason)
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
            names = ", ".join(objective.further_terms) or "inputs"
            return f"the objective {type(objective).__name__} has further terms ({names})"
        if not all(isinstance(leaf, Tensor) for leaf in leaves((args, kwargs))):
            return "batches hold something else than tensors"
        device = next((leaf.device for leaf in leaves((args, kwargs))), torch.device("cpu"))
        if not compilation.has_compiler(device):
            return compilation.NO_COMPILER
        return None


def _kept(noise: Tensor | None, count: int) -> Tensor | None:
    """The noise, copied if that of another draw overwrites it."""
    return noise.clone() if noise is not None and count > 1 else noise


def _form(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Structure, shapes and kinds of a batch."""
    return repr(map_leaves(lambda leaf: (tuple(leaf.shape), leaf.dtype, leaf.device), (args, dict(kwargs))))
