r"""Markov chains as a posterior: C chains of S draws each, :math:`q(w) = \frac{1}{CS} \sum_{c,s} \delta(w - w_{cs})`.

What :func:`pyrobnn.sample` returns. It is an ensemble whose members are indexed by chain and position, so
prediction, checkpoints and diagnostics treat it as a deep ensemble; diagnostics that compare chains use
``facts.chain_shape``. Draws are stored in blocks ``[k, C, P]`` of unconstrained values, which may be memory-mapped
files.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.core.arguments import check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.estimators.base import Estimator
from pyrobnn.guides.ensembles.base import Ensemble
from pyrobnn.model.draws import Draws
from pyrobnn.model.facts import Facts
from pyrobnn.model.initialization import initial_values
from pyrobnn.steps.base import Step

__all__ = ["Chains"]


@explained
class Chains(Ensemble):
    """C chains of S draws, all of equal weight.

    Member ``c * S + s`` is draw s of chain c. Networks' buffers are those that the model had when the guide was built.

    Args:
        model: The Pyro model.
        num_chains: Number C of chains.
        num_samples: Draws S of each chain.
        draws: Blocks ``[k, C, P]`` of unconstrained flat draws, S in all, in the order of the layout; None makes
            zeros, for a state dict to be loaded.
        stats: Statistics of each draw by name, ``[C, S]``, in the draws' precision; only their names if they are
            loaded from a state dict.
        block_sizes: Lengths of the blocks where ``draws`` is None; one block if None.
        example: Arguments of one run, for models whose sites are not known without data.
        sites: Names of the sites that the guide is for; all of them if None.

    Attributes:
        num_chains: Number of chains.
        num_samples: Draws of each.

    Raises:
        ValueError: If sizes do not fit each other or the model.
    """

    sizes = ("num_chains", "num_samples")

    def __init__(
        self,
        model: Callable[..., Any],
        num_chains: int,
        num_samples: int,
        draws: Sequence[Tensor] | None = None,
        *,
        stats: Mapping[str, Tensor] | Collection[str] = (),
        block_sizes: Sequence[int] | None = None,
        example: tuple[Any, ...] | None = None,
        sites: Collection[str] | None = None,
    ) -> None:
        check_positive_int("num_chains", num_chains)
        check_positive_int("num_samples", num_samples)
        super().__init__(model, num_chains * num_samples, example=example, sites=sites)
        self.num_chains, self.num_samples = num_chains, num_samples
        like = self.layout.join(initial_values(model, self.layout, "prior_mean"))
        if draws is None:
            sizes = [num_samples] if block_sizes is None else list(block_sizes)
            if sum(sizes) != num_samples:
                raise ValueError(f"block_sizes: they add up to {sum(sizes)}, expected num_samples={num_samples}.")
            draws = [like.new_zeros(size, num_chains, self.layout.size) for size in sizes]
        self._ends = list(accumulate(len(block) for block in draws))
        for index, block in enumerate(draws):
            if block.shape[1:] != (num_chains, self.layout.size):
                raise ValueError(
                    f"draws: block {index} has shape {tuple(block.shape)}, expected (k, {num_chains}, "
                    f"{self.layout.size}): draws, chains, and the flat vector of the model's sites."
                )
            self.register_parameter(f"block_{index}", nn.Parameter(block))
        if not draws or self._ends[-1] != num_samples:
            raise ValueError(
                f"draws: the blocks hold {sum(map(len, draws))} draws, expected num_samples={num_samples}."
            )
        if isinstance(stats, str | bytes):
            raise TypeError(f"stats: expected statistics by name, or a list of names, got {stats!r}.")
        self.stat_names = list(stats)
        for name in self.stat_names:
            value = stats[name] if isinstance(stats, Mapping) else like.new_zeros(num_chains, num_samples)
            if value.shape != (num_chains, num_samples):
                raise ValueError(
                    f"stats: {name!r} has shape {tuple(value.shape)}, expected {(num_chains, num_samples)}."
                )
            self.register_buffer(f"stat_{name}", value.to(like))

    @classmethod
    @explained
    def from_draws(cls, model: Callable[..., Any], draws: Mapping[str, Tensor], **options: Any) -> Chains:
        """Chains of given site values, as ``MCMC.get_samples(group_by_chain=True)`` returns them.

        Args:
            model: The model.
            draws: ``{site: [C, S, *site shape]}``.
            **options: ``stats``, ``example`` and ``sites`` of the constructor.

        Raises:
            ValueError: If a site is missing or unknown, or draws do not fit.
        """
        sizes = {tuple(value.shape[:2]) for value in draws.values()}
        if len(sizes) != 1 or len(size := sizes.pop()) != 2:
            raise ValueError(
                f"draws: expected as many chains and draws of each site, got {{"
                f"{', '.join(f'{n!r}: {tuple(v.shape[:2])}' for n, v in draws.items())}}}."
            )
        num_chains, num_samples = size
        guide = cls(model, num_chains, num_samples, **options)
        if missing := [name for name in guide.layout if name not in draws]:
            raise ValueError(f"draws: they lack the site {missing[0]!r}; name the sites you have with sites=.")
        if unknown := [name for name in draws if name not in guide.layout]:
            raise ValueError(f"draws: there is no latent site {unknown[0]!r}; the model has {', '.join(guide.layout)}.")
        pieces = {}
        for site in guide.layout.values():
            value = draws[site.name].detach()
            if value.shape[2:] != site.shape:
                raise ValueError(
                    f"draws: those of the site {site.name!r} have shape {tuple(value.shape[2:])}, expected "
                    f"{tuple(site.shape)}."
                )
            pieces[site.name] = site.unconstrain(value)
        flat = guide.layout.join(pieces)
        guide.register_parameter("block_0", nn.Parameter(flat.transpose(0, 1).contiguous()))
        return guide

    def config(self) -> dict[str, Any]:
        """Constructor arguments; a checkpoint is loaded into memory whole."""
        sizes = [len(block) for block in self.blocks]
        return {
            "num_chains": self.num_chains,
            "num_samples": self.num_samples,
            "stats": self.stat_names,
            "block_sizes": sizes,
        }

    @property
    def blocks(self) -> list[nn.Parameter]:
        """The draws as they are kept, ``[k, C, P]`` each, read past Pyro's attribute hooks."""
        return [self._parameters[f"block_{index}"] for index in range(len(self._ends))]  # type: ignore[misc]

    @property
    def stats(self) -> dict[str, Tensor]:
        """Statistics that the sampler recorded for each draw, ``{name: [C, S]}``."""
        return {name: self.get_buffer(f"stat_{name}") for name in self.stat_names}

    def sample_stats(self) -> dict[str, Tensor]:
        """Statistics that the sampler recorded for each draw, ``{name: [C, S]}``."""
        return self.stats

    @property
    def facts(self) -> Facts:
        """Equally likely points in chains."""
        return replace(super().facts, chain_shape=(self.num_chains, self.num_samples))

    def step(
        self,
        model: Callable[..., Any] | None,
        estimators: Mapping[str, Estimator] | None = None,
        *,
        sequential: bool = True,
        vectorize: bool = True,
    ) -> Step:
        """Refused: draws of a chain are not trained.

        Raises:
            TypeError: Always.
        """
        raise TypeError(
            "guide: Chains are draws of a finished run, which training would move; make new ones with pyrobnn.sample, "
            "or start an ensemble there with DeltaMixture.from_draws."
        )

    # --------------------------------------------------------------------------------------------------- draws

    def flat_draws(self, members: Tensor) -> Tensor:
        """Copies of unconstrained flat vectors ``[K, P]`` of members ``[K]``; no gradients."""
        members = members.to("cpu")
        chains, places = members // self.num_samples, members % self.num_samples
        blocks = [block.detach() for block in self.blocks]
        if len(blocks) == 1:
            return blocks[0][places.to(blocks[0].device), chains.to(blocks[0].device)]
        rows = blocks[0].new_empty(len(members), self.layout.size)
        for block, end in zip(blocks, self._ends, strict=True):
            inside = ((places >= end - len(block)) & (places < end)).nonzero().squeeze(-1)
            local = places[inside] - (end - len(block))
            rows[inside.to(rows.device)] = block[local.to(rows.device), chains[inside].to(rows.device)]
        return rows

    def stacked(self, members: Tensor) -> dict[str, Tensor]:
        """Copies of members ``[K]``."""
        return self.layout.constrain(self.layout.split(self.flat_draws(members)))

    def member(self, index: int) -> dict[str, Tensor]:
        """The sites' values in one draw, with gradients."""
        chain, place = divmod(index, self.num_samples)
        block = next(number for number, end in enumerate(self._ends) if place < end)
        own = self.blocks[block]
        return self.layout.constrain(self.layout.split(self.scaled(own[place - self._ends[block] + len(own), chain])))

    def by_chain(self, sites: Sequence[str] | None = None) -> dict[str, Tensor]:
        """All draws ``{site: [C, S, *site shape]}``, of the named sites.

        Raises:
            KeyError: If there is no such site.
        """
        pieces = {}
        for name in self.layout if sites is None else sites:
            site = self.layout[name]
            flat = torch.cat([block.detach()[..., site.window] for block in self.blocks])
            lead = (self.num_chains, self.num_samples)
            pieces[name] = flat.transpose(0, 1).reshape(lead + site.unconstrained_shape)
        return self.layout.constrain(pieces)

    @torch.no_grad()
    def chain_draws(self, chain: int, places: Tensor | None = None) -> Draws:
        """Draws of one chain, ``{site: [k, *site shape]}`` with their buffers, at ``places [k]`` (None: all)."""
        members = chain * self.num_samples + (torch.arange(self.num_samples) if places is None else places)
        return self.atoms(members)

    def starting_point(self) -> Draws:
        """The last draw of the first chain, where a guide of one point starts."""
        return self.chain_draws(0, torch.tensor([self.num_samples - 1])).at(0)

    def sample(self, num_samples: int) -> Draws:
        """Draws spread evenly over chains and over each chain, none twice as long as there are enough.

        Returns:
            ``{site: [num_samples, *site shape]}``, chain after chain. Each draw by itself is uniform over all; with
            ``num_samples = C * S`` it is each of them once.
        """
        return next(iter(self.sample_blocks([num_samples])))

    def sample_blocks(self, sizes: Iterable[int], *, reuse_memory: bool = False) -> Iterator[Draws]:
        """:meth:`sample` in pieces, which together are as evenly spread as one call."""
        sizes = list(sizes)
        total, offset = sum(sizes), float(torch.rand((), dtype=torch.float64, device="cpu"))
        chosen = (
            ((torch.arange(total) + offset) * (self.num_members / total)).long() if total else torch.zeros(0).long()
        )
        chosen.clamp_(max=self.num_members - 1)  # rounding
        for members in chosen.split(sizes):
            with torch.no_grad():  # entered here, since a generator must not leave it on for the caller
                block = self.atoms(members)
            yield block

    def extra_repr(self) -> str:
        """Sizes."""
        return f"{super().extra_repr()}, num_chains={self.num_chains}, num_samples={self.num_samples}"
