"""The cell network: its size and formula, its posteriors, what is left of it when collapsed."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

import pyrobnn as pb
from models.cells import OPERATIONS, Cell, CellNetwork
from models.dbsn import (
    METHODS,
    SMALL,
    adam,
    annealing,
    dbsn,
    deep_bayesian_structure,
    random_structure,
)
from pyrobnn import guides, schedules
from pyrobnn.model.substitution import SubstituteMessenger
from pyrobnn.prediction.runners import model_outputs
from pyrobnn.structure import Choice, Edges, collapse, most_probable, structure_values
from pyrobnn.training import train_step

SITE = "net.edges.structure"
TINY: dict[str, Any] = SMALL | {"nodes": 3, "growth": 4, "classes": 2, "stem_stride": 1}


def tiny(**options: Any) -> pb.SupervisedModel:
    return dbsn(32, **(TINY | options))


def images(count: int = 32) -> tuple[Tensor, Tensor]:
    """Two classes: which half of the image is bright."""
    x, y = torch.rand(count, 1, 8, 8), torch.arange(count) % 2
    x[y == 0, :, :4] += 2.0
    x[y == 1, :, 4:] += 2.0
    return x, y


def fitted(guide_of: Any, **options: Any) -> tuple[pb.SupervisedModel, guides.Guide]:
    torch.manual_seed(0)
    model = tiny(**options)
    guide = guide_of(model)
    batches = [images() for _ in range(2)]
    elbo, optimizer = pb.objectives.ELBO(), adam(model, guide)
    model.train()
    for step in range(8):
        train_step(model, guide, elbo, optimizer, batches[step % 2])
    pb.recalibrate_batch_norm(model, guide, batches)
    return model, guide


# ---------------------------------------------------------------------------------------------------------- the network


def test_the_papers_network_has_21_edges_and_a_million_weights() -> None:
    """By hand: 12 cells of 21 edges; their inputs have 3936 channels in all, 480 and 640 between the stages."""
    net: Any = CellNetwork()
    assert net.edges.structure.shape == (21, 4)
    assert net.edges.names[0] == "0->1" and net.edges.operations == OPERATIONS
    assert sum(isinstance(module, Cell) for module in net.modules()) == 12
    separable, dilated = 2 * (2 * 16 + 16 * 9 + 16 * 16), 2 * 16 + 16 * 9 + 16 * 16
    cells = 12 * 21 * (separable + dilated) + 3936 * (2 + 7 * 16)
    between = 480 * (2 + 192) + 640 * (2 + 256)
    expected = cells + between + 27 * 32 + 704 * 2 + 704 * 10 + 10 + 21 * 4
    assert sum(parameter.numel() for parameter in net.parameters()) == expected == 1_042_942
    with torch.no_grad():
        assert net.eval()(torch.randn(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("size", [14, 28])
def test_the_small_network_takes_images_of_both_sizes(size: int) -> None:
    net: Any = CellNetwork(**SMALL)
    assert net.edges.structure.shape == (6, 3)
    assert net(torch.randn(2, 1, size, size)).shape == (2, 10)


def test_all_cells_share_one_site_and_the_prior_is_the_weight_decay() -> None:
    model = tiny(weight_decay=1e-3)
    guide = deep_bayesian_structure(model)
    assert [name for name in guide.layout if name.endswith("structure")] == [SITE]
    scales = {float(site.prior.base_dist.scale.max()) for site in guide.layout.values() if site.name != SITE}  # type: ignore[attr-defined]
    assert max(scales) == pytest.approx((1e-3 * 32) ** -0.5) == min(scales)


def test_no_weight_can_undo_the_structure() -> None:
    """Each operation is normalized, without parameters that could scale it."""
    choices = [m for m in CellNetwork(**(SMALL | {"operations": OPERATIONS})).modules() if isinstance(m, Choice)]
    assert [choice.batch_norm for choice in choices] == [SMALL["growth"]] * 12
    assert not [name for choice in choices for name, _ in choice.norms.named_parameters()]


def test_a_cell_computes_the_formula() -> None:
    edges = Edges([(0, 1), (0, 2), (1, 2)], OPERATIONS)
    cell = Cell(5, 4, edges, 3)
    x = torch.randn(6, 5, 7, 7)
    for alpha in (
        torch.eye(4)[[0, 0, 0]],
        torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.0, 1.0, 0.0, 0.0], [0.5, 0.0, 0.0, 0.5]]),
    ):
        edges.structure.data = alpha
        features = cell.preprocess(x)
        f0, f1, f2 = features[:, :4], features[:, 4:8], features[:, 8:]

        def edge(name: str, source: Tensor, row: Tensor) -> Tensor:
            operations: Any = cell.choices[name].operations
            parts = [
                torch.nn.functional.batch_norm(operations[k](source), None, None, training=True) for k in (1, 2, 3)
            ]
            return sum(row[k] * part for k, part in enumerate(parts, 1))  # type: ignore[return-value]

        n1 = f1 + edge("0-1", f0, alpha[0])
        n2 = f2 + edge("0-2", f0, alpha[1]) + edge("1-2", n1, alpha[2])
        torch.testing.assert_close(cell(x), torch.cat([x, f0, n1, n2], 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nodes": 1}, "nodes: expected at least 2"),
        ({"growth": 0}, "growth"),
        ({"reduction": 1.5}, "reduction: expected a fraction"),
        ({"operations": ("zero", "pool")}, "operations: there is no 'pool'"),
        ({"weight_decay": 0.0}, "weight_decay"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**options)


# ------------------------------------------------------------------------------------------------------- posteriors


@pytest.mark.parametrize("name", METHODS)
def test_each_method_learns_and_predicts(name: str) -> None:
    model, guide = fitted(METHODS[name].guide, is_random=METHODS[name].is_random)
    assert (SITE in guide.layout) == METHODS[name].is_random
    x, y = images()
    prediction = pb.predict(model, guide, x, num_samples=6, seed=0, return_draws=True)
    torch.testing.assert_close(prediction.mean.sum(-1), torch.ones(32))
    assert float(prediction.log_prob(y).mean()) > -0.6  # chance: -0.69
    assert prediction.draws is not None
    spread = float(prediction.draws.std(0).max())
    assert (spread == 0.0) if name.startswith("MAP") else (spread > 1e-4)


def test_only_what_is_to_be_learned_is() -> None:
    for name, moves in (("DBSN", True), ("MAP", True), ("random structure", False)):
        _, guide = fitted(METHODS[name].guide)
        part: Any = guide.part(SITE)  # type: ignore[attr-defined]
        mean = part.probabilities(SITE) if name != "MAP" else guide.sample(1)[SITE][0]
        assert bool(((mean - 1 / 3).abs() > 1e-3).any()) == moves, name


def test_weights_may_have_another_family() -> None:
    weights = functools.partial(guides.MeanField, init_scale=1e-2)
    _, guide = fitted(functools.partial(deep_bayesian_structure, weights=weights))
    assert all(value.std(0).max() > 0 for value in guide.sample(4).values())


def test_dropout_is_before_cells_and_the_last_layer() -> None:
    guide: Any = METHODS["MC dropout"].guide(tiny(is_random=False, cells=2))
    cells = {f"net.blocks.{index}.preprocess.2.weight" for index in (0, 1, 3, 4)}
    assert set(guide.rates) == cells | {"net.blocks.2.2.weight", "net.head.weight"}


def test_schedules_are_the_papers() -> None:
    steps = 100 * 781  # 100 epochs of batches of 64
    found: Any = annealing(steps)
    assert found["temperature"].rate == pytest.approx(1.5e-5, rel=0.01)
    for epoch in (1, 11, 31, 51, 100):
        step = (epoch - 1) * 781
        assert found["temperature"](step) == pytest.approx(max(3.0 * 2.718281828 ** (-1.5e-5 * step), 1.0), rel=0.01)
        assert found["beta"](step) == pytest.approx(max(1.01 - 0.01 * epoch, 0.5), abs=0.01)
    guide = deep_bayesian_structure(tiny(), **annealing(10))
    guide.step(None).restart(1000)  # they hold their last value
    assert isinstance(found["beta"], schedules.Linear)


def test_the_optimizer_holds_each_parameter_once() -> None:
    model = tiny()
    guide = deep_bayesian_structure(model)
    optimizer = adam(model, guide, lr=0.5, structure_lr=0.25)
    weights, structure = optimizer.param_groups
    assert (weights["lr"], structure["lr"]) == (0.5, 0.25)
    assert [p is guide.part(SITE).flat_logits for p in structure["params"]] == [True]
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    trainable = [id(p) for module in (model, guide) for p in module.parameters() if p.requires_grad]
    assert sorted(held) == sorted(trainable)
    assert len(adam(model, random_structure(model)).param_groups) == 1


# --------------------------------------------------------------------------------------------------------- collapsing


def test_the_collapsed_network_equals_the_most_probable_structure() -> None:
    model, guide = fitted(functools.partial(deep_bayesian_structure, init_scale=1.0))
    net = collapse(model, guide).eval()
    x = torch.randn(5, 1, 8, 8)
    values = {name: value[0] for name, value in guide.sample(1).items()}
    values |= structure_values(model, most_probable(model, guide))
    with torch.no_grad(), SubstituteMessenger(values):
        expected = model_outputs(model.eval(), x)
    torch.testing.assert_close(net(x), expected, rtol=1e-5, atol=1e-5)
    assert not any(type(module).__module__.startswith("pyrobnn") for module in net.modules())
    weights = sum(p.numel() for p in net.parameters())
    assert weights < sum(p.numel() for p in model.net.network.parameters())
