"""The product bound: norms of layers against singular values of their matrices."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from pyrobnn.diagnostics.generalization import lipschitz_bound, local_lipschitz


def matrix(layer: nn.Module, x: Tensor) -> Tensor:
    """The Jacobian of one row of inputs, as a matrix."""
    found = torch.autograd.functional.jacobian(lambda row: layer(row).reshape(-1), x[:1])
    return found.reshape(found.shape[0], -1)


LAYERS = {
    "linear": (lambda: nn.Linear(7, 5), (7,)),
    "conv": (lambda: nn.Conv2d(2, 3, 3, stride=2, padding=1), (2, 6, 5)),
    "circular": (lambda: nn.Conv1d(2, 3, 3, padding=1, padding_mode="circular"), (2, 8)),
    "transposed": (lambda: nn.ConvTranspose2d(2, 3, 3, stride=2), (2, 4, 4)),
    "grouped": (lambda: nn.Conv2d(4, 4, 3, groups=2), (4, 5, 5)),
    "average": (lambda: nn.AvgPool2d(2, stride=1), (1, 5, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_norms_are_the_largest_singular_values(name: str) -> None:
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    layer, x = make(), torch.randn(3, *shape)
    expected = float(torch.linalg.matrix_norm(matrix(layer, x), ord=2))
    assert lipschitz_bound(layer, x).product == pytest.approx(expected, rel=1e-4)


def test_batch_norm_is_its_largest_factor() -> None:
    layer = nn.BatchNorm2d(3)
    layer.running_var.copy_(torch.tensor([0.25, 4.0, 1.0]))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, 8.0, -2.5]))
    assert lipschitz_bound(layer, torch.randn(2, 3, 4, 4)).product == pytest.approx(4.0, rel=1e-4)
    assert layer.training  # modes and statistics are as before
    assert layer.num_batches_tracked == 0


def test_a_chain_of_diagonal_layers_reaches_its_bound() -> None:
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Sequential(nn.Linear(2, 2, bias=False)))
    with torch.no_grad():
        net[0].weight.copy_(torch.diag(torch.tensor([3.0, 1.0])))
        net[2][0].weight.copy_(torch.diag(torch.tensor([2.0, 0.5])))
    found = lipschitz_bound(net, torch.ones(1, 2))
    assert found.product == pytest.approx(6.0, rel=1e-4)
    assert found.layers == pytest.approx({"0": 3.0, "1": 1.0, "2.0": 2.0}, rel=1e-4)
    assert local_lipschitz(net, torch.ones(1, 2)).item() == pytest.approx(6.0, rel=1e-4)
    assert "at most 6" in str(found)


def test_a_layer_that_is_used_twice_counts_twice() -> None:
    layer = nn.Linear(3, 3, bias=False)
    once = lipschitz_bound(layer, torch.randn(1, 3)).product
    assert lipschitz_bound(nn.Sequential(layer, layer), torch.randn(1, 3)).product == pytest.approx(once**2)


ACTIVATIONS = [nn.GELU(), nn.SiLU(), nn.Mish(), nn.SELU(), nn.Sigmoid(), nn.Softplus(), nn.LeakyReLU(1.5), nn.ELU(2.0)]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda layer: type(layer).__name__)
def test_slopes_of_activations_are_the_largest(activation: nn.Module) -> None:
    x = torch.linspace(-8.0, 8.0, 16_001, dtype=torch.float64).requires_grad_()
    (slopes,) = torch.autograd.grad(activation(x).sum(), x)
    largest = float(slopes.abs().max())
    assert largest <= lipschitz_bound(activation, torch.zeros(1, 1)).product <= largest * 1.001


def test_overlapping_max_pooling() -> None:
    """All nine windows of size three have the same largest entry: the output moves three times as far."""
    x = torch.zeros(1, 1, 5, 5)
    x[0, 0, 2, 2] = 1.0
    pool = nn.MaxPool2d(3, stride=1)
    assert lipschitz_bound(pool, x).product == pytest.approx(3.0)
    assert float((pool(2.0 * x) - pool(x)).norm()) == pytest.approx(3.0)
    assert lipschitz_bound(nn.MaxPool2d(2), x).product == 1.0
    assert lipschitz_bound(nn.MaxPool1d(3, stride=2, dilation=2), torch.zeros(1, 1, 9)).product == 3**0.5


def test_what_is_no_chain_is_refused_by_name() -> None:
    class Residual(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + x

    with pytest.raises(ValueError, match=r"^net: no norm is known of the layer '1', a Residual"):
        lipschitz_bound(nn.Sequential(nn.Linear(2, 2), Residual()), torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"^x: expected inputs \[N, ...\] with at least one row"):
        lipschitz_bound(nn.Linear(2, 2), torch.zeros(0, 2))
    with pytest.raises(ValueError, match=r"^x: it holds NaN"):
        lipschitz_bound(nn.Linear(2, 2), torch.full((1, 2), math.nan))
    with pytest.raises(TypeError, match=r"^x: expected a tensor of floating-point inputs"):
        lipschitz_bound(nn.Linear(2, 2), torch.zeros(1, 2).long())
