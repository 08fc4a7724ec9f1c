"""The last layer, by runs: how it is found, and what has none."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyrobnn import likelihoods
from pyrobnn.guides import MAP, Composite, Laplace
from pyrobnn.model.last_layer import last_layer_of
from pyrobnn.model.supervised import SupervisedModel

X = torch.randn(6, 3)
PRIOR = dist.Normal(0.0, 1.0)


class Net(nn.Module):
    """A body, and a head that is defined before it."""

    def __init__(self, tail: nn.Module | None = None) -> None:
        super().__init__()
        self.head, self.body, self.tail = nn.Linear(4, 2), nn.Linear(3, 4), tail or nn.Identity()

    def hidden(self, x: Tensor) -> Tensor:
        return torch.tanh(self.body(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.head(self.hidden(x)))


class TwoHeads(Net):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(x)) + self.other(x.new_ones(len(x), 4))


class Functional(Net):
    """The head's weights are a parameter of the network."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(2, 2))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) @ self.matrix


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 4), nn.Linear(4, 5)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embed(ids)))


class Twice(Net):
    """The head runs at two places, in which the outputs are linear together."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(x)) - self.head(self.hidden(2.0 * x))


def convolutions() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Conv2d(2, 3, 1))


def pooled() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


IMAGES = torch.randn(6, 1, 4, 4)
FOUND: dict[str, tuple[Any, Tensor, str, bool]] = {
    "defined first": (Net, X, "head", True),
    "gain after it": (lambda: Net(nn.LayerNorm(2)), X, "head", False),
    "slope after it": (lambda: Net(nn.PReLU()), X, "head", False),
    "softmax after it": (lambda: Net(nn.LogSoftmax(-1)), X, "head", False),
    "used twice": (Twice, X, "head", True),
    "convolution": (convolutions, IMAGES, "2", True),
    "pooled": (pooled, IMAGES, "0", True),
    "the network itself": (lambda: nn.Linear(3, 2), X, "", True),
    "recurrent": (lambda: Last(nn.RNN(3, 2, batch_first=True)), torch.randn(6, 4, 3), "net", False),
}


class Last(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)[0][:, -1]


REFUSED: dict[str, tuple[Any, Tensor, str]] = {
    "several": (TwoHeads, X, r"'other' ran last, but the outputs also depend on '.*' otherwise than through it"),
    "functional": (Functional, X, r"'head' ran last, but the outputs also depend on 'matrix'"),
    "tied": (Tied, torch.randint(0, 5, (6,)), r"'head', .*shares its weights with 'embed.weight' \(tied\)"),
    "none": (lambda: nn.Sequential(nn.PReLU(3)), X, "no layer with a weight matrix ran"),
}


def model_of(net: nn.Module, prior: Any = PRIOR) -> SupervisedModel:
    return SupervisedModel(net, likelihoods.Normal(0.3), prior, num_data=6)


def targets(model: SupervisedModel, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.zeros_like(model.net.network(x))


@pytest.mark.filterwarnings("ignore:Laplace. torch cannot vmap")  # the slope
@pytest.mark.parametrize("name", FOUND)
def test_the_layer_is_found_by_what_runs(name: str) -> None:
    build, x, layer, is_linear = FOUND[name]
    torch.manual_seed(0)
    net = build()
    assert last_layer_of(net, lambda: net(x)) == layer
    model = model_of(net)
    guide = Laplace(model).fit(model, [(x, targets(model, x))])
    assert guide.last_layer == layer
    assert {site.removeprefix("net.").rpartition(".")[0] for site in guide.covered} == {layer}
    assert repr(layer) in repr(guide)
    assert guide.facts.predictor == ("weights" if is_linear else "linearized")


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_last_layer_is_refused(name: str) -> None:
    build, x, message = REFUSED[name]
    net = build()
    with pytest.raises(ValueError, match=rf"last_layer: .*{message}"):
        last_layer_of(net, lambda: net(x))
    model = model_of(net)
    with pytest.raises(ValueError, match=rf"last_layer: .*{message}"):
        Laplace(model).fit(model, [(x, targets(model, x))])


def test_a_named_layer_is_taken() -> None:
    net = TwoHeads()
    model = model_of(net)
    guide = Laplace(model, last_layer="head").fit(model, [(X, targets(model, X))])
    assert guide.covered == ["net.head.weight", "net.head.bias"]
    assert guide.facts.predictor == "weights"
    hidden = Laplace(model, last_layer="body").fit(model, [(X, targets(model, X))])
    assert hidden.facts.predictor == "linearized"


def test_a_frozen_last_layer_is_refused() -> None:
    net = Net()
    net.head.requires_grad_(False)
    model = model_of(net)
    with pytest.raises(ValueError, match=r"'head' makes the outputs, but its 'weight' has no prior \(it is frozen"):
        Laplace(model).fit(model, [(X, targets(model, X))])
    assert last_layer_of(net, lambda: net(X)) == "head"
    assert not net.head.weight.requires_grad
    assert net.body.weight.requires_grad


def test_a_last_layer_of_another_guide_is_refused() -> None:
    model = model_of(Net())
    guide = Composite(model, [("body.*", Laplace), ("*", MAP)])
    given = {name: value[0] for name, value in guide.parts[1].sample(1).items()}
    with pytest.raises(ValueError, match="'head' makes the outputs, but its 'weight' is no site of this guide"):
        guide.parts[0].fit(model, [(X, targets(model, X))], given=given)


def test_a_layer_on_which_nothing_depends_is_refused() -> None:
    class Unused(Net):
        def __init__(self) -> None:
            super().__init__()
            self.spare = nn.Linear(3, 3)

    model = model_of(Unused())
    with pytest.raises(ValueError, match="the outputs do not depend on the weights of the layer 'spare'"):
        Laplace(model, last_layer="spare").fit(model, [(X, targets(model, X))])


def test_a_layer_that_computes_something_else_goes_by_its_jacobian() -> None:
    """A subclass of Linear with normalized weights: not linear, and not what a plain layer would give."""

    class Cosine(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.weight / self.weight.norm())

    net = nn.Sequential(nn.Linear(3, 4), Cosine(4, 2, bias=False))
    model = model_of(net)
    guide = Laplace(model).fit(model, [(X, targets(model, X))])
    assert guide.last_layer == "1"
    assert guide.facts.predictor == "linearized"
    weight = guide.mode()["net.1.weight"].flatten()
    # The direction of the weights itself changes nothing, so its variance is the prior's.
    direction = (weight / weight.norm()).unsqueeze(0)
    torch.testing.assert_close(guide.output_covariance(direction), torch.ones(1, 1), rtol=1e-3, atol=1e-3)
