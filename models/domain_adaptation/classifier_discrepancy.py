r"""MCD, maximum classifier discrepancy: two classifiers that disagree on targets find those far from the source.

.. math::  d(x) = \frac1C \sum_c |p_1(c \mid x) - p_2(c \mid x)|.

Three phases for each batch: (A) all parameters fit the source; (B) the classifiers fit the source and *maximize* d on
the targets; (C) the features *minimize* it, a few times. Saito, Watanabe, Ushiku & Harada, *Maximum Classifier
Discrepancy for Unsupervised Domain Adaptation* (2018). Here the two classifiers are two draws of the last layer's
posterior: two members of an ensemble of heads give the paper's form,
``Composite(model, [("head.*", partial(DeltaMixture, num_members=2)), ("*", MAP)])``, and any other posterior of the
head a Bayesian one.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from models.domain_adaptation.batches import Adversaries, AlignmentLoss, DomainBatch
from pyrobnn.core import schedules
from pyrobnn.core.arguments import check_positive_int
from pyrobnn.training import Phase

__all__ = ["ClassifierDiscrepancy", "discrepancy"]


class ClassifierDiscrepancy(AlignmentLoss):
    """The mean discrepancy of two draws on the targets, and its two phases.

    Args:
        head: The part of the guide that holds the classifiers, such as ``guide.parts[0]``.
        weight: Factor of the discrepancy in both phases, or its schedule.
        num_steps: Steps of the features for each batch; 4 is the paper's.

    Raises:
        TypeError: If ``head`` is no module.
        ValueError: If ``weight`` is negative or ``num_steps`` no positive int; in :func:`adapt`, if no parameters are
            left for the features.
    """

    name = "classifier_discrepancy"
    needs_other = True
    in_objective = False

    def __init__(self, head: nn.Module, weight: schedules.Schedule = 1.0, *, num_steps: int = 4) -> None:
        super().__init__(weight)
        if not isinstance(head, nn.Module):
            raise TypeError(f"head: expected a part of the guide, got {type(head).__name__}.")
        check_positive_int("num_steps", num_steps)
        self.head, self.num_steps = head, num_steps

    def __call__(self, batch: DomainBatch, weight: float) -> Tensor:
        """The discrepancy times its weight."""
        assert batch.other is not None
        return weight * discrepancy(batch.target.probabilities, batch.other.softmax(-1))

    def further_phases(self, game: Adversaries) -> list[Phase]:
        """Phase B of the classifiers and phase C of the features."""
        own = {id(parameter) for parameter in self.head.parameters()}
        others = [parameter for parameter in game.classifier.trained if id(parameter) not in own]
        if not others or len(others) == len(game.classifier.trained):
            raise ValueError(
                "head: the guide's other parameters are those of the features, but head holds "
                f"{'all' if not others else 'none'} of them; use guides.Composite and pass one of its parts."
            )
        head = game.make_player("classifiers", self.head)
        features = game.make_player("features", nn.ParameterList(others))

        def apart(batch: Any) -> Tensor:
            weight = self.weight_at(game.step())
            return game.source_loss(batch) - self(game.observe(batch, [self]), weight)

        def together(batch: Any) -> Tensor:
            return self(game.observe(batch, [self]), self.weight_at(game.step()))

        return [Phase(head, apart), Phase(features, together, steps=self.num_steps)]


def discrepancy(first: Tensor, second: Tensor) -> Tensor:
    """The mean absolute difference of probabilities ``[B, C]``, over rows and classes."""
    return (first - second).abs().mean()
