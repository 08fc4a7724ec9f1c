from itertools import pairwise, permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrobnn.metrics import augrc, aurc, auroc, risk_coverage


def test_hand_computed():
    curve = risk_coverage(torch.tensor([0.3, 0.1, 0.4, 0.2]), torch.tensor([1, 0, 0, 1]))
    assert curve.coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert curve.risk.tolist() == pytest.approx([0, 1 / 2, 2 / 3, 1 / 2])
    assert curve.optimal_risk.tolist() == pytest.approx([0, 0, 1 / 3, 1 / 2])
    assert curve.aurc.item() == pytest.approx(5 / 12)
    assert curve.excess_aurc.item() == pytest.approx(5 / 12 - 5 / 24)


def test_generalized_risk_by_trapezoids():
    uncertainty, error = torch.tensor([0.3, 0.1, 0.4, 0.2]), torch.tensor([1.0, 0.0, 2.0, 1.0])
    curve = risk_coverage(uncertainty, error)  # errors in order: 0, 1, 1, 2
    assert curve.generalized_risk.tolist() == pytest.approx([0, 1 / 4, 2 / 4, 4 / 4])
    from_zero = torch.cat([torch.zeros(1), curve.generalized_risk]).double()
    assert augrc(uncertainty, error).item() == pytest.approx(torch.trapezoid(from_zero, dx=1 / 4).item())


@settings(max_examples=40, deadline=None)
@given(data=st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.4, 0.9]), st.booleans()), min_size=2, max_size=12))
def test_area_of_generalized_risk_by_auroc(data):
    uncertainty = torch.tensor([u for u, _ in data], dtype=torch.float64)
    error = torch.tensor([e for _, e in data])
    rate = error.double().mean().item()
    pairs = auroc(uncertainty[~error], uncertainty[error]) if 0 < rate < 1 else 0.5
    expected = rate * (1 - rate) * (1 - pairs) + rate**2 / 2
    assert augrc(uncertainty, error).item() == pytest.approx(expected, abs=1e-12)


def test_perfect_uncertainty_has_no_excess():
    error = torch.rand(50, generator=torch.Generator().manual_seed(0))
    curve = risk_coverage(error.clone(), error)
    assert curve.excess_aurc.item() == pytest.approx(0, abs=1e-15)
    assert curve.risk[-1].item() == pytest.approx(error.double().mean().item())
    assert risk_coverage(-error, error).excess_aurc > 0.1


def test_optimal_area_approaches_its_limit():
    # r + (1 - r) log(1 - r) for error rate r; the mean over N = 10 000 coverages differs by O(1 / N).
    r = 0.3
    error = (torch.arange(10_000) < 3000).float()
    limit = r + (1 - r) * torch.log(torch.tensor(1 - r)).item()
    assert aurc(error, error).item() == pytest.approx(limit, abs=1e-4)


def test_constant_uncertainty_is_flat():
    curve = risk_coverage(torch.full((5,), 0.7), torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0]))
    assert curve.risk.tolist() == pytest.approx([0.4] * 5)


@settings(max_examples=40, deadline=None)
@given(data=st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.9]), st.floats(-2, 2)), min_size=1, max_size=5))
def test_ties_are_the_mean_over_all_orders(data):
    orders = [order for order in permutations(data) if all(a[0] <= b[0] for a, b in pairwise(order))]
    errors = torch.tensor([[error for _, error in order] for order in orders], dtype=torch.float64)
    expected = (errors.cumsum(1) / torch.arange(1, len(data) + 1)).mean(0)
    curve = risk_coverage(*torch.tensor(data, dtype=torch.float64).unbind(1))
    torch.testing.assert_close(curve.risk, expected)
    assert curve.excess_aurc >= -1e-12


def test_infinite_uncertainty_is_answered_last():
    curve = risk_coverage(torch.tensor([torch.inf, 0.0, -torch.inf]), torch.tensor([True, False, False]))
    assert curve.risk.tolist() == pytest.approx([0, 0, 1 / 3])


@pytest.mark.parametrize(
    ("uncertainty", "error", "kind", "message"),
    [
        (torch.zeros(3), torch.zeros(3, 1), ValueError, r"error: expected shape \[3\]"),
        (torch.zeros(3, 1), torch.zeros(3, 1), ValueError, "uncertainty: expected 1 dimension"),
        (torch.zeros(0), torch.zeros(0), ValueError, "uncertainty: expected at least one element"),
        (torch.tensor([torch.nan]), torch.zeros(1), ValueError, "uncertainty: expected no NaN"),
        (torch.zeros(1), torch.tensor([torch.inf]), ValueError, "error: expected finite"),
        (torch.zeros(1, dtype=torch.long), torch.zeros(1), TypeError, "uncertainty: .*int64"),
        (torch.zeros(1), [0.0], TypeError, "error: .*list"),
        (torch.zeros(1), torch.zeros(1, dtype=torch.complex64), TypeError, "error: .*complex64"),
    ],
)
def test_bad_input_is_refused(uncertainty, error, kind, message):
    with pytest.raises(kind, match=message):
        aurc(uncertainty, error)
