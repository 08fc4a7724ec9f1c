"""Posterior draws that stay the same for every batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from pyrobnn.core import random_state
from pyrobnn.core.arguments import check_positive_int
from pyrobnn.guides.base import Guide, check_guide
from pyrobnn.model.agreement import check_draws
from pyrobnn.model.draws import Draws

__all__ = ["PinnedDraws", "check_posterior"]

_CACHE_BYTES = 8 * 2**20  # draws made at once: more only costs memory traffic


class PinnedDraws:
    """K posterior draws in chunks ``{site: [k, *site shape]}``, the same in each pass, with buffers if they have some.

    If there are several passes, draws are kept if they fit the budget; else each pass makes them again from the same
    seed, so that memory does not grow with K.

    Args:
        posterior: A guide, or draws by site.
        num_samples: Number K of draws.
        max_bytes: Budget for kept draws.
        replayed: Whether there is more than one pass over the draws.
        seed: Fixes the draws; None takes a seed from torch's random state. Draws are made in blocks of at most 8 MiB
            and ``max_bytes``, and how many are made at once may change them: for a ``max_bytes`` of less the same
            draws need the same ``max_bytes``, too.

    Raises:
        TypeError: If ``posterior`` is neither a guide nor draws.
        ValueError: If ``num_samples`` is not positive, or more than the draws there are.
    """

    def __init__(
        self,
        posterior: Any,
        num_samples: int,
        max_bytes: int,
        *,
        replayed: bool = True,
        seed: int | None = None,
    ) -> None:
        check_positive_int("num_samples", num_samples)
        self.num_samples = num_samples
        self.posterior: Guide | None = None
        self._kept: list[dict[str, Tensor]] | None = None
        self._seed = random_state.fresh_seed() if seed is None else seed
        if isinstance(posterior, Guide):
            self.posterior = posterior
            element = next(posterior.parameters()).element_size()
            bytes_per_draw = max(1, posterior.layout.size * element)
            self._chunk = min(num_samples, max(1, min(max_bytes, _CACHE_BYTES) // bytes_per_draw))
            if replayed and num_samples * bytes_per_draw <= max_bytes:
                self._kept = list(self._make())
        elif isinstance(posterior, Mapping) and posterior:
            self._kept = _thinned(posterior, num_samples)
        else:
            raise TypeError(
                f"guide: expected a guide of pyrobnn.guides or draws {{site: [K, …]}}, got {type(posterior).__name__}."
            )

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return iter(self._kept) if self._kept is not None else self._make()

    def passing(self) -> Iterator[dict[str, Tensor]]:
        """The same chunks, each of which may be overwritten as soon as the next one is requested."""
        return iter(self._kept) if self._kept is not None else self._make(reuse_memory=True)

    def _make(self, *, reuse_memory: bool = False) -> Iterator[dict[str, Tensor]]:
        """Draws in chunks from the seed; torch's random state is restored after each chunk."""
        assert self.posterior is not None
        device = next(self.posterior.parameters()).device
        state: random_state.State | None = None
        sizes = [min(self._chunk, self.num_samples - made) for made in range(0, self.num_samples, self._chunk)]
        blocks = self.posterior.sample_blocks(sizes, reuse_memory=reuse_memory)
        for _ in sizes:
            with random_state.preserved(device):
                if state is None:
                    random_state.seed(self._seed, device)
                else:
                    random_state.write(state, device)
                chunk = next(blocks)
                state = random_state.read(device)
            yield chunk


def check_posterior(model: Any, posterior: Any, argument: str = "guide") -> None:
    """Refuses what is neither a guide nor draws ``{site: [K, *site shape]}`` of this model.

    Raises:
        TypeError: If it is something else, or draws are of another precision than the network.
        ValueError: If sites are missing, unknown, of another shape or not finite.
    """
    if isinstance(posterior, Mapping) and posterior:
        check_draws(model, posterior, argument=argument)
    else:
        check_guide(model, posterior, argument=argument, also=" or draws {site: [K, *site shape]}")


def _thinned(posterior: Mapping[str, Tensor], num_samples: int) -> list[dict[str, Tensor]]:
    """``num_samples`` of the given draws, evenly spaced."""
    available = {name: len(value) for name, value in posterior.items()}
    if len(set(available.values())) != 1:
        raise ValueError(f"guide: the sites have different numbers of draws: {available}.")
    count = next(iter(available.values()))
    if num_samples > count:
        raise ValueError(f"num_samples: {num_samples} were requested, but there are {count} draws.")
    draws = Draws.of(posterior)
    if num_samples == count:  # a copy of many large draws takes longer than the network's runs
        return [draws]
    return [draws.at(torch.linspace(0, count - 1, num_samples).round().long())]
