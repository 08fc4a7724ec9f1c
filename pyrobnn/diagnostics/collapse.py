r"""Has a posterior collapsed? Four checks that :func:`pyrobnn.check` makes.

* **Better than a constant**: the mean log predictive density of the training data against that of the best constant
  predictor (:meth:`pyrobnn.likelihoods.Likelihood.constant_outputs`), in nats per datum.
* **Predictions that vary**: the share of the predictive variance that is due to the inputs.
* **Functions at the prior**: the variance of predictions over draws relative to that under the prior.
* **Zero is no mode**, of networks with one hidden layer of ReLU-like units, Normal priors and a concave log likelihood.
  With the outputs at the best constant, :math:`r_n` the gradient of the log likelihood in the outputs there, and
  weights in units of their prior's standard deviations, a hidden unit of incoming weights u and outgoing weights v adds
  at most :math:`v \cdot G(u)` to the log likelihood,

  .. math::  G(u) = s_2 \sum_n r_n\, \phi(s_1 u \cdot x_n + s_b u_b), \qquad M = \max_{|u| = 1} |G(u)|,

  and takes :math:`\tfrac12 (|u|^2 + |v|^2) \ge |u||v|` from the log prior. If M < 1, all weights zero is the global
  mode of the posterior (the output bias apart): no start and no schedule helps a point estimate. M grows with the data,
  the scale of the inputs and the prior's scales.
"""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrobnn.core.handlers import validation_enabled
from pyrobnn.diagnostics._batches import Piece
from pyrobnn.diagnostics._draws import at_draw, prior_chain
from pyrobnn.diagnostics._evaluation import Evaluation, Rows
from pyrobnn.diagnostics._functions import FunctionMoments
from pyrobnn.diagnostics.check_report import Check, Status
from pyrobnn.distributions.independent import base_distribution
from pyrobnn.guides.base import Guide
from pyrobnn.model.last_layer import layers_with_matrices
from pyrobnn.model.priors import FixedPrior
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.training.collapse import ADVICE, NO_GAIN

__all__ = ["check_constant", "check_functions", "check_predictor", "check_zero", "largest_pull"]

GAIN = 0.1
"""Nats per datum that real-valued predictions must gain on a constant; of discrete ones the share of its entropy."""
VARYING = 0.02
"""Smallest share of the predictive variance that inputs should have."""
CONSTANT = 0.001
"""With a share as small as that predictions are constant."""
PRIOR_DRAWS = 50
SPREAD = 0.5
"""Largest variance of predictions over draws relative to the prior's."""
PULL = 10.0
"""M from which collapse to zero need not be feared."""
_STARTS, _STEPS, _MAX_ROWS = 32, 50, 2_000


def check_predictor(run: Evaluation) -> Check:
    """Whether predictions of the training data beat the best constant."""
    name = "better than a constant"
    if run.constant is None:
        return Check(name, "not applicable", None, "no best constant predictor of these targets is known")
    found, best = run.predictive.mean().item(), run.constant.mean().item()
    gain = found - best
    scale = -best if run.is_discrete else 1.0
    said = f"{found:.4g} nats per datum, {gain:+.2g} to the best constant predictor"
    if gain > GAIN * scale:
        return Check(name, "pass", gain, said)
    status: Status = "fail" if not gain > NO_GAIN * scale else "warn"
    verdict = "no better than a constant" if status == "fail" else "hardly better than a constant"
    noise = "" if run.is_discrete else ", a noise scale that is not much larger than the errors"
    return Check(name, status, gain, f"{said}: {verdict}; {ADVICE}{noise}")


def check_constant(run: Evaluation) -> Check:
    """Whether predictions depend on the inputs."""
    name = "predictions that vary"
    share = run.functions.share_of_inputs
    if share is None:
        return Check(name, "not applicable", None, "the variance of predictions over inputs is not known")
    said = f"inputs explain {share:.2%} of the predictive variance"
    if share > VARYING:
        return Check(name, "pass", share, said)
    status: Status = "fail" if share <= CONSTANT else "warn"
    return Check(name, status, share, f"{said}: predictions are nearly the same for all inputs; {ADVICE}")


