"""Sites with priors in a PyroModule: names, draws, moves, and nothing in Pyro's global store."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyrobnn.model.priors import FixedPrior, HorseshoePrior, LatentScalePrior, LearnedScalePrior
from pyrobnn.model.stochastic import StochasticModule
from pyrobnn.model.substitution import SubstituteMessenger

SHAPE = torch.Size([2, 3])


class Owner(StochasticModule):
    """One site of each kind, a trained parameter, and a dotted site name."""

    def __init__(self) -> None:
        super().__init__()
        self.add_site("fixed", FixedPrior(dist.Normal(0.0, 1.0), SHAPE), initial=torch.ones(SHAPE))
        self.add_site("fc.weight", HorseshoePrior(SHAPE), initial=torch.full(SHAPE, 2.0))
        self.add_site("latent", LatentScalePrior(SHAPE, dist.HalfNormal(1.0)), initial=torch.full(SHAPE, 3.0))
        self.add_site("learned", LearnedScalePrior(SHAPE))
        self.add_plain("layer", nn.Linear(3, 2))

    def forward(self) -> dict[str, Tensor]:
        self.announce_parameters()
        return self.sample_latents()


class Outer(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Owner()

    def forward(self) -> dict[str, Tensor]:
        return self.inner()


SITES = [
    "fixed",
    "fc.weight.raw",
    "fc.weight.local_scale",
    "fc.weight.global_scale",
    "latent.scale",
    "latent",
    "learned",
]


def latent_names(trace: poutine.Trace) -> list[str]:
    return [name for name, node in trace.nodes.items() if node["type"] == "sample" and not node["is_observed"]]


def test_a_parameter_determined_by_its_sites_is_recorded_as_deterministic() -> None:
    node = poutine.trace(Owner()).get_trace().nodes["fc.weight"]
    assert node["infer"]["_deterministic"]
    assert node["value"].shape == SHAPE


def test_site_names_alone_and_inside_another_module() -> None:
    assert latent_names(poutine.trace(Owner()).get_trace()) == SITES
    assert latent_names(poutine.trace(Outer()).get_trace()) == [f"inner.{name}" for name in SITES]


def test_sample_latents_needs_no_data_and_returns_every_parameter() -> None:
    latents = Owner().sample_latents()
    assert {name: value.shape for name, value in latents.items()} == dict.fromkeys(
        ("fixed", "fc.weight", "latent", "learned"), SHAPE
    )


def test_sites_keep_their_draw_within_a_call_and_change_between_calls() -> None:
    owner = Owner()

    class Twice(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.owner = owner

        def forward(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
            return self.owner.sample_latents(), self.owner.sample_latents()

    twice = Twice()
    first, second = twice()
    third, _ = twice()
    for name, value in first.items():
        assert torch.equal(second[name], value), name
        assert not torch.equal(third[name], value), name


def test_initial_values_have_full_names_and_give_the_parameters_back() -> None:
    values = Outer().inner.initial_values()
    assert set(values) == {f"inner.{name}" for name in SITES if name != "learned"}
    with SubstituteMessenger(values):
        latents = Outer()()
    for name, number in (("fixed", 1.0), ("fc.weight", 2.0), ("latent", 3.0)):
        torch.testing.assert_close(latents[name], torch.full(SHAPE, number))


def test_initial_values_are_cast_and_copied_with_the_module() -> None:
    owner = Owner().double()
    assert all(value.dtype == torch.float64 for value in owner.initial_values().values())
    assert all(value.dtype == torch.float64 for value in owner().values())
    twin = copy.deepcopy(owner)
    twin.initial_values()["fixed"].fill_(9.0)
    assert owner.initial_values()["fixed"].eq(1.0).all()


def test_the_prior_of_a_site_is_the_same_object_at_every_run() -> None:
    owner = Owner()
    first, second = (poutine.trace(owner).get_trace().nodes for _ in range(2))
    assert first["fixed"]["fn"] is second["fixed"]["fn"]
    assert first["fc.weight.raw"]["fn"] is second["fc.weight.raw"]["fn"]


def test_changing_dtype_or_loading_changes_what_is_drawn() -> None:
    owner, other = Owner(), Owner()
    other.get_submodule("prior:fixed").load_state_dict({"loc": torch.tensor(50.0), "scale": torch.tensor(1e-3)})
    owner.load_state_dict(other.state_dict())
    assert abs(owner()["fixed"].mean() - 50) < 0.1


def test_deepcopy_and_pickle_are_independent_twins() -> None:
    owner = Owner()
    owner()
    with poutine.trace():
        owner()  # parameters have been announced by now
    for twin in (copy.deepcopy(owner), pickle.loads(pickle.dumps(owner))):
        assert latent_names(poutine.trace(twin).get_trace()) == SITES
        mine = {tensor.data_ptr() for tensor in owner.state_dict().values()}
        assert mine.isdisjoint(tensor.data_ptr() for tensor in twin.state_dict().values())
        assert all(
            torch.equal(a, b) for a, b in zip(owner.state_dict().values(), twin.state_dict().values(), strict=True)
        )


@pytest.mark.parametrize("module_local", [False, True])
def test_parameters_are_announced_but_never_stored_globally(module_local: bool) -> None:
    with pyro.settings.context(module_local_params=module_local):
        outer = Outer()
        nodes = poutine.trace(outer).get_trace().nodes
    announced = {name: node["value"] for name, node in nodes.items() if node["type"] == "param"}
    trained = dict(outer.named_parameters())
    assert set(announced) == set(trained)
    assert all(value is trained[name] for name, value in announced.items())
    assert len(pyro.get_param_store()) == 0


def test_a_handler_that_modules_write_to_hears_of_no_parameters() -> None:
    class Deaf(SubstituteMessenger):
        def _pyro_param(self, msg: Any) -> None:
            raise AssertionError(msg["name"])

    with Deaf({}, direct=True):
        Outer()()
    with pytest.raises(AssertionError), Deaf({}):
        Outer()()


def test_frozen_parameters_are_not_announced() -> None:
    owner = Owner()
    owner.get_submodule("layer").requires_grad_(False)
    nodes = poutine.trace(owner).get_trace().nodes
    assert [name for name, node in nodes.items() if node["type"] == "param"] == ["prior:learned.log_scale"]


def test_a_parameter_unfrozen_later_is_announced() -> None:
    owner = Owner()
    layer = owner.get_submodule("layer").requires_grad_(False)
    poutine.trace(owner).get_trace()
    layer.requires_grad_(True)
    nodes = poutine.trace(owner).get_trace().nodes
    announced = [name for name, node in nodes.items() if node["type"] == "param"]
    assert announced == ["prior:learned.log_scale", "layer.weight", "layer.bias"]


def test_a_parameter_replaced_on_loading_is_announced() -> None:
    owner, state = Owner(), copy.deepcopy(Owner().state_dict())
    poutine.trace(owner).get_trace()
    owner.load_state_dict(state, assign=True)
    nodes = poutine.trace(owner).get_trace().nodes
    assert nodes["layer.weight"]["value"] is owner.get_parameter("layer.weight")


def test_without_handlers_nothing_is_announced_and_gradients_still_flow() -> None:
    owner = Owner()
    with SubstituteMessenger({"learned": torch.ones(SHAPE)}) as handler:
        owner()
    message = next(m for m in handler.latent if m["name"] == "learned")
    message["fn"].log_prob(message["value"]).backward()
    assert owner.get_parameter("prior:learned.log_scale").grad is not None
    owner()
    assert len(pyro.get_param_store()) == 0
