"""Predictors: functions from inputs to the posterior predictive, by draws of the weights or a linearization."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor, nn

from pyrobnn.core.arguments import check_int, check_positive_int
from pyrobnn.core.denormals import denormals_as_zero
from pyrobnn.model.likelihoods import Likelihood
from pyrobnn.model.likelihoods.predictions import Prediction
from pyrobnn.model.likelihoods.reductions import widened
from pyrobnn.prediction.draws import PinnedDraws, check_posterior
from pyrobnn.prediction.execution import Execution
from pyrobnn.prediction.joint_prediction import JointPrediction
from pyrobnn.prediction.runners import Runner
from pyrobnn.prediction.vectorization import Method

__all__ = ["Link", "Predictor", "PredictorFactory", "PredictorOptions", "WeightsPredictor"]

Link = Literal["probit", "samples"]


@runtime_checkable
class Predictor(Protocol):
    """A posterior predictive as a function of inputs; every call uses the same draws, if there are any."""

    def __call__(self, x: Any, targets: Tensor | None = None) -> Prediction:
        """The prediction at a batch of inputs; modes and buffers of the model are restored.

        Args:
            x: A tensor of inputs, or a tuple or dict of them.
            targets: Their targets, if known; they become ``Prediction.targets``.
        """
        ...

    def joint(self, x: Any) -> JointPrediction:
        """Functions at a set of inputs, for :func:`pyrobnn.predict_joint`; modes and buffers are restored.

        Args:
            x: A tensor of inputs, or a tuple or dict of them.

        Raises:
            NotImplementedError: If the predictor has marginals only.
        """
        raise NotImplementedError(
            f"predictor: {type(self).__name__} has marginals only; draw functions with another, such as 'weights'."
        )


@dataclass(frozen=True)
class PredictorOptions:
    """Options of prediction; a predictor may ignore those that do not apply to it.

    Attributes:
        num_samples: Number K of posterior draws.
        likelihood: The likelihood; the model's if None.
        return_draws: Keep the parameters of each draw.
        method: How draws of the weights are run.
        max_bytes: Budget for draws, activations or Jacobians, and kept results.
        seed: Fixes the draws; None takes a seed from torch's random state.
        replayed: Whether there will be more than one batch.
        link: How Gaussian outputs become class probabilities.
        given: Values of sites that the guide does not have.
        batch_size: Rows that the network sees at a time, if inputs are declared to be by rows; else None.
        exact: Whether the covariance of Gaussian functions is computed in closed form.
        execution: Precision and layout of runs of the network under draws of the weights.

    Raises:
        TypeError: If an option is of the wrong kind.
        ValueError: If one is out of range or unknown.
    """

    num_samples: int = 100
    likelihood: Likelihood | None = None
    return_draws: bool = False
    method: Method = "auto"
    max_bytes: int = 256 * 2**20
    seed: int | None = None
    replayed: bool = True
    link: Link = "samples"
    given: Mapping[str, Tensor] | None = None
    batch_size: int | None = None
    exact: bool = True
    execution: Execution | None = None

    def __post_init__(self) -> None:
        check_positive_int("max_bytes", self.max_bytes)
        if self.seed is not None:
            check_int("seed", self.seed, -math.inf)
        for name, given, known in (("link", self.link, get_args(Link)), ("method", self.method, get_args(Method))):
            if given not in known:
                raise ValueError(f"{name}: expected {' or '.join(map(repr, known))}, got {given!r}.")
        if self.batch_size is not None:
            check_positive_int("batch_size", self.batch_size)
        if not isinstance(self.exact, bool):
            raise TypeError(f"exact: expected True or False, got {self.exact!r}.")


PredictorFactory = Callable[[nn.Module, Any, PredictorOptions], Predictor]
"""Makes the predictor of a model and its posterior."""


class WeightsPredictor(Predictor):
    """Runs the network under draws of the weights, and reduces the outputs as the likelihood defines.

    Args:
        model: The model.
        guide: A guide, or draws ``{site: [K, …]}``.
        options: How to predict.

    Raises:
        TypeError: If the posterior is of another kind or precision, or there is no likelihood.
        ValueError: If the posterior is another model's, or has fewer draws.
    """

    def __init__(self, model: nn.Module, guide: Any, options: PredictorOptions) -> None:
        check_posterior(model, guide)
        self.options = options
        self.runner = Runner(
            model, options.likelihood, options.method, options.max_bytes, options.batch_size, options.execution
        )
        self.draws = PinnedDraws(
            guide, options.num_samples, self.runner.draws_bytes, replayed=options.replayed, seed=options.seed
        )

    def __call__(self, x: Any, targets: Tensor | None = None) -> Prediction:
        """The prediction at a batch of inputs."""
        reduction = self.runner.likelihood.reduction(
            self.draws.num_samples, keep=self.options.return_draws, max_bytes=self.options.max_bytes
        )
        with torch.no_grad(), denormals_as_zero(), self.runner.ready():
            for chunk in self.draws.passing():
                for summary in self.runner.summaries(chunk, x, reduction.summary):
                    reduction.add(summary)
        return reduction.finish(targets)

    def joint(self, x: Any) -> JointPrediction:
        """The network's outputs under each draw of the weights, with the empirical covariance."""
        likelihood = self.runner.likelihood

        def summary(outputs: Tensor) -> dict[str, Tensor]:
            wide = widened(outputs)
            found = {f"parameters.{name}": widened(value) for name, value in likelihood.parameters_of(wide).items()}
            return {"outputs": wide, **found}

        with torch.no_grad(), denormals_as_zero(), self.runner.ready():
            chunks = [made for chunk in self.draws.passing() for made in self.runner.summaries(chunk, x, summary)]
        joined = {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}
        draws = joined.pop("outputs")
        parameters = {name.removeprefix("parameters."): value for name, value in joined.items()}
        return JointPrediction(draws.mean(0), draws, parameters, likelihood)
