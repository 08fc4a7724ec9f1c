"""The series against scipy on either side of where they begin, in double precision."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import special

from pyrobnn.core.stirling import LARGE, digamma_remainder, log_gamma_ratio, log_gamma_remainder


@pytest.mark.parametrize("a", [LARGE, 21.5, 40.0, 1e3])
def test_remainders_complete_the_formula(a: float) -> None:
    given = torch.tensor(a, dtype=torch.float64)
    log_gamma = (a - 0.5) * math.log(a) - a + 0.5 * math.log(2.0 * math.pi) + float(log_gamma_remainder(given))
    assert log_gamma == pytest.approx(float(special.gammaln(a)), rel=1e-15)
    digamma = math.log(a) - 0.5 / a - float(digamma_remainder(given))
    assert digamma == pytest.approx(float(special.digamma(a)), rel=1e-15)


def test_ratios_are_products() -> None:
    """Γ(a + n) / Γ(a) is ``a (a + 1) … (a + n - 1)``, also where both are too large for their difference."""
    for a in (1e-3, 0.5, 19.9, 20.1, 300.0, 1e7):
        for n in (0, 1, 3, 40):
            expected = math.fsum(math.log(a + i) for i in range(n))
            for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 2e-6)):
                found = log_gamma_ratio(torch.tensor(a, dtype=dtype), torch.tensor(float(n), dtype=dtype))
                assert float(found) == pytest.approx(expected, rel=tolerance, abs=tolerance * 20)


def test_ratios_have_gradients_on_both_sides() -> None:
    a = torch.tensor([0.3, 5.0, 19.0, 21.0, 80.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: log_gamma_ratio(t, torch.tensor(4.0, dtype=torch.float64)), (a,))
