"""What every objective must do: one value and one gradient in each of its uses, and no trace of a failed step."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.guides import Composite, DeltaMixture, Guide, MeanField
from pyrobnn.objectives import NonFiniteLossError, Objective
from tests.conformance.comparisons import assert_same, gradients, seeded

NUM_DATA = 40
FAMILIES: dict[str, Callable[[Any], Guide]] = {
    "MeanField": functools.partial(MeanField, init_scale=0.2, antithetic=False),
    "DeltaMixture": functools.partial(DeltaMixture, num_members=3, vmap=False),
    "Composite": lambda model: Composite(
        model, [("0.*", functools.partial(MeanField, init_scale=0.2, antithetic=False)), ("*", MeanField)]
    ),
}
each_family = pytest.mark.parametrize("family", FAMILIES)
Problem = tuple[pb.SupervisedModel, Guide, tuple[Tensor, Tensor]]


def make_problem(family: str) -> Problem:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))
    model = pb.SupervisedModel(net, pb.likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=NUM_DATA).double()
    guide = FAMILIES[family](model).double()
    x = torch.randn(8, 3, dtype=torch.float64)
    return model, guide, (x, torch.tensor([0, 1, 2, 0, 1, 2, 0, 1]))


def _numbered(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names as a ``ModuleList`` of model and guide has them."""
    return {name.replace("model.", "0.", 1).replace("guide.", "1.", 1): value for name, value in found.items()}


