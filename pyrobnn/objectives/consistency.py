r"""Semi-supervised consistency: predictions of unlabeled inputs should not change with noise.

.. math::  L = -\frac1N \mathrm{ELBO} + w(t)\, E_x\, \| p(y \mid a(x), w) - z(x) \|^2, \qquad w \sim q

with a random augmentation a, a squared distance summed over classes, and a target z:

* :class:`PiModel`: the prediction under another augmentation and another draw;
* :class:`TemporalEnsembling`: the average of the row's earlier predictions (both Laine & Aila 2017);
* :class:`~pyrobnn.objectives.MeanTeacher`: the prediction of averaged parameters (Tarvainen & Valpola 2017).

Unlabeled rows are never in the data plate: N counts labeled rows, whose likelihood is that of the ELBO. The weight
should rise slowly (:class:`~pyrobnn.schedules.GaussianRampUp`); too fast, and all predictions become the same one. The
papers take the mean over C classes, so that their weights are C times these. The network runs in evaluation mode (see
:mod:`pyrobnn.objectives.auxiliary`): noise are the augmentation and the draw, such as the masks of ``MCDropout``.
While the weight is 0, nothing is computed or averaged.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyrobnn.core import schedules
from pyrobnn.core.arguments import check_number
from pyrobnn.core.explanations import explained
from pyrobnn.model.bayesianize import evaluating
from pyrobnn.model.draws import Draws
from pyrobnn.model.likelihoods import ClassLikelihood
from pyrobnn.model.likelihoods.reductions import widened
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.objectives.auxiliary import Auxiliary, AuxiliaryTerm
from pyrobnn.objectives.parts import explaining_non_finite_draws
from pyrobnn.objectives.terms import Evaluation, Run
from pyrobnn.objectives.unlabeled import UnlabeledLoader

__all__ = [
    "Augmentation",
    "ConsistencyTerm",
    "PiModel",
    "TemporalEnsembling",
    "augmented",
    "check_augmentation",
    "squared_distances",
]

Augmentation = Callable[[Any], Any] | None
"""A random function of a batch of inputs that keeps its rows; None leaves inputs as they are."""


class ConsistencyTerm(AuxiliaryTerm):
    """N times the mean squared distance of class probabilities from a target, over unlabeled rows.

    Subclasses implement :meth:`distance`.

    Args:
        unlabeled: An :class:`~pyrobnn.objectives.UnlabeledLoader`; an iterable of input batches, begun again when it
            ends (its position is not part of checkpoints); or a function of the labeled batch's inputs.
        weight: Weight relative to the objective per datum, or its schedule; 0 switches the term off.
        augment: A random function of a batch of inputs, applied anew for each run of the network.

    Raises:
        TypeError: If ``unlabeled`` or ``augment`` is of another kind; at the first step, if the model has no likelihood
            of classes.
        ValueError: If ``weight`` is negative; at the first step, if there are no inputs, or ``augment`` changes the
            number of rows.
    """

    argument = "unlabeled"

    def __init__(
        self, unlabeled: Auxiliary | UnlabeledLoader, weight: schedules.Schedule = 1.0, *, augment: Augmentation = None
    ) -> None:
        weight = schedules.resolve("weight", weight, allow_zero=True, zero_constant=True)
        check_augmentation(augment)
        super().__init__(unlabeled, weight)
        self.augment = augment

    def __call__(self, runs: Sequence[Run], evaluation: Evaluation) -> Tensor:
        """The value.

        Raises:
            TypeError: If the model has no likelihood of classes.
            ValueError: If there are no inputs, or ``augment`` changes the number of rows.
        """
        model = evaluation.model
        if not isinstance(model, SupervisedModel) or not isinstance(model.likelihood, ClassLikelihood):
            raise TypeError(
                f"model: {type(self).__name__} compares class probabilities; it needs a SupervisedModel with a "
                "likelihood of classes."
            )
        x, index = self.inputs_and_rows(evaluation)
        with evaluating(model):
            return model.num_data * self.distance(x, index, evaluation)

    @abstractmethod
    def distance(self, x: Any, index: Tensor | None, evaluation: Evaluation) -> Tensor:
        """The mean squared distance.

        Args:
            x: Unlabeled inputs ``[B, ...]``.
            index: Which rows they are ``[B]``, None if ``unlabeled`` does not say.
            evaluation: Model, guide and step.
        """

    def probabilities(self, model: SupervisedModel, draws: Draws, x: Any) -> Tensor:
        """Class probabilities ``[B, ..., C]`` of augmented inputs under a draw, whose buffers are left alone."""
        with explaining_non_finite_draws(draws, self.name), draws.running(model, update=False):
            assert isinstance(model.likelihood, ClassLikelihood)
            return model.likelihood.probabilities(widened(model.predictive(augmented(self.augment, x))))


@explained
class PiModel(ConsistencyTerm):
    """The Π-model: two predictions of an input should agree.

    The gradient is that through both predictions, as in the paper. With independent draws it is estimated as twice that
    through the first, since both are exchangeable, and the second needs no graph.

    Args:
        unlabeled: Unlabeled inputs, as for :class:`ConsistencyTerm`.
        weight: As there.
        augment: As there.
        same_draw: Whether both predictions are under one draw, so that noise is augmentation alone. Independent draws
            also make a posterior agree with itself: members of an ensemble come to predict the same.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If ``weight`` is negative.
    """

    name = "pi_model"

    def __init__(
        self,
        unlabeled: Auxiliary | UnlabeledLoader,
        weight: schedules.Schedule = 1.0,
        *,
        augment: Augmentation = None,
        same_draw: bool = False,
    ) -> None:
        super().__init__(unlabeled, weight, augment=augment)
        if not isinstance(same_draw, bool):
            raise TypeError(f"same_draw: expected True or False, got {same_draw!r}.")
        self.same_draw = same_draw

    def distance(self, x: Any, index: Tensor | None, evaluation: Evaluation) -> Tensor:
        """Between two predictions."""
        model, step = evaluation.model, evaluation.step
        if self.same_draw:
            draws = step.draw(None)
            return squared_distances(self.probabilities(model, draws, x), self.probabilities(model, draws, x)).mean()
        with torch.no_grad():
            target = self.probabilities(model, step.draw(None), x)
        found = squared_distances(self.probabilities(model, step.draw(None), x), target).mean()
        return 2.0 * found - found.detach()


@explained
class TemporalEnsembling(ConsistencyTerm):
    r"""Temporal ensembling: a prediction should agree with the average of the row's earlier ones.

    After each visit of a row :math:`Z \leftarrow \alpha Z + (1 - \alpha)\, p`; its target at visit t, counted from 0,
    is :math:`Z / (1 - \alpha^t)`, which no gradient goes through. At the first visit there is none, and the row counts
    nothing. Targets are part of the checkpoints of ``fit``.

    Args:
        unlabeled: An :class:`~pyrobnn.objectives.UnlabeledLoader`, which says which rows a batch holds.
        weight: As for :class:`ConsistencyTerm`.
        augment: As there.
        momentum: The factor α, 0.6 in the paper; 0 takes the last prediction alone.

    Raises:
        TypeError: If ``unlabeled`` is no UnlabeledLoader or ``augment`` no function.
        ValueError: If ``weight`` is negative or ``momentum`` is not from 0 to below 1.
    """

    name = "temporal_ensembling"

    def __init__(
        self,
        unlabeled: UnlabeledLoader,
        weight: schedules.Schedule = 1.0,
        *,
        augment: Augmentation = None,
        momentum: float = 0.6,
    ) -> None:
        if not isinstance(unlabeled, UnlabeledLoader):
            raise TypeError(
                "unlabeled: temporal ensembling must know which row is which; pass UnlabeledLoader(inputs), got "
                f"{type(unlabeled).__name__}."
            )
        super().__init__(unlabeled, weight, augment=augment)
        check_number("momentum", momentum, 0.0, 1.0, below=True)
        self.momentum = momentum
        self._averages: Tensor | None = None
        self._visits = torch.zeros(unlabeled.num_rows, dtype=torch.long)

    @property
    def visits(self) -> Tensor:
        """How often each row has been predicted ``[U]``."""
        return self._visits

    @property
    def targets(self) -> Tensor | None:
        """The target of each row ``[U, ..., C]``, NaN where there is none yet; None before the first step."""
        return None if self._averages is None else self._averages / self._share(self._visits, self._averages)

    def distance(self, x: Any, index: Tensor | None, evaluation: Evaluation) -> Tensor:
        """From the targets; then the averages are updated, unless the value alone is computed."""
        assert index is not None
        found = self.probabilities(evaluation.model, evaluation.step.draw(None), x)
        visits, averages = self._of(found)
        index = index.to(found.device)
        old = averages[index]
        is_known = (visits[index] > 0).reshape(-1, *[1] * (found.dim() - 1))
        target = torch.where(is_known, old / self._share(visits[index], old), found.detach())
        if torch.is_grad_enabled():
            new = found.detach()
            is_finite = new.isfinite().reshape(len(new), -1).all(1)
            updated = old.lerp(new, 1.0 - self.momentum)
            averages[index] = torch.where(is_finite.reshape(is_known.shape), updated, old)
            visits[index] += is_finite.long()
            self._visits, self._averages = visits, averages
        return squared_distances(found, target).mean()

    def state(self) -> dict[str, Tensor]:
        """Averages, visits, and the position among the rows."""
        kept = {} if self._averages is None else {"averages": self._averages.clone(), "visits": self._visits.clone()}
        return super().state() | kept

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continues there."""
        super().load_state(state)
        averages, visits = state.get("averages"), state.get("visits")
        self._averages = None if averages is None else averages.clone()
        self._visits = torch.zeros_like(self._visits) if visits is None else visits.clone()

    def _of(self, found: Tensor) -> tuple[Tensor, Tensor]:
        """Visits and averages, beside the predictions."""
        if self._averages is None:
            return self._visits.to(found.device), found.new_zeros(len(self._visits), *found.shape[1:])
        return self._visits.to(found.device), self._averages.to(found)

    def _share(self, visits: Tensor, like: Tensor) -> Tensor:
        """What predictions weigh in an average, of as many dimensions as it has."""
        return (1.0 - self.momentum ** visits.to(like.dtype)).reshape(-1, *[1] * (like.dim() - 1))


def check_augmentation(augment: Augmentation) -> None:
    """Refuses what is no function.

    Raises:
        TypeError: If it is none.
    """
    if augment is not None and (not callable(augment) or isinstance(augment, type)):
        raise TypeError(f"augment: expected a function of a batch of inputs or None, got {augment!r}.")


def augmented(augment: Augmentation, x: Any) -> Any:
    """A batch of inputs after its augmentation.

    Raises:
        ValueError: If there are other numbers of rows.
    """
    found = x if augment is None else augment(x)
    if isinstance(x, Tensor) and isinstance(found, Tensor) and len(x) != len(found):
        raise ValueError(f"augment: it made {len(found)} rows of {len(x)}; it must keep them.")
    return found


def squared_distances(first: Tensor, second: Tensor) -> Tensor:
    """Squared distances ``[B]``, summed over classes and positions."""
    return (first - second).square().reshape(len(first), -1).sum(1)
