r"""Adversarial posterior distillation: a generator learns to make the draws of a Markov chain, and replaces them.

The chain's draws, flattened and standardised weight by weight, are the real data of a Wasserstein GAN
(:mod:`pyrobnn.sampling.wasserstein`); its generator is a posterior that draws unlimited functions
(:class:`~pyrobnn.guides.Generator`). :func:`distill` learns from draws that exist; :func:`online_distill` while a
sampler runs, from a buffer of its latest draws, so that no more than those are ever stored.

Only latent sites are generated, no buffers. For P weights and hidden layers of width h, generator and critic have about
h P weights each, for which training keeps four numbers, and a step works on some ten batches ``[batch_size, P]``.

Wang et al., *Adversarial Distillation of Bayesian Neural Network Posteriors* (2018).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import pyro
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from pyrobnn.arguments import check_positive_int
from pyrobnn.elbo.parts import NonFiniteLossError
from pyrobnn.guides.base import Guide
from pyrobnn.guides.chains import Chains
from pyrobnn.guides.draws import Draws
from pyrobnn.guides.ensemble import Ensemble
from pyrobnn.guides.generator import Generator
from pyrobnn.sampling.kernel import StochasticGradientKernel
from pyrobnn.sampling.sample import start_run
from pyrobnn.sampling.starts import ChainInit, seed_chains
from pyrobnn.sampling.store import MemoryStore
from pyrobnn.sampling.surroundings import BatchNormPolicy, sampled
from pyrobnn.sampling.wasserstein import Game, GameSettings, Moments

__all__ = ["distill", "online_distill"]

_BLOCK_BYTES = 2**26
_ENDLESS_DRAWS = 2000  # of a guide without a fixed number of draws, from which means and scales are taken
_ALIKE = 1e-6  # spread of draws, relative to their size, that is but rounding


def distill(
    guide: Guide,
    *,
    hidden: Sequence[int] = (100, 100, 100),
    latent_dim: int = 32,
    steps: int = 10_000,
    batch_size: int = 100,
    critic_steps: int = 5,
    critic_hidden: Sequence[int] = (100, 100, 100),
    penalty: float = 10.0,
    lr: float = 1e-4,
    betas: tuple[float, float] = (0.5, 0.9),
    averaging: float = 0.99,
    match_moments: bool = True,
    device: torch.device | str | None = None,
    max_bytes: int = 2**30,
    seed: int | None = None,
    progress: bool = True,
) -> Generator:
    """Trains a generator to make the draws of a guide: ``distill(pb.sample(model, loader, ...))``.

    Args:
        guide: What is to be reproduced: :class:`~pyrobnn.guides.Chains`, a :class:`~pyrobnn.guides.DeltaMixture`, or
            any other guide, of which fresh draws are taken for each step.
        hidden: Widths of the generator's hidden layers. The last decides its size, (width + 3) numbers for each weight:
            against S draws a ratio of storage of about (width + 3) / S.
        latent_dim: Length of the noise that it turns into weights.
        steps: Steps of the generator. The paper's 100,000 are for ReLU units and a constant learning rate.
        batch_size: Draws in a step of the critic, and of the generator.
        critic_steps: Steps of the critic for each of the generator's, each with other draws.
        critic_hidden: Widths of the critic's hidden layers, which is thrown away in the end.
        penalty: Factor λ of the gradient penalty.
        lr: Adam's learning rate of both at the start; it falls to zero linearly. Weights by the thousand ask for 1e-4,
            a handful for 1e-3.
        betas: Adam's decay rates.
        averaging: Decay of the running average of the generator's parameters that is returned; 0: their last values.
        match_moments: In the end, move and scale each generated weight so that its mean and standard deviation are the
            draws'. The paper does not.
        device: Where to train; None: where the draws are.
        max_bytes: Up to which size all draws are kept there; more are read from the guide, and if need be from its
            files, batch by batch.
        seed: Seeds torch, numpy, Python and Pyro at the start.
        progress: Show a progress bar.

    Returns:
        The generator, where the draws are; ``.history`` holds the critic's estimates, ``.storage()`` its size against
        that of the draws.

    Raises:
        DistillationDivergedError: If generator or critic become NaN or infinite.
        TypeError: If ``guide`` is no guide.
        ValueError: If an argument is out of range, there are fewer draws than in a batch, all draws are alike, one is
            not finite (the message names the site), or members have running statistics of their own.
    """
    if not isinstance(guide, Guide):
        raise TypeError(
            f"guide: expected one of pyrobnn.guides that has draws, such as Chains, got {type(guide).__name__}; turn "
            "draws {site: [M, ...]} into one by DeltaMixture.from_draws(model, draws)."
        )
    settings = GameSettings(
        steps, batch_size, critic_steps, critic_hidden, penalty, lr, betas, averaging, match_moments
    )
    check_positive_int("max_bytes", max_bytes)
    if seed is not None:
        pyro.set_rng_seed(seed)
    num_draws = guide.num_members if isinstance(guide, Ensemble) else None
    if num_draws is not None and num_draws < batch_size:
        raise ValueError(
            f"batch_size: the guide has {num_draws} draws, fewer than the {batch_size} of a batch, which the critic "
            "would learn by heart; keep more draws, or lower batch_size."
        )
    _check_buffers(guide)
    first = _flatten(guide, guide.sample(1))
    generator = Generator(guide, hidden, latent_dim, num_draws=num_draws).to(first)
    _standardise(generator, _all_draws(guide))
    generator.to(device)
    game = Game(generator, settings)
    with tqdm(total=steps, disable=not progress, unit="step") as bar:
        batch = _reader(guide, batch_size, generator.loc.device, max_bytes)
        while game.step < steps:
            _play(game, batch, min(100, steps - game.step), bar)
    return game.finish().to(first.device)


def online_distill(
    model: Callable[..., Any],
    data: Any,
    *,
    kernel: StochasticGradientKernel,
    num_samples: int,
    burn_in: int = 0,
    thinning: int = 1,
    chains: int = 1,
    init: ChainInit = None,
    batch_norm: BatchNormPolicy = "refuse",
    vmap: bool | Literal["auto"] = "auto",
    buffer_size: int = 1000,
    refresh: int = 10,
    hidden: Sequence[int] = (100, 100, 100),
    latent_dim: int = 32,
    steps: int = 10_000,
    device: torch.device | str | None = None,
    seed: int | None = None,
    progress: bool = True,
    **options: Any,
) -> Generator:
    """Samples by SG-MCMC and distils at once: of all draws only the latest are stored.

    Draws enter a first-in-first-out buffer. When it is full, and again after each ``refresh`` further draws of each
    chain, generator and critic take their share of the steps on what it holds.

    Args:
        model: The Pyro model. This and the arguments up to ``vmap`` are as for :func:`pyrobnn.sample`.
        data: A loader of batches, or a tuple of the model's arguments.
        kernel: The sampler; HMC and NUTS run by themselves, so distil their draws by :func:`distill`.
        num_samples: Draws of each chain in all.
        burn_in: Steps before the first of them.
        thinning: Steps for each.
        chains: Number C of chains.
        init: Where they start.
        batch_norm: What to do about BatchNorm layers.
        vmap: Whether to step all chains in one vectorised pass.
        buffer_size: Draws of all chains together in the buffer. Means and scales are those of the first full one.
        refresh: Draws of each chain between two bouts of training.
        hidden: Widths of the generator's hidden layers.
        latent_dim: Length of the noise that it turns into weights.
        steps: Steps of the generator, in all bouts together.
        device: Moves the model and each batch there, where the training is then done, too.
        seed: Seeds torch, numpy, Python and Pyro at the start.
        progress: Show a progress bar.
        **options: ``batch_size``, ``critic_steps``, ``critic_hidden``, ``penalty``, ``lr``, ``betas``, ``averaging``
            and ``match_moments`` of :func:`distill`.

    Returns:
        The generator. If the sampler diverged on the way, it has learnt from the draws before.

    Raises:
        DistillationDivergedError: If generator or critic become NaN or infinite.
        NonFiniteLossError: If the sampler diverged before the buffer was full.
        TypeError: If the kernel is no stochastic gradient one, or an option is unknown.
        ValueError: If an argument is out of range, or the draws do not fill the buffer.
    """
    settings = GameSettings(steps, **options)
    counts = {"num_samples": num_samples, "chains": chains, "refresh": refresh, "buffer_size": buffer_size}
    for name, count in counts.items():
        check_positive_int(name, count)
    if not isinstance(kernel, StochasticGradientKernel):
        raise TypeError(
            f"kernel: expected a stochastic gradient one such as SGLD(step_size=1e-5), got {kernel!r}; draws of "
            "others are distilled by distill(sample(...))."
        )
    window = -(-buffer_size // chains)
    if window * chains < settings.batch_size:
        raise ValueError(
            f"buffer_size: it holds {window * chains} draws, fewer than the {settings.batch_size} of a batch; enlarge "
            "it, or lower batch_size."
        )
    if num_samples < window:
        raise ValueError(
            f"num_samples: {num_samples} draws of each of {chains} chains do not fill a buffer of {buffer_size}; draw "
            "more, or lower buffer_size."
        )
    seed_chains(seed)
    if device is not None and isinstance(model, nn.Module):
        model.to(device)
    with sampled(model, batch_norm):
        run = start_run(
            model, data, kernel, burn_in=burn_in, thinning=thinning, chains=chains, init=init, vmap=vmap, device=device
        )
        generator = Generator(run.layout, hidden, latent_dim, num_draws=num_samples * chains).to(run.flat)
        store = _Buffer(window, run.flat, generator, settings, refresh, 1 + (num_samples - window) // refresh)
        run.store = store
        run.until(num_samples, progress)
    if store.game is None:
        raise NonFiniteLossError("sampling diverged before the buffer was full; lower the step size.")
    return store.game.finish()


class _Buffer(MemoryStore):
    """The latest draws of a run; generator and critic train whenever enough of them are new.

    Args:
        window: Draws of each chain that it holds.
        flat: The chains' values ``[C, P]``.
        generator: The generator.
        settings: How to train.
        refresh: Draws of each chain between two bouts of training.
        bouts: Number of bouts.
    """

    def __init__(
        self, window: int, flat: Tensor, generator: Generator, settings: GameSettings, refresh: int, bouts: int
    ) -> None:
        super().__init__(window, flat)
        self.generator, self.settings, self.refresh, self.bouts = generator, settings, refresh, bouts
        self.game: Game | None = None
        self._bout = 0

    def keep(self, flat: Tensor, stats: Mapping[str, Tensor]) -> None:
        """Puts a draw of all chains in place of the oldest."""
        window = len(self.draws)
        self.draws[self.kept % window] = flat
        self.kept += 1
        if self.kept < window or (self.kept - window) % self.refresh:
            return
        rows = self.draws.flatten(0, 1)
        with torch.enable_grad():  # the sampler keeps draws without
            if self.game is None:
                _standardise(self.generator, iter([rows]))
                self.game = Game(self.generator, self.settings)
            self._bout += 1
            until = self.settings.steps * self._bout // self.bouts
            self.game.play(lambda: rows[_indices(len(rows), self.settings.batch_size, rows)], until - self.game.step)


# ------------------------------------------------------------------------------------------------------ reading draws


def _all_draws(guide: Guide) -> Iterator[Tensor]:
    """Flat draws in blocks: all there are, or as many as tell means and scales."""
    total = guide.num_members if isinstance(guide, Ensemble) else _ENDLESS_DRAWS
    size = max(1, _BLOCK_BYTES // (4 * guide.num_latents))
    for start in range(0, total, size):
        stop = min(start + size, total)
        if isinstance(guide, Ensemble):
            yield _members(guide, torch.arange(start, stop))
        else:
            yield _flatten(guide, guide.sample(stop - start))


def _reader(guide: Guide, batch_size: int, device: torch.device, max_bytes: int) -> Callable[[], Tensor]:
    """Batches ``[B, P]`` of draws on the device, others at each call."""
    if not isinstance(guide, Ensemble):
        return lambda: _flatten(guide, guide.sample(batch_size)).to(device)
    if guide.num_members * guide.num_latents * 4 > max_bytes:
        return lambda: _members(guide, torch.randint(guide.num_members, (batch_size,))).to(device)
    rows = torch.cat([block.to(device) for block in _all_draws(guide)])
    return lambda: rows[_indices(len(rows), batch_size, rows)]


def _indices(total: int, count: int, like: Tensor) -> Tensor:
    return torch.randint(total, (count,), device=like.device)


def _members(guide: Ensemble, members: Tensor) -> Tensor:
    """Flat vectors of members ``[K, P]``, in the order of a generator built from the guide."""
    if isinstance(guide, Chains):  # they are kept unconstrained
        pieces = guide.split(guide.flat_draws(members))
        return torch.cat([pieces[site.name].reshape(len(members), -1) for site in _order(guide)], 1)
    return _flatten(guide, guide.stacked(members))


def _flatten(guide: Guide, draws: Mapping[str, Tensor]) -> Tensor:
    """Unconstrained flat vectors ``[K, P]`` of site values."""
    pieces = []
    for site in _order(guide):
        value = draws[site.name].detach()
        pieces.append((value if site.is_real else site.transform.inv(value)).reshape(len(value), -1))
    return torch.cat(pieces, 1)


def _order(guide: Guide) -> list[Any]:
    return sorted(guide.sites.values(), key=lambda site: not site.is_flat_normal)


def _check_buffers(guide: Guide) -> None:
    """Running statistics of members' own would be lost without a word."""
    for name, buffer in Draws.of(guide.sample(16)).buffers.items():
        if bool((buffer != buffer[:1]).any()):
            raise ValueError(
                f"guide: its members have buffers of their own ({name!r} differs), which a generator does not make; "
                "use a network without running statistics, or sample with batch_norm='freeze'."
            )


# ---------------------------------------------------------------------------------------------------- standardisation


@torch.no_grad()
def _standardise(generator: Generator, blocks: Iterator[Tensor]) -> None:
    """Sets the generator's mean and scale to those of the draws.

    Raises:
        ValueError: If a draw is not finite, or no weight differs between draws.
    """
    moments = Moments()
    for block in blocks:
        if not bool(block.isfinite().all()):
            _blame(generator, block)
        moments.add(block)
    scale = moments.std
    scale[scale <= _ALIKE * moments.mean.abs()] = 0.0
    if not bool((scale > 0).any()):
        raise ValueError(f"guide: its {moments.count} draws are all alike, so there is nothing to distil.")
    generator.loc.copy_(moments.mean)
    generator.scale.copy_(scale)


def _blame(generator: Generator, block: Tensor) -> None:
    for name, values in generator.split(block).items():
        if not bool(values.isfinite().all()):
            raise ValueError(f"guide: a draw of the site {name!r} is not finite; look at the sampler that made it.")


def _play(game: Game, batch: Callable[[], Tensor], steps: int, bar: Any) -> None:
    game.play(batch, steps)
    bar.update(steps)
    bar.set_postfix({"critic": f"{game.history.critic[-1]:.3f}"})
