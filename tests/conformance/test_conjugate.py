"""The closed form itself, and NUTS through the model against it."""

from __future__ import annotations

import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import MCMC, NUTS

from tests.conformance.conjugate import ConjugateRegression


def test_closed_form_satisfies_bayes_rule() -> None:
    """log joint - log posterior is the evidence at any weights; the joint is the model's own."""
    data = ConjugateRegression()
    model = data.model()
    posterior = dist.MultivariateNormal(data.mean, precision_matrix=data.precision)
    for _ in range(3):
        weights = torch.randn(data.dim + 1).double()
        values = {"net.weight": weights[:-1].unsqueeze(0), "net.bias": weights[-1:]}
        trace = poutine.trace(poutine.condition(model, values)).get_trace(data.x, data.y)
        log_evidence = trace.log_prob_sum() - posterior.log_prob(weights)
        assert float(log_evidence) == pytest.approx(data.log_evidence, rel=1e-5)


def test_gap_is_the_kl_to_the_posterior() -> None:
    data = ConjugateRegression()
    factorized = dist.MultivariateNormal(data.mean, torch.diag(data.mean_field_variance))
    posterior = dist.MultivariateNormal(data.mean, precision_matrix=data.precision)
    assert data.gap == pytest.approx(float(torch.distributions.kl_divergence(factorized, posterior)), rel=1e-9)
    assert data.gap > 0.1


@pytest.mark.statistical
def test_nuts_samples_the_posterior() -> None:
    """300 draws; means within 5 standard errors of the effective sample size, variances likewise."""
    data = ConjugateRegression(num_data=20, dim=2)
    kernel = NUTS(data.model(), jit_compile=False)
    mcmc = MCMC(kernel, num_samples=300, warmup_steps=100, disable_progbar=True)
    mcmc.run(data.x, data.y)
    sampled = mcmc.get_samples()
    draws = torch.cat([sampled["net.weight"].squeeze(1), sampled["net.bias"]], 1)
    diagnostics = mcmc.diagnostics()
    effective = torch.cat([diagnostics[name]["n_eff"].reshape(-1) for name in ("net.weight", "net.bias")])
    effective = effective.clamp(max=len(draws))
    assert bool((effective > 100).all())
    covariance = torch.linalg.inv(data.precision)
    variance = covariance.diagonal()
    z = (draws.mean(0) - data.mean) / (variance / effective).sqrt()
    assert float(z.abs().max()) < 5.0
    z = (draws.var(0) - variance) / (variance * (2.0 / effective).sqrt())
    assert float(z.abs().max()) < 5.0
