"""ADT-EXP: what its steps maximize, its options, and the objective around it."""

from __future__ import annotations

import pytest
import torch

from pyrobnn.objectives import Objective
from pyrobnn.robustness.training import AdversarialTraining, ExplicitDistribution
from pyrobnn.robustness.training.attacked import attacking
from tests.conformance.objective_suite import ObjectiveConformance
from tests.conformance.perturbation_suite import PerturbationConformance
from tests.robustness.training.problems import linear_problem


class TestObjective(ObjectiveConformance):
    def make(self) -> Objective:
        return AdversarialTraining(ExplicitDistribution(0.1, num_steps=2, num_draws=2))


class TestPerturbation(PerturbationConformance):
    def make(self, epsilon: float, clip: tuple[float, float] | None) -> ExplicitDistribution:
        return ExplicitDistribution(epsilon, clip=clip, num_steps=2, num_draws=2)


def fitted(**options: object) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Means of the perturbations of the linear problem, their standard deviations, and the worst perturbations."""
    model, guide, (x, y) = linear_problem()
    torch.manual_seed(0)
    draw = guide.rsample()
    with attacking(model, draw) as network:
        found = ExplicitDistribution(0.2, **options).fitted(network, x, y)  # type: ignore[arg-type]
        return found.loc, found.scale, 0.2 * network.gradient(x, y).sign()


def test_without_entropy_it_moves_to_the_worst_corner() -> None:
    """A linear model: the worst perturbation is ``epsilon`` times the sign of the gradient, wherever one is."""
    loc, _, worst = fitted(entropy_weight=0.0, num_steps=60, num_draws=8)
    found = 0.2 * torch.tanh(loc)
    assert float((found - worst).abs().max()) < 0.01 * 0.2


def test_a_large_weight_of_the_entropy_keeps_it_in_the_middle() -> None:
    """Of tanh-normals around 0 none has more entropy than that with a standard deviation near 0.87."""
    loc, scale, _ = fitted(entropy_weight=1e4, entropy="sum", num_steps=200, num_draws=5, step_size=0.02)
    assert float(loc.abs().max()) < 0.15
    assert float((scale - 0.875).abs().max()) < 0.15


@pytest.mark.parametrize("entropy", ["mean", "sum"])
def test_the_unit_of_the_entropy(entropy: str) -> None:
    """The mean over 4 elements with four times the weight is the sum."""
    weight = {"mean": 4.0, "sum": 1.0}[entropy]
    found = fitted(entropy_weight=weight, entropy=entropy, betas=(0.9, 0.999))
    expected = fitted(entropy_weight=1.0, entropy="sum", betas=(0.9, 0.999))
    torch.testing.assert_close(found[0], expected[0])


def test_signs_of_running_sums_are_steps_of_the_published_code() -> None:
    """With betas (0, 0) a step is the sign of the gradient; the sums' signs change later than the gradients'."""
    model, guide, (x, y) = linear_problem()
    options = {"entropy_weight": 1.0, "entropy": "sum", "num_steps": 6, "num_draws": 1}
    draw = guide.rsample()
    paths = {}
    for accumulate in (False, True):
        torch.manual_seed(0)
        player = ExplicitDistribution(0.2, accumulate_gradients=accumulate, **options)  # type: ignore[arg-type]
        with attacking(model, draw) as network:
            paths[accumulate] = player.fitted(network, x, y).loc
            torch.manual_seed(0)
            loc, raw_scale, total = torch.zeros_like(x), torch.zeros_like(x), [0.0, 0.0]
            for _ in range(6):
                parameters = [loc.clone().requires_grad_(), raw_scale.clone().requires_grad_()]
                slopes = torch.autograd.grad(player.gain(network, x, y, *parameters).sum(), parameters)
                total = [(t if accumulate else 0.0) + s for t, s in zip(total, slopes, strict=True)]
                loc, raw_scale = (v + 0.3 * t.sign() for v, t in zip((loc, raw_scale), total, strict=True))
        torch.testing.assert_close(paths[accumulate], loc, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(paths[False], paths[True])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"epsilon": 0.1, "num_steps": 0}, "num_steps"),
        ({"epsilon": 0.1, "num_draws": 1.5}, "num_draws"),
        ({"epsilon": 0.1, "step_size": 0.0}, "step_size"),
        ({"epsilon": 0.1, "entropy_weight": -1.0}, "entropy_weight"),
        ({"epsilon": 0.1, "entropy": "median"}, "entropy"),
        ({"epsilon": 0.1, "betas": (0.0, 1.0)}, "betas"),
    ],
)
def test_what_is_out_of_range_is_refused(options: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named}: "):
        ExplicitDistribution(**options)  # type: ignore[arg-type]
