"""What a network computes under draws: against the network run by hand."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.func import functional_call

import pyrobnn as pb
from pyrobnn import guides
from pyrobnn.detection import NetworkOutputs, network_outputs
from tests.detection.networks import CLASSES, DRAWS, FEATURES, data, posterior


def by_hand(
    model: pb.SupervisedModel, draws: dict[str, torch.Tensor], x: torch.Tensor
) -> list[tuple[torch.Tensor, ...]]:
    found = []
    for k in range(len(next(iter(draws.values())))):
        own = {name.removeprefix("net."): value[k] for name, value in draws.items()}
        net = model.net.network
        phi = torch.tanh(x @ own["0.weight"].mT + own["0.bias"])
        found.append((functional_call(net, own, x).detach(), phi.detach()))
    return found


@pytest.mark.parametrize("features", [False, True])
def test_outputs_are_those_of_the_draws_whatever_the_batches(features: bool) -> None:
    model, guide = posterior()
    x, y = data(17)
    draws = guide.sample(DRAWS)
    expected = by_hand(model, draws, x)
    loader = [(x[:9], y[:9]), (x[9:], y[9:])]
    for source, options in ((x, {}), (loader, {}), (x, {"batch_size": 5})):
        batches = list(network_outputs(model, draws, source, DRAWS, features=features, **options))
        logits = torch.cat([batch.logits for batch in batches], 1)
        assert torch.allclose(logits, torch.stack([s for s, _ in expected]), atol=1e-5)
        if features:
            phi = torch.cat([batch.features for batch in batches], 1)
            assert torch.allclose(phi, torch.stack([f for _, f in expected]), atol=1e-5)
            weight, bias = batches[-1].weight, batches[-1].bias
            assert torch.equal(weight, draws["net.2.weight"])
            assert torch.equal(bias, draws["net.2.bias"])
        else:
            assert batches[0].features is None
    assert torch.equal(torch.cat([batch.targets for batch in network_outputs(model, draws, loader, DRAWS)]), y)


def test_same_seed_same_draws_with_and_without_features() -> None:
    model, guide = posterior()
    x, _ = data(11)
    state = torch.get_rng_state()
    (first,) = network_outputs(model, guide, x, DRAWS, seed=3)
    (second,) = network_outputs(model, guide, [(x, None)], DRAWS, seed=3, features=True)
    (third,) = network_outputs(model, guide, x, DRAWS, seed=4)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.allclose(first.logits, second.logits, atol=1e-5)
    assert not torch.allclose(first.logits, third.logits, atol=1e-2)
    assert (first.num_samples, len(first), first.seed) == (DRAWS, 11, 3)
    mean = pb.predict(model, guide, x, DRAWS, seed=3).log_mean
    assert torch.allclose(first.log_mean, mean, atol=1e-5)


def test_a_linearized_posterior_has_outputs_but_no_features() -> None:
    model, _ = posterior()
    x, y = data()
    laplace = guides.Laplace(model, structure="diagonal").fit(model, [(x, y)])
    (found,) = network_outputs(model, laplace, x, DRAWS, seed=1)
    expected = pb.predict(model, laplace, x, DRAWS, seed=1, return_draws=True).parameters
    assert torch.allclose(found.log_probs, expected["log_probs"], atol=1e-5)
    with pytest.raises(ValueError, match=r"features.*predictor='weights'"):
        network_outputs(model, laplace, x, DRAWS, features=True)
    (run,) = network_outputs(model, laplace, x, DRAWS, features=True, predictor="weights")
    assert run.features.shape == (DRAWS, 60, FEATURES)


def test_features_of_other_networks() -> None:
    x, y = torch.rand(8, 1, 6, 6), torch.arange(8) % CLASSES
    torch.manual_seed(0)
    pooled = nn.Sequential(
        nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Conv2d(5, CLASSES, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    model = pb.SupervisedModel(pooled, pb.likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=8)
    (found,) = network_outputs(model, guides.MAP(model), [(x, y)], 1, features=True)
    expected = pooled[1](pooled[0](x)).mean((2, 3))
    assert torch.allclose(found.features[0], expected, atol=1e-5)
    assert found.weight is None  # a convolution has no matrix [C, F]
    (named,) = network_outputs(model, guides.MAP(model), [(x, y)], 1, features=True, layer="0")
    assert torch.allclose(named.features[0], x.flatten(2).mean(-1), atol=1e-6)
    with pytest.raises(ValueError, match=r"layer: the network has no layer '9'; it has 0, 2"):
        list(network_outputs(model, guides.MAP(model), x, 1, features=True, layer="9"))
    # A Pyro model of one's own, with a likelihood
    own = pb.bayesianize(
        nn.Sequential(nn.Linear(2, FEATURES), nn.Tanh(), nn.Linear(FEATURES, CLASSES)), dist.Normal(0, 1)
    )
    inputs, _ = data(9)
    likelihood = pb.likelihoods.Categorical()
    (found,) = network_outputs(own, guides.MAP(own), inputs, 1, features=True, likelihood=likelihood)
    assert found.features.shape == (1, 9, FEATURES)
    assert found.weight is not None


def test_bad_use_is_refused() -> None:
    model, guide = posterior()
    x, _ = data(5)
    real = pb.SupervisedModel(nn.Linear(2, 1), pb.likelihoods.Normal(), dist.Normal(0.0, 1.0), num_data=5)
    with pytest.raises(TypeError, match="likelihood: detectors need a likelihood of classes"):
        network_outputs(real, guides.MAP(real), x, 1)
    maps = pb.SupervisedModel(
        nn.Conv2d(1, 3, 1), pb.likelihoods.Categorical(class_dim=1), dist.Normal(0.0, 1.0), num_data=5
    )
    with pytest.raises(ValueError, match="model: detectors score inputs with one label each"):
        list(network_outputs(maps, guides.MAP(maps), torch.rand(2, 1, 4, 4), 1))
    with pytest.raises(ValueError, match="data: it holds no inputs"):
        list(network_outputs(model, guide, x[:0], 2))
    with pytest.raises(ValueError, match="logits: those of input 1 are NaN"):
        NetworkOutputs(torch.tensor([[[0.0, 1.0], [float("nan"), 0.0]]]))
    with pytest.raises(ValueError, match=r"logits: expected a floating-point tensor \[K, N, C\]"):
        NetworkOutputs(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="features: expected shape"):
        NetworkOutputs(torch.zeros(2, 3, 2), torch.zeros(2, 4, 5))
