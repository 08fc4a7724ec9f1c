r"""Accuracy under attack: of each attack, of the worst of all for each example, and whether gradients were masked.

An example survives if the mean prediction of K pinned draws is right at the clean input and at what every attack made
of it. The share of survivors is A_rob; it is at most the smallest accuracy under a single attack, since attacks do not
succeed on the same examples. Intervals are Wilson's, for examples drawn at random.

A defence that only hides its gradients looks robust to attacks that follow them. These signs of it are looked for
(Athalye, Carlini & Wagner, "Obfuscated gradients give a false sense of security", 2018):

* an attack without gradients breaks examples that none with gradients breaks, and is the strongest;
* one step does more harm than many;
* the loss found at a larger radius is smaller, though the smaller ball is inside;
* at a radius many times larger some examples survive.

None of them proves that gradients are masked, and their absence does not prove that they are not.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.core import random_state
from pyrobnn.core.arguments import check_int, check_positive_int, check_probability
from pyrobnn.core.batches import Reader, inputs_of
from pyrobnn.core.explanations import explained
from pyrobnn.metrics.wilson import wilson_interval
from pyrobnn.model.likelihoods import ClassLikelihood, Likelihood
from pyrobnn.prediction.predict import predict
from pyrobnn.robustness.attacks.base import Attack
from pyrobnn.robustness.attacks.target import GradientMaskingWarning

__all__ = ["Robustness", "evaluate"]

_FACTORS = (0.25, 0.5, 1.0, 2.0, 8.0)
_FEWEST = 2  # examples that a sign of masked gradients needs: one may be rounding


@dataclass(frozen=True, eq=False)
class Robustness:
    """Accuracies under attack; print it for a table.

    Attributes:
        survives: Whether the prediction of each example is right, by attack, ``"clean"`` first, ``[N]`` each.
        epsilon: Radius of each attack.
        curve: By multiple of the first gradient attack's radius: mean loss that it found, and accuracy.
        findings: Signs of masked gradients, in words.
        confidence_level: Of the intervals.
    """

    survives: Mapping[str, Tensor] = field(repr=False)
    epsilon: Mapping[str, float]
    curve: Mapping[float, tuple[float, float]]
    findings: tuple[str, ...]
    confidence_level: float

    @property
    def num_data(self) -> int:
        """Number N of examples."""
        return len(self.survives["clean"])

    @property
    def robust(self) -> Tensor:
        """Whether each example survives everything ``[N]``."""
        return torch.stack(list(self.survives.values())).all(0)

    @property
    def accuracy(self) -> dict[str, tuple[float, float, float]]:
        """Accuracy with the ends of its interval: ``"A_nat"``, each attack, and ``"A_rob"``."""
        by_name = {"A_nat" if name == "clean" else name: found for name, found in self.survives.items()}
        shares = {name: found.double().mean() for name, found in {**by_name, "A_rob": self.robust}.items()}
        count = torch.tensor(self.num_data)
        ends = {name: wilson_interval(share, count, self.confidence_level) for name, share in shares.items()}
        return {name: (float(share), float(ends[name][0]), float(ends[name][1])) for name, share in shares.items()}

    def to_dict(self) -> dict[str, Any]:
        """Numbers and words, as JSON takes them."""
        return {
            "num_data": self.num_data,
            "accuracy": {name: list(values) for name, values in self.accuracy.items()},
            "epsilon": dict(self.epsilon),
            "curve": {f"{factor:g}": list(values) for factor, values in self.curve.items()},
            "findings": list(self.findings),
            "confidence_level": self.confidence_level,
        }

    def __str__(self) -> str:
        width = max(map(len, self.accuracy))
        lines = [f"{'':{width}}  epsilon  accuracy  {self.confidence_level:.0%} interval  ({self.num_data} examples)"]
        for name, (share, low, high) in self.accuracy.items():
            radius = f"{self.epsilon[name]:7.4g}" if name in self.epsilon else " " * 7
            lines.append(f"{name:{width}}  {radius}  {share:8.3f}  [{low:.3f}, {high:.3f}]")
        if self.curve:
            lines.append(
                "loss by multiple of epsilon: " + ", ".join(f"{k:g}: {v[0]:.3g}" for k, v in self.curve.items())
            )
        lines.extend(f"! {finding}" for finding in self.findings)
        return "\n".join(lines)


@explained
def evaluate(
    model: nn.Module,
    guide: Any,
    data: Any,
    attacks: Sequence[Attack] | Mapping[str, Attack],
    epsilon: float | None = None,
    *,
    num_samples: int = 10,
    check_masking: bool = True,
    num_checked: int = 200,
    confidence_level: float = 0.95,
    likelihood: Likelihood | None = None,
    batch: Reader | None = None,
    batch_size: int | None = None,
    max_bytes: int = 256 * 2**20,
    seed: int | None = None,
) -> Robustness:
    """Accuracy of the mean prediction under attacks, and of what survives all of them.

    ::

        print(evaluate(model, guide, loader, [FGSM(0.1), PGD(0.1), SPSA(0.1)], num_samples=10, seed=0))

    Only examples that are predicted rightly are attacked. All attacks and predictions see the same K draws of the
    weights, also where :func:`pyrobnn.predict` would linearize by default.

    Args:
        model: A model with a likelihood of classes whose inputs are one tensor; its rows must not see each other.
        guide: The posterior: a guide, or draws ``{site: [K, *site shape]}``.
        data: Batches ``(x, y)``, such as a loader.
        attacks: The attacks, or the same by name.
        epsilon: Radius for all of them; None leaves each its own.
        num_samples: Number K of draws.
        check_masking: Whether the loss at several radii is computed, too, by the first attack with gradients.
        num_checked: Number of examples for that, the first ones.
        confidence_level: Of the intervals.
        likelihood: What the outputs mean; the model's own if None.
        batch: How to read what the loader yields, as for :func:`pyrobnn.predict`.
        batch_size: Inputs that are attacked at a time.
        max_bytes: Budget for draws.
        seed: Fixes the draws, and with them starts and steps of the attacks, which are the same in all batches.

    Returns:
        The accuracies, per example and with intervals, and signs of masked gradients.

    Raises:
        TypeError: If something is of the wrong kind, or the likelihood has no classes.
        ValueError: If an argument is out of its range, or there are no examples.

    Warns:
        GradientMaskingWarning: If there is a sign of masked gradients.
    """
    named = _named(attacks, epsilon)
    check_positive_int("num_checked", num_checked)
    check_probability("confidence_level", confidence_level)
    if seed is not None:
        check_int("seed", seed, 0)
    seed = random_state.fresh_seed() if seed is None else seed
    options: dict[str, Any] = {
        "num_samples": num_samples,
        "likelihood": likelihood,
        "max_bytes": max_bytes,
        "seed": seed,
    }

    def is_right(x: Tensor, y: Tensor) -> Tensor:
        prediction = predict(model, guide, x, batch_size=batch_size, predictor="weights", **options)
        if not isinstance(prediction.likelihood, ClassLikelihood) or y.dim() != 1:
            raise TypeError("model: accuracy under attack needs a likelihood of classes with one label for each input.")
        return prediction.mean.argmax(-1).cpu() == y.cpu()

    if not isinstance(data, Iterable) or isinstance(data, str | type):
        raise TypeError(f"data: expected batches (x, y), such as a loader, got {type(data).__name__}.")
    columns: dict[str, list[Tensor]] = {name: [] for name in ("clean", *named)}
    checked: list[tuple[Tensor, Tensor]] = []
    for raw in data:
        x, y = inputs_of(raw, "data", batch)
        if not isinstance(x, Tensor) or not isinstance(y, Tensor):
            raise TypeError("data: expected batches (x, y) of tensors, such as a loader yields.")
        right = is_right(x, y)
        columns["clean"].append(right)
        for name, attack in named.items():
            survives = right.clone()
            if bool(right.any()):
                moved = attack(model, guide, x[right], y[right], batch_size=batch_size, **options)
                survives[right] = is_right(moved, y[right])
            columns[name].append(survives)
        if sum(len(part) for part, _ in checked) < num_checked and bool(right.any()):
            checked.append((x[right], y[right]))
    if not columns["clean"]:
        raise ValueError("data: it holds no examples.")
    survives_by = {name: torch.cat(column) for name, column in columns.items()}
    curve: dict[float, tuple[float, float]] = {}
    first = next((attack for attack in named.values() if attack.uses_gradients and attack.keeps_best), None)
    if check_masking and first is not None and first.epsilon > 0 and checked:
        x, y = (torch.cat(column)[:num_checked] for column in zip(*checked, strict=True))
        for factor in _FACTORS:
            result = first.at(factor * first.epsilon).run(model, guide, x, y, batch_size=batch_size, **options)
            curve[factor] = (float(result.objective.mean()), float(is_right(result.inputs, y).double().mean()))
    report = Robustness(
        survives_by,
        {name: attack.epsilon for name, attack in named.items()},
        curve,
        tuple(_findings(named, survives_by, curve)),
        confidence_level,
    )
    for finding in report.findings:
        warnings.warn(f"attacks: {finding}", GradientMaskingWarning, stacklevel=3)
    return report


def _named(attacks: Any, epsilon: float | None) -> dict[str, Attack]:
    """The attacks by name, with the radius for all of them."""
    if isinstance(attacks, Mapping):
        named = dict(attacks)
    elif isinstance(attacks, Sequence) and not isinstance(attacks, str):
        named = {}
        for attack in attacks:
            label = attack.label if isinstance(attack, Attack) else str(attack)
            name, count = label, 1
            while name in named:
                count += 1
                name = f"{label} ({count})"
            named[name] = attack
    else:
        raise TypeError(f"attacks: expected a list of attacks, or attacks by name, got {type(attacks).__name__}.")
    if not named:
        raise ValueError("attacks: there are none; pass one at least, such as [PGD(0.1)].")
    for name, attack in named.items():
        if not isinstance(attack, Attack):
            raise TypeError(f"attacks: {name!r} is no attack but {type(attack).__name__}.")
        if attack.targeted:
            raise ValueError(f"attacks: {name!r} is targeted, but labels here are to be left; use an untargeted one.")
        if name in ("clean", "A_nat", "A_rob"):
            raise ValueError(f"attacks: the name {name!r} is taken; choose another.")
    return named if epsilon is None else {name: attack.at(epsilon) for name, attack in named.items()}


def _findings(
    attacks: Mapping[str, Attack], survives: Mapping[str, Tensor], curve: Mapping[float, tuple[float, float]]
) -> list[str]:
    """Signs of masked gradients."""
    found = []
    counts = {name: int(column.sum()) for name, column in survives.items()}
    white = [name for name, attack in attacks.items() if attack.uses_gradients]
    for name, attack in attacks.items():
        if not attack.uses_gradients and white and counts[name] + _FEWEST <= min(counts[w] for w in white):
            alone = torch.stack([survives[w] for w in white]).all(0) & ~survives[name]
            found.append(
                f"{name}, which uses no gradients, is stronger than all attacks that do, and alone breaks "
                f"{int(alone.sum())} examples: gradients may be masked."
            )
    steps = {name: attack.ascent_steps for name, attack in attacks.items() if attack.ascent_steps is not None}
    for one in (name for name, count in steps.items() if count == 1):
        for name in (name for name, count in steps.items() if count > 1):
            same = attacks[one].ball == attacks[name].ball
            if same and counts[one] + _FEWEST <= counts[name]:
                found.append(f"one step of {one} does more harm than {name}: gradients may be masked.")
    losses = [loss for loss, _ in curve.values()]
    if any(after < before - 1e-3 * abs(before) for before, after in itertools.pairwise(losses)):
        found.append("the loss found at a larger radius is smaller: the search fails, and gradients may be masked.")
    if curve and (left := curve[_FACTORS[-1]][1]) > 0.1:
        found.append(
            f"with {_FACTORS[-1]:g} times the radius {left:.0%} of the examples survive: gradients may be masked, or "
            "the radius is small beside the distance of the classes."
        )
    return found
