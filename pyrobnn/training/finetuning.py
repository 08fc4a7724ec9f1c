r"""Bayesian fine-tuning (BayesAdapter): a pretrained network becomes a posterior in a few epochs.

The posterior starts at the pretrained weights with small standard deviations, :math:`\log\sigma \in [-6, -5]`; means
then move slowly and scales fast, and both more slowly toward the end. With auxiliary inputs, the regularizer of
:class:`~pyrobnn.objectives.RegularizedELBO` trains draws to disagree on them. Deng, Zhang, Yang, Dong & Zhu,
*BayesAdapter* (2020); the last-layer form follows Deng, Yang, Xu, Su & Zhu, *LiBRe* (2021).
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sized
from functools import partial
from typing import Any, Literal

import pyro.distributions as dist
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from pyrobnn.core import random_state
from pyrobnn.core.arguments import check_non_negative, check_positive, check_positive_int
from pyrobnn.core.batches import Batch
from pyrobnn.core.explanations import explained
from pyrobnn.core.gradient_modes import gradients_enabled, refuse_inference_tensors
from pyrobnn.core.module_state import modes_restored
from pyrobnn.core.processes import refuse_process_group, refuse_wrapped
from pyrobnn.estimators import EstimatorSpec, PerGroup
from pyrobnn.guides import DeltaMixture, Guide, LowRankEnsemble, MeanField
from pyrobnn.guides.base import check_guide
from pyrobnn.model.bayesianize import frozen_buffers
from pyrobnn.model.dropout import dropout_rates
from pyrobnn.model.likelihoods import Categorical, Likelihood
from pyrobnn.model.network_copy import copied
from pyrobnn.model.num_data import stated_rows
from pyrobnn.model.priors import PriorSpec
from pyrobnn.model.supervised import OutputSpec, SupervisedModel, run_network
from pyrobnn.objectives import ELBO, RegularizedELBO
from pyrobnn.objectives.regularized import Auxiliary
from pyrobnn.training.fit import fit
from pyrobnn.training.last_layer import last_layer_by_run
from pyrobnn.training.running_statistics import BATCH_NORMS

__all__ = ["Posterior", "finetune"]

PosteriorName = Literal["mean_field", "delta_mixture", "low_rank_sharing", "last_layer"]
Posterior = PosteriorName | Callable[[SupervisedModel], Guide]

LOG_SCALES = (-6.0, -5.0)
SLOW, SLOW_TO_DISAGREE = 2e-4, 8e-3
"""Learning rates of means without and with auxiliary inputs, the latter to be divided by the depth."""

RISE, RISE_TO_DISAGREE, FASTEST = 1.0, 3.0, 0.03
"""How far log scales may rise under Adam in all, without and with auxiliary inputs, and in a step."""

FACTORS_TO_DISAGREE = 20.0
"""Learning rate of the factors of members that share weights over that of the weights, with auxiliary inputs."""

UNKNOWN_STEPS = 100
"""Steps that fine-tuning is taken to last where the loader has no length."""

MOST_PER_EXAMPLE = 2**20
"""The most weights of which each example gets a draw by default: half a gigabyte for a batch of 128."""


@explained
def finetune(
    net: nn.Module,
    loader: Iterable[Any],
    posterior: Posterior = "mean_field",
    *,
    likelihood: Likelihood | None = None,
    output: OutputSpec = None,
    prior: PriorSpec | None = None,
    num_data: int | None = None,
    num_members: int = 5,
    epochs: int = 4,
    lr: float | None = None,
    scale_lr: float | None = None,
    auxiliary: Auxiliary | None = None,
    threshold: float = 0.5,
    weight: float = 1.0,
    estimator: EstimatorSpec = None,
    batch_norm: Literal["freeze", "train"] = "freeze",
    seed: int | None = None,
    **options: Any,
) -> tuple[SupervisedModel, Guide]:
    r"""Turns a pretrained network into a Bayesian one.

    Args:
        net: The trained network, any module (such as one of torchvision with its pretrained weights). It is copied,
            and dropout in the copy switched off.
        loader: The training data, as for :func:`pyrobnn.fit`.
        posterior: ``"mean_field"``: a Gaussian over all ordinary weights; ``"last_layer"``: the same over the layer
            that runs last only; ``"delta_mixture"``: ``num_members`` copies of the network; ``"low_rank_sharing"``: as
            many members that share the weights up to rank-1 factors. Or a function that builds a guide of the model.
        likelihood: What the outputs mean; classes if None.
        output: What of the network's return value the likelihood sees, such as ``"logits"``, if it is not a tensor
            (:class:`~pyrobnn.SupervisedModel`).
        prior: Prior of the weights. If None, ``Normal(0, 1 / sqrt(2e-4 N))``, weight decay 2e-4 in the
            mean loss. ``priors.centered(scale)`` centers it on the pretrained weights.
        num_data: Number N of training data; that of the loader's data set or of the sampler of a subset if None.
        num_members: Members of the two mixtures.
        epochs: Passes over the data.
        lr: Learning rate of the means (of members), at its highest: rates fall along a cosine from epoch to epoch
            (a single one has half of it), unless ``options`` hold a ``scheduler``, None for constant rates, or an
            ``optimizer``. Slow, since the means are trained already: None takes 2e-4. With auxiliary inputs, on which
            there is something to learn, it takes 8e-3 divided by the number of the network's weight matrices and
            kernels (4e-4 for a ResNet-20): what a step does to the outputs grows with depth.
        scale_lr: Learning rate of the log standard deviations: fast, since they have far to go. Under Adam they all
            rise by about ``scale_lr`` a step toward the prior's until the data hold them back, which takes longer
            than fine-tuning lasts. None therefore takes what averages 1 divided by the number of steps, at most 0.03,
            so that standard deviations end about e times as wide as they began, however long it lasts; with auxiliary
            inputs, on which narrow posteriors cannot disagree, 3 divided by it. The factors of members that share
            weights learn as fast as those, with auxiliary inputs twenty times as fast.
        auxiliary: Inputs to be uncertain about: a function of the batch's inputs, such as
            ``objectives.perturbed(0.3)``, or an iterable of inputs; None for no regularizer.
        threshold: Mutual information in nats that is enough there.
        weight: Weight of the regularizer.
        estimator: How draws enter the layers. None is one draw for a batch, of mixtures one member. But with auxiliary
            inputs, for guides that are independent Gaussians, it is a draw per example, as in the paper: what one draw
            says about the scales' effect on disagreement is mostly noise. Above a million weights, of which a draw per
            example takes too much memory, it is ``"flipout"``. And each member of a mixture has its own share of the
            batch then (all of it if BatchNorm is to be trained on it, or with ``"shared"``, at M times the cost).
        batch_norm: ``"freeze"``: BatchNorm layers normalize by the pretrained running statistics, in fine-tuning as in
            prediction. Under those of a batch (``"train"``), draws would be fitted to a network other than the one that
            predicts, and the regularizer, which sees the latter, could degrade it unnoticed.
        seed: Seeds torch, NumPy, Python and Pyro for this call, where the posterior starts included; restored after it.
        **options: Passed on to :func:`pyrobnn.fit` (``device``, ``validation``, ``progress`` …).

    Returns:
        The model and the fitted guide.

    Raises:
        TypeError: If ``num_data`` is needed and the loader has no known length, or an argument is of another kind.
        ValueError: If an argument is out of its range, or no single layer is the last (tied weights, several heads).
        RuntimeError: In a process group of several processes (:func:`~pyrobnn.independent_processes`).
    """
    refuse_process_group("finetune")
    refuse_wrapped(net=net)
    if batch_norm not in ("freeze", "train"):
        raise ValueError(f"batch_norm: expected 'freeze' or 'train', got {batch_norm!r}.")
    refuse_inference_tensors(net=net)
    with gradients_enabled(), random_state.local(seed):
        count = _num_data(loader) if num_data is None else num_data
        check_positive_int("num_data", count)
        check_positive_int("num_members", num_members)
        check_positive("threshold", threshold)
        check_non_negative("weight", weight)
        rule = dist.Normal(0.0, (2e-4 * count) ** -0.5) if prior is None else prior
        if posterior == "last_layer":
            rule, loader = last_layer_by_run(net, rule, loader, options.get("batch"), output)
        net = _without_dropout(net)
        own = Categorical() if likelihood is None else copy.deepcopy(likelihood)
        model = SupervisedModel(net, own, rule, num_data=count, output=output)
        guide = _guide(model, posterior, num_members, members_per_step=1 if auxiliary is None else None)
        elbo: ELBO
        if auxiliary is None:
            rise, slow, elbo = RISE, SLOW, ELBO(estimator=estimator)
        else:
            rise, slow = RISE_TO_DISAGREE, SLOW_TO_DISAGREE / _depth(net)
            if estimator is None:
                estimator = _estimator_to_disagree(guide, members_may_split=batch_norm == "freeze")
            elbo = RegularizedELBO(auxiliary, threshold, weight, estimator=estimator)
        lr, mean_share = slow if lr is None else lr, 1.0
        if options.keys().isdisjoint({"scheduler", "optimizer"}):
            options["scheduler"], mean_share = partial(_falling, epochs=epochs), 0.5
        if scale_lr is None and not guide.facts.gaussian:  # factors of members, not log scales
            scale_lr = lr if auxiliary is None else FACTORS_TO_DISAGREE * lr
        elif scale_lr is None:
            scale_lr = _scale_lr(loader, epochs, rise) / mean_share
        keep = (nn.RNNBase, *BATCH_NORMS) if batch_norm == "train" else (nn.RNNBase,)
        with contextlib.ExitStack() as stack:
            if batch_norm == "freeze":
                stack.enter_context(frozen_batch_norm(model))
            stack.enter_context(_without_noise(model, loader, options.get("batch"), keep))
            fit(model, guide, loader, epochs=epochs, lr=lr, scale_lr=scale_lr, elbo=elbo, seed=seed, **options)
        return model, guide


@contextlib.contextmanager
def frozen_batch_norm(model: nn.Module) -> Iterator[None]:
    """BatchNorm layers normalize by their running statistics and leave them alone, in whatever mode the model is."""
    layers = [layer for layer in model.modules() if isinstance(layer, BATCH_NORMS) and layer.running_mean is not None]
    handles = [layer.register_forward_pre_hook(_to_evaluation) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _to_evaluation(layer: nn.Module, _: Any) -> None:
    layer.eval()


def _guide(model: SupervisedModel, posterior: Posterior, num_members: int, members_per_step: int | None) -> Guide:
    if not isinstance(posterior, str):
        if not callable(posterior):
            raise TypeError(f"posterior: expected a name or a function that builds a guide, got {posterior!r}.")
        check_guide(model, guide := posterior(model), argument="posterior")
        return guide
    if posterior in ("mean_field", "last_layer"):
        guide = MeanField(model)
        with torch.no_grad():
            guide.flat_log_scale.uniform_(*LOG_SCALES)
        return guide
    if posterior == "delta_mixture":
        return DeltaMixture(model, num_members, init=model.net.network, members_per_step=members_per_step)
    if posterior == "low_rank_sharing":
        return LowRankEnsemble(model, num_members, members_per_step=members_per_step)
    raise ValueError(
        "posterior: expected 'mean_field', 'last_layer', 'delta_mixture', 'low_rank_sharing' or a function that builds "
        f"a guide, got {posterior!r}."
    )


def _depth(net: nn.Module) -> int:
    """Number of weight matrices and kernels."""
    return max(1, sum(parameter.dim() >= 2 for parameter in net.parameters()))


def _estimator_to_disagree(guide: Guide, members_may_split: bool) -> EstimatorSpec:
    """How draws enter the layers by default, with auxiliary inputs."""
    members = guide.facts.num_training_draws or 1
    if members > 1:
        return PerGroup(members) if members_may_split else None
    if not guide.facts.gaussian:
        return None
    return "per_example" if guide.layout.size <= MOST_PER_EXAMPLE else "flipout"


def _scale_lr(loader: Iterable[Any], epochs: int, rise: float) -> float:
    """The learning rate by which log scales rise by ``rise`` in all."""
    steps = epochs * len(loader) if isinstance(loader, Sized) else UNKNOWN_STEPS
    return min(FASTEST, rise / max(1, steps))


def _falling(optimizer: Optimizer, epochs: int) -> LRScheduler:
    """Learning rates along a cosine, taken at the middle of each epoch, so that one epoch has half the rate."""
    return LambdaLR(optimizer, lambda epoch: 0.5 + 0.5 * math.cos(math.pi * (min(epoch, epochs - 1) + 0.5) / epochs))


def _without_dropout(net: nn.Module) -> nn.Module:
    """A copy without dropout: the posterior's noise replaces it."""
    net = copied(net)
    for module, name in dropout_rates(net):
        setattr(module, name, 0.0)
    return net


