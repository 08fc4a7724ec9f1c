r"""Neural-linear rewards: exact linear regressions on the last features of a network that is trained on the way.

.. math::  r = \varphi(x)^\top w_a + b_a + \sigma \epsilon, \qquad w_a, b_a \sim N(0, s^2),

with features :math:`\varphi` of a network trained as a point (MAP) to predict the rewards of all arms. Only the last
layer has a posterior, which is exact given the features. After each refit it is computed anew from all observations.

Riquelme, Tucker and Snoek, "Deep Bayesian bandits showdown", ICLR 2018, where it is the best method on most problems.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.core.arguments import check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.decisions.rewards import LinearRewards, NeuralRewards
from pyrobnn.guides.map import MAP
from pyrobnn.model.likelihoods import Normal
from pyrobnn.model.supervised import SupervisedModel

__all__ = ["NeuralLinearRewards"]

_BODY = "body."


@explained
class NeuralLinearRewards:
    """Bayesian linear regressions on a network's features, one for each arm.

    Args:
        body: From contexts ``[B, d]`` to features ``[B, F]``. It is copied, and trained with a linear layer on top.
        num_features: Number F of features.
        num_arms: Number A of arms.
        noise: Standard deviation σ of rewards.
        prior_scale: Standard deviation s of the last layer's weights.
        refit_every: Observations between refits of the network; the first is after as many.
        options: Further arguments of :class:`NeuralRewards`, such as ``steps``.

    Raises:
        TypeError: If ``body`` is no module.
        ValueError: If a number is not positive.
    """

    def __init__(
        self,
        body: nn.Module,
        num_features: int,
        num_arms: int,
        *,
        noise: float = 0.1,
        prior_scale: float = 1.0,
        refit_every: int = 50,
        **options: Any,
    ) -> None:
        if not isinstance(body, nn.Module):
            raise TypeError(f"body: expected a module from contexts to features, got {type(body).__name__}.")
        check_positive_int("num_features", num_features)
        self.num_arms, self.noise, self.prior_scale = num_arms, noise, prior_scale
        self.regressions = LinearRewards(num_features, num_arms, noise, prior_scale, self.features)
        net = _Network(body, nn.Linear(num_features, num_arms))
        model = SupervisedModel(net, Normal(noise, missing=True), num_data=1)
        self.network = NeuralRewards(model, MAP(model), num_arms, refit_every=refit_every, **options)
        self._weights = self._trained()

    @torch.no_grad()
    def features(self, contexts: Tensor) -> Tensor:
        """The present features of a context ``[d]``, or of several ``[B, d]``."""
        net: Any = self.network.model.net.network
        found = torch.func.functional_call(net.body, self._weights, (torch.atleast_2d(contexts),))
        return found if contexts.dim() > 1 else found[0]

    def sample(self, context: Tensor) -> Tensor:
        """Rewards ``[A]`` under one draw of the last layer."""
        return self.regressions.sample(context)

    def moments(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the expected rewards, ``[A]`` each."""
        return self.regressions.moments(context)

    def observe(self, context: Tensor, arm: int, reward: float) -> None:
        """Adds one observation; where the network is refitted, all are added anew, with the new features."""
        self.network.observe(context, arm, reward)
        if len(self.network.contexts) % self.network.refit_every:
            self.regressions.observe(context, arm, reward)
            return
        self._weights = self._trained()
        fresh = LinearRewards(self.regressions.num_inputs, self.num_arms, self.noise, self.prior_scale, self.features)
        for seen, rewards in zip(self.network.contexts, self.network.targets, strict=True):
            pulled = int(rewards.isfinite().nonzero())
            fresh.observe(seen, pulled, float(rewards[pulled]))
        self.regressions = fresh

    @torch.no_grad()
    def _trained(self) -> dict[str, Tensor]:
        """The body's weights at the point."""
        model = self.network.model
        with self.network.guide.starting_point().running(model, update=False):
            weights = model.net.sample_weights()
        return {name.removeprefix(_BODY): value.clone() for name, value in weights.items() if name.startswith(_BODY)}


class _Network(nn.Module):
    """A body and a linear layer."""

    def __init__(self, body: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))
