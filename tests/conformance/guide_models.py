"""The models that every guide is held to: small, and each with a difficulty of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyrobnn import likelihoods, priors
from pyrobnn.model.bayesianize import bayesianize
from pyrobnn.model.supervised import SupervisedModel

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Case:
    """A model and a batch of data for it; both are the same at each call.

    Attributes:
        observed: The name of the observed site.
        needs_example: Whether the model's sites are known only after a run with data.
        has_plates: Whether latent sites lie in a plate.
    """

    name: str
    make_model: Callable[[], nn.Module]
    make_batch: Callable[[], Batch]
    observed: str = "y"
    needs_example: bool = False
    has_plates: bool = False

    def __str__(self) -> str:
        return self.name

    def model(self) -> nn.Module:
        """A new model."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(20)
            return self.make_model()

    def batch(self) -> Batch:
        """Inputs and targets of 12 of 24 data."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(21)
            return self.make_batch()


def _network(outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, outputs))


def _classification() -> nn.Module:
    return SupervisedModel(_network(3), likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=24)


def _latent_noise() -> nn.Module:
    noise = likelihoods.Normal(dist.LogNormal(0.0, 0.5))
    return SupervisedModel(_network(1), noise, dist.Normal(0.0, 1.0), num_data=24)


def _horseshoe() -> nn.Module:
    return SupervisedModel(_network(1), likelihoods.Normal(0.5), priors.horseshoe(), num_data=24)


def _learned_scale() -> nn.Module:
    return SupervisedModel(_network(1), likelihoods.Normal(0.5), priors.learned_scale(), num_data=24)


def _convolutional() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3))
    return SupervisedModel(net, likelihoods.Categorical(), priors.lecun(), num_data=24)


class UserModel(PyroModule):
    """What a user writes: a converted network, group effects in a plate, a precision with a Gamma prior."""

    def __init__(self) -> None:
        super().__init__()
        self.net = bayesianize(_network(1), dist.Normal(0.0, 1.0))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Draws or scores the observations."""
        mean = self.net(x).squeeze(-1)
        with pyro.plate("groups", 3):
            effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
        precision = pyro.sample("precision", dist.Gamma(2.0, 1.0))
        group = torch.arange(len(x)) % 3
        with pyro.plate("data", 24, subsample=torch.arange(len(x))):
            return pyro.sample("obs", dist.Normal(mean + effect[group], precision.rsqrt()), obs=y)


def _classes() -> Batch:
    return torch.randn(12, 3), torch.randint(3, (12,))


def _regression() -> Batch:
    return torch.randn(12, 3), torch.randn(12, 1)


def _vector() -> Batch:
    return torch.randn(12, 3), torch.randn(12)


def _images() -> Batch:
    return torch.randn(12, 1, 4, 4), torch.randint(3, (12,))


CASES = [
    Case("classification", _classification, _classes),
    Case("latent_noise", _latent_noise, _regression),
    Case("horseshoe", _horseshoe, _regression),
    Case("learned_scale", _learned_scale, _regression),
    Case("user_model", UserModel, _vector, observed="obs", needs_example=True, has_plates=True),
    Case("convolutional", _convolutional, _images),
]
"""All of them."""

BATCH_NORM = CASES[-1]
"""The one with running statistics."""

SMOOTH = CASES[:-1]
"""Those whose loss does not depend on running statistics."""
