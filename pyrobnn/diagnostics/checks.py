"""check(): did the inference work? Questions to a fitted guide, answered with numbers and reasons.

* **Better than a constant**, **predictions that vary**, **functions at the prior**, **zero is no mode**: whether the
  posterior has collapsed to a function that ignores the inputs, or to its prior (:mod:`pyrobnn.diagnostics.collapse`).
* **ELBO noise floor**: how much one draw's ELBO scatters; smaller improvements cannot be seen.
* **Weights at the prior**: how many weights have stayed at their prior.
* **Signal-to-noise**: whether a layer's weights are mostly noise.
* **Calibration**: expected calibration error of classes, coverage of the central 90 % interval of anything
  else.
* **k-hat**: whether the guide covers the posterior of the last layer (:mod:`pyrobnn.diagnostics.importance`).

A warning is a reason to look, not a proof of failure; "fail" says that the predictions are not worth using as they are.
Thresholds are the constants here and there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from pyrobnn.core.arguments import check_positive_int
from pyrobnn.core.batches import Reader
from pyrobnn.core.explanations import explained
from pyrobnn.diagnostics._arviz import pareto_k
from pyrobnn.diagnostics._draws import undisturbed
from pyrobnn.diagnostics._evaluation import Evaluation, Rows, evaluate, same_random_state
from pyrobnn.diagnostics.check_report import Check, CheckReport
from pyrobnn.diagnostics.collapse import check_constant, check_functions, check_predictor, check_zero
from pyrobnn.diagnostics.importance import default_sites, k_hat_threshold, log_ratios
from pyrobnn.diagnostics.weights import WeightStatistics, weight_statistics
from pyrobnn.guides.base import Guide, check_guide
from pyrobnn.metrics.calibration import expected_calibration_error
from pyrobnn.model.declarations import declared_num_data
from pyrobnn.training.collapse import ADVICE

__all__ = ["Check", "CheckReport", "check"]

NOISE_BATCH = 100
"""One draw should add no more noise to the ELBO than a batch of so many data does."""
AT_PRIOR_SHARE = 0.5
"""Largest share of weights that may sit at their prior."""
ABOVE_NOISE_SHARE = 0.05
"""Smallest share of a layer's weights whose mean must exceed their standard deviation."""
CALIBRATION_ERROR = 0.02
"""Largest calibration error that is not worth a warning, however many data prove it."""
COVERAGE = 0.9
COVERAGE_ERROR = 0.05
"""Nominal coverage, and how far from it the observed one may be, however many data prove it."""


@explained
def check(
    model: Any,
    guide: Guide,
    loader: Iterable[Any],
    *,
    held_out: Iterable[Any] | None = None,
    batch: Reader | None = None,
    num_samples: int = 200,
    max_rows: int = 10_000,
) -> CheckReport:
    """Checks a fitted guide. Model, guide, running statistics and random state are left as they were.

    Args:
        model: The Pyro model, called with the batches of the loader.
        guide: A guide of this library.
        loader: Training data, as for :func:`pyrobnn.fit`.
        held_out: Other batches to judge calibration on, which training data flatter; ``loader`` if None.
        batch: For loaders whose items :func:`pyrobnn.fit` cannot read: a function from an item to
            ``(inputs, targets)``, ``(inputs, targets, weight)`` or a :class:`~pyrobnn.Batch`.
        num_samples: Draws, each of which sees all rows once or twice.
        max_rows: Rows read at most (whole batches). k-hat needs all training data, so it is not applicable to
            more.

    Returns:
        The report.

    Raises:
        TypeError: If the guide is not of this library or a batch is of no known form.
        ValueError: If there are fewer than 25 draws or a loader yields nothing.
    """
    check_guide(model, guide)
    check_positive_int("max_rows", max_rows)
    if num_samples < 25:
        raise ValueError(f"num_samples: the checks need at least 25 draws, got {num_samples}.")
    with same_random_state(loader, held_out), undisturbed(model):
        data = Rows(model, guide, loader, max_rows, "loader", batch)
        run = evaluate(model, guide, data, num_samples)
        if held_out is None:
            other, source = run, "the training data"
        else:
            other = evaluate(model, guide, Rows(model, guide, held_out, max_rows, "held_out", batch), num_samples)
            source = "held-out data"
        weights = weight_statistics(model, guide, *data.batches[0].args)
        results = [
            _check_noise(model, guide, run),
            _check_prior(guide, weights),
            _check_signal(guide, weights),
            _check_calibration(other, source),
            _check_importance(model, guide, data, num_samples),
        ]
        collapse = [
            check_predictor(run),
            check_constant(run),
            check_functions(model, guide, data, run),
            *check_zero(model, guide, data, run),
        ]
    return CheckReport([*collapse, *results], weights)


# ----------------------------------------------------------------------------------------------------- checks


