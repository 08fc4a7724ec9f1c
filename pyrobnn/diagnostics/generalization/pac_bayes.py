r"""A PAC-Bayes bound: how often draws of the posterior will be wrong on new data, with a probability that is stated.

For a posterior Q and a prior P that was fixed before the n rows were seen, the true 0-1 risk of a draw,
:math:`R = E_{w \sim Q} P(f_w(x) \ne y)`, is bounded with probability :math:`1 - \delta` by the risk r on the rows, n,
and :math:`\mathrm{KL}(Q \,\|\, P)` (:mod:`~pyrobnn.diagnostics.generalization.kl_bounds` has the formulas). The risk on
the rows is itself an expectation over Q. K draws, each judged on rows chosen at random, estimate it without bias and
independently of each other, so that with probability :math:`1 - \delta'`

.. math::  r \le \mathrm{kl}^{-1}\big(\hat r, \ln(2 / \delta') / K\big)

(Langford & Caruana 2002), which is what the bound is given; :math:`\delta'` is a part of :math:`\delta`. The posterior
may depend on the rows in any way. The prior, what is trained without a prior, and running statistics may not: where
this is known to be broken, the result says so.

Langford & Caruana, *(Not) bounding the true error* (2002); Dziugaite & Roy, *Computing nonvacuous generalization bounds
for deep (stochastic) neural networks* (2017); Pérez-Ortiz et al., *Tighter risk certificates for neural networks*
(2021).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.core import random_state
from pyrobnn.core.arguments import check_int, check_number, check_positive_int, check_probability
from pyrobnn.core.batches import Batch, Reader
from pyrobnn.core.explanations import explained
from pyrobnn.diagnostics._draws import undisturbed
from pyrobnn.diagnostics.generalization.assumptions import broken_assumptions, exact_divergence, origins
from pyrobnn.diagnostics.generalization.kl_bounds import (
    FEWEST,
    catoni_bound,
    kl_inverse,
    maurer_bound,
    mcallester_bound,
)
from pyrobnn.guides.base import Guide, check_guide
from pyrobnn.model.draws import Draws
from pyrobnn.model.likelihoods import ClassLikelihood
from pyrobnn.model.num_data import check_whole_pass
from pyrobnn.prediction.draws import PinnedDraws
from pyrobnn.prediction.runners import Runner
from pyrobnn.training.checks import check_targets

__all__ = ["PACBayesBound", "pac_bayes_bound"]

_SAMPLING_SHARE = 0.2


@dataclass(frozen=True)
class PACBayesBound:
    """Bounds of the true 0-1 risk of a posterior's draws; each holds with probability ``1 - delta``, not all at once.

    Attributes:
        maurer: Maurer's bound, the one to report (:attr:`bound`).
        mcallester: McAllester's, which is never smaller.
        catoni: Catoni's, with a union over C.
        catoni_c: The C of the grid at which it is smallest.
        empirical_risk: Upper limit of the risk on the rows, which the bounds are given.
        sampled_risk: The mean over the draws, of which it is the limit.
        kl: KL of the posterior from the prior, in nats.
        num_data: Number n of rows.
        num_samples: Number K of draws.
        delta: Probability with which a bound fails, in all.
        sampling_delta: Its part for the sampling of the risk.
        broken: Assumptions that are known to be broken; the bounds do not hold then.
        notes: Assumptions that could not be checked.
    """

    maurer: float
    mcallester: float
    catoni: float
    catoni_c: float
    empirical_risk: float
    sampled_risk: float
    kl: float
    num_data: int
    num_samples: int
    delta: float
    sampling_delta: float
    broken: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def bound(self) -> float:
        """Maurer's bound."""
        return self.maurer

    @property
    def holds(self) -> bool:
        """Whether no assumption is known to be broken."""
        return not self.broken

    def __str__(self) -> str:
        said = (
            f"risk of a draw at most {self.maurer:.4f} with probability {1 - self.delta:g} (Maurer; McAllester "
            f"{self.mcallester:.4f}, Catoni {self.catoni:.4f}): {self.sampled_risk:.4f} on {self.num_data} rows, at "
            f"most {self.empirical_risk:.4f} by {self.num_samples} draws, KL {self.kl:.1f} nats"
        )
        parts = [f"NOT VALID: {reason}" for reason in self.broken] + [said, *self.notes]
        return "; ".join(parts)


