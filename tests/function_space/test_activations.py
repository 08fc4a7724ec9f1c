"""Dual activations against dense quadrature and the published closed forms; derivatives against autograd."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from pyrobnn.function_space import DualActivation, HermiteSeries
from pyrobnn.function_space.activations import ACTIVATIONS, Erf

PAIRS = [(0.5, 1.0, 2.0), (-1.2, 3.0, 0.9), (30.0, 40.0, 50.0), (0.01, 0.02, 0.03)]
SMOOTH = [nn.Tanh(), nn.Sigmoid(), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.ELU(), nn.Softplus(), nn.Mish()]
KINKED = [nn.ReLU(), nn.LeakyReLU(0.3), nn.SELU(), nn.Hardtanh(), nn.ReLU6(), nn.Hardswish(), nn.Softsign()]


def quadrature(function: nn.Module, c: float, a: float, b: float) -> float:
    """``E[φ(u) φ(v)]`` by the trapezoidal rule on a grid, which converges as fast as one likes for smooth functions."""
    s = torch.linspace(-9.0, 9.0, 1201, dtype=torch.float64)
    density = torch.exp(-s.square() / 2) / math.sqrt(2 * math.pi) * (s[1] - s[0])
    u, v = math.sqrt(a) * s[:, None], c / math.sqrt(a) * s[:, None] + math.sqrt(b - c * c / a) * s
    return float((function(u) * function(v) * density[:, None] * density).sum())


def dual_of(module: nn.Module) -> DualActivation:
    return ACTIVATIONS[type(module)](module)


def tensors(c: float, a: float, b: float) -> list[Tensor]:
    return [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (c, a, b)]


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("module", SMOOTH, ids=str)
def test_smooth_functions_equal_quadrature(module: nn.Module, pair: tuple[float, float, float]) -> None:
    assert float(dual_of(module).product(*tensors(*pair)).detach()) == pytest.approx(
        quadrature(module, *pair), rel=2e-7
    )


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("module", KINKED, ids=str)
def test_functions_with_kinks_equal_quadrature(module: nn.Module, pair: tuple[float, float, float]) -> None:
    # The grid, of 1,201 points, is what limits the agreement; and the series, where a kink is not at 0.
    expected = quadrature(module, *pair)
    scale = math.sqrt(quadrature(module, pair[1] * (1 - 1e-12), pair[1], pair[1]))
    scale *= math.sqrt(quadrature(module, pair[2] * (1 - 1e-12), pair[2], pair[2]))
    assert float(dual_of(module).product(*tensors(*pair)).detach()) == pytest.approx(expected, abs=2e-4 * scale)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("module", SMOOTH + KINKED, ids=str)
def test_derivatives_obey_prices_theorem(module: nn.Module, pair: tuple[float, float, float]) -> None:
    dual, (c, a, b) = dual_of(module), tensors(*pair)
    (expected,) = torch.autograd.grad(dual.product(c, a, b), c)
    torch.testing.assert_close(dual.derivative_product(c, a, b).detach(), expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("module", SMOOTH + KINKED[:2], ids=str)
def test_equal_inputs_have_finite_gradients(module: nn.Module) -> None:
    a = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(dual_of(module).square(a), a)
    step = 1e-6
    above, below = (dual_of(module).square(a.detach() + sign * step) for sign in (1, -1))
    assert float(gradient) == pytest.approx(float((above - below) / (2 * step)), rel=1e-5)


def test_relu_is_the_arc_cosine_kernel() -> None:
    """Cho & Saul (2009), equations 1 and 6: ``‖x‖ ‖y‖ (sin θ + (π - θ) cos θ) / 2π``."""
    c, a, b = (tensor.detach() for tensor in tensors(0.3, 1.7, 0.6))
    angle = torch.acos(c / (a * b).sqrt())
    expected = (a * b).sqrt() * (angle.sin() + (math.pi - angle) * angle.cos()) / (2 * math.pi)
    assert float(dual_of(nn.ReLU()).product(c, a, b)) == pytest.approx(float(expected), abs=1e-12)
    assert float(dual_of(nn.ReLU()).derivative_product(c, a, b)) == pytest.approx(
        float((math.pi - angle) / (2 * math.pi))
    )


def test_erf_is_the_arc_sine_kernel() -> None:
    """Williams (1997): ``2/π asin(2c / √((1 + 2a)(1 + 2b)))``; the series agrees."""
    c, a, b = (tensor.detach() for tensor in tensors(0.3, 1.7, 0.6))
    expected = float(2 / math.pi * torch.asin(2 * c / ((1 + 2 * a) * (1 + 2 * b)).sqrt()))
    assert float(Erf().product(c, a, b)) == pytest.approx(expected, abs=1e-14)
    assert float(HermiteSeries(torch.erf).product(c, a, b)) == pytest.approx(expected, abs=1e-9)


def test_a_series_that_does_not_converge_is_refused() -> None:
    c, a, b = (tensor.detach() for tensor in tensors(99.9, 100.0, 100.0))
    with pytest.raises(ValueError, match=r"leaves out up to .* more terms"):
        HermiteSeries(torch.sign, terms=8).product(c, a, b)


def test_sine_has_a_closed_form() -> None:
    """``E[sin u sin v] = e^{-(a+b)/2} sinh c``."""
    c, a, b = (tensor.detach() for tensor in tensors(0.4, 1.1, 0.7))
    expected = float(torch.exp(-(a + b) / 2) * torch.sinh(c))
    assert float(HermiteSeries(torch.sin).product(c, a, b)) == pytest.approx(expected, abs=1e-12)


def test_settings_of_a_series_that_cannot_be_are_refused() -> None:
    for options, message in [
        ({"terms": 0}, "terms: expected a positive int, got 0"),
        ({"terms": True}, "terms: expected a positive int, got True"),
        ({"tolerance": -0.1}, "tolerance: expected a positive share, got -0.1"),
    ]:
        with pytest.raises(ValueError, match=message):
            HermiteSeries(torch.sin, **options)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"function: expected a function of a tensor, such as torch\.sin, got 'sin'"):
        HermiteSeries("sin")  # type: ignore[arg-type]
