r"""The multiplier of the prior precision under which held-out data are most probable.

The predictive is that of the linearized network, :math:`f \sim N(f_{\hat w}(x), J \Sigma_m J^\top)` with
:math:`\Sigma_m = (H + m P)^{-1}`; where outputs are linear in the covered weights it is that of the weights. Gaussian
targets have it in closed form, others average over draws of f, with the same random numbers under every m. In the basis
in which the curvature is diagonal a multiplier costs one product of the rotated Jacobians, so one pass over the data
serves the whole grid.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyrobnn.core.batches import Batch
from pyrobnn.core.finite import weighted
from pyrobnn.curvature.gaussian import BlockGaussian
from pyrobnn.curvature.jacobians import Derivatives
from pyrobnn.model.substitution import SubstituteMessenger
from pyrobnn.model.supervised import SupervisedModel

if TYPE_CHECKING:
    from pyrobnn.model.layout import Site

__all__ = ["held_out_log_likelihoods", "tune_on_held_out"]

_REACH = 6  # powers of ten to both sides
_PER_DECADE = 10
_DRAWS = 100  # and their mirror images


def tune_on_held_out(
    model: SupervisedModel,
    values: Mapping[str, Tensor],
    covered: Mapping[str, Site],
    gaussian: BlockGaussian,
    batches: Iterable[Batch],
    *,
    max_bytes: int,
) -> float:
    """Sets the multipliers of all blocks to the one that maximizes the held-out log likelihood, and returns it.

    It is the best of a grid from 1e-6 to 1e6 with ten points for each factor of ten, refined by the parabola through
    that point and its neighbors.

    Args:
        model: The model, in evaluation mode.
        values: Values of all its sites: the mode.
        covered: The sites with a Gaussian.
        gaussian: It, around the mode.
        batches: Held-out data.
        max_bytes: Budget for Jacobians.

    Raises:
        TypeError: If targets are of a wrong dtype.
        ValueError: If there are no rows, their weights are all zero, or targets are out of range.
    """
    count = 2 * _REACH * _PER_DECADE + 1
    grid = torch.logspace(-_REACH, _REACH, count, dtype=torch.float64)
    scores = held_out_log_likelihoods(model, values, covered, gaussian, batches, grid, max_bytes=max_bytes)
    best = int(scores.argmax())
    exponent = math.log10(float(grid[best]))
    if 0 < best < count - 1:
        left, middle, right = (float(score) for score in scores[best - 1 : best + 2])
        bend = left - 2.0 * middle + right
        exponent += 0.5 * (left - right) / bend / _PER_DECADE if bend < 0 else 0.0
    for block in gaussian.blocks:
        block.multiplier.fill_(10.0**exponent)
    return 10.0**exponent


@torch.no_grad()
def held_out_log_likelihoods(
    model: SupervisedModel,
    values: Mapping[str, Tensor],
    covered: Mapping[str, Site],
    gaussian: BlockGaussian,
    batches: Iterable[Batch],
    multipliers: Tensor,
    *,
    max_bytes: int,
) -> Tensor:
    """Log predictive densities of the data, added up, under each of the multipliers ``[G]``, in double precision.

    Arguments and errors are those of :func:`tune_on_held_out`.
    """
    derivatives = Derivatives(model, values, list(covered), max_bytes)
    windows = [torch.arange(site.offset, site.offset + site.numel) for site in covered.values()]
    columns = torch.cat(windows).to(gaussian.loc.device)
    bases = [block.basis() for block in gaussian.blocks]
    total = torch.zeros(len(multipliers), dtype=torch.float64)
    rows = 0
    for index, batch in enumerate(batches):
        batch.check(index)
        outputs = derivatives.outputs(batch.inputs)
        with SubstituteMessenger(values):
            model.likelihood.check_targets(outputs, batch.targets)
        rows += len(outputs) if batch.weight is None else int((batch.weight > 0).sum())
        for chosen, jacobians in derivatives.jacobians(batch.inputs, outputs):
            parts = gaussian.by_block(jacobians, columns)
            rotated = [basis.project(part.double()) for basis, part in zip(bases, parts, strict=True)]
            noise = torch.randn(_DRAWS, *jacobians.shape[:2], dtype=torch.float64, device=jacobians.device)
            weight = None if batch.weight is None else batch.weight[chosen]
            for place, multiplier in enumerate(multipliers.tolist()):
                scaled = [v * (b.spectrum + multiplier).rsqrt() for v, b in zip(rotated, bases, strict=True)]
                covariance = torch.stack([half @ half.mT for half in scaled]).sum(0)
                with SubstituteMessenger(values):
                    log_prob = _log_predictive(model, outputs[chosen], covariance, batch.targets[chosen], noise)
                total[place] += float(weighted(log_prob, weight).sum())
    if not rows:
        raise ValueError("held_out: it yielded no rows of a positive weight, so there is nothing to tune on.")
    return total


def _log_predictive(
    model: SupervisedModel, outputs: Tensor, covariance: Tensor, targets: Tensor, noise: Tensor
) -> Tensor:
    """``[b]``, for outputs ``[b, ...]`` of covariances ``[b, O, O]`` and standard normal noise ``[S, b, O]``."""
    likelihood = model.likelihood
    exact = likelihood.closed_form(outputs, covariance.to(outputs), 1)
    if exact is not None:
        return exact.log_prob(targets).double()
    size = covariance.shape[-1]
    jitter = 1e-10 * covariance.diagonal(dim1=-2, dim2=-1).mean(-1) + 1e-30  # it may be singular
    eye = torch.eye(size, dtype=covariance.dtype, device=covariance.device)
    root = torch.linalg.cholesky(covariance + jitter[:, None, None] * eye)
    steps = (root @ noise.unsqueeze(-1)).squeeze(-1).to(outputs)
    draws = outputs + torch.cat([steps, -steps]).reshape(-1, *outputs.shape)
    repeated = targets.repeat(len(draws), *(1,) * (targets.dim() - 1))
    log_prob = likelihood(draws.flatten(0, 1)).log_prob(repeated).double().reshape(len(draws), -1)
    return log_prob.logsumexp(0) - math.log(len(draws))
