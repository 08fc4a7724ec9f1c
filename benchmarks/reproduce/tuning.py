"""How a table's settings are chosen: on validation rows, with seeds of their own, as many candidates for every method.

1. Every method has one :class:`Setting`, with as many candidates as every other method of its table.
2. For each tuning seed every candidate is trained on that seed's training rows and scored on its validation rows. Both
   are taken from the training set. The test set and the unknown inputs of the table are not read.
3. The candidate with the lowest mean score over the tuning seeds is taken.
4. The table's seeds train with it and are scored on the test set. No tuning seed is one of them.

``--tune`` does all four in one command. Without it each method has the default of its setting.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean

__all__ = ["Scores", "Setting", "check_budget", "check_seeds", "choose"]

Scores = Mapping[str, Mapping[float, float]]
"""Of each method: its candidates, and their scores on the validation rows of one seed; lower is better."""


@dataclass(frozen=True)
class Setting:
    """What is chosen for a method.

    Attributes:
        name: What it is, such as ``"learning rate"``.
        default: Its value where nothing is tuned.
        candidates: Its values that are tried.
    """

    name: str
    default: float
    candidates: tuple[float, ...]


def check_budget(settings: Mapping[str, Setting]) -> None:
    """Refuses a table in which methods have different numbers of candidates.

    Raises:
        ValueError: If they have.
    """
    counts = {name: len(set(setting.candidates)) for name, setting in settings.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"settings: expected as many candidates for every method, got {counts}.")


def check_seeds(seeds: Iterable[int], tuning_seeds: Iterable[int]) -> None:
    """Refuses tuning seeds that the table reports, too.

    Raises:
        ValueError: If there are any.
    """
    if common := sorted(set(seeds) & set(tuning_seeds)):
        raise ValueError(f"tuning_seeds: expected seeds that the table does not report, got {common} in both.")


def choose(by_seed: Iterable[Scores]) -> dict[str, float]:
    """Of each method the candidate with the lowest mean score; the first of equals.

    Args:
        by_seed: The scores of each tuning seed, with the same candidates.

    Raises:
        ValueError: If there is no seed, or one lacks a candidate that another has.
    """
    all_scores = list(by_seed)
    if not all_scores:
        raise ValueError("tuning_seeds: expected one at least, got none.")
    chosen = {}
    for method, candidates in all_scores[0].items():
        found = [scores.get(method, {}) for scores in all_scores]
        if any(set(scores) != set(candidates) for scores in found):
            raise ValueError(f"scores of {method!r}: expected the same candidates for every tuning seed.")
        means = {value: fmean(scores[value] for scores in found) for value in candidates}
        chosen[method] = min(means, key=means.__getitem__)
    return chosen
