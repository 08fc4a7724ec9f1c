"""What a PAC-Bayes bound assumes of the prior and the model, as far as it can be told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from pyrobnn.core.training_rows import share_rows, were_trained_on
from pyrobnn.distributions.independent import base_distribution
from pyrobnn.guides.base import Guide, check_guide
from pyrobnn.model.divergence import PriorTerm, prior_terms
from pyrobnn.model.draws import Draws
from pyrobnn.model.substitution import SubstituteMessenger
from pyrobnn.prediction.runners import model_outputs
from pyrobnn.training.running_statistics import BATCH_NORMS

__all__ = ["broken_assumptions", "exact_divergence", "origins"]


def exact_divergence(model: Any, guide: Guide, prior: Guide | None, inputs: Any) -> tuple[float, dict[str, PriorTerm]]:
    """The KL in nats, and the priors that it is from.

    Args:
        model: The model.
        guide: The posterior.
        prior: A guide that takes the place of the model's prior.
        inputs: A few inputs, for a run of the model that shows its priors.

    Raises:
        ValueError: If it is not one in closed form, the same for every draw.
    """
    kind = type(guide).__name__
    if not guide.facts.is_ready:
        raise ValueError(f"guide: {kind} is no distribution before it is fitted; call its fit() first.")
    draw = Draws.of(guide.sample(1)).at(0)
    with SubstituteMessenger(draw) as run:
        model_outputs(model, inputs)
    priors = {name: term for name, term in prior_terms(run.latent).items() if name in guide.layout}
    if prior is None:
        for name, term in priors.items():
            if not (guide.layout[name].is_static and term.is_plain):
                raise ValueError(
                    f"model: the prior of {name!r} is learned, scaled, masked or depends on other sites, so it is not "
                    "fixed before the data; give the site a fixed prior."
                )
    else:
        priors = _of_guide(model, prior, guide)
    try:
        found = guide.divergence(draw, priors)
    except NotImplementedError as error:
        raise ValueError(f"guide: {kind} has no KL from a prior ({error}); use guides.MeanField.") from error
    if found.name != "KL" or not found.exact:
        what = f"'{found.name}'" if found.name != "KL" else "a KL that is estimated from one draw"
        raise ValueError(
            f"guide: the divergence of {kind} is {what}, but the bound needs a KL in closed form; use guides.MeanField "
            "with Normal priors, say."
        )
    return float(found.total.detach()), priors


def _of_guide(model: Any, prior: Guide, guide: Guide) -> dict[str, PriorTerm]:
    check_guide(model, prior, argument="prior")
    if not (prior.facts.is_ready and prior.facts.gaussian == prior.facts.sites):
        raise ValueError(
            f"prior: a KL in closed form needs independent Gaussians, which {type(prior).__name__} is not; use "
            "guides.MeanField."
        )
    return {name: PriorTerm(prior.marginal(name)) for name in guide.layout}


def broken_assumptions(model: nn.Module, prior: Guide | None, prior_data: Any, loader: Any) -> tuple[str, ...]:
    """Which assumptions are known to be broken.

    Args:
        model: The model.
        prior: The guide that is the prior, if one is.
        prior_data: Rows that the model's prior was learned from.
        loader: The rows that the bound is taken on.
    """
    found = []
    if prior is not None and were_trained_on(prior, loader):
        found.append("the prior was trained on rows that the bound is taken on")
    if prior_data is not None and share_rows(prior_data, loader):
        found.append("the prior was learned from rows that the bound is taken on (prior_data)")
    if free := [name for name, parameter in model.named_parameters() if parameter.requires_grad]:
        found.append(f"{len(free)} parameters without a prior are trained on the data, such as {free[0]!r}")
    norms = [name for name, layer in model.named_modules() if isinstance(layer, BATCH_NORMS)]
    if norms:
        found.append(f"the running statistics of BatchNorm, such as {norms[0]!r}, depend on the data")
    return tuple(found)


def origins(priors: Mapping[str, PriorTerm]) -> tuple[str, ...]:
    """A note on priors whose means differ from weight to weight, as if they had been learned."""
    for name, term in priors.items():
        mean = base_distribution(term.distribution).mean.detach()
        if mean.numel() and bool((mean != mean.reshape(-1)[0]).any()):
            return (
                f"the prior of {name!r} is centered at weights: the bound holds only if they were not learned from "
                "these rows (prior_data= says from which)",
            )
    return ()
