r"""infinite_width(): the posterior over functions of the infinitely wide network, as a Gaussian process.

With K the kernel of the network at the training inputs (:func:`~pyrobnn.function_space.kernel`), σ the noise and
``A = K_* (K + σ² I)^{-1}``

.. math::  E[f_*] = A\, y, \qquad \mathrm{Cov}[f_*] = K_{**} - A K_*^\top,

exact for Normal noise, with independent outputs. ``kind="ntk"`` is the ensemble of infinitely many wide networks, each
trained by gradient flow on squared error to the end from a draw of the prior, with Θ the tangent kernel in units of the
prior's scales (Jacot et al. 2018; Lee et al. 2019): with ``A = Θ_* Θ^{-1}``

.. math::  E[f_*] = A\, y, \qquad \mathrm{Cov}[f_*] = K_{**} - A K_*^\top - K_* A^\top + A K A^\top .

These networks interpolate the targets; the noise of the likelihood enters predictions alone.

**Jitter.** 1e-8 of the mean variance is added to the diagonal of K or Θ. A matrix that is not positive definite then is
refused, by its smallest eigenvalue. **Cost.** ``n³ / 3`` operations and two matrices of ``n²`` numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.core import random_state
from pyrobnn.core.batches import Reader, inputs_of
from pyrobnn.core.explanations import explained
from pyrobnn.core.finite import check_inputs
from pyrobnn.function_space.evidence import fitted_noise, log_evidence_of, num_outputs
from pyrobnn.function_space.gaussians import Jitter, factorized
from pyrobnn.function_space.nngp import Kind, kernel, kernel_diagonal
from pyrobnn.function_space.process_noise import log_largest, stated_noise, targets_of
from pyrobnn.model.likelihoods import ClassLikelihood, Normal
from pyrobnn.model.likelihoods.predictions import Prediction
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.prediction.function_posterior import FunctionPosterior
from pyrobnn.prediction.joint_prediction import JointPrediction, parameters_under
from pyrobnn.prediction.predict import predict
from pyrobnn.prediction.predictor import Predictor, PredictorOptions

__all__ = ["InfiniteWidth", "infinite_width", "whole"]


@explained
def infinite_width(
    model: SupervisedModel,
    x: Tensor | Iterable[Any],
    y: Tensor | None = None,
    *,
    kind: Kind = "nngp",
    noise: float | None = None,
    jitter: float = 1e-8,
    batch: Reader | None = None,
) -> InfiniteWidth:
    """The posterior of the infinitely wide network given data, which predicts like any other posterior.

    ::

        gp = pb.function_space.infinite_width(model, x, y)     # or a loader in place of x and y
        prediction = gp.predict(x_test)                        # pb.predict(model, gp, x_test), pb.report(model, gp, …)

    Args:
        model: The model: its network has a limit, its likelihood is Normal, or one of classes, which are regressed on
            as one-hot vectors less ``1 / C``.
        x: All training inputs ``[N, ...]``; or a loader of all training data, if ``y`` is None.
        y: Targets ``[N, O]``, or labels ``[N]``.
        kind: ``"nngp"``, the Bayesian posterior; ``"ntk"``, the ensemble of trained networks.
        noise: Standard deviation of the noise. None: the likelihood's; the one of the largest evidence where it is to
            be learned and was not trained, and for classes.
        jitter: Added to the kernel's diagonal, as a share of its mean.
        batch: How batches of a loader are read, as for :func:`pyrobnn.fit`.

    Raises:
        TypeError: If the model, its likelihood or an argument is of the wrong kind.
        ValueError: If a layer or prior has no limit, data do not fit the model, or the covariance is not positive
            definite after the jitter (the message has both jitter and smallest eigenvalue).
    """
    if not isinstance(model, SupervisedModel):
        raise TypeError(f"model: expected a SupervisedModel, got {type(model).__name__}.")
    if y is None:
        x, y = whole(x, batch)
    return InfiniteWidth(model, x, y, kind, noise, Jitter.of(jitter, "jitter"))


class InfiniteWidth(FunctionPosterior):
    """The posterior that :func:`infinite_width` makes.

    Attributes:
        model: The model.
        kind: Which kernel it is of.
        noise: Standard deviation of the noise by output ``[O]``.
        jitter: What was added to the kernel's diagonal.
        log_evidence: In nats, of the targets that were regressed on; None for ``"ntk"``, which is no posterior.
    """

    def __init__(self, model: SupervisedModel, x: Any, y: Any, kind: Kind, noise: float | None, jitter: Jitter) -> None:
        outputs = num_outputs(model, x)
        check_inputs(x, 0)
        targets = targets_of(model, y, outputs)
        if not len(x) == len(targets) == model.num_data:
            raise ValueError(
                f"x, y: expected all {model.num_data} training data of the model, got {len(x)} inputs and "
                f"{len(targets)} targets."
            )
        self.model, self.kind, self.jitter, self._x = model, kind, jitter, x
        with torch.no_grad():
            prior = kernel(model, x)
            given = stated_noise(model, noise, outputs)
            self.noise = fitted_noise(model, prior, targets, jitter) if given is None else given
            self.log_evidence = None
            if kind == "nngp":
                self.log_evidence = float(log_evidence_of(prior, targets, self.noise, jitter))
            fitted = prior if kind == "nngp" else kernel(model, x, kind=kind)
            eye = torch.eye(len(x), dtype=prior.dtype, device=prior.device)
            fitted = fitted + jitter(fitted.diagonal()) * eye
            self._prior = None if kind == "nngp" else prior
            self._roots, self._solved = [], torch.empty_like(targets)
            variances = self.noise.square() if kind == "nngp" else torch.zeros_like(self.noise)
            distinct, self._which = variances.unique(return_inverse=True)
            for index, variance in enumerate(distinct):
                root = factorized(fitted + variance * eye, "kernel", str(jitter))
                chosen = self._which == index
                self._solved[:, chosen] = torch.cholesky_solve(targets[:, chosen], root)
                self._roots.append(root)

    @explained
    def predict(self, data: Any, num_samples: int = 100, **options: Any) -> Prediction:
        """The prediction at inputs, as :func:`pyrobnn.predict` makes it; ``options`` are those of that function."""
        return predict(self.model, self, data, num_samples, **options)

    def predictor(self, model: nn.Module, options: PredictorOptions) -> Predictor:
        """The predictor.

        Raises:
            ValueError: If the model is another one.
        """
        if model is not self.model:
            raise ValueError("guide: it is the posterior of another model; pass the model that it was made with.")
        return _Process(self, options)

    def moments(self, x: Tensor, joint: bool) -> tuple[Tensor, Tensor]:
        """Mean ``[N, O]`` of the functions, and their covariances ``[O, N, N]`` (variances ``[O, N]`` if not joint)."""
        cross = kernel(self.model, x, self._x, kind=self.kind)
        own = kernel(self.model, x) if joint else kernel_diagonal(self.model, x)
        found = []
        for root in self._roots:
            if self._prior is None:
                white = torch.linalg.solve_triangular(root, cross.mT, upper=False)
                found.append(own - white.mT @ white if joint else own - white.square().sum(0))
                continue
            weights = torch.cholesky_solve(cross.mT, root).mT
            between = kernel(self.model, x, self._x)
            spread = weights @ self._prior
            if joint:
                found.append(own - weights @ between.mT - between @ weights.mT + spread @ weights.mT)
            else:
                found.append(own - 2.0 * (weights * between).sum(1) + (spread * weights).sum(1))
        covariances = torch.stack(found)
        # Rounding may make them uneven, or negative.
        covariances = 0.5 * (covariances + covariances.mT) if joint else covariances.clamp_min(0.0)
        return cross @ self._solved, covariances[self._which]


class _Process(Predictor):
    """Predictions by the Gaussian process; in closed form for regression, else by draws of functions."""

    def __init__(self, posterior: InfiniteWidth, options: PredictorOptions) -> None:
        self.posterior, self.options = posterior, options
        model = posterior.model
        self.dtype = next(model.net.network.parameters()).dtype
        own = model.likelihood
        if isinstance(own, Normal):  # with the noise of the posterior
            own = Normal(posterior.noise)
        self.likelihood = own if options.likelihood is None else options.likelihood
        seed = random_state.fresh_seed() if options.seed is None else options.seed
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, x: Any, targets: Tensor | None = None) -> Prediction:
        """The prediction at a batch of inputs; rows are marginals, whose draws are independent of each other."""
        options, likelihood = self.options, self.likelihood
        with torch.no_grad():
            mean, variances = self.posterior.moments(x, joint=False)
            variances = variances.mT
            if likelihood.has_closed_form and not options.return_draws:
                exact = likelihood.closed_form(
                    mean.to(self.dtype), torch.diag_embed(variances.to(self.dtype)), options.num_samples
                )
                if exact is not None:
                    exact.targets = targets
                    return exact
            reduction = likelihood.reduction(
                options.num_samples, keep=options.return_draws, max_bytes=options.max_bytes
            )
            size = max(1, options.max_bytes // max(1, 4 * 65 * mean.nbytes))
            for start in range(0, options.num_samples, size):
                count = min(size, options.num_samples - start)
                noise = torch.randn(count, *mean.shape, generator=self._generator, dtype=mean.dtype).to(mean.device)
                functions = self._outputs(mean + variances.sqrt() * noise)
                reduction.add(torch.func.vmap(reduction.summary)(functions))
            return reduction.finish(targets)

    def joint(self, x: Any) -> JointPrediction:
        """Functions at a set of inputs; of classes these are log probabilities, whose covariance is that of draws."""
        likelihood, options = self.likelihood, self.options
        with torch.no_grad():
            mean, covariances = self.posterior.moments(x, joint=True)
            values, vectors = torch.linalg.eigh(covariances)
            roots = vectors * values.clamp_min(0.0).sqrt().unsqueeze(1)  # [O, N, N]
            noise = torch.randn(options.num_samples, *mean.mT.shape, generator=self._generator, dtype=mean.dtype).to(
                mean.device
            )
            draws = mean + torch.einsum("onm,kom->kno", roots, noise)
            if isinstance(likelihood, ClassLikelihood):
                outputs = self._outputs(draws)
                return JointPrediction(outputs.mean(0), outputs, parameters_under(likelihood, outputs), likelihood)
            covariance = targets = None
            if options.exact:
                count, outputs_count = mean.shape
                covariance = mean.new_zeros(count, outputs_count, count, outputs_count)
                covariance.diagonal(dim1=1, dim2=3).copy_(covariances.movedim(0, -1))
                covariance = covariance.reshape(count * outputs_count, count * outputs_count)
                targets = likelihood.closed_form(mean.unsqueeze(0), covariance.unsqueeze(0), options.num_samples)
            return JointPrediction(mean, draws, parameters_under(likelihood, draws), likelihood, covariance, targets)

    def _outputs(self, functions: Tensor) -> Tensor:
        """What the likelihood is given: of classes the log probabilities of the largest score."""
        if isinstance(self.likelihood, ClassLikelihood):
            functions = log_largest(functions, self.posterior.noise[0].to(functions.device))
        return functions.to(self.dtype)


def whole(loader: Any, reader: Reader | None) -> tuple[Tensor, Tensor]:
    """All inputs and targets of a loader.

    Raises:
        TypeError: If it is no loader of pairs of tensors.
        ValueError: If it holds no data.
    """
    if isinstance(loader, Tensor) or not isinstance(loader, Iterable):
        raise TypeError("y: pass targets with a tensor of inputs, or a loader of (inputs, targets) in place of both.")
    pairs = [inputs_of(raw, reader=reader) for raw in loader]
    if not pairs:
        raise ValueError("x: the loader holds no data.")
    for x, y in pairs:
        if not isinstance(x, Tensor) or not isinstance(y, Tensor):
            raise TypeError("x: expected a loader of pairs of tensors, inputs and targets.")
    return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])
