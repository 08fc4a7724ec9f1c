"""Starting values: from networks, priors, given values, functions."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyrobnn import likelihoods, priors
from pyrobnn.guides import MAP, DeltaMixture, MeanField
from pyrobnn.model.bayesianize import bayesianize
from pyrobnn.model.initialization import initial_values
from pyrobnn.model.layout import Layout
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.prediction import predict
from pyrobnn.training import fit
from tests.guides.test_base import Sites


def supervised(net: nn.Module | None = None, prior: object = None) -> SupervisedModel:
    noise = likelihoods.Normal(dist.LogNormal(0.0, 0.5))
    prior = dist.Normal(0.0, 1.0) if prior is None else prior
    return SupervisedModel(net or nn.Linear(3, 2), noise, prior, num_data=8)


def start(model: object, init: object, **options: object) -> dict[str, Tensor]:
    """Starting values of a guide, constrained."""
    guide = MeanField(model, init, **options)  # type: ignore[arg-type]
    return guide.layout.constrain(guide.layout.split(guide.flat_loc.detach()))


def test_default_start_is_the_converted_network() -> None:
    net = nn.Linear(3, 2)
    values = start(supervised(net), None)
    assert torch.equal(values["net.weight"], net.weight) and torch.equal(values["net.bias"], net.bias)
    torch.testing.assert_close(values["likelihood.scale"], dist.LogNormal(0.0, 0.5).mean)


def test_start_at_another_network() -> None:
    other = nn.Linear(3, 2)
    values = start(supervised(), other)
    assert torch.equal(values["net.weight"], other.weight) and torch.equal(values["net.bias"], other.bias)


def test_start_of_a_horseshoe_reproduces_the_weights() -> None:
    net = nn.Linear(3, 2)
    values = start(supervised(net, priors.horseshoe()), None)
    parts = [values[f"net.weight.{part}"] for part in ("raw", "local_scale", "global_scale")]
    torch.testing.assert_close(parts[0] * parts[1] * parts[2], net.weight.detach())


def test_start_at_the_prior() -> None:
    model = supervised(prior=dist.Normal(3.0, 0.1))
    assert torch.equal(start(model, "prior_mean")["net.weight"], torch.full((2, 3), 3.0))
    first, second = (start(model, "prior")["net.weight"] for _ in range(2))
    assert not torch.equal(first, second)
    assert bool(((first - 3.0).abs() < 0.6).all())  # six prior standard deviations


def test_start_at_given_values() -> None:
    values = start(supervised(), {"net.bias": torch.tensor([1.0, 2.0]), "likelihood.scale": torch.tensor(0.3)})
    assert values["net.bias"].tolist() == [1.0, 2.0]
    torch.testing.assert_close(values["likelihood.scale"], torch.tensor(0.3))
    values = start(supervised(), lambda name, prior: torch.full(prior.shape(), float(len(name))))
    assert values["net.bias"].tolist() == [8.0, 8.0]


def test_a_prior_without_mean_starts_at_its_median() -> None:
    """Of 101 draws (the median is 1, the density 1/π there): standard error π / (2 √101) = 0.16."""
    value = start(Sites(s=dist.HalfCauchy(1.0)), None, example=())["s"]
    assert abs(float(value) - 1.0) < 4 * 0.16


def test_weights_outside_a_constrained_prior_start_at_its_center() -> None:
    net = nn.Linear(1, 1)
    with torch.no_grad():
        net.weight.fill_(-1.0)
        net.bias.fill_(0.5)
    values = start(supervised(net, dist.Gamma(2.0, 1.0)), None)
    torch.testing.assert_close(values["net.weight"], torch.full((1, 1), 2.0))
    torch.testing.assert_close(values["net.bias"], torch.full((1,), 0.5))


@pytest.mark.parametrize(
    ("init", "error", "message"),
    [
        ("prio", TypeError, "init: expected a network"),
        (3, TypeError, "init: expected a network"),
        ({"net.weigth": torch.zeros(2, 3)}, ValueError, "no latent site 'net.weigth'.*net.weight"),
        (
            {"net.weight": torch.zeros(3, 2)},
            ValueError,
            r"'net.weight' has shape \(3, 2\), expected \(2, 3\)",
        ),
        (
            {"likelihood.scale": torch.tensor(-1.0)},
            ValueError,
            "'likelihood.scale' lies outside its prior's support",
        ),
        (
            nn.Linear(3, 5),
            ValueError,
            r"^init: the network does not fit the model's network.*size mismatch for weight",
        ),
        (
            nn.Linear(3, 2, bias=False),
            ValueError,
            r'^init: the network does not fit .*Missing key\(s\) in state_dict: "bias"',
        ),
        (nn.Bilinear(3, 3, 2), ValueError, "^init: the network does not fit the model's network"),
        (
            nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)),
            ValueError,
            "^init: the network does not fit the model's network",
        ),
        ({"weight": torch.zeros(2, 3)}, ValueError, r'^init: the state dict does not fit .*"bias"'),
        ({"model.weight": torch.zeros(2, 3)}, ValueError, "^init: there is no latent site 'model.weight'"),
        (nn.DataParallel(nn.Linear(3, 2, bias=False)).state_dict(), ValueError, r'^init: the state .*key.* "bias"'),
        ({"net.weight": torch.full((2, 3), float("nan"))}, ValueError, "^init: .* 'net.weight' is NaN or inf"),
        ({"net.weight": "zeros"}, TypeError, "^init: the value for the site 'net.weight' is no tensor"),
        ({"net.weight": torch.zeros(2, 3, dtype=torch.cfloat)}, TypeError, "^init: .* 'net.weight' is complex"),
        (nn.Linear, TypeError, "^init: expected a network, .* got <class"),
    ],
)
def test_bad_starting_values(init: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        start(supervised(), init)


def test_start_at_a_network_needs_one_converted_network() -> None:
    class Two(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.a = bayesianize(nn.Linear(1, 1), dist.Normal(0.0, 1.0))
            self.b = bayesianize(nn.Linear(1, 1), dist.Normal(0.0, 1.0))

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + self.b(x)

    with pytest.raises(ValueError, match="holds 2 converted networks"):
        MeanField(Two(), nn.Linear(1, 1), example=(torch.ones(1, 1),))


def test_initial_values_are_unconstrained() -> None:
    model = Sites(s=dist.LogNormal(0.0, 1.0))
    values = initial_values(model, Layout.of(model, example=()), {"s": torch.tensor(2.0)})
    torch.testing.assert_close(values["s"], torch.tensor(2.0).log())


@pytest.mark.parametrize(
    "wrap", [lambda net: net, nn.DataParallel, torch.compile], ids=["plain", "parallel", "compiled"]
)
@pytest.mark.parametrize("as_state", [True, False], ids=["state", "module"])
def test_wrapped_networks_and_their_state_dicts_are_understood(wrap: Any, as_state: bool) -> None:
    """The prefixes of wrappers, ``module.`` and ``_orig_mod.``, once made every key foreign, and were ignored."""
    net = nn.Sequential(nn.Linear(3, 2))
    model = SupervisedModel(nn.Sequential(nn.Linear(3, 2)), likelihoods.Normal(1.0), dist.Normal(0.0, 1.0), num_data=4)
    given = wrap(net).state_dict() if as_state else wrap(net)
    for guide in (
        MAP(model, init=given),
        DeltaMixture(model, 1, init=[given]),
        DeltaMixture.from_networks(model, [given]),
    ):
        assert torch.equal(guide.sample(1)["net.0.weight"][0], net[0].weight)


def test_starting_values_share_no_memory_and_have_the_precision_of_the_network() -> None:
    model = supervised()
    values = {"net.weight": torch.ones(2, 3, dtype=torch.float64), "net.bias": torch.ones(2, dtype=torch.long)}
    guide = MAP(model, init=values)
    assert guide.loc.dtype == torch.float32
    values["net.weight"].zero_()
    assert bool((guide.sample(1)["net.weight"] == 1.0).all())
    net = nn.Linear(3, 2)
    guide = MAP(model, init=net)
    before = guide.sample(1)["net.weight"]
    with torch.no_grad():
        net.weight.zero_()
    assert torch.equal(guide.sample(1)["net.weight"], before)


def test_a_network_that_differs_where_the_model_keeps_its_own_values_is_refused() -> None:
    """A trained network's running statistics and norm layers would be left behind without a word."""
    nets = [nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)) for _ in range(2)]
    model = SupervisedModel(nets[0], likelihoods.Normal(1.0), dist.Normal(0.0, 1.0), num_data=4)
    MAP(model, init=nets[1])  # equal but for the weights
    nets[1](torch.randn(8, 3))
    with pytest.raises(ValueError, match=r"^init: the network differs from the model's network in '1.running_mean'"):
        MAP(model, init=nets[1])
    guide = DeltaMixture(model, 1, init=[nets[1]])  # members have statistics of their own
    assert torch.equal(guide.sample(1).buffers["net.net.1.running_mean"][0], nets[1][1].running_mean)
    with torch.no_grad():
        nets[1][1].weight.add_(1.0)
    with pytest.raises(ValueError, match=r"^init: the network differs from the model's network in '1.weight'"):
        DeltaMixture(model, 1, init=[nets[1]])


