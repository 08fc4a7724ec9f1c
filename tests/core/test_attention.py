"""Attention in evaluation mode is that of training, and the process keeps its settings."""

from __future__ import annotations

import threading

import torch
from torch import nn

from pyrobnn.core.attention import attention_as_trained, attention_under_vmap


def enabled() -> bool:
    return torch.backends.mha.get_fastpath_enabled()


def test_padding_has_the_values_of_training() -> None:
    """Torch's fast path returns zeros there."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    x, padding = torch.randn(2, 3, 4), torch.tensor([[False, False, True], [False] * 3])
    trained = layer(x, src_key_padding_mask=padding)
    with torch.no_grad(), attention_as_trained():
        found = layer.eval()(x, src_key_padding_mask=padding)
    torch.testing.assert_close(found, trained)


def test_the_setting_is_restored_whatever_the_order_of_blocks() -> None:
    assert enabled()
    first, second = attention_as_trained(), attention_as_trained()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not enabled()
    second.__exit__(None, None, None)
    assert enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    with attention_as_trained():
        pass
    assert not enabled()
    torch.backends.mha.set_fastpath_enabled(True)


def test_threads_share_it() -> None:
    def many() -> None:
        for _ in range(200):
            with attention_as_trained():
                assert not enabled()

    threads = [threading.Thread(target=many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert enabled()


def test_vmap_has_a_rule_for_attention_on_a_cpu() -> None:
    """Under vmap over the queries' weights, as for each by itself; torch would warn of a slow path."""
    q, k, w = torch.randn(2, 3, 4), torch.randn(2, 3, 4), torch.randn(5, 4, 4)

    def attend(weight: torch.Tensor) -> torch.Tensor:
        return nn.functional.scaled_dot_product_attention(q @ weight, k, k)

    with torch.no_grad(), attention_under_vmap(torch.device("cpu")):
        found = torch.func.vmap(attend)(w)
    torch.testing.assert_close(found, torch.stack([attend(weight) for weight in w]), rtol=1e-5, atol=1e-5)
