"""What ``core/pyro_compat.py`` takes from inside Pyro; a failure here means that Pyro changed and that file must."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pyro.poutine.runtime as runtime
import pytest
import torch
import torch.utils.checkpoint as checkpoint
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import PyroModule
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyrobnn.core.pyro_compat import (
    announce_parameter,
    full_name,
    has_forward_hooks,
    intercept_checkpoints,
    is_handler_active,
    is_in_transform,
    sole_handler,
    strictly_vectorized,
    unvalidated,
)


class Recorder(Messenger):
    """Keeps the parameter messages that pass."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[Any] = []

    def _pyro_param(self, msg: Any) -> None:
        self.messages.append(msg)


class Local(PyroModule):
    """A point estimate of a Normal mean, with a parameter that only its module knows."""

    def __init__(self) -> None:
        super().__init__()
        self._plain = {"loc": nn.Parameter(torch.tensor(0.0))}
        self.register_parameter("loc", self._plain["loc"])

    def forward(self, y: Tensor) -> Tensor:
        parameter = self._plain["loc"]
        announce_parameter(full_name(self, "loc"), parameter)
        with pyro.plate("data", len(y)):
            return pyro.sample("y", dist.Normal(parameter, 1.0), obs=y)


def no_guide(y: Tensor) -> None:
    """There are no latent sites."""


def test_names_follow_the_outermost_module() -> None:
    outer = PyroModule()
    outer.middle = PyroModule()
    outer.middle.inner = PyroModule()
    assert full_name(outer, "w") == "w"
    assert full_name(outer.middle, "w") == "middle.w"
    assert full_name(outer.middle.inner, "fc.w") == "middle.inner.fc.w"


def test_handlers_are_noticed() -> None:
    assert not is_handler_active()
    with poutine.trace():
        assert is_handler_active()
    with Messenger():
        assert is_handler_active()
    assert not is_handler_active()


def test_the_only_handler_is_found() -> None:
    assert sole_handler() is None
    with Messenger() as outer:
        assert sole_handler() is outer
        with Messenger():
            assert sole_handler() is None
        assert sole_handler() is outer


def test_the_names_used_of_pyro_exist() -> None:
    assert callable(runtime.am_i_wrapped)
    assert callable(runtime.effectful)
    assert PyroModule()._pyro_name == ""


def test_handlers_receive_the_parameter_itself() -> None:
    parameter = nn.Parameter(torch.tensor(1.5))
    with Recorder() as recorder:
        announce_parameter("net.loc", parameter)
    (message,) = recorder.messages
    assert message["type"] == "param"
    assert message["name"] == "net.loc"
    assert message["value"] is parameter
    assert message["value"].unconstrained() is parameter


