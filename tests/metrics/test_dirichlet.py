"""Measures of Dirichlet distributions: closed forms against torch, scipy and draws, and their limits."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from pyrobnn.metrics import dirichlet_measures
from pyrobnn.metrics.dirichlet import measures_of_log
from tests.conformance.monte_carlo import z_of_mean

CONCENTRATIONS = torch.tensor(
    [[1.0, 1.0, 1.0], [101.0, 1.0, 1.0], [0.2, 0.3, 0.1], [8.0, 3.0, 20.0], [2.0, 2.0, 0.05]], dtype=torch.float64
)


@pytest.mark.statistical
def test_entropies_are_means_over_probabilities_that_are_drawn() -> None:
    """200,000 draws of each of five distributions: expected and differential entropy within z = 4."""
    torch.manual_seed(0)
    each = torch.distributions.Dirichlet(CONCENTRATIONS)
    found, z = dirichlet_measures(CONCENTRATIONS), each.sample((200_000,))
    assert z_of_mean(torch.special.entr(z).sum(-1), found.aleatoric) < 4
    assert z_of_mean(-each.log_prob(z.clamp_min(1e-300)), found.differential_entropy) < 4
    # the mutual information is the mean divergence of the probabilities from their mean
    information = (z * (z.clamp_min(1e-300) / each.mean).log()).sum(-1)
    assert z_of_mean(information, found.distributional) < 4


def test_against_torch_and_scipy() -> None:
    found = dirichlet_measures(CONCENTRATIONS)
    torch.testing.assert_close(found.alpha0, CONCENTRATIONS.sum(-1))
    torch.testing.assert_close(found.differential_entropy, torch.distributions.Dirichlet(CONCENTRATIONS).entropy())
    expected = [stats.dirichlet(row).entropy() for row in CONCENTRATIONS.numpy()]
    torch.testing.assert_close(found.differential_entropy, torch.tensor(expected).double())
    mean = CONCENTRATIONS / found.alpha0.unsqueeze(-1)
    torch.testing.assert_close(found.total, torch.special.entr(mean).sum(-1))


def test_the_uniform_distribution_of_three_classes() -> None:
    """``E H = ψ(4) - ψ(2) = 1/2 + 1/3``; the density is 2 on the simplex."""
    found = dirichlet_measures(torch.ones(3, dtype=torch.float64))
    expected = (3.0, math.log(3.0), 5 / 6, math.log(3.0) - 5 / 6, -math.log(2.0))
    torch.testing.assert_close(torch.stack(found), torch.tensor(expected, dtype=torch.float64))


@given(
    st.lists(st.floats(-9.0, 9.0), min_size=2, max_size=6),
    st.floats(0.0, 4.0),
)
def test_parts_add_up_and_evidence_takes_the_distributional_part_away(logs: list[float], more: float) -> None:
    concentrations = torch.tensor(logs, dtype=torch.float64).exp()
    found, surer = dirichlet_measures(concentrations), dirichlet_measures(concentrations * math.exp(more))
    torch.testing.assert_close(found.total, found.aleatoric + found.distributional, rtol=1e-9, atol=1e-9)
    assert float(found.aleatoric) > -1e-12 and float(found.distributional) >= 0
    assert float(surer.distributional) <= float(found.distributional) + 1e-9
    torch.testing.assert_close(surer.total, found.total)


def test_single_precision_keeps_its_digits() -> None:
    """At α0 = 2e5 the mutual information is about (C - 1) / (2 α0)."""
    found = dirichlet_measures(torch.tensor([1e5, 5e4, 5e4]))
    assert found.distributional.dtype == torch.float32
    assert float(found.distributional) == pytest.approx(2 / (2 * 2e5), rel=1e-3)


def test_what_are_no_concentrations_is_refused() -> None:
    for wrong, match in (
        (torch.tensor([1.0, 0.0]), "positive"),
        (torch.tensor([1.0, -2.0]), "positive"),
        (torch.ones(3, 1), "two classes"),
        (torch.tensor(1.0), "two classes"),
        (torch.tensor([1.0, math.inf]), "finite"),
    ):
        with pytest.raises(ValueError, match=f"^concentrations: .*{match}"):
            dirichlet_measures(wrong)
    with pytest.raises(TypeError, match=r"^concentrations: "):
        dirichlet_measures(torch.ones(2, 3).long())


def test_two_classes_in_closed_form_at_any_concentration() -> None:
    """Dir(α, α) tends to a normal distribution of variance 1 / (4 (2 α + 1)); its entropy is off by O(1 / α)."""
    alpha = torch.tensor([1e8, 1e12, 1e15, 1e20, 1e100], dtype=torch.float64)
    found = dirichlet_measures(alpha.unsqueeze(-1).expand(-1, 2))
    expected = 0.5 * (2.0 * math.pi * math.e / (4.0 * (2.0 * alpha + 1.0))).log()
    torch.testing.assert_close(found.differential_entropy, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(found.distributional, 1.0 / (4.0 * alpha), rtol=1e-7, atol=0)
    torch.testing.assert_close(found.aleatoric, torch.full_like(alpha, math.log(2.0)) - found.distributional)


@pytest.mark.parametrize("alpha", [19.9, 20.0, 20.1, 25.0, 60.0])
def test_the_series_is_the_closed_form_where_both_have_their_digits(alpha: float) -> None:
    """Mixed with a small concentration, on either side of where the series begins; scipy is exact to 1e-13 there."""
    for row in ([alpha, 0.3], [alpha, alpha, 1e-3], [alpha] * 4):
        found, each = dirichlet_measures(torch.tensor(row, dtype=torch.float64)), stats.dirichlet(row)
        assert float(found.differential_entropy) == pytest.approx(float(each.entropy()), rel=1e-12, abs=1e-12)
        p = [a / sum(row) for a in row]
        expected = special.digamma(sum(row) + 1.0) - sum(
            q * special.digamma(a + 1.0) for q, a in zip(p, row, strict=True)
        )
        assert float(found.aleatoric) == pytest.approx(float(expected), rel=1e-12)
        assert float(found.total) == pytest.approx(-sum(q * math.log(q) for q in p), rel=1e-12)


def test_one_large_and_one_small_concentration() -> None:
    """Dir(A, 1) has the density A z^(A - 1), of entropy ``1 - 1 / A - log A``."""
    large = torch.tensor([30.0, 1e6, 1e12, 1e18, 1e150], dtype=torch.float64)
    found = dirichlet_measures(torch.stack([large, torch.ones_like(large)], -1))
    torch.testing.assert_close(found.differential_entropy, 1.0 - 1.0 / large - large.log(), rtol=1e-12, atol=0)


def test_logarithms_of_any_size_have_measures_that_are_not_nan() -> None:
    """Beyond the range of double precision: the entropies of probabilities are still exact."""
    far = torch.tensor([-1e4, -700.0, -30.0, 0.0, 30.0, 700.0, 1e4], dtype=torch.float64)
    logs = torch.cartesian_prod(far, far, far).requires_grad_()
    found = measures_of_log(logs)
    for value in found:
        assert not bool(value.isnan().any())
    torch.testing.assert_close(found.total, torch.distributions.Categorical(logits=logs).entropy())
    torch.testing.assert_close(found.total, found.aleatoric + found.distributional)
    assert found.aleatoric.min().item() > -1e-6
    one = measures_of_log(torch.full((3,), -1e4, dtype=torch.float64))  # all of it is what z would tell
    torch.testing.assert_close(one.distributional, torch.tensor(math.log(3.0), dtype=torch.float64))
    (found.aleatoric.sum() + found.distributional.sum()).backward()
    assert logs.grad is not None and not bool(logs.grad.isnan().any())
