"""Networks in half precision and with channels last: near the same numbers, of sums that keep theirs."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyrobnn import likelihoods
from pyrobnn.guides import MeanField
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.prediction import predict
from pyrobnn.prediction.execution import Execution

K = 5


class Recording(nn.Module):
    """A convolution and a linear layer, and what reached them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)
        self.seen: list[tuple[torch.dtype, bool]] = []

    def forward(self, x: Tensor, scale: Tensor | float = 1.0) -> Tensor:
        h = self.conv(x)
        self.seen.append((h.dtype, x.is_contiguous(memory_format=torch.channels_last)))
        return self.last(h.relu().mean((-2, -1))) * scale


def built() -> tuple[SupervisedModel, Recording, MeanField, Tensor]:
    torch.manual_seed(0)
    model = SupervisedModel(Recording(), likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=8)
    net: Any = model.net.network
    return model, net, MeanField(model, init_scale=0.5), torch.randn(8, 3, 6, 6)


@pytest.mark.parametrize("method", ["auto", "loop"])
def test_half_precision_is_near_and_returns_single_precision(method: Any) -> None:
    """Eight bits of mantissa in products of order one: probabilities within a few hundredths, but not equal."""
    model, net, guide, x = built()
    wanted = predict(model, guide, x, K, method="loop", seed=1)
    net.seen.clear()
    found = predict(model, guide, x, K, method=method, precision="bfloat16", seed=1)
    assert net.seen[-1][0] == torch.bfloat16
    assert found.mean.dtype == found.total.dtype == torch.float32
    torch.testing.assert_close(found.mean.sum(-1), torch.ones(8), rtol=0.0, atol=1e-6)
    assert 0.0 < (found.mean - wanted.mean).abs().max() < 0.03
    assert not torch.is_autocast_enabled("cpu")


def test_it_is_torchs_autocasting() -> None:
    """Around the call that also covers what is computed from the outputs, which no operation here casts."""
    model, _, guide, x = built()
    found = predict(model, guide, x, K, precision="bfloat16", seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wanted = predict(model, guide, x, K, seed=1)
    torch.testing.assert_close(found.mean, wanted.mean)


@pytest.mark.parametrize("method", ["auto", "loop", "vmap"])
def test_channels_last_is_what_convolutions_see_with_the_same_result(method: Any) -> None:
    model, net, guide, x = built()
    wanted = predict(model, guide, x, K, seed=1)
    assert not any(is_last for _, is_last in net.seen)
    net.seen.clear()
    found = predict(model, guide, x, K, method=method, memory_format=torch.channels_last, seed=1)
    assert all(is_last for _, is_last in net.seen)
    torch.testing.assert_close(found.mean, wanted.mean)
    assert x.is_contiguous()


def test_only_inputs_with_channels_are_laid_out() -> None:
    model, net, guide, x = built()
    scale = torch.full((8, 1), 2.0)
    wanted = predict(model, guide, {"x": x, "scale": scale}, K, seed=1)
    found = predict(model, guide, {"x": x, "scale": scale}, K, memory_format=torch.channels_last, seed=1)
    assert net.seen[-1][1]
    torch.testing.assert_close(found.mean, wanted.mean)
    volume = torch.randn(2, 3, 4, 4, 4)
    laid_out = Execution(memory_format=torch.channels_last_3d).laid_out((volume, x, 1.5))
    assert laid_out[0].is_contiguous(memory_format=torch.channels_last_3d)
    assert laid_out[1] is x
    assert laid_out[2] == 1.5


def test_torch_does_not_cast_convolutions_under_vmap_so_that_both_are_refused() -> None:
    """Should the second line fail, the refusal can go."""
    model, _, guide, x = built()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        weights = guide.sample(2)["net.conv.weight"]
        assert torch.func.vmap(lambda w: torch.conv2d(x, w))(weights).dtype == torch.float32
    with pytest.raises(ValueError, match=r"^method: .*under vmap in bfloat16"):
        predict(model, guide, x, K, method="vmap", precision="bfloat16")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"precision": "int8"}, r"^precision: expected 'bfloat16' or 'float16', or None .*got 'int8'"),
        ({"precision": torch.bfloat16}, r"^precision: .*got torch.bfloat16"),
        ({"memory_format": torch.contiguous_format}, r"^memory_format: expected torch.channels_last"),
        ({"memory_format": "channels_last"}, r"^memory_format: .*got 'channels_last'"),
    ],
)
def test_unknown_ones_are_refused(options: dict[str, Any], match: str) -> None:
    model, _, guide, x = built()
    with pytest.raises(ValueError, match=match):
        predict(model, guide, x, K, **options)
