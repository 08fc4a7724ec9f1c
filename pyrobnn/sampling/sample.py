r"""sample(): Markov chains of the posterior, by any kernel.

SG-MCMC takes one step for each minibatch along an unbiased estimate of the gradient of
:math:`U(\theta) = -\log p(D, w(\theta)) - \log|\det \partial w / \partial \theta|`, in which the model's own plate
counts a batch of B data N/B times. HMC and NUTS take all data at once. Both end as :class:`~pyrobnn.guides.Chains`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pyrobnn.core.arguments import check_device, check_int, check_positive_int
from pyrobnn.core.batches import Reader
from pyrobnn.core.exclusive import in_one_thread
from pyrobnn.core.executors import check_executor
from pyrobnn.core.explanations import explained
from pyrobnn.core.files import check_directory
from pyrobnn.core.gradient_modes import gradients_enabled, refuse_inference_tensors
from pyrobnn.core.precision import refuse_float16
from pyrobnn.core.processes import refuse_process_group, refuse_wrapped
from pyrobnn.guides.chains import Chains
from pyrobnn.model.declarations import example_if_needed
from pyrobnn.model.layout import Layout
from pyrobnn.model.likelihoods.learned import refuse_untrained
from pyrobnn.sampling.apart import apart
from pyrobnn.sampling.initialization import ChainInit, chain_seed, initial_points
from pyrobnn.sampling.kernels.base import FullBatchKernel, Kernel, StochasticGradientKernel
from pyrobnn.sampling.sampling_mode import BatchNormPolicy, sampled
from pyrobnn.sampling.sgmcmc.batches import all_data
from pyrobnn.sampling.sgmcmc.run import Run, SamplingDivergedWarning, start_run
from pyrobnn.sampling.sgmcmc.store import DiskStore, MemoryStore

__all__ = ["Run", "SamplingDivergedWarning", "sample", "start_run"]


@explained
def sample(
    model: Callable[..., Any],
    data: Any,
    *,
    kernel: Kernel,
    num_samples: int,
    batch: Reader | None = None,
    warmup_steps: int = 0,
    thinning: int = 1,
    num_chains: int = 1,
    init: ChainInit = None,
    batch_norm: BatchNormPolicy = "refuse",
    vmap: bool | Literal["auto"] = "auto",
    seed: int | None = None,
    device: torch.device | str | None = None,
    max_bytes: int = 2**30,
    directory: str | Path | None = None,
    resume: bool = False,
    executor: Executor | None = None,
    progress: bool = True,
) -> Chains:
    """Draws from the posterior by Markov chains.

    Parameters of the model that have no prior, such as a learned noise scale, are constants: train them first, or give
    them priors. The model is run in evaluation mode (no dropout) and is not changed.

    Args:
        model: The Pyro model, called as ``model(x, y)``.
        data: A loader of batches, as for :func:`pyrobnn.fit`; or a tuple, the arguments of the model with all data,
            such as ``(x, y)``. HMC and NUTS join a loader's batches.
        kernel: The sampler, such as ``pyrobnn.sampling.SGLD(step_size=1e-5)``.
        num_samples: Number S of draws to keep of each chain.
        batch: For loaders whose items :func:`pyrobnn.fit` cannot read: a function from an item to
            ``(inputs, targets)``, ``(inputs, targets, weight)`` or a :class:`~pyrobnn.Batch`.
        warmup_steps: Steps (of HMC and NUTS: transitions) before the first of them.
        thinning: Steps for each kept draw; with a :class:`~pyrobnn.sampling.Cyclical` kernel those of its sampling
            parts.
        num_chains: Number C of chains.
        init: Where they start: None (the network's weights, further chains at fresh ones), a guide (a draw of it each),
            draws (one each), ``"prior"`` (a draw each), a network, state dict or dict of site values (all there), a
            list of C of them, or a function ``(site name, prior) -> value``.
        batch_norm: ``"refuse"`` raises an error for BatchNorm layers, under whose batch statistics there is no
            posterior; ``"freeze"`` declares that the running statistics are constants of the model.
        vmap: Whether SG-MCMC steps all chains in one vectorized pass; ``"auto"`` does where that is faster and
            possible.
        seed: Seeds torch, NumPy, Python and Pyro for this call; their states are restored afterwards.
        device: Moves the model and each batch there.
        max_bytes: Memory for draws; more than that is refused without ``directory``, and else stays on disk.
        directory: SG-MCMC only: where each kept draw is written to, in safetensors files, with the state of the run.
        resume: Continue the run in ``directory``, if there is one, bit for bit as if it had never stopped. A killed run
            has lost one thinning interval at most. ``num_samples`` may be larger than it was.
        executor: Where chains run by themselves, each with a seed and batches of its own, such as a
            ``concurrent.futures.ProcessPoolExecutor``. The draws are the same bits under any executor,
            :class:`~pyrobnn.SerialExecutor` included, where workers compute with as many threads; they are others than
            those of None, with which all chains step together here. ``directory`` then keeps whole chains of any
            kernel, and ``resume`` runs those that are missing.
        progress: Show a progress bar.

    Returns:
        The draws as a guide. Ctrl-C ends SG-MCMC early and returns what was kept.

    Warns:
        SamplingDivergedWarning: If the potential or a chain becomes NaN or infinite: the draws kept before are
            returned.

    Raises:
        NonFiniteLossError: If the potential is NaN or infinite at the start (the message names the site), or before the
            first draw was kept.
        TypeError: If the kernel or the data are of the wrong kind.
        ValueError: If an argument is out of its range, data and model do not fit, the draws would not fit into
            ``max_bytes``, the likelihood learns a scale that was not trained, or ``directory`` holds another run.
        CheckpointError: If what ``directory`` holds is damaged, which digests of all that is read tell; a ValueError.
        WorkerLostError: If a worker of the executor died: it names the chains without draws.
        RuntimeError: In a process group of several processes (:func:`~pyrobnn.independent_processes`).
        DirectoryInUseError: If another process or thread samples to ``directory``.
        OSError: If the disk is full; the draws recorded before stay readable, and can be resumed from.
    """
    refuse_process_group("sample")
    refuse_wrapped(model=model)
    check_device("device", device)
    check_executor(executor)
    _check(kernel, num_samples, warmup_steps, thinning, num_chains, vmap, max_bytes, directory, resume, executor)
    if device is not None and isinstance(model, nn.Module):
        model.to(device)
    refuse_inference_tensors(model=model)
    refuse_untrained(model, "sample()")
    if executor is not None:
        options = {
            "kernel": kernel,
            "num_samples": num_samples,
            "batch": batch,
            "warmup_steps": warmup_steps,
            "thinning": thinning,
            "batch_norm": batch_norm,
            "vmap": vmap,
            "device": device,
            "max_bytes": max_bytes,
        }
        with gradients_enabled(), in_one_thread(model=model), sampled(model, batch_norm):
            return apart(sample, model, data, init, num_chains, options, executor, seed, directory, resume)
    with gradients_enabled(), in_one_thread(model=model), chain_seed(seed), sampled(model, batch_norm):
        if isinstance(kernel, FullBatchKernel):
            args = all_data(model, data, device, batch)
            example = example_if_needed(model, args)
            start = initial_points(Layout.of(model, example=example), model, init, num_chains)
            _check_memory(num_samples, start, max_bytes, None)
            result = kernel.run(
                model,
                args,
                num_samples=num_samples,
                warmup_steps=warmup_steps,
                thinning=thinning,
                num_chains=num_chains,
                init=start,
                seed=seed,
                progress=progress,
            )
            draws = result.draws.transpose(0, 1).contiguous()
            return Chains(model, num_chains, len(draws), [draws], stats=result.stats, example=example)
        assert isinstance(kernel, StochasticGradientKernel)
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
        _check_memory(num_samples, run.flat, max_bytes, directory)
        if directory is None:
            run.store = MemoryStore(num_samples, run.flat)
            run.until(num_samples, progress)
        else:
            run.store = DiskStore(directory, num_samples, max_bytes)
            with _continued(run, run.store, resume):
                run.until(num_samples, progress)
        guide = run.store.chains(model, run.example)
        return guide if len(guide.blocks) > 1 else guide.to(run.flat.device)


@contextlib.contextmanager
def _continued(run: Run, store: DiskStore, resume: bool) -> Iterator[None]:
    """Continues the run in the store's directory, if there is one; one that has enough draws is only read."""
    if store.exists and not resume:
        raise ValueError(
            f"directory: {store.directory} holds a run already; pass resume=True to continue it, or another directory."
        )
    if store.exists:
        state = store.recorded()
        if store.kept >= store.num_samples:
            run.write(state, store)
            yield
            return
    with store.locked():
        if store.exists:  # as its last writer left it
            run.write(store.recorded(), store)
        yield


def _check(
    kernel: Any,
    num_samples: Any,
    warmup_steps: Any,
    thinning: Any,
    num_chains: Any,
    vmap: Any,
    max_bytes: Any,
    directory: Any,
    resume: bool,
    executor: Executor | None,
) -> None:
    if not isinstance(kernel, StochasticGradientKernel | FullBatchKernel):
        hint = "; make an instance of it, such as SGLD(step_size=1e-5)" if isinstance(kernel, type) else ""
        raise TypeError(f"kernel: expected one of pyrobnn.sampling, got {kernel!r}{hint}.")
    for name, count in (
        ("num_samples", num_samples),
        ("thinning", thinning),
        ("num_chains", num_chains),
        ("max_bytes", max_bytes),
    ):
        check_positive_int(name, count)
    check_int("warmup_steps", warmup_steps, 0)
    if vmap not in (True, False, "auto"):
        raise ValueError(f"vmap: expected True, False or 'auto', got {vmap!r}.")
    if directory is not None:
        check_directory("directory", directory)
    if resume and directory is None:
        raise ValueError("resume: nothing to resume from; pass directory= that of the earlier run.")
    if directory is not None and executor is None and isinstance(kernel, FullBatchKernel):
        raise ValueError(
            "directory: only SG-MCMC streams its draws to disk; HMC and NUTS keep them in memory. With executor=, such "
            "as pyrobnn.SerialExecutor(), whole chains are kept."
        )


def _check_memory(num_samples: int, start: Tensor, max_bytes: int, directory: Any) -> None:
    refuse_float16("model", start)
    size = num_samples * start.nbytes
    if directory is None and size > max_bytes:
        raise ValueError(
            f"max_bytes: {num_samples} draws of {len(start)} chains take {size / 1e6:,.0f} MB, more than "
            f"{max_bytes / 1e6:,.0f} MB; stream them to disk with directory=, keep fewer, or raise max_bytes."
        )
