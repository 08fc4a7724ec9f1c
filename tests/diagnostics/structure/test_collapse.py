"""Collapsing: the plain network's outputs are the structure's, and nothing of this package is left in it."""

from __future__ import annotations

import copy
import functools
import itertools
import pickle
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pyrobnn as pb
from pyrobnn import likelihoods
from pyrobnn.guides import MAP, Composite, ConcreteStructure, DeltaMixture, MeanField
from pyrobnn.model.substitution import SubstituteMessenger
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.prediction.runners import model_outputs
from pyrobnn.structure import Choice, Gate, Zero, collapse, distribution, most_probable, structure_values
from tests.layers.structure.networks import SITES, Cell, cell_model, images


def fitted(weights: Any = MAP, **options: Any) -> tuple[SupervisedModel, Composite]:
    torch.manual_seed(0)
    model = cell_model(**options)
    guide = Composite(model, [("*structure*", functools.partial(ConcreteStructure, init_scale=1.0)), ("*", weights)])
    pb.fit(model, guide, [images()], epochs=2, lr=1e-2, progress=False)
    return model, guide


def outputs(model: SupervisedModel, values: Any, x: torch.Tensor) -> torch.Tensor:
    """Of the model at given values of all sites, in evaluation mode."""
    with torch.no_grad(), SubstituteMessenger(values):
        return model_outputs(model.eval(), x)


def all_modules_are_plain(net: nn.Module) -> bool:
    return not any(type(module).__module__.startswith("pyrobnn") for module in net.modules())


def test_outputs_are_those_of_the_most_probable_structure() -> None:
    model, guide = fitted()
    x = torch.randn(7, 1, 5, 5)
    net = collapse(model, guide).eval()
    weights = {name: value[0] for name, value in guide.sample(1).items()}
    chosen = structure_values(model, most_probable(model, guide))
    torch.testing.assert_close(net(x), outputs(model, weights | chosen, x), rtol=1e-6, atol=1e-6)
    assert all_modules_are_plain(net)
    assert sum(p.numel() for p in net.parameters()) < sum(p.numel() for p in model.net.network.parameters())
    assert all(p.requires_grad for p in net.parameters())


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_outputs_are_those_of_any_structure(data: st.DataObject) -> None:
    model, guide = SHARED
    table = distribution(model, guide)
    structure: dict[str, dict[str, Any]] = {}
    for row in table.rows:
        choices = [True, False] if "gates" in row["site"] else list(row["probabilities"])
        structure.setdefault(row["site"], {})[row["edge"]] = data.draw(st.sampled_from(choices))
    x = torch.randn(3, 1, 5, 5)
    net = collapse(model, guide, structure).eval()
    weights = {name: value[0] for name, value in guide.sample(1).items()}
    expected = outputs(model, weights | structure_values(model, structure), x)
    torch.testing.assert_close(net(x), expected, rtol=1e-6, atol=1e-6)
    assert all_modules_are_plain(net)


SHARED = fitted()


def test_the_collapsed_cells_run_only_what_was_chosen() -> None:
    model, guide = fitted()
    structure = most_probable(model, guide)
    structure[SITES[0]] = {"0->1": "conv", "0->2": "identity", "1->2": "conv"}
    structure[SITES[1]] = dict.fromkeys("0123", True)
    structure[SITES[2]] = {"0": False}
    structure[SITES[3]] = {"blocks": "1"}
    net: Any = collapse(model, guide, structure)
    kinds = [type(choice) for choice in net.first.choices]
    assert kinds == [nn.Conv2d, nn.Identity, nn.Conv2d]
    assert isinstance(net.gate, nn.Identity)
    assert [type(block) for block in net.depth] == [nn.Conv2d]
    assert isinstance(net.block, torch.fx.GraphModule)  # zeros: its layer is gone
    assert len(list(net.block.parameters())) == 0
    assert isinstance(net.edges, nn.Identity)


def test_the_plain_network_needs_no_pyrobnn_to_be_unpickled() -> None:
    """Everything but the tests' own classes."""
    model, guide = fitted()
    structure = most_probable(model, guide)
    structure[SITES[0]]["0->1"] = "zero"
    structure[SITES[1]] = {"0": True, "1": False, "2": True, "3": True}
    net: Any = collapse(model, guide, structure)
    assert sum(isinstance(module, torch.fx.GraphModule) for module in net.modules()) >= 3  # two cells' zeros, a mask
    parts = nn.ModuleList(
        child for child in net.modules() if not list(child.children()) or isinstance(child, nn.Sequential)
    )
    written = pickle.dumps(parts)
    assert b"pyrobnn" not in written
    twin = copy.deepcopy(net).eval()
    x = torch.randn(2, 1, 5, 5)
    torch.testing.assert_close(twin(x), net.eval()(x))