def check_functions(model: Any, guide: Guide, data: Rows, run: Evaluation) -> Check:
    """Whether predictions vary as much over draws as under the prior."""
    name = "functions at the prior"
    posterior = run.functions.epistemic
    if not isinstance(model, SupervisedModel) or posterior is None:
        return Check(name, "not applicable", None, "only a SupervisedModel says what its outputs mean")
    if not bool((posterior > 0).any()):
        return Check(name, "not applicable", None, f"the draws of {type(guide).__name__} do not differ")
    prior = _prior_functions(model, guide, data).epistemic
    known = None if prior is None else (prior > 0) & prior.isfinite() & posterior.isfinite()
    if prior is None or known is None or not bool(known.any()):
        return Check(name, "not applicable", None, "predictions under the prior have no finite variance")
    share = float((posterior[known] / prior[known]).mean())
    said = f"the variance of predictions over draws is {share:.1%} of the prior's"
    if share <= SPREAD:
        return Check(name, "pass", share, said)
    return Check(name, "warn", share, f"{said}: the data have hardly narrowed what the network predicts; {ADVICE}")


def _prior_functions(model: SupervisedModel, guide: Guide, data: Rows) -> FunctionMoments:
    found = FunctionMoments(model.likelihood)
    first = data.batches[0]
    draws = prior_chain(model, set(guide.layout), PRIOR_DRAWS, Piece(first.rows, first.args, first.kwargs))
    with validation_enabled(False):  # functions of the prior may overflow
        for _, _, values in draws:
            with at_draw(model, values):
                for index, inputs in enumerate(data.inputs):
                    if not found.add(index, model.predictive(inputs)):
                        break
    return found


# --------------------------------------------------------------------------------------------- zero as the mode


def check_zero(model: Any, guide: Guide, data: Rows, run: Evaluation) -> list[Check]:
    """M, where it can be computed; else no check."""
    if (pull := largest_pull(model, guide, data, run)) is None:
        return []
    name = "zero is no mode"
    said = f"M = {pull:.3g}, the largest gain in log likelihood per loss in log prior of a hidden unit at zero"
    if pull >= PULL:
        return [Check(name, "pass", pull, said)]
    if pull >= 1.0:
        return [Check(name, "warn", pull, f"{said}: below {PULL:g} many units stay at zero; {ADVICE}")]
    reason = "all weights zero is the global mode, to which every point estimate goes whatever its start"
    return [Check(name, "fail", pull, f"{said}: {reason}; {ADVICE}")]


def largest_pull(model: Any, guide: Guide, data: Rows, run: Evaluation) -> float | None:
    """M of a network with one hidden layer; None for any other model, and where there are no rows for it.

    It is found by gradient ascent from random directions, on up to 2,000 rows in proportion.
    """
    best = run.constant_outputs
    if best is None or not isinstance(model, SupervisedModel) or not model.likelihood.is_concave:
        return None
    values = guide.sample(1).at(0)
    with at_draw(model, values):
        if (shape := _one_hidden_layer(model, data)) is None:
            return None
        x, scales, slopes = shape
        y = torch.cat(data.targets)[: len(x)]
        weights = [batch.weight for batch in data.batches if batch.weight is not None]
        with torch.enable_grad():
            outputs = best.expand(len(y), *best.shape[1:]).clone().requires_grad_()
            score = model.likelihood(outputs).log_prob(y)
            score = score * torch.cat(weights)[: len(x)] if weights else score
            (residual,) = torch.autograd.grad(score.sum(), outputs)
    residual = residual.double().flatten(1) * (model.num_data / len(x))
    white = torch.cat([x.double() * scales[0], x.new_full((len(x), 1), scales[1], dtype=torch.float64)], 1)
    return _ascend(white, residual * scales[2], slopes)


