"""The solver of stochastic differential equations: exact solutions, strong orders, gradients, and another library."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyrobnn.layers.sde import Scheme, brownian_increments, solve_sde

METHODS: tuple[Scheme, ...] = ("euler", "milstein")
MU, SIGMA = 0.5, 0.8


def growth(time: float, h: Tensor) -> Tensor:
    """Drift of geometric Brownian motion."""
    return MU * h


def noise(time: float, h: Tensor) -> Tensor:
    """Its diffusion."""
    return SIGMA * h


def exact(increments: Tensor) -> Tensor:
    """Geometric Brownian motion from 1 at time 1, along the same path."""
    return (MU - SIGMA**2 / 2 + SIGMA * increments.sum(0)).exp()


def coarser(increments: Tensor, steps: int) -> Tensor:
    """The same path on a coarser grid."""
    return increments.unflatten(0, (steps, -1)).sum(1)


# --------------------------------------------------------------------------------------------------- without noise


@pytest.mark.parametrize("method", METHODS)
def test_without_diffusion_it_is_the_ordinary_equation(method: Scheme) -> None:
    """Zero and None give the same, which is Euler's method written out."""
    start = torch.randn(5, 2, dtype=torch.float64)

    def drift(time: float, h: Tensor) -> Tensor:
        return torch.cos(torch.tensor(3.0 * time)) * h

    zero = solve_sde(drift, lambda t, h: torch.zeros_like(h), start, 8, duration=2.0, method=method)
    none = solve_sde(drift, None, start, 8, duration=2.0, method=method)
    by_hand = start
    for index in range(8):
        by_hand = by_hand + 0.25 * drift(0.25 * index, by_hand)
    assert torch.equal(zero.state, none.state)
    torch.testing.assert_close(none.state, by_hand, rtol=1e-12, atol=0.0)
    assert not zero.variation.any() and not none.variation.any()


@pytest.mark.parametrize("method", METHODS)
def test_without_diffusion_the_error_falls_with_the_step(method: Scheme) -> None:
    """h' = -h has the solution exp(-t); Euler's method is of order 1, so that half the step has half the error."""
    start = torch.ones(1, dtype=torch.float64)

    def error(steps: int) -> float:
        found = solve_sde(lambda t, h: -h, lambda t, h: 0 * h, start, steps, method=method).state
        return abs(float(found) - math.exp(-1.0))

    orders = [math.log2(error(steps) / error(2 * steps)) for steps in (64, 128, 256)]
    assert orders == pytest.approx([1.0] * 3, abs=0.01)


# ----------------------------------------------------------------------------------------------------- strong order


def strong_order(method: Scheme, drift: Any, diffusion: Any, truth: Any, paths: int = 4000) -> tuple[float, float]:
    """Slope of log2 of the mean absolute error at time 1 over log2 of the step, and its standard error.

    The errors of all steps are of the same paths. The standard error is that of slopes of 20 groups of paths.
    """
    torch.manual_seed(0)
    fine = brownian_increments(512, (paths,), like=torch.zeros((), dtype=torch.float64))
    grids = [16, 32, 64, 128, 256]
    start = torch.ones(paths, dtype=torch.float64)
    errors = []
    for steps in grids:
        found = solve_sde(drift, diffusion, start, steps, method=method, increments=coarser(fine, steps))
        errors.append((found.state - truth(fine)).abs())
    x = -torch.tensor(grids, dtype=torch.float64).log2()
    x = x - x.mean()
    by_group = torch.stack(errors).unflatten(1, (20, -1)).mean(-1).log2()
    slopes = (x.unsqueeze(1) * by_group).sum(0) / x.square().sum()
    return float(slopes.mean()), float(slopes.std() / 20**0.5)


@pytest.mark.parametrize(("method", "order"), [("euler", 0.5), ("milstein", 1.0)])
def test_the_strong_order_on_geometric_brownian_motion(method: Scheme, order: float) -> None:
    """z <= 4 with 4000 paths, beside 0.03 for steps that are not yet small (the next term of the error)."""
    slope, error = strong_order(method, growth, noise, exact)
    assert error < 0.02
    assert abs(slope - order) <= 4 * error + 0.03


