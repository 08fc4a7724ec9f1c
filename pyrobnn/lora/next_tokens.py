r"""Causal language models scored per token: :math:`\log p(y_{1:T}) = \sum_t \log p(y_{t+1} \mid y_{1:t})`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from pyrobnn.core.explanations import explained

__all__ = ["next_tokens"]


@explained
def next_tokens(batch: Mapping[str, Tensor], *, ignore_index: int = -100) -> tuple[dict[str, Tensor], Tensor]:
    """Inputs and targets of a causal language model, whose logits at a position are about the token after it.

    It is the ``batch=`` of :func:`pyrobnn.fit` and all that reads loaders, with the likelihood
    ``Categorical(ignore_index=-100)``. A row is a sequence, and its log likelihood the sum over its tokens; mind that
    scores that count tokens count those that are not ignored.

    Args:
        batch: ``input_ids`` ``[B, T]``; ``attention_mask`` ``[B, T]``, whose zeros are padding, if there is any; and,
            as Hugging Face's collators make them, ``labels`` ``[B, T]``, the tokens themselves with ``ignore_index``
            where they are not scored (a prompt). Without labels all tokens but padding are scored.
        ignore_index: The label of what is not scored.

    Returns:
        All entries but ``labels``, and targets ``[B, T]``: at t the token t + 1, or ``ignore_index`` where there is
        none or it is not scored.

    Raises:
        TypeError: If the batch is no mapping.
        ValueError: If it has no ``input_ids``, or shapes differ.
    """
    if not isinstance(batch, Mapping):
        raise TypeError(f"batch: expected a mapping with input_ids, got {type(batch).__name__}.")
    if not isinstance(batch.get("input_ids"), Tensor) or batch["input_ids"].dim() != 2:
        raise ValueError(f"batch: expected input_ids, a tensor [B, T]; it has {', '.join(map(str, batch))}.")
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    tokens = inputs["input_ids"]
    labels, mask = batch.get("labels"), batch.get("attention_mask")
    for name, value in (("labels", labels), ("attention_mask", mask)):
        if value is not None and value.shape != tokens.shape:
            raise ValueError(f"batch: {name} has shape {list(value.shape)}, but input_ids {list(tokens.shape)}.")
    labels = tokens if labels is None else labels
    if mask is not None:
        labels = labels.masked_fill(mask == 0, ignore_index)
    targets = tokens.new_full(tokens.shape, ignore_index)
    targets[:, :-1] = labels[:, 1:]
    return inputs, targets
