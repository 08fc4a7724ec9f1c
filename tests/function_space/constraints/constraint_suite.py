"""What every constraint must do, beside what every term must."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyrobnn as pb
from pyrobnn.function_space import Constraint, violations
from pyrobnn.function_space.constraints.base import Function, predictions_of
from pyrobnn.guides import MAP, DeltaMixture, MCDropout, MeanField
from pyrobnn.model.draws import Draws
from pyrobnn.objectives import ELBO, Objective
from tests.conformance.objective_suite import ObjectiveConformance

SIX = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
GUIDES: dict[str, Callable[[Any], Any]] = {
    "MeanField": MeanField,
    "MAP": MAP,
    "DeltaMixture": lambda model: DeltaMixture(model, num_members=2),
    "MCDropout": MCDropout,
}


def functions(count: int, *slopes: float) -> list[Function]:
    """Linear functions ``x @ slopes``, all the same."""
    weight = torch.tensor(slopes)
    return [lambda x: (x @ weight).unsqueeze(-1)] * count


def regression() -> pb.SupervisedModel:
    """Two inputs, one output, tanh."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1))
    return pb.SupervisedModel(net, pb.likelihoods.Normal(0.1), dist.Normal(0.0, 1.0), num_data=20)


class ConstraintConformance(ObjectiveConformance):
    """Inherit, and supply :meth:`constraint` for the three classes of the suite, and :meth:`of_regression`."""

    compares_draws = False
    offset = 0.0  # of the inputs it is asked for from the data
    remaining = 0.5  # of the violations after training
    epochs = 150

    def constraint(self, **options: Any) -> Constraint:
        """For three inputs and three classes, violated by most functions."""
        raise NotImplementedError

    def of_regression(self, **options: Any) -> Constraint:
        """For two inputs and one target, violated by most functions."""
        raise NotImplementedError

    def make(self) -> Objective:
        """An ELBO with it."""
        return ELBO(terms=[self.constraint()])

    @pytest.mark.parametrize("name", GUIDES)
    def test_training_lowers_violations(self, name: str) -> None:
        """150 steps with a large weight; the likelihood does not ask for the contrary."""
        model = regression()
        guide = GUIDES[name](model)
        x = torch.rand(20, 2, generator=torch.Generator().manual_seed(1)) * 2 - 1
        y = torch.zeros(20, 1)
        constraint = self.of_regression(weight=100.0)
        if self.compares_draws and name == "MAP":
            with pytest.raises(TypeError, match="is a point, whose functions do not differ"):
                ELBO(terms=[constraint]).loss_and_grads(model, guide, x, y)
            return
        asked = x + self.offset
        before = violations(model, guide, constraint, asked, 30, seed=0)
        options = {"epochs": self.epochs, "lr": 2e-2, "seed": 0, "progress": False}
        pb.fit(model, guide, [(x, y)], elbo=ELBO(terms=[constraint]), **options)
        after = violations(model, guide, constraint, asked, 30, seed=0)
        assert before.size > 0
        assert after.size < self.remaining * before.size

    def test_the_probability_is_approached_from_its_smooth_form(self) -> None:
        """The penalty of a violation tends to its indicator as the temperature falls."""
        values = torch.tensor([-0.3, -0.01, 0.02, 0.5])
        sharp = self.constraint(form="probability", temperature=1e-4)
        torch.testing.assert_close(sharp.penalty(values), torch.tensor([0.0, 0.0, 1.0, 1.0]))
        smooth = self.constraint(form="probability", temperature=0.1)
        assert 0.0 < float(smooth.penalty(values)[0]) < 0.5 < float(smooth.penalty(values)[2]) < 1.0
        plain = self.constraint()
        torch.testing.assert_close(plain.penalty(values), torch.tensor([0.0, 0.0, 0.02, 0.5]))

    def test_the_gradient_is_that_of_differences(self) -> None:
        """By a weight of the last layer, in double precision."""
        model = regression().double()
        constraint = self.of_regression()
        x = torch.rand(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2 - 1
        drawn = MeanField(model, init_scale=0.3).double().sample(constraint.num_functions)

        def penalty(shift: torch.Tensor) -> torch.Tensor:
            moved = dict(drawn) | {"net.2.weight": drawn["net.2.weight"] + shift}
            made = [predictions_of(model, Draws(moved).at(k)) for k in range(constraint.num_functions)]
            return constraint.penalty(constraint.violation(made, x)).mean()

        shift = torch.zeros((), dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(penalty(shift), shift)
        step = 1e-6
        above, below = (penalty(shift.detach() + sign * step).detach() for sign in (1, -1))
        expected = (above - below) / (2 * step)
        assert float(gradient) == pytest.approx(float(expected), rel=1e-5, abs=1e-8)

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"weight": -1.0}, ValueError, "weight"),
            ({"form": "mean"}, ValueError, "form: expected 'expectation' or 'probability'"),
            ({"temperature": 0.0}, ValueError, "temperature"),
            ({"name": ""}, TypeError, "name: expected a name"),
            ({"inputs": "x"}, TypeError, "inputs: expected a function of the inputs or an iterable"),
            ({"inputs": torch.zeros(0, 3)}, ValueError, "inputs: expected rows"),
        ],
    )
    def test_wrong_options_are_refused(self, options: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            self.constraint(**options)

    def test_two_of_them_need_two_names(self) -> None:
        with pytest.raises(ValueError, match="2 of them are named"):
            ELBO(terms=[self.constraint(), self.constraint()])
        other = self.constraint(name="other")
        assert set(ELBO(terms=[self.constraint(), other]).weights()) == {
            "log_likelihood", "divergence", "other", self.constraint().name,
        }  # fmt: skip

    def test_a_model_without_predictions_is_refused(self) -> None:
        with pytest.raises(TypeError, match="needs a SupervisedModel"):
            self.constraint().check_model(pb.bayesianize(nn.Linear(3, 3)))
