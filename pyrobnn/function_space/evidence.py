r"""The evidence of infinitely wide networks, exact for Gaussian noise: for priors, and for the noise.

.. math::  \log p(y) = -\tfrac12 y^\top (K + \sigma^2 I)^{-1} y - \tfrac12 \log\det(K + \sigma^2 I)
           - \tfrac n2 \log 2\pi,

summed over independent outputs; K is the kernel plus a jitter of 1e-8 of its mean variance. Of classes it is that of
the regression on one-hot targets less their mean, which ranks priors but is no probability of labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyrobnn.core.explanations import explained
from pyrobnn.function_space.gaussians import Jitter, factorized
from pyrobnn.function_space.nngp import kernel
from pyrobnn.function_space.prior_scales import network_of, prior_scales
from pyrobnn.function_space.process_noise import stated_noise, targets_of
from pyrobnn.model.bayesianize import evaluating
from pyrobnn.model.likelihoods import Normal
from pyrobnn.model.supervised import SupervisedModel

__all__ = ["fitted_noise", "log_evidence", "log_evidence_of", "most_probable_scales", "num_outputs"]

_REACH = (1e-3, 10.0)  # of σ, in root mean squares of the targets


@explained
def log_evidence(
    model: SupervisedModel,
    x: Tensor,
    y: Tensor,
    *,
    scales: Mapping[str, Tensor] | None = None,
    noise: float | Tensor | None = None,
    jitter: float = 1e-8,
) -> Tensor:
    """The log evidence of the infinitely wide network, with gradients for scales and noise that require them.

    Args:
        model: The model; its likelihood is Normal, or of classes (regression on one-hot targets).
        x: All inputs ``[N, ...]``.
        y: All targets ``[N, O]``, or labels ``[N]``.
        scales: Prior standard deviations by parameter, in place of the model's.
        noise: Standard deviation of the noise, a number or one for each output ``[O]``; None for the likelihood's, or
            for that of the largest evidence where the likelihood has none.
        jitter: Added to the kernel's diagonal, as a share of its mean.

    Returns:
        Nats, a scalar in double precision.

    Raises:
        TypeError: If an argument or the likelihood is of the wrong kind.
        ValueError: If there is no limit, targets do not fit, or the covariance is not positive definite after the
            jitter (the message has both jitter and smallest eigenvalue).
    """
    if not isinstance(model, SupervisedModel):
        raise TypeError(f"model: expected a SupervisedModel, got {type(model).__name__}.")
    outputs = num_outputs(model, x)
    targets = targets_of(model, y, outputs)
    covariance = kernel(model, x, scales=scales)
    if len(targets) != len(covariance):
        raise ValueError(f"y: expected a target for each of the {len(covariance)} inputs, got {len(targets)}.")
    if isinstance(noise, Tensor):
        if noise.numel() not in (1, outputs) or not bool((noise.detach() > 0).all()):
            raise ValueError(f"noise: expected positive numbers, one or [{outputs}], got {noise!r}.")
        sigma: Tensor | None = noise.double().reshape(-1).expand(outputs)
    else:
        sigma = stated_noise(model, noise, outputs)
    if sigma is None:
        sigma = fitted_noise(model, covariance.detach(), targets, Jitter.of(jitter, "jitter"))
    return log_evidence_of(covariance, targets, sigma, Jitter.of(jitter, "jitter"))


def log_evidence_of(covariance: Tensor, targets: Tensor, noise: Tensor, jitter: Jitter) -> Tensor:
    """The log evidence of targets ``[N, O]`` under a kernel's matrix and noise ``[O]``."""
    targets, noise = targets.to(covariance.device), noise.to(covariance.device)
    eye = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    own = covariance + jitter(covariance.diagonal()) * eye
    total: Tensor | float = 0.0
    distinct, which = noise.detach().unique(return_inverse=True)
    for index in range(len(distinct)):
        chosen = (which == index).nonzero().flatten()
        root = factorized(own + noise[chosen[0]].square() * eye, "kernel", str(jitter))
        white = torch.linalg.solve_triangular(root, targets[:, chosen], upper=False)
        halves = root.diagonal().log().sum() + 0.5 * len(targets) * math.log(2.0 * math.pi)
        total = total - 0.5 * white.square().sum() - len(chosen) * halves
    return torch.as_tensor(total)


def fitted_noise(model: SupervisedModel, covariance: Tensor, targets: Tensor, jitter: Jitter) -> Tensor:
    """σ ``[O]`` of the largest evidence: one for all outputs, or one for each where the likelihood has as many."""
    from scipy.optimize import minimize_scalar

    outputs = targets.shape[1]
    likelihood = model.likelihood
    by_output = isinstance(likelihood, Normal) and likelihood.noise_scale().numel() > 1
    found = torch.empty(outputs, dtype=torch.float64)
    at_noise: Callable[[float, slice], float]
    if covariance.is_cuda:  # where Choleskys are fast
        at_noise = partial(_by_cholesky, covariance, targets, jitter)
    else:
        at_noise = _TridiagonalEvidence(covariance, targets, jitter)
    for chosen in [slice(k, k + 1) for k in range(outputs)] if by_output else [slice(0, outputs)]:
        size = max(float(targets[:, chosen].square().mean().sqrt()), 1e-12)

        def loss(log_noise: float, chosen: slice = chosen) -> float:
            return -at_noise(math.exp(log_noise), chosen)

        low, high = (math.log(size * bound) for bound in _REACH)
        best = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 0.01})
        found[chosen] = math.exp(best.x)
    return found


