"""One pass of all draws over some rows of data, from which all checks are computed."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrobnn.core import random_state
from pyrobnn.core.batches import Batch, Reader
from pyrobnn.core.trees import join_rows
from pyrobnn.diagnostics._batches import Piece, batches
from pyrobnn.diagnostics._draws import DrawsByChain, at_draw, data_sites
from pyrobnn.guides.base import Guide
from pyrobnn.model.divergence import prior_terms
from pyrobnn.model.draws import Draws
from pyrobnn.model.likelihoods import ClassLikelihood
from pyrobnn.model.substitution import unscaled_score
from pyrobnn.model.supervised import SupervisedModel

__all__ = ["Evaluation", "Rows", "evaluate", "same_random_state"]


BATCH_SIZE = 1024


class Rows:
    """The first rows of a loader, kept so that every draw sees the same.

    Attributes:
        batches: The rows as arguments of the model; in larger batches than the loader's if they may.
        targets: The targets of all rows.
        num_rows: How many there are.
        complete: Whether these are all the rows that the loader has.
    """

    def __init__(
        self,
        model: Any,
        guide: Guide,
        loader: Iterable[Any],
        max_rows: int,
        name: str,
        reader: Reader | None = None,
    ) -> None:
        device = next((p.device for p in guide.parameters()), None)
        read: list[Batch] = []
        self.num_rows, self.complete = 0, True
        for raw in loader:
            if self.num_rows >= max_rows:
                self.complete = False
                break
            read.append(Batch.read(raw, device, reader, argument=name))
            self.num_rows += read[-1].rows
        if not self.num_rows:
            raise ValueError(f"{name}: it yielded no data; the data set is empty or drop_last left nothing.")
        self.targets: Any = join_rows([batch.targets for batch in read])
        self.batches = _rebatched(model, read) if isinstance(model, SupervisedModel) else _unchanged(read)


def _rebatched(model: SupervisedModel, read: list[Batch]) -> list[Piece]:
    """The same rows in batches of ``BATCH_SIZE``, or as they are if they cannot be joined and split."""
    try:
        joined = Batch.join(read)
    except (TypeError, ValueError):
        return _unchanged(read)
    return batches(model, joined.args, joined.kwargs, BATCH_SIZE)


def _unchanged(read: list[Batch]) -> list[Piece]:
    ends = list(itertools.accumulate(batch.rows for batch in read))
    return [
        Piece(slice(end - batch.rows, end), batch.args, batch.kwargs, batch.weight)
        for batch, end in zip(read, ends, strict=True)
    ]


@dataclass
class Evaluation:
    """Log likelihoods, divergences and predictions of all draws on some rows of data.

    Attributes:
        log_likelihood: Weighted sum over rows by draw, ``[S]``, not scaled to the data set.
        by_datum: Weighted mean over draws by row, ``[n]``.
        divergence: KL to the prior by draw, ``[S]``; constant where it is exact, zero where the guide has no density.
        probs: Predictive class probabilities ``[n, ..., C]``.
        rank: Rank of the target among the predictive draws, scaled to (0, 1): uniform if calibrated, ``[n,
            ...]``.
        targets: The targets; like ``probs`` and ``rank`` without targets that were not observed.
    """

    log_likelihood: Tensor
    by_datum: Tensor
    divergence: Tensor
    probs: Tensor | None
    rank: Tensor | None
    targets: Any


def evaluate(model: Any, guide: Guide, data: Rows, num_samples: int) -> Evaluation:
    """Runs the model once per draw and batch."""
    log_likelihood, divergence = (torch.zeros(num_samples, dtype=torch.float64) for _ in range(2))
    # One entry per batch, added up over draws.
    by_datum: list[Any] = [0.0] * len(data.batches)
    probs, below, ties = list(by_datum), list(by_datum), list(by_datum)
    likelihood = model.likelihood if isinstance(model, SupervisedModel) else None
    classes = likelihood if isinstance(likelihood, ClassLikelihood) else None
    for _, draw, values in DrawsByChain([lambda start, stop: guide.sample(stop - start)], num_samples):
        for index, (rows, args, kwargs, weight) in enumerate(data.batches):
            assert isinstance(rows, slice)
            with at_draw(model, values) as run:
                outputs = model(*args, **kwargs)
                if classes is not None:
                    probs[index] = probs[index] + classes.probabilities(outputs).double() / num_samples
            for message in data_sites(run.observed):
                score = unscaled_score(message).double().reshape(rows.stop - rows.start, -1).sum(-1)
                score = score if weight is None else score * weight
                log_likelihood[draw] += score.sum().item()
                by_datum[index] = by_datum[index] + score / num_samples
                if likelihood is not None and classes is None:
                    predicted, targets = message["fn"].sample(), data.targets[rows]
                    below[index] = below[index] + (predicted < targets)
                    ties[index] = ties[index] + (predicted == targets)
            if index == 0 and guide.facts.density:
                found = guide.divergence(Draws.of(values), prior_terms(run.latent))
                divergence[draw] += float(found.total.detach())
    rank = None
    if torch.is_tensor(below[0]):
        count = torch.cat(below) + torch.cat([t * torch.rand_like(t, dtype=torch.float64) for t in ties])
        rank = (count + torch.rand_like(count)) / (num_samples + 1)
    targets, predictive = data.targets, torch.cat(probs) if torch.is_tensor(probs[0]) else None
    observed = None if likelihood is None else likelihood.observed_mask(targets)
    if observed is not None:
        targets = targets[observed]
        predictive, rank = (None if found is None else found[observed] for found in (predictive, rank))
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
