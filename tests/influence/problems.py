"""Models with known maxima: logistic regression on digits 3 and 8, conjugate regression, a small classifier."""

from __future__ import annotations

from dataclasses import dataclass

import pyro.distributions as dist
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn import influence
from pyrobnn.guides import MAP
from tests.conformance.conjugate import ConjugateRegression


@dataclass
class Problem:
    """A model at its maximum, training data in two batches, and test data."""

    model: pb.SupervisedModel
    guide: MAP
    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor

    @property
    def loader(self) -> list[tuple[Tensor, Tensor]]:
        half = len(self.x) // 2
        return [(self.x[:half], self.y[:half]), (self.x[half:], self.y[half:])]


def logistic(num_data: int = 100, prior_scale: float = 1.0) -> Problem:
    """Digits 3 and 8 of scikit-learn's 8 x 8 images, in double precision, and 20 others as test data."""
    x, y = (torch.as_tensor(value) for value in load_digits(return_X_y=True))
    chosen = (y == 3) | (y == 8)
    x, y = (x[chosen] / 16.0).double(), (y[chosen] == 8).double().unsqueeze(1)
    net = nn.Linear(64, 1).double()
    torch.nn.init.zeros_(net.weight)
    model = pb.SupervisedModel(net, pb.likelihoods.Bernoulli(), dist.Normal(0.0, prior_scale), num_data=num_data)
    model = model.double()
    train, test = slice(0, num_data), slice(len(x) - 20, len(x))
    guide = influence.refit(model, MAP(model), [(x[train], y[train])], tolerance=1e-9)
    return Problem(model, guide, x[train], y[train], x[test], y[test])


def regression(num_data: int = 30) -> tuple[ConjugateRegression, Problem]:
    """Conjugate regression at its exact maximum."""
    exact = ConjugateRegression(num_data=num_data)
    model = exact.model()
    guide = MAP(model, init={"net.weight": exact.mean[:3].view(1, 3), "net.bias": exact.mean[3:]})
    generator = torch.Generator().manual_seed(1)
    test_x = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    test_y = torch.randn(5, 1, generator=generator, dtype=torch.float64)
    return exact, Problem(model, guide, exact.x, exact.y, test_x, test_y)


def classifier(num_data: int = 24, dtype: torch.dtype = torch.float64) -> Problem:
    """A network with a hidden layer, a norm layer and dropout, for three classes of clusters; at a maximum."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(num_data + 6) % 3
    centers = torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.0]])
    x = (centers[y] + 0.5 * torch.randn(len(y), 2, generator=generator)).to(dtype)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.2), nn.Linear(4, 3)).to(dtype)
        prior = [("1.*", None), ("*", dist.Normal(0.0, 1.0))]
        model = pb.SupervisedModel(net, pb.likelihoods.Categorical(), prior, num_data=num_data).to(dtype)
        guide = MAP(model)
    tolerance = 1e-8 if dtype == torch.float64 else 1e-3
    guide = influence.refit(model, guide, [(x[:num_data], y[:num_data])], tolerance=tolerance)
    return Problem(model, guide, x[:num_data], y[:num_data], x[num_data:], y[num_data:])
