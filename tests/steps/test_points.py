"""Steps of points and of members: their gradients against plain automatic differentiation, delivery, accumulation."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyrobnn import likelihoods
from pyrobnn.guides import MAP, DeltaMixture
from pyrobnn.model.divergence import prior_terms
from pyrobnn.model.draws import Draws
from pyrobnn.model.layout import Layout
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.objectives import ELBO
from pyrobnn.steps import Step
from pyrobnn.steps.member_rows import MemberRows
from tests.conformance.comparisons import broken_off

NUM_MEMBERS = 3
STRATEGIES = ["regularized", "anchored", "free"]

Batch = tuple[Tensor, Tensor]


def problem(fixed_only: bool = False) -> tuple[SupervisedModel, Batch]:
    """Fixed Normal priors, with Laplace and log-normal ones between them unless ``fixed_only``; double precision."""
    rules: Any = dist.Normal(0.2, 0.7)
    noise: Any = 0.5
    if not fixed_only:
        rules, noise = [("*bias", dist.Laplace(0.1, 0.8)), ("*", rules)], dist.LogNormal(0.0, 0.5)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    model = SupervisedModel(net, likelihoods.Normal(noise), rules, num_data=12).double()
    return model, (torch.randn(6, 3).double(), torch.randn(6, 2).double())


def members(model: SupervisedModel, strategy: Any = "regularized", vmap: bool = False) -> DeltaMixture:
    """Three of them, away from where they started, so that anchors count."""
    guide = DeltaMixture(model, NUM_MEMBERS, "prior", strategy=strategy, vmap=vmap).double()
    with torch.no_grad():
        guide.flat_loc.add_(0.3 * torch.randn_like(guide.flat_loc))
    return guide


def loss_of(model: nn.Module, step: Step, draws: Draws, batch: Batch) -> Tensor:
    """The negative ELBO of a draw."""
    with draws.running(model, update=True) as run:
        model(*batch)
    score = sum(12 / 6 * m["fn"].log_prob(m["value"]).sum() for m in run.observed)
    return step.divergence(draws, prior_terms(run.latent)).total - score


def taken(guide: MAP | DeltaMixture) -> Tensor:
    """The gradient, which is cleared."""
    found = guide.flat_loc.grad
    assert found is not None
    guide.flat_loc.grad = None
    return found.clone()


def plain(model: SupervisedModel, guide: MAP, batch: Batch) -> tuple[Tensor, Tensor]:
    """Loss and gradient of a point by ordinary operations, gradients not touched."""
    step = guide.step(model, sequential=False)
    loss = loss_of(model, step, step.draw(0), batch)
    return loss.detach(), torch.autograd.grad(loss, guide.flat_loc)[0]


def row_gradient(model: SupervisedModel, guide: DeltaMixture, batch: Batch, index: int) -> Tensor:
    """The gradient of one member's own loss by ordinary operations, ``[M, d]``: M times that of its share."""
    step = guide.step(model, sequential=False)
    return torch.autograd.grad(loss_of(model, step, step.draw(index), batch) / NUM_MEMBERS, guide.flat_loc)[0]


def whole_gradient(model: SupervisedModel, guide: DeltaMixture, batch: Batch) -> Tensor:
    """Of the mean over members, as parameters receive it."""
    return sum((row_gradient(model, guide, batch, m) for m in range(NUM_MEMBERS)), torch.zeros(()))


def train(model: SupervisedModel, step: Step, batch: Batch, scale: float = 1.0) -> None:
    """One training step of all members, one after another."""
    for index in range(NUM_MEMBERS):
        (scale * loss_of(model, step, step.draw(index), batch) / NUM_MEMBERS).backward()
    step.finish()


# ------------------------------------------------------------------------------------------------------- points


