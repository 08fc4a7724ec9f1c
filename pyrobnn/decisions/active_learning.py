"""Active learning: a loop that has the most informative inputs of a pool labeled, and learns from them.

Each round trains on the labels so far, scores, and asks for more. What was asked is written to a JSON file after each
round, so that a loop that was stopped goes on where it was: labels are all its state, since each round has a seed of
its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from pyrobnn.core import random_state
from pyrobnn.core.arguments import check_int, check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.core.files import check_path
from pyrobnn.core.progress import progress_bar
from pyrobnn.decisions.acquisition import Acquisition, Pool
from pyrobnn.model.likelihoods.predictions import ClassPrediction
from pyrobnn.prediction.predict import predict

__all__ = ["ActiveLearning", "ActiveLearningRound", "Evaluate", "Oracle", "Train"]

Train: TypeAlias = Callable[[Tensor, Tensor, Any], tuple[Any, Any]]
"""``(inputs, labels, previous (model, guide) or None) -> (model, guide)``, fitted."""

Oracle: TypeAlias = Tensor | Callable[[Tensor], Tensor]
"""Labels of the whole pool ``[N]``, or a function from numbers of inputs ``[n]`` to their labels."""

Evaluate: TypeAlias = Callable[[Any, Any], Mapping[str, float]]
"""``(model, guide) -> scores``; on data that no round trains on."""


@dataclass(frozen=True)
class ActiveLearningRound:
    """What a round did.

    Attributes:
        num_labels: Labels that were learned from.
        scores: What ``evaluate`` returned.
        asked: The inputs whose labels were asked for afterward.
        labels: Their labels.
    """

    num_labels: int
    scores: dict[str, float]
    asked: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)


@explained
class ActiveLearning:
    """The loop.

    ::

        def train(x, y, previous):
            model = pb.SupervisedModel(network(), pb.likelihoods.Categorical(), num_data=len(x))
            guide = pb.guides.MCDropout(model)
            pb.fit(model, guide, DataLoader(TensorDataset(x, y), 64, shuffle=True), progress=False)
            return model, guide

        loop = ActiveLearning(train, pool, labels, BALD(), initial=[3, 14, 15], evaluate=evaluate, log="bald.json")
        for round in loop.run(15):
            print(round.num_labels, round.scores)

    Args:
        train: ``(inputs, labels, previous)`` to a fitted ``(model, guide)``; ``previous`` is what it returned in the
            last round, to start from, or None. It learns from scratch if it ignores that, which is the usual protocol.
        inputs: The pool ``[N, ...]``.
        oracle: Labels ``[N]``, or a function from numbers of inputs to labels, asked only for those chosen.
        acquisition: How inputs are chosen (:mod:`pyrobnn.decisions.acquisition`).
        initial: Numbers of the inputs that are labeled first.
        query_size: Labels asked for in a round.
        evaluate: ``(model, guide)`` to scores.
        num_samples: Number K of posterior draws.
        targeted: Inputs that one cares about ``[M, ...]``, for ``EPIG``.
        candidates: How many inputs of the pool are looked at in a round, a random choice; None looks at all.
        seed: Of the rounds: each is seeded by it and its number.
        log: A JSON file that is written after each round, and read at the start if it is there.

    Attributes:
        rounds: Rounds so far.
        labeled: Numbers of the inputs that have labels, in the order asked.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If ``initial`` holds a number twice or one that is no input, a number is out of its range, or the
            log is that of another loop.
    """

    def __init__(
        self,
        train: Train,
        inputs: Tensor,
        oracle: Oracle,
        acquisition: Acquisition,
        *,
        initial: list[int] | Tensor,
        query_size: int = 10,
        evaluate: Evaluate | None = None,
        num_samples: int = 50,
        targeted: Tensor | None = None,
        candidates: int | None = None,
        seed: int = 0,
        log: str | Path | None = None,
    ) -> None:
        if not callable(train):
            raise TypeError(f"train: expected a function (inputs, labels, previous), got {train!r}.")
        if not isinstance(inputs, Tensor) or not inputs.dim() or not len(inputs):
            raise TypeError("inputs: expected a tensor [N, ...] of at least one input.")
        if not isinstance(acquisition, Acquisition):
            raise TypeError(f"acquisition: expected one such as BALD(), got {acquisition!r}.")
        if isinstance(oracle, Tensor) and oracle.shape != inputs.shape[:1]:
            raise ValueError(f"oracle: expected a label for each of {len(inputs)} inputs, got {tuple(oracle.shape)}.")
        for name, value in (("query_size", query_size), ("num_samples", num_samples)):
            check_positive_int(name, value)
        if candidates is not None:
            check_int("candidates", candidates, query_size)
        check_int("seed", seed, 0)
        numbers = [int(number) for number in initial]
        if not numbers or len(set(numbers)) < len(numbers) or min(numbers) < 0 or max(numbers) >= len(inputs):
            raise ValueError(
                f"initial: expected different numbers of inputs from 0 to {len(inputs) - 1}, got {numbers}."
            )
        self.train, self.inputs, self.oracle, self.acquisition = train, inputs, oracle, acquisition
        self.query_size, self.evaluate, self.num_samples, self.targeted = query_size, evaluate, num_samples, targeted
        self.candidates, self.seed = candidates, seed
        self.log = None if log is None else check_path("log", log)
        self.initial = numbers
        self.rounds: list[ActiveLearningRound] = []
        self.labeled: list[int] = []
        self._labels: list[int] = []
        self._previous: tuple[Any, Any] | None = None
        if self.log is not None and self.log.exists():
            self._read(self.log)
        else:
            self._add(numbers, self._asked(numbers))

    @explained
    def run(self, num_rounds: int, *, progress: bool = False) -> list[ActiveLearningRound]:
        """Goes on until there are ``num_rounds`` rounds; each trains, scores and asks.

        Args:
            num_rounds: Number of rounds in all, those of the log among them.
            progress: Show a progress bar.

        Returns:
            All rounds.

        Raises:
            ValueError: If the pool holds too few inputs for so many rounds.
        """
        check_positive_int("num_rounds", num_rounds)
        needed = len(self.initial) + num_rounds * self.query_size
        if needed > len(self.inputs):
            raise ValueError(
                f"num_rounds: {num_rounds} rounds of {self.query_size} labels and {len(self.initial)} at first make "
                f"{needed}, and the pool has {len(self.inputs)} inputs; take fewer."
            )
        for _ in progress_bar(
            range(len(self.rounds), num_rounds), shown=progress, unit="round", title="active learning"
        ):
            self._round()
        return self.rounds

    def curve(self, score: str) -> tuple[list[int], list[float]]:
        """Numbers of labels, and the score that was reached with them.

        Raises:
            KeyError: If no round has such a score.
        """
        return [r.num_labels for r in self.rounds], [r.scores[score] for r in self.rounds]

    def labels_needed(self, score: str, at_least: float) -> int | None:
        """The fewest labels with which the score was reached, or None.

        Raises:
            KeyError: If no round has such a score.
        """
        numbers, values = self.curve(score)
        return next((n for n, value in zip(numbers, values, strict=True) if value >= at_least), None)

    def _round(self) -> None:
        with random_state.local(self.seed * 1_000_003 + len(self.rounds)):
            y = torch.tensor(self._labels, device=self.inputs.device)
            model, guide = self._previous = self.train(self.inputs[self.labeled], y, self._previous)
            scores = {} if self.evaluate is None else {k: float(v) for k, v in self.evaluate(model, guide).items()}
            asked = self._choose(model, guide)
        labels = self._asked(asked)
        self.rounds.append(ActiveLearningRound(len(self.labeled), scores, asked, labels))
        self._add(asked, labels)
        if self.log is not None:
            self._write(self.log)

    def _choose(self, model: Any, guide: Any) -> list[int]:
        free = torch.ones(len(self.inputs), dtype=torch.bool)
        free[self.labeled] = False
        numbers = free.nonzero().squeeze(1)
        if self.candidates is not None and len(numbers) > self.candidates:
            numbers = numbers[torch.randperm(len(numbers))[: self.candidates]]
        inputs = self.inputs[numbers]
        draw_seed = int(torch.randint(2**31, ()))

        def predicted(x: Tensor) -> ClassPrediction:
            found = predict(model, guide, x, self.num_samples, return_draws=True, seed=draw_seed)  # the same draws
            if not isinstance(found, ClassPrediction):
                raise TypeError("train: active learning chooses among classes; the model predicts something else.")
            return found

        if self.acquisition.needs_posterior:
            prediction = predicted(inputs)
            targeted = None if self.targeted is None else predicted(self.targeted)
        else:
            prediction, targeted = None, None
        pool = Pool(prediction, inputs, self.inputs[self.labeled], targeted)  # type: ignore[arg-type]
        return numbers[self.acquisition.select(pool, self.query_size).cpu()].tolist()

    def _asked(self, numbers: list[int]) -> list[int]:
        index = torch.tensor(numbers)
        found = self.oracle[index] if isinstance(self.oracle, Tensor) else self.oracle(index)
        if not isinstance(found, Tensor) or found.shape != index.shape or found.is_floating_point():
            raise TypeError(f"oracle: expected an integer label for each of the {len(numbers)} inputs asked for.")
        return found.tolist()

    def _add(self, numbers: list[int], labels: list[int]) -> None:
        self.labeled += numbers
        self._labels += labels

    def _settings(self) -> dict[str, Any]:
        return {
            "pool": len(self.inputs),
            "acquisition": type(self.acquisition).__name__,
            "initial": self.initial,
            "query_size": self.query_size,
            "seed": self.seed,
        }

    def _write(self, path: Path) -> None:
        first = self._labels[: len(self.initial)]
        written = self._settings() | {"initial_labels": first, "rounds": [asdict(r) for r in self.rounds]}
        partial = path.with_name(path.name + ".part")
        partial.write_text(json.dumps(written))
        partial.replace(path)  # a stop in between leaves the last round's file

    def _read(self, path: Path) -> None:
        try:
            found = json.loads(path.read_text())
            rounds = [ActiveLearningRound(**entry) for entry in found["rounds"]]
            first = found["initial_labels"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"log: {path} is no log of active learning, or it is damaged ({error!r}).") from error
        for name, value in self._settings().items():
            if found.get(name) != value:
                raise ValueError(f"log: {path} is that of another loop: {name} was {found.get(name)!r}, now {value!r}.")
        self._add(self.initial, first)
        for entry in rounds:
            self.rounds.append(entry)
            self._add(entry.asked, entry.labels)