def test_a_trace_holds_what_a_local_parameter_of_pyro_shows() -> None:
    """Our message, beside the one Pyro sends for a parameter under ``module_local_params``."""

    class Theirs(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.loc = nn.Parameter(torch.tensor(0.0))

        def forward(self) -> Tensor:
            return self.loc

    class Ours(Local):
        def forward(self) -> None:  # type: ignore[override]
            announce_parameter(full_name(self, "loc"), self._plain["loc"])

    with pyro.settings.context(module_local_params=True):
        theirs, ours = (poutine.trace(m()).get_trace().nodes["loc"] for m in (Theirs, Ours))
    assert set(ours) == set(theirs)
    for field in ("type", "name", "scale", "mask", "is_observed", "infer"):
        assert ours[field] == theirs[field], field
    assert ours["args"][0] == theirs["args"][0] == "loc"
    assert len(ours["args"]) == len(theirs["args"])
    assert set(ours["kwargs"]) == set(theirs["kwargs"])


@pytest.mark.parametrize("module_local", [False, True])
def test_raw_svi_trains_announced_parameters_and_the_store_stays_empty(module_local: bool) -> None:
    """Gradient steps of rate 0.1 on Σ (y - loc)² / 2 shrink the error by 1 - 0.1 · 5 each."""
    y = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    with pyro.settings.context(module_local_params=module_local):
        model, other = Local(), Local()
        svi = SVI(model, no_guide, pyro.optim.SGD({"lr": 0.1}), Trace_ELBO())
        for _ in range(3):
            svi.step(y)
    assert model._plain["loc"].item() == pytest.approx(3.0 * (1 - 0.5**3))
    assert other._plain["loc"].item() == 0.0, "another module of the same parameter names is not touched"
    assert len(pyro.get_param_store()) == 0


def test_an_announced_parameter_can_be_copied_pickled_and_saved(tmp_path: Any) -> None:
    model = Local()
    with poutine.trace():
        model(torch.zeros(2))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.get_parameter("loc") is not model.get_parameter("loc")
        with Recorder() as recorder:
            twin(torch.zeros(2))
        (message,) = recorder.messages
        assert message["value"].unconstrained() is message["value"], "announced anew, it refers to itself"
    torch.save(model.state_dict(), tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True)["loc"] == 0.0


def test_announcing_keeps_no_parameter_alive() -> None:
    import gc
    import weakref

    parameter = nn.Parameter(torch.zeros(2))
    announce_parameter("loc", parameter)
    gone = weakref.ref(parameter)
    gc.disable()
    try:
        del parameter
        assert gone() is None, "no reference cycle: memory is freed at once"
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "make",
    [
        lambda: dist.Normal(0.0, 1.0).expand([2]).to_event(1),
        lambda: dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(torch.zeros(2), 1.0)).expand([2]),
    ],
    ids=["Independent", "Mixture"],
)
def test_a_distribution_can_be_freed_of_the_validation_it_was_built_with(make: Any) -> None:
    with pyro.validation_enabled(True):
        distribution = make()
    value = torch.full((2,), torch.nan)
    with pyro.validation_enabled(False):
        with pytest.raises(ValueError, match="support"):
            distribution.log_prob(value)
        assert unvalidated(distribution).log_prob(value).isnan().all()
        with pytest.raises(ValueError, match="support"):
            distribution.log_prob(value)


def test_checkpoints_ask_what_to_call_again(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [name for name in vars(checkpoint) if name.startswith("_checkpoint_without_reentrant_generator")]
    for name in names:
        monkeypatch.setattr(checkpoint, name, getattr(checkpoint, name))
    monkeypatch.setattr(checkpoint.CheckpointFunction, "apply", checkpoint.CheckpointFunction.apply)
    calls: list[str] = []

    def recorded(name: str) -> Any:
        return lambda x: calls.append(name) or x.exp().exp()

    first, again = recorded("first"), recorded("again")
    answers: dict[Any, Any] = {first: again}
    intercept_checkpoints(lambda function: answers.get(function, function))
    for reentrant in (True, False):
        calls.clear()
        checkpoint.checkpoint(first, torch.ones(2, requires_grad=True), use_reentrant=reentrant).sum().backward()
        assert calls == ["first", "again"]
    answers[first] = None
    calls.clear()
    checkpoint.checkpoint(first, torch.ones(2, requires_grad=True), use_reentrant=False).sum().backward()
    assert calls == ["first"]


def test_tensors_of_a_transform_are_known() -> None:
    seen = []
    torch.func.vmap(lambda x: seen.append(is_in_transform(x)) or x)(torch.ones(2))
    torch.func.grad(lambda x: seen.append(is_in_transform(x)) or x.sum())(torch.ones(2))
    assert seen == [True, True]
    assert not is_in_transform(torch.ones(2))


def test_forward_hooks_are_found_wherever_they_are() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))
    assert not has_forward_hooks(net)
    for register in (
        net[1][0].register_forward_hook,  # type: ignore[index]
        net[0].register_forward_pre_hook,
        nn.modules.module.register_module_forward_hook,
        nn.modules.module.register_module_forward_pre_hook,
    ):
        handle: Any = register(lambda *_: None)  # type: ignore[operator]
        assert has_forward_hooks(net)
        handle.remove()
        assert not has_forward_hooks(net)


def test_vmap_loops_over_an_operation_without_a_rule_where_it_is_not_strict() -> None:
    x = torch.randn(2, 3, 4)
    run = torch.func.vmap(lambda rows: rows.renorm(2, 0, 1.0))
    with strictly_vectorized(), pytest.raises(RuntimeError, match="vmap fallback"):
        run(x)
    with strictly_vectorized(False), pytest.warns(UserWarning, match="performance drop"):
        found = run(x)
    torch.testing.assert_close(found, torch.stack([rows.renorm(2, 0, 1.0) for rows in x]))
