"""Networks with stochastic architectures: whose statistics a structure runs with, what is averaged, what is trained."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pyrobnn as pb
from models.dbsn import SMALL, adam
from models.nsa import StructureSet, nsa, random_structures
from pyrobnn.model.bayesianize import frozen_buffers
from pyrobnn.structure import collapse, structure_values
from pyrobnn.training import train_step

SITE = "net.edges.structure"
TINY: dict[str, Any] = SMALL | {"nodes": 3, "growth": 4, "classes": 2, "stem_stride": 1}


def tiny() -> pb.SupervisedModel:
    return nsa(24, **TINY)


def images(count: int = 24) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 1, 8, 8), torch.arange(count) % 2


def fitted(steps: int = 8, **options: Any) -> tuple[pb.SupervisedModel, StructureSet]:
    torch.manual_seed(0)
    model = tiny()
    guide = StructureSet(model, 3, **options)
    elbo, optimizer = pb.objectives.ELBO(), adam(model, guide)
    model.train()
    for _ in range(steps):
        train_step(model, guide, elbo, optimizer, images())
    return model.eval(), guide


def plain(model: pb.SupervisedModel, guide: StructureSet, member: int, buffers_of: int | None) -> nn.Module:
    """A plain copy of the network, holding one structure and the statistics of one (None: the model's own)."""
    net = copy.deepcopy(model.net.network)
    with torch.no_grad():
        for name, value in guide.stacked(torch.tensor([member])).items():
            net.get_parameter(name.removeprefix("net.")).copy_(value[0])
        if buffers_of is not None:
            for name, value in guide.own_buffers.stacked(torch.tensor([buffers_of])).items():
                net.get_buffer(name.removeprefix("net.net.")).copy_(value[0])
    return net.eval().requires_grad_(False)


def by_structure(model: pb.SupervisedModel, guide: StructureSet, x: Tensor) -> Tensor:
    """What the structures predict ``[3, N, classes]``, in the set's order."""
    draws = guide.sample(3)  # each once, from a random one on
    order = [place(draws[SITE], guide.member(member)[SITE]) for member in range(3)]
    found = pb.predict(model, draws.at(order), x, num_samples=3, return_draws=True).draws
    assert found is not None
    return found


def place(structures: Tensor, one: Tensor) -> int:
    return [torch.equal(each, one) for each in structures].index(True)


# ---------------------------------------------------------------------------------------------------------- statistics


def test_each_structure_runs_with_its_own_statistics() -> None:
    model, guide = fitted()
    x = torch.randn(7, 1, 8, 8)
    found = by_structure(model, guide, x)
    for member in range(3):
        own = plain(model, guide, member, member)(x).softmax(-1)
        torch.testing.assert_close(found[member], own, rtol=1e-5, atol=1e-5)
        others = plain(model, guide, member, (member + 1) % 3)(x).softmax(-1)
        assert float((found[member] - others).abs().max()) > 1e-3


def test_statistics_of_structures_differ_and_move_in_their_own_steps_only() -> None:
    model, guide = fitted(steps=20)
    buffers = guide.own_buffers.stacked(torch.arange(3))
    variances, counts = buffers["net.net.norm.running_var"], buffers["net.net.norm.num_batches_tracked"]
    assert int(counts.sum()) == 20 and int(counts.min()) > 0
    assert all(float((variances[i] - variances[j]).abs().max()) > 0.1 for i, j in ((0, 1), (0, 2), (1, 2)))
    assert int(model.get_buffer("net.net.norm.num_batches_tracked")) == 0  # the model's own are left alone


def test_shared_statistics_are_the_models() -> None:
    model, guide = fitted(own_statistics=False)
    assert guide.sample(3).buffers == {}
    assert int(model.get_buffer("net.net.norm.num_batches_tracked")) == 8
    x = torch.randn(7, 1, 8, 8)
    found = by_structure(model, guide, x)
    for member in range(3):
        torch.testing.assert_close(
            found[member], plain(model, guide, member, None)(x).softmax(-1), rtol=1e-5, atol=1e-5
        )


def test_recalibrated_statistics_are_those_of_each_structure() -> None:
    model, guide = fitted()
    x, y = images()
    pb.recalibrate_batch_norm(model, guide, [(x, y)])
    for member in range(3):
        net = plain(model, guide, member, None)
        net.train()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
                module.momentum = None
        net(x)
        kept = guide.own_buffers.stacked(torch.tensor([member]))["net.net.norm.running_var"][0]
        torch.testing.assert_close(kept, net.get_buffer("norm.running_var"), rtol=1e-4, atol=1e-5)


# -------------------------------------------------------------------------------------------- prediction and training


def test_prediction_averages_over_the_set() -> None:
    model, guide = fitted()
    x = torch.randn(7, 1, 8, 8)
    mean = pb.predict(model, guide, x, num_samples=3).mean
    torch.testing.assert_close(mean, by_structure(model, guide, x).mean(0), rtol=1e-5, atol=1e-6)


def test_the_objective_is_the_mean_over_the_set_and_has_no_term_for_the_structure() -> None:
    torch.manual_seed(0)
    model = tiny()
    guide = StructureSet(model, 3, structures_per_step=None)
    x, y = images()
    model.train()
    with frozen_buffers(model):
        losses = [24 * F.cross_entropy(plain(model, guide, member, None).train()(x), y) for member in range(3)]
    weights = guide.stacked(torch.tensor([0]))
    prior = sum(guide.layout[n].prior.log_prob(v[0]).sum() for n, v in weights.items() if n != SITE)
    elbo = pb.objectives.ELBO()
    parts = elbo.backward(model, guide, (x, y))
    torch.testing.assert_close(parts.log_likelihood, -sum(losses) / 3, rtol=1e-4, atol=1e-3)  # type: ignore[arg-type]
    torch.testing.assert_close(parts.loss, sum(losses) / 3 - prior, rtol=1e-4, atol=1e-3)


def test_training_moves_the_weights_and_keeps_the_structures() -> None:
    torch.manual_seed(0)
    model = tiny()
    guide = StructureSet(model, 3)
    before = copy.deepcopy(guide.state_dict())
    pb.fit(model, guide, [images()], epochs=4, lr=1e-2, progress=False)
    after = guide.state_dict()
    assert torch.equal(before["structures_0"], after["structures_0"])
    assert not torch.equal(before["weights.loc"], after["weights.loc"])


def test_the_state_dict_is_complete() -> None:
    model, guide = fitted()
    torch.manual_seed(5)
    twin = StructureSet(model, 3)
    assert not torch.equal(twin.get_buffer("structures_0"), guide.get_buffer("structures_0"))
    twin.load_state_dict(guide.state_dict())
    x = torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(by_structure(model, twin, x), by_structure(model, guide, x))
    assert guide.config() == {"structures": 3, "own_statistics": True, "structures_per_step": 1}


def test_one_structure_collapses_with_its_statistics() -> None:
    model, guide = fitted()
    draw = guide.sample(3).at(1)
    member = place(guide.get_buffer("structures_0"), draw[SITE])
    names: Any = model.net.network.edges
    chosen = {
        SITE: {edge: names.operations[int(row.argmax())] for edge, row in zip(names.names, draw[SITE], strict=True)}
    }
    net = collapse(model, guide, chosen, draw=draw).eval()
    x = torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(net(x).softmax(-1), by_structure(model, guide, x)[member], rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------- the set


def test_structures_are_different_and_one_hot() -> None:
    torch.manual_seed(0)
    model = tiny()
    guide = StructureSet(model, 20)
    values = guide.get_buffer("structures_0")
    assert values.shape == (20, 3, 3)
    assert bool(((values == 0) | (values == 1)).all()) and bool((values.sum(-1) == 1).all())
    assert len(values.flatten(1).unique(dim=0)) == 20


def test_structures_may_be_given() -> None:
    torch.manual_seed(0)
    model = tiny()
    given = random_structures(model, 2)
    guide = StructureSet(model, given)
    for index in range(2):
        assert torch.equal(guide.member(index)[SITE], structure_values(model, given[index])[SITE])


def test_more_structures_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="different structures; found 27"):
        random_structures(tiny(), 28)  # three operations on three edges
    with pytest.raises(ValueError, match="count"):
        random_structures(tiny(), 0)
