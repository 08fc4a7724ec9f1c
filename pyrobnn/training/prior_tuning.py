r"""tune_prior(): the scales of Normal priors under which the data are most probable, by the Laplace evidence.

Type-II maximum likelihood (MacKay 1992; Immer et al. 2021). A round fits a point estimate, takes the curvature there,
and multiplies the prior precisions by what maximizes

.. math::  \log p(D \mid \hat w) + \log p(\hat w \mid m) + \tfrac d2 \log 2\pi - \tfrac12 \log\det(H + m P)

over m, one for each layer or one for all; then the mode moves, and the next round begins. Where zero is the mode there
is nothing to learn from, so that the rounds are made from unit scales, too, and the largest evidence is taken.

With ``evidence="infinite_width"`` nothing is trained: the evidence is the exact one of the infinitely wide network
(:mod:`pyrobnn.function_space.evidence`), for Gaussian noise or one-hot targets, maximized with its gradients.
"""

from __future__ import annotations

import copy
import glob
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyrobnn.core.arguments import check_positive, check_positive_int
from pyrobnn.core.batches import Reader
from pyrobnn.core.explanations import explained
from pyrobnn.core.processes import refuse_process_group
from pyrobnn.distributions.independent import base_distribution
from pyrobnn.function_space.evidence import most_probable_scales
from pyrobnn.function_space.infinite_width import whole
from pyrobnn.guides import MAP, Laplace
from pyrobnn.model.priors import FixedPrior
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.training.fit import fit
from pyrobnn.training.length import default_epochs

__all__ = ["PriorTuning", "tune_prior"]

_REACH = 100.0  # the largest factor on a scale in one round: the mode has to follow
_DONE = 0.01  # relative change of all scales that ends the rounds


@dataclass(frozen=True, eq=False)
class PriorTuning:
    """Tuned priors.

    Attributes:
        model: A new model with them, otherwise as the one that was given, and untrained.
        prior: The same as rules, for models that are built anew.
        scales: The standard deviation by parameter of the network, ``[]`` or of the parameter's shape.
        log_evidence: The log evidence in nats under the priors that were given, and of every trial after.
        before: That of the priors given.
        after: That of the tuned ones.
    """

    model: SupervisedModel
    prior: list[tuple[str, dist.Distribution | None]]
    scales: dict[str, Tensor]
    log_evidence: list[float]

    @property
    def before(self) -> float:
        """The log evidence of the priors that were given."""
        return self.log_evidence[0]

    @property
    def after(self) -> float:
        """The log evidence of the tuned priors, the largest that was found."""
        return max(self.log_evidence)

    def __str__(self) -> str:
        lines = [f"log evidence {self.before:.2f} before, {self.after:.2f} after"]
        return "\n".join(lines + [f"  {name}: scale {scale.mean():.3g}" for name, scale in self.scales.items()])


