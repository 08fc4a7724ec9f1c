"""The helpers that hide ArviZ's version, against known answers, so that both versions agree."""

from __future__ import annotations

import numpy as np
import pytest

from pyrobnn.diagnostics._arviz import effective_sample_size, pareto_k, split_rhat

pytestmark = pytest.mark.arviz


@pytest.mark.parametrize("k", [0.2, 0.8])
def test_pareto_k_of_pareto_ratios(k: float) -> None:
    ratios = np.random.default_rng(0).uniform(size=10_000) ** -k
    # The tail has 3 sqrt(S) = 300 draws; the estimate's sd is about (1 + k) / sqrt(300); |z| < 4.
    assert abs(pareto_k(np.log(ratios)) - k) < 4 * (1 + k) / np.sqrt(300)


def test_pareto_k_of_equal_ratios() -> None:
    assert pareto_k(np.full(100, 3.0)) == -np.inf
    rounding = 1e-13 * np.random.default_rng(0).standard_normal(100)  # that of the log joint of an exact posterior
    assert pareto_k(3.0 + rounding) == -np.inf


def test_pareto_k_leaves_its_input_alone() -> None:
    log_ratios = np.random.default_rng(0).normal(size=100)
    kept = log_ratios.copy()
    pareto_k(log_ratios)
    np.testing.assert_array_equal(log_ratios, kept)


def test_rhat_of_agreeing_and_disagreeing_chains() -> None:
    draws = np.random.default_rng(0).normal(size=(4, 500, 2))
    draws[0, :, 1] += 2.0
    rhat = split_rhat(draws)
    assert rhat.shape == (2,)
    assert rhat[0] < 1.01
    # Means 2, 0, 0, 0 and unit variances: B/n = 1, W = 1 give sqrt(1 + 1) = 1.41 before ranks tame the shift.
    assert 1.2 < rhat[1] < 1.5


@pytest.mark.parametrize("method", ["bulk", "tail"])
def test_effective_sample_size_of_autocorrelated_draws(method: str) -> None:
    generator = np.random.default_rng(0)
    independent = generator.normal(size=(4, 1000, 1))
    slow = independent.copy()
    for t in range(1, 1000):  # AR(1) with coefficient 0.9: S (1 - 0.9) / (1 + 0.9) effective draws of the mean
        slow[:, t] = 0.9 * slow[:, t - 1] + np.sqrt(1 - 0.81) * independent[:, t]
    assert effective_sample_size(independent, method)[0] > 2500  # of 4000
    assert 100 < effective_sample_size(slow, method)[0] < 600  # 4000 / 19 = 211 for the mean, more in the tails
