r"""predict(): what the posterior says about inputs, with its uncertainty taken apart.

``K`` functions are drawn once and *pinned*: every batch goes through the same K, so results do not depend on
how the inputs were cut into batches. Each draw is pushed through the network in chunks under a byte budget
and reduced at once: to mean class probabilities, entropies and votes for classes,

.. math:: \underbrace{H[\bar p]}_{\text{total}} = \underbrace{\tfrac1K \sum_k H[p_k]}_{\text{aleatoric}}
          + \underbrace{I[y; w]}_{\text{epistemic}}, \qquad \bar p = \tfrac1K \sum_k p_k,

in nats, or to moments by the law of total variance for real-valued targets,

.. math:: \mathrm{Var}[y] = \tfrac1K \sum_k \sigma_k^2 + \mathrm{Var}_k[\mu_k],

in the target's units squared (Depeweg et al. 2018).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from pyrobnn.denormals import denormals_as_zero
from pyrobnn.likelihoods import Likelihood
from pyrobnn.prediction.draws import PinnedDraws
from pyrobnn.prediction.reductions import Moments, Probabilities
from pyrobnn.prediction.result import Prediction
from pyrobnn.prediction.runners import Method, Runner, num_rows

__all__ = ["predict", "predict_batches"]

_BLOCK_ROWS = 8192  # rows whose accumulators are alive at a time when the inputs are one long tensor


def predict(
    model: nn.Module,
    guide: Any,
    data: Any,
    num_samples: int = 100,
    *,
    likelihood: Likelihood | None = None,
    return_draws: bool = False,
    method: Method = "auto",
    max_bytes: int = 256 * 2**20,
    seed: int | None = None,
    progress: bool = False,
) -> Prediction:
    """The posterior predictive at given inputs.

    Args:
        model: A :class:`~pyrobnn.SupervisedModel`, or any Pyro model that returns the network's outputs when
            called with inputs only (then ``likelihood`` is needed).
        guide: The posterior: a guide of this library, or draws ``{site: [K, *site shape]}`` (from
            ``MCMC.get_samples()``, say).
        data: A tensor of inputs, a tuple or dict of tensors for networks with several inputs, or a loader
            that yields inputs or pairs ``(x, y)``.
        num_samples: Number K of posterior draws.
        likelihood: What the outputs mean; the model's own if None.
        return_draws: Keep what each draw predicts, ``[K, N, …]``.
        method: ``"loop"`` writes one draw at a time into the network, ``"vmap"`` runs several at once,
            ``"auto"`` takes the loop on a CPU and vmap on a GPU, where each is faster (recurrent networks know
            the loop only).
        max_bytes: Budget for draws, activations and kept results.
        seed: Fixes the draws, and leaves torch's random state alone; None takes a seed from it.
        progress: Show a progress bar.

    Returns:
        The prediction. Modes, buffers and ``requires_grad`` of the model are as before.

    Raises:
        TypeError: If the inputs or the posterior are of the wrong kind.
        ValueError: If there are no inputs, ``num_samples`` is not positive, or the posterior lacks a site of
            the model.
    """
    batches = predict_batches(
        model,
        guide,
        data,
        num_samples,
        likelihood=likelihood,
        return_draws=return_draws,
        method=method,
        max_bytes=max_bytes,
        seed=seed,
        progress=progress,
    )
    parts: list[Prediction] = []
    kept_bytes = 0
    for part, _ in batches:
        parts.append(part)
        if not return_draws and part.draws is not None and part.noise is not None:
            kept_bytes += part.draws.nbytes + part.noise.nbytes
            if kept_bytes > max_bytes / 4:  # the budget is for all of the data, not for each batch
                for earlier in parts:
                    earlier.draws = earlier.noise = None
    if not parts:
        raise ValueError("data: it holds no inputs.")
    return parts[0] if len(parts) == 1 else _join(parts)


def predict_batches(
    model: nn.Module,
    guide: Any,
    data: Any,
    num_samples: int = 100,
    *,
    likelihood: Likelihood | None = None,
    return_draws: bool = False,
    method: Method = "auto",
    max_bytes: int = 256 * 2**20,
    seed: int | None = None,
    progress: bool = False,
) -> Iterator[tuple[Prediction, Tensor | None]]:
    """Like :func:`predict`, batch by batch: yields ``(prediction, targets or None)``, of the same K draws.

    Memory stays that of one batch, however long the data: feed streaming metrics from it. Between batches the
    model is in its own modes. Errors are those of :func:`predict`, raised at the first batch.
    """
    runner = Runner(model, likelihood, method, max_bytes)
    blocks, count = _blocks(data)
    draws = PinnedDraws(guide, num_samples, runner.draws_bytes, replayed=count != 1, seed=seed)
    for x, y in tqdm(blocks, total=count, disable=not progress, unit="batch"):
        with torch.no_grad(), denormals_as_zero(), runner.ready():
            reduction = _reduction(runner, draws, x, return_draws, max_bytes)
        yield reduction.finish(runner.likelihood, y), y


def _reduction(
    runner: Runner, draws: PinnedDraws, x: Any, return_draws: bool, max_bytes: int
) -> Probabilities | Moments:
    kind: Any = Probabilities if runner.likelihood.is_discrete else Moments
    reduction = kind(draws.num_samples, keep=return_draws, max_bytes=max_bytes)
    for chunk in draws:
        for summary in runner.summaries(chunk, x):
            reduction.add(*summary)
    return reduction


def _join(parts: list[Prediction]) -> Prediction:
    def cat(name: str, dim: int = 0) -> Tensor | None:
        tensors = [getattr(part, name) for part in parts]
        return None if any(t is None for t in tensors) else torch.cat(tensors, dim)

    joined = {name: cat(name) for name in ("mean", "total", "aleatoric", "epistemic", "variation_ratio", "targets")}
    kept = {name: cat(name, 1) for name in ("draws", "noise")}
    return Prediction(**joined, **kept, num_samples=parts[0].num_samples, likelihood=parts[0].likelihood)  # type: ignore[arg-type]


def _blocks(data: Any) -> tuple[Iterable[tuple[Any, Tensor | None]], int | None]:
    """The inputs in blocks ``(x, y or None)``, and how many blocks there are if known."""
    if isinstance(data, Tensor):
        blocks = [(block, None) for block in data.split(_BLOCK_ROWS)] if len(data) else []
        return blocks, len(blocks)
    if isinstance(data, tuple | dict):
        return ([(data, None)], 1) if num_rows(data) else ([], 0)
    if not isinstance(data, Iterable):
        raise TypeError(f"data: expected inputs (a tensor, tuple or dict) or a loader, got {type(data).__name__}.")
    return (_pair(batch) for batch in data), len(data) if isinstance(data, Sized) else None


def _pair(batch: Any) -> tuple[Any, Tensor | None]:
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return batch[0], batch[1]
    if isinstance(batch, tuple | list) and len(batch) == 1:
        return batch[0], None
    if isinstance(batch, Tensor | dict):
        return batch, None
    raise TypeError(f"data: expected a loader of inputs or of pairs (x, y), got a batch of {type(batch).__name__}.")
