r"""The linearized predictive of a Laplace approximation (the GLM predictive).

The Gauss–Newton matrix is the Hessian of the network's *linearization* at the mode, so that network should predict:

.. math::  f(x; w) \approx f(x; \hat w) + J(x) (w - \hat w) \quad\Rightarrow\quad
           f(x) \sim N\big(f(x; \hat w),\; J(x)\, \Sigma\, J(x)^\top\big).

Gaussian targets then have a closed form (:meth:`pyrobnn.likelihoods.Likelihood.closed_form`). Else there are draws of
the linearized network: K draws of the weights, the same for all inputs, at the cost of one run and its Jacobian. For
classes there is also MacKay's probit approximation without draws,

.. math::  p \approx \mathrm{softmax}\big(f / \sqrt{1 + \tfrac\pi8 v}\big), \qquad v = \mathrm{diag}(J \Sigma J^\top),

which leaves out the correlations of a softmax's outputs: what they vary in common cancels in the softmax but not in v,
and probabilities come out too even.

MacKay (1992); Khan et al. (2019); Immer, Korzepa & Bauer, *Improving predictions of Bayesian neural nets via local
linearization* (2021).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.core.gradient_modes import gradients_enabled, ordinary
from pyrobnn.core.trees import is_empty, map_leaves
from pyrobnn.curvature import Derivatives
from pyrobnn.guides.base import Guide
from pyrobnn.model.agreement import check_given
from pyrobnn.model.bayesianize import evaluating, frozen_buffers
from pyrobnn.model.likelihoods import ClassLikelihood
from pyrobnn.model.likelihoods.predictions import ClassPrediction, Prediction
from pyrobnn.model.substitution import SubstituteMessenger
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.prediction.draws import PinnedDraws
from pyrobnn.prediction.joint_prediction import JointPrediction, parameters_under
from pyrobnn.prediction.predictor import Link, Predictor, PredictorOptions
from pyrobnn.prediction.runners import inputs_on

__all__ = ["LinearizedPredictor", "predict_linearized"]


def predict_linearized(
    model: nn.Module,
    laplace: Guide,
    x: Any,
    num_samples: int = 100,
    *,
    link: Link = "samples",
    given: Mapping[str, Tensor] | None = None,
    return_draws: bool = False,
    seed: int | None = None,
    max_bytes: int = 256 * 2**20,
) -> Prediction:
    """The posterior predictive of the network's linearization at the mode, of one batch and with all options.

    :func:`pyrobnn.predict` does the same, batch by batch, for a Laplace approximation over hidden layers.

    Args:
        model: The model that ``laplace`` was fitted to.
        laplace: The fitted guide.
        x: A batch of inputs: a tensor, or a tuple or dict of tensors.
        num_samples: Draws of the linearized network: for ``"samples"``, for likelihoods with neither a closed form nor
            classes, and to tell aleatoric from epistemic uncertainty under ``"probit"``.
        link: How outputs become class probabilities; other likelihoods ignore it.
        given: Values of sites that ``laplace`` does not have (``sites``).
        return_draws: Keep the parameters of each draw; draws are then made even where there is a closed form.
        seed: Fixes the draws, and leaves torch's random state alone; None takes a seed from it.
        max_bytes: Budget for Jacobians, draws and kept results.

    Returns:
        The prediction; for :class:`~pyrobnn.likelihoods.Normal` a
        :class:`~pyrobnn.prediction.GaussianPrediction`. Under ``"probit"`` the mean entropy of the draws, at most the
        total, is the aleatoric part.

    Raises:
        TypeError: If ``model`` is of another kind or ``laplace`` declares no linearization.
        ValueError: If ``link`` is unknown or there are no inputs.
        RuntimeError: If ``laplace`` has not been fitted.
    """
    options = PredictorOptions(
        num_samples, return_draws=return_draws, max_bytes=max_bytes, seed=seed, link=link, given=given
    )
    return LinearizedPredictor(model, laplace, options)(x)


class LinearizedPredictor(Predictor):
    """The network's linearization at the mode, under draws of the weights or in closed form.

    Args:
        model: The model that the guide was fitted to.
        guide: The fitted Laplace approximation.
        options: How to predict.

    Raises:
        TypeError: If ``model`` is of another kind or ``guide`` declares no linearization.
        ValueError: If ``link`` is unknown.
        RuntimeError: If ``guide`` has not been fitted.
    """

    def __init__(self, model: nn.Module, guide: Any, options: PredictorOptions) -> None:
        if not isinstance(model, SupervisedModel):
            raise TypeError(f"model: expected a SupervisedModel, got {type(model).__name__}.")
        linearization = guide.linearization() if isinstance(guide, Guide) else None
        if linearization is None:
            raise TypeError(
                f"guide: {type(guide).__name__} declares no linearization, as Laplace does; it is predicted from draws "
                "of the weights (predict, predictor='weights')."
            )
        check_given(model, options.given or {})
        self.model, self.guide, self.gaussian, self.options = model, guide, linearization, options
        self.likelihood = model.likelihood if options.likelihood is None else options.likelihood
        self.values = {**linearization.mode, **(options.given or {})}
        self.derivatives = Derivatives(model, self.values, linearization.covered, options.max_bytes // 4)

    @cached_property
    def draws(self) -> PinnedDraws:
        """Draws of the weights, made when they are first needed."""
        options = self.options
        return PinnedDraws(self.guide, options.num_samples, options.max_bytes // 2, seed=options.seed)

    def __call__(self, x: Any, targets: Tensor | None = None) -> Prediction:
        """The prediction at a batch of inputs.

        Raises:
            ValueError: If there are no inputs.
        """
        if is_empty(x):
            raise ValueError("x: it holds no inputs.")
        x = map_leaves(_ordinary, inputs_on(x, next(iter(self.values.values())).device))
        with gradients_enabled(), torch.no_grad(), evaluating(self.model), frozen_buffers(self.model):
            outputs = self.derivatives.outputs(x)
            if self._is_sampled and not self.derivatives.fits(outputs):
                found = self._without_jacobians(x, outputs)
            else:
                found = Prediction.join([self._predicted(block) for block in self._blocks(x, outputs)])
        return replace(found, targets=targets)

    def joint(self, x: Any) -> JointPrediction:
        """Functions ``f(x; ŵ) + J(x) (w_k - ŵ)``, linear in drawn weights, and the covariance ``J Σ Jᵀ`` of the set.

        Raises:
            ValueError: If there are no inputs, or the set's Jacobian exceeds the budget.
        """
        if is_empty(x):
            raise ValueError("x: it holds no inputs.")
        x = map_leaves(_ordinary, inputs_on(x, next(iter(self.values.values())).device))
        with gradients_enabled(), torch.no_grad(), evaluating(self.model), frozen_buffers(self.model):
            outputs = self.derivatives.outputs(x)
            steps = torch.cat([self._steps(chunk) for chunk in self.draws])
            covariance = None
            if self.options.exact:
                jacobian = self._whole_jacobian(x, outputs)
                covariance = self.gaussian.covariance(jacobian)
                moved = steps @ jacobian.mT
            elif self.derivatives.fits(outputs):
                moved = torch.cat(
                    [(steps @ part.flatten(0, 1).mT) for _, part in self.derivatives.jacobians(x, outputs)], 1
                )
            else:
                change = self.derivatives.changes(x)
                moved = torch.stack([change(step).flatten() for step in steps])
            draws = outputs + moved.reshape(-1, *outputs.shape)
            with SubstituteMessenger(self.values):
                parameters = parameters_under(self.likelihood, draws)
                targets = None
                if covariance is not None:
                    targets = self.likelihood.closed_form(outputs.unsqueeze(0), covariance.unsqueeze(0), len(draws))
        mean = outputs if self.options.exact else draws.mean(0)
        return JointPrediction(mean, draws, parameters, self.likelihood, covariance, targets)

    def _whole_jacobian(self, x: Any, outputs: Tensor) -> Tensor:
        """``[N · O, n]``, refused where it exceeds the budget."""
        needed = outputs.numel() * self.derivatives.size * outputs.element_size()
        if needed > self.options.max_bytes:
            raise ValueError(
                f"max_bytes: the exact covariance of {len(outputs)} inputs needs a Jacobian of {needed / 2**20:.0f} "
                f"MiB, beyond the budget of {self.options.max_bytes / 2**20:.0f} MiB; raise max_bytes, or pass "
                "exact=False for the covariance of the draws."
            )
        return torch.cat([part.flatten(0, 1) for _, part in self.derivatives.jacobians(x, outputs)])

    @property
    def _is_sampled(self) -> bool:
        """Whether predictions are made of draws alone, whatever the outputs."""
        is_probit = self.options.link == "probit" and isinstance(self.likelihood, ClassLikelihood)
        return (not self.likelihood.has_closed_form or self.options.return_draws) and not is_probit

    def _without_jacobians(self, x: Any, outputs: Tensor) -> Prediction:
        """The prediction where the Jacobian of one input is too large: a product with it for each draw."""
        options, change = self.options, self.derivatives.changes(x)
        reduction = self.likelihood.reduction(
            options.num_samples, keep=options.return_draws, max_bytes=options.max_bytes
        )
        for chunk in self.draws:
            for step in self._steps(chunk):
                with SubstituteMessenger(self.values):
                    summary = reduction.summary(outputs + change(step))
                reduction.add({name: value.unsqueeze(0) for name, value in summary.items()})
        return reduction.finish(None)

    def _steps(self, draws: Mapping[str, Tensor]) -> Tensor:
        """``w_k - ŵ`` of the covered sites, ``[k, n]``."""
        return torch.cat([(draws[name] - self.values[name]).flatten(1) for name in self.gaussian.covered], 1)

    def _blocks(self, x: Any, whole: Tensor) -> Iterator[_Block]:
        """The inputs' outputs in blocks within the budget, each of several chunks of Jacobians."""
        pending: list[_Block] = []
        needs_covariance, needs_draws = True, True
        for chosen, jacobian in self.derivatives.jacobians(x, whole):
            outputs = whole[chosen]
            if not pending:
                needs_draws = self._closed_form(outputs[:1], self.gaussian.covariance(jacobian[:1])) is None
                needs_covariance = not needs_draws or self.options.link == "probit"
            covariance = self.gaussian.covariance(jacobian) if needs_covariance else None
            pending.append(_Block(outputs, covariance, self._deviations(jacobian) if needs_draws else None))
            if sum(block.nbytes for block in pending) > self.options.max_bytes // 4:
                yield _Block.join(pending)
                pending = []
        if pending:
            yield _Block.join(pending)

    def _deviations(self, jacobian: Tensor) -> Tensor:
        """``J (w_k - ŵ)`` for each draw, ``[K, n, O]``."""
        return torch.cat([(jacobian @ self._steps(chunk).mT).movedim(-1, 0) for chunk in self.draws])

    def _closed_form(self, outputs: Tensor, covariance: Tensor) -> Prediction | None:
        if self.options.return_draws:
            return None
        with SubstituteMessenger(self.values):
            return self.likelihood.closed_form(outputs, covariance, self.options.num_samples)

    def _predicted(self, block: _Block) -> Prediction:
        if block.deviations is None:
            assert block.covariance is not None
            exact = self._closed_form(block.outputs, block.covariance)
            assert exact is not None
            return exact
        options, likelihood = self.options, self.likelihood
        reduction = likelihood.reduction(options.num_samples, keep=options.return_draws, max_bytes=options.max_bytes)
        with SubstituteMessenger(self.values):
            draws = block.outputs + block.deviations.reshape(-1, *block.outputs.shape)
            reduction.add(torch.func.vmap(reduction.summary)(draws))
            prediction = reduction.finish(None)
            if options.link == "probit" and isinstance(likelihood, ClassLikelihood):
                assert block.covariance is not None
                return self._probit(prediction, likelihood, block.outputs, block.covariance)
        return prediction

    @staticmethod
    def _probit(prediction: Prediction, likelihood: ClassLikelihood, outputs: Tensor, covariance: Tensor) -> Prediction:
        assert isinstance(prediction, ClassPrediction)
        variance = covariance.diagonal(dim1=-2, dim2=-1).reshape(outputs.shape)
        log_mean = likelihood.log_probabilities(outputs / (1.0 + math.pi / 8.0 * variance).sqrt())
        mean = log_mean.exp()
        total = torch.special.entr(mean).sum(-1)
        aleatoric = torch.minimum(prediction.aleatoric, total)
        return replace(
            prediction, mean=mean, log_mean=log_mean, total=total, aleatoric=aleatoric, epistemic=total - aleatoric
        )


def _ordinary(leaf: Any) -> Any:
    return ordinary(leaf) if isinstance(leaf, Tensor) else leaf


@dataclass
class _Block:
    """Outputs ``[n, ...]``, and as needed their covariances ``[n, O, O]`` and deviations under draws ``[K, n, O]``."""

    outputs: Tensor
    covariance: Tensor | None
    deviations: Tensor | None

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in (self.covariance, self.deviations) if tensor is not None)

    @classmethod
    def join(cls, blocks: list[_Block]) -> _Block:
        def cat(tensors: list[Tensor | None], dim: int = 0) -> Tensor | None:
            present = [tensor for tensor in tensors if tensor is not None]
            return torch.cat(present, dim) if present else None

        return cls(
            torch.cat([block.outputs for block in blocks]),
            cat([block.covariance for block in blocks]),
            cat([block.deviations for block in blocks], 1),
        )