@contextlib.contextmanager
def _without_noise(
    model: SupervisedModel, loader: Iterable[Any], reader: Any, keep: tuple[type[nn.Module], ...]
) -> Any:
    """Runs the network in evaluation mode if it has noise of its own that modules do not show, such as ``F.dropout``.

    Args:
        model: The model.
        loader: Data, of which the first batch is run twice; an iterator is not touched, and nothing changed then.
        reader: How to read what it yields.
        keep: Kinds of modules that stay in training mode.
    """
    network = model.net.network
    if isinstance(loader, Iterator) or not _is_noisy(model, network, loader, reader):
        yield
        return

    def to_evaluation(net: nn.Module, _: Any) -> None:
        for module in net.modules():
            module.training = module.training and isinstance(module, keep)

    handle = network.register_forward_pre_hook(to_evaluation)
    try:
        yield
    finally:
        handle.remove()


def _is_noisy(model: SupervisedModel, network: nn.Module, loader: Iterable[Any], reader: Any) -> bool:
    """Whether two runs of the network in training mode, with the same weights and batch, differ."""
    device = next(network.parameters()).device
    with torch.no_grad(), random_state.preserved(device), frozen_buffers(model):
        for raw in loader:
            inputs = Batch.read(raw, device, reader).inputs
            with modes_restored(network):
                network.train()
                first, second = (model.select(run_network(network, inputs)) for _ in range(2))
            return not torch.allclose(first, second, rtol=1e-3, atol=1e-3 * float(first.std(correction=0)))
    return False


def _num_data(loader: Iterable[Any]) -> int:
    stated = stated_rows(loader)
    if not stated:
        raise TypeError("num_data: the loader has no data set of known length; state the number of training data.")
    return stated[0]
