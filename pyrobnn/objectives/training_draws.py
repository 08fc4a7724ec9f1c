"""The step of a guide under the estimators that an objective was given, and which rows each draw sees."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

from pyrobnn.estimators import Estimator, by_site
from pyrobnn.estimators.coverage import tied_beyond
from pyrobnn.estimators.per_group import split_batch
from pyrobnn.guides.base import Guide
from pyrobnn.steps import PathDerivativeStep, Step

__all__ = ["make_step", "shares"]

Rules = list[tuple[str, Estimator]]


def make_step(guide: Guide, model: Any, rules: Rules, *, sequential: bool) -> tuple[Step, int]:
    """The guide's training step under estimators, and the number of parts that each batch is cut into.

    Args:
        guide: The guide.
        model: The model.
        rules: Ordered ``(pattern, estimator)``; empty for the shared draw.
        sequential: Whether each draw is differentiated before the next one is made.

    Raises:
        TypeError: If an estimator needs independent Gaussians, or densities by site, and the guide has none.
        ValueError: If a pattern matches no site.
    """
    if not rules:
        return guide.step(model, sequential=sequential), 1
    first = rules[0][1]
    if first.path_derivative:
        return _path_derivative_step(guide, model, first), 1
    facts = guide.facts
    if first.groups > 1 and not facts.gaussian:
        return guide.step(model, sequential=sequential), first.groups
    chosen = {name: e for name, e in by_site(rules, list(guide.layout)).items() if e.handles}
    for pattern, estimator in rules:
        named = [name for name in guide.layout if fnmatchcase(name, pattern) and chosen.get(name) is estimator]
        if named and not facts.gaussian.intersection(named):
            raise TypeError(
                f"estimator: {estimator.name!r} draws at the layers, which needs independent Gaussian weights "
                f"(MeanField); {type(guide.part(named[0])).__name__} has none for {named[0]!r}. 'per_group' works with "
                "every guide."
            )
    shared = tied_beyond(model, chosen)
    chosen = {name: e for name, e in chosen.items() if name in facts.gaussian and name not in shared}
    return guide.step(model, chosen, sequential=sequential), 1


def shares(args: tuple[Any, ...], count: int, groups: int) -> list[tuple[tuple[Any, ...], float]]:
    """The batch of each draw and its weight in the mean.

    Several members of a mixture and as many groups are paired: each member sees its own share of the batch, or all of
    one that has too few rows, such as the last of an epoch.

    Args:
        args: Arguments of the model.
        count: Number of draws.
        groups: Number of parts that the batch is cut into.

    Raises:
        ValueError: If there are several draws and another number of groups.
    """
    if groups == 1:
        return [(args, 1.0 / count)] * count
    is_paired = count == groups
    parts = split_batch(args, groups, whole_if_few=is_paired)
    if is_paired:
        return parts
    if count > 1:
        raise ValueError(
            f"groups: a step has {count} draws and {groups} groups; make them equal for one draw in each group, or "
            "either of them 1."
        )
    return parts


def _path_derivative_step(guide: Guide, model: Any, estimator: Estimator) -> Step:
    facts = guide.facts
    if not facts.has_density or any(len(group) > 1 for group in facts.independent):
        raise TypeError(
            f"estimator: {estimator.name!r} needs a density of each site by itself; {type(guide).__name__} has none."
        )
    return PathDerivativeStep(guide.step(model, sequential=False), guide.marginal)
