"""One pass of all draws over some rows of data, from which all checks are computed."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrobnn.core import random_state
from pyrobnn.core.batches import Batch, Reader
from pyrobnn.core.finite import weighted
from pyrobnn.diagnostics._batches import Piece, room_for
from pyrobnn.diagnostics._draws import DrawsByChain, at_draw, data_sites
from pyrobnn.diagnostics._functions import FunctionMoments
from pyrobnn.guides.base import Guide
from pyrobnn.model.divergence import prior_terms
from pyrobnn.model.draws import Draws
from pyrobnn.model.likelihoods import ClassLikelihood, Likelihood
from pyrobnn.model.substitution import unscaled_score
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.training.checks import check_targets
from pyrobnn.training.state import generators

__all__ = ["Evaluation", "Rows", "evaluate", "same_random_state"]


class Rows:
    """The first rows of a loader, kept so that every draw sees the same.

    Attributes:
        batches: The loader's batches as arguments of the model.
        targets: Their targets.
        num_rows: How many there are.
        complete: Whether these are all the rows that the loader has.
        inputs: Inputs of the batches, as the network takes them.
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
        for batch in read:
            check_targets(model, batch)
        self.targets = [batch.targets for batch in read]
        self.inputs = [batch.inputs for batch in read]
        ends = list(itertools.accumulate(batch.rows for batch in read))
        self.batches = [
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
        predictive: Weighted log predictive density by row, ``[n]``: that of the mean over draws.
        constant: The same of the best constant predictor, with the noise of the same draws; None if there is none.
        constant_outputs: Its outputs ``[1, ...]``.
        is_discrete: Whether targets are classes or counts.
        functions: What the draws predict at the first rows.
        targets: The targets; like ``probs`` and ``rank`` one for each label, ``[n]``, if batches are of several lengths
            or some targets were not observed, which are left out then.
    """

    log_likelihood: Tensor
    by_datum: Tensor
    divergence: Tensor
    probs: Tensor | None
    rank: Tensor | None
    targets: Tensor | None
    predictive: Tensor
    constant: Tensor | None
    constant_outputs: Tensor | None
    is_discrete: bool
    functions: FunctionMoments


def evaluate(model: Any, guide: Guide, data: Rows, num_samples: int) -> Evaluation:
    """Runs the model once per draw and batch."""
    log_likelihood, divergence = (torch.zeros(num_samples, dtype=torch.float64) for _ in range(2))
    # One entry per batch, added up over draws.
    by_datum: list[Any] = [0.0] * len(data.batches)
    probs, below, ties = list(by_datum), list(by_datum), list(by_datum)
    predictive, constant = list(by_datum), list(by_datum)
    likelihood = model.likelihood if isinstance(model, SupervisedModel) else None
    functions, best, is_discrete = FunctionMoments(likelihood), None, False
    classes = likelihood if isinstance(likelihood, ClassLikelihood) else None
    with room_for(model, data.batches):
        for _, draw, values in DrawsByChain([lambda start, stop: guide.sample(stop - start)], num_samples):
            for index, (rows, args, kwargs, weight) in enumerate(data.batches):
                assert isinstance(rows, slice)
                with at_draw(model, values) as run:
                    outputs = model(*args, **kwargs)
                    if likelihood is not None:
                        if draw == index == 0:
                            best = _best_constant(likelihood, outputs, data)
                            with contextlib.suppress(NotImplementedError):  # of a distribution that does not say
                                is_discrete = bool(likelihood(outputs).support.is_discrete)
                        if best is not None:
                            of_rows = best.expand(rows.stop - rows.start, *best.shape[1:])
                            score = likelihood(of_rows).log_prob(data.targets[index]).double()
                            constant[index] = _log_add(constant[index], score, draw)
                        functions.add(index, outputs)
                    if classes is not None:
                        probs[index] = probs[index] + classes.probabilities(outputs).double() / num_samples
                total = None
                for message in data_sites(run.observed):
                    score = unscaled_score(message).double().reshape(rows.stop - rows.start, -1).sum(-1)
                    total = score if total is None else total + score
                    score = weighted(score, weight)
                    log_likelihood[draw] += score.sum().item()
                    by_datum[index] = by_datum[index] + score / num_samples
                    if likelihood is not None and classes is None:
                        predicted, given = message["fn"].sample(), data.targets[index]
                        below[index] = below[index] + (predicted < given)
                        ties[index] = ties[index] + (predicted == given)
                if total is not None:
                    predictive[index] = _log_add(predictive[index], total, draw)
                if index == 0 and guide.facts.density:
                    found = guide.divergence(Draws.of(values), prior_terms(run.latent))
                    divergence[draw] += float(found.total.detach())
    rank: Tensor | None = None
    mean_probs: Tensor | None = None
    targets: Tensor | None = None
    if likelihood is not None:
        targets = _joined(data.targets, data.targets, likelihood)
        if torch.is_tensor(probs[0]):
            mean_probs = _joined(probs, data.targets, likelihood)
        if torch.is_tensor(below[0]):
            counts = [b + t * torch.rand_like(t, dtype=torch.float64) for b, t in zip(below, ties, strict=True)]
            count = _joined(counts, data.targets, likelihood)
            rank = (count + torch.rand_like(count)) / (num_samples + 1)
    return Evaluation(
        log_likelihood=log_likelihood,
        by_datum=torch.cat(by_datum),
        divergence=divergence,
        probs=mean_probs,
        rank=rank,
        targets=targets,
        predictive=_of_rows(predictive, data, num_samples),
        constant=None if best is None else _of_rows(constant, data, num_samples),
        constant_outputs=best,
        is_discrete=is_discrete,
        functions=functions,
    )


def _log_add(before: Any, score: Tensor, draw: int) -> Tensor:
    """The log of the sum of densities of the draws so far."""
    return score if draw == 0 else torch.logaddexp(before, score)


def _of_rows(logs: Sequence[Tensor], data: Rows, num_samples: int) -> Tensor:
    """Log mean densities by row, weighted, from the logs of sums over draws."""
    means = [log - math.log(num_samples) for log in logs]
    weights = [batch.weight for batch in data.batches]
    return torch.cat([weighted(m, w) for m, w in zip(means, weights, strict=True)])


def _best_constant(likelihood: Likelihood, outputs: Tensor, data: Rows) -> Tensor | None:
    """The best constant predictor of all rows; None if batches are of several lengths."""
    if len({y.shape[1:] for y in data.targets}) > 1:
        return None
    weights = [batch.weight for batch in data.batches if batch.weight is not None]
    weight = torch.cat(weights) if len(weights) == len(data.batches) else None
    return likelihood.constant_outputs(outputs.detach(), torch.cat(data.targets), weight)


def _joined(found: Sequence[Tensor], targets: Sequence[Tensor], likelihood: Likelihood) -> Tensor:
    """What was found in each batch ``[n, ...]``, in one tensor; by label where batches differ or targets are missing.

    Args:
        found: For each batch a tensor of the shape of its targets, or with further dimensions.
        targets: The targets of each batch.
        likelihood: Knows which targets were observed.
    """
    masks = [likelihood.observed_mask(y) for y in targets]
    if all(mask is None for mask in masks) and len({one.shape[1:] for one in found}) == 1:
        return torch.cat(list(found))
    return torch.cat(
        [
            one.flatten(0, y.dim() - 1) if mask is None else one[mask]
            for one, y, mask in zip(found, targets, masks, strict=True)
        ]
    )


@contextlib.contextmanager
def same_random_state(*loaders: Any) -> Iterator[None]:
    """Leaves the random state of torch, numpy, Python and the loaders as it was."""
    found = generators(*loaders)
    state = random_state.read_all(found)
    try:
        yield
    finally:
        random_state.write_all(state, found)
