"""Adversarial posterior distillation while a sampler runs, from a buffer of its latest draws.

Only those are stored. The generator makes weights; :mod:`pyrobnn.distillation.offline` can use principal axes instead,
which would change here while the chain runs.

Wang et al., *Adversarial Distillation of Bayesian Neural Network Posteriors* (2018).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pyrobnn.core.arguments import check_positive_int
from pyrobnn.core.batches import Reader
from pyrobnn.core.exclusive import in_one_thread
from pyrobnn.core.explanations import explained
from pyrobnn.core.gradient_modes import gradients_enabled, refuse_inference_tensors
from pyrobnn.core.processes import refuse_process_group, refuse_wrapped
from pyrobnn.distillation.flat_draws import random_rows
from pyrobnn.distillation.standardization import Standards
from pyrobnn.distillation.wgan import WGAN, WGANSettings
from pyrobnn.guides.generator import Generator
from pyrobnn.objectives.parts import NonFiniteLossError
from pyrobnn.sampling.initialization import ChainInit, chain_seed
from pyrobnn.sampling.kernels.base import StochasticGradientKernel
from pyrobnn.sampling.sampling_mode import BatchNormPolicy, sampled
from pyrobnn.sampling.sgmcmc.run import start_run
from pyrobnn.sampling.sgmcmc.store import MemoryStore

__all__ = ["online_distill"]


@explained
def online_distill(
    model: Callable[..., Any],
    data: Any,
    *,
    kernel: StochasticGradientKernel,
    num_samples: int,
    warmup_steps: int = 0,
    thinning: int = 1,
    num_chains: int = 1,
    init: ChainInit = None,
    batch: Reader | None = None,
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
    chain, generator and critic are trained on its draws for an equal share of the steps.

    Args:
        model: The Pyro model. This and the arguments up to ``vmap`` are as for :func:`pyrobnn.sample`.
        data: A loader of batches, or a tuple of the model's arguments.
        kernel: The sampler; for draws of HMC and NUTS use :func:`pyrobnn.distillation.distill`.
        num_samples: Draws of each chain in all.
        warmup_steps: Steps before the first of them.
        thinning: Steps for each.
        num_chains: Number C of chains.
        init: Where they start.
        batch: How to read what the loader yields.
        batch_norm: What to do about BatchNorm layers.
        vmap: Whether to step all chains in one vectorized pass.
        buffer_size: Draws of all chains together in the buffer. Means and scales are those of the first full one.
        refresh: Draws of each chain between two rounds of training.
        hidden: Widths of the generator's hidden layers.
        latent_dim: Length of the noise that it turns into weights.
        steps: Steps of the generator, in all rounds.
        device: Moves the model and each batch there, where the training is then done, too.
        seed: Seeds torch, NumPy, Python and Pyro for this call; their states are restored afterwards.
        progress: Show a progress bar.
        **options: ``batch_size``, ``critic_steps``, ``critic_hidden``, ``penalty``, ``lr``, ``betas``, ``averaging``
            and ``match_moments`` of :func:`pyrobnn.distillation.distill`.

    Returns:
        The generator. If the sampler diverged on the way, it has learned from the draws before.

    Raises:
        DistillationDivergedError: If generator or critic become NaN or infinite.
        NonFiniteLossError: If the sampler diverged before the buffer was full.
        TypeError: If the kernel is no stochastic gradient one, or an option is unknown.
        ValueError: If an argument is out of range, or the draws do not fill the buffer.
        RuntimeError: In a process group of several processes (:func:`~pyrobnn.independent_processes`).
    """
    refuse_process_group("online_distill")
    refuse_wrapped(model=model)
    settings = WGANSettings(steps, **options)
    counts = {"num_samples": num_samples, "num_chains": num_chains, "refresh": refresh, "buffer_size": buffer_size}
    for name, count in counts.items():
        check_positive_int(name, count)
    if not isinstance(kernel, StochasticGradientKernel):
        raise TypeError(
            f"kernel: expected a stochastic gradient one such as SGLD(step_size=1e-5), got {kernel!r}; draws of "
            "others are distilled by distill(sample(...))."
        )
    window = -(-buffer_size // num_chains)
    if window * num_chains < settings.batch_size:
        raise ValueError(
            f"buffer_size: it holds {window * num_chains} draws, fewer than the {settings.batch_size} of a batch; "
            "enlarge it, or lower batch_size."
        )
    if num_samples < window:
        raise ValueError(
            f"num_samples: {num_samples} draws of each of {num_chains} chains do not fill a buffer of {buffer_size}; "
            "draw more, or lower buffer_size."
        )
    if device is not None and isinstance(model, nn.Module):
        model.to(device)
    refuse_inference_tensors(model=model)
    with gradients_enabled(), in_one_thread(model=model), chain_seed(seed), sampled(model, batch_norm):
        run = start_run(
            model,
            data,
            kernel,
            warmup_steps=warmup_steps,
            thinning=thinning,
            num_chains=num_chains,
            init=init,
            vmap=vmap,
            device=device,
            reader=batch,
        )
        generator = Generator(run.layout, hidden, latent_dim, num_samples=num_samples * num_chains).to(run.flat)
        store = _Buffer(window, run.flat, generator, settings, refresh, 1 + (num_samples - window) // refresh)
        run.store = store
        run.until(num_samples, progress)
    if store.wgan is None:
        raise NonFiniteLossError("sampling diverged before the buffer was full; lower the step size.")
    return store.wgan.finish()


class _Buffer(MemoryStore):
    """The latest draws of a run; generator and critic train whenever enough of them are new.

    Args:
        window: Draws of each chain that it holds.
        flat: The chains' values ``[C, P]``.
        generator: The generator.
        settings: How to train.
        refresh: Draws of each chain between two rounds of training.
        rounds: Number of rounds.
    """

    def __init__(
        self, window: int, flat: Tensor, generator: Generator, settings: WGANSettings, refresh: int, rounds: int
    ) -> None:
        super().__init__(window, flat)
        self.generator, self.settings, self.refresh, self.rounds = generator, settings, refresh, rounds
        self.wgan: WGAN | None = None
        self.standards: Standards | None = None
        self._round = 0

    def keep(self, flat: Tensor, stats: Mapping[str, Tensor]) -> None:
        """Puts a draw of all chains in place of the oldest."""
        window = len(self.draws)
        self.draws[self.kept % window] = flat
        self.kept += 1
        if self.kept < window or (self.kept - window) % self.refresh:
            return
        rows = self.draws.flatten(0, 1)
        with torch.enable_grad():  # the sampler keeps draws without
            if self.wgan is None or self.standards is None:
                self.standards = Standards.of(iter([rows]), self.generator.layout)
                self.generator.loc.copy_(self.standards.loc)
                self.generator.scale.copy_(self.standards.scale)
                self.wgan = WGAN(self.generator, self.settings)
            self._round += 1
            until = self.settings.steps * self._round // self.rounds
            known = self.standards(rows)
            self.wgan.train(lambda: random_rows(known, self.settings.batch_size), until - self.wgan.step)