def test_the_model_is_left_alone() -> None:
    model, guide = fitted()
    before = copy.deepcopy(model.state_dict())
    net: Any = collapse(model, guide)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        net.norm.running_mean.add_(1.0)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_means_or_one_draw_of_random_weights() -> None:
    model, guide = fitted(functools.partial(MeanField, init_scale=0.1))
    x, part = torch.randn(3, 1, 5, 5), guide.parts[1]
    means = {name: part.marginal(site.name).mean.detach() for name, site in part.layout.items()}
    chosen = structure_values(model, most_probable(model, guide))
    expected = outputs(model, means | chosen, x)
    torch.testing.assert_close(collapse(model, guide).eval()(x), expected, rtol=1e-6, atol=1e-6)
    draw = guide.sample(1).at(0)
    expected = outputs(model, dict(draw) | chosen, x)
    torch.testing.assert_close(collapse(model, guide, draw=draw).eval()(x), expected, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match=r"draw: it has no value for the site 'net.stem.weight'"):
        collapse(model, guide, draw={})


def test_a_member_of_an_ensemble_brings_its_statistics() -> None:
    model, guide = fitted(functools.partial(DeltaMixture, num_members=2))
    with pytest.raises(ValueError, match=r"belong to a DeltaMixture, whose members have no single mean"):
        collapse(model, guide)
    draws = guide.sample(2)
    nets: list[Any] = [collapse(model, guide, draw=draws.at(index)) for index in range(2)]
    for index, net in enumerate(nets):
        assert torch.equal(net.norm.running_mean, draws.buffers["net.net.norm.running_mean"][index])
    assert not torch.equal(nets[0].norm.running_mean, nets[1].norm.running_mean)


def test_statistics_are_updated_by_torchs_own_means() -> None:
    model, guide = fitted()
    net: Any = collapse(model, guide)
    x, _ = images()
    torch.optim.swa_utils.update_bn([x], net)
    with torch.no_grad():
        seen = net.second(net.first(net.stem(x)))
    torch.testing.assert_close(net.norm.running_mean, seen.mean((0, 2, 3)), rtol=1e-5, atol=1e-5)


def test_nested_choices_zeros_and_layers_that_change_shape() -> None:
    torch.manual_seed(1)
    inner = Choice({"same": nn.Identity(), "tanh": nn.Tanh()})
    outer = Choice({"inner": nn.Sequential(inner, nn.Conv2d(2, 6, 3, 2, 1)), "zero": Zero(6, 2)})
    net = nn.Sequential(outer, Gate(1, nn.Conv2d(6, 2, 1)), nn.Flatten())
    model = SupervisedModel(net, likelihoods.Normal(1.0), dist.Normal(0.0, 1.0), num_data=4)
    guide = MAP(model)
    x = torch.randn(2, 2, 5, 4)
    model_outputs(model, x)  # the gate sees that its layer changes the shape
    sites = {name: name for name in guide.layout if "structure" in name}
    for first, second, is_open in itertools.product(("inner", "zero"), ("same", "tanh"), (True, False)):
        by_site: dict[str, Any] = {}
        for name in sites:
            by_site[name] = {"0": is_open} if "gates" in name else {"edge": second if ".0.0." in name else first}
        plain = collapse(model, guide, by_site).eval()
        values = {name: value[0] for name, value in guide.sample(1).items()} | structure_values(model, by_site)
        torch.testing.assert_close(plain(x), outputs(model, values, x))
        assert all_modules_are_plain(plain)


def test_a_shared_module_stays_shared() -> None:
    gate = Gate(2)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.linear = gate, gate, nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.linear(self.first(x)))

    model = SupervisedModel(Twice(), likelihoods.Normal(1.0), dist.Normal(0.0, 1.0), num_data=4)
    structure = {"net.first.gates.structure": {"0": True, "1": False}}
    net: Any = collapse(model, MAP(model), structure)
    assert net.first is net.second
    assert all_modules_are_plain(net)


def test_collapsing_before_fitting_is_refused() -> None:
    model = cell_model()
    guide = Composite(model, [("*structure*", functools.partial(ConcreteStructure, init_scale=1.0)), ("*", MAP)])
    with pytest.raises(ValueError, match="guide: its structure has not been fitted"):
        collapse(model, guide)
    with pytest.raises(ValueError, match=r"guide: at the site 'net.edges.structure' two choices are equally probable"):
        collapse(model, Composite(model, [("*structure*", MeanFieldAtTie), ("*", MAP)]))


class MeanFieldAtTie(MAP):
    """A point whose draws tie exactly."""

    def sample(self, num_samples: int) -> dict[str, torch.Tensor]:
        """Half of the draws at each of two corners."""
        draws = super().sample(num_samples)
        half = torch.arange(num_samples) % 2
        for name, value in draws.items():
            if value.dim() > 2:
                corner = torch.nn.functional.one_hot(half, value.shape[-1]).to(value.dtype)
                draws[name] = corner.unsqueeze(1).expand(value.shape)
        return draws


def test_structure_that_is_fixed_at_relaxed_weights_is_refused() -> None:
    model = cell_model([("edges*", None), ("*", dist.Normal(0.0, 1.0))])
    rules = [("*structure*", functools.partial(ConcreteStructure, init_scale=1.0)), ("*", MAP)]
    guide = Composite(model, rules)
    pb.fit(model, guide, [images()], epochs=1, progress=False)
    with pytest.raises(ValueError, match=r"model: the structure of 'edges' is fixed at relaxed weights"):
        collapse(model, guide)


def test_cells_are_classes_of_the_user() -> None:
    assert isinstance(collapse(*fitted()).first, Cell)
