r"""What the posterior learned about each weight: signal-to-noise ratio, and distance from the prior.

For a weight with posterior mean :math:`\mu` and standard deviation :math:`\sigma` the signal-to-noise ratio
is :math:`|\mu| / \sigma`; a weight *sits at its prior* if :math:`\mathrm{KL}(q(w_i) \,\|\, p(w_i))` is below
0.01 nats (a mean shifted by 0.14 prior standard deviations, say): the data carry no information about it. Variational
networks that are too wide for their data park most weights there.

Graves, *Practical variational inference for neural networks* (2011); Blundell et al., *Weight Uncertainty in
Neural Networks* (2015); Trippe & Turner, *Overpruning in variational Bayesian neural networks* (2017).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from pyrobnn.core.arguments import check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.diagnostics._draws import undisturbed
from pyrobnn.distributions.independent import base_distribution
from pyrobnn.guides.base import Guide, check_guide
from pyrobnn.model.declarations import latent_sampler
from pyrobnn.model.layout import Site
from pyrobnn.model.substitution import SubstituteMessenger

__all__ = ["AT_PRIOR", "WeightStatistics", "weight_statistics"]

AT_PRIOR = 0.01
"""KL from the prior, in nats, below which a weight sits at its prior."""


@dataclass(frozen=True)
class WeightStatistics:
    """One latent site.

    Attributes:
        size: Number of elements.
        at_prior: Share of elements that sit at their prior; None if the guide's density by element is not
            known.
        signal_to_noise: Median of ``|mean| / standard deviation``; None for a point estimate.
        above_noise: Share of elements whose mean exceeds their standard deviation; None for a point estimate.
    """

    size: int
    at_prior: float | None
    signal_to_noise: float | None
    above_noise: float | None


@explained
def weight_statistics(model: Any, guide: Guide, *args: Any, num_samples: int = 200) -> dict[str, WeightStatistics]:
    """Statistics of each latent site.

    Args:
        model: The Pyro model.
        guide: A guide of this library.
        *args: Arguments of the model; needed only by models whose sites are not known without data.
        num_samples: Draws, where moments or KL have no closed form and for priors that depend on other sites.

    Returns:
        The statistics by site, in the guide's order.

    Raises:
        TypeError: If the guide is not of this library.
    """
    check_guide(model, guide)
    check_positive_int("num_samples", num_samples)
    with undisturbed(model):
        divergence = _kl_by_element(model, guide, args, num_samples)
        draws = guide.sample(num_samples)
        return {
            site.name: _statistics(site, divergence.get(site.name), *_moments(guide, site, draws[site.name]))
            for site in guide.layout.values()
        }


def _statistics(site: Site, divergence: Tensor | None, mean: Tensor, std: Tensor) -> WeightStatistics:
    at_prior = None if divergence is None else (divergence < AT_PRIOR).double().mean().item()
    ratio = mean.abs() / std
    is_point = bool((std == 0).all())
    return WeightStatistics(
        size=mean.numel(),
        at_prior=at_prior,
        signal_to_noise=None if is_point else ratio.median().item(),
        above_noise=None if is_point else (ratio > 1).double().mean().item(),
    )


def _moments(guide: Guide, site: Site, draws: Tensor) -> tuple[Tensor, Tensor]:
    with contextlib.suppress(NotImplementedError):
        factor: Any = guide.elementwise_marginal(site.name)
        return factor.mean, factor.variance.sqrt()
    return draws.mean(0), draws.std(0) if len(draws) > 1 else torch.zeros_like(draws[0])


def _kl_by_element(model: Any, guide: Guide, args: tuple[Any, ...], num_samples: int) -> dict[str, Tensor]:
    """``KL(q(w_i) ‖ p(w_i | other sites))`` by element, averaged over draws; sites without one left out."""
    if not guide.facts.density:
        return {}
    totals: dict[str, Tensor] = {}
    sample_latents = latent_sampler(model)
    # A prior that does not depend on other sites, and a closed form, make all draws equal: one is enough
    # then.
    used, is_exact = 0, False
    while used < num_samples and not is_exact:
        used += 1
        values = {name: value[0] for name, value in guide.sample(1).items()}
        with SubstituteMessenger(values) as run:
            model(*args) if sample_latents is None else sample_latents()
        is_exact = True
        for message in run.latent:
            site = guide.layout.get(message["name"])
            if site is None or site.name not in guide.facts.density:
                continue
            with contextlib.suppress(NotImplementedError):
                terms, closed = _terms(guide, site, message["value"], message["fn"])
                if terms.shape == site.shape:
                    totals[site.name] = totals.get(site.name, 0.0) + terms.double()
                    is_exact &= closed and site.is_static
    return {name: total / used for name, total in totals.items()}


def _terms(guide: Guide, site: Site, value: Tensor, prior: Any) -> tuple[Tensor, bool]:
    """The KL by element and whether it is exact; else its one-draw estimate, which is zero where q is p."""
    factor, prior = base_distribution(guide.elementwise_marginal(site.name)), base_distribution(prior)
    with contextlib.suppress(NotImplementedError):
        return kl_divergence(factor, prior).expand(value.shape), True
    return factor.log_prob(value) - prior.log_prob(value), False
