r"""The term that adapts a network: losses on one batch of both domains, run once under one draw of the weights.

.. math::  L = -\frac1N \mathrm{ELBO}(\text{source}) + \sum_j \alpha_j(t)\, L_j(x_s, y_s, x_t), \qquad w \sim q

Only the source has a likelihood; N is its size. The network runs on both batches in evaluation mode, as predictions
will: BatchNorm's statistics are those of the source, which the likelihood's own run updates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from models.domain_adaptation.batches import AlignmentLoss, Domain, DomainBatch
from models.domain_adaptation.teachers import MeanTeacher, TargetTeacher
from pyrobnn.detection.last_layer_inputs import features_by_row
from pyrobnn.model.bayesianize import evaluating
from pyrobnn.model.draws import Draws
from pyrobnn.model.last_layer import layers_named, recorded_calls
from pyrobnn.model.likelihoods import ClassLikelihood
from pyrobnn.model.likelihoods.reductions import widened
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.objectives.auxiliary import Auxiliary, AuxiliaryTerm
from pyrobnn.objectives.consistency import Augmentation, augmented, check_augmentation
from pyrobnn.objectives.parts import explaining_non_finite_draws
from pyrobnn.objectives.terms import Evaluation, Run
from pyrobnn.objectives.unlabeled import UnlabeledLoader

__all__ = ["DomainAlignment", "check_losses"]


class DomainAlignment(AuxiliaryTerm):
    """Losses on both domains, a term of any objective: ``ELBO(terms=[DomainAlignment(target, [ClusterAlignment()])])``.

    Networks of the losses (discriminators) are trained by :func:`~models.domain_adaptation.adapt`, which makes the
    objective itself.

    Args:
        target: An :class:`~pyrobnn.objectives.UnlabeledLoader`, or an iterable of input batches, begun again when it
            ends (pairs ``(x, y)`` lose their ``y``).
        losses: What is minimized besides; those with weight 0 are not computed.
        layer: The layer whose inputs are the features; None for the one with a weight matrix that runs last.
        teacher: Who says which class a target is, for losses that ask; it sees inputs as they are.
        augment: A random function of a batch of inputs that keeps its rows, such as noise, applied to both domains for
            the losses, not for the source's likelihood.

    Attributes:
        batch: The last batch of both domains, without its graph; None before the first step.
        values: What the losses were there, by name.

    Raises:
        TypeError: If an argument is of another kind; at the first step, if the model has no likelihood of classes.
        ValueError: If two losses have one name; at the first step, if there is no such layer, or no target.
    """

    name = "alignment"
    argument: ClassVar[str] = "target"
    when: ClassVar[Literal["draw", "after", "across"]] = "after"

    def __init__(
        self,
        target: Auxiliary | UnlabeledLoader,
        losses: Sequence[AlignmentLoss],
        *,
        layer: str | None = None,
        teacher: TargetTeacher | None = None,
        augment: Augmentation = None,
    ) -> None:
        super().__init__(target)
        check_augmentation(augment)
        check_losses(losses)
        self.teacher = MeanTeacher() if teacher is None else teacher
        if self.teacher.needs_rows and not isinstance(target, UnlabeledLoader):
            raise TypeError(
                f"target: {type(self.teacher).__name__} must know which row is which; pass UnlabeledLoader(inputs), "
                f"got {type(target).__name__}."
            )
        self.losses, self.layer, self.augment = list(losses), layer, augment
        self._own = [loss for loss in losses if loss.in_objective]
        self.batch: DomainBatch | None = None
        self.values: dict[str, float] = {}
        self._step = 0

    def current_weight(self, step: int, model: Any = None, guide: Any = None) -> float:
        """1, or 0 while nobody needs a batch of targets, so that nothing is computed."""
        self._step = step
        return float(any(loss.observes or loss.weight_at(step) for loss in self._own))

    def __call__(self, runs: Sequence[Run], evaluation: Evaluation) -> Tensor:
        """N times the weighted sum of the losses."""
        active = [(loss, weight) for loss in self._own if (weight := loss.weight_at(self._step)) or loss.observes]
        batch = self.observe(evaluation, [loss for loss, _ in active])
        total = torch.zeros(())
        for loss, weight in active:
            value = loss(batch, weight)
            total = total + value
            self.values[loss.name] = float(value.detach())
        self.batch = _detached(batch)
        return evaluation.model.num_data * total

    def observe(self, evaluation: Evaluation, losses: Sequence[AlignmentLoss]) -> DomainBatch:
        """Both domains under one further draw, with what these losses need.

        Raises:
            TypeError: If the model has no likelihood of classes, or there are no labels.
            ValueError: If there are no targets, or no such layer.
        """
        model = _checked(evaluation.model)
        if len(evaluation.args) < 2 or not isinstance(evaluation.args[1], Tensor):
            raise TypeError("loader: the source must yield pairs (x, y) of inputs and labels.")
        x, labels = evaluation.args[:2]
        target_x, index = self.inputs_and_rows(evaluation)
        with evaluating(model):
            draws = evaluation.step.draw(None)
            source, target = (self.run(model, draws, augmented(self.augment, inputs)) for inputs in (x, target_x))
            other = taught = None
            if any(loss.needs_other for loss in losses):
                second = evaluation.step.draw(None, avoid=draws.component)
                other = self.run(model, second, target.inputs).logits
            if any(loss.needs_teacher for loss in losses):
                taught = self.teacher.probabilities(
                    evaluation, target_x, index, target.probabilities, lambda *given: self.run(*given).probabilities
                )
        return DomainBatch(source, target, labels, taught, other, lambda inputs: self._again(model, draws, inputs))

    def run(self, model: SupervisedModel, draws: Draws, x: Any) -> Domain:
        """The network on a batch under a draw, in its present mode; buffers are left alone."""
        layers = layers_named(model.net.network, self.layer)
        running = draws.running(model, update=False)
        with explaining_non_finite_draws(draws, self.name), running, recorded_calls(layers) as calls:
            outputs = model.predictive(x)
        if calls.inputs is None or calls.count != 1 or calls.last is None:
            raise ValueError(f"layer: {calls.last!r} did not run once with one tensor; name another layer.")
        features = features_by_row(calls.last, calls.inputs, layers[calls.last], len(outputs))
        assert isinstance(model.likelihood, ClassLikelihood)
        return Domain(x, features, model.likelihood.logits(widened(outputs)))

    def _again(self, model: SupervisedModel, draws: Draws, x: Any) -> Domain:
        with evaluating(model):
            return self.run(model, draws, x)

    def state(self) -> dict[str, Tensor]:
        """The position among the targets, the teacher, and what losses remember."""
        found = super().state()
        for loss in self.losses:
            found |= _prefixed(loss.name, loss.state())
        return found | _prefixed("teacher", self.teacher.state())

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continues there."""
        super().load_state(state)
        for loss in self.losses:
            loss.load_state(_without(loss.name, state))
        self.teacher.load_state(_without("teacher", state))


def check_losses(losses: Sequence[AlignmentLoss]) -> None:
    """Refuses what are no losses, or two of one name.

    Raises:
        TypeError: If one is of another kind.
        ValueError: If two have one name.
    """
    if wrong := [loss for loss in losses if not isinstance(loss, AlignmentLoss)]:
        raise TypeError(f"losses: expected losses of models.domain_adaptation, got {wrong[0]!r}.")
    names = [loss.name for loss in losses]
    if len(set(names)) < len(names):
        raise ValueError(f"losses: two of them have one name: {', '.join(names)}.")


def _checked(model: Any) -> SupervisedModel:
    if not isinstance(model, SupervisedModel) or not isinstance(model.likelihood, ClassLikelihood):
        raise TypeError("model: adaptation needs a SupervisedModel with a likelihood of classes.")
    return model


def _detached(batch: DomainBatch) -> DomainBatch:
    source, target = (
        Domain(side.inputs, side.features.detach(), side.logits.detach()) for side in (batch.source, batch.target)
    )
    return DomainBatch(source, target, batch.labels, batch.teacher)


def _prefixed(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in state.items()}


def _without(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {name.removeprefix(start): value for name, value in state.items() if name.startswith(start)}
