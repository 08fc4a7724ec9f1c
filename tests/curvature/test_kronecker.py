"""Kronecker factors: exact where they should be, and their parts against the layers themselves."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyrobnn import likelihoods
from pyrobnn.curvature import KroneckerFactors, add_batch, gauss_newton, kronecker_layers
from pyrobnn.model.supervised import SupervisedModel


def factored(net: nn.Module, x: Tensor, has_bias: bool = True) -> tuple[SupervisedModel, dict[str, Tensor], dict]:
    """The model, its weights, and the factors of all layers after one batch."""
    net.requires_grad_(True)
    model = SupervisedModel(net, likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=len(x)).double().eval()
    values = {f"net.{name}": p.detach().double() for name, p in net.named_parameters()}
    layers = kronecker_layers(model.net.network)
    factors = {name: KroneckerFactors(layer, layer.bias is not None) for name, layer in layers.items()}
    add_batch(model, values, list(values), factors, x)
    return model, values, factors


def dense(factors: KroneckerFactors) -> Tensor:
    """``G ⊗ A / R`` in the order weight, bias."""
    matrix = torch.kron(factors.of_outputs, factors.of_inputs) / factors.rows
    out, inputs = len(factors.of_outputs), len(factors.of_inputs)
    order = torch.arange(out * inputs).reshape(out, inputs)
    if factors.has_bias:
        order = torch.cat([order[:, :-1].flatten(), order[:, -1]])
    return matrix[order.flatten()][:, order.flatten()]


@pytest.mark.parametrize("bias", [True, False])
def test_one_datum_is_exact(bias: bool) -> None:
    x = torch.randn(1, 4).double()
    model, values, factors = factored(nn.Linear(4, 3, bias=bias), x)
    torch.testing.assert_close(dense(factors[""]), gauss_newton(model, values, list(values), x))


def test_constant_inputs_are_exact() -> None:
    x = torch.randn(1, 4).double().expand(6, 4)
    model, values, factors = factored(nn.Linear(4, 3), x)
    torch.testing.assert_close(dense(factors[""]), gauss_newton(model, values, list(values), x))


def test_each_layer_of_a_network_is_exact_for_one_datum() -> None:
    x = torch.randn(1, 3).double()
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 3))
    model, values, factors = factored(net, x)
    for name in ("0", "2"):
        own = [f"net.{name}.weight", f"net.{name}.bias"]
        torch.testing.assert_close(dense(factors[name]), gauss_newton(model, values, own, x))


def test_a_convolution_that_sees_one_patch_is_a_linear_layer() -> None:
    x = torch.randn(1, 2, 3, 3).double()
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten())
    model, values, factors = factored(net, x)
    torch.testing.assert_close(dense(factors["0"]), gauss_newton(model, values, list(values), x))


GEOMETRIES = [
    {"padding": 1},
    {"stride": 2, "padding": (0, 1)},
    {"dilation": 2, "padding": "valid"},
    {"kernel_size": (2, 3), "padding": "same"},
    {"kernel_size": 2, "dilation": (1, 2), "padding": "same", "bias": False},
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_a_convolution_is_its_patches_times_its_weights(geometry: dict) -> None:
    """A = Σ a aᵀ, so that Σ s² over all outputs ``s = W a`` is ``tr(W A Wᵀ)``, and rows are counted right."""
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 3, **({"kernel_size": 3} | geometry)).double()
    x = torch.randn(4, 2, 7, 6).double()
    sums = KroneckerFactors(layer, layer.bias is not None)
    sums.add_inputs(x)
    weights = layer.weight.detach().flatten(1)
    if layer.bias is not None:
        weights = torch.cat([weights, layer.bias.detach().unsqueeze(1)], 1)
    outputs = layer(x).detach().movedim(1, -1).flatten(0, -2)
    torch.testing.assert_close(weights @ sums.of_inputs @ weights.T, outputs.T @ outputs)
    assert sums.rows == len(outputs)


def test_gradients_are_those_of_the_layers_outputs() -> None:
    """For a network that ends with the layer G is Λ, summed over the data."""
    x = torch.randn(5, 4).double()
    _, values, factors = factored(nn.Linear(4, 3), x)
    logits = x @ values["net.weight"].T + values["net.bias"]
    p = logits.softmax(-1)
    expected = torch.diag(p.sum(0)) - p.T @ p
    torch.testing.assert_close(factors[""].of_outputs, expected)


def test_sequences_count_each_position() -> None:
    x = torch.randn(2, 5, 4).double()
    net = nn.Sequential(nn.Linear(4, 3), nn.Flatten())
    _, _, factors = factored(net, x)
    assert factors["0"].rows == 10
    flat = torch.cat([x.reshape(10, 4), torch.ones(10, 1).double()], 1)
    torch.testing.assert_close(factors["0"].of_inputs, flat.T @ flat)


class Twice(nn.Module):
    """A layer that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x))


def test_a_layer_used_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="structure: the layer 'layer' was called 2 times"):
        factored(Twice(), torch.randn(2, 3).double())


def test_layers_that_cannot_be_factored_are_left_out() -> None:
    net = nn.ModuleDict({
        "linear": nn.Linear(2, 2), "conv": nn.Conv2d(2, 2, 1), "grouped": nn.Conv2d(2, 2, 1, groups=2),
        "circular": nn.Conv2d(2, 2, 1, padding_mode="circular"), "conv1d": nn.Conv1d(2, 2, 1), "gru": nn.GRU(2, 2),
    })  # fmt: skip
    assert list(kronecker_layers(net)) == ["linear", "conv"]
