r"""The feature attack: inputs are moved until a layer sees them as it sees an image of another class.

.. math::  x_{t+1} = \Pi\Big(x_t - \alpha\, s\Big(\nabla_x \frac1K \sum_k
           \big(1 - \cos(\phi_k(x_t), \phi_k(z))\big)\Big)\Big)

with the features :math:`\phi_k` of a layer under draw k and a target image z of another class, for several z in turn.
The loss at the outputs does not enter, so that defences which flatten it (feature scattering) are not spared. An input
is done when it is predicted wrongly, and keeps the iterate of the largest margin else.

Published code of this attack ends a whole batch once any target image had success, takes its target images from the
test set, and prints the rate of success where accuracy is expected. Here each input ends by itself, target images are
given by the caller (take training images), and accuracy is left to :func:`pyrobnn.robustness.evaluate`. It uses 50
steps of 1/255 in a ball of 8/255, and 200 target images for each input.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrobnn.core.arguments import check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.robustness.attacks.balls import step_length
from pyrobnn.robustness.attacks.losses import ClassLoss, Margin, NetworkRun
from pyrobnn.robustness.attacks.margin_attack import MarginAttack
from pyrobnn.robustness.attacks.problem import Problem
from pyrobnn.robustness.attacks.target import Target, tensor_of

__all__ = ["FeatureAttack"]


@explained
@dataclass(frozen=True, eq=False)
class FeatureAttack(MarginAttack):
    """Steps that bring the features of an input near those of images of other classes.

    ::

        attack = FeatureAttack(8 / 255, layer="7", images=x_train[:1000], labels=y_train[:1000], clip=(0.0, 1.0))
        adversarial = attack(model, guide, x, y)

    Args:
        epsilon: Radius of the ball, in the inputs' units.
        norm: ``"linf"`` or ``"l2"``.
        clip: Smallest and largest input allowed.
        loss: By which iterates are compared, and what is positive for a success: ``"margin"``.
        targeted: False, the only choice: the targets are the images.
        layer: Name of the layer whose outputs are the features, as in ``net.named_modules()``.
        images: Images ``[M, ...]`` of which target images are picked at random for each input.
        labels: Their labels ``[M]``; an image is a target for inputs of other labels.
        num_targets: Number of target images for each input.
        steps: Steps towards each target image.
        step_size: Length of a step; None takes ``2.5 * epsilon / steps``.

    Raises:
        TypeError: If an option is of the wrong kind.
        ValueError: If one is out of its range.
    """

    layer: str = ""
    images: Tensor | None = None
    labels: Tensor | None = None
    num_targets: int = 20
    steps: int = 50
    step_size: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.layer, str) or not self.layer:
            raise ValueError(f"layer: expected the name of a module of the network, got {self.layer!r}.")
        if not isinstance(self.images, Tensor) or not self.images.is_floating_point() or not self.images.dim():
            raise TypeError(f"images: expected a tensor of target images, got {type(self.images).__name__}.")
        if not isinstance(self.labels, Tensor) or self.labels.shape != self.images.shape[:1]:
            raise ValueError(f"labels: expected one label for each of the {len(self.images)} images.")
        check_positive_int("num_targets", self.num_targets)
        check_positive_int("steps", self.steps)
        step_length(self.epsilon, self.steps, self.step_size)

    def search(self, problem: Problem) -> Tensor:
        """Each target image in turn, for inputs without success so far."""
        if problem.target.is_fresh:
            raise ValueError("draws: FeatureAttack compares features under the same draws; pass draws='pinned'.")
        length = step_length(self.epsilon, self.steps, self.step_size)
        rows = (problem.objective(problem.x) <= 0).nonzero().squeeze(1)
        for _ in range(self.num_targets):
            if not len(rows):
                break
            rows = self._towards(problem, rows, self._picked(problem, rows), length)
        return problem.best

    def _towards(self, problem: Problem, rows: Tensor, images: Tensor, length: float) -> Tensor:
        """Steps towards target images ``[n, ...]``; returns the rows that had no success."""
        moved = problem.x[rows].clone()
        with _FeatureDistance(problem.target, self.layer, images).recorded() as loss:
            active = torch.arange(len(rows), device=rows.device)
            for step in range(self.steps + 1):
                if step == self.steps:
                    objective = problem.objective(moved, rows[active])
                    return rows[active[objective <= 0]]
                _, gradient = problem.objective_and_gradient(moved, active, loss)
                margin = loss.margin(problem.y[rows[active]])  # type: ignore[index]
                problem.remember(moved, margin, rows[active])
                left = margin <= 0
                active, moved, gradient = active[left], moved[left], gradient[left]
                if not len(active):
                    break
                step_to = moved + length * problem.ball.steepest(gradient)
                moved = problem.ball.project(problem.x[rows[active]], step_to)
        return rows[:0]

    def _picked(self, problem: Problem, rows: Tensor) -> Tensor:
        """An image of another label for each row, of shape ``[n, ...]``."""
        assert self.images is not None and self.labels is not None and problem.y is not None
        if self.images.shape[1:] != problem.x.shape[1:]:
            raise ValueError(
                f"images: expected images of shape {list(problem.x.shape[1:])}, got {list(self.images.shape[1:])}."
            )
        labels = self.labels.to(rows.device)
        # One order of the images for all inputs, so that what an input gets does not depend on the batch.
        order = torch.randperm(len(labels), generator=problem.generator, device=rows.device)
        differs = labels[order] != problem.y[rows].unsqueeze(1)
        if not bool(differs.any(1).all()):
            raise ValueError(
                "labels: for some inputs, all target images are of their own label; pass images of others."
            )
        return self.images.to(problem.x)[order[differs.int().argmax(1)]]


class _FeatureDistance(ClassLoss):
    """Minus the mean over draws of the cosine distance to the features of target images.

    Args:
        target: The posterior predictive.
        layer: The layer.
        images: Target images, one for each input.
    """

    def __init__(self, target: Target, layer: str, images: Tensor) -> None:
        self.target, self.layer = target, layer
        self.wanted = [features.flatten(1) for features in target.features(images, layer)]
        self.kept: list[Any] = []
        self.log_probabilities: list[Tensor] = []

    @contextmanager
    def recorded(self) -> Iterator[_FeatureDistance]:
        """Keeps the layer's outputs while the block lasts."""
        handle = self.target.layer(self.layer).register_forward_hook(lambda _, __, output: self.kept.append(output))
        try:
            yield self
        finally:
            handle.remove()

    def summary(self, run: NetworkRun) -> Tensor:
        """The logarithm of the distance ``[n]``; the class probabilities of the same run are kept."""
        log_probabilities = super().summary(run).detach()
        self.log_probabilities = [*(self.log_probabilities if run.draw else []), log_probabilities]
        features = tensor_of(self.kept, self.layer).flatten(1)
        self.kept.clear()
        wanted = self.wanted[run.draw][run.rows]
        return (1 - F.cosine_similarity(features, wanted)).clamp_min(torch.finfo(features.dtype).tiny).log()

    def value(self, pooled: Tensor, targets: Tensor | None) -> Tensor:
        """Minus the distance."""
        return -pooled.exp()

    def margin(self, labels: Tensor) -> Tensor:
        """The margin of the last run ``[n]``."""
        logs = torch.stack(self.log_probabilities)
        return Margin().value(logs.logsumexp(0) - math.log(len(logs)), labels)
