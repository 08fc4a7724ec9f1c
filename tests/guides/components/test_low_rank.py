"""The low-rank Gaussian against dense ones, and what guides do with it on their sites."""

from __future__ import annotations

import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pyrobnn.guides.components.low_rank import LowRankGaussian, joint_log_prob, on_support, sample_jointly
from pyrobnn.model.layout import Layout
from tests.conformance.monte_carlo import Z, z_of_mean
from tests.guides.test_base import Sites


def gaussian(*shape: int, rank: int = 2, dtype: torch.dtype = torch.float64, spread: float = 0.7) -> LowRankGaussian:
    loc, scale = torch.randn(shape, dtype=dtype), torch.rand(shape, dtype=dtype) + 0.3
    return LowRankGaussian(loc, scale, spread * torch.randn(*shape, rank, dtype=dtype))


def covariance(found: LowRankGaussian) -> Tensor:
    factor = found.cov_factor.reshape(found.loc.numel(), -1).double()
    return factor @ factor.T + torch.diag(found.scale.reshape(-1).double().square())


def dense(found: LowRankGaussian) -> dist.MultivariateNormal:
    """The same in double precision with its covariance written out, over the flat vector."""
    return dist.MultivariateNormal(found.loc.reshape(-1).double(), covariance(found))


# ----------------------------------------------------------------------------------------- known answers


@given(
    shape=st.lists(st.integers(1, 3), max_size=3).map(tuple),
    rank=st.integers(1, 5),
    lead=st.lists(st.integers(1, 3), max_size=2).map(tuple),
)
def test_density_and_entropy_are_those_of_the_dense_normal(
    shape: tuple[int, ...], rank: int, lead: tuple[int, ...]
) -> None:
    """Any shape, also where the rank exceeds the dimension."""
    found = gaussian(*shape, rank=rank)
    value = torch.randn(lead + shape, dtype=torch.float64)
    expected = dense(found).log_prob(value.reshape(*lead, -1))
    torch.testing.assert_close(found.log_prob(value), expected)
    assert found.log_prob(value).shape == lead
    torch.testing.assert_close(found.entropy(), dense(found).entropy())
    torch.testing.assert_close(found.variance.reshape(-1), covariance(found).diagonal())
    assert found.rsample(lead).shape == lead + shape


def test_gradients_are_those_of_the_dense_normal() -> None:
    parts = [torch.randn(4), torch.rand(4) + 0.3, torch.randn(4, 2)]
    parts = [part.double().requires_grad_() for part in parts]
    value = torch.randn(5, 4).double()
    for act in (lambda q: q.log_prob(value).sum(), lambda q: q.entropy()):
        by_dense = dist.MultivariateNormal(parts[0], parts[2] @ parts[2].T + torch.diag(parts[1].square()))
        found, expected = (
            torch.autograd.grad(act(q), parts, allow_unused=True) for q in (LowRankGaussian(*parts), by_dense)
        )
        for ours, theirs in zip(found, expected, strict=True):
            if theirs is None:
                assert ours is None
            else:
                torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("spread", "rtol"), [(1e-3, 1e-5), (1.0, 1e-5), (1e3, 1e-4)])
def test_single_precision_keeps_its_digits(spread: float, rtol: float) -> None:
    """Draws a thousand times the diagonal away from the mean are rounded themselves: 1e-4 of it.

    The usual difference of squares loses nearly all digits there.
    """
    found = gaussian(50, rank=3, dtype=torch.float32, spread=spread)
    value = found.rsample((20,))
    expected = dense(found)
    torch.testing.assert_close(found.log_prob(value).double(), expected.log_prob(value.double()), rtol=rtol, atol=0.0)
    torch.testing.assert_close(found.entropy().double(), expected.entropy(), rtol=1e-5, atol=0.0)


@pytest.mark.statistical
def test_draws_have_the_mean_and_the_covariance() -> None:
    """20 000 draws; z-scores below 5."""
    found = gaussian(2, 3)
    draws = found.rsample((20_000,)).reshape(-1, 6)
    centered = draws - found.loc.reshape(-1)
    assert z_of_mean(draws, found.loc.reshape(-1)) < Z
    assert z_of_mean(centered.unsqueeze(-1) * centered.unsqueeze(-2), covariance(found)) < Z


