"""Objectives as modules."""

from __future__ import annotations

import copy

import pyro
import pytest
import torch
from torch import nn

import pyrobnn as pb
from pyrobnn.objectives import ELBO


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # which Dynamo reads of the draws
@pytest.mark.parametrize("family", [pb.guides.MeanField, pb.guides.DeltaMixture])
def test_a_compiled_module_gives_the_same_loss_and_gradients(family: type[pb.guides.Guide]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
    model = pb.SupervisedModel(net, pb.likelihoods.Normal(0.1), num_data=8)
    guide = family(model)
    x, y = torch.randn(8, 2), torch.randn(8, 1)
    results = []
    for compiled in (False, True):
        module = ELBO(num_particles=2)(copy.deepcopy(model), copy.deepcopy(guide))
        run = torch.compile(module, backend="eager") if compiled else module
        torch.manual_seed(1)
        with pyro.validation_enabled(False):  # which Dynamo switches off, and Pyro back on
            loss = run(x, y)
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in module.parameters() if p.grad is not None)])
    assert len(results[0]) > 1
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


def test_a_copy_has_parameters_of_its_own() -> None:
    torch.manual_seed(0)
    model = pb.SupervisedModel(nn.Linear(2, 1), pb.likelihoods.Normal(0.1), num_data=4)
    module = ELBO()(model, pb.guides.MAP(model))
    other = copy.deepcopy(module)
    batch = torch.randn(4, 2), torch.randn(4, 1)
    before = module(*batch)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    assert torch.equal(module(*batch), before) and not torch.equal(other(*batch), before)
