"""Adversarial logit pairing: its value, its gradient through both runs, and what a radius of 0 leaves."""

from __future__ import annotations

import pytest
import torch

from pyrobnn.objectives import ELBO, Objective
from pyrobnn.robustness.training import FastGradient, LogitPairing
from pyrobnn.robustness.training.attacked import attacking
from tests.conformance.comparisons import assert_same, gradients, seeded
from tests.conformance.objective_suite import ObjectiveConformance
from tests.robustness.training.problems import FAMILIES, fitted, problem


class TestLogitPairing(ObjectiveConformance):
    further_terms = frozenset({"clean_log_likelihood", "logit_pairing"})

    def make(self) -> Objective:
        return LogitPairing(FastGradient(0.1), 0.3)


@pytest.mark.parametrize("family", FAMILIES)
def test_radius_zero_is_plain_training(family: str) -> None:
    """The distance is 0, and so is its gradient; half and half of one likelihood is the whole, up to rounding."""
    expected, history = fitted(family, ELBO())
    found, other = fitted(family, LogitPairing(FastGradient(0.0)))
    assert other.terms["logit_pairing"] == [0.0, 0.0]
    assert_same(found.state_dict(), expected.state_dict(), rtol=1e-6, atol=1e-6)
    assert other.terms["clean_log_likelihood"] == pytest.approx(history.log_likelihood)


def test_the_distance_and_its_gradient_through_both_runs() -> None:
    model, guide, (x, y) = problem(batch_norm=False)
    found = seeded(lambda: gradients(model, guide, (x, y), LogitPairing(FastGradient(0.1), 0.3)))
    elbo = LogitPairing(FastGradient(0.1), 0.3)
    elbo.loss(model, guide, x, y)
    with attacking(model, guide.rsample()) as network:
        moved = FastGradient(0.1)(network, x, y)
        distance = (network.outputs(x) - network.outputs(moved)).square().sum(1)
    assert elbo.parts is not None
    assert float(elbo.parts.values["logit_pairing"]) == pytest.approx(float(distance.sum().detach()))  # N = B = 12

    plain = seeded(lambda: gradients(model, guide, (x, y), LogitPairing(FastGradient(0.1), 0.0)))
    values = {name: value.detach().requires_grad_() for name, value in guide.rsample().items()}
    outputs = [torch.func.functional_call(model.net.network, _by_name(values), at) for at in (x, moved)]
    slopes = torch.autograd.grad((outputs[0] - outputs[1]).square().sum(), list(values.values()))
    expected = torch.cat([slope.flatten() for slope in slopes])
    (name,) = set(found) - {"loss"}
    torch.testing.assert_close((found[name] - plain[name]).flatten() / 0.3, expected)


def _by_name(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix("net."): value for name, value in values.items()}


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^weight: "):
        LogitPairing(FastGradient(0.1), -1.0)
