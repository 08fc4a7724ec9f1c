"""The small U-Net: sizes, refusals, rows."""

from __future__ import annotations

import pytest
import torch

from pyrobnn.layers.unet import UNet


@pytest.mark.parametrize("shape", [(1, 16, 16), (2, 17, 12), (2, 5, 7)])
def test_outputs_have_the_size_of_the_images(shape: tuple[int, int, int]) -> None:
    net = UNet(3, 2, width=4, levels=2)
    assert net(torch.randn(shape[0], 3, *shape[1:])).shape == (shape[0], 2, *shape[1:])
    assert UNet(1, 6, width=4, levels=1)(torch.randn(2, 1, 8, 8)).shape == (2, 6, 8, 8)


def test_wrong_sizes_are_refused() -> None:
    for name in ("channels", "outputs", "width", "levels"):
        with pytest.raises(ValueError, match=f"^{name}: expected a positive int, got 0"):
            UNet(**{"channels": 1, "outputs": 2, name: 0})


def test_rows_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    net, x = UNet(1, 2, width=4), torch.randn(6, 1, 16, 16)
    torch.testing.assert_close(net(x)[2:4], net(x[2:4]))
