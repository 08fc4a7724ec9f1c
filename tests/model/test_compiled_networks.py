"""Networks that ``torch.compile`` has wrapped train and predict as the plain ones do."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pyrobnn as pb
from pyrobnn import likelihoods
from pyrobnn.guides import MeanField
from pyrobnn.model.supervised import SupervisedModel


def trained(net: nn.Module) -> tuple[list[float], list[Tensor]]:
    """The ELBO by epoch, and predictions by each method."""
    x = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    model = SupervisedModel(net, likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=12)
    guide = MeanField(model, init_scale=0.1)
    loader = DataLoader(TensorDataset(x, torch.arange(12) % 3), 6)
    history = pb.fit(model, guide, loader, epochs=2, seed=1, progress=False)
    found = [pb.predict(model, guide, x, 8, seed=2, method=method).mean for method in ("auto", "loop", "vmap")]
    return list(history.elbo), found


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # which Dynamo reads of the draws
def test_a_compiled_network_is_trained_and_predicted_like_the_plain_one() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    elbo, wanted = trained(net)
    compiled_elbo, found = trained(torch.compile(net, backend="eager"))  # type: ignore[arg-type]
    torch.testing.assert_close(compiled_elbo, elbo)
    torch.testing.assert_close(found, wanted)
