"""What every guide must do. A new family's test inherits the suite by supplying a constructor:

class TestMyGuideConformance(GuideConformance):
    def make_guide(self, model, **options):
        return MyGuide(model, **options)
"""

from __future__ import annotations

import copy
import pickle
import types
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from pyrobnn import likelihoods
from pyrobnn.guides import Guide
from pyrobnn.guides.ensembles.base import Ensemble
from pyrobnn.model.divergence import PriorTerm
from pyrobnn.model.draws import Draws
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.objectives import ELBO
from pyrobnn.steps.normal_prior import is_fixed_normal
from tests.conformance.comparisons import (
    assert_in_place_matches_autograd,
    assert_same,
    assert_same_state,
    broken_off,
    gradients,
    network_state,
    seeded,
    step,
)
from tests.conformance.consumer_suite import ConsumerConformance, of_training
from tests.conformance.guide_models import BATCH_NORM, CASES, SMOOTH, Case
from tests.conformance.monte_carlo import Z, z_of_means, z_of_variances

Suite = TypeVar("Suite", bound=type)


def held_to(cases: list[Case], smooth: list[Case]) -> Callable[[Suite], Suite]:
    """Decorates a subclass of :class:`GuideConformance` whose family needs models of its own.

    Args:
        cases: What stands in for ``CASES``.
        smooth: What stands in for ``SMOOTH``.
    """

    def decorate(suite: Suite) -> Suite:
        inherited = vars(ConsumerConformance) | vars(GuideConformance)
        for name, test in list(inherited.items()):
            marks = getattr(test, "pytestmark", [])
            if name in vars(suite) or not any(mark.args and mark.args[0] == "case" for mark in marks):
                continue
            if not (smooth if any(mark.args and mark.args[1] is SMOOTH for mark in marks) else cases):
                setattr(suite, name, None)  # no model for it
                continue
            copied = types.FunctionType(test.__code__, test.__globals__, name, test.__defaults__, test.__closure__)
            copied.__doc__, copied.__kwdefaults__ = test.__doc__, test.__kwdefaults__
            if hasattr(test, "__wrapped__"):  # of training: pytest reads the arguments there
                copied.__wrapped__ = test.__wrapped__  # type: ignore[attr-defined]
            for mark in marks:
                own = mark
                if mark.args and mark.args[0] == "case":
                    own = pytest.mark.parametrize("case", smooth if mark.args[1] is SMOOTH else cases, ids=str).mark
                copied.pytestmark = [*getattr(copied, "pytestmark", []), own]  # type: ignore[attr-defined]
            setattr(suite, name, copied)
        return suite

    return decorate


each_case = pytest.mark.parametrize("case", CASES, ids=str)
each_smooth_case = pytest.mark.parametrize("case", SMOOTH, ids=str)


