import importlib.util

import pytest
import torch
from torch import Tensor

import pyrobnn as pb
from models.flow_regression import flow_regression

if importlib.util.find_spec("zuko") is None:
    pytest.skip("needs zuko, of the extra flows", allow_module_level=True)


def two_moons(count: int) -> Tensor:
    angle = torch.rand(count) * torch.pi
    upper = torch.stack([angle.cos(), angle.sin()], 1)
    lower = torch.stack([1.0 - angle.cos(), 0.5 - angle.sin()], 1)
    rows = torch.where(torch.rand(count, 1) < 0.5, upper, lower)
    return rows + 0.05 * torch.randn(count, 2)


@pytest.mark.statistical
def test_two_moons_are_0_4_nats_better_than_a_gaussian() -> None:
    """The density of 1000 points, whose input says nothing, against a full Gaussian; 2000 others to test."""
    torch.manual_seed(0)
    train, test = two_moons(1000), two_moons(2000)
    model = flow_regression(1000, targets=2, hidden=8, features=2, num_nodes=8)
    guide = pb.guides.MAP(model)
    pb.fit(model, guide, [(torch.zeros(1000, 1), train)], epochs=150, lr=0.01, progress=False)
    found = pb.predict(model, guide, torch.zeros(2000, 1), 1, return_draws=True).log_prob(test).mean()
    gaussian = torch.distributions.MultivariateNormal(train.mean(0), train.T.cov())
    assert float(found - gaussian.log_prob(test).mean()) > 0.4


def test_one_target_is_a_spline_of_outputs() -> None:
    model = flow_regression(5, inputs=3, bins=4)
    found = pb.predict(model, pb.guides.MeanField(model), torch.randn(5, 3), 4, return_draws=True)
    assert found.quantile(0.5).shape == (5, 1)
