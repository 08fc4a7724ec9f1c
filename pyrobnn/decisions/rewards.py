r"""Posteriors over the rewards of arms, as functions of a context: exact linear regressions, and Bayesian networks.

A network has an output for each arm. Rewards that were not seen are missing targets (NaN) of
``likelihoods.Normal(0.1, missing=True)``, so that every guide of this library serves.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from pyrobnn.core.arguments import check_positive, check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.guides.base import Guide
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.prediction.joint import function_at
from pyrobnn.prediction.predict import predict
from pyrobnn.training.fit import fit

__all__ = ["LinearRewards", "NeuralRewards", "RewardModel"]


class RewardModel(Protocol):
    """A posterior over functions from a context to the rewards of all arms."""

    num_arms: int

    def sample(self, context: Tensor) -> Tensor:
        """Rewards ``[A]`` of one function drawn from the posterior, at a context ``[d]``."""
        ...

    def moments(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and epistemic standard deviation of the expected rewards, ``[A]`` each."""
        ...

    def observe(self, context: Tensor, arm: int, reward: float) -> None:
        """Learns of one reward."""
        ...


@explained
class LinearRewards:
    r"""Independent Bayesian linear regressions, one for each arm, with known noise: exact, and the baseline.

    .. math::  r = x^\top w_a + b_a + \sigma \epsilon, \qquad w_a, b_a \sim N(0, s^2).

    Args:
        num_inputs: Numbers in a context.
        num_arms: Number A of arms.
        noise: Standard deviation σ of rewards.
        prior_scale: Standard deviation s of weights.
        features: Applied to contexts; None leaves them as they are. Those of a network that is trained on
            the way: :class:`NeuralLinearRewards`.

    Raises:
        ValueError: If a number is not positive.
    """

    def __init__(
        self,
        num_inputs: int,
        num_arms: int,
        noise: float = 1.0,
        prior_scale: float = 1.0,
        features: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        for name, value in (("num_inputs", num_inputs), ("num_arms", num_arms)):
            check_positive_int(name, value)
        check_positive("noise", noise)
        check_positive("prior_scale", prior_scale)
        self.num_inputs, self.num_arms, self.noise, self.features = num_inputs, num_arms, noise, features
        size = num_inputs + 1
        self.precision = torch.eye(size, dtype=torch.float64).repeat(num_arms, 1, 1) / prior_scale**2
        self.information = torch.zeros(num_arms, size, dtype=torch.float64)

    def posterior(self) -> tuple[Tensor, Tensor]:
        """Means ``[A, d + 1]`` (bias last) and lower Cholesky factors of the precisions ``[A, d + 1, d + 1]``."""
        factor = torch.linalg.cholesky(self.precision)
        return torch.cholesky_solve(self.information.unsqueeze(-1), factor).squeeze(-1), factor

    def sample(self, context: Tensor) -> Tensor:
        """Rewards ``[A]`` under one draw of the weights."""
        mean, factor = self.posterior()
        noise = torch.randn(mean.shape, dtype=torch.float64).unsqueeze(-1)
        draw = mean + torch.linalg.solve_triangular(factor.mT, noise, upper=True).squeeze(-1)
        return draw @ self._row(context)

    def moments(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the expected rewards, ``[A]`` each."""
        mean, factor = self.posterior()
        row = self._row(context)
        reach = torch.linalg.solve_triangular(factor, row.expand(self.num_arms, -1).unsqueeze(-1), upper=False)
        return mean @ row, reach.square().sum((-2, -1)).sqrt()

    def observe(self, context: Tensor, arm: int, reward: float) -> None:
        """Adds one observation to the sums."""
        row = self._row(context)
        self.precision[arm] += torch.outer(row, row) / self.noise**2
        self.information[arm] += row * reward / self.noise**2

    def _row(self, context: Tensor) -> Tensor:
        found = context if self.features is None else self.features(context)
        return torch.cat([found.double(), torch.ones(1, dtype=torch.float64)])


@explained
class NeuralRewards:
    """A Bayesian network with an output for each arm, refitted at intervals from where it was.

    Args:
        model: A :class:`~pyrobnn.SupervisedModel` of contexts ``[B, d]`` whose network returns ``[B, A]``, with
            ``likelihoods.Normal(0.1, missing=True)`` or another likelihood that takes missing targets.
        guide: Its posterior.
        num_arms: Number A of arms.
        refit_every: Observations between refits; the first is after as many.
        steps: Gradient steps of a refit, about.
        first_steps: Of the first; None takes ten times as many.
        batch_size: Rows of a batch.
        num_samples: Draws that means and standard deviations are of.
        options: Further arguments of :func:`pyrobnn.fit`, such as ``{"lr": 3e-3}``.

    State the noise, as in ``Normal(0.1, missing=True)`` for rewards of about unit size: it says how far a single reward
    may be from the mean. Where it is learned there is a warning. It starts from the few first rewards, moves slowly
    from there, and shrinks to nothing where the network can learn them by heart; then the posterior is sure of what it
    has seen by luck, and no arm is tried again.

    Warns:
        UserWarning: If the likelihood has parameters of its own, such as noise that is learned.

    Raises:
        TypeError: If the model is no SupervisedModel or the guide no guide of this library.
        ValueError: If a number is not positive, or the likelihood takes no missing targets.
    """

    def __init__(
        self,
        model: SupervisedModel,
        guide: Guide,
        num_arms: int,
        *,
        refit_every: int = 50,
        steps: int = 100,
        first_steps: int | None = None,
        batch_size: int = 256,
        num_samples: int = 30,
        options: dict[str, Any] | None = None,
    ) -> None:
        if not isinstance(model, SupervisedModel):
            raise TypeError(f"model: expected a SupervisedModel, got {type(model).__name__}.")
        if not isinstance(guide, Guide):
            raise TypeError(f"guide: expected a guide of this library, got {type(guide).__name__}.")
        counts = {"num_arms": num_arms, "refit_every": refit_every, "steps": steps, "batch_size": batch_size}
        for name, value in (counts | {"num_samples": num_samples}).items():
            check_positive_int(name, value)
        if first_steps is not None:
            check_positive_int("first_steps", first_steps)
        if not model.likelihood.missing:
            raise ValueError(
                "model: only the reward of the arm that was pulled is seen, so the likelihood must take missing "
                "targets; pass Normal(0.1, missing=True), say."
            )
        if any(parameter.requires_grad for parameter in model.likelihood.parameters()):
            warnings.warn(
                "model: its likelihood is learned, too. The noise of few rewards of few arms comes out far too small, "
                "or stays where the first rewards put it; state it, as in Normal(0.1, missing=True).",
                stacklevel=2,
            )
        self.model, self.guide, self.num_arms, self.num_samples = model, guide, num_arms, num_samples
        self.refit_every, self.steps, self.batch_size = refit_every, steps, batch_size
        self.first_steps = 10 * steps if first_steps is None else first_steps
        self.options = dict(options or {})
        self.contexts: list[Tensor] = []
        self.targets: list[Tensor] = []

    def sample(self, context: Tensor) -> Tensor:
        """Rewards ``[A]`` of one function (:func:`pyrobnn.predict_joint`)."""
        return self.function(context.unsqueeze(0))[0]

    def moments(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and epistemic standard deviation of the expected rewards, ``[A]`` each."""
        found = predict(self.model, self.guide, context.unsqueeze(0), self.num_samples)
        return found.mean[0], found.epistemic[0].clamp_min(0).sqrt()

    def observe(self, context: Tensor, arm: int, reward: float) -> None:
        """Keeps the observation, and refits the posterior if it is time."""
        target = torch.full((self.num_arms,), math.nan, dtype=context.dtype, device=context.device)
        target[arm] = reward
        self.contexts.append(context)
        self.targets.append(target)
        if len(self.contexts) % self.refit_every == 0:
            self.refit()

    def function(self, contexts: Tensor, seed: int | None = None) -> Tensor:
        """Rewards of all arms ``[B, A]`` under one function of the posterior, which the seed fixes."""
        return function_at(self.model, self.guide, contexts, seed=seed)

    def values(self, contexts: Tensor, num_samples: int, **options: Any) -> Tensor:
        """Mean rewards of all arms ``[B, A]`` over draws, by :func:`pyrobnn.predict` with further options."""
        return predict(self.model, self.guide, contexts, num_samples, **options).mean

    def refit(self) -> None:
        """Fits the posterior to all observations, from where it was; N is their number."""
        x, y = torch.stack(self.contexts), torch.stack(self.targets)
        self.train(x, y, self.first_steps if len(x) == self.refit_every else self.steps)

    def train(self, x: Tensor, y: Tensor, steps: int) -> None:
        """About so many steps on contexts ``[N, d]`` and rewards ``[N, A]``, NaN where they were not seen."""
        self.model.num_data = len(x)
        data = TensorDataset(x, y)
        rows = BatchSampler(RandomSampler(data), min(self.batch_size, len(x)), drop_last=False)
        loader = DataLoader(data, sampler=rows, batch_size=None)  # a batch is one indexing, not a copy for each row
        fit(self.model, self.guide, loader, epochs=max(1, round(steps / len(loader))), progress=False, **self.options)
