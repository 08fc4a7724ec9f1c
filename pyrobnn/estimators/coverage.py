"""Which weights an estimator applies to."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from pyrobnn.core.explanations import explained
from pyrobnn.core.pyro_compat import full_name
from pyrobnn.estimators.base import Estimator, EstimatorSpec, by_site, resolve
from pyrobnn.model.bayesianize import bayesian_modules

__all__ = ["coverage", "tied_beyond"]


@explained
def coverage(model: nn.Module, estimator: EstimatorSpec) -> dict[str, str]:
    """How the weights of a model's networks are drawn under an estimator.

    Args:
        model: The model.
        estimator: As for :class:`~pyrobnn.objectives.ELBO`.

    Returns:
        By site, the estimator's name, or ``"shared"`` where the layer is of a kind that it does not handle (a weight
        tied between layers needs all of them to be).

    Raises:
        ValueError: If a pattern matches no site.
    """
    owners = _owners(model)
    chosen = by_site(resolve(estimator), list(owners))
    reached = {
        site: site in chosen and all(isinstance(module, chosen[site].handles) for module in modules)
        for site, modules in owners.items()
    }
    whole_step = [e for _, e in resolve(estimator) if e.path_derivative]
    return {site: chosen[site].name if reached[site] or whole_step else "shared" for site in owners}


def tied_beyond(model: object, chosen: Mapping[str, Estimator]) -> set[str]:
    """Sites whose weight is tied between a layer that their estimator handles and one that it does not.

    Layers of the first kind would draw it in another way than those of the second, so it needs the shared draw.

    Args:
        model: The model; one that is no module has no such sites.
        chosen: The estimator of each site.
    """
    found = set()
    for site, modules in _owners(model).items() if isinstance(model, nn.Module) else ():
        if site in chosen:
            handled = {isinstance(module, chosen[site].handles) for module in modules}
            if len(handled) == 2:
                found.add(site)
    return found


def _owners(model: nn.Module) -> dict[str, list[nn.Module]]:
    """The modules that hold the weight of each site."""
    owners: dict[str, list[nn.Module]] = {}
    for converted in bayesian_modules(model):
        for site, names in converted.parameter_names.items():
            modules = [converted.network.get_submodule(name.rpartition(".")[0]) for name in names]
            owners[full_name(converted, site)] = modules
    return owners