def test_euler_is_of_strong_order_one_where_the_noise_does_not_depend_on_the_state() -> None:
    """An Ornstein–Uhlenbeck process, against its exact solution."""

    def drift(time: float, h: Tensor) -> Tensor:
        return -2.0 * h

    def diffusion(time: float, h: Tensor) -> Tensor:
        return torch.full_like(h, 0.7)

    def truth(fine: Tensor) -> Tensor:
        """The exact solution with the path linear within each of the finest steps: weights of the increments."""
        edges = torch.linspace(0.0, 1.0, len(fine) + 1, dtype=torch.float64)
        powers = (-2.0 * (1.0 - edges)).exp()
        weights = (powers[1:] - powers[:-1]) / 2.0 * len(fine)
        return math.exp(-2.0) + 0.7 * (weights.unsqueeze(1) * fine).sum(0)

    slope, error = strong_order("euler", drift, diffusion, truth)
    assert abs(slope - 1.0) <= 4 * error + 0.05


# ------------------------------------------------------------------------------------------- distribution and paths


@pytest.mark.parametrize("method", METHODS)
def test_drawn_noise_has_the_moments_of_the_process(method: Scheme) -> None:
    """The discrete mean (1 + μΔ)^S is exact for both schemes; the variation has the mean Σ σ² E[h²] Δ. z <= 4."""
    torch.manual_seed(1)
    paths, steps = 20000, 16
    found = solve_sde(growth, noise, torch.ones(paths, dtype=torch.float64), steps, method=method)
    mean = (1 + MU / steps) ** steps
    assert abs(float(found.state.mean()) - mean) <= 4 * float(found.state.std()) / paths**0.5
    factor = (1 + MU / steps) ** 2 + SIGMA**2 / steps
    if method == "milstein":
        # The slope is σ (μ Δ + σ √Δ) h / (2 √Δ), and ΔW² - Δ has the variance 2 Δ² and no covariance with ΔW.
        slope = SIGMA * (MU / steps + SIGMA / steps**0.5) * steps**0.5 / 2
        factor += slope**2 * 2 / steps**2
    variation = sum(SIGMA**2 * factor**index / steps for index in range(steps))
    assert abs(float(found.variation.mean()) - variation) <= 4 * float(found.variation.std()) / paths**0.5


def test_antithetic_paths_are_mirror_images() -> None:
    """An odd number has one path without an image; each increment keeps its variance (z <= 4 with 3 · 7 · 4000)."""
    torch.manual_seed(2)
    found = brownian_increments(3, (7, 4000), duration=2.0, antithetic=True)
    assert found.shape == (3, 7, 4000)
    assert torch.equal(found[:, 4:], -found[:, :3])
    assert abs(float(found[:, :4].var()) / (2.0 / 3.0) - 1.0) <= 4 * (2.0 / (3 * 4 * 4000)) ** 0.5