def test_start_at_he_s_scale() -> None:
    """Standard deviations of sqrt(2 / fan-in) within five standard errors, biases of 0; other layers as they were."""
    net = nn.Sequential(nn.Conv2d(8, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 16, 50))
    rules = [(nn.BatchNorm2d, dist.Normal(1.0, 0.1)), ("*", dist.Normal(0.0, 1.0))]
    model = SupervisedModel(net, likelihoods.Categorical(), rules, num_data=8)
    torch.manual_seed(0)
    values = start(model, "he")
    for name, fan in (("net.0.weight", 72), ("net.4.weight", 1024)):
        ratio = float(values[name].std()) / (2 / fan) ** 0.5
        assert abs(ratio - 1) < 5 / (2 * values[name].numel()) ** 0.5
        assert bool((values[name.replace("weight", "bias")] == 0).all())
    assert torch.equal(values["net.1.weight"], torch.ones(64))
    assert not torch.equal(start(model, "he")["net.0.weight"], values["net.0.weight"])  # fresh each time
    assert torch.equal(net[0].weight, start(model, None)["net.0.weight"])  # the network is as it was


def test_he_s_scale_needs_a_layer_that_it_is_for() -> None:
    with pytest.raises(ValueError, match="init: 'he' is for linear and convolutional layers"):
        start(SupervisedModel(nn.Embedding(5, 2), likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=8), "he")


def test_members_start_at_he_s_scale_each_for_itself() -> None:
    model = supervised(prior=dist.Normal(0.0, 1.0))
    members = DeltaMixture(model, 3, init="he").sample(3)["net.weight"]
    assert len({float(member.sum()) for member in members}) == 3


def test_a_deep_narrow_network_is_trained_from_there() -> None:
    """Eight layers of 32: the default start leaves the posterior mode at a constant, He's scale does not."""
    x = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] * x[:, 1] > 0).long()
    accuracies = []
    for init in (None, "he"):
        torch.manual_seed(0)
        layers = [module for _ in range(7) for module in (nn.Linear(32, 32), nn.ReLU())]
        net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), *layers, nn.Linear(32, 2))
        model = SupervisedModel(net, likelihoods.Categorical(), num_data=300)
        guide = MAP(model, init=init)
        fit(model, guide, [(x, y)], epochs=250, seed=0, progress=False)
        accuracies.append(float((predict(model, guide, x, 1).predicted == y).float().mean()))
    assert accuracies[0] < 0.65 and accuracies[1] > 0.95
