"""Agreement with dattri 0.3.0 on the same network, and with numbers that it gave."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pyrobnn as pb
from pyrobnn import influence
from pyrobnn.guides import MAP

N = 24


def network() -> nn.Module:
    """Two inputs, three hidden units, three classes; the same weights whatever torch's random numbers are."""
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    with torch.no_grad():
        for index, parameter in enumerate(net.parameters()):
            parameter.copy_(torch.sin(torch.arange(parameter.numel()) + 0.7 * index).reshape(parameter.shape))
    return net


def data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y = torch.arange(N + 4) % 3
    centers = torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.0]], dtype=torch.float64)
    noise = torch.stack([torch.sin(3.0 * torch.arange(N + 4)), torch.cos(5.0 * torch.arange(N + 4))], 1).double()
    x = centers[y] + 0.4 * noise
    return x[:N], y[:N], x[N:], y[N:]


def ours() -> tuple[Tensor, nn.Module]:
    """``I_up`` at the maximum under N(0, 1) priors, and the network there."""
    x, y, test_x, test_y = data()
    model = pb.SupervisedModel(network(), pb.likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=N).double()
    start = {f"net.{name}": value.detach() for name, value in network().named_parameters()}
    guide = influence.refit(model, MAP(model, init=start), [(x, y)], tolerance=1e-7)
    found = influence.Exact(model, guide, [(x, y)]).upweighting(test_x, test_y)
    net, point = network(), guide.starting_point()
    net.load_state_dict({name: point[f"net.{name}"] for name in net.state_dict()})
    return found, net


DATTRI = torch.tensor(
    [
        [-9.973742e-03, 2.613133e-04, -7.917559e-04, -1.103598e-02, 5.931636e-05, -6.909307e-04],
        [4.049092e-04, -7.727218e-03, -3.621840e-04, -4.152236e-05, -6.512906e-03, -1.852674e-03],
    ],
    dtype=torch.float64,
)
"""Minus what dattri 0.3.0 gives for the first two test data and six rows."""


def test_it_is_the_number_that_dattri_gave() -> None:
    torch.testing.assert_close(ours()[0][:2, :6], DATTRI, rtol=1e-4, atol=1e-8)


def test_it_is_dattris_number() -> None:
    """Explicit Hessian of the sum of losses, with the prior's precision as its regularization; its sign is ours, -."""
    algorithm: Any = pytest.importorskip("dattri.algorithm.influence_function", reason="dattri")
    task: Any = pytest.importorskip("dattri.task", reason="dattri")
    found, net = ours()
    x, y, test_x, test_y = data()

    def loss(params: Any, batch: Any) -> Tensor:
        inputs, labels = batch
        inputs = inputs if inputs.dim() > 1 else inputs.unsqueeze(0)
        outputs = torch.func.functional_call(net, params, inputs)
        return F.cross_entropy(outputs, labels.reshape(-1), reduction="sum")

    attribution = task.AttributionTask(loss_func=loss, model=net, checkpoints=net.state_dict())
    method = algorithm.IFAttributorExplicit(task=attribution, regularization=1.0)
    train, test = (DataLoader(TensorDataset(*pair), 100) for pair in ((x, y), (test_x, test_y)))
    method.cache(train)
    with torch.no_grad():
        theirs = method.attribute(train, test)
    torch.testing.assert_close(-theirs.T.double(), found, rtol=1e-5, atol=1e-8)
