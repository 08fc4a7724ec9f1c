"""The handler answers what it is given, leaves the rest alone, and shows what the model applied."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from torch import Tensor

from pyrobnn.model.substitution import SubstituteMessenger, direct_handler

Y = torch.tensor([1.0, 2.0, 3.0])


def model(y: Tensor | None = Y) -> tuple[Tensor, Tensor]:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with poutine.scale(scale=0.5):
        b = pyro.sample("b", dist.Normal(a, 1.0))
    pyro.deterministic("sum", a + b)
    with pyro.plate("data", 12, subsample_size=3), poutine.mask(mask=torch.tensor([True, True, False])):
        pyro.sample("y", dist.Normal(a + b, 1.0), obs=y)
    return a, b


def names(messages: list[dict[str, object]]) -> list[object]:
    return [message["name"] for message in messages]


def test_named_sites_are_answered_with_the_very_tensor() -> None:
    values = {"a": torch.tensor(2.0, requires_grad=True), "b": torch.tensor(-1.0)}
    with SubstituteMessenger(values) as handler:
        a, b = model()
    assert a is values["a"]
    assert b is values["b"]
    assert names(handler.latent) == ["a", "b"]
    assert all(message["value"] is values[str(message["name"])] for message in handler.latent)


def test_answering_every_site_leaves_the_random_state_alone() -> None:
    def with_indices() -> None:
        pyro.sample("a", dist.Normal(0.0, 1.0))

    state = torch.get_rng_state()
    with SubstituteMessenger({"a": torch.tensor(0.0)}):
        with_indices()
    assert torch.equal(torch.get_rng_state(), state)


def test_other_sites_are_drawn_as_usual() -> None:
    with SubstituteMessenger({"a": torch.tensor(100.0)}) as handler:
        _, b = model()
    assert names(handler.latent) == ["a", "b"]
    assert abs(b - 100) < 10
    assert handler.latent[1]["value"] is b


def test_observations_cannot_be_replaced() -> None:
    with SubstituteMessenger({"y": torch.zeros(3), "a": torch.tensor(0.0)}) as handler:
        model()
    (observed,) = handler.observed
    assert torch.equal(observed["value"], Y)


def test_an_unobserved_target_can_be_answered() -> None:
    with SubstituteMessenger({"y": torch.zeros(3)}) as handler:
        model(None)
    assert names(handler.latent) == ["a", "b", "y"]
    assert handler.observed == []
    assert handler.latent[-1]["value"].eq(0).all()


def test_deterministic_and_subsample_sites_are_left_out() -> None:
    with SubstituteMessenger({}) as handler:
        model()
    assert names(handler.latent) == ["a", "b"]
    assert names(handler.observed) == ["y"]


def test_scale_mask_and_plates_are_those_the_model_applied() -> None:
    with SubstituteMessenger({}) as handler:
        model()
    assert [message["scale"] for message in handler.latent] == [1.0, 0.5]
    (observed,) = handler.observed
    assert observed["scale"] == pytest.approx(12 / 3)
    assert observed["mask"].tolist() == [True, True, False]
    assert [frame.name for frame in observed["cond_indep_stack"]] == ["data"]


def test_a_scale_counts_on_either_side_of_the_handler() -> None:
    outside, inside = SubstituteMessenger({}), SubstituteMessenger({})
    with poutine.scale(scale=0.1), outside:
        model()
    with inside, poutine.scale(scale=0.1):
        model()
    for handler in (outside, inside):
        assert [message["scale"] for message in handler.latent] == pytest.approx([0.1, 0.05])


def test_the_substituted_log_joint_is_that_of_a_conditioned_trace() -> None:
    values = {"a": torch.tensor(0.3), "b": torch.tensor(-0.4)}
    with SubstituteMessenger(values):
        traced = poutine.trace(model).get_trace()
    conditioned = poutine.trace(poutine.condition(model, data=values)).get_trace()
    torch.testing.assert_close(traced.log_prob_sum(), conditioned.log_prob_sum())


def test_gradients_pass_to_the_values() -> None:
    a = torch.tensor(0.5, requires_grad=True)
    with SubstituteMessenger({"a": a}):
        _, b = model()
    b.backward()
    assert a.grad == 1.0


def test_the_handler_ends_with_the_block() -> None:
    values = {"a": torch.tensor(7.0)}
    with SubstituteMessenger(values) as handler:
        model()
    assert model()[0] is not values["a"]
    assert len(handler.latent) == 2


# ----------------------------------------------------------------------------------------- writing to it directly


def test_only_a_handler_that_is_alone_and_meant_for_it_is_written_to() -> None:
    assert direct_handler() is None
    with SubstituteMessenger({}):
        assert direct_handler() is None
    with SubstituteMessenger({}, direct=True) as handler:
        assert direct_handler() is handler
        with pyro.plate("rows", 2):
            assert direct_handler() is None
        assert direct_handler() is handler
    with poutine.trace(), SubstituteMessenger({}, direct=True):
        assert direct_handler() is None


def test_what_is_written_directly_reads_like_pyros_messages() -> None:
    prior, likelihood, value = dist.Normal(0.0, 1.0), dist.Normal(torch.zeros(3), 1.0), torch.tensor(0.5)

    def by_hand(handler: SubstituteMessenger) -> None:
        assert handler.answer("", {"a": prior})["a"] is value
        handler.observe("y", likelihood, Y, 4.0)

    def through_pyro(_: SubstituteMessenger) -> None:
        pyro.sample("a", prior)
        with pyro.plate("data", 12, subsample=torch.arange(3)):
            pyro.sample("y", likelihood, obs=Y)

    runs = []
    for statements in (by_hand, through_pyro):
        with SubstituteMessenger({"a": value}, direct=True) as handler:
            statements(handler)
        runs.append([*handler.latent, *handler.observed])
    for ours, theirs in zip(*runs, strict=True):
        assert all(ours[key] == theirs[key] for key in ("name", "scale", "mask")) and ours["value"] is theirs["value"]
        assert torch.equal(ours["fn"].log_prob(ours["value"]), theirs["fn"].log_prob(theirs["value"]))


def test_a_site_that_is_asked_twice_counts_once() -> None:
    with SubstituteMessenger({"a": torch.tensor(0.5)}, direct=True) as handler:
        handler.answer("", {"a": dist.Normal(0.0, 1.0)})
        pyro.sample("a", dist.Normal(0.0, 1.0))
        handler.answer("", {"a": dist.Normal(0.0, 1.0)})
        assert handler.answer("", {"b": dist.Normal(0.0, 1.0), "c": torch.tensor(1.0)}) == {}
    assert names(handler.latent) == ["a"]


def test_names_of_a_part_are_asked_with_its_prefix() -> None:
    value = torch.tensor(0.5)
    with SubstituteMessenger({"net.a": value, "a": torch.tensor(1.0)}, direct=True) as handler:
        assert handler.answer("net.", {"a": dist.Normal(0.0, 1.0)})["a"] is value
    assert names(handler.latent) == ["net.a"]