@pytest.mark.parametrize("scale", [1.0, 1.0 / 12, 1e3, -2.0, 0.0])
@pytest.mark.parametrize("fixed_only", [True, False])
def test_a_points_loss_and_gradient_are_those_of_autograd(scale: float, fixed_only: bool) -> None:
    model, batch = problem(fixed_only)
    guide = MAP(model).double()
    step = guide.step(model)
    value, expected = plain(model, guide, batch)
    for _ in range(2):  # the second in memory that is used again
        loss = loss_of(model, step, step.draw(0), batch)
        torch.testing.assert_close(loss.detach(), value)
        (scale * loss).backward()
        torch.testing.assert_close(taken(guide), scale * expected)


# ------------------------------------------------------------------------------------------------------ members


@pytest.mark.parametrize("scale", [1.0, 1.0 / 12, 1e3, -2.0, 0.0])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_members_in_a_loop_and_together_are_autograd(scale: float, strategy: Any) -> None:
    model, batch = problem(fixed_only=strategy == "anchored")
    loop = members(model, strategy)
    expected = scale * whole_gradient(model, loop, batch)
    train(model, loop.step(model), batch, scale)
    torch.testing.assert_close(taken(loop), expected)

    together = members(model, strategy, vmap=True)
    together.load_state_dict(loop.state_dict())
    for guide in (loop, together):
        elbo = ELBO()
        elbo.backward(model, guide, batch, scale=scale)
        torch.testing.assert_close(taken(guide), expected)


def test_each_members_own_gradient_is_that_of_its_own_point() -> None:
    """Learning rates do not depend on M."""
    model, batch = problem()
    guide = members(model)
    train(model, guide.step(model), batch)
    found = taken(guide)
    for index in range(NUM_MEMBERS):
        point = MAP(model).double()
        with torch.no_grad():
            point.flat_loc.copy_(guide.flat_loc[index])
        torch.testing.assert_close(found[index], plain(model, point, batch)[1])


def test_hooks_fire_once_per_training_step_with_the_whole_gradient() -> None:
    model, batch = problem()
    guide = members(model)
    step, expected = guide.step(model), whole_gradient(model, guide, batch)
    before: list[Tensor] = []
    after: list[Tensor] = []
    guide.flat_loc.register_hook(lambda gradient: before.append(gradient.clone()))
    guide.flat_loc.register_post_accumulate_grad_hook(lambda p: after.append(p.grad.clone()))
    for count in (1, 2):
        train(model, step, batch)
        assert len(before) == len(after) == count
        torch.testing.assert_close(before[-1], expected)
        torch.testing.assert_close(after[-1], expected)
        guide.zero_grad()


def test_a_further_draw_adds_to_its_member_alone() -> None:
    model, batch = problem()
    guide = members(model)
    step, expected = guide.step(model), whole_gradient(model, guide, batch)
    for index in range(NUM_MEMBERS):
        (loss_of(model, step, step.draw(index), batch) / NUM_MEMBERS).backward()
    further = step.draw(None)
    (loss_of(model, step, further, batch) / NUM_MEMBERS).backward()
    step.finish()
    assert further.component is not None
    torch.testing.assert_close(taken(guide), expected + row_gradient(model, guide, batch, int(further.component)))


@pytest.mark.parametrize("cleared", [None, True, False])
def test_gradients_add_up_over_training_steps(cleared: bool | None) -> None:
    """From no gradient, or after ``zero_grad`` with or without one in its place."""
    model, batch = problem()
    guide = members(model)
    step, expected = guide.step(model), whole_gradient(model, guide, batch)
    if cleared is not None:
        train(model, step, batch)
        guide.zero_grad(set_to_none=cleared)
    for count in (1, 2, 3):
        train(model, step, batch)
        torch.testing.assert_close(guide.flat_loc.grad, count * expected)


def test_a_step_that_is_broken_off_leaves_nothing() -> None:
    model, batch = problem()
    guide = members(model)
    step, expected = guide.step(model), whole_gradient(model, guide, batch)
    with broken_off():
        train(model, step, batch)
    assert guide.flat_loc.grad is None
    train(model, step, batch)
    torch.testing.assert_close(taken(guide), expected)


