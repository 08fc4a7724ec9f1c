"""Rules over site names: which family of guides a site belongs to."""

from __future__ import annotations

import fnmatch
import glob
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from torch import nn

from pyrobnn.core.pyro_compat import full_name
from pyrobnn.guides.base import Guide
from pyrobnn.model.bayesianize import bayesian_modules

__all__ = ["Family", "Pattern", "assign", "build", "exactly"]

Pattern: TypeAlias = str | tuple[str, ...]
Family: TypeAlias = Callable[..., Guide]


def assign(
    model: Any, sites: list[str], rules: Sequence[tuple[Pattern, Family]]
) -> Iterator[tuple[Pattern, Family, list[str]]]:
    """Each rule that decides about sites, with their names."""
    _check_rules(rules)
    aliases = _aliases(model, sites)
    matched = [[site for site in sites if _matches(pattern, aliases[site])] for pattern, _ in rules]
    for (pattern, _), names in zip(rules, matched, strict=True):
        if not names:
            raise ValueError(
                f"rules: the pattern {pattern!r} matches no latent site; there are {', '.join(sites[:12])}"
                f"{', …' if len(sites) > 12 else ''}."
            )
    covered = {name for names in matched for name in names}
    if missing := [site for site in sites if site not in covered]:
        raise ValueError(
            f'rules: none covers the site {missing[0]!r}; add one, or a last ("*", MAP) for everything else.'
        )
    taken: set[str] = set()
    for (pattern, family), names in zip(rules, matched, strict=True):
        if own := [name for name in names if name not in taken]:
            yield pattern, family, own
        taken.update(names)


def _check_rules(rules: Any) -> None:
    if isinstance(rules, str | Mapping) or not isinstance(rules, Sequence):
        raise TypeError(
            f'rules: expected a list of pairs such as [("net.head.*", LowRankNormal), ("*", MAP)], got {rules!r}.'
        )
    for rule in rules:
        if not (isinstance(rule, tuple) and len(rule) == 2):
            raise TypeError(f"rules: expected pairs (pattern, family), got {rule!r}.")
        pattern, family = rule
        if not (isinstance(pattern, str) or (isinstance(pattern, tuple) and all(isinstance(p, str) for p in pattern))):
            raise TypeError(f"rules: a pattern is a glob on site names or a tuple of globs, got {pattern!r}.")
        if isinstance(family, nn.Module) or not callable(family):
            raise TypeError(
                f"rules: the family of {pattern!r} is a guide class or a functools.partial of one, got {family!r}."
            )


def build(pattern: Pattern, family: Family, model: Any, names: list[str], options: dict[str, Any]) -> Guide:
    """The guide that a family makes for some sites.

    Raises:
        TypeError: If it makes none for exactly these.
    """
    part = family(model, sites=names, **options)
    if not isinstance(part, Guide) or list(part.layout) != names:
        raise TypeError(
            f"rules: the family of {pattern!r} made no guide for the sites {', '.join(names[:8])}, but {part!r}."
        )
    return part


def _aliases(model: Any, sites: list[str]) -> dict[str, set[str]]:
    """All the names of each site: Pyro's, and those of its (possibly tied) parameter in the network."""
    names = {site: {site} for site in sites}
    for module in bayesian_modules(model) if isinstance(model, nn.Module) else []:
        for first, tied in module.parameter_names.items():
            own = full_name(module, first)
            for site in sites:
                if site == own or site.startswith(f"{own}."):  # the parameter's own or an auxiliary site
                    for name in tied:
                        names[site] |= {name + site.removeprefix(own), full_name(module, name) + site.removeprefix(own)}
    return {site: own - (set(sites) - {site}) for site, own in names.items()}


def _matches(pattern: Pattern, names: set[str]) -> bool:
    patterns = (pattern,) if isinstance(pattern, str) else pattern
    return any(fnmatch.fnmatchcase(name, each) for name in names for each in patterns)


def exactly(names: Sequence[str]) -> Pattern:
    """The pattern that matches these sites and no others."""
    return tuple(glob.escape(name) for name in names)
