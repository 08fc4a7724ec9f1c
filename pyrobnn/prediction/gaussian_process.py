r"""The Gaussian process that has the mean and covariance of an ensemble's members (DE-GP), as a predictor.

.. math::  m(x) = \tfrac1M \sum_i g_i(x), \qquad
           k(x, x') = \tfrac1M \sum_i (g_i - m)(x)\, (g_i - m)(x')^\top + \lambda(x)\, I\, [x = x'],

with λ(x) a share of the members' mean variance at x (5 %), so that it does not depend on which inputs are predicted
together. :class:`~pyrobnn.function_space.FunctionalELBO` trains it. M members span M - 1 directions; functions between
them are weighted sums of all. Of any other guide it is the Gaussian of ``num_samples`` draws.

Deng et al., *Deep ensemble as a Gaussian process posterior* (DE-GP).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.core import random_state
from pyrobnn.core.arguments import check_non_negative
from pyrobnn.core.denormals import denormals_as_zero
from pyrobnn.guides.base import Guide
from pyrobnn.model.likelihoods.predictions import Prediction
from pyrobnn.model.likelihoods.reductions import widened
from pyrobnn.prediction.draws import PinnedDraws, check_posterior
from pyrobnn.prediction.joint_prediction import JointPrediction, parameters_under
from pyrobnn.prediction.predictor import Predictor, PredictorOptions
from pyrobnn.prediction.runners import Runner

__all__ = ["GaussianProcessPredictor"]


class GaussianProcessPredictor(Predictor):
    """The Gaussian over functions of an ensemble's members; ``predictor="gaussian_process"``.

    Args:
        model: The model.
        guide: An ensemble, whose members all count; or any other posterior, of which ``num_samples`` draws do.
        options: How to predict; K functions are drawn from the Gaussian, where the likelihood has no closed form.
        ridge: λ as a share of the members' mean variance at an input; ``functools.partial`` sets it.

    Raises:
        TypeError: If the posterior is of another kind, or the likelihood has latent sites, so that its parameters are
            no functions of the outputs.
        ValueError: If the posterior is another model's, or ``ridge`` is negative.
    """

    def __init__(self, model: nn.Module, guide: Any, options: PredictorOptions, *, ridge: float = 0.05) -> None:
        check_posterior(model, guide)
        check_non_negative("ridge", ridge)
        self.options, self.ridge = options, ridge
        self.runner = Runner(model, options.likelihood, options.method, options.max_bytes, options.batch_size)
        self.likelihood = self.runner.likelihood
        if latent := list(self.likelihood.site_priors):
            raise TypeError(
                f"likelihood: it has the latent site {latent[0]!r}, which is no function of the outputs, so the "
                "Gaussian of functions does not predict targets; use predictor='weights'."
            )
        self._seed = random_state.fresh_seed() if options.seed is None else options.seed
        points = guide.facts.num_points if isinstance(guide, Guide) else None
        self.draws: PinnedDraws | list[Any]
        if points is None:
            self.draws = PinnedDraws(
                guide, options.num_samples, self.runner.draws_bytes, replayed=options.replayed, seed=self._seed
            )
        else:
            self.draws = [guide.atoms(torch.arange(points)) if points > 1 else guide.sample(1)]
        # One for the sums of members, which all calls share; and one for λ, whose noise each row has of its own.
        self._common, self._own = (torch.Generator().manual_seed(self._seed + shift) for shift in (0, 1))
        self._weights: Tensor | None = None

    def _moments(self, x: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Mean ``[N, *outputs]``, deviations ``[M, N, *outputs]`` divided by √M, and λ ``[N, 1, ...]``."""

        def outputs(found: Tensor) -> dict[str, Tensor]:
            return {"outputs": widened(found)}

        with self.runner.ready():
            chunks = [made["outputs"] for chunk in self.draws for made in self.runner.summaries(chunk, x, outputs)]
        functions = torch.cat(chunks)
        mean = functions.mean(0)
        factor = (functions - mean) / math.sqrt(len(functions))
        variance = factor.square().sum(0).flatten(1).mean(1)
        return mean, factor, self.ridge * variance.reshape(-1, *[1] * (mean.dim() - 1))

    def _functions(self, mean: Tensor, factor: Tensor, ridge: Tensor) -> Iterator[Tensor]:
        """K functions ``[k, N, *outputs]`` in chunks within the budget."""
        count = self.options.num_samples
        if self._weights is None:
            self._weights = torch.randn(count, len(factor), generator=self._common, dtype=mean.dtype).to(mean.device)
        size = max(1, self.options.max_bytes // (4 * max(1, mean.nbytes)))
        for weights in self._weights.split(size):
            noise = torch.randn(len(weights), *mean.shape, generator=self._own, dtype=mean.dtype).to(mean.device)
            yield mean + torch.tensordot(weights, factor, 1) + ridge.sqrt() * noise

    def __call__(self, x: Any, targets: Tensor | None = None) -> Prediction:
        """The prediction at a batch of inputs."""
        options = self.options
        with torch.no_grad(), denormals_as_zero():
            mean, factor, ridge = self._moments(x)
            if self.likelihood.has_closed_form and not options.return_draws:
                flat = factor.flatten(2).movedim(0, -1)
                covariance = flat @ flat.mT + torch.diag_embed(ridge.expand(mean.shape).flatten(1))
                if (found := self.likelihood.closed_form(mean, covariance, options.num_samples)) is not None:
                    found.targets = targets
                    return found
            reduction = self.likelihood.reduction(
                options.num_samples, keep=options.return_draws, max_bytes=options.max_bytes
            )
            for functions in self._functions(mean, factor, ridge):
                reduction.add(torch.func.vmap(reduction.summary)(functions))
            return reduction.finish(targets)

    def joint(self, x: Any) -> JointPrediction:
        """Functions at a set of inputs, and the covariance of all outputs at all of them."""
        with torch.no_grad(), denormals_as_zero():
            mean, factor, ridge = self._moments(x)
            draws = torch.cat(list(self._functions(mean, factor, ridge)))
            parameters = parameters_under(self.likelihood, draws)
            covariance = targets = None
            if self.options.exact:
                flat = factor.flatten(1)
                covariance = flat.mT @ flat + ridge.expand(mean.shape).flatten().diag()
                targets = self.likelihood.closed_form(mean.unsqueeze(0), covariance.unsqueeze(0), len(draws))
            return JointPrediction(mean, draws, parameters, self.likelihood, covariance, targets)