class GuideConformance(ConsumerConformance):
    """The suite; subclasses implement :meth:`make_guide` and set what is true of their family.

    Attributes:
        has_density: Whether ``log_prob`` exists.
        is_point: Whether all draws are one point.
        exact: Whether the divergence from a Normal prior is a closed form, the same for every draw.
        is_joint: Whether Pyro sees the sites as functions of an auxiliary one, so that they cannot be conditioned.
        trains_as_point: Whether the guide is a point in training mode and a distribution in evaluation mode.
    """

    has_density: ClassVar[bool] = True
    is_point: ClassVar[bool] = False
    exact: ClassVar[bool] = True
    is_joint: ClassVar[bool] = False
    trains_as_point: ClassVar[bool] = False

    def make_guide(self, model: nn.Module, **options: Any) -> Guide:
        """Builds the guide; ``options`` may hold ``example``."""
        raise NotImplementedError

    def two_draws(self, guide: Guide) -> list[Draws]:
        """Two draws that differ unless the guide is a point."""
        return [guide.rsample() for _ in range(2)]

    def draw(self, guide: Guide) -> Draws:
        """One draw with gradients, of what is trained."""
        return guide.step(None, sequential=False).draw(None) if self.trains_as_point else guide.rsample()

    def move(self, model: nn.Module, guide: Guide, batch: Any) -> None:
        """One optimizer step: of the objective, or on the draws where the family is not trained by one."""
        if self.trains:
            step(model, guide, batch)
            return
        guide.zero_grad()
        torch.stack([value.square().sum() for value in guide.rsample().values()]).sum().backward()
        torch.optim.SGD(guide.parameters(), lr=1e-3).step()
        guide.zero_grad()

    def running_statistics(self, model: nn.Module, guide: Guide) -> list[dict[str, Tensor]]:
        """The buffers of the first BatchNorm layer; one set, or one for each member that has its own."""
        norm = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
        return [dict(norm.named_buffers())]

    def build(self, case: Case, scattered: bool = True) -> tuple[nn.Module, Guide, tuple[Tensor, Tensor]]:
        """A model, its guide (with parameters moved away from where they start), and a batch."""
        model, batch = case.model(), case.batch()
        pyro.set_rng_seed(1)
        guide = self.make_guide(model, **({"example": batch} if case.needs_example else {}))
        if scattered:
            with torch.no_grad():
                for parameter in guide.parameters():
                    parameter.add_(0.2 * torch.randn_like(parameter))
        return model, guide, batch

    # -------------------------------------------------------------------------------- parameters and state

    @each_case
    def test_parameters_exist_when_the_constructor_returns(self, case: Case) -> None:
        model, guide, batch = self.build(case, scattered=False)
        before = {name: value.shape for name, value in guide.state_dict().items()}
        assert list(guide.parameters())
        self.move(model, guide, batch)
        guide.sample(2)
        assert {name: value.shape for name, value in guide.state_dict().items()} == before

    @each_case
    def test_printed_it_says_how_large_it_is(self, case: Case) -> None:
        _model, guide, _batch = self.build(case)
        assert f"num_sites={len(guide.layout)}, num_latents={guide.layout.size}" in str(guide)

    @each_case
    def test_state_dict_round_trip(self, case: Case) -> None:
        _model, guide, batch = self.build(case)
        other = self.make_guide(case.model(), **({"example": batch} if case.needs_example else {}))
        other.load_state_dict(guide.state_dict())
        assert_same(seeded(lambda: other.sample(3)), seeded(lambda: guide.sample(3)))
        assert_same(seeded(lambda: self.draw(other)), seeded(lambda: self.draw(guide)))

    @each_case
    @pytest.mark.parametrize(
        "duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["copy", "pickle"]
    )
    def test_copies_carry_on_alike_and_apart(self, case: Case, duplicate: Callable[[Any], Any]) -> None:
        model, guide, batch = self.build(case)
        for _ in range(8):  # whole antithetic groups: no draw of one is pending
            self.move(model, guide, batch)
        model_copy, guide_copy = duplicate((model, guide))
        assert_same(seeded(lambda: guide_copy.sample(2)), seeded(lambda: guide.sample(2)))
        if self.trains:
            expected = seeded(lambda: gradients(model, guide, batch))
            assert_same(seeded(lambda: gradients(model_copy, guide_copy, batch)), expected)
        before = copy.deepcopy(guide.state_dict())
        self.move(model_copy, guide_copy, batch)
        assert_same(guide.state_dict(), before)
        assert any(not torch.equal(value, before[name]) for name, value in guide_copy.state_dict().items())

    @each_case
    def test_two_guides_share_nothing(self, case: Case) -> None:
        model, guide, batch = self.build(case)
        other = self.make_guide(model, **({"example": batch} if case.needs_example else {}))
        before = copy.deepcopy(other.state_dict())
        storages = [{p.untyped_storage().data_ptr() for p in g.parameters()} for g in (guide, other)]
        assert storages[0].isdisjoint(storages[1])
        self.move(model, guide, batch)
        assert_same(other.state_dict(), before)

    @each_case
    @of_training
    def test_double_precision(self, case: Case) -> None:
        model, guide, (x, y) = self.build(case)
        self.move(model, guide, (x, y))  # caches of the first precision must not outlive the cast
        model.double()
        guide.double()
        batch = (x.double(), y.double() if y.is_floating_point() else y)
        assert all(value.dtype == torch.float64 for value in guide.sample(2).values())
        assert_in_place_matches_autograd(model, guide, batch)

    @of_training
    def test_priors_that_change_are_followed(self) -> None:
        def regression(scale: float) -> SupervisedModel:
            net = nn.Linear(2, 1)
            return SupervisedModel(net, likelihoods.Normal(0.5), dist.Normal(0.5 - scale, scale), num_data=8).double()

        model, changed = regression(1.0), regression(0.25)
        batch = (torch.randn(8, 2).double(), torch.randn(8, 1).double())
        guide = self.make_guide(model).double()
        for _ in range(8):  # whole antithetic groups
            self.move(model, guide, batch)
        model.load_state_dict(changed.state_dict())
        reference = self.make_guide(changed).double()
        reference.load_state_dict(guide.state_dict())
        for _ in range(2):  # the step that notices, and the one after it
            expected = seeded(lambda: gradients(changed, reference, batch))
            assert_same(seeded(lambda: gradients(model, guide, batch)), expected, rtol=1e-9)

    # ----------------------------------------------------------------------------------------------- draws

    @each_case
    def test_sample_shapes_and_supports(self, case: Case) -> None:
        model, guide, batch = self.build(case)
        latent = {
            name: node
            for name, node in poutine.trace(model).get_trace(*batch).nodes.items()
            if node["type"] == "sample" and not node["is_observed"] and not site_is_subsample(node)
        }
        for count in (1, 4):
            draws = guide.sample(count)
            assert list(guide.layout) == list(latent)
            assert set(draws) == set(latent)
            for name, node in latent.items():
                assert draws[name].shape == (count, *node["value"].shape)
                assert draws[name].dtype == node["value"].dtype
                assert bool(node["fn"].support.check(draws[name]).all())
                assert not draws[name].requires_grad

    @each_case
    def test_draws_differ_unless_the_guide_is_a_point(self, case: Case) -> None:
        _, guide, _ = self.build(case)
        for value in guide.sample(2).values():
            assert bool((value[0] == value[1]).all()) == self.is_point

    @each_case
    def test_sampled_values_outlive_training(self, case: Case) -> None:
        model, guide, batch = self.build(case)
        draws = guide.sample(2)
        before = {name: value.detach().clone() for name, value in draws.items()}
        self.move(model, guide, batch)
        assert_same({name: value.detach() for name, value in draws.items()}, before)

    @pytest.mark.statistical
    @each_case
    def test_sample_draw_and_forward_agree(self, case: Case) -> None:
        """Means and variances of 500 draws each; z-scores below 5."""
        _, guide, _ = self.build(case)
        pyro.set_rng_seed(2)
        bulk = guide.sample(500)
        with torch.no_grad():
            for single in (guide.eval(), guide.rsample) if self.trains_as_point else (guide, guide.rsample):
                draws = [single() for _ in range(500)]
                for name, value in bulk.items():
                    stacked = torch.stack([draw[name] for draw in draws])
                    assert z_of_means(stacked, value) < Z, name
                    assert z_of_variances(stacked, value) < Z, name

    @each_case
    def test_seed_determines_everything(self, case: Case) -> None:
        model, guide, batch = self.build(case)
        twin_model, twin, _ = self.build(case)
        acts = [lambda m, g: g.sample(2), lambda m, g: g(), lambda m, g: self.draw(g)]
        for act in [*acts, lambda m, g: gradients(m, g, batch)] if self.trains else acts:
            assert_same(seeded(lambda act=act: act(model, guide)), seeded(lambda act=act: act(twin_model, twin)))

    # ------------------------------------------------------------------------------------------- densities

    @each_case
    def test_log_prob(self, case: Case) -> None:
        _, guide, _ = self.build(case)
        assert guide.facts.has_density == self.has_density
        draws = guide.sample(3)
        if not self.has_density:
            with pytest.raises(NotImplementedError):
                guide.log_prob(draws)
            return
        guide.eval()
        traces = [poutine.trace(guide).get_trace() for _ in range(3)]
        if self.is_joint:  # values cannot be chosen, so they are those of the traces
            draws = {name: torch.stack([trace.nodes[name]["value"] for trace in traces]) for name in draws}
        else:
            values = [{name: value[index] for name, value in draws.items()} for index in range(3)]
            traces = [poutine.trace(poutine.condition(guide, value)).get_trace() for value in values]
        log_prob = guide.log_prob(draws)
        assert log_prob.shape == (3,)
        for index, trace in enumerate(traces):
            torch.testing.assert_close(log_prob[index], trace.log_prob_sum(), rtol=1e-4, atol=1e-4)

    @each_case
    def test_divergence_is_exact_where_promised(self, case: Case) -> None:
        _model, guide, _ = self.build(case)
        priors = {name: PriorTerm(site.prior) for name, site in guide.layout.items()}
        if not all(is_fixed_normal(guide.layout[name], term) for name, term in priors.items()):
            return
        if not self.has_divergence:
            with self.unless_refused():
                guide.divergence(guide.rsample(), priors)
            return
        first, second = (guide.divergence(draw, priors) for draw in self.two_draws(guide))
        assert first.exact == self.exact
        assert bool((first.total == second.total).all()) == (self.exact or self.is_point)
        for found in (first, second):
            assert set(found.by_site) == set(guide.layout)
            parts = torch.stack(list(found.by_site.values())).sum() + found.joint
            torch.testing.assert_close(parts, found.total, rtol=1e-5, atol=1e-4)

    # ------------------------------------------------------------------------------------ Pyro's inference

    @each_case
    @pytest.mark.parametrize("objective", [Trace_ELBO, TraceMeanField_ELBO, ELBO])
    @of_training
    def test_svi_step(self, case: Case, objective: type) -> None:
        model, guide, batch = self.build(case)
        before = copy.deepcopy(dict(guide.named_parameters()))
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), objective(num_particles=2))
        losses = [svi.step(*batch), svi.evaluate_loss(*batch)]
        assert all(isinstance(loss, float) and loss == loss for loss in losses)
        for name, parameter in guide.named_parameters():
            assert not torch.equal(parameter, before[name]), name
        assert not list(pyro.get_param_store().keys())

    @each_case
    @pytest.mark.parametrize("objective", [Trace_ELBO, TraceMeanField_ELBO, ELBO])
    @of_training
    def test_objective_as_a_module(self, case: Case, objective: type) -> None:
        model, guide, batch = self.build(case)
        loss = objective()(model, guide)
        trained = {id(p) for p in loss.parameters() if p.requires_grad}
        assert {id(p) for p in guide.parameters()} <= trained
        optimizer = torch.optim.SGD(loss.parameters(), lr=1e-4)
        loss(*batch).backward()
        before = copy.deepcopy(guide.state_dict())
        optimizer.step()
        assert any(not torch.equal(value, before[name]) for name, value in guide.state_dict().items())
        assert not list(pyro.get_param_store().keys())

    @each_case
    def test_predictive(self, case: Case) -> None:
        model, guide, (x, y) = self.build(case)
        # Pyro's Predictive reshapes draws of a guide with plates: a network cannot use them as weights.
        draws = {"posterior_samples": guide.sample(3)} if case.has_plates else {"guide": guide, "num_samples": 3}
        assert Predictive(model, **draws)(x)[case.observed].shape == (3, *y.shape)

    # --------------------------------------------------------------------------------------- the objective

    @each_case
    @of_training
    def test_in_place_gradient_is_the_gradient(self, case: Case) -> None:
        model, guide, (x, y) = self.build(case)
        model.double()
        guide.double()
        assert_in_place_matches_autograd(model, guide, (x.double(), y.double() if y.is_floating_point() else y))

    @each_case
    @of_training
    def test_a_step_that_is_broken_off_leaves_nothing_behind(self, case: Case) -> None:
        """Against a twin that takes this step to its end."""
        model, guide, batch = self.build(case)
        twins = copy.deepcopy((model, guide))
        with broken_off():
            seeded(lambda: gradients(model, guide, batch))
        expected = [seeded(lambda: gradients(*twins, batch)) for _ in range(2)][1]
        assert_same(seeded(lambda: gradients(model, guide, batch)), expected)

    @pytest.mark.statistical
    @each_smooth_case
    @of_training
    def test_loss_and_gradient_agree_with_pyro(self, case: Case) -> None:
        """Against ``TraceMeanField_ELBO``, 40 evaluations of two particles each; z-scores below 5."""
        model, guide, batch = self.build(case)
        is_point = self.is_point or self.trains_as_point
        found = []
        for objective in (ELBO, TraceMeanField_ELBO):
            pyro.set_rng_seed(3)
            elbo = objective(num_particles=2)
            rows = [gradients(model, guide, batch, elbo) for _ in range(1 if is_point else 40)]
            found.append({name: torch.stack([row[name] for row in rows]) for name in rows[0]})
        for name, ours in found[0].items():
            if is_point:
                torch.testing.assert_close(ours, found[1][name], rtol=1e-4, atol=1e-4)
            else:
                assert z_of_means(ours, found[1][name]) < Z, name

    # --------------------------------------------------------------------------------------- network state

    @each_case
    def test_building_and_evaluating_change_no_state(self, case: Case) -> None:
        model, batch = case.model(), case.batch()
        model.train()
        for module in list(model.modules())[-1:]:
            module.eval()  # a mixture of modes, to be left as it is
        before = network_state(model)
        guide = self.make_guide(model, **({"example": batch} if case.needs_example else {}))
        guide.sample(2)
        guide()
        with self.unless_refused():
            ELBO(num_particles=3).loss(model, guide, *batch)
        assert_same_state(network_state(model), before)

    @of_training
    def test_running_statistics_move_once_per_step(self) -> None:
        model, guide, batch = self.build(BATCH_NORM)
        start = copy.deepcopy(self.running_statistics(model, guide))
        for steps in (1, 2):
            ELBO(num_particles=3).loss_and_grads(model, guide, *batch)
            assert [own["num_batches_tracked"] for own in self.running_statistics(model, guide)] == [steps] * len(start)
        for own, before in zip(self.running_statistics(model, guide), start, strict=True):
            assert not torch.equal(own["running_mean"], before["running_mean"])
        SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), ELBO(num_particles=3)).step(*batch)
        ELBO(num_particles=3).loss(model, guide, *batch)  # an evaluation moves none
        assert [own["num_batches_tracked"] for own in self.running_statistics(model, guide)] == [3] * len(start)


class EnsembleConformance(GuideConformance):
    """The suite for mixtures of points with members that have their own BatchNorm statistics."""

    has_density = False
    exact = False

    def two_draws(self, guide: Guide) -> list[Draws]:
        """Two members; at random it might be one of them twice."""
        if self.trains:
            step = guide.step(None, sequential=False)
            return [step.draw(index) for index in range(2)]
        draws = guide.atoms(torch.arange(2))
        return [draws.at(index) for index in range(2)]

    def running_statistics(self, model: nn.Module, guide: Guide) -> list[dict[str, Tensor]]:
        """Each member has its own."""
        assert isinstance(guide, Ensemble)
        buffers = {name.rpartition("/")[2]: b for name, b in guide.own_buffers.named_buffers()}
        return [{name: buffer[index] for name, buffer in buffers.items()} for index in range(guide.num_members)]
