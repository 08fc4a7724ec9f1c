r"""Fisher information of an observation in the network's outputs, as a sum of outer products.

.. math::  \Lambda(f) = E_{y \sim p(y \mid f)}\big[\nabla_f \log p\, \nabla_f \log p^\top\big] = \sum_c r_c r_c^\top.

With it the generalized Gauss–Newton matrix of the weights is :math:`\sum_n J_n^\top \Lambda_n J_n =
\sum_{n,c} (J_n^\top r_{nc})(J_n^\top r_{nc})^\top` (Martens 2020). For classes (softmax or sigmoid), Gaussian noise of
a given scale and Poisson counts :math:`\Lambda` is also the Hessian of :math:`-\log p` in the outputs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyrobnn.model import likelihoods
from pyrobnn.model.likelihoods import Likelihood

__all__ = ["SAMPLED_COLUMNS", "fisher_roots"]

SAMPLED_COLUMNS = 20
"""Columns drawn where an exact root would have too many."""


def fisher_roots(likelihood: Likelihood, outputs: Tensor, max_exact: int | None = None) -> Tensor:
    r"""Columns ``r_c`` with :math:`\sum_c r_c r_c^\top = \Lambda`, for each datum.

    The root is exact for the likelihoods of this library, with as many columns as a datum has outputs. For others,
    and where that is more than ``max_exact``, it is sampled: ``SAMPLED_COLUMNS`` scores :math:`\nabla_f \log p(y)` of
    targets drawn from the likelihood, whose outer products average to Λ.

    Args:
        likelihood: What the outputs mean; its latent sites must be substituted around the call.
        outputs: The network's outputs ``[B, ...]``.
        max_exact: Largest number of exact columns; any if None.

    Returns:
        ``[columns, B, ...]``, without gradients.

    Raises:
        ValueError: If the likelihood masks or weights targets: the information of the outputs then depends on them.
    """
    if (argument := likelihood.target_weighting) is not None:
        raise ValueError(
            f"likelihood: {argument} masks or weights targets by their values, but curvature is computed from the "
            f"outputs alone and would count them all; leave {argument} out, or use a posterior without curvature."
        )
    outputs = outputs.detach()
    exact = _EXACT.get(type(likelihood))
    if exact is None or (max_exact is not None and outputs[0].numel() > max_exact):
        return _sampled(likelihood, outputs)
    with torch.no_grad():
        return exact(likelihood, outputs)


def _sampled(likelihood: Likelihood, outputs: Tensor) -> Tensor:
    columns = []
    for _ in range(SAMPLED_COLUMNS):
        with torch.enable_grad():
            leaf = outputs.clone().requires_grad_()
            observation = likelihood(leaf)
            score = observation.log_prob(observation.sample()).sum()
        columns.append(torch.autograd.grad(score, leaf)[0])
    return torch.stack(columns) / SAMPLED_COLUMNS**0.5


def _softmax(likelihood: likelihoods.Categorical, outputs: Tensor) -> Tensor:
    r""":math:`R = \mathrm{diag}(\sqrt p) - p \sqrt p^\top` at each position, so that ``R Rᵀ = diag(p) - p pᵀ``."""
    classes_last = outputs.movedim(likelihood.class_dim, -1)
    probs = classes_last.softmax(-1)
    classes = probs.shape[-1]
    probs = probs.reshape(len(outputs), -1, classes)
    root = torch.diag_embed(probs.sqrt()) - probs.unsqueeze(-1) * probs.sqrt().unsqueeze(-2)
    # [B, P, C, c] -> a column for each position and c, zero at the other positions: [P', c, B, P, C].
    columns = torch.diag_embed(root.movedim(1, -1)).permute(4, 2, 0, 3, 1)
    columns = columns.reshape(-1, *classes_last.shape)
    return columns.movedim(-1, likelihood.class_dim + 1 if likelihood.class_dim >= 0 else likelihood.class_dim)


def _elementwise(information: Callable[[Likelihood, Tensor], Tensor]) -> Callable[[Likelihood, Tensor], Tensor]:
    """The root of a diagonal Λ, given its diagonal in the outputs' shape."""

    def root(likelihood: Likelihood, outputs: Tensor) -> Tensor:
        scale = information(likelihood, outputs).sqrt().reshape(len(outputs), -1)
        return torch.diag_embed(scale).movedim(-1, 0).reshape(-1, *outputs.shape)

    return root


def _sigmoid(_: Likelihood, outputs: Tensor) -> Tensor:
    return outputs.sigmoid() * (-outputs).sigmoid()


def _gaussian(likelihood: Likelihood, outputs: Tensor) -> Tensor:
    return likelihood.parameters_of(outputs)["scale"].square().reciprocal()


def _heteroscedastic(likelihood: Likelihood, outputs: Tensor) -> Tensor:
    """Of the mean, ``1 / σ²``; of the raw scale, ``2 σ'² / σ²``."""
    variance = likelihood.parameters_of(outputs)["scale"].square()
    _, raw = outputs.chunk(2, -1)
    return torch.cat([1.0 / variance, 2.0 * raw.sigmoid().square() / variance], -1)


def _poisson(_: Likelihood, outputs: Tensor) -> Tensor:
    return outputs.exp()


# By the very class: a subclass may have another density.
_EXACT: dict[type, Callable[..., Tensor]] = {
    likelihoods.Categorical: _softmax,
    likelihoods.Bernoulli: _elementwise(_sigmoid),
    likelihoods.Normal: _elementwise(_gaussian),
    likelihoods.HeteroscedasticNormal: _elementwise(_heteroscedastic),
    likelihoods.Poisson: _elementwise(_poisson),
}
