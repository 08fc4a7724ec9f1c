r"""Adversarial posterior distillation: a generator learns to make the draws of a Markov chain, and replaces them.

The chain's draws, flattened and standardized weight by weight, are the real data of a Wasserstein GAN
(:mod:`pyrobnn.distillation.wgan`); its generator is a posterior that draws unlimited functions
(:class:`~pyrobnn.guides.Generator`). It is learned in the coordinates of the draws' principal axes or, as the paper has
it, in weights. :func:`~pyrobnn.distillation.online_distill` learns while a sampler runs.

Only latent sites are generated, no buffers. Without axes, for P weights and hidden layers of width h, generator and
critic have about h P weights each, for which training keeps four numbers, and a step works on some ten batches
``[batch_size, P]``.

Wang et al., *Adversarial Distillation of Bayesian Neural Network Posteriors* (2018).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyrobnn.core import random_state
from pyrobnn.core.arguments import check_positive_int
from pyrobnn.core.explanations import explained
from pyrobnn.core.gradient_modes import gradients_enabled
from pyrobnn.core.processes import refuse_process_group
from pyrobnn.core.progress import progress_bar
from pyrobnn.distillation.flat_draws import FlatDraws, random_rows
from pyrobnn.distillation.standardization import Standards, principal_axes
from pyrobnn.distillation.wgan import WGAN, WGANSettings
from pyrobnn.guides.base import Guide
from pyrobnn.guides.generator import Generator

__all__ = ["distill"]

_LEAST_EXPLAINED = 0.8  # of the draws' variance, along the axes


@explained
def distill(
    guide: Guide,
    *,
    components: int | None = 30,
    hidden: Sequence[int] = (100, 100, 100),
    latent_dim: int = 32,
    steps: int = 5_000,
    batch_size: int = 100,
    critic_steps: int = 5,
    critic_hidden: Sequence[int] = (100, 100, 100),
    penalty: float = 10.0,
    lr: float | None = None,
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
        components: Number C of the draws' leading principal axes, along which the generator makes coordinates; what
            draws do outside them is left out. It decides the generator's size, (C + 2) numbers for each weight: against
            S draws a ratio of storage of (C + 2) / S. None: it makes weights, as in the paper.
        hidden: Widths of the generator's hidden layers. Without components the last decides its size, (width + 3)
            numbers for each weight.
        latent_dim: Length of the noise that it turns into weights.
        steps: Steps of the generator. The paper's 100,000 are for weights, ReLU units and a constant learning rate.
        batch_size: Draws in a step of the critic, and of the generator.
        critic_steps: Steps of the critic for each of the generator's, each with other draws.
        critic_hidden: Widths of the critic's hidden layers; the critic is discarded after training.
        penalty: Factor λ of the gradient penalty.
        lr: Adam's learning rate of both at the start; it falls to zero linearly. None: 1e-3 with components and 1e-4
            without.
        betas: Adam's decay rates.
        averaging: Decay of the running average of the generator's parameters that is returned; 0: their last values.
        match_moments: In the end, move and scale each coordinate (without components: each weight) so that its mean and
            standard deviation are the draws'. The paper does not.
        device: Where to train; None: where the draws are.
        max_bytes: Up to which size all draws are kept there; more are read from the guide, and if need be from its
            files, batch by batch.
        seed: Seeds torch, NumPy, Python and Pyro for this call; their states are restored afterwards.
        progress: Show a progress bar.

    Returns:
        The generator, where the draws are; ``.history`` holds the critic's estimates, ``.storage()`` its size against
        that of the draws.

    Warns:
        UserWarning: If the axes hold less than four fifths of the draws' variance.

    Raises:
        DistillationDivergedError: If generator or critic become NaN or infinite.
        TypeError: If ``guide`` is no guide.
        ValueError: If an argument is out of range, there are fewer draws than in a batch, all draws are alike, one is
            not finite (the message names the site), or members have running statistics of their own.
        RuntimeError: In a process group of several processes (:func:`~pyrobnn.independent_processes`).
    """
    refuse_process_group("distill")
    if not isinstance(guide, Guide):
        raise TypeError(
            f"guide: expected one of pyrobnn.guides that has draws, such as Chains, got {type(guide).__name__}; turn "
            "draws {site: [M, ...]} into one by DeltaMixture.from_draws(model, draws)."
        )
    if components is not None:
        check_positive_int("components", components)
    rate = (1e-4 if components is None else 1e-3) if lr is None else lr
    settings = WGANSettings(
        steps, batch_size, critic_steps, critic_hidden, penalty, rate, betas, averaging, match_moments
    )
    check_positive_int("max_bytes", max_bytes)
    with gradients_enabled(), random_state.local(seed):
        draws = FlatDraws(guide)
        if draws.count is not None and draws.count < batch_size:
            raise ValueError(
                f"batch_size: the guide has {draws.count} draws, fewer than the {batch_size} of a batch, "
                "which the critic would memorize; keep more draws, or lower batch_size."
            )
        standards = Standards.of(draws.blocks(), guide.layout)
        draws_device = standards.loc.device
        train_device = draws_device if device is None else torch.device(device)
        axes = spread = None
        if components is None:
            batch = draws.reader(batch_size, train_device, max_bytes, standards)
        else:
            axes = principal_axes(draws.blocks, standards, components, max_bytes // (4 * guide.layout.size))
            if axes.explained < _LEAST_EXPLAINED:
                warnings.warn(
                    f"components: the draws' {len(axes.basis)} principal axes hold {axes.explained:.0%} of their "
                    "variance; variation outside them is not learned. Take more, or None to generate weights.",
                    stacklevel=3,
                )
            components = len(axes.basis)
            coordinates = axes.coordinates.to(train_device)
            spread = coordinates.std(0)

            def batch() -> Tensor:
                return random_rows(coordinates, batch_size)

        generator = Generator(guide, hidden, latent_dim, components=components, num_samples=draws.count).to(
            standards.loc
        )
        if axes is not None:
            generator.basis = axes.basis
        generator.loc.copy_(standards.loc)
        generator.scale.copy_(standards.scale)
        wgan = WGAN(generator.to(train_device), settings, spread)
        with progress_bar(total=steps, shown=progress) as bar:
            while wgan.step < steps:
                _train(wgan, batch, min(100, steps - wgan.step), bar)
        return wgan.finish().to(draws_device)


def _train(wgan: WGAN, batch: Callable[[], Tensor], steps: int, bar: Any) -> None:
    wgan.train(batch, steps)
    bar.update(steps)
    bar.set_postfix({"critic": f"{wgan.history.critic[-1]:.3f}"})
