"""Selection without target labels: risks whose value under the target is known."""

from __future__ import annotations

import math

import pytest
import torch

from models.domain_adaptation.selection import density_ratio, importance_weighted_risk


def test_density_ratio_of_two_normals() -> None:
    r"""N(0, 1) and N(m, 1) have :math:`\log r(x) = m x - m^2/2`, which is in the logistic family: 20,000 rows each."""
    generator = torch.Generator().manual_seed(0)
    source, target = torch.randn(20_000, 1, generator=generator), 1.0 + torch.randn(20_000, 1, generator=generator)
    at = torch.linspace(-1.0, 2.0, 7).unsqueeze(1)
    found = density_ratio(source, target, at).log()
    torch.testing.assert_close(found, (at - 0.5).squeeze(1), atol=0.08, rtol=0.0)


def test_weighted_risk_is_unbiased_and_the_control_variate_lowers_its_variance() -> None:
    """Losses x² of N(0, 1) weighted to N(1/2, 1): the risk is 1 + 1/4. 400 samples of 500, z at most 4."""
    generator = torch.Generator().manual_seed(0)
    plain, controlled = [], []
    for _ in range(400):
        x = torch.randn(500, generator=generator, dtype=torch.double)
        found = importance_weighted_risk(x.square(), (0.5 * x - 0.125).exp())
        plain.append(found.plain)
        controlled.append(found.value)
    first, second = torch.tensor(plain), torch.tensor(controlled)
    assert abs(float(first.mean()) - 1.25) < 4 * float(first.std()) / math.sqrt(400)
    assert abs(float(second.mean()) - 1.25) < 4 * float(second.std()) / math.sqrt(400) + 0.01  # bias of order 1/n
    assert float(second.std()) < 0.9 * float(first.std())


def test_equal_weights_give_the_mean() -> None:
    losses = torch.tensor([0.0, 1.0, 1.0, 0.0])
    found = importance_weighted_risk(losses, torch.ones(4))
    assert found.value == found.plain == 0.5
    assert found.effective_size == pytest.approx(4.0)
    assert found.standard_error == pytest.approx(math.sqrt(1 / 12))


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="losses, weights"):
        importance_weighted_risk(torch.ones(3), torch.ones(2))
    with pytest.raises(ValueError, match="weights"):
        importance_weighted_risk(torch.ones(2), torch.tensor([1.0, -1.0]))
    with pytest.raises(ValueError, match="features"):
        density_ratio(torch.ones(3, 2), torch.ones(3, 1), torch.ones(1, 2))
    with pytest.raises(ValueError, match="penalty"):
        density_ratio(torch.ones(3, 2), torch.ones(3, 2), torch.ones(1, 2), penalty=0.0)
