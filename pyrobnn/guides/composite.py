r"""Different posterior families for different sites.

.. math::  q(w) = \prod_j q_j(w_{S_j}), \qquad S_1, S_2, \dots \text{ a partition of the sites.}

A full treatment of the last layer, mean field in the middle, a point estimate for the rest::

    guide = Composite(model, [
        ("head.*", LowRankNormal),
        ("trunk.*", functools.partial(MeanField, init_scale=1e-3)),
        ("*", MAP),
    ])

Rules are those of :mod:`pyrobnn.priors`: the first pattern that matches a site decides. Each part is a guide of its
sites; divergences of parts add up.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial, reduce
from operator import add
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from pyrobnn.core.explanations import explained
from pyrobnn.estimators.base import Estimator
from pyrobnn.guides.base import Guide, sample_site
from pyrobnn.guides.components.site_rules import Family, Pattern, assign, build, exactly
from pyrobnn.model.divergence import Divergence, PriorTerm
from pyrobnn.model.draws import Draws
from pyrobnn.model.facts import Facts
from pyrobnn.model.linearization import Linearization
from pyrobnn.model.substitution import SubstituteMessenger
from pyrobnn.steps.base import Step
from pyrobnn.steps.composite import CompositeStep

__all__ = ["Composite"]


@explained
class Composite(Guide):
    """A guide composed of others, each for the sites that a pattern names.

    A part that fixes the number of draws of a training step (an ensemble) fixes it for all parts; there can be one such
    part. Composites may be nested. Draws of different parts are independent of each other.

    Args:
        model: The Pyro model.
        rules: Ordered ``(pattern, family)``. A pattern is a glob on site names, or a tuple of globs; sites of a
            converted network are also known by the parameter's name in the network, as in prior rules. A family is
            called as ``family(model, sites=names)``, with ``example`` if there is one: a guide class, or one with
            options (:func:`functools.partial`). A rule makes no part if earlier rules match all its sites.
        example: Arguments of one run, for models whose sites are not known without data.
        sites: Names of the sites that the guide is for; all of them if None.

    Attributes:
        parts: The guides, in the order of the rules.

    Raises:
        TypeError: If a rule is no pair of pattern and family, or a family makes no guide.
        ValueError: If a pattern matches no site, a site is matched by no pattern, or two parts both fix the number
            of draws of a training step.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        rules: Sequence[tuple[Pattern, Family]],
        *,
        example: tuple[Any, ...] | None = None,
        sites: Collection[str] | None = None,
    ) -> None:
        super().__init__(model, example=example, sites=sites)
        options = {} if example is None else {"example": example}
        self._owner: dict[str, int] = {}
        for pattern, family, names in assign(model, list(self.layout), rules):
            part = build(pattern, family, model, names, options)
            index = len(set(self._owner.values()))
            self._owner.update(dict.fromkeys(names, index))
            self.add_module(f"{index}", part)
        mixtures = [i for i, part in enumerate(self.parts) if part.facts.num_training_draws is not None]
        if len(mixtures) > 1:
            first, second = (f"{type(self.parts[i]).__name__} of {self._names(i)[0]!r}" for i in mixtures[:2])
            raise ValueError(
                f"rules: {first} and {second} both fix the number of draws of a training step; give their sites to "
                "one of them, by one rule with a tuple of patterns."
            )

    @property
    def parts(self) -> list[Any]:
        """The guides, read past Pyro's attribute hooks."""
        return list(self._modules.values())

    def part(self, name: str) -> Any:
        """The part that a site belongs to.

        Raises:
            ValueError: If there is no such site.
        """
        super().part(name)
        return self.parts[self._owner[name]]

    def parts_of(self, kind: type[Guide]) -> list[Any]:
        """The parts of a kind, and those of parts."""
        return [found for part in self.parts for found in part.parts_of(kind)]

    def config(self) -> dict[str, Any]:
        """The sites, class and constructor arguments of each part."""
        return {
            "rules": [
                {"sites": self._names(index), "class": _class_name(part), "config": part.config()}
                for index, part in enumerate(self.parts)
            ]
        }

    def linearization(self) -> Linearization | None:
        """That of the only part; parts beside others are drawn from."""
        return self.parts[0].linearization() if len(self.parts) == 1 else None

    def scale_parameters(self) -> list[nn.Parameter]:
        """The (log) scales of all parts."""
        return [parameter for part in self.parts for parameter in part.scale_parameters()]

    # -------------------------------------------------------------------------------------- distribution

    @property
    def facts(self) -> Facts:
        """The facts of the product of the parts."""
        return Facts.united([part.facts for part in self.parts])

    def marginal(self, name: str) -> dist.Distribution:
        """The site's distribution in the part it belongs to."""
        return self.part(name).marginal(name)

    def elementwise_marginal(self, name: str) -> dist.Distribution:
        """The site's elements in the part it belongs to."""
        return self.part(name).elementwise_marginal(name)

    def starting_point(self) -> Draws:
        """Those of the parts, where other guides start."""
        return Draws.merged([part.starting_point() for part in self.parts], self.layout)

    def rsample(self, noise: Tensor | None = None) -> Draws:
        """One draw of each part."""
        sizes = [part.facts.noise_size or 0 for part in self.parts]
        pieces = [None] * len(sizes) if noise is None else list(noise.split(sizes))
        return self._joined([part.rsample(piece) for part, piece in zip(self.parts, pieces, strict=True)])

    def sample(self, num_samples: int) -> Draws:
        """Draws ``{site: [num_samples, *site shape]}``, with the buffers of a part's draws."""
        return self._joined([part.sample(num_samples) for part in self.parts])

    def sample_blocks(self, sizes: Iterable[int], *, reuse_memory: bool = False) -> Iterator[Draws]:
        """Draws in blocks of the given sizes, from those of each part."""
        sizes = list(sizes)
        blocks = zip(*(part.sample_blocks(sizes, reuse_memory=reuse_memory) for part in self.parts), strict=True)
        return (self._joined(block) for block in blocks)

    def atoms(self, members: Tensor) -> Draws:
        """Points of the part that is a mixture, with draws of the others."""
        count = len(members)
        is_mixture = [part.facts.num_training_draws is not None for part in self.parts]
        pairs = zip(self.parts, is_mixture, strict=True)
        return self._joined([part.atoms(members) if mixes else part.sample(count) for part, mixes in pairs])

    @classmethod
    def family(cls, config: Mapping[str, Any], nested: Callable[[Mapping[str, Any]], Any]) -> Callable[..., Guide]:
        """What builds the composite, with parts for exactly the sites they had."""
        return partial(cls, rules=[(exactly(rule["sites"]), nested(rule)) for rule in config["rules"]])

    def _joined(self, drawn: Iterable[Draws]) -> Draws:
        drawn = list(drawn)
        return Draws.merged(drawn, self.layout, drawn)

    def log_prob(self, draws: Mapping[str, Tensor]) -> Tensor:
        """Log density of draws ``{site: [K, *site shape]}`` of whole groups of sites, shape ``[K]``.

        Raises:
            NotImplementedError: If a part has none.
        """
        own = [{name: draws[name] for name in part.layout if name in draws} for part in self.parts]
        return torch.stack([part.log_prob(of) for part, of in zip(self.parts, own, strict=True) if of]).sum(0)

    def write_buffers(self, component: Tensor | None, buffers: Mapping[str, Tensor]) -> None:
        """Sets those of the part that is a mixture."""
        for part in self.parts:
            if part.facts.num_training_draws is not None:
                part.write_buffers(component, buffers)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The guide as Pyro calls it: auxiliary sites of the parts, then the latent sites in the model's order."""
        self.announce_parameters()
        nodes: dict[str, Any] = {}
        for part in self.parts:
            with poutine.block():  # Pyro's objectives need the model's order, so each part is run by itself first
                trace = poutine.trace(part).get_trace(*args, **kwargs)
            drawn = ((name, trace.nodes[name]) for name in trace.stochastic_nodes)
            nodes.update({name: node for name, node in drawn if not site_is_subsample(node)})
        with SubstituteMessenger({name: node["value"] for name, node in nodes.items()}):
            for name, node in nodes.items():
                if name not in self.layout:
                    pyro.sample(name, node["fn"], infer=node["infer"])
            return {name: sample_site(site, nodes[name]["fn"]) for name, site in self.layout.items()}

    # ---------------------------------------------------------------------------------------- training

    def divergence(self, draws: Draws, priors: Mapping[str, PriorTerm]) -> Divergence:
        """The sum over parts."""
        own = draws.record or [Draws({n: draws[n] for n in part.layout}) for part in self.parts]
        found = []
        for part, drawn in zip(self.parts, own, strict=True):
            if counted := {name: priors[name] for name in part.layout if name in priors}:
                found.append(part.divergence(drawn, counted))
        return reduce(add, found)

    def step(
        self,
        model: Callable[..., Any] | None,
        estimators: Mapping[str, Estimator] | None = None,
        *,
        sequential: bool = True,
        vectorize: bool = True,
    ) -> Step:
        """One step of the steps of all parts; members of an ensemble run one after another."""
        chosen = estimators or {}
        steps = [
            part.step(
                model,
                {name: estimator for name, estimator in chosen.items() if name in part.layout},
                sequential=sequential,
                vectorize=False,
            )
            for part in self.parts
        ]
        return CompositeStep(self.layout, steps, [part.facts.noise_size for part in self.parts])

    def _names(self, index: int) -> list[str]:
        return [name for name, owner in self._owner.items() if owner == index]


def _class_name(part: Guide) -> str:
    """The bare name of a family of this package, the full name of any other."""
    kind = type(part)
    return kind.__name__ if kind.__module__.startswith(f"{__package__}.") else f"{kind.__module__}.{kind.__qualname__}"