def _one_hidden_layer(
    model: SupervisedModel, data: Rows
) -> tuple[Tensor, tuple[float, float, float], tuple[float, float]] | None:
    """Inputs ``[n, d]``, prior scales (incoming, bias, outgoing), and slopes of the units above and below zero."""
    network = model.net.network
    layers = layers_with_matrices(network)
    priors = model.net.site_priors
    if len(layers) != 2 or not all(type(layer) is nn.Linear for layer in layers.values()):
        return None
    calls: list[tuple[str, Tensor, Tensor]] = []
    handles = [
        layer.register_forward_hook(lambda _, args, output, name=name: calls.append((name, args[0], output)))
        for name, layer in layers.items()
    ]
    rows: list[Tensor] = []
    try:
        for inputs in data.inputs:
            calls.clear()
            outputs = model.predictive(inputs)
            if len(calls) != 2 or any(tensor.dim() != 2 for call in calls for tensor in call[1:]):
                return None
            (first, x, before), (second, after, last) = calls
            if first == second or last.shape != outputs.shape or not torch.equal(last, outputs):
                return None
            rows.append(x)
            if sum(map(len, rows)) >= _MAX_ROWS:
                break
    finally:
        for handle in handles:
            handle.remove()
    slopes = _slopes(before, after)
    names = [f"{first}.weight", f"{first}.bias", f"{second}.weight"]
    random = {f"{layer}.{local}" for layer in layers for local in ("weight", "bias")}
    if slopes is None or not random.issuperset(priors):
        return None
    scales = [_scale(priors.get(name)) for name in names]
    if layers[first].bias is None:
        scales[1] = 0.0
    if any(scale is None for scale in scales) or layers[second].bias is None:
        return None
    incoming, bias, outgoing = (float(scale) for scale in scales if scale is not None)
    return torch.cat(rows)[:_MAX_ROWS], (incoming, bias, outgoing), slopes


def _slopes(before: Tensor, after: Tensor) -> tuple[float, float] | None:
    """The slopes of a function of single numbers that is linear on either side of zero; None if it is no such one."""
    if before.shape != after.shape:
        return None
    found = []
    for side in (before > 0, before < 0):
        if not bool(side.any()):
            return None
        z, h = before[side].double(), after[side].double()
        slope = float((z * h).sum() / z.square().sum())
        if float((h - slope * z).abs().max()) > 1e-4 * float(z.abs().max()):
            return None
        found.append(slope)
    return found[0], found[1]


def _scale(prior: Any) -> float | None:
    """The standard deviation of a Normal prior around zero that is the same for all elements."""
    if not isinstance(prior, FixedPrior):
        return None
    base = base_distribution(prior.distribution)
    if not isinstance(base, dist.Normal) or bool((base.loc != 0).any()):
        return None
    scale = base.scale.reshape(-1)
    return float(scale[0]) if bool((scale == scale[0]).all()) else None


def _ascend(x: Tensor, residual: Tensor, slopes: tuple[float, float]) -> float:
    """``max |G(u)|`` over unit vectors: gradient ascent from several, each with a step size of its own.

    Args:
        x: Inputs in units of the prior ``[n, d]``.
        residual: Gradients of the log likelihood, times the scale of outgoing weights, ``[n, O]``.
        slopes: Of the units, above and below zero.
    """

    def value(units: Tensor) -> tuple[Tensor, Tensor]:
        z = x @ units
        slope = torch.where(z > 0, above, below)
        pull = residual.T @ (z * slope)
        norm = pull.norm(dim=0)
        return norm, _normed(x.T @ (slope * (residual @ (pull / norm.clamp_min(1e-300)))))

    above, below = (x.new_tensor(slope) for slope in slopes)
    generator = torch.Generator().manual_seed(0)
    units = _normed(torch.randn(x.shape[1], _STARTS, generator=generator, dtype=torch.float64).to(x.device))
    found, direction = value(units)
    step = torch.ones_like(found)
    for _ in range(_STEPS):
        trial = _normed(units + step * direction)
        there, next_direction = value(trial)
        better = there > found
        units, direction = torch.where(better, trial, units), torch.where(better, next_direction, direction)
        found, step = torch.where(better, there, found), torch.where(better, 1.5 * step, 0.5 * step)
    return float(found.max())


def _normed(columns: Tensor) -> Tensor:
    return columns / columns.norm(dim=0).clamp_min(1e-300)