def test_antithetic_paths_take_away_the_variance_of_a_mean() -> None:
    """For a linear drift and noise that does not depend on the state the mean over pairs is exact."""
    torch.manual_seed(3)
    start = torch.ones(6, 50, dtype=torch.float64)
    found = solve_sde(lambda t, h: -h, lambda t, h: torch.full_like(h, 0.5), start, 10, antithetic=True).state
    assert float(found.std()) > 0.1
    torch.testing.assert_close(found.mean(0), torch.full((50,), 0.9**10, dtype=torch.float64), rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("method", METHODS)
def test_the_path_is_that_of_the_given_noise(method: Scheme) -> None:
    torch.manual_seed(4)
    start, given = torch.rand(3, 2) + 0.5, brownian_increments(5, (3, 2))
    found = solve_sde(growth, noise, start, 5, method=method, increments=given, keep_path=True)
    assert found.path is not None and found.path.shape == (6, 3, 2)
    assert torch.equal(found.path[0], start) and torch.equal(found.path[-1], found.state)
    again = solve_sde(growth, noise, start, 5, method=method, increments=given)
    assert again.path is None and torch.equal(again.state, found.state)
    half = solve_sde(growth, noise, start, 2, duration=0.4, method=method, increments=given[:2])
    torch.testing.assert_close(half.state, found.path[2])
    drawn = [solve_sde(growth, noise, start, 5, method=method).state for _ in range(2)]
    assert not torch.equal(*drawn)


def test_a_generator_gives_the_same_path_again() -> None:
    first, second = (brownian_increments(4, (2,), generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)


# --------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_of_the_discrete_solution(method: Scheme) -> None:
    torch.manual_seed(6)
    given = brownian_increments(4, (3,), like=torch.zeros((), dtype=torch.float64))
    values = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.5, 0.8)]
    start = torch.rand(3, dtype=torch.float64, requires_grad=True)

    def solved(mu: Tensor, sigma: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        found = solve_sde(
            lambda t, h: mu * h.sin(), lambda t, h: sigma * h.tanh(), h, 4, method=method, increments=given
        )
        return found.state, found.variation

    assert torch.autograd.gradcheck(solved, (*values, start))


def test_gradients_come_near_those_of_the_exact_solution() -> None:
    """dh_1/dμ = h_1 and dh_1/dσ = (W_1 - σ) h_1, in the mean over 2000 paths; Milstein with 256 steps."""
    torch.manual_seed(7)
    given = brownian_increments(256, (2000,), like=torch.zeros((), dtype=torch.float64))
    mu, sigma = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (MU, SIGMA))
    start = torch.ones(2000, dtype=torch.float64)
    found = solve_sde(lambda t, h: mu * h, lambda t, h: sigma * h, start, 256, method="milstein", increments=given)
    found.state.mean().backward()
    truth = exact(given)
    assert mu.grad is not None and sigma.grad is not None
    assert float(mu.grad) == pytest.approx(float(truth.mean()), rel=0.01)
    assert float(sigma.grad) == pytest.approx(float(((given.sum(0) - SIGMA) * truth).mean()), abs=0.02)


def test_it_runs_under_vmap() -> None:
    """With the noise given, each row is what it is alone; drawn noise differs between rows."""
    torch.manual_seed(8)
    start, given = torch.rand(3, 2), brownian_increments(5, (3, 2))

    def one(h: Tensor, dw: Tensor) -> Tensor:
        return solve_sde(growth, noise, h, 5, method="milstein", increments=dw).state

    together = torch.func.vmap(one, in_dims=(0, 1))(start, given)
    torch.testing.assert_close(together, torch.stack([one(start[i], given[:, i]) for i in range(3)]))

    def drawn(h: Tensor) -> Tensor:
        return solve_sde(growth, noise, h, 5, antithetic=True).state

    found = torch.func.vmap(drawn, randomness="different")(torch.ones(3, 2))
    assert len(found.unique()) == 6


# --------------------------------------------------------------------------------------------------- another library


@pytest.mark.parametrize("method", METHODS)
def test_torchsde_agrees(method: Scheme) -> None:
    """The same scheme along the same path; the diffusion depends on each component alone."""
    torchsde = pytest.importorskip("torchsde", reason="needs torchsde", exc_type=ImportError)
    steps, duration = 10, 2.0
    torch.manual_seed(9)
    start = torch.randn(6, 3, dtype=torch.float64)
    given = brownian_increments(steps, start.shape, duration=duration, like=start)
    net = nn.Linear(3, 3).double()

    def drift(time: Any, h: Tensor) -> Tensor:
        return net(h).tanh() - 0.3 * time * h

    def diffusion(time: Any, h: Tensor) -> Tensor:
        return 0.2 + 0.5 * (h + time).sigmoid()

    class Equation(nn.Module):
        noise_type, sde_type = "diagonal", "ito"

        def f(self, t: Tensor, y: Tensor) -> Tensor:
            return drift(t, y)

        def g(self, t: Tensor, y: Tensor) -> Tensor:
            return diffusion(t, y)

    class Path(torchsde.BaseBrownian):  # type: ignore[misc, name-defined]
        """The given increments."""

        def __call__(self, ta: Tensor, tb: Tensor, return_U: bool = False, return_A: bool = False) -> Tensor:
            low, high = (round(float(t) / duration * steps) for t in (ta, tb))
            return given[low:high].sum(0)

        def __repr__(self) -> str:
            return "Path()"

        dtype, device, shape = given.dtype, given.device, start.shape  # type: ignore[assignment]
        levy_area_approximation = "none"

    times = torch.linspace(0.0, duration, steps + 1, dtype=torch.float64)
    options = {"grad_free": True} if method == "milstein" else {}
    with torch.no_grad():
        theirs = torchsde.sdeint(
            Equation(), start, times, bm=Path(), method=method, dt=duration / steps, options=options
        )
        ours = solve_sde(
            drift, diffusion, start, steps, duration=duration, method=method, increments=given, keep_path=True
        )
    torch.testing.assert_close(ours.path, theirs, rtol=1e-10, atol=1e-12)


