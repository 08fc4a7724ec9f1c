"""Posterior draws as chains that are read one draw at a time.

A guide's draws are independent, so they are one chain; several guides (say, fitted from several seeds) are
several chains; an MCMC run, Pyro's or ours, keeps its own. Draws are taken in blocks, so that memory does not grow with
their number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from pyro import poutine
from pyro.infer import MCMC
from torch import Tensor, nn

from pyrobnn.core.arguments import check_positive_int
from pyrobnn.core.finite import weighted
from pyrobnn.diagnostics._batches import Piece, room_for
from pyrobnn.guides.base import Guide, check_guide
from pyrobnn.model.agreement import check_draws
from pyrobnn.model.bayesianize import evaluating, frozen_buffers
from pyrobnn.model.declarations import latent_sampler
from pyrobnn.model.draws import Draws, installed_buffers
from pyrobnn.model.substitution import SubstituteMessenger, unscaled_score

__all__ = [
    "DrawsByChain",
    "Posterior",
    "at_draw",
    "check_sites",
    "data_sites",
    "evenly",
    "log_prob_sum",
    "prior_chain",
    "read_chains",
    "undisturbed",
]

OneChain: TypeAlias = Guide | Mapping[str, Tensor] | Callable[..., Any]
Posterior: TypeAlias = OneChain | MCMC | Sequence[OneChain]
Source: TypeAlias = Callable[[int, int], Mapping[str, Tensor]]
"""Draws ``start`` to ``stop`` of one chain, ``{site: [stop - start, *site shape]}``."""

BLOCK_BYTES = 2**26
DEFAULT_DRAWS = 500


class DrawsByChain:
    """Chains of posterior draws; iterating yields ``(chain, draw, {site: value})``.

    Args:
        sources: One per chain.
        num_samples: Draws per chain.
    """

    def __init__(self, sources: Sequence[Source], num_samples: int) -> None:
        self.sources = sources
        self.num_samples = num_samples

    @property
    def shape(self) -> tuple[int, int]:
        """Number of chains, and of draws in each."""
        return len(self.sources), self.num_samples

    def first(self) -> dict[str, Tensor]:
        """One draw, to see sites and shapes."""
        return Draws.of(self.sources[0](0, 1)).at(0)

    def __iter__(self) -> Iterator[tuple[int, int, dict[str, Tensor]]]:
        for chain, source in enumerate(self.sources):
            start, block = 0, 1
            while start < self.num_samples:
                stop = min(start + block, self.num_samples)
                draws = Draws.of(source(start, stop))
                for index in range(stop - start):
                    yield chain, start + index, draws.at(index)
                size = sum(value[0].nbytes for value in draws.values())
                start, block = stop, max(1, BLOCK_BYTES // max(size, 1))


def read_chains(
    model: Any,
    posterior: Posterior,
    num_samples: int | None,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
) -> DrawsByChain:
    """The draws of a posterior of any kind.

    Args:
        model: The model that it is to be a posterior of.
        posterior: A guide, draws ``{site: [K, *site shape]}``, a list of either (one chain each), or a finished
            :class:`~pyro.infer.MCMC`.
        num_samples: Draws per chain. None takes 500 of a guide and all draws there are else.
        args: Arguments for guides that are not of this library, which are run once per draw.
        kwargs: Keyword arguments for them.

    Raises:
        TypeError: If the posterior is of another kind.
        ValueError: If ``num_samples`` is not positive or more than there are, a list is empty, the run has no
            draws, chains have different lengths, or the posterior is another model's.
    """
    if num_samples is not None:
        check_positive_int("num_samples", num_samples)
    if isinstance(posterior, MCMC):
        samples = posterior.get_samples(group_by_chain=True)
        if not samples:
            raise ValueError("posterior: this MCMC has no draws yet; call its run() first.")
        num_chains = len(next(iter(samples.values())))
        check_draws(model, {name: value[0] for name, value in samples.items()}, argument="posterior")
        return _stored([{n: v[c] for n, v in samples.items()} for c in range(num_chains)], num_samples)
    if isinstance(posterior, Guide):
        check_guide(model, posterior, argument="posterior")
    if isinstance(posterior, Guide) and (shape := posterior.facts.chain_shape) is not None:
        num_chains, length = shape
        chosen = evenly(length, num_samples)
        return DrawsByChain([_chain(posterior, index, chosen) for index in range(num_chains)], len(chosen))
    several: list[Any] = list(posterior) if isinstance(posterior, list | tuple | nn.ModuleList) else [posterior]
    if not several:
        raise ValueError("posterior: expected at least one guide, got an empty list.")
    if all(isinstance(chain, Mapping) and chain for chain in several):
        for chain in several:
            check_draws(model, chain, argument="posterior")
        return _stored(several, num_samples)
    for chain in several:
        if isinstance(chain, MCMC) or not callable(chain):
            raise TypeError(
                "posterior: expected a guide, draws {site: [K, …]}, a list of either, or a finished "
                f"pyro.infer.MCMC, got {type(chain).__name__}."
            )
        if isinstance(chain, Guide):
            check_guide(model, chain, argument="posterior")
    sources = [_sampler(g) if isinstance(g, Guide) else _caller(g, args, kwargs or {}) for g in several]
    return DrawsByChain(sources, num_samples or DEFAULT_DRAWS)


def _sampler(guide: Guide) -> Source:
    return lambda start, stop: guide.sample(stop - start)


def _caller(guide: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Source:
    """Draws of a guide that is not of this library, by running it."""

    def source(start: int, stop: int) -> dict[str, Tensor]:
        draws = []
        for _ in range(start, stop):
            with SubstituteMessenger({}) as run:
                guide(*args, **kwargs)
            draws.append({m["name"]: m["value"] for m in run.latent if not m["infer"].get("is_auxiliary")})
        return {name: torch.stack([draw[name] for draw in draws]) for name in draws[0]}

    return source


def _stored(chains: Sequence[Mapping[str, Tensor]], num_samples: int | None) -> DrawsByChain:
    """Draws that exist already, evenly thinned."""
    lengths = {len(value) for draws in chains for value in draws.values()}
    if len(lengths) != 1:
        raise ValueError(f"posterior: expected equally many draws of all sites and chains, got {sorted(lengths)}.")
    kept = evenly(lengths.pop(), num_samples)

    def source(draws: Mapping[str, Tensor]) -> Source:
        return lambda start, stop: Draws.of(draws).at(kept[start:stop])

    return DrawsByChain([source(draws) for draws in chains], len(kept))


def _chain(guide: Guide, index: int, kept: Tensor) -> Source:
    return lambda start, stop: guide.chain_draws(index, kept[start:stop])


def evenly(available: int, num_samples: int | None) -> Tensor:
    """Which draws to take, all if no number is requested."""
    if num_samples is not None and num_samples > available:
        raise ValueError(f"num_samples: there are {available} draws per chain, got {num_samples}.")
    return torch.linspace(0, available - 1, num_samples or available).round().long()


def prior_chain(model: Any, names: set[str], num_samples: int, batch: Piece) -> DrawsByChain:
    """Draws of the sites ``names`` from the prior, as one chain."""
    sample_latents = latent_sampler(model)

    def source(start: int, stop: int) -> dict[str, Tensor]:
        draws = []
        for _ in range(start, stop):
            with SubstituteMessenger({}) as run:
                poutine.uncondition(model)(*batch.args, **batch.kwargs) if sample_latents is None else sample_latents()
            draws.append({m["name"]: m["value"] for m in run.latent if m["name"] in names})
        return {name: torch.stack([draw[name] for draw in draws]) for name in draws[0]}

    return DrawsByChain([source], num_samples)


def check_sites(model: Any, values: Mapping[str, Tensor], run: SubstituteMessenger) -> None:
    """Refuses a posterior that is not one of this model.

    Args:
        model: The model.
        values: One draw of the posterior.
        run: A run of the model with that draw substituted.

    Raises:
        ValueError: If the draw lacks a latent site of the model or has one that the model has not.
    """
    sampled = {message["name"] for message in run.latent}
    unknown = sorted(set(values) - sampled)
    if unknown:
        raise ValueError(
            f"posterior: it draws the site {unknown[0]!r}, which the model does not sample; pass the "
            "model that the posterior was built from, unconditioned."
        )
    expected = sampled if run.observed else set()
    sample_latents = latent_sampler(model)
    if sample_latents is not None:
        with SubstituteMessenger(values) as latents:
            sample_latents()
        expected = {message["name"] for message in latents.latent}
    missing = sorted(expected - set(values))
    if missing:
        raise ValueError(
            f"posterior: it does not draw the latent site {missing[0]!r} of the model, which would be drawn "
            "from its prior; build the guide from this model."
        )


def log_prob_sum(message: Any, *, scaled: bool, weight: Tensor | None = None) -> float:
    """Log density of a site in 64 bits, with the scale the model gave it, or without but with weights of rows."""
    score = unscaled_score(message).double()
    if scaled:
        return float((score * message["scale"]).sum())
    return float((score if weight is None else weighted(score.reshape(len(weight), -1).sum(-1), weight)).sum())


def data_sites(observed: list[Any]) -> list[Any]:
    """Observed sites without ``pyro.factor``, whose value is empty."""
    return [message for message in observed if message["value"].numel()]


@contextmanager
def at_draw(model: Any, values: Mapping[str, Tensor]) -> Iterator[SubstituteMessenger]:
    """Context for runs of the model with the values and buffers of one draw."""
    module = model if isinstance(model, nn.Module) else nn.Module()
    with installed_buffers(module, Draws.of(values).buffers), SubstituteMessenger(values) as run:
        yield run


@contextmanager
def undisturbed(model: Any, pieces: Sequence[Piece] = ()) -> Iterator[None]:
    """Evaluation mode without gradients; modes and buffers of the model are restored when the block ends.

    Args:
        model: The model.
        pieces: What it is to take, if that may be more rows than it was built for.
    """
    module = model if isinstance(model, nn.Module) else nn.Module()
    with torch.no_grad(), evaluating(module), frozen_buffers(module), room_for(model, pieces):
        yield
