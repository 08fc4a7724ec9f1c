"""Predictive against Pyro's class: keys, shapes, dtypes, and distributions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn

from pyrobnn.guides import MeanField
from pyrobnn.guides.base import Guide
from pyrobnn.model.bayesianize import bayesianize
from pyrobnn.prediction import PinnedDraws, Predictive
from tests.conformance.guide_models import BATCH_NORM, CASES, Case
from tests.conformance.monte_carlo import Z, z_of_means


def built(case: Case) -> tuple[nn.Module, Guide, Tensor]:
    """A model, its guide and inputs."""
    model = case.model()
    guide = MeanField(model, init_scale=0.3, example=case.batch() if case.needs_example else None)
    return model, guide, case.batch()[0]


def shapes(samples: dict[str, Any]) -> dict[str, Any]:
    """Shapes and dtypes by site."""
    return {name: (tuple(value.shape), value.dtype) for name, value in samples.items()}


@pytest.mark.parametrize("return_sites", [(), None, "observed", ("_RETURN",), {"_RETURN", "net.0.weight"}, ["_INPUT"]])
@pytest.mark.parametrize("source", ["guide", "draws", "prior"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_same_keys_and_shapes_as_pyros(case: Case, source: str, return_sites: Any) -> None:
    model, guide, x = built(case)
    return_sites = [case.observed] if return_sites == "observed" else return_sites
    options: dict[str, Any] = {
        "guide": {"guide": guide, "num_samples": 3},
        "draws": {"posterior_samples": guide.sample(3)},
        "prior": {"num_samples": 3},
    }[source]
    ours = Predictive(model, **options, return_sites=return_sites)(x)
    if case.has_plates and source == "guide":
        # Pyro itself cannot: it hands the network weights with the dimension that a plate in the guide asks for.
        options = {"posterior_samples": guide.sample(3)}
        return_sites = None if return_sites == () else return_sites
    theirs = pyro.infer.Predictive(model, **options, return_sites=return_sites)(x)
    assert shapes(ours) == shapes(theirs)


@pytest.mark.parametrize("source", [{"num_samples": 3}, {"num_samples": 1}])
def test_a_name_of_no_site_is_refused(source: dict[str, Any]) -> None:
    """Pyro's class returns nothing of it."""
    model, _, x = built(CASES[0])
    with pytest.raises(ValueError, match=r"^return_sites: the model has no 'typo'; its sites are 'net\..*'_RETURN'"):
        Predictive(model, **source, return_sites=("_RETURN", "typo"))(x)
    assert set(Predictive(model, **source, return_sites=("_RETURN", "_INPUT"))(x)) == {"_RETURN"}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_draws_go_where_they_should(case: Case) -> None:
    """Given the same draws of all sites, what the network returns is the same to the last bit."""
    model, guide, x = built(case)
    model.eval()
    draws = guide.sample(3)
    site = "_RETURN" if case.name != "user_model" else "net.0.weight"
    ours = Predictive(model, draws, return_sites=[site])(x)[site]
    assert torch.equal(ours, pyro.infer.Predictive(model, draws, return_sites=[site])(x)[site])


@pytest.mark.statistical
@pytest.mark.parametrize("source", ["guide", "auto", "prior"])
def test_same_distribution_as_pyros(source: str) -> None:
    """First two moments of every site over 500 draws on either side, within z = 5."""
    model, guide, x = built(CASES[1])
    x = x[:3]
    guides: dict[str, Any] = {"guide": guide, "auto": AutoNormal(model, init_scale=0.3), "prior": None}
    options: dict[str, Any] = {"guide": guides[source], "num_samples": 500}
    ours = Predictive(model, **options)(x)
    if source == "auto":  # its plates stop Pyro's class (see above), which is given draws instead
        drawn = [guides["auto"](x) for _ in range(500)]
        draws = {name: torch.stack([draw[name] for draw in drawn]).detach() for name in drawn[0]}
        options = {"posterior_samples": draws, "return_sites": None}
    theirs = pyro.infer.Predictive(model, **options)(x)
    assert len(ours) == 6
    assert shapes(ours) == shapes(theirs)
    for name, draws_of_site in ours.items():
        bounded = (draws_of_site.atan(), theirs[name].atan())  # a noise scale's square has heavy tails
        assert z_of_means(*bounded) < Z, name
        assert z_of_means(bounded[0].square(), bounded[1].square()) < Z, name