class ObjectiveConformance:
    """Inherit, and supply :meth:`make`.

    Attributes:
        further_terms: Names of its terms besides the log likelihood and the divergence.
        refused: The reason it has for families it cannot train, by their key in ``FAMILIES``: part of the TypeError.
    """

    further_terms: ClassVar[frozenset[str]] = frozenset()
    refused: ClassVar[dict[str, str]] = {}

    def make(self) -> Objective:
        """A new objective; all its terms have a weight."""
        raise NotImplementedError

    def problem(self, family: str) -> Problem:
        """Model, guide and batch; a refusal of the family ends the test."""
        model, guide, batch = make_problem(family)
        if family in self.refused:
            with pytest.raises(TypeError, match=self.refused[family]):
                self.make().loss_and_grads(model, guide, *batch)
            assert all(p.grad is None for p in guide.parameters())
            pytest.skip(f"refused, as it should be: {self.refused[family]}")
        return model, guide, batch

    @each_family
    def test_loss_is_the_weighted_sum_of_the_named_terms(self, family: str) -> None:
        model, guide, batch = self.problem(family)
        objective = self.make()
        loss = seeded(lambda: objective.loss_and_grads(model, guide, *batch))
        parts, weights = objective.parts, objective.weights()
        assert parts is not None and parts.num_data == NUM_DATA
        assert set(parts.values) == {"log_likelihood", "divergence"} | self.further_terms == set(weights)
        total = sum(weights[name] * float(value) for name, value in parts.values.items())
        assert loss == pytest.approx(total, rel=1e-10) == float(parts.loss)
        per_datum = parts.per_datum()
        assert per_datum["loss"] == pytest.approx(loss / NUM_DATA)
        assert per_datum["elbo"] == pytest.approx(per_datum["log_likelihood"] - per_datum["kl"])

    @each_family
    def test_uses_agree(self, family: str) -> None:
        """``loss_and_grads``, ``backward`` and a step of ``SVI`` have one value and one gradient.

        Under the handlers of ``SVI`` a plate draws the indices of its subsample, so that noise of terms that come after
        it is other noise; there the comparison is with ``loss_and_grads`` under such a handler.
        """
        model, guide, batch = self.problem(family)
        by_backward, by_svi, handled = (nn.ModuleList(copy.deepcopy((model, guide))) for _ in range(3))
        expected = _numbered(seeded(lambda: gradients(model, guide, batch, self.make())))
        loss = seeded(lambda: self.make().backward(*by_backward, batch)).loss
        found = {name: p.grad for name, p in by_backward.named_parameters() if p.grad is not None}
        assert_same({"loss": loss, **found}, expected)

        before = {name: p.detach().clone() for name, p in by_svi.named_parameters()}
        svi = SVI(*by_svi, pyro.optim.SGD({"lr": 1.0}), loss=self.make())
        loss = torch.tensor(seeded(lambda: svi.step(*batch)), dtype=torch.float64)
        moved = {name: before[name] - by_svi.get_parameter(name).detach() for name in found}
        with poutine.trace(param_only=True):
            expected = _numbered(seeded(lambda: gradients(*handled, batch, self.make())))
        assert_same({"loss": loss, **moved}, expected, rtol=1e-9, atol=1e-9)

    @each_family
    def test_scale_of_backward_and_accumulation(self, family: str) -> None:
        """Twice the objective has twice the gradient, and two evaluations add up."""
        model, guide, batch = self.problem(family)
        model.eval()  # so that the second evaluation sees the same network
        once = seeded(lambda: gradients(model, guide, batch, self.make()))
        seeded(lambda: self.make().backward(model, guide, batch, scale=2.0))
        doubled = {name: p.grad.clone() for name, p in guide.named_parameters() if p.grad is not None}
        guide.zero_grad()
        for _ in range(2):
            seeded(lambda: self.make().backward(model, guide, batch))
        for name, p in guide.named_parameters():
            if p.grad is not None:
                torch.testing.assert_close(doubled[name], 2.0 * once[f"guide.{name}"])
                torch.testing.assert_close(p.grad, 2.0 * once[f"guide.{name}"])

    @each_family
    def test_one_graph_trains_every_parameter(self, family: str) -> None:
        """The torch module: its value is the parts', and every parameter that a step trains has a gradient."""
        model, guide, batch = self.problem(family)
        objective = self.make()
        loss = seeded(lambda: objective(model, guide)(*batch))
        assert objective.parts is not None
        torch.testing.assert_close(loss.detach().double(), objective.parts.loss.detach().double())
        loss.backward()
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in guide.parameters())

    @each_family
    def test_value_alone_leaves_no_trace(self, family: str) -> None:
        """``loss`` adds no gradients and changes no running statistics, modes or counts of steps."""
        model, guide, batch = self.problem(family)
        objective = self.make()
        before = copy.deepcopy(nn.ModuleDict({"model": model, "guide": guide}).state_dict())
        value = objective.loss(model, guide, *batch)
        assert value == pytest.approx(float(objective.parts.loss)) and objective.num_steps == 0
        assert all(p.grad is None for p in guide.parameters()) and model.training
        assert_same(nn.ModuleDict({"model": model, "guide": guide}).state_dict(), before)

    @each_family
    def test_statistics_are_updated_once_a_step(self, family: str) -> None:
        model, guide, batch = self.problem(family)
        if guide.facts.num_components is not None:
            pytest.skip("members count their own batches, which the guides' suites test")
        self.make().loss_and_grads(model, guide, *batch)
        count = next(b for name, b in model.named_buffers() if name.endswith("num_batches_tracked"))
        assert int(count) == 1

    @each_family
    def test_fit_reports_its_terms(self, family: str) -> None:
        model, guide, (x, y) = self.problem(family)
        model.num_data = 11
        history = pb.fit(model, guide, [(x, y), (x[:3], y[:3])], epochs=2, elbo=self.make(), seed=0, progress=False)
        assert set(history.terms) - {"temperature"} == self.further_terms
        assert all(len(values) == 2 for values in (history.elbo, *history.terms.values()))

    @each_family
    def test_a_loss_that_is_not_finite_adds_nothing(self, family: str) -> None:
        model, guide, (x, y) = self.problem(family)
        for p in guide.parameters():
            p.grad = torch.full_like(p, 0.5)
        broken = torch.where(torch.arange(3) == 1, torch.full_like(x, float("inf")), x)
        with pyro.validation_enabled(False), pytest.raises(NonFiniteLossError):
            self.make().loss_and_grads(model, guide, broken, y)
        assert all(bool((p.grad == 0.5).all()) for p in guide.parameters())

    def test_a_copy_is_an_objective_of_its_own(self) -> None:
        model, guide, batch = self.problem("MeanField")
        objective = self.make()
        seeded(lambda: objective.loss_and_grads(model, guide, *batch))
        other = copy.deepcopy(objective)
        assert other.weights() == objective.weights() and other.num_steps == 1
        other.loss_and_grads(model, guide, *batch)
        assert (objective.num_steps, other.num_steps) == (1, 2)
