"""One pass of all draws over some rows of data: what the checks are computed from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrobnn import random_state
from pyrobnn.diagnostics._batches import Batch, batches, concatenate, move
from pyrobnn.diagnostics._draws import Chains, at_draw, data_sites, log_prob_by_datum
from pyrobnn.guides.base import Guide
from pyrobnn.likelihoods import ClassLikelihood
from pyrobnn.supervised import SupervisedModel

__all__ = ["Evaluation", "Rows", "evaluate", "same_random_state"]


BATCH_SIZE = 1024


class Rows:
    """The first rows of a loader, kept so that every draw sees the same.

    Attributes:
        batches: The rows as arguments of the model; in larger batches than the loader's if they may.
        targets: The last argument of all rows.
        complete: Whether these are all the rows that the loader has.
    """

    def __init__(self, model: Any, guide: Guide, loader: Iterable[Any], max_rows: int, name: str) -> None:
        device = next((p.device for p in guide.parameters()), None)
        read: list[Batch] = []
        self.num_rows, self.complete = 0, True
        for batch in loader:
            if not isinstance(batch, tuple | list) or len(batch) < 2:
                raise TypeError(f"{name}: expected batches (x, y), got {type(batch).__name__}.")
            if self.num_rows >= max_rows:
                self.complete = False
                break
            rows = slice(self.num_rows, self.num_rows + len(batch[-1]))
            read.append(Batch(rows, tuple(move(part, device) for part in batch), {}))
            self.num_rows = rows.stop
        if not self.num_rows:
            raise ValueError(f"{name}: it yielded no data; the data set is empty or drop_last left nothing.")
        columns = [concatenate(list(column)) for column in zip(*(batch.args for batch in read), strict=True)]
        self.targets: Tensor = columns[-1]
        self.batches = batches(model, tuple(columns), {}, BATCH_SIZE) if isinstance(model, SupervisedModel) else read


@dataclass
class Evaluation:
    """What the draws gave on the data.

    Attributes:
        log_likelihood: Sum over rows by draw, ``[S]``, unscaled.
        by_datum: Mean over draws by row, ``[n]``.
        divergence: KL to the prior by draw, ``[S]``; constant where it is exact, zero where the guide has no density.
        probs: Predictive class probabilities ``[n, ..., C]``.
        rank: Rank of the target among the predictive draws, scaled to (0, 1): uniform if calibrated, ``[n,
            ...]``.
        targets: The targets; like ``probs`` and ``rank`` without those that are no observation.
    """

    log_likelihood: Tensor
    by_datum: Tensor
    divergence: Tensor
    probs: Tensor | None
    rank: Tensor | None
    targets: Tensor


def evaluate(model: Any, guide: Guide, data: Rows, num_samples: int) -> Evaluation:
    """Runs the model once per draw and batch."""
    log_likelihood, divergence = (torch.zeros(num_samples, dtype=torch.float64) for _ in range(2))
    # One entry per batch, added up over draws.
    by_datum: list[Any] = [0.0] * len(data.batches)
    probs, below, ties = list(by_datum), list(by_datum), list(by_datum)
    likelihood = model.likelihood if isinstance(model, SupervisedModel) else None
    classes = likelihood if isinstance(likelihood, ClassLikelihood) else None
    for _, draw, values in Chains([lambda start, stop: guide.sample(stop - start)], num_samples):
        for index, (rows, args, kwargs) in enumerate(data.batches):
            targets = data.targets[rows]
            with at_draw(model, values) as run:
                outputs = model(*args, **kwargs)
                if classes is not None:
                    probs[index] = probs[index] + classes.probabilities(outputs).double() / num_samples
            for message in data_sites(run.observed):
                score = log_prob_by_datum(message).double()
                log_likelihood[draw] += score.sum().item()
                by_datum[index] = by_datum[index] + score.reshape(len(targets), -1).sum(-1) / num_samples
                if likelihood is not None and classes is None:
                    predicted = message["fn"].sample()
                    below[index] = below[index] + (predicted < targets)
                    ties[index] = ties[index] + (predicted == targets)
            if index == 0 and guide.has_density:
                for message in run.latent:
                    site = guide.sites[message["name"]]
                    divergence[draw] += guide.divergence(site, message["value"], message["fn"])[0].double().sum().item()
    rank = None
    if torch.is_tensor(below[0]):
        count = torch.cat(below) + torch.cat([t * torch.rand_like(t, dtype=torch.float64) for t in ties])
        rank = (count + torch.rand_like(count)) / (num_samples + 1)
    targets, predictive = data.targets, torch.cat(probs) if torch.is_tensor(probs[0]) else None
    known = None if likelihood is None else likelihood.observed(targets)
    if known is not None:
        targets = targets[known]
        predictive, rank = (None if found is None else found[known] for found in (predictive, rank))
    return Evaluation(
        log_likelihood=log_likelihood,
        by_datum=torch.cat(by_datum),
        divergence=divergence,
        probs=predictive,
        rank=rank,
        targets=targets,
    )


@contextlib.contextmanager
def same_random_state(*loaders: Any) -> Iterator[None]:
    """Leaves the random state of torch, numpy, Python and the loaders as it was."""
    generators = [g for loader in loaders if (g := getattr(loader, "generator", None)) is not None]
    state = random_state.read_all(generators)
    try:
        yield
    finally:
        random_state.write_all(state, generators)
