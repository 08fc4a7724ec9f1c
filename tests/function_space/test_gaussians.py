"""Gaussians over function values: KL against torch's of full matrices, samples, messages."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from pyrobnn.function_space import BlockFunctions, Jitter, LowRankFunctions, functional_kl
from tests.conformance.monte_carlo import Z, z_of_mean

POINTS, OUTPUTS = 6, 3


def covariance(*blocks: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(*blocks, POINTS, POINTS, generator=generator).double()
    return root @ root.mT + 0.3 * torch.eye(POINTS).double()


def low_rank(rank: int, ridge: float = 0.2) -> LowRankFunctions:
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(rank + 1, POINTS, OUTPUTS, generator=generator).double()
    return LowRankFunctions(values[0], values[1:], torch.tensor(ridge).double())


def full(given: BlockFunctions | LowRankFunctions) -> MultivariateNormal:
    """All values as one vector, points outside, outputs inside."""
    if isinstance(given, LowRankFunctions):
        return MultivariateNormal(given.mean.flatten(), given.covariance)
    blocks = given.covariance.expand(OUTPUTS, POINTS, POINTS)
    whole = torch.block_diag(*blocks).reshape(OUTPUTS, POINTS, OUTPUTS, POINTS).permute(1, 0, 3, 2)
    mean = torch.as_tensor(given.mean).double().expand(POINTS, OUTPUTS)
    return MultivariateNormal(mean.flatten(), whole.reshape(POINTS * OUTPUTS, -1))


NOISY = replace(low_rank(4), ridge=torch.linspace(0.1, 0.5, POINTS).double().unsqueeze(1))
PRIORS = {
    "shared": BlockFunctions(0.0, covariance()),
    "by output": BlockFunctions(torch.linspace(-1, 1, POINTS * OUTPUTS).double().view(POINTS, OUTPUTS), covariance(3)),
}
POSTERIORS = {
    "low rank": low_rank(4),
    "rank above the number of values": low_rank(30),
    "noise by point": NOISY,
    "noise by point, high rank": replace(low_rank(30), ridge=NOISY.ridge),
    "shared": BlockFunctions(torch.ones(POINTS, OUTPUTS).double(), covariance(seed=5)),
    "by output": BlockFunctions(torch.ones(POINTS, OUTPUTS).double(), covariance(3, seed=6)),
}


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("posterior", POSTERIORS)
def test_kl_is_that_of_full_matrices(prior: str, posterior: str) -> None:
    q, p = POSTERIORS[posterior], PRIORS[prior]
    torch.testing.assert_close(functional_kl(q, p), kl_divergence(full(q), full(p)), rtol=1e-6, atol=1e-9)


def test_its_gradient_is_that_of_full_matrices() -> None:
    q, p = low_rank(4), PRIORS["by output"]
    leaves = [q.mean.requires_grad_(), q.factor.requires_grad_(), q.ridge.requires_grad_()]
    found = torch.autograd.grad(functional_kl(q, p), leaves)
    for ours, expected in zip(found, torch.autograd.grad(kl_divergence(full(q), full(p)), leaves), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-9)


def test_zero_for_the_same_and_noise_on_both_sides() -> None:
    """The regularized divergence is that of both with noise."""
    p = BlockFunctions(0.0, covariance(), "none")
    assert float(functional_kl(p, p)) == pytest.approx(0.0, abs=1e-9)
    q = low_rank(4)
    noisy = functional_kl(q.with_noise(0.7), p.with_noise(0.7))
    eye = 0.7 * torch.eye(POINTS * OUTPUTS).double()
    sides = [MultivariateNormal(g.mean, g.covariance_matrix + eye) for g in (full(q), full(p))]
    torch.testing.assert_close(noisy, kl_divergence(*sides), rtol=1e-6, atol=1e-9)


def test_of_draws_and_samples_have_the_same_moments() -> None:
    """Mean and covariance (divided by M) of 5 functions, plus a share of the mean variance; 40,000 samples, z of 5."""
    functions = torch.randn(5, POINTS, OUTPUTS, generator=torch.Generator().manual_seed(3)).double()
    q = LowRankFunctions.of_draws(functions, Jitter(0.1))
    flat = functions.flatten(1)
    expected = torch.cov(flat.T, correction=0)
    ridge = 0.1 * expected.diagonal().mean()
    torch.testing.assert_close(q.covariance, expected + ridge * torch.eye(len(expected)).double())
    torch.testing.assert_close(q.variance.flatten(), q.covariance.diagonal())
    torch.manual_seed(0)
    moved = (q.rsample(80_000) - q.mean).flatten(1)
    torch.testing.assert_close(moved[:40_000], -moved[40_000:])
    first = replace(q, ridge=NOISY.ridge).first(2)
    torch.testing.assert_close(first.covariance, replace(q, ridge=NOISY.ridge).covariance[:6, :6])
    half = moved[:40_000]
    assert z_of_mean(half.unsqueeze(2) * half.unsqueeze(1), q.covariance) < Z
    assert q.rsample(7).shape == (7, POINTS, OUTPUTS)


def test_jitter_carries_no_gradient() -> None:
    variances = torch.tensor([1.0, 3.0], requires_grad=True)
    assert not Jitter(0.5)(variances).requires_grad
    assert float(Jitter(0.5)(variances)) == 1.0 and float(Jitter(0.5, relative=False)(variances)) == 0.5
    assert str(Jitter(0.05)) == "5 % of the mean variance"
    by_point = Jitter(0.5, by_point=True)
    assert by_point(torch.tensor([[1.0, 3.0], [5.0, 7.0]])).tolist() == [[1.0], [3.0]]
    assert str(by_point) == "50 % of the mean variance at each point"
    for bad in (-1.0, float("nan"), "a"):
        with pytest.raises((ValueError, TypeError), match=r"^amount: "):
            Jitter(bad)  # type: ignore[arg-type]


def test_what_is_not_positive_definite_is_named_with_its_jitter_and_eigenvalue() -> None:
    broken = covariance()
    broken[0, 0] = -2.0
    with pytest.raises(
        ValueError, match=r"^prior: .* at 6 points .* the jitter \(1e-3\); its smallest eigenvalue is -4.35"
    ):
        functional_kl(low_rank(4), BlockFunctions(0.0, broken, "1e-3"))
    with pytest.raises(ValueError, match=r"^jitter: .* rank 4 at most, of 18, .* it is 0"):
        functional_kl(low_rank(4, 0.0), PRIORS["shared"])
    with pytest.raises(ValueError, match=r"^prior: its covariance is not finite"):
        functional_kl(low_rank(4), BlockFunctions(0.0, covariance() * torch.nan))
    with pytest.raises(ValueError, match=r"^prior: .* numbers of outputs, \[2, 3\]"):
        functional_kl(low_rank(4), BlockFunctions(0.0, covariance(2)))
    with pytest.raises(ValueError, match=r"^prior: its covariance is of 4 points, but there are 6"):
        functional_kl(low_rank(4), BlockFunctions(0.0, torch.eye(4).double()))