def test_nothing_dense_is_made() -> None:
    """A dense covariance of 300 000 elements would take 360 GB."""
    found = gaussian(300_000, rank=3, dtype=torch.float32)
    value = found.rsample((2,))
    assert bool(found.log_prob(value).isfinite().all()) and bool(found.entropy().isfinite())


def test_a_broken_factor_gives_nan_not_an_error() -> None:
    """So that the objective can name the part that blew up."""
    broken = LowRankGaussian(torch.zeros(2), torch.ones(2), torch.full((2, 1), torch.nan), validate_args=False)
    assert bool(broken.entropy().isnan()) and bool(broken.log_prob(torch.zeros(2)).isnan())


@pytest.mark.parametrize(
    "shapes", [((3,), (2,), (3, 2)), ((3,), (3,), (2, 2)), ((3,), (3,), (3,)), ((), (), ())], ids=str
)
def test_shapes_that_do_not_fit(shapes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ValueError, match=r"cov_factor: expected a scale of shape .* and a factor of shape .*'rank'"):
        LowRankGaussian(*(torch.ones(shape) for shape in shapes))


# ------------------------------------------------------------------------------------- on the sites of a guide

MIXED = {
    "w": dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2),
    "s": dist.Gamma(2.0, 1.0).expand([2]).to_event(1),
    "p": dist.Dirichlet(torch.tensor([2.0, 3.0, 4.0])),
}


def mixed() -> tuple[Layout, LowRankGaussian]:
    """Sites on the reals, the positive reals and the simplex, and a Gaussian over their flat vector."""
    layout = Layout.of(Sites(**MIXED), example=())
    return layout, gaussian(layout.size)


def test_joint_density_on_mixed_supports() -> None:
    """Flat vectors pushed through the transforms: dense density minus the log determinants of the Jacobians."""
    layout, found = mixed()
    flat = found.rsample((4,))
    pieces = layout.split(flat)
    expected = dense(found).log_prob(flat) - pieces["s"].sum(-1)  # exp is its own derivative
    simplex = layout["p"].transform
    for index in range(4):
        jacobian = torch.autograd.functional.jacobian(lambda u: simplex(u)[:-1], pieces["p"][index])
        expected[index] -= jacobian.det().abs().log()
    torch.testing.assert_close(joint_log_prob(layout, found, layout.constrain(pieces)), expected)


def test_log_jacobian_keeps_leading_dimensions() -> None:
    layout, _ = mixed()
    site = layout["s"]
    unconstrained = torch.randn(5, 2)
    for num_dims, expected in ((1, unconstrained.sum(-1)), (2, unconstrained), (0, unconstrained.sum())):
        torch.testing.assert_close(site.log_jacobian(unconstrained, unconstrained.exp(), num_dims), expected)
    real = torch.randn(5, 2, 3)
    assert torch.equal(layout["w"].log_jacobian(real, real, 1), torch.zeros(5))


def test_on_support_is_a_density_of_the_sites_value() -> None:
    layout, _ = mixed()
    own = gaussian(2)
    value = torch.rand(3, 2).double() + 0.1
    expected = own.log_prob(value.log()) - value.log().sum(-1)
    torch.testing.assert_close(on_support(layout["s"], own).log_prob(value), expected)
    assert on_support(layout["w"], gaussian(2, 3)).event_shape == (2, 3)


def test_pyros_view_has_one_random_site() -> None:
    layout, found = mixed()
    trace = poutine.trace(lambda: sample_jointly(layout, found)).get_trace()
    names = list(trace.stochastic_nodes)
    assert len(names) == 4 and names[1:] == ["w", "s", "p"]
    assert trace.nodes[names[0]]["infer"]["is_auxiliary"]
    assert all(isinstance(trace.nodes[name]["fn"], dist.Delta) for name in names[1:])
    draws = {name: trace.nodes[name]["value"].unsqueeze(0) for name in names[1:]}
    torch.testing.assert_close(trace.log_prob_sum(), joint_log_prob(layout, found, draws).squeeze())
