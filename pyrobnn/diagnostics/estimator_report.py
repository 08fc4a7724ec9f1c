"""Gradient variance and step time of each estimator, on the user's own model and batch."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pyrobnn.core import random_state
from pyrobnn.core.explanations import explained
from pyrobnn.core.moments import RunningMoments
from pyrobnn.estimators.base import Estimator, EstimatorSpec
from pyrobnn.estimators.coverage import coverage
from pyrobnn.guides.base import Guide, check_guide
from pyrobnn.model.bayesianize import bayesian_modules, frozen_buffers
from pyrobnn.objectives import ELBO

__all__ = ["EstimatorReport", "report"]

NAMES = ("shared", "per_group", "flipout", "local_reparameterization", "per_example", "path_derivative")


@dataclass(frozen=True)
class EstimatorReport:
    """What :func:`report` measured.

    Attributes:
        rows: For each estimator its ``name``; ``variance``, the trace of its gradient's covariance over the draws at
            this batch, relative to the first estimator's; ``seconds``, the median of a forward and backward pass;
            ``reached``, the share of the networks' random weights whose layers it handles.
        num_samples: Gradients drawn for each.
    """

    rows: list[dict[str, Any]]
    num_samples: int

    def __str__(self) -> str:
        first = self.rows[0]["seconds"]
        lines = [f"{'estimator':26s} {'variance':>9s} {'time':>7s} {'ms':>9s} {'reached':>8s}"]
        lines += [
            f"{row['name']:26s} {row['variance']:9.3f} {row['seconds'] / first:7.2f} {1e3 * row['seconds']:9.2f} "
            f"{row['reached']:8.0%}"
            for row in self.rows
        ]
        return "\n".join([*lines, f"relative to {self.rows[0]['name']!r}; {self.num_samples} gradients each"])

    __repr__ = __str__


@explained
def report(
    model: nn.Module,
    guide: Guide,
    batch: tuple[Any, ...],
    estimators: Sequence[Estimator | str] = NAMES,
    *,
    num_samples: int = 100,
    seed: int = 0,
) -> EstimatorReport:
    """Compares estimators by the variance and the cost of the ELBO's gradient.

    Args:
        model: The model.
        guide: Its guide.
        batch: Arguments of the model, ``(x, y)``.
        estimators: Which to compare; those that the guide cannot take, or that the network rules out by using a weight
            several times, are left out.
        num_samples: Gradients to draw for each; the variance has a relative standard error of about
            ``sqrt(2 / num_samples)`` per direction, much less over many weights.
        seed: Seeds the draws; the random state comes back afterward.

    Returns:
        The table. Parameters, gradients and buffers are as before.

    Raises:
        ValueError: If there are fewer than two draws, or no estimator suits the guide.
    """
    check_guide(model, guide)
    if num_samples < 2:
        raise ValueError(f"num_samples: a variance needs at least 2, got {num_samples}.")
    rows: list[dict[str, Any]] = []
    device = next(guide.parameters()).device
    with random_state.seeded(seed, device), frozen_buffers(model), _own_gradients(guide, model) as parameters:
        for estimator in estimators:
            try:
                variance, seconds = _measure(model, guide, batch, estimator, num_samples, parameters)
            except TypeError:
                continue
            name = estimator if isinstance(estimator, str) else repr(estimator)
            rows.append({"name": name, "variance": variance, "seconds": seconds, "reached": _reached(model, estimator)})
    if not rows:
        raise ValueError(f"estimators: none of them suits {type(guide).__name__}.")
    base = rows[0]["variance"] or float("nan")
    for row in rows:
        row["variance"] /= base
    return EstimatorReport(rows, num_samples)


def _measure(
    model: nn.Module,
    guide: Guide,
    batch: tuple[Any, ...],
    estimator: EstimatorSpec,
    num_samples: int,
    parameters: list[nn.Parameter],
) -> tuple[float, float]:
    """Total variance of the gradient, and the median time of one."""
    elbo = ELBO(estimator=estimator)
    moments, times = RunningMoments(torch.float64), []
    for _ in range(num_samples):
        for parameter in parameters:
            parameter.grad = None
        with frozen_buffers(guide):  # the clock of a guide's schedules, so that all gradients are of one step
            started = time.perf_counter()
            elbo.backward(model, guide, batch)
            times.append(time.perf_counter() - started)
        moments.add(torch.cat([p.grad.reshape(-1) for p in parameters if p.grad is not None]).unsqueeze(0))
    return float(moments.variance().sum()), sorted(times)[num_samples // 2]


def _reached(model: nn.Module, estimator: Estimator | str) -> float:
    """Share of the networks' random weights that the estimator draws itself."""
    kinds = coverage(model, estimator)
    if not kinds:
        return 0.0
    sizes = [m.network.get_parameter(site).numel() for m in bayesian_modules(model) for site in m.parameter_names]
    is_shared = isinstance(estimator, str) and estimator == "shared"
    hit = [is_shared or kind != "shared" for kind in kinds.values()]
    return sum(size for size, h in zip(sizes, hit, strict=True) if h) / sum(sizes)


@contextmanager
def _own_gradients(*modules: nn.Module) -> Iterator[list[nn.Parameter]]:
    """Trainable parameters, whose gradients are restored after the block."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    kept = [None if p.grad is None else p.grad.clone() for p in parameters]  # it may be a buffer of the guide
    try:
        yield parameters
    finally:
        for parameter, gradient in zip(parameters, kept, strict=True):
            parameter.grad = gradient
