r"""Bayesian optimization: a function that is expensive to evaluate is maximized, on any posterior over functions.

After each evaluation a network is fitted to all of them, and the next input is the candidate with the largest

* **expected improvement** over the best value so far b, for a Gaussian of the posterior's mean m and epistemic standard
  deviation s (noise of an evaluation is no improvement),

  .. math::  \mathrm{EI} = s\, (z\, \Phi(z) + \varphi(z)), \qquad z = (m - b) / s,

  compared by its logarithm, since it is 0 to all digits where the posterior is sure that nothing is better;

* value of **one function** (Thompson sampling), drawn at all candidates together (:func:`pyrobnn.predict_joint`): the
  network under one draw of the weights, or its linearization where the posterior predicts by that (Laplace).

Jones, Schonlau and Welch, "Efficient global optimization of expensive black-box functions", 1998; Snoek et al.,
"Scalable Bayesian optimization using deep neural networks", ICML 2015; Ament et al., "Unexpected improvements to
expected improvement for Bayesian optimization", NeurIPS 2023 (the logarithm).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from pyrobnn.core import random_state
from pyrobnn.core.arguments import check_int, check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.core.progress import progress_bar
from pyrobnn.prediction.joint import function_at
from pyrobnn.prediction.predict import predict

__all__ = ["BayesianOptimization", "Criterion", "expected_improvement", "log_expected_improvement"]

_FAR = -1e5  # here 1 + z Φ(z) / φ(z) is 1 / z² to ten digits, and its terms cancel

Criterion: TypeAlias = Literal["expected_improvement", "thompson"]

Fit: TypeAlias = Callable[[Tensor, Tensor, Any], tuple[Any, Any]]
"""``(inputs [n, d], values [n], previous (model, guide) or None) -> (model, guide)``, fitted."""


@explained
def expected_improvement(mean: Tensor, std: Tensor, best: float) -> Tensor:
    r"""How much a Gaussian value is expected to exceed ``best``, :math:`E \max(f - b, 0)`.

    Args:
        mean: Means ``[N]``.
        std: Standard deviations ``[N]``; 0 where the value is known.
        best: The best value so far.

    Returns:
        ``[N]``, in the value's units.

    Raises:
        TypeError: If ``mean`` and ``std`` are no tensors.
        ValueError: If shapes differ, or a standard deviation is negative.
    """
    return log_expected_improvement(mean, std, best).exp().to(mean.dtype)


@explained
def log_expected_improvement(mean: Tensor, std: Tensor, best: float) -> Tensor:
    r"""The logarithm of :func:`expected_improvement`, also where that is 0 to all digits.

    It is :math:`\log s + \log \varphi(z) + \log(1 + z\, \Phi(z) / \varphi(z))` for a negative z.

    Args:
        mean: Means ``[N]``.
        std: Standard deviations ``[N]``; 0 where the value is known.
        best: The best value so far.

    Returns:
        ``[N]``, in double precision; minus infinity where the value is known and no improvement.

    Raises:
        TypeError: If ``mean`` and ``std`` are no tensors.
        ValueError: If shapes differ, or a standard deviation is negative.
    """
    for name, value in (("mean", mean), ("std", std)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise TypeError(f"{name}: expected a tensor of floating-point numbers, got {value!r}.")
    if mean.shape != std.shape:
        raise ValueError(f"std: expected shape {tuple(mean.shape)}, got {tuple(std.shape)}.")
    if not bool((std >= 0).all()):
        raise ValueError("std: expected standard deviations of at least 0.")
    std, gap = std.double(), mean.double() - best
    z = gap / std.clamp_min(torch.finfo(std.dtype).tiny)
    low, near = z.clamp(_FAR, -1.0), z.clamp_min(-1.0)
    # Φ(z) itself has no digits far below 0, where torch takes it from 1 + erf.
    ratio = math.sqrt(math.pi / 2) * torch.special.erfcx(-low / math.sqrt(2))  # Φ / φ
    share = torch.where(z < _FAR, -2.0 * (-z).clamp_min(1.0).log(), (1.0 + low * ratio).log())
    far = share - 0.5 * z.square() - 0.5 * math.log(2 * math.pi)
    density = (-0.5 * near.square()).exp() / math.sqrt(2 * math.pi)
    found = std.log() + torch.where(z < -1.0, far, (near * torch.special.ndtr(near) + density).log())
    return torch.where(std > 0, found, gap.clamp_min(0.0).log())


@dataclass(frozen=True)
class Evaluation:
    """One evaluation.

    Attributes:
        x: The input ``[d]``.
        value: The function's value.
    """

    x: Tensor
    value: float


@explained
class BayesianOptimization:
    """The loop.

    Args:
        function: From an input ``[d]`` to a number, to be maximized.
        candidates: Inputs to choose from ``[N, d]``, or a function from a number of inputs to as many random ones.
        fit: ``(inputs, values, previous)`` to a fitted ``(model, guide)``; it may standardize the values in the model.
        criterion: ``"expected_improvement"`` or ``"thompson"``.
        initial: Random candidates that are evaluated first.
        num_candidates: How many are drawn in a step, where ``candidates`` is a function.
        num_samples: Posterior draws of the expected improvement.
        seed: Of the steps: each is seeded by it and its number.

    Attributes:
        evaluations: Evaluations so far.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If a number is out of its range, or ``criterion`` unknown.
    """

    def __init__(
        self,
        function: Callable[[Tensor], float],
        candidates: Tensor | Callable[[int], Tensor],
        fit: Fit,
        criterion: Criterion = "expected_improvement",
        *,
        initial: int = 5,
        num_candidates: int = 1000,
        num_samples: int = 50,
        seed: int = 0,
    ) -> None:
        for name, given in (("function", function), ("fit", fit)):
            if not callable(given):
                raise TypeError(f"{name}: expected a function, got {given!r}.")
        if criterion not in get_args(Criterion):
            raise ValueError(f"criterion: expected 'expected_improvement' or 'thompson', got {criterion!r}.")
        for name, value in (("initial", initial), ("num_candidates", num_candidates), ("num_samples", num_samples)):
            check_positive_int(name, value)
        check_int("seed", seed, 0)
        if isinstance(candidates, Tensor):
            if candidates.dim() != 2 or len(candidates) < initial:
                raise ValueError(
                    f"candidates: expected shape [N, d] with at least initial={initial} of them, got "
                    f"{tuple(candidates.shape)}."
                )
        elif not callable(candidates):
            raise TypeError(f"candidates: expected a tensor [N, d] or a function that draws them, got {candidates!r}.")
        self.function, self.candidates, self.fit, self.criterion = function, candidates, fit, criterion
        self.initial, self.num_candidates, self.num_samples, self.seed = initial, num_candidates, num_samples, seed
        self.evaluations: list[Evaluation] = []
        self._previous: tuple[Any, Any] | None = None

    @property
    def best(self) -> Evaluation:
        """The evaluation of the largest value.

        Raises:
            ValueError: If there is none yet.
        """
        if not self.evaluations:
            raise ValueError("best: nothing was evaluated yet; call run first.")
        return max(self.evaluations, key=lambda evaluation: evaluation.value)

    @explained
    def run(self, num_evaluations: int, *, progress: bool = False) -> Evaluation:
        """Goes on until there are so many evaluations.

        Args:
            num_evaluations: Number of evaluations in all, the first random ones among them.
            progress: Show a progress bar.

        Returns:
            The best.

        Raises:
            TypeError: If the function returns no number.
            ValueError: If it returns NaN or infinity.
        """
        check_positive_int("num_evaluations", num_evaluations)
        steps = range(len(self.evaluations), num_evaluations)
        for step in progress_bar(steps, shown=progress, unit="evaluation", title="Bayesian optimization"):
            with random_state.local(self.seed * 1_000_003 + step):
                x = self._next(step)
            self.evaluations.append(Evaluation(x, self._value(x)))
        return self.best

    def _next(self, step: int) -> Tensor:
        if isinstance(self.candidates, Tensor):
            known = {tuple(evaluation.x.tolist()) for evaluation in self.evaluations}
            new = [row for row in self.candidates if tuple(row.tolist()) not in known]
            if not new:
                raise ValueError(f"candidates: all {len(self.candidates)} of them were evaluated.")
            pool = torch.stack(new)
        else:
            pool = self.candidates(self.num_candidates)
        if step < self.initial:
            return pool[torch.randint(len(pool), ())]
        x = torch.stack([evaluation.x for evaluation in self.evaluations])
        y = torch.tensor([evaluation.value for evaluation in self.evaluations], dtype=x.dtype, device=x.device)
        model, guide = self._previous = self.fit(x, y, self._previous)
        if self.criterion == "thompson":
            return pool[int(function_at(model, guide, pool).flatten().argmax())]
        found = predict(model, guide, pool, self.num_samples)
        std = found.epistemic.flatten().clamp_min(0).sqrt()
        return pool[int(log_expected_improvement(found.mean.flatten(), std, float(y.max())).argmax())]

    def _value(self, x: Tensor) -> float:
        found = self.function(x)
        try:
            value = float(found)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"function: expected a number, got {found!r}.") from error
        if not math.isfinite(value):
            raise ValueError(f"function: it returned {value} at {x.tolist()}.")
        return value
