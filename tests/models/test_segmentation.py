"""Segmentation of drawn scenes: what pixels count, where void counts nothing, and what structure adds."""

from __future__ import annotations

import functools
from pathlib import Path

import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassJaccardIndex

import pyrobnn as pb
from models.segmentation import StructuredUNet, segmentation
from pyrobnn.guides import MAP, Composite, ConcreteStructure, Guide
from pyrobnn.metrics import auroc
from pyrobnn.model.substitution import SubstituteMessenger
from tests.conformance.comparisons import assert_same, seeded

VOID = 9
RULES = [("*structure*", ConcreteStructure), ("*", MAP)]


def scenes(count: int, size: int = 32, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noisy images of a disc (1) before a square (2) on a background (0), with a void frame."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    y = torch.zeros(count, size, size, dtype=torch.long)
    for truth in y:
        top, left, row, column = torch.randint(4, size - 12, (4,), generator=generator).tolist()
        truth[top : top + 12, left : left + 12] = 2
        truth[(rows - row - 4) ** 2 + (columns - column - 4) ** 2 < 36] = 1
    colors = torch.tensor([[0.0, 0.0, 0.3], [1.0, 0.0, 0.3], [0.0, 1.0, 0.3]])
    x = colors[y].movedim(-1, 1) + 0.5 * torch.randn(count, 3, size, size, generator=generator)
    y[:, :2], y[:, :, -2:] = VOID, VOID
    return x, y


def small(num_data: int, **options: object) -> pb.SupervisedModel:
    options = {"classes": 3, "void": VOID, "width": 4, "levels": 2} | options
    return segmentation(num_data, **options)  # type: ignore[arg-type]


@functools.cache
def fitted() -> tuple[pb.SupervisedModel, Guide]:
    """A model of 24 scenes after 72 steps."""
    torch.manual_seed(0)
    model = small(24)
    guide = Composite(model, RULES)
    loader = DataLoader(TensorDataset(*scenes(24)), batch_size=4, shuffle=True)
    history = pb.fit(model, guide, loader, epochs=12, lr=2e-2, seed=0, progress=False)
    assert history.elbo[-1] > history.elbo[0]
    pb.recalibrate_batch_norm(model, guide, loader)
    return model, guide


def test_all_cells_share_one_site() -> None:
    model = small(5, nodes=4, temperature=0.7)
    sites = pb.structure.structure_sites(model)
    assert {name: tuple(site.structure.shape) for name, site in sites.items()} == {"net.edges.structure": (6, 4)}
    rows = {row["site"]: row for row in pb.describe(model).rows}
    assert "0.7" in rows["net.edges.structure"]["prior"]


@settings(max_examples=8, deadline=None)
@given(height=st.integers(9, 21), width=st.integers(9, 21), nodes=st.integers(2, 4), levels=st.integers(1, 3))
def test_a_class_for_each_pixel_of_any_image(height: int, width: int, nodes: int, levels: int) -> None:
    net = StructuredUNet(2, 5, width=2, levels=levels, nodes=nodes)
    assert net(torch.randn(2, 2, height, width)).shape == (2, 5, height, width)


def test_pixels_count_once_and_images_as_often_as_the_plate_says() -> None:
    """Of N = 20 images a batch of 4 stands for 5 times itself, whatever its pixels and their void."""
    torch.manual_seed(1)
    model, (x, y) = small(20), scenes(4)
    trace = poutine.trace(model).get_trace(x, y)
    trace.compute_log_prob()
    node, outputs = trace.nodes["y"], trace.nodes["_RETURN"]["value"]
    expected = -F.cross_entropy(outputs, y, reduction="none", ignore_index=VOID).sum((1, 2))
    assert node["fn"].batch_shape == (4,)
    torch.testing.assert_close(node["fn"].log_prob(y), expected)
    torch.testing.assert_close(node["log_prob_sum"], 20 / 4 * expected.sum())


def test_labels_under_void_change_nothing() -> None:
    """The gradient is that of a sum over known pixels, whatever is written under the others."""
    torch.manual_seed(2)
    model, (x, y) = small(4).eval(), scenes(4)
    guide = Composite(model, RULES)
    values = seeded(guide.rsample)

    def gradients(by_hand: Tensor | None) -> dict[str, Tensor]:
        leaves = {name: value.detach().clone().requires_grad_() for name, value in values.items()}
        with SubstituteMessenger(leaves):
            outputs = model.predictive(x)
            score = model.likelihood(outputs).log_prob(y).sum()
        if by_hand is not None:
            by_pixel = -F.cross_entropy(outputs, by_hand, reduction="none")
            score = (by_pixel * (y != VOID)).sum()
        score.backward()
        return {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}

    found = gradients(None)
    assert found.keys() == values.keys()
    for seed in (0, 1):
        other = torch.randint(3, y.shape, generator=torch.Generator().manual_seed(seed))
        assert_same(gradients(torch.where(y == VOID, other, y)), found, rtol=1e-3)


def test_structure_alone_makes_epistemic_maps() -> None:
    model, guide = fitted()
    x, _ = scenes(2, seed=1)
    prediction = pb.predict(model, guide, x, num_samples=8, seed=0)
    assert prediction.mean.shape == (2, 32, 32, 3)
    for name in ("total", "aleatoric", "epistemic"):
        assert getattr(prediction, name).shape == (2, 32, 32)
    torch.testing.assert_close(prediction.total, prediction.aleatoric + prediction.epistemic)
    assert prediction.epistemic.mean() > 1e-3

    fixed = small(4, prior=[("*structure*", None), ("*", dist.Normal(0.0, 1.0))])
    certain = pb.predict(fixed, MAP(fixed), x, num_samples=8, seed=0)
    assert certain.epistemic.max() < 1e-5


def test_entropy_finds_wrong_pixels_and_draws_differ_at_boundaries() -> None:
    model, guide = fitted()
    x, y = scenes(12, seed=1)
    prediction = pb.predict(model, guide, x, num_samples=10, seed=0)
    known = y != VOID
    right = (prediction.predicted == y)[known]
    assert right.float().mean() > 0.9
    total = prediction.total[known]
    assert auroc(total[right], total[~right]) > 0.85
    one_hot = F.one_hot(y.clamp(max=3), 4).movedim(-1, 1).float()
    interior = (F.avg_pool2d(one_hot, 3, 1, 1).amax(1) > 0.99) & known
    boundary = ~interior & known
    boundary[:, :3], boundary[:, :, -3:] = False, False  # the edge of void is none of the scene's
    assert prediction.epistemic[boundary].mean() > 1.5 * prediction.epistemic[interior].mean()


def test_the_log_density_of_a_prediction_leaves_void_out() -> None:
    model, guide = fitted()
    x, y = scenes(3, seed=1)
    prediction = pb.predict(model, guide, x, num_samples=4, seed=0)
    found = prediction.log_prob(y)
    assert torch.equal(found[y == VOID], torch.zeros(int((y == VOID).sum())))
    expected = pb.metrics.nll(prediction.mean[y != VOID], y[y != VOID])
    torch.testing.assert_close(-found.sum() / (y != VOID).sum(), expected)


def test_intersection_over_union_leaves_void_and_absent_classes_out() -> None:
    """Class 0: 2 of 3; class 1: 1 of 2; class 2 nowhere. What is predicted under void does not matter."""
    truth = torch.tensor([[[0, 0, 0], [1, VOID, VOID]]])
    for under_void in (0, 2):
        predicted = torch.tensor([[[0, 0, 1], [1, under_void, under_void]]])
        iou = MulticlassJaccardIndex(3, ignore_index=VOID)
        assert float(iou(predicted, truth)) == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    model, guide = fitted()
    x, _ = scenes(2, seed=1)
    pb.save(tmp_path, model, guide)
    loaded_model, loaded = pb.load(tmp_path, StructuredUNet(3, 3, width=4, levels=2))
    assert isinstance(loaded_model, pb.SupervisedModel)
    assert loaded_model.likelihood.ignore_index == VOID
    found, expected = (pb.predict(m, g, x, num_samples=5, seed=0) for m, g in ((loaded_model, loaded), (model, guide)))
    assert torch.equal(found.mean, expected.mean)
    assert torch.equal(found.epistemic, expected.epistemic)
