"""The divergence of Dirichlet distributions against torch's, and its gradient."""

from __future__ import annotations

import torch
from torch.distributions import Dirichlet, kl_divergence

from pyrobnn.distributions.dirichlet import dirichlet_kl, dirichlet_kl_to_uniform


def concentrations(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2.0 * torch.randn(50, 7, generator=generator, dtype=torch.float64)).exp()


def test_values_and_gradients_are_those_of_torch() -> None:
    alpha, beta = (concentrations(seed).requires_grad_() for seed in (0, 1))
    found, expected = dirichlet_kl(alpha, beta), kl_divergence(Dirichlet(alpha), Dirichlet(beta))
    torch.testing.assert_close(found, expected)
    ours, theirs = (torch.autograd.grad(value.sum(), (alpha, beta)) for value in (found, expected))
    torch.testing.assert_close(ours, theirs)
    assert torch.autograd.gradcheck(dirichlet_kl, (alpha[:3], beta[:3]))


def test_uniform_is_all_ones_and_the_divergence_is_never_negative() -> None:
    alpha = concentrations(2)
    expected = kl_divergence(Dirichlet(alpha), Dirichlet(torch.ones_like(alpha)))
    torch.testing.assert_close(dirichlet_kl_to_uniform(alpha), expected)
    assert torch.equal(dirichlet_kl(alpha, alpha), torch.zeros(50, dtype=torch.float64))
    assert bool((dirichlet_kl_to_uniform(alpha) > 0).all())


def test_large_single_precision_concentrations_keep_their_digits() -> None:
    """Dir(2e4 ...) from Dir(2e4 ... + 100): in single precision log gammas of 2e5 lose the second digit."""
    alpha = torch.full((10,), 2e4)
    beta = alpha.clone()
    beta[0] += 100.0
    expected = kl_divergence(Dirichlet(alpha.double()), Dirichlet(beta.double()))
    torch.testing.assert_close(dirichlet_kl(alpha, beta), expected, rtol=1e-6, atol=0)
