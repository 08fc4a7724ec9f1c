r"""A guide's distribution over function values at measurement points, as a Gaussian with gradients.

* ``"members"``: the mean and covariance of an ensemble's M members, plus λ: the DE-GP, for members and for the
  ``num_draws`` draws of any other guide (``"draws"``), whose sample covariance is of rank ``num_draws - 1``.
* ``"linearized"``: a guide makes its draws from standard normals ε, ``w(ε)``, so around the mean draw

  .. math::  f(x; w(\epsilon)) \approx f(x; w(0)) + J(x)\, \epsilon, \qquad
             f \sim N\big(f(x; w(0)),\; J J^\top\big), \qquad J = \partial f / \partial \epsilon,

  which is exact where the network is linear in its random weights (last layers). It serves mean field, low rank plus
  diagonal, and composites with points alike, and costs a backward pass for each output at each point.

The batch runs as the objective's runs do; context points are no data, and run in evaluation mode, under the same draw,
so that running statistics and the statistics of the batch are the batch's alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from pyrobnn.core.handlers import validation_enabled
from pyrobnn.function_space.gaussians import Jitter, LowRankFunctions
from pyrobnn.guides.base import Guide
from pyrobnn.model.bayesianize import evaluating
from pyrobnn.model.draws import Draws
from pyrobnn.model.likelihoods.reductions import widened
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.objectives.parts import NonFiniteLossError, explaining_non_finite_draws
from pyrobnn.objectives.vectorized import fall_back
from pyrobnn.steps.base import Step

__all__ = ["FunctionsOf", "GuideFunctions", "batch_of", "functions_of"]

FunctionsOf = Literal["auto", "members", "draws", "linearized"]


class GuideFunctions:
    """Function values of a guide's draws at the batch and the context points.

    Args:
        model: The model.
        step: The guide's training step.
        x: The batch's inputs.
        context: The context points, or None.
    """

    def __init__(self, model: SupervisedModel, step: Step, x: Any, context: Any) -> None:
        self.model, self.step, self.x, self.context = model, step, x, context
        self.rows = 0
        self.shape = torch.Size()

    def _run(self, draw: Draws, update: bool) -> Tensor:
        """Outputs ``[n, *outputs]`` at all points, the batch first."""
        with draw.running(self.model, update=update):
            outputs = widened(self.model.predictive(self.x))
        self.rows, self.shape = len(outputs), outputs.shape[1:]
        if self.context is None:
            return outputs
        with evaluating(self.model), draw.running(self.model, update=False):
            return torch.cat([outputs, widened(self.model.predictive(self.context))])

    def of_draws(self, count: int) -> Tensor:
        """The functions of so many draws ``[M, n, C]``; where the step makes all members at once, of all of them."""
        if self.step.vectorized:
            draws = self.step.draw(0)
            try:
                # Validation needs the values of tensors, which vmap does not provide.
                with validation_enabled(False):
                    found = torch.func.vmap(lambda values: self._run(Draws(values), True), randomness="different")(
                        dict(draws)
                    )
                return _finite(found.flatten(2))
            except (NonFiniteLossError, torch.OutOfMemoryError):
                raise
            except Exception as error:  # torch raises all kinds
                fall_back(self.step, error)
                raise _NotVectorizedError from error
        functions = []
        for index in range(count):
            draw = self.step.draw(index)
            with explaining_non_finite_draws(draw):
                functions.append(self._run(draw, index == 0).flatten(1))
        return _finite(torch.stack(functions))

    def linearized(self, noise_size: int, like: Tensor, max_bytes: int) -> tuple[Tensor, Tensor]:
        """The mean ``[n, C]`` and the Jacobian by the guide's noise ``[noise_size, n, C]``.

        Raises:
            ValueError: If the Jacobian exceeds the budget.
        """
        with torch.enable_grad():
            noise = torch.zeros(noise_size, dtype=like.dtype, device=like.device, requires_grad=True)
            outputs = self._run(self.step.draw(0, noise), True).flatten(1)
            needed = outputs.numel() * noise_size * outputs.element_size()
            if needed > max_bytes:
                raise ValueError(
                    f"functions: the Jacobian of {outputs.numel()} function values by {noise_size} numbers takes "
                    f"{needed / 2**20:.0f} MiB, beyond max_bytes; raise it, take smaller batches, put a distribution "
                    "on fewer weights (a last layer), or pass functions='draws'."
                )
            _finite(outputs)
            columns = torch.eye(outputs.numel(), dtype=outputs.dtype, device=outputs.device)
            (jacobian,) = torch.autograd.grad(
                outputs.flatten(), noise, columns, is_grads_batched=True, create_graph=True
            )
        return outputs, jacobian.mT.reshape(noise_size, *outputs.shape)


class _NotVectorizedError(Exception):
    """Members must run one after another."""


def functions_of(
    guide: Guide,
    made: GuideFunctions,
    kind: FunctionsOf,
    num_draws: int,
    jitter: Jitter,
    max_bytes: int,
    unvectorized: Callable[[], Step],
) -> LowRankFunctions:
    """The Gaussian over a guide's functions at all points.

    Args:
        guide: The guide.
        made: Its functions.
        kind: ``"members"``, ``"draws"`` or ``"linearized"``.
        num_draws: How many draws, of a guide that is no ensemble.
        jitter: The ridge λ.
        max_bytes: Budget of the Jacobian.
        unvectorized: Makes a step whose members run one after another, where vmap cannot run the model.
    """
    if kind == "linearized":
        size = guide.facts.noise_size
        assert size is not None
        mean, factor = made.linearized(size, next(guide.parameters()), max_bytes)
        return LowRankFunctions(mean, factor, jitter(factor.square().sum(0)))
    try:
        functions = made.of_draws(made.step.num_samples(num_draws))
    except _NotVectorizedError:
        made.step = unvectorized()
        functions = made.of_draws(made.step.num_samples(num_draws))
    return LowRankFunctions.of_draws(functions, jitter)


def batch_of(model: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Tensor, Tensor | None]:
    """Inputs, targets and weights of a batch as the model is given them.

    Raises:
        TypeError: If the model is no ``SupervisedModel``, or its likelihood has latent sites.
        ValueError: If there are no targets, or more than ``num_data``.
    """
    if not isinstance(model, SupervisedModel):
        raise TypeError(
            f"model: the functional ELBO needs a SupervisedModel, whose outputs are functions, got "
            f"{type(model).__name__}."
        )
    if latent := list(model.likelihood.site_priors):
        raise TypeError(
            f"model: its likelihood has the latent site {latent[0]!r}, which is no function of the inputs; state the "
            "number, or have the likelihood learn it as a parameter."
        )
    names = ("x", "y", "weight")
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    if given.get("y") is None:
        raise ValueError("y: the functional ELBO needs the targets of the batch.")
    if len(given["y"]) > model.num_data:
        raise ValueError(
            f"num_data: the model was built for {model.num_data} data, but a batch has {len(given['y'])} rows; state "
            "the size of the training set."
        )
    return given["x"], given["y"], given.get("weight")


def _finite(functions: Tensor) -> Tensor:
    if not bool(functions.isfinite().all()):
        raise NonFiniteLossError(
            "the objective became non-finite: the network's outputs at the measurement points; lower the learning rate "
            "or init_scale, or check the data and the context points."
        )
    return functions
