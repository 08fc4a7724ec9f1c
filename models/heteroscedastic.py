r"""Regression whose noise depends on the input: :math:`y \sim N(\mu_w(x), \sigma_w(x)^2)` (Nix & Weigend 1994).

With a posterior over the weights the predictive variance is the mean of :math:`\sigma^2` (aleatoric) plus the variance
of :math:`\mu` (epistemic), as in Kendall & Gal (2017).
"""

from __future__ import annotations

from torch import nn

import pyrobnn as pb

__all__ = ["heteroscedastic", "tanh_network"]


def heteroscedastic(
    num_data: int,
    *,
    inputs: int = 1,
    targets: int = 1,
    hidden: int = 50,
    floor: float = 1e-3,
    beta: float = 0.0,
    warmup: int = 0,
) -> pb.SupervisedModel:
    """The model, for targets of unit scale (``pb.Standardizer``); pair it with any guide.

    Args:
        num_data: Number of training data.
        inputs: Input features.
        targets: Targets of a row, independent given the input.
        hidden: Units of each of two hidden layers.
        floor: Smallest standard deviation.
        beta: Of the β-NLL; 0 is the likelihood.
        warmup: Number of first evaluations in which σ is that of the batch's errors.
    """
    likelihood = pb.likelihoods.HeteroscedasticNormal(floor, beta=beta, warmup=warmup)
    return pb.SupervisedModel(tanh_network(inputs, 2 * targets, hidden), likelihood, num_data=num_data)


def tanh_network(inputs: int, outputs: int, hidden: int) -> nn.Module:
    """Two hidden layers of tanh units."""
    layers = [nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, outputs)]
    return nn.Sequential(*layers)