def _check_noise(model: Any, guide: Guide, run: Evaluation) -> Check:
    name = "ELBO noise floor"
    num_data = declared_num_data(model)
    if num_data is None:
        return Check(name, "not applicable", None, "the model does not state num_data, the size of its data set")
    if not guide.facts.density:
        return Check(name, "not applicable", None, f"{type(guide).__name__} is a point estimate or has no density")
    elbo = run.log_likelihood / len(run.by_datum) - run.divergence / num_data
    noise, spread = elbo.std().item(), run.by_datum.std(correction=0).item()
    batch_noise = spread / NOISE_BATCH**0.5
    found = (
        f"one draw gives {elbo.mean().item():.4g} ± {noise:.2g} nats per datum; a batch of {NOISE_BATCH} "
        f"data adds ± {batch_noise:.2g}"
    )
    if noise <= batch_noise:
        return Check(name, "pass", noise, f"{found}, so more draws per step would help little")
    particles = round((noise / batch_noise) ** 2) if batch_noise else 0
    advice = f"num_particles={particles} would match it" if particles > 1 else "use more particles"
    return Check(name, "warn", noise, f"{found}: the draws hide smaller improvements; {advice}")


def _check_prior(guide: Guide, weights: dict[str, WeightStatistics]) -> Check:
    name = "weights at the prior"
    known = {site: w for site, w in weights.items() if w.at_prior is not None}
    if not known:
        return Check(name, "not applicable", None, f"{type(guide).__name__} has no density to compare with the prior's")
    total = sum(w.size for w in known.values())
    share = sum(w.size * w.at_prior for w in known.values() if w.at_prior is not None) / total
    worst = max(known, key=lambda site: known[site].at_prior or 0.0)
    found = f"{share:.1%} of {total:,} weights; most in {worst} ({known[worst].at_prior:.1%})"
    if share <= AT_PRIOR_SHARE:
        return Check(name, "pass", share, found)
    return Check(name, "warn", share, f"{found}: the data have not moved most weights; {ADVICE}, or a smaller network")


def _check_signal(guide: Guide, weights: dict[str, WeightStatistics]) -> Check:
    name = "signal-to-noise"
    known = {site: w.above_noise for site, w in weights.items() if w.above_noise is not None}
    if not known:
        return Check(name, "not applicable", None, f"the draws of {type(guide).__name__} do not differ")
    # Biases and scales are few; a layer is judged by its weights.
    judged = {site: share for site, share in known.items() if len(guide.layout[site].shape) >= 2} or known
    worst = min(judged, key=judged.__getitem__)
    found = f"in {worst}, the noisiest of {len(judged)}, {judged[worst]:.1%} of the weights have |mean| > sd"
    if judged[worst] >= ABOVE_NOISE_SHARE:
        return Check(name, "pass", judged[worst], found)
    return Check(name, "warn", judged[worst], f"{found}: this layer passes on almost nothing but noise")


def _check_calibration(run: Evaluation, source: str) -> Check:
    name = "calibration"
    if run.targets is None or (run.probs is None and run.rank is None):
        return Check(name, "not applicable", None, "only a SupervisedModel says what its outputs mean")
    rows = len(run.targets)
    if run.probs is not None:
        targets = run.targets.long()
        error = expected_calibration_error(run.probs, targets).item()
        chance = _error_by_chance(run.probs)
        found = f"ECE {error:.3f} on {rows:,} rows of {source}; perfect calibration would give up to {chance:.3f}"
        bad = error > max(chance, CALIBRATION_ERROR)
        return Check(name, "warn" if bad else "pass", error, found)
    assert run.rank is not None
    margin = (1.0 - COVERAGE) / 2.0
    coverage = ((run.rank > margin) & (run.rank < 1.0 - margin)).double().mean().item()
    chance = 3.0 * (COVERAGE * (1.0 - COVERAGE) / rows) ** 0.5
    found = (
        f"the central {COVERAGE:.0%} interval covers {coverage:.1%} of {rows:,} rows of {source}; chance "
        f"explains ± {chance:.1%}"
    )
    bad = abs(coverage - COVERAGE) > max(chance, COVERAGE_ERROR)
    return Check(name, "warn" if bad else "pass", coverage, found)


def _error_by_chance(probs: Tensor, repetitions: int = 100) -> float:
    """99 % quantile of the calibration error of labels drawn from ``probs`` (Bröcker & Smith 2007)."""
    labels = torch.distributions.Categorical(probs=probs).sample((repetitions,))
    errors = torch.stack([expected_calibration_error(probs, y) for y in labels])
    return errors.quantile(0.99).item()


def _check_importance(model: Any, guide: Guide, data: Rows, num_samples: int) -> Check:
    name = "k-hat"
    num_data = declared_num_data(model)
    chosen = default_sites(model, guide, data.batches[0])
    if not guide.facts.can_marginalize(chosen):
        lacking = next((site for site in chosen if site not in guide.facts.density), chosen[0])
        reason = f"{type(guide.part(lacking)).__name__} has no density of {lacking!r}, so no importance ratios"
        return Check(name, "not applicable", None, reason)
    if num_data != data.num_rows or not data.complete:
        more = "raise max_rows" if not data.complete else "pass a loader of all of them, without drop_last"
        reason = f"the ratios need all {num_data} training data, {data.num_rows:,} were read; {more}"
        return Check(name, "not applicable", None, reason)
    k_hat, threshold = (
        pareto_k(log_ratios(model, guide, data.batches, chosen, num_samples).numpy()),
        k_hat_threshold(num_samples),
    )
    names = ", ".join(chosen[:3]) + (" …" if len(chosen) > 3 else "")
    found = f"k-hat {k_hat:.2f} on {names}, reliable up to {threshold:.2f}"
    if k_hat <= threshold:
        return Check(name, "pass", k_hat, f"{found}: the guide covers their posterior")
    return Check(name, "warn", k_hat, f"{found}: the guide is narrower than their posterior, or of another shape")
