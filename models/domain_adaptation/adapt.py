r"""One training function for all methods: the source's likelihood, alignment, and adversaries in turns.

Each round, the classifier takes a step on

.. math::  -\frac1N \mathrm{ELBO}(x_s, y_s) + \sum_j \alpha_j(t)\, L_j(x_s, y_s, x_t),

then discriminators and further phases of the losses take theirs. Methods of the literature are lists of losses:

=================  ==================================================================
source only        ``[]``
RevGrad (DANN)     ``[DomainAdversarial(d)]``
rRevGrad           ``[DomainAdversarial(d, gate=0.9)]``
MSTN               ``[DomainAdversarial(d), CentroidAlignment()]``
DDC                ``[MeanDiscrepancy()]``
MCD                ``[ClassifierDiscrepancy(guide.parts[0])]``
VADA               ``[DomainAdversarial(d), VirtualAdversarial()]``
CAT                ``[ClusterAlignment()]``
rRevGrad + CAT     ``[DomainAdversarial(d, gate=0.9), ClusterAlignment()]``
=================  ==================================================================
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from models.domain_adaptation.alignment import DomainAlignment, check_losses
from models.domain_adaptation.batches import Adversaries, AlignmentLoss, DomainBatch
from models.domain_adaptation.teachers import TargetTeacher
from models.domain_adaptation.unlabeled_targets import unlabeled
from pyrobnn.core.batches import Batch
from pyrobnn.guides.base import Guide
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.objectives import ELBO, UnlabeledLoader
from pyrobnn.objectives.consistency import Augmentation
from pyrobnn.objectives.terms import Evaluation
from pyrobnn.training import Game, GameHistory, GamePlayer, Phase
from pyrobnn.training.checks import check_targets

__all__ = ["adapt"]


def adapt(
    model: SupervisedModel,
    guide: Guide,
    source: Iterable[Any],
    target: Iterable[Any] | UnlabeledLoader,
    losses: Sequence[AlignmentLoss] = (),
    *,
    epochs: int,
    lr: float = 1e-3,
    optimizer: Callable[..., Optimizer] | None = None,
    scheduler: Callable[[Optimizer], LRScheduler] | None = None,
    adversary_lr: float | None = None,
    layer: str | None = None,
    teacher: TargetTeacher | None = None,
    augment: Augmentation = None,
    objective: Callable[..., ELBO] = ELBO,
    callbacks: Sequence[Callable[[GameHistory], bool | None]] = (),
    seed: int | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> GameHistory:
    """Fits a guide to labeled sources, such that it serves unlabeled targets.

    Args:
        model: A model with a likelihood of classes; its ``num_data`` is the number of sources.
        guide: Any guide of this library built for it.
        source: Yields batches ``(x, y)``.
        target: An :class:`~pyrobnn.objectives.UnlabeledLoader`, or an iterable of input batches, begun again when it
            ends. Labels that it yields are not read.
        losses: What brings the domains together. Without any, or with weights 0, this is training on the source alone,
            bit for bit.
        epochs: Passes over the source.
        lr: Learning rate.
        optimizer: A function from parameters and ``lr`` to a torch optimizer; Adam if None.
        scheduler: A function from an optimizer to a learning-rate schedule, which advances each round.
        adversary_lr: Learning rate of discriminators; ``lr`` if None.
        layer: The layer whose inputs are the features; None for the one with a weight matrix that runs last.
        teacher: Who says which class a target is; the mean teacher if None.
        augment: A random function of a batch of inputs, for the losses alone, such as noise.
        objective: Makes the objective from ``terms=``.
        callbacks: Called with the history after each epoch; one that returns True ends the training.
        seed: Fixes all randomness of the call.
        device: Where to train.
        progress: Show a progress bar.

    Returns:
        The history: ``"classifier.loss"``, the value of each loss (``"classifier.cluster_alignment"``) and the
        adversaries' losses and values, per epoch.

    Warns:
        UserWarning: If the target yields labels, a source batch has one class only, or a discriminator collapses.

    Raises:
        TypeError: If an argument is of another kind.
        ValueError: If a label is none of the model's classes, or an argument is out of range.
        NonFiniteLossError: If a loss becomes NaN or infinite.
    """
    if not isinstance(guide, Guide):
        raise TypeError(f"guide: expected a guide of pyrobnn, got {type(guide).__name__}.")
    check_losses(losses)
    active = [loss for loss in losses if not loss.is_off]
    term = DomainAlignment(unlabeled(target), active, layer=layer, teacher=teacher, augment=augment)
    elbo = objective(terms=[term] if any(loss.in_objective for loss in active) else [])
    check = _SourceCheck(model, bool(active))

    def arguments(raw: Any) -> tuple[Any, ...]:
        batch = Batch.read(raw, device)
        check(batch)
        return batch.args

    def of_classifier(raw: Any) -> tuple[Tensor, dict[str, Tensor]]:
        loss = elbo.differentiable_loss(model, guide, *arguments(raw)) / model.num_data
        elbo.num_steps += 1
        parts = elbo.parts
        assert parts is not None
        values = {"log_likelihood": parts.log_likelihood / model.num_data}
        return loss, values | {name: torch.tensor(value) for name, value in term.values.items()}

    def make(name: str, module: nn.Module, rate: float = lr) -> GamePlayer:
        return GamePlayer(name, module, optimizer, rate, scheduler=scheduler)

    classifier = make("classifier", nn.ModuleList([guide, model]))
    plain = objective()

    def observe(raw: Any, needed: Sequence[AlignmentLoss]) -> DomainBatch:
        step = guide.step(model, sequential=False)  # several draws are in one graph
        return term.observe(Evaluation(model, guide, step, arguments(raw), {}), needed)

    def source_loss(raw: Any) -> Tensor:
        return plain.differentiable_loss(model, guide, *arguments(raw)) / model.num_data

    game = Adversaries(
        classifier,
        source_loss,
        observe,
        lambda: term.batch,
        make,
        lambda name, module: make(name, module, lr if adversary_lr is None else adversary_lr),
        lambda: elbo.num_steps,
    )
    further = [phase for loss in active for phase in loss.further_phases(game)]
    watches = [watch for loss in active for watch in loss.callbacks()]
    return Game([Phase(classifier, of_classifier), *further]).play(
        source, epochs=epochs, callbacks=[*watches, *callbacks], seed=seed, device=device, progress=progress
    )


class _SourceCheck:
    """Looks at each batch of the source; warns once of one class in a batch."""

    def __init__(self, model: SupervisedModel, needed: bool) -> None:
        self.model, self.needed, self.rounds = model, needed, 0

    def __call__(self, batch: Batch) -> None:
        if not self.rounds:
            check_targets(self.model, batch)
        self.rounds += 1
        labels = batch.targets
        if self.needed and isinstance(labels, Tensor) and len(labels) > 1 and bool((labels == labels[0]).all()):
            self.needed = False
            warnings.warn(
                f"source: all {len(labels)} rows of a batch are of class {int(labels[0])}, with which classes cannot "
                "be aligned; shuffle the source, or draw batches with all classes.",
                stacklevel=2,
            )
