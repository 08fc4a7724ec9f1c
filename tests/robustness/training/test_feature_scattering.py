"""Feature scattering: the transport plan, the step away from the batch, labels and layers."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from pyrobnn.objectives import Objective
from pyrobnn.robustness.training import AdversarialTraining, FeatureScattering, transport_plan
from pyrobnn.robustness.training.attacked import attacking
from pyrobnn.robustness.training.sinkhorn import cosine_costs
from tests.conformance.objective_suite import ObjectiveConformance
from tests.conformance.perturbation_suite import PerturbationConformance
from tests.robustness.training.problems import problem


class TestObjective(ObjectiveConformance):
    def make(self) -> Objective:
        return AdversarialTraining(FeatureScattering(0.1, layer="0"))


class TestPerturbation(PerturbationConformance):
    def make(self, epsilon: float, clip: tuple[float, float] | None) -> FeatureScattering:
        return FeatureScattering(epsilon, clip=clip)


def costs(rows: int = 8, columns: int = 8) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.rand(rows, columns, dtype=torch.float64)


def test_the_plan_has_its_marginals() -> None:
    plan = transport_plan(costs(6, 9), 0.1, 500)
    torch.testing.assert_close(plan.sum(1), torch.full((6,), 1 / 6, dtype=torch.float64))
    torch.testing.assert_close(plan.sum(0), torch.full((9,), 1 / 9, dtype=torch.float64))


def test_with_little_entropy_it_is_the_best_assignment() -> None:
    """The optimum of the linear program, of SciPy; the plan costs at most ``regularization * log n`` more."""
    matrix = costs()
    plan = transport_plan(matrix, 0.01, 3000)
    rows, columns = linear_sum_assignment(matrix.numpy())
    best = float(matrix[rows, columns].mean())
    assert best - 1e-9 <= float((plan * matrix).sum()) <= best + 0.01 * math.log(8.0)
    assert plan.argmax(1).tolist() == columns.tolist()


def test_it_is_the_optimum_of_the_entropic_problem() -> None:
    """At the optimum ``C + gamma log T`` is a sum of a function of rows and one of columns."""
    matrix = costs()
    potential = matrix + 0.05 * transport_plan(matrix, 0.05, 2000).log()
    doubly_centered = potential - potential.mean(0) - potential.mean(1, keepdim=True) + potential.mean()
    assert float(doubly_centered.abs().max()) < 1e-9


def test_cosine_costs() -> None:
    a, b = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [-1.0, 0.0]])
    torch.testing.assert_close(cosine_costs(a, b), torch.tensor([[0.0, 2.0], [1.0, 1.0]]))


@pytest.mark.parametrize("layer", [None, "2"])
def test_features_move_away_and_labels_do_not_matter(layer: str | None) -> None:
    model, guide, (x, y) = problem()
    player = FeatureScattering(0.3, clip=(0.0, 1.0), layer=layer, steps=5, step_size=0.1)
    with attacking(model, guide.rsample()) as network:
        torch.manual_seed(0)
        found = player(network, x, y)
        torch.manual_seed(0)
        assert torch.equal(found, player(network, x, (y + 1) % 3))
        torch.manual_seed(0)
        start = player.ball.random_start(x)
        clean = network.features(x, layer)

        def distance(moved: torch.Tensor) -> float:
            matrix = cosine_costs(clean, network.features(moved, layer))
            return float((transport_plan(matrix) * matrix).sum().detach())

        assert distance(found) > 1.2 * distance(start) > 0.0


def test_radius_zero_still_smooths_labels() -> None:
    model, guide, (x, y) = problem(batch_norm=False)
    values = []
    for smoothing in (0.0, 0.5):
        elbo = AdversarialTraining(FeatureScattering(0.0, label_smoothing=smoothing))
        elbo.loss(model, guide, x, y)
        assert elbo.parts is not None
        values.append(float(elbo.parts.log_likelihood))
    with torch.no_grad(), attacking(model, guide.rsample()) as network:
        log_p = network.outputs(x).log_softmax(-1)
    others = (log_p.sum(1) - log_p[torch.arange(12), y]) / 2
    assert values[1] == pytest.approx(0.5 * values[0] + 0.5 * float(others.detach().sum()))


def test_what_is_wrong_is_refused() -> None:
    model, guide, batch = problem()
    with pytest.raises(ValueError, match=r"^layer: the network has no module 'features'"):
        AdversarialTraining(FeatureScattering(0.1, layer="features")).loss(model, guide, *batch)
    with pytest.raises(TypeError, match=r"^layer: "):
        FeatureScattering(0.1, layer=3)  # type: ignore[arg-type]
    for options in ({"label_smoothing": 1.0}, {"regularization": 0.0}, {"iterations": 0}, {"steps": 0}):
        with pytest.raises(ValueError, match=f"^{next(iter(options))}: "):
            FeatureScattering(0.1, **options)  # type: ignore[arg-type]
