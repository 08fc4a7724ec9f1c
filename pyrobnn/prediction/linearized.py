r"""The linearised predictive of a Laplace approximation (the GLM predictive).

The Gauss–Newton matrix is the Hessian of the network's *linearisation* at the mode, so that network should predict:

.. math::  f(x; w) \approx f(x; \hat w) + J(x) (w - \hat w) \quad\Rightarrow\quad
           f(x) \sim N\big(f(x; \hat w),\; J(x)\, \Sigma\, J(x)^\top\big).

Gaussian targets then have a closed form. For classes there are draws of the outputs, cheap because the network is run
once, or MacKay's probit approximation without draws,

.. math::  p \approx \mathrm{softmax}\big(f / \sqrt{1 + \tfrac\pi8 v}\big), \qquad v = \mathrm{diag}(J \Sigma J^\top),

which leaves out the correlations of a softmax's outputs: what they vary in common cancels in the softmax but not in v,
and probabilities come out too even.

MacKay (1992); Khan et al. (2019); Immer, Korzepa & Bauer, *Improving predictions of Bayesian neural nets via local
linearization* (2021).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from pyrobnn import likelihoods, random_state
from pyrobnn.bayesianize import evaluating, frozen_buffers
from pyrobnn.curvature import outputs_and_jacobians
from pyrobnn.guides.laplace import Laplace
from pyrobnn.prediction.reductions import Moments, Probabilities
from pyrobnn.prediction.result import Prediction
from pyrobnn.prediction.runners import num_rows, to_device
from pyrobnn.substitution import Substitution
from pyrobnn.supervised import SupervisedModel

__all__ = ["GaussianPrediction", "predict_linearized"]

Link = Literal["probit", "samples"]


@dataclass
class GaussianPrediction(Prediction):
    """A Gaussian predictive in closed form: :meth:`log_prob`, :meth:`sample` and :meth:`interval` are exact.

    Attributes:
        covariance: Of the targets of one input, ``[N, D, D]`` for ``D`` targets in the order of the flattened mean.
    """

    covariance: Tensor = field(default_factory=lambda: torch.empty(0), repr=False)

    def log_prob(self, y: Tensor) -> Tensor:
        """Joint log density of each input's targets, in nats.

        Raises:
            ValueError: If ``y`` has the wrong shape.
        """
        if y.shape != self.mean.shape:
            raise ValueError(f"y: expected targets of shape {tuple(self.mean.shape)}, got {tuple(y.shape)}.")
        return self._joint().log_prob(y.to(self.mean).flatten(1))

    def sample(self) -> Tensor:
        """``num_samples`` targets for each input, ``[K, N, …]``."""
        return self._joint().sample((self.num_samples,)).reshape(-1, *self.mean.shape)

    def interval(self, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """Central predictive interval of each target.

        Raises:
            ValueError: If ``level`` is not between 0 and 1.
        """
        if not 0 < level < 1:
            raise ValueError(f"level: expected a coverage between 0 and 1, got {level}.")
        reach = math.sqrt(2.0) * torch.erfinv(self.std.new_tensor(level)) * self.std
        return self.mean - reach, self.mean + reach

    def _joint(self) -> torch.distributions.MultivariateNormal:
        return torch.distributions.MultivariateNormal(self.mean.flatten(1), self.covariance)


def predict_linearized(
    model: nn.Module,
    laplace: Laplace,
    x: Any,
    num_samples: int = 100,
    *,
    link: Link = "samples",
    given: Mapping[str, Tensor] | None = None,
    seed: int | None = None,
    max_bytes: int = 256 * 2**20,
) -> Prediction:
    """The posterior predictive of the network's linearisation at the mode.

    Args:
        model: The model that ``laplace`` was fitted to.
        laplace: The fitted guide.
        x: A batch of inputs: a tensor, or a tuple or dict of tensors.
        num_samples: Draws of the outputs: for ``"samples"``, for likelihoods with neither a closed form nor classes,
            and to tell aleatoric from epistemic uncertainty under ``"probit"``.
        link: How outputs become class probabilities; other likelihoods ignore it.
        given: Values of sites that ``laplace`` is not for (``only``).
        seed: Fixes the draws, and leaves torch's random state alone; None takes a seed from it.
        max_bytes: Budget for Jacobians.

    Returns:
        The prediction; for :class:`~pyrobnn.likelihoods.Normal` a :class:`GaussianPrediction`. Under ``"probit"`` the
        mean entropy of the draws, at most the total, is the aleatoric part.

    Raises:
        TypeError: If ``model`` or ``laplace`` is of another kind.
        ValueError: If ``link`` is unknown or there are no inputs.
        RuntimeError: If ``laplace`` has not been fitted.
    """
    if not isinstance(model, SupervisedModel):
        raise TypeError(f"model: expected a SupervisedModel, got {type(model).__name__}.")
    if not isinstance(laplace, Laplace):
        raise TypeError(f"laplace: expected a Laplace guide, got {type(laplace).__name__}; use predict for others.")
    if link not in get_args(Link):
        raise ValueError(f"link: expected 'probit' or 'samples', got {link!r}.")
    if not num_rows(x):
        raise ValueError("x: it holds no inputs.")
    x = to_device(x, laplace.mean.device)
    with torch.no_grad(), evaluating(model), frozen_buffers(model):
        values = laplace.mode() | dict(given or {})
        outputs, covariance = _latent(model, laplace, values, x, max_bytes)
        with contextlib.ExitStack() as stack:
            stack.enter_context(Substitution(values))
            if type(model.likelihood) is likelihoods.Normal:
                return _gaussian(model.likelihood, outputs, covariance, num_samples)
            if seed is not None:
                stack.enter_context(random_state.seeded(seed, outputs.device))
            return _drawn(model.likelihood, outputs, covariance, num_samples, link)


def _latent(
    model: SupervisedModel, laplace: Laplace, values: Mapping[str, Tensor], x: Any, max_bytes: int
) -> tuple[Tensor, Tensor]:
    """Outputs at the mode ``[N, ...]`` and their covariances ``[N, O, O]``."""
    chunks = outputs_and_jacobians(model, values, laplace.covered, x, max_bytes=max_bytes)
    outputs, covariances = zip(*((f, laplace.output_covariance(jacobian)) for f, jacobian in chunks), strict=True)
    return torch.cat(outputs), torch.cat(covariances)


def _gaussian(
    likelihood: likelihoods.Normal, outputs: Tensor, covariance: Tensor, num_samples: int
) -> GaussianPrediction:
    mean, aleatoric = likelihood.moments(outputs)
    epistemic = covariance.diagonal(dim1=-2, dim2=-1).reshape(mean.shape)
    return GaussianPrediction(
        mean=mean,
        total=aleatoric + epistemic,
        aleatoric=aleatoric,
        epistemic=epistemic,
        num_samples=num_samples,
        likelihood=likelihood,
        covariance=covariance + torch.diag_embed(aleatoric.flatten(1)),
    )


def _drawn(
    likelihood: likelihoods.Likelihood, outputs: Tensor, covariance: Tensor, num_samples: int, link: Link
) -> Prediction:
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    # The symmetric root: unlike the eigenvectors it is unique, so rounding does not change the draws.
    root = vectors * eigenvalues.clamp_min(0.0).sqrt().unsqueeze(-2) @ vectors.mT
    kind: Any = Probabilities if likelihood.is_discrete else Moments
    reduction = kind(num_samples, keep=False, max_bytes=256 * 2**20)
    for _ in range(num_samples):
        noise = torch.randn_like(outputs).flatten(1).unsqueeze(-1)
        draw = outputs + (root @ noise).reshape(outputs.shape)
        if likelihood.is_discrete:
            reduction.add(likelihood.probabilities(draw).unsqueeze(0))
        else:
            mean, variance = likelihood.moments(draw)
            reduction.add(mean.unsqueeze(0), variance.unsqueeze(0))
    prediction: Prediction = reduction.finish(likelihood, None)
    if link == "samples" or not likelihood.is_discrete:
        return prediction
    variance = covariance.diagonal(dim1=-2, dim2=-1).reshape(outputs.shape)
    probs = likelihood.probabilities(outputs / (1.0 + math.pi / 8.0 * variance).sqrt())
    total = torch.special.entr(probs).sum(-1)
    aleatoric = torch.minimum(prediction.aleatoric, total)
    return replace(prediction, mean=probs, total=total, aleatoric=aleatoric, epistemic=total - aleatoric)
