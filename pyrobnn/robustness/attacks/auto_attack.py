r"""AutoAttack for posteriors: a fixed suite of attacks, and the worst case of each input.

``"standard"`` is APGD-CE, APGD-DLR toward all other classes (APGD-T), FAB-T and Square, each on the inputs that the
ones before left right; ``"rand"`` is APGD-CE and APGD-DLR, for predictions that are random. Croce & Hein, "Reliable
evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks", 2020, whose options are the
defaults.

A posterior predictive of K draws is one of two things. With *pinned* draws it is a fixed function: the standard suite
applies as it is, gradients are those of the mean of K probabilities. With *fresh* draws each prediction is another
function: the suite is ``"rand"``, its gradients average over K new draws a step (expectation over transformation,
Athalye, Carlini & Wagner 2018). Both depend on the draws; :func:`auto_attack` repeats them with others, and counts an
input as robust if it is right in all repeats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pyrobnn.core import random_state
from pyrobnn.core.arguments import check_int, check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.prediction import predict
from pyrobnn.robustness.attacks.apgd import APGD, APGDTargeted
from pyrobnn.robustness.attacks.balls import Clip, Norm
from pyrobnn.robustness.attacks.base import Attack
from pyrobnn.robustness.attacks.dlr import DLR
from pyrobnn.robustness.attacks.fab import FAB
from pyrobnn.robustness.attacks.fgsm import FGSM
from pyrobnn.robustness.attacks.margin_attack import MarginAttack
from pyrobnn.robustness.attacks.problem import Problem
from pyrobnn.robustness.attacks.square import Square
from pyrobnn.robustness.attacks.target import stream

__all__ = ["AutoAttack", "AutoAttackResult", "auto_attack"]

Version = Literal["standard", "rand"]


@explained
@dataclass(frozen=True)
class AutoAttack(MarginAttack):
    """The suite as one attack: the inputs with the largest margin of all attacks.

    ::

        adversarial = AutoAttack(epsilon=8 / 255, clip=(0.0, 1.0))(model, guide, x, y)

    Args:
        epsilon: Radius of the ball, in the inputs' units.
        norm: ``"linf"`` or ``"l2"``.
        clip: Smallest and largest input allowed.
        loss: ``"margin"``, by which results are compared.
        targeted: False; the suite has targets of its own.
        version: ``"standard"`` or ``"rand"``.
        steps: Steps of each attack with gradients.
        queries: Queries of Square.

    Raises:
        TypeError: If an option is of the wrong kind; at the call, if the likelihood has no classes.
        ValueError: If one is out of its range.
    """

    version: Version = "standard"
    steps: int = 100
    queries: int = 5000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.version not in ("standard", "rand"):
            raise ValueError(f"version: expected 'standard' or 'rand', got {self.version!r}.")
        check_positive_int("steps", self.steps)
        check_positive_int("queries", self.queries)

    def attacks(self, num_classes: int) -> list[Attack]:
        """The suite, in order. Losses that compare more classes than there are become margins.

        Args:
            num_classes: Number of classes.
        """
        ball: tuple[float, Norm, Clip] = (self.epsilon, self.norm, self.clip)
        first = APGD(*ball, "cross_entropy", steps=self.steps)
        untargeted = APGD(*ball, DLR() if num_classes > 2 else "margin", steps=self.steps)
        if self.version == "rand":
            return [first, untargeted]
        second = APGDTargeted(*ball, steps=self.steps) if num_classes > 3 else untargeted
        return [first, second, FAB(*ball, steps=self.steps), Square(*ball, steps=self.queries)]

    def search(self, problem: Problem) -> Tensor:
        """The best of all attacks."""
        assert problem.y is not None
        classes = problem.target.log_probabilities(problem.x).shape[-1]
        right = problem.objective(problem.x) <= 0
        for attack in self.attacks(classes):
            rows = right.nonzero().squeeze(1)
            if not len(rows):
                break
            own = problem.part(rows, attack.objective_loss(), problem.y[rows])
            last = attack.search(own)
            if last is not own.best:
                own.objective(last)
            right[rows] = problem.objective(own.best, rows) <= 0
        return problem.best


@dataclass(frozen=True, eq=False)
class AutoAttackResult:
    """What a suite left right.

    Attributes:
        inputs: The inputs of the first success of each row, clean ones where there is none, ``[N, ...]``.
        robust: Rows that are right in all repeats, clean and attacked, ``[N]``.
        natural_accuracy: Share of rows that are right before any attack, in all repeats.
        accuracies: Share of rows that are right after each attack, by its label, the ones before included.
    """

    inputs: Tensor
    robust: Tensor
    natural_accuracy: float
    accuracies: dict[str, float]

    @property
    def robust_accuracy(self) -> float:
        """Share of rows that no attack of any repeat changed."""
        return float(self.robust.float().mean())

    def __str__(self) -> str:
        rows = {"clean": self.natural_accuracy, **self.accuracies}
        width = max(map(len, rows))
        return "\n".join(f"{name:<{width}}  {share:7.2%}" for name, share in rows.items())


@explained
def auto_attack(
    model: nn.Module,
    guide: Any,
    x: Tensor,
    y: Tensor,
    epsilon: float,
    *,
    norm: Norm = "linf",
    clip: Clip = None,
    version: Version = "standard",
    repeats: int = 1,
    steps: int = 100,
    queries: int = 5000,
    num_samples: int = 10,
    seed: int | None = None,
    **options: Any,
) -> AutoAttackResult:
    """Runs the suite, ``repeats`` times with other draws, on what is still right.

    Args:
        model: The model, with a likelihood of classes.
        guide: The posterior: a guide, or draws ``{site: [K, *site shape]}``.
        x: Inputs ``[N, ...]``.
        y: Labels ``[N]``.
        epsilon: Radius of the ball, in the inputs' units.
        norm: ``"linf"`` or ``"l2"``.
        clip: Smallest and largest input allowed, such as ``(0.0, 1.0)``.
        version: ``"standard"`` attacks the mean of pinned draws, ``"rand"`` fresh draws at each step.
        repeats: How often, each time with draws of its own: the worst case counts. Give several where predictions are
            made with other draws than those attacked.
        steps: Steps of each attack with gradients.
        queries: Queries of Square.
        num_samples: Number K of draws of a prediction.
        seed: Fixes all random numbers.
        options: Further options of :meth:`Attack.run`, such as ``batch_size``.

    Returns:
        Accuracies after each attack, and the rows that stayed right.

    Raises:
        TypeError: If an argument is of the wrong kind, or the likelihood has no classes.
        ValueError: If one is out of its range.
    """
    check_positive_int("repeats", repeats)
    if seed is not None:
        check_int("seed", seed, 0)
    suite = AutoAttack(epsilon, norm, clip, version=version, steps=steps, queries=queries)
    first = random_state.fresh_seed() if seed is None else seed
    given = {"num_samples": num_samples, **options}
    robust = torch.ones(len(x), dtype=torch.bool, device=x.device)
    seeds = [stream(first, 5, repeat) for repeat in range(repeats)]
    clean = FGSM(0.0, norm, clip, loss="margin")  # of radius 0: the margin of inputs as they are
    for own in seeds:
        robust &= clean.run(model, guide, x, y, seed=own, **given).objective <= 0
    natural, found, accuracies = float(robust.float().mean()), x.clone(), dict[str, float]()
    draws: dict[str, Any] = {"draws": "fresh"} if version == "rand" else {}
    classes = predict(model, guide, x[:1], 1, seed=first, likelihood=options.get("likelihood")).mean.shape[-1]
    for own in seeds:
        for attack in suite.attacks(classes):
            rows = robust.nonzero().squeeze(1)
            if len(rows):
                moved = attack(model, guide, x[rows], y[rows], seed=own, **given, **draws)
                margin = clean.run(model, guide, moved, y[rows], seed=own, **given).objective
                beaten = rows[margin > 0]
                found[beaten], robust[beaten] = moved[margin > 0], False
            accuracies[attack.label] = float(robust.float().mean())
    return AutoAttackResult(found, robust, natural, accuracies)