@explained
def pac_bayes_bound(
    model: nn.Module,
    guide: Guide,
    loader: Iterable[Any],
    *,
    delta: float = 0.05,
    sampling_delta: float | None = None,
    prior: Guide | None = None,
    prior_data: Iterable[Any] | None = None,
    num_samples: int = 1000,
    rows_per_draw: int = 1000,
    batch: Reader | None = None,
    max_bytes: int = 256 * 2**20,
    seed: int | None = None,
) -> PACBayesBound:
    """Bounds the true 0-1 risk of the posterior's draws: ``pac_bayes_bound(model, guide, loader)``.

    The risk is that of a single random draw; the risk of a majority of draws is at most twice as large.

    With a prior that was learned the KL is much smaller. Its rows must be others than those of ``loader``: learn it on
    one part of the data, train the posterior on all, and take the bound on the other part.

    Args:
        model: The model, with a likelihood of classes.
        guide: The posterior Q, with a KL in closed form (:class:`~pyrobnn.guides.MeanField` with Normal priors, say).
        loader: Batches of the rows, each row once and independently drawn from what the bound is about.
        delta: Probability with which the bound may fail.
        sampling_delta: Its part for the sampling of the risk on the rows; a fifth if None.
        prior: A guide of independent Gaussians that takes the place of the model's prior in the KL.
        prior_data: The rows that the model's prior was learned from, if it was (as by
            :func:`pyrobnn.priors.centered` around trained weights): a loader or inputs, only compared with ``loader``.
        num_samples: Number K of draws.
        rows_per_draw: Rows that each draw is judged on, chosen at random; all if there are not more.
        batch: For loaders that yield something else, as for :func:`pyrobnn.fit`.
        max_bytes: Budget for draws and activations.
        seed: Fixes draws and rows; None takes a seed from torch's random state.

    Returns:
        The bounds, with what they are made of.

    Warns:
        UserWarning: If an assumption is known to be broken.

    Raises:
        TypeError: If the guide is not of this library, or the likelihood not one of classes.
        ValueError: If a number is out of range, the divergence is no KL in closed form (points, mixtures, priors that
            are learned or have hyperparameters), rows have weights or missing labels, or there are fewer than 8.
    """
    check_probability("delta", delta)
    sampling = _SAMPLING_SHARE * delta if sampling_delta is None else sampling_delta
    check_number("sampling_delta", sampling, 0.0, delta, above=True, below=True)
    check_positive_int("num_samples", num_samples)
    check_positive_int("rows_per_draw", rows_per_draw)
    check_positive_int("max_bytes", max_bytes)
    check_guide(model, guide)
    runner = Runner(model, None, "auto", max_bytes)
    if not isinstance(runner.likelihood, ClassLikelihood):
        raise TypeError(
            f"model: a 0-1 risk needs classes, but its likelihood is {type(runner.likelihood).__name__}; expected one "
            "such as likelihoods.Categorical or likelihoods.Bernoulli."
        )
    data = _rows(model, guide, loader, batch, runner.likelihood)
    broken = broken_assumptions(model, prior, prior_data, loader)
    with undisturbed(model), random_state.seeded(_seed(seed), runner.device):
        kl, priors = exact_divergence(model, guide, prior, data.part(slice(0, 2)).inputs)
        notes = origins(priors) if prior is None and prior_data is None else ()
        risks = _risks(guide, runner, data, num_samples, min(rows_per_draw, data.rows), max_bytes)
    sampled = float(risks.mean())
    risk = kl_inverse(sampled, math.log(2.0 / sampling) / num_samples)
    found = (risk, kl, data.rows, delta - sampling)
    catoni, c = catoni_bound(*found)
    if broken:
        warnings.warn(f"the PAC-Bayes bound does not hold: {'; '.join(broken)}.", stacklevel=2)
    return PACBayesBound(
        maurer=maurer_bound(*found),
        mcallester=mcallester_bound(*found),
        catoni=catoni,
        catoni_c=c,
        empirical_risk=risk,
        sampled_risk=sampled,
        kl=kl,
        num_data=data.rows,
        num_samples=num_samples,
        delta=delta,
        sampling_delta=sampling,
        broken=broken,
        notes=notes,
    )


def _seed(seed: int | None) -> int:
    if seed is None:
        return random_state.fresh_seed()
    check_int("seed", seed, 0, 2**32 - 1)
    return seed


def _rows(model: Any, guide: Guide, loader: Any, reader: Reader | None, likelihood: ClassLikelihood) -> Batch:
    """All rows in one batch."""
    check_whole_pass(loader, "a PAC-Bayes bound")
    device = next(guide.parameters()).device
    read = [Batch.read(raw, device, reader) for raw in loader]
    if not read:
        raise ValueError("loader: it yielded no data; the data set is empty or drop_last left nothing.")
    for one in read:
        check_targets(model, one)
    data = Batch.join(read)
    if data.weight is not None:
        raise ValueError("loader: its rows have weights, but the bound is of rows that count the same; leave them out.")
    if likelihood.observed_mask(data.targets) is not None:
        raise ValueError(
            f"model: its {type(likelihood).__name__} allows labels that are not observed, of which there is no 0-1 "
            "loss; pass rows with all their labels, and a likelihood without missing ones."
        )
    if data.rows < FEWEST:
        raise ValueError(f"loader: the bound needs at least {FEWEST} rows, got {data.rows}.")
    return data


def _risks(guide: Guide, runner: Runner, data: Batch, num_samples: int, size: int, max_bytes: int) -> Tensor:
    """The 0-1 loss of each draw ``[K]``, averaged over ``size`` rows that are chosen at random for it."""
    likelihood = runner.likelihood
    assert isinstance(likelihood, ClassLikelihood)

    def predicted(outputs: Tensor) -> Tensor:
        return likelihood.log_probabilities(outputs).argmax(-1)

    def risk(found: Tensor, targets: Tensor) -> Tensor:
        wrong = (found != targets).double()
        return wrong.reshape(*found.shape[: found.dim() - targets.dim()], -1).mean(-1)

    draws = PinnedDraws(guide, num_samples, max_bytes, replayed=False)
    found: list[Tensor] = []
    with runner.ready():
        for chunk in draws:
            several = Draws.of(chunk)
            if size == data.rows:
                parts = runner.summaries(several, data.inputs, lambda outputs: {"predicted": predicted(outputs)})
                found += [risk(part["predicted"], data.targets) for part in parts]
                continue
            for index in range(len(next(iter(several.values())))):
                part = data.part(torch.randperm(data.rows, device=data.device)[:size])
                outputs = runner.outputs(several.at(index), part.inputs)
                found.append(risk(predicted(outputs), part.targets).reshape(1))
    return torch.cat(found)