def test_deterministic_sites_and_keyword_arguments() -> None:
    def model(x: Tensor, *, shift: float = 0.0) -> Tensor:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            mean = pyro.deterministic("mean", w * x + shift)
            return pyro.sample("y", dist.Normal(mean, 1.0))

    draws = {"w": torch.tensor([1.0, 2.0])}
    x = torch.arange(3.0)
    ours, theirs = Predictive(model, draws)(x, shift=1.0), pyro.infer.Predictive(model, draws)(x, shift=1.0)
    assert shapes(ours) == shapes(theirs)
    assert set(ours) == {"mean", "y"}
    assert torch.equal(ours["mean"], theirs["mean"])
    assert ours["mean"].tolist() == [[1.0, 2.0, 3.0], [1.0, 3.0, 5.0]]


def test_observations_stay() -> None:
    model, guide, x = built(CASES[0])
    y = CASES[0].batch()[1]
    ours = Predictive(model, guide=guide, num_samples=2)(x, y)
    theirs = pyro.infer.Predictive(model, guide=guide, num_samples=2)(x, y)
    assert shapes(ours) == shapes(theirs)
    assert torch.equal(ours["y"], y.expand(2, -1))


def test_what_it_returns_of_a_guide_is_not_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block of one draw is made in memory of an earlier one, of which the results must not be views."""

    @dataclass
    class Returned:
        weight: Tensor

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3))

        def forward(self) -> Any:
            return Returned(self.weight[:2])

    monkeypatch.setattr("pyrobnn.prediction.predictive._BLOCK_BYTES", 1)
    model = bayesianize(Net(), dist.Normal(0.0, 1.0))
    guide = MeanField(model, init_scale=1.0)
    torch.manual_seed(3)
    found = Predictive(model, guide=guide, num_samples=5, return_sites=["weight", "_RETURN"])()
    torch.manual_seed(3)
    wanted = torch.cat([chunk["weight"] for chunk in PinnedDraws(guide, 5, 1, replayed=False)])
    assert torch.equal(found["weight"], wanted)
    assert torch.equal(torch.stack([one.weight for one in found["_RETURN"]]), wanted[:, :2])


def test_call_is_forward_as_a_tuple() -> None:
    model, guide, x = built(CASES[0])
    draws = guide.sample(2)
    ours = Predictive(model, draws, return_sites=["net.0.bias", "_RETURN"]).call(x)
    theirs = pyro.infer.Predictive(model, draws, return_sites=["net.0.bias", "_RETURN"]).call(x)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


def test_no_traces_are_kept() -> None:
    """Pyro makes at least one trace a draw, and keeps it; here none is made at all."""
    model, guide, x = built(CASES[0])
    made: list[int] = []
    original = Trace.__init__

    def counting(self: Trace, *args: Any, **kwargs: Any) -> None:
        made.append(1)
        original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trace, "__init__", counting)
        Predictive(model, guide=guide, num_samples=4)(x)
        assert not made
        pyro.infer.Predictive(model, guide=guide, num_samples=4)(x)
        assert len(made) > 4


def test_buffers_and_gradients() -> None:
    """In training mode, too, the running statistics stay; nothing needs a gradient."""
    model, guide, x = built(BATCH_NORM)
    before = {name: value.clone() for name, value in model.named_buffers()}
    samples = Predictive(model, guide=guide, num_samples=2, return_sites=["_RETURN", "net.0.weight"])(x)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert not any(value.requires_grad for value in samples.values())


def test_a_list_for_what_is_no_tensor() -> None:
    def model() -> str:
        pyro.sample("w", dist.Normal(0.0, 1.0))
        return "text"

    assert Predictive(model, num_samples=2, return_sites=["_RETURN"])()["_RETURN"] == ["text", "text"]


# ------------------------------------------------------------------------------------------------------- arguments


def test_num_samples_gives_way_with_a_warning_as_in_pyro() -> None:
    model, guide, x = built(CASES[0])
    draws = guide.sample(3)
    with pytest.warns(UserWarning, match="posterior_samples holds 3 draws"):
        ours = Predictive(model, draws, num_samples=5)
    assert ours(x)["y"].shape == (3, 12)


@pytest.mark.parametrize(
    ("options", "kind", "match"),
    [
        ({}, ValueError, r"^num_samples: give either"),
        ({"posterior_samples": {}}, ValueError, r"^num_samples: give either"),
        ({"posterior_samples": {"a": torch.zeros(2)}, "guide": print}, ValueError, r"^posterior_samples: .*together"),
        (
            {"posterior_samples": {"a": torch.zeros(2), "b": torch.zeros(3)}},
            ValueError,
            r"^posterior_samples: .*\[2, 3\]",
        ),
        ({"num_samples": 2, "parallel": True}, ValueError, r"^parallel: .*predict\(..., method='vmap'\)"),
        ({"num_samples": 2, "return_sites": "y"}, TypeError, r"^return_sites: .*list of site names"),
    ],
)
def test_bad_arguments(options: dict[str, Any], kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match):
        Predictive(built(CASES[0])[0], **options)
