"""Terms of an objective on inputs that are not data: where the inputs come from, and how the network is run on them.

Such inputs have no targets and are never in the data plate. The network runs on them in evaluation mode, as predictions
will, under a further draw made as the objective's draws are (of an ensemble, one member with its own statistics);
running statistics are not touched.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor

from pyrobnn.core import schedules
from pyrobnn.core.batches import inputs_of
from pyrobnn.core.trees import leaves, to_device
from pyrobnn.model.bayesianize import evaluating
from pyrobnn.model.likelihoods import Likelihood
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.objectives.parts import explaining_non_finite_draws
from pyrobnn.objectives.terms import Evaluation, Run, Term
from pyrobnn.objectives.unlabeled import UnlabeledLoader

__all__ = ["Auxiliary", "AuxiliaryTerm", "InputSource", "OutlierTerm", "beside"]

Auxiliary = Callable[[Any], Any] | Iterable[Any]
"""A function of a batch's inputs, or an iterable of input batches (pairs ``(x, y)`` lose their ``y``)."""


class InputSource:
    """Inputs for each step, of a function of the batch's inputs, or of an iterable that is begun again when it ends.

    An :class:`~pyrobnn.objectives.UnlabeledLoader` also says which rows they are, and its position can be kept.

    Args:
        argument: What errors call it.
        given: The function or the iterable.
        expected: What errors say was expected.

    Raises:
        TypeError: If ``given`` is neither.
    """

    def __init__(
        self, argument: str, given: Auxiliary, expected: str = "a function of the inputs or an iterable of inputs"
    ) -> None:
        if isinstance(given, type | Tensor | str | bytes) or not (callable(given) or isinstance(given, Iterable)):
            raise TypeError(f"{argument}: expected {expected}, got {type(given).__name__}.")
        self.argument, self.given = argument, given
        self._batches: Iterator[Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """The state without the position in the iterable; copies begin it anew."""
        return self.__dict__ | {"_batches": None}

    def next(self, x: Any) -> Any:
        """The next inputs beside a batch of inputs.

        Raises:
            ValueError: If there are none.
        """
        return self.next_rows(x)[0]

    def next_rows(self, x: Any) -> tuple[Any, Tensor | None]:
        """The next inputs, and the indices of their rows ``[B]``, None where these are not known.

        Raises:
            ValueError: If there are none.
        """
        if isinstance(self.given, UnlabeledLoader):
            return self.given.next_batch()
        if callable(self.given):
            return self.given(x), None
        for _ in range(2):
            if self._batches is None:
                self._batches = iter(self.given)
            for batch in self._batches:
                return inputs_of(batch, self.argument)[0], None
            self._batches = None
        raise ValueError(f"{self.argument}: it yields no batch of inputs.")

    def state(self) -> dict[str, Tensor]:
        """The position, named after the argument; empty where it cannot be kept."""
        if not isinstance(self.given, UnlabeledLoader):
            return {}
        return {f"{self.argument}.{name}": value for name, value in self.given.state().items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continues there, if the state says where.

        Raises:
            ValueError: If there were other numbers of rows.
        """
        start = f"{self.argument}."
        own = {name.removeprefix(start): value for name, value in state.items() if name.startswith(start)}
        if isinstance(self.given, UnlabeledLoader) and own:
            self.given.load_state(own)


class AuxiliaryTerm(Term):
    """Base class of terms on inputs that are not data.

    Args:
        auxiliary: A function of the batch's inputs, or an iterable of input batches, begun again when it ends.
        weight: Factor in the loss, or its schedule.

    Raises:
        TypeError: If ``auxiliary`` is neither.
    """

    when: ClassVar[Literal["draw", "after", "across"]] = "after"
    argument: ClassVar[str] = "auxiliary"
    """What errors call the inputs."""

    def __init__(self, auxiliary: Auxiliary, weight: schedules.Schedule = 1.0) -> None:
        super().__init__(weight)
        self.source = InputSource(self.argument, auxiliary)
        self.auxiliary = auxiliary

    def inputs(self, evaluation: Evaluation) -> Any:
        """The next inputs, on the device of the batch.

        Raises:
            ValueError: If there are none.
        """
        return self.inputs_and_rows(evaluation)[0]

    def inputs_and_rows(self, evaluation: Evaluation) -> tuple[Any, Tensor | None]:
        """The next inputs, on the device of the batch, and the indices of their rows ``[B]`` if these are known.

        Raises:
            ValueError: If there are none.
        """
        args, kwargs = evaluation.args, evaluation.kwargs
        found, rows = self.source.next_rows(args[0] if args else kwargs.get("x"))
        return (found if callable(self.auxiliary) else beside(found, evaluation)), rows

    def state(self) -> dict[str, Tensor]:
        """The position among the inputs, where it can be kept."""
        return self.source.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continues there."""
        self.source.load_state(state)


def beside(x: Any, evaluation: Evaluation) -> Any:
    """Inputs on the device of the batch."""
    tensors = (leaf for leaf in leaves((evaluation.args, evaluation.kwargs)) if isinstance(leaf, Tensor))
    like = next(tensors, None)
    return x if like is None else to_device(x, like.device)


class OutlierTerm(AuxiliaryTerm):
    """Base class of terms on outliers: N times the mean over their rows of :meth:`penalty`, under one draw a step.

    Subclasses implement :meth:`penalty`, and :meth:`check` if not every likelihood will do.
    """

    argument = "outliers"

    @abstractmethod
    def penalty(self, likelihood: Likelihood, outputs: Tensor) -> Tensor:
        """What is minimized, in nats, ``[B, ...]``; positions of a row add up.

        Args:
            likelihood: The model's likelihood.
            outputs: The network's outputs at outliers ``[B, ...]``.
        """

    def check(self, likelihood: Likelihood) -> None:
        """Refuses a likelihood for which there is no penalty.

        Raises:
            TypeError: If there is none.
        """

    def __call__(self, runs: Sequence[Run], evaluation: Evaluation) -> Tensor:
        """The value.

        Raises:
            TypeError: If the model is no ``SupervisedModel``, or its likelihood will not do.
            ValueError: If there are no outliers, or the network cannot take them.
        """
        model = evaluation.model
        if not isinstance(model, SupervisedModel):
            raise TypeError(f"model: {type(self).__name__} needs a SupervisedModel, got {type(model).__name__}.")
        self.check(model.likelihood)
        x = self.inputs(evaluation)
        with evaluating(model):
            draws = evaluation.step.draw(None)
            with explaining_non_finite_draws(draws, self.name), draws.running(model, update=False):
                outputs = self._outputs(model, x, evaluation)
                penalty = self.penalty(model.likelihood, outputs)
        return model.num_data * penalty.reshape(len(outputs), -1).sum(1).mean()

    def _outputs(self, model: SupervisedModel, x: Any, evaluation: Evaluation) -> Tensor:
        try:
            return model.predictive(x)
        except RuntimeError as error:
            data = next(leaves((evaluation.args, evaluation.kwargs)), None)
            if not isinstance(x, Tensor) or not isinstance(data, Tensor) or x.shape[1:] == data.shape[1:]:
                raise
            raise ValueError(
                f"outliers: the network does not take inputs of shape {tuple(x.shape)}; the data have shape "
                f"{tuple(data.shape)}."
            ) from error
