"""Where chains start, and starts from which none can."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyrobnn import likelihoods
from pyrobnn.guides import MAP, MeanField
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.sampling import (
    SGLD,
    NonFiniteLossError,
)
from tests.sampling.models import classifier, quick, rows


def test_starts() -> None:
    """A step of size 1e-30 leaves the start as it is."""
    model = classifier()
    stay = {"kernel": SGLD(1e-30), "num_samples": 1, "num_chains": 3}
    weight = model.net.network[0].weight.detach()
    starts = {
        "network": quick(model, **stay),
        "prior": quick(model, **stay, init="prior"),
        "module": quick(model, **stay, init=model.net.network),
        "point": quick(model, **stay, init=MAP(model)),
        "gaussian": quick(model, **stay, init=MeanField(model)),
        "list": quick(model, **stay, init=[{"net.0.weight": torch.full((4, 3), float(i))} for i in range(3)]),
        "function": quick(model, **stay, init=lambda name, prior: prior.sample()),
    }
    values = {name: guide.by_chain()["net.0.weight"][:, 0] for name, guide in starts.items()}
    assert torch.equal(values["network"][0], weight)
    for name in ("network", "prior", "gaussian", "function"):
        assert not torch.equal(values[name][0], values[name][1]), name
    for name in ("module", "point"):
        assert torch.equal(values[name], weight.expand(3, 4, 3)), name
    assert values["list"][:, 0, 0].round().tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("num_chains", [2, 3])
def test_fresh_starts_differ_from_a_network_built_under_the_same_seed(num_chains: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    weights = quick(classifier(net), kernel=SGLD(1e-30), seed=0, num_chains=num_chains).by_chain()["net.0.weight"][:, 0]
    assert len({float(weight.sum()) for weight in weights}) == num_chains


def test_a_start_that_is_not_finite_names_the_site() -> None:
    model = classifier()
    starts = [{"net.0.bias": torch.full((4,), value)} for value in (0.0, float("nan"))]
    with pytest.raises(ValueError, match=r"^init: .*site 'net.0.bias' is NaN"):
        quick(model, num_chains=2, init=starts)
    noise = SupervisedModel(nn.Linear(3, 1), likelihoods.Normal(0.1), dist.Normal(0.0, 1.0), num_data=24)
    start = {"net.weight": torch.full((1, 3), 1e30)}
    with pytest.raises(NonFiniteLossError, match=r"log density of the site 'y' is -inf"):
        quick(noise, (rows()[0], torch.randn(24, 1)), init=start)