@pytest.mark.parametrize("together", [False, True])
def test_a_gradient_scaler_scales_all_of_it(together: bool) -> None:
    """By ``torch.amp.GradScaler`` itself; unscaled the gradient is that of the loss."""
    model, batch = problem()
    guide = members(model, vmap=together)
    step, expected = guide.step(model), whole_gradient(model, guide, batch)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    optimizer = torch.optim.SGD(guide.parameters(), lr=0.0)
    pieces = 0
    for parts in ELBO().losses(model, step, batch, {}, guide=guide):
        scaler.scale(parts.share * parts.loss).backward()
        pieces += 1
    assert pieces == (1 if together else NUM_MEMBERS)
    step.finish()
    torch.testing.assert_close(guide.flat_loc.grad, 64.0 * expected)
    scaler.unscale_(optimizer)
    torch.testing.assert_close(taken(guide), expected)


def test_the_component_to_avoid_is_never_drawn_if_there_is_another() -> None:
    model, _ = problem()
    step = members(model).step(model)
    for avoid in range(NUM_MEMBERS):
        found = {int(step.draw(None, avoid=torch.tensor(avoid)).component) for _ in range(60)}  # type: ignore[arg-type]
        assert found == set(range(NUM_MEMBERS)) - {avoid}
    alone = DeltaMixture(model, 1, "prior").double().step(model)
    assert int(alone.draw(None, avoid=torch.tensor(0)).component) == 0  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------------- rows


def rows() -> tuple[MemberRows, nn.Parameter]:
    """Those of three members of a layer with a weight and a bias."""
    model = SupervisedModel(nn.Linear(2, 1), likelihoods.Normal(0.5), dist.Normal(0.0, 1.0), num_data=4)
    layout = Layout.of(model)
    loc = nn.Parameter(torch.randn(NUM_MEMBERS, layout.size))
    return MemberRows(layout, loc), loc


def nothing(*_: Any) -> None:
    """No prior."""


def test_leaves_view_the_parameter() -> None:
    own, loc = rows()
    _, values = own.leaves(1)
    with torch.no_grad():
        loc[1].fill_(7.0)
    assert all(leaf.is_leaf and leaf.requires_grad and bool((leaf == 7.0).all()) for leaf in values.values())
    assert values["net.weight"].data_ptr() == loc[1].data_ptr()
    assert own.fits(loc)
    loc.data = loc.data.clone()
    assert not own.fits(loc)


def test_what_the_loss_does_not_depend_on_counts_zero() -> None:
    """Leaves, and rows of members that did not run; also in a buffer that held other numbers before."""
    own, loc = rows()
    for member in range(NUM_MEMBERS):
        _, values = own.leaves(member)
        sum(value.sum() for value in values.values()).backward()  # type: ignore[union-attr]
    own.deliver(nothing)
    assert loc.grad is not None and bool((loc.grad == NUM_MEMBERS).all())
    loc.grad = None
    own.leaves(2)[1]["net.bias"].sum().backward()
    own.deliver(nothing)
    assert loc.grad.tolist() == [[0.0] * 3, [0.0] * 3, [0.0, 0.0, NUM_MEMBERS]]  # type: ignore[attr-defined]


def test_the_buffer_is_the_gradient_and_no_copy() -> None:
    own, loc = rows()
    found = []
    for _ in range(3):
        loc.grad = None
        own.leaves(0)[1]["net.weight"].sum().backward()
        own.collect(nothing)
        assert own._total is not None
        place = own._total.data_ptr()
        own.deliver(nothing)
        assert loc.grad is not None and loc.grad.data_ptr() == place
        found.append(place)
    assert len(set(found)) == 1


def test_the_gradient_of_before_is_added_to() -> None:
    own, loc = rows()
    loc.grad = torch.ones_like(loc)
    own.leaves(0)[1]["net.weight"].sum().backward()
    own.deliver(nothing)
    assert loc.grad.tolist() == [[4.0, 4.0, 1.0], [1.0] * 3, [1.0] * 3]


def test_no_gradient_is_delivered_where_none_was_collected() -> None:
    own, loc = rows()
    own.leaves(0)
    own.deliver(nothing)
    assert loc.grad is None
    own.leaves(0)[1]["net.weight"].sum().backward()
    own.discard()
    own.deliver(nothing)
    assert loc.grad is None