TORCHSDE = {  # version 0.2.6, its states at times 0.5 to 2, for the equation and increments of the test below
    "euler": [
        [0.277684118358, -0.809077906652],
        [-0.316422597649, -0.501866023173],
        [-0.458169451702, -0.308884953259],
        [-0.134551510364, -0.663730661308],
    ],
    "milstein": [
        [0.27833341817, -0.826419473837],
        [-0.32113474575, -0.53645008012],
        [-0.482332702558, -0.347589937776],
        [-0.173886606413, -0.708103574188],
    ],
}


@pytest.mark.parametrize("method", METHODS)
def test_numbers_of_torchsde(method: Scheme) -> None:
    """Where it is not installed: an equation whose components mix in the drift."""
    increments = torch.tensor([[0.31, -0.12], [-0.44, 0.27], [0.08, 0.53], [0.65, -0.36]]).double()
    found = solve_sde(
        lambda t, h: h.flip(-1).tanh() - 0.3 * t * h,
        lambda t, h: 0.2 + 0.5 * (h + t).sigmoid(),
        torch.tensor([0.5, -1.0]).double(),
        4,
        duration=2.0,
        method=method,
        increments=increments,
        keep_path=True,
    )
    assert found.path is not None
    torch.testing.assert_close(found.path[1:], torch.tensor(TORCHSDE[method]).double(), rtol=0, atol=5e-8)


# --------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps: expected a positive int, got 0"),
        ({"steps": -3}, "steps: expected a positive int, got -3"),
        ({"duration": 0.0}, "duration: expected a positive time, got 0.0"),
        ({"duration": -1.0}, "duration: expected a positive time, got -1.0"),
        ({"duration": math.inf}, "duration: expected a positive time, got inf"),
        ({"method": "heun"}, "method: expected 'euler' or 'milstein', got 'heun'"),
        ({"increments": torch.zeros(3, 2)}, r"increments: expected a tensor of shape \[4, 2\], got \[3, 2\]"),
        ({"increments": torch.zeros(4, 2), "antithetic": True}, "antithetic: increments are given"),
        ({"drift": lambda t, h: h[:1]}, r"drift: expected it to return a tensor of the state's shape \[2\], got \[1\]"),
        ({"diffusion": lambda t, h: 0.5}, "diffusion: expected it to return a tensor .* got float"),
        ({"start": torch.tensor(1.0), "antithetic": True}, "antithetic: expected a first dimension"),
    ],
)
def test_wrong_values_are_refused(options: dict[str, Any], message: str) -> None:
    given = {"drift": growth, "diffusion": noise, "start": torch.ones(2), "steps": 4} | options
    with pytest.raises(ValueError, match=f"^{message}"):
        solve_sde(**given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drift": 0.5}, "drift: expected a function of time and state, got float"),
        ({"drift": nn.ReLU}, "drift: expected a function of time and state, got the class ReLU"),
        ({"diffusion": 0.5}, "diffusion: expected a function of time and state, got float"),
        ({"start": torch.ones(2, dtype=torch.int64)}, "start: expected a floating-point tensor"),
    ],
)
def test_wrong_kinds_are_refused(options: dict[str, Any], message: str) -> None:
    given = {"drift": growth, "diffusion": noise, "start": torch.ones(2), "steps": 4} | options
    with pytest.raises(TypeError, match=f"^{message}"):
        solve_sde(**given)
