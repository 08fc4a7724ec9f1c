"""Chains of HMC and NUTS whose draws are not from the posterior: stuck ones, those on their way, and diverging ones."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["DIVERGED", "warn_of_failed_chains"]

DIVERGED = 1000.0
"""Error of the energy, in nats, from which a trajectory counts as divergent (Stan's value)."""

_FEWEST = 10  # draws from which standing still is no chance
_MOVING = 0.05  # share of draws that differ from the one before, below which a chain counts as stuck
_SMALL = 0.1  # step size beside that of the others, at which a chain of lower density counts as on its way
_MANY = 0.1  # share of divergent transitions that is worth a warning
_ADVICE = (
    "Use a longer warmup_steps, start nearer to the posterior with init=, such as a fitted guide, or leave the draws "
    "out: Chains.from_draws takes what remains of by_chain()"
)


def warn_of_failed_chains(kernel: str, stats: Mapping[str, Tensor]) -> None:
    """Names the chains that did not move or have not arrived, and of the others the one that diverged most.

    A chain has not arrived if all its log densities are below all those of the chains that moved, and its step size is
    less than a tenth of theirs.

    Args:
        kernel: The sampler's name.
        stats: Statistics of the draws that are kept, ``[C, S]``: ``lp``, ``diverging`` and ``step_size``.

    Warns:
        UserWarning: If there are such chains.
    """
    density, diverging = stats["lp"], stats["diverging"].float().mean(1)
    stuck = torch.zeros_like(diverging, dtype=torch.bool)
    if density.shape[1] >= _FEWEST:  # a chain that moves changes its log density
        stuck = (density.diff(dim=1) != 0).float().mean(1) < _MOVING
    travels = ~stuck & _travels(density, stats["step_size"], ~stuck)
    fine = ~(stuck | travels)
    if bool(stuck.any()):
        _warn(
            f"{kernel}: {_named(stuck)} did not move, because the step size was too large there; the draws are not "
            f"from the posterior ({_densities(density, stuck, fine)}). {_ADVICE}; where the step size does not adapt, "
            "use a smaller step_size."
        )
    if bool(travels.any()):
        _warn(
            f"{kernel}: {_named(travels)} had not reached the others' region at the end of warmup; the draws are not "
            f"from the posterior ({_densities(density, travels, fine)}). {_ADVICE}."
        )
    diverging = diverging * fine
    if bool((diverging > _MANY).any()):
        worst = int(diverging.argmax())
        _warn(
            f"{kernel}: {100 * float(diverging[worst]):.0f} % of the transitions of chain {worst} diverged and were "
            "rejected, so that narrow regions of the posterior are left out; use a higher target_accept and a longer "
            "warmup_steps or, where the step size does not adapt, a smaller step_size."
        )


def _travels(density: Tensor, step_size: Tensor, moved: Tensor) -> Tensor:
    """Which chains are below all that moved and are not like them ``[C]``, with steps that are much smaller."""
    sizes = step_size.mean(1)
    small = sizes < _SMALL * sizes[moved].median() if bool(moved.any()) else torch.zeros_like(moved)
    usual = moved & ~small
    return small & (density.amax(1) < density[usual].min()) if bool(usual.any()) else torch.zeros_like(moved)


def _named(chains: Tensor) -> str:
    numbers = chains.nonzero().flatten().tolist()
    return f"chain{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def _densities(density: Tensor, failed: Tensor, fine: Tensor) -> str:
    beside = f", of the others {float(density[fine].median()):.4g}" if bool(fine.any()) else ""
    return f"log density {float(density[failed].median()):.4g}{beside}"


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=6)  # the call of sample()
