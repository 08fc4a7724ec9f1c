r"""What a posterior says of a function at a *set* of inputs: K whole functions, their mean and their covariance.

A :class:`~pyrobnn.Prediction` has marginals, one input at a time. Decisions that compare inputs (the best of many
candidates, the best arm) need functions: row k of :attr:`JointPrediction.draws` is one function at all inputs.

With f the network's outputs at N inputs, O numbers each, as a vector of ``N · O``,

.. math::  \mathrm{Cov}[f] = \frac1K \sum_k (f_k - \bar f)(f_k - \bar f)^\top

for draws of weights; where the posterior over functions is Gaussian (a linearized network, a Gaussian process), its
mean and covariance are exact. Targets that are independent given f have

.. math::  \mathrm{Cov}[y] = \mathrm{Cov}\big[E[y \mid f]\big] + \mathrm{diag}\, E\big[\mathrm{Var}[y \mid f]\big].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from pyrobnn.core import random_state
from pyrobnn.core.arguments import check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.model.likelihoods import ClassLikelihood, Likelihood
from pyrobnn.model.likelihoods.gaussian_prediction import GaussianPrediction
from pyrobnn.model.likelihoods.predictions import Prediction
from pyrobnn.model.likelihoods.reductions import widened

__all__ = ["JointPrediction", "parameters_under"]


@dataclass
class JointPrediction:
    """Functions of a posterior at a set of inputs.

    Attributes:
        mean: Mean of the functions ``[N, *outputs]``, in the units of the network's outputs (logits, for classes).
        draws: K functions ``[K, N, *outputs]``.
        parameters: The likelihood's parameters under each of them, by name, ``[K, N, ...]``.
        likelihood: The likelihood.
        exact_covariance: ``[N · O, N · O]`` where the functions are Gaussian, outputs of an input next to each other;
            else None.
        exact_targets: The Gaussian of all targets, as those of one input, where it has a closed form; else None.
    """

    mean: Tensor
    draws: Tensor
    parameters: Mapping[str, Tensor] = field(repr=False)
    likelihood: Likelihood = field(repr=False)
    exact_covariance: Tensor | None = field(default=None, repr=False)
    exact_targets: Prediction | None = field(default=None, repr=False)

    @property
    def num_samples(self) -> int:
        """Number K of functions."""
        return len(self.draws)

    @cached_property
    def covariance(self) -> Tensor:
        """Of all outputs at all inputs, ``[N · O, N · O]``: exact if it is known, else that of the draws."""
        return _covariance(self.draws.flatten(1)) if self.exact_covariance is None else self.exact_covariance

    @property
    def covariance_by_output(self) -> Tensor:
        """Of each output by itself at all inputs, ``[O, N, N]``; the covariances between outputs are left out."""
        count = len(self.mean)
        if self.exact_covariance is None:
            return torch.stack([_covariance(values) for values in self.draws.flatten(2).unbind(2)])
        whole = self.exact_covariance.reshape(count, -1, count, self.mean[0].numel())
        return whole.diagonal(dim1=1, dim2=3).movedim(-1, 0)

    @property
    def variance(self) -> Tensor:
        """Of each output at each input, ``[N, *outputs]``."""
        if self.exact_covariance is None:
            return self.draws.var(0, correction=0)
        return self.exact_covariance.diagonal().reshape(self.mean.shape)

    @explained
    def sample(self, num_samples: int, *, seed: int | None = None) -> Tensor:
        """Further functions ``[num_samples, N, *outputs]``: of the Gaussian, else some of the draws, with replacement.

        Args:
            num_samples: How many.
            seed: Fixes them, and leaves torch's random state alone; None uses that.

        Raises:
            ValueError: If ``num_samples`` is not positive, or the exact covariance is not positive semi-definite.
        """
        check_positive_int("num_samples", num_samples)
        with random_state.local(seed):
            if self.exact_covariance is None:
                return self.draws[torch.randint(len(self.draws), (num_samples,)).to(self.draws.device)]
            root = _root(self.exact_covariance)
            noise = torch.randn(num_samples, root.shape[1], dtype=root.dtype).to(root.device)
        return self.mean + (noise @ root.mT).reshape(num_samples, *self.mean.shape)

    # ------------------------------------------------------------------------------------------------ targets

    @property
    def expectations(self) -> Tensor:
        """The expected targets under each function, ``[K, N, ...]``; of classes their probabilities."""
        if isinstance(self.likelihood, ClassLikelihood):
            return torch.func.vmap(self.likelihood.expectation)(widened(self.draws))
        return self.likelihood.distribution(self.parameters).mean

    @property
    def target_mean(self) -> Tensor:
        """Mean of the targets ``[N, ...]``.

        Raises:
            TypeError: If targets are classes.
        """
        self._refuse_classes()
        return self.expectations.mean(0) if self.exact_targets is None else self.exact_targets.mean[0]

    @property
    def target_covariance(self) -> Tensor:
        """Of all targets at all inputs ``[N · D, N · D]``, those of an input next to each other.

        Raises:
            TypeError: If targets are classes.
        """
        self._refuse_classes()
        if isinstance(self.exact_targets, GaussianPrediction):
            return self.exact_targets.covariance[0]
        found = self.likelihood.distribution(self.parameters)
        return _covariance(found.mean.flatten(1)) + found.variance.mean(0).flatten().diag()

    def _refuse_classes(self) -> None:
        if isinstance(self.likelihood, ClassLikelihood):
            raise TypeError(
                "target: classes have no mean or covariance; use expectations, the probabilities under each function."
            )


def parameters_under(likelihood: Likelihood, functions: Tensor) -> dict[str, Tensor]:
    """The likelihood's parameters ``[K, N, ...]`` under functions ``[K, N, *outputs]``."""
    return torch.func.vmap(lambda outputs: _widened(likelihood.parameters_of(widened(outputs))))(functions)


def _widened(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: widened(value) for name, value in found.items()}


def _covariance(values: Tensor) -> Tensor:
    """Of the columns of ``[K, D]``, as predictions count epistemic variances: divided by K."""
    centered = values - values.mean(0)
    return centered.mT @ centered / len(values)


def _root(covariance: Tensor) -> Tensor:
    """``R`` with ``R Rᵀ`` the covariance, which may be singular."""
    values, vectors = torch.linalg.eigh(covariance)
    smallest, largest = float(values.min()), float(values.max())
    if smallest < -(torch.finfo(values.dtype).eps ** 0.5) * max(largest, 0.0) or largest < 0.0:
        raise ValueError(
            f"covariance: it is not positive semi-definite (the smallest eigenvalue is {smallest:.3g}, the largest "
            f"{largest:.3g}); compute it in double precision (model.double(), guide.double())."
        )
    return vectors * values.clamp_min(0.0).sqrt()