def _by_cholesky(covariance: Tensor, targets: Tensor, jitter: Jitter, noise: float, chosen: slice) -> float:
    part = targets[:, chosen]
    return float(log_evidence_of(covariance, part, torch.full((part.shape[1],), noise, dtype=torch.float64), jitter))


class _TridiagonalEvidence:
    """Log evidences at many values of the noise, from one reduction ``K = Q T Qᵀ`` with T tridiagonal.

    The reduction costs as much as about five Choleskys of K, each value of the noise after it n operations.
    """

    def __init__(self, covariance: Tensor, targets: Tensor, jitter: Jitter) -> None:
        from scipy.linalg import lapack

        own = covariance + jitter(covariance.diagonal()) * torch.eye(len(covariance), dtype=covariance.dtype)
        self.covariance, self.jitter = own, str(jitter)
        size = len(own)
        reduced, self.diagonal, self.beside, factors, _ = lapack.dsytrd(own.numpy(), lower=1, lwork=64 * size)
        rotated = targets.numpy().copy()
        if size > 1:  # Q is 1 on the first row, and a product of Householder reflections on the others
            rotated[1:], _, _ = lapack.dormqr("L", "T", reduced[1:, :-1], factors, rotated[1:], 64 * rotated.shape[1])
        self.targets = rotated

    def __call__(self, noise: float, chosen: slice) -> float:
        """The log evidence of the chosen outputs."""
        import numpy as np
        from scipy.linalg import LinAlgError, cholesky_banded, solve_banded

        banded = np.zeros((2, len(self.diagonal)))
        banded[0], banded[1, :-1] = self.diagonal + noise**2, self.beside
        try:
            root = cholesky_banded(banded, lower=True)
        except LinAlgError:
            eye = torch.eye(len(self.covariance), dtype=self.covariance.dtype)
            factorized(self.covariance + noise**2 * eye, "kernel", self.jitter)
            raise
        white = solve_banded((1, 0), root, self.targets[:, chosen])
        halves = np.log(root[0]).sum() + 0.5 * len(white) * math.log(2.0 * math.pi)
        return float(-0.5 * np.square(white).sum() - white.shape[1] * halves)


def most_probable_scales(
    model: SupervisedModel, x: Tensor, y: Tensor, *, per_layer: bool = True, steps: int = 40
) -> tuple[dict[str, Tensor], list[float]]:
    """Prior scales of the largest evidence, by L-BFGS on the logarithms of one factor for each layer, or one for all.

    A noise that is not stated is optimized with them.

    Args:
        model: The model.
        x: All inputs.
        y: All targets.
        per_layer: One factor for each layer instead of one for all.
        steps: Iterations at most.

    Returns:
        The scales by parameter, and the log evidence before and at each evaluation after that.
    """
    given = {name: scale.detach() for name, scale in prior_scales(network_of(model)).items()}
    groups = {name: name.rpartition(".")[0] if per_layer else "" for name in given}
    logs = {group: torch.zeros((), dtype=torch.float64, requires_grad=True) for group in set(groups.values())}
    free: list[Tensor] = list(logs.values())
    outputs = num_outputs(model, x)
    log_noise: Tensor | None = None
    if stated_noise(model, None, outputs) is None:
        with torch.no_grad():
            start = fitted_noise(model, kernel(model, x), targets_of(model, y, outputs), Jitter(1e-8))
        log_noise = start.log().requires_grad_()
        if bool((start == start[0]).all()):
            log_noise = start[:1].log().requires_grad_()
        free.append(log_noise)
    optimizer = torch.optim.LBFGS(free, max_iter=steps, line_search_fn="strong_wolfe", tolerance_change=1e-7)
    trials: list[tuple[float, dict[str, Tensor]]] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        scales: Any = {name: given[name] * logs[group].clamp(-7.0, 7.0).exp() for name, group in groups.items()}
        found = log_evidence(model, x, y, scales=scales, noise=None if log_noise is None else log_noise.exp())
        trials.append((float(found.detach()), {name: scale.detach() for name, scale in scales.items()}))
        loss = -found / len(x)
        loss.backward()
        return loss

    optimizer.step(closure)
    return max(trials, key=lambda trial: trial[0])[1], [value for value, _ in trials]


def num_outputs(model: SupervisedModel, x: Tensor) -> int:
    """Numbers of a row of the network's outputs.

    Raises:
        TypeError: If ``x`` is no tensor.
        ValueError: If there are no inputs, or outputs are not ``[N, O]``.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a tensor of inputs, got {type(x).__name__}.")
    if x.dim() < 2 or not len(x):
        raise ValueError(f"x: expected inputs [N, ...], got shape {list(x.shape)}.")
    network = network_of(model).network
    with torch.no_grad(), evaluating(network):
        found = network(x[:1].to(next(network.parameters())))
    if found.dim() != 2:
        raise ValueError(f"net: expected outputs [N, O], got {list(found.shape)} for one input.")
    return int(found.shape[1])
