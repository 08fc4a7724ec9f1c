"""Which weights an estimator applies to."""

from __future__ import annotations

from torch import nn

from pyrobnn.core.explanations import explained
from pyrobnn.core.pyro_compat import full_name
from pyrobnn.estimators.base import EstimatorSpec, by_site, resolve
from pyrobnn.model.bayesianize import bayesian_modules

__all__ = ["coverage"]


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
    owners: dict[str, list[nn.Module]] = {}
    for converted in bayesian_modules(model):
        for site, names in converted.parameter_names.items():
            modules = [converted.network.get_submodule(name.rpartition(".")[0]) for name in names]
            owners[full_name(converted, site)] = modules
    chosen = by_site(resolve(estimator), list(owners))
    reached = {
        site: site in chosen and all(isinstance(module, chosen[site].handles) for module in modules)
        for site, modules in owners.items()
    }
    whole_step = [e for _, e in resolve(estimator) if e.path_derivative]
    return {site: chosen[site].name if reached[site] or whole_step else "shared" for site in owners}