@explained
def tune_prior(
    model: SupervisedModel,
    loader: Iterable[Any],
    *,
    batch: Reader | None = None,
    evidence: Literal["laplace", "infinite_width"] = "laplace",
    structure: Literal["kronecker", "diagonal", "full"] = "kronecker",
    per_layer: bool = True,
    rounds: int = 4,
    epochs: int | None = None,
    lr: float = 1e-2,
    seed: int | None = None,
) -> PriorTuning:
    """Tunes the scales of Normal priors by the Laplace evidence of the training data.

    The model that is given stays as it is. The tuned priors are stated ones: objectives do not temper the divergence of
    guides under them, as they do under the default prior.

    Args:
        model: The model, whose weights have Normal priors of fixed scales.
        loader: Batches of the whole data set, as for :meth:`pyrobnn.guides.Laplace.fit`.
        batch: For loaders that yield something else, as for :func:`pyrobnn.fit`.
        evidence: ``"laplace"``, or ``"infinite_width"`` for that of the network's limit (of at most a few thousand
            data; the options below but ``per_layer`` do not apply).
        structure: Of the curvature. Weights that it does not cover keep their priors.
        per_layer: One factor for each layer instead of one for all; not with ``"full"``.
        rounds: Changes of the scales at most, from the scales given and from 1.
        epochs: Epochs of each point estimate, of which there are up to ``2 (rounds + 1)``; None for the default of
            :func:`pyrobnn.fit`.
        lr: Their learning rate at the start; it falls along a cosine.
        seed: Seeds each of them.

    Returns:
        The new model, its priors, and the log evidence on the way.

    Raises:
        TypeError: If the model is no :class:`~pyrobnn.SupervisedModel`.
        ValueError: If there is one datum only, a prior is no Normal of fixed scale, or there is no Laplace
            approximation (:class:`~pyrobnn.guides.Laplace`).
        RuntimeError: In a process group of several processes (:func:`~pyrobnn.independent_processes`).
    """
    refuse_process_group("tune_prior")
    if not isinstance(model, SupervisedModel):
        raise TypeError(f"model: expected a SupervisedModel, got {type(model).__name__}; tune its priors by hand.")
    for name, count in (("rounds", rounds), ("epochs", 1 if epochs is None else epochs)):
        check_positive_int(name, count)
    check_positive("lr", lr, "learning rate")
    if structure not in ("kronecker", "diagonal", "full"):
        raise ValueError(f"structure: expected 'kronecker', 'diagonal' or 'full', got {structure!r}.")
    if evidence not in ("laplace", "infinite_width"):
        raise ValueError(f"evidence: expected 'laplace' or 'infinite_width', got {evidence!r}.")
    if not isinstance(per_layer, bool):
        raise TypeError(f"per_layer: expected True or False, got {per_layer!r}.")
    if model.num_data < 2:
        raise ValueError("num_data: a prior cannot be tuned on one datum, whose evidence has no maximum; state it.")
    priors = {name: _normal(name, prior) for name, prior in model.net.site_priors.items()}
    given = {name: _compact(prior.scale) for name, prior in priors.items()}
    locs = {name: _compact(prior.loc) for name, prior in priors.items()}
    if evidence == "infinite_width":
        best, found = most_probable_scales(model, *whole(loader, batch), per_layer=per_layer)
        best = {name: scale.to(given[name].dtype) for name, scale in best.items()}
        return PriorTuning(_rebuilt(model, locs, best), _rules(locs, best), best, found)
    fitted = partial(_fitted, loader=loader, batch=batch, structure=structure, epochs=epochs, lr=lr, seed=seed)
    unit = {name: torch.ones_like(scale) for name, scale in given.items()}
    trials: list[tuple[float, dict[str, Tensor]]] = []
    for scales in [given] if all(torch.equal(unit[name], given[name]) for name in given) else [given, unit]:
        laplace = fitted(_rebuilt(model, locs, scales))
        trials.append((laplace.log_evidence(), scales))
        for _ in range(rounds):
            factors = _factors(laplace, per_layer and structure != "full")
            scales = {name: scale * factors.get(name, 1.0) for name, scale in scales.items()}
            laplace = fitted(_rebuilt(model, locs, scales), init=laplace.mode())
            trials.append((laplace.log_evidence(), scales))
            if all(abs(factor - 1.0) < _DONE for factor in factors.values()):
                break
    best = max(trials, key=lambda found: found[0])[1]
    return PriorTuning(_rebuilt(model, locs, best), _rules(locs, best), best, [found for found, _ in trials])


def _normal(name: str, prior: Any) -> dist.Normal:
    base = prior.normal() if isinstance(prior, FixedPrior) else None
    if base is None:
        kind = type(base_distribution(prior.distribution) if isinstance(prior, FixedPrior) else prior).__name__
        raise ValueError(
            f"prior of {name!r}: only Normal priors of fixed scale can be tuned, got {kind}; give it one, or leave the "
            "prior as it is, for those with latent or learned scales adapt by themselves."
        )
    return base


def _compact(numbers: Tensor) -> Tensor:
    """One number instead of many that are equal."""
    first = numbers.reshape(-1)[0]
    return (first if bool((numbers == first).all()) else numbers).detach().clone()


def _rules(locs: dict[str, Tensor], scales: dict[str, Tensor]) -> list[tuple[str, dist.Distribution | None]]:
    """Each parameter by its name; all others stay deterministic."""
    normals = [(glob.escape(name), dist.Normal(loc, scales[name])) for name, loc in locs.items()]
    return [*normals, ("*", None)]


def _rebuilt(model: SupervisedModel, locs: dict[str, Tensor], scales: dict[str, Tensor]) -> SupervisedModel:
    """The model with other priors, untrained."""
    return SupervisedModel(
        model.net.network,
        copy.deepcopy(model.likelihood),
        _rules(locs, scales),
        num_data=model.num_data,
        output=model.output,
    )


def _fitted(
    model: SupervisedModel,
    *,
    loader: Iterable[Any],
    batch: Reader | None,
    structure: Literal["kronecker", "diagonal", "full"],
    epochs: int | None,
    lr: float,
    seed: int | None,
    init: dict[str, Tensor] | None = None,
) -> Laplace:
    """The Laplace approximation at a point estimate."""
    epochs = default_epochs(loader) if epochs is None else epochs
    guide = MAP(model, init=init)
    schedule = partial(CosineAnnealingLR, T_max=epochs)
    fit(model, guide, loader, batch=batch, epochs=epochs, lr=lr, scheduler=schedule, seed=seed, progress=False)
    return Laplace(model, init=guide, structure=structure).fit(model, loader, batch=batch)


def _factors(laplace: Laplace, per_layer: bool) -> dict[str, float]:
    """What the scale of each covered parameter is to be multiplied with, by its name in the network."""
    found = laplace.optimize_prior_precision(per_layer=per_layer)
    factors = {}
    for site in laplace.facts.density:
        name = site.removeprefix("net.")
        precision = found if isinstance(found, float) else found[name.rpartition(".")[0]]
        factors[name] = min(max(precision**-0.5, 1.0 / _REACH), _REACH)
    return factors
