"""Small transformers and linear layers with LoRA adapters; built from configurations, nothing is downloaded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

VOCABULARY, LENGTH = 61, 7


def adapted(net: nn.Module, **options: Any) -> Any:
    """The network with adapters by PEFT; skips the test if that is not installed."""
    peft = pytest.importorskip("peft", reason="peft")
    return peft.get_peft_model(net, peft.LoraConfig(**{"r": 2, "lora_alpha": 4, **options}))


def randomized(net: nn.Module, scale: float = 0.3) -> nn.Module:
    """The network with random factors B, which PEFT starts at zero."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, scale)
    return net


def classifier(**options: Any) -> Any:
    """A BERT for three classes of sequences, adapters in its attention, a new head."""
    transformers = pytest.importorskip("transformers", reason="transformers")
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=16,
        num_labels=3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    net = transformers.BertForSequenceClassification(config)
    return adapted(net, **{"task_type": "SEQ_CLS", "target_modules": ["query", "value"], **options})


def tagger() -> Any:
    """A BERT for four classes of tokens."""
    transformers = pytest.importorskip("transformers", reason="transformers")
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=16,
        num_labels=4,
    )
    net = transformers.BertForTokenClassification(config)
    return adapted(net, task_type="TOKEN_CLS", target_modules=["query", "value"])


def language_model(**options: Any) -> Any:
    """A Llama with adapters in its attention and on its output layer."""
    transformers = pytest.importorskip("transformers", reason="transformers")
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=24,
        max_position_embeddings=16,
        pad_token_id=0,
    )
    net = transformers.LlamaForCausalLM(config)
    return adapted(net, **{"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj", "lm_head"], **options})


def sequences(count: int = 6) -> dict[str, Tensor]:
    """Tokens and the mask of their padding, which every other row has at its end."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, VOCABULARY, (count, LENGTH), generator=generator)
    mask = torch.ones_like(tokens)
    mask[::2, LENGTH - 3 :] = 0
    return {"input_ids": tokens * mask, "attention_mask": mask}


def batches(inputs: dict[str, Tensor], labels: Tensor, size: int = 3) -> list[dict[str, Tensor]]:
    """Batches as Hugging Face's loaders yield them."""
    rows = range(0, len(labels), size)
    whole = {**inputs, "labels": labels}
    return [{name: value[start : start + size] for name, value in whole.items()} for start in rows]
