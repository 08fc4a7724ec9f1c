r"""Different posterior families for different sites.

.. math::  q(w) = \prod_j q_j(w_{S_j}), \qquad S_1, S_2, \dots \text{ a partition of the sites.}

A full treatment of the last layer, mean field in the middle, a point estimate for the rest::

    guide = GuideMap(model, [
        ("head.*", LowRankNormal),
        ("trunk.*", functools.partial(MeanField, init_scale=1e-3)),
        ("*", Map),
    ])

Rules read like those of :mod:`pyrobnn.priors`: in order, the first pattern that matches a site decides. The objective
adds up over parts, of which each is a guide of its own for its sites.
"""

from __future__ import annotations

import contextlib
import fnmatch
import glob
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from pyrobnn._pyro import full_name
from pyrobnn.bayesianize import bayesian_modules
from pyrobnn.guides.base import Guide, Site
from pyrobnn.guides.draws import Draws
from pyrobnn.substitution import Substitution

__all__ = ["GuideMap", "exactly"]

Pattern = str | tuple[str, ...]
Family = Callable[..., Guide]


class GuideMap(Guide):
    """A guide put together from others, each for the sites that a pattern names.

    A part that says how many draws a training step takes (an ensemble) says so for all; there can be one such part.
    Maps may be nested. Draws of different parts are independent of each other.

    Args:
        model: The Pyro model.
        rules: Ordered ``(pattern, family)``. A pattern is a glob on site names, or a tuple of globs; sites of a
            converted network are also known by the parameter's name in the network, as in prior rules. A family is
            called as ``family(model, only=names)``, with ``example`` if there is one: a guide class, or one with
            options (:func:`functools.partial`). Rules whose sites all went to earlier ones make no part.
        example: Arguments of one run, for models whose sites are not known without data.
        only: Names of the sites that the guide is for; all of them if None.

    Attributes:
        parts: The guides, in the order of the rules.
        has_density: Whether all parts have one.

    Raises:
        TypeError: If a rule is no pair of pattern and family, or a family makes no guide.
        ValueError: If a pattern matches no site, a site is matched by no pattern, or two parts both want to say how
            many draws a step takes.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        rules: Sequence[tuple[Pattern, Family]],
        *,
        example: tuple[Any, ...] | None = None,
        only: Collection[str] | None = None,
    ) -> None:
        super().__init__(model, example=example, only=only)
        options = {} if example is None else {"example": example}
        self._owner: dict[str, int] = {}
        leading = []
        for pattern, family, names in _assign(model, list(self.sites), rules):
            part = _build(pattern, family, model, names, options)
            index = len(set(self._owner.values()))
            self._owner.update(dict.fromkeys(names, index))
            self.add_module(f"{index}", part)
            if _leads(part):
                leading.append(index)
        if len(leading) > 1:
            first, second = (f"{type(self.parts[i]).__name__} of {self._names(i)[0]!r}" for i in leading[:2])
            raise ValueError(
                f"rules: {first} and {second} both say how many draws a step takes; give their sites to one of them, "
                "by one rule with a tuple of patterns."
            )
        self._leader: int | None = leading[0] if leading else None
        self.has_density = all(part.has_density for part in self.parts)  # type: ignore[misc]
        self.divergence_name = " and ".join(dict.fromkeys(p.divergence_name for p in self.parts))  # type: ignore[misc]

    @property
    def parts(self) -> list[Any]:
        """The guides, read past Pyro's attribute hooks."""
        return list(self._modules.values())

    def part(self, site: str) -> Any:
        """The guide of a site.

        Raises:
            ValueError: If there is no such site.
        """
        if site not in self._owner:
            raise ValueError(
                f"site: there is no latent site {site!r}; the model has {', '.join(list(self.sites)[:8])}."
            )
        return self.parts[self._owner[site]]

    def config(self) -> dict[str, Any]:
        """The sites, class and constructor arguments of each part."""
        return {
            "rules": [
                {"sites": self._names(index), "class": _class_name(part), "config": part.config()}
                for index, part in enumerate(self.parts)
            ]
        }

    def scale_parameters(self) -> list[nn.Parameter]:
        """The (log) scales of all parts."""
        return [p for part in self.parts if hasattr(part, "scale_parameters") for p in part.scale_parameters()]

    # -------------------------------------------------------------------------------------- distribution

    def factor(self, site: Site) -> dist.Distribution:
        """The site's distribution in the part it belongs to."""
        part = self.part(site.name)
        return part.factor(part.sites[site.name])

    def marginals(self, site: Site) -> dist.Distribution:
        """The site's elements in the part it belongs to."""
        part = self.part(site.name)
        return part.marginals(part.sites[site.name])

    def draw(self) -> dict[str, Tensor]:
        """One draw of each part."""
        return self._in_order(part.draw() for part in self.parts)

    def sample(self, num_samples: int) -> Draws:
        """Draws ``{site: [num_samples, *site shape]}``, with the buffers that a part's draws bring along."""
        return self._joined([part.sample(num_samples) for part in self.parts])

    def sample_blocks(self, sizes: Iterable[int]) -> Iterator[Draws]:
        """Blocks of draws; those of each part belong together."""
        sizes = list(sizes)
        blocks = zip(*(part.sample_blocks(sizes) for part in self.parts), strict=True)
        return (self._joined(block) for block in blocks)

    def _joined(self, draws: Iterable[Mapping[str, Tensor]]) -> Draws:
        """Draws of all parts, with the buffers that they bring."""
        draws = list(draws)
        buffers = {name: value for part in draws for name, value in Draws.of(part).buffers.items()}
        return Draws(self._in_order(draws), buffers)

    def log_prob(self, draws: Mapping[str, Tensor]) -> Tensor:
        """Log density of draws ``{site: [K, *site shape]}``, shape ``[K]``.

        Raises:
            NotImplementedError: If a part has none.
        """
        terms = [part.log_prob({name: draws[name] for name in part.sites}) for part in self.parts]
        return torch.stack(terms).sum(0)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Pyro's view: auxiliary sites of the parts first, then one sample statement per site in the model's order."""
        self.announce_parameters()
        nodes: dict[str, Any] = {}
        for part in self.parts:
            with poutine.block():  # Pyro's objectives want the model's order, so each part is run by itself first
                trace = poutine.trace(part).get_trace(*args, **kwargs)
            drawn = ((name, trace.nodes[name]) for name in trace.stochastic_nodes)
            nodes.update({name: node for name, node in drawn if not site_is_subsample(node)})
        with Substitution({name: node["value"] for name, node in nodes.items()}):
            for name, node in nodes.items():
                if name not in self.sites:
                    pyro.sample(name, node["fn"], infer=node["infer"])
            return {name: self._sample_site(site, nodes[name]["fn"]) for name, site in self.sites.items()}

    # ---------------------------------------------------------------------------------------- divergence

    def divergence(self, site: Site, value: Tensor, prior: dist.Distribution) -> tuple[Tensor, bool]:
        """The site's term in the part it belongs to."""
        part = self.part(site.name)
        return part.divergence(part.sites[site.name], value, prior)

    def shared_divergence(self) -> Tensor | float:
        """The sum of the parts' own."""
        return sum((part.shared_divergence() for part in self.parts), start=0.0)

    # ------------------------------------------------------------------------------------- training steps

    def simple_parts(self) -> list[Any]:
        """The parts, and the parts of parts."""
        return [simple for part in self.parts for simple in part.simple_parts()]

    def begin_step(self) -> None:
        """Passed on to the parts."""
        for part in self.parts:
            part.begin_step()

    def check_num_steps(self, num_steps: int) -> None:
        """Passed on to the parts."""
        for part in self.parts:
            part.check_num_steps(num_steps)

    def num_particles(self, asked: int) -> int:
        """As the part says that wants to; else what is asked."""
        return asked if self._leader is None else self.parts[self._leader].num_particles(asked)

    def particle(self, model: Callable[..., Any], index: int) -> contextlib.AbstractContextManager[Any]:
        """The surroundings of the part that sets the number of draws; else those of any guide."""
        return (
            super().particle(model, index) if self._leader is None else self.parts[self._leader].particle(model, index)
        )

    def write_draw(self) -> tuple[dict[str, Tensor], Tensor | float]:
        """One draw of each part, as leaf tensors where it writes in place, and what parts count on flat vectors."""
        drawn, covered = [], []
        for part in self.parts:
            values, counted = part.write_draw() if hasattr(part, "write_draw") else (part.draw(), 0.0)
            drawn.append(values)
            covered.append(counted)
        return self._in_order(drawn), sum(covered, start=0.0)

    @property
    def flat_prior(self) -> _FlatPriors | None:
        """The fixed Normal priors whose divergence the parts count on flat vectors, None if there are none."""
        priors = [part.flat_prior for part in self.parts if getattr(part, "flat_prior", None) is not None]
        return _FlatPriors(priors) if priors else None

    def discard_counted(self) -> None:
        """Takes what the parts counted out of the coming :meth:`pull_back`."""
        for part in self.parts:
            if hasattr(part, "discard_counted"):
                part.discard_counted()

    def pull_back(self, weight: float) -> None:
        """Hands the leaves' gradients to the parts' parameters."""
        for part in self.parts:
            if hasattr(part, "pull_back"):
                part.pull_back(weight)

    def reset_noise(self) -> None:
        """Forgets what is left of antithetic groups."""
        for part in self.parts:
            if hasattr(part, "reset_noise"):
                part.reset_noise()

    def _in_order(self, pieces: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """All parts' values in the model's order."""
        values = {name: value for piece in pieces for name, value in piece.items()}
        return {name: values[name] for name in self.sites}

    def _names(self, index: int) -> list[str]:
        return [name for name, owner in self._owner.items() if owner == index]


class _FlatPriors:
    """The flat priors of several parts, as one."""

    def __init__(self, priors: Sequence[Any]) -> None:
        self.priors = priors
        self.names = frozenset().union(*(prior.names for prior in priors))

    def matches(self, priors: Mapping[str, dist.Distribution]) -> bool:
        """Whether a run of the model used exactly these."""
        return all(prior.matches(priors) for prior in self.priors)


def _leads(part: Guide) -> bool:
    """Whether the part has its own mind about the draws of a training step."""
    if isinstance(part, GuideMap):
        return part._leader is not None
    return (type(part).num_particles, type(part).particle) != (Guide.num_particles, Guide.particle)


def _class_name(part: Guide) -> str:
    """The bare name of a family of this package, the full name of any other."""
    kind = type(part)
    return kind.__name__ if kind.__module__.startswith(f"{__package__}.") else f"{kind.__module__}.{kind.__qualname__}"


# ------------------------------------------------------------------------------------------------------ rules


def _assign(
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
            f'rules: none covers the site {missing[0]!r}; add one, or a last ("*", Map) for everything else.'
        )
    taken: set[str] = set()
    for (pattern, family), names in zip(rules, matched, strict=True):
        if own := [name for name in names if name not in taken]:
            yield pattern, family, own
        taken.update(names)


def _check_rules(rules: Any) -> None:
    if isinstance(rules, str | Mapping) or not isinstance(rules, Sequence):
        raise TypeError(
            f'rules: expected a list of pairs such as [("net.head.*", LowRankNormal), ("*", Map)], got {rules!r}.'
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


def _build(pattern: Pattern, family: Family, model: Any, names: list[str], options: dict[str, Any]) -> Guide:
    part = family(model, only=names, **options)
    if not isinstance(part, Guide) or list(part.sites) != names:
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
