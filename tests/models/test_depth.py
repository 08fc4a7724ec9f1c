"""Depth by pixel: shapes, the density of an image, missing pixels, noise where it is, the generator of scenes."""

from __future__ import annotations

from pathlib import Path

import pyro.distributions as dist
import pyro.poutine as poutine
import torch
import torch.nn.functional as F

import pyrobnn as pb
from benchmarks.reproduce.depth import scenes
from models.depth import depth
from pyrobnn import guides
from pyrobnn.layers.unet import UNet


def test_an_image_counts_the_sum_over_its_pixels() -> None:
    torch.manual_seed(1)
    model = depth(10, channels=1, width=4)
    x, y = torch.randn(4, 1, 12, 12), torch.randn(4, 1, 12, 12)
    with torch.no_grad():
        trace = poutine.trace(model).get_trace(x, y)
    mean, raw = trace.nodes["_RETURN"]["value"].chunk(2, 1)
    each = dist.Normal(mean, F.softplus(raw) + 1e-3).log_prob(y)
    trace.compute_log_prob()
    torch.testing.assert_close(trace.nodes["y"]["log_prob_sum"], 10 / 4 * each.sum())


def test_missing_pixels_count_nothing() -> None:
    torch.manual_seed(2)
    model = depth(4, channels=1, width=4, missing=True)
    guide = guides.MAP(model)
    x, y = torch.randn(4, 1, 12, 12), torch.randn(4, 1, 12, 12)
    known = y.clone()
    known[:, :, :6] = torch.nan
    prediction = pb.predict(model, guide, x, 1)
    assert prediction.parameters is not None
    each = dist.Normal(prediction.parameters["loc"][0], prediction.parameters["scale"][0]).log_prob(y)
    torch.testing.assert_close(prediction.log_prob(known), each[:, :, 6:].sum((1, 2, 3)))


def test_noise_is_found_where_it_is_and_disagreement_under_draws(tmp_path: Path) -> None:
    """Depths of a constant image part, with noise of 0.6 in its right half and 0.05 in its left."""
    torch.manual_seed(3)
    x = torch.linspace(-1.0, 1.0, 12).expand(32, 1, 12, 12) + 0.1 * torch.randn(32, 1, 12, 12)
    noise = torch.where(torch.arange(12) < 6, 0.05, 0.6)
    y = noise * torch.randn(32, 1, 12, 12)
    model = depth(32, channels=1, width=4, levels=1)
    guide = guides.DeltaMixture(model, num_members=3)
    pb.fit(model, guide, [(x[:16], y[:16]), (x[16:], y[16:])], epochs=60, lr=0.02, seed=0, progress=False)
    found = pb.predict(model, guide, x, 3, seed=0)
    assert found.mean.shape == (32, 1, 12, 12)
    by_column = found.aleatoric.sqrt().mean((0, 1, 2))
    assert float(by_column[:5].mean()) < 0.2
    assert 0.4 < float(by_column[7:].mean()) < 0.8
    assert float(found.epistemic.mean()) > 0
    pb.save(tmp_path, model, guide)
    loaded = pb.predict(*pb.load(tmp_path, UNet(1, 2, width=4, levels=1)), x, 3, seed=0)
    assert torch.equal(loaded.epistemic, found.epistemic)


def test_scenes_are_noisy_at_edges_and_have_balls_where_asked() -> None:
    """Standard deviations of 0.6 and 0.05 within 4 standard errors; no ball in training."""
    found = scenes(40, 0, balls=1)
    again, plain = scenes(40, 0, balls=1), scenes(40, 0)
    assert all(torch.equal(*parts) for parts in zip(found, again, strict=True))
    assert found.images.shape == found.true.shape == (40, 1, 32, 32)
    assert not plain.balls.any() and bool(found.balls.flatten(1).any(1).all())
    assert 0.05 < float(plain.edges.float().mean()) < 0.5
    for mask, noise in ((plain.edges, 0.6), (~plain.edges, 0.05)):
        values = (plain.measured - plain.true)[mask]
        assert abs(float(values.std()) / noise - 1) <= 4 / (2 * len(values)) ** 0.5
    inside = found.balls & ~found.edges
    assert bool((found.true[inside] < 2.6).all())
