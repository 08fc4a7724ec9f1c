"""What the limit of a network takes from a model: the plain network, and the scales of its priors."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pyrobnn.distributions.independent import base_distribution
from pyrobnn.model.bayesianize import BayesianModule, bayesianize
from pyrobnn.model.supervised import SupervisedModel

__all__ = ["network_of", "prior_scales"]


def network_of(model: nn.Module) -> BayesianModule:
    """The network with its priors.

    Raises:
        TypeError: If the model is of another kind.
        ValueError: If the likelihood is given a part of what the network returns.
    """
    if isinstance(model, BayesianModule):
        return model
    if isinstance(model, SupervisedModel):
        if model.output is not None:
            raise ValueError(
                "model: output= selects a part of what the network returns; pass a network that returns it."
            )
        net = model.net
        assert isinstance(net, BayesianModule)
        return net
    if isinstance(model, nn.Module):
        return bayesianize(model)
    raise TypeError(f"model: expected a SupervisedModel or a network, got {type(model).__name__}.")


def prior_scales(net: BayesianModule) -> dict[str, Tensor]:
    """Prior standard deviation of each parameter, one number each, in double precision.

    Raises:
        ValueError: If a prior is not Normal with mean 0 and one fixed scale.
    """
    found = {}
    for name, prior in net.site_priors.items():
        base = prior.normal()
        if base is None:
            what = "depends on other sites" if prior.auxiliary else f"is {_name(prior.conditional())}"
            raise ValueError(
                f"prior of {name!r}: the limit is a Gaussian process for Normal priors of mean 0, and this one {what}; "
                "state a Normal with its variance."
            )
        loc, scale = base.loc.detach(), base.scale
        if bool((loc != 0).any()) or bool((scale != scale.flatten()[0]).any()):
            raise ValueError(
                f"prior of {name!r}: the limit needs mean 0 and one scale for all entries, so that hidden units are "
                "exchangeable; state such a prior."
            )
        found[name] = scale.flatten()[0].double()
    return found


def _name(prior: Any) -> str:
    return type(prior if isinstance(prior, Tensor) else base_distribution(prior)).__name__
