"""Terms of an objective: summands with a weight each, reported by name."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor

from pyrobnn.core import schedules
from pyrobnn.core.arguments import check_finite_number
from pyrobnn.core.explanations import explained
from pyrobnn.model.declarations import declared_num_data
from pyrobnn.model.divergence import Divergence, prior_terms
from pyrobnn.model.draws import Draws
from pyrobnn.model.substitution import SubstituteMessenger, summed_score
from pyrobnn.objectives.tempering import DefaultTemperature
from pyrobnn.steps.base import Step

__all__ = [
    "DivergenceTerm",
    "Evaluation",
    "LogLikelihoodTerm",
    "Run",
    "Term",
    "distinct",
    "num_data",
    "observed_score",
    "read_terms",
    "run_model",
    "write_terms",
]


@dataclass
class Run:
    """One run of the model under a draw.

    Attributes:
        draws: The draw.
        outputs: What the model returned.
        log_likelihood: Log likelihood of the observed sites, scaled to the data set.
        divergence: Divergence of the latent sites, None if it was not computed.
        messages: The handler that recorded the sample sites of the run.
        args: The rows of the batch that are this draw's, before the objective replaced any
            (:meth:`~pyrobnn.objectives.Objective.arguments`); empty for further runs.
        further: Further runs under this draw by name, which several terms share.
    """

    draws: Draws
    outputs: Any
    log_likelihood: Tensor | float
    divergence: Divergence | None
    messages: SubstituteMessenger
    args: tuple[Any, ...] = ()
    further: dict[str, Run] = field(default_factory=dict)


@dataclass
class Evaluation:
    """One evaluation of an objective, for terms that need more than the runs of its draws.

    Attributes:
        model: The model.
        guide: The guide, None if a step is evaluated by itself.
        step: Its step, for further draws.
        args, kwargs: Arguments of the model.
        checked: Whether values that are not finite raise an error.
    """

    model: Any
    guide: Any
    step: Step
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    checked: bool = True

    def run(self, draws: Draws, *, update: bool = False, scored: bool = False) -> Run:
        """Runs the model under a draw.

        Args:
            draws: The draw.
            update: Whether the run updates running statistics of the model.
            scored: Whether the divergence is computed.
        """
        return run_model(self.model, self.step, draws, self.args, self.kwargs, update=update, scored=scored)


def run_model(
    model: Any,
    step: Step,
    draws: Draws,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    update: bool,
    scored: bool,
) -> Run:
    """One run of the model under a draw of a step."""
    with draws.running(model, update=update) as messages:
        outputs = model(*args, **kwargs)
    divergence = None
    if scored:
        for message in messages.latent:
            if message["name"] not in step.layout:
                raise ValueError(
                    f"site {message['name']!r}: the model sampled it but the guide does not have it; build the guide "
                    "from this model, with an example batch if the site depends on data."
                )
        divergence = step.divergence(draws, prior_terms(messages.latent))
    return Run(draws, outputs, observed_score(messages), divergence, messages)


def observed_score(messages: SubstituteMessenger) -> Tensor | float:
    """Log likelihood of the observed sites, scaled to the data set."""
    total: Tensor | float = 0.0
    for message in messages.observed:
        total = total + summed_score(message["fn"].log_prob(message["value"]), message)
    return total


def num_data(model: Any, messages: SubstituteMessenger) -> int:
    """N as the model declares it, else the size of the largest plate around the observed sites, else 1."""
    if (declared := declared_num_data(model)) is not None:
        return declared
    frames = [frame for message in messages.observed for frame in message["cond_indep_stack"] if frame.vectorized]
    sizes = [frame.full_size or frame.size for frame in frames]
    return max(sizes, default=1)


class Term(ABC):
    """One term of an objective in sum units.

    Args:
        weight: Its factor in the loss, or a schedule ``step -> factor``.

    Attributes:
        name: Its name in ``Parts.values`` and in ``history.terms``.
        when: ``"draw"``: for each draw of a training step, averaged. ``"after"``: once, when the gradients of all draws
            have been taken, so that its graph does not exist at the same time as theirs. ``"across"``: once, from the
            runs of all draws, whose graphs exist at once.
        vectorizes: Whether it is one of the log likelihood and the divergence, which a vectorized pass over members
            computes; any other term ``"draw"`` makes members run one after another.

    Raises:
        ValueError: If ``weight`` is neither a finite number nor a schedule.
    """

    name: str
    when: ClassVar[Literal["draw", "after", "across"]] = "draw"
    vectorizes: ClassVar[bool] = False

    def __init__(self, weight: schedules.Schedule = 1.0) -> None:
        if not callable(weight):
            check_finite_number("weight", weight)
        self.weight = weight

    def current_weight(self, step: int, model: Any = None, guide: Any = None) -> float:
        """The factor at a training step.

        Args:
            step: Number of the training step.
            model: The model, for weights that depend on it.
            guide: The guide, likewise.

        Raises:
            ValueError: If a schedule gives a number that is not finite.
        """
        weight = float(self.weight(step) if callable(self.weight) else self.weight)
        if not math.isfinite(weight):
            raise ValueError(f"weight: that of the term {self.name!r} is {weight} at step {step}.")
        return weight

    def state(self) -> dict[str, Tensor]:
        """What checkpoints of ``fit`` must keep of a term that remembers earlier steps, by name; nothing by default."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027 (most terms remember nothing)
        """Restores what :meth:`state` returned; empty for the state before the first step.

        Raises:
            ValueError: If it does not fit the term.
        """

    @abstractmethod
    def __call__(self, runs: Sequence[Run], evaluation: Evaluation) -> Tensor | float:
        """The value.

        Args:
            runs: For ``"draw"`` the run of one draw, for ``"across"`` those of all draws, for ``"after"`` none.
            evaluation: The model, step and arguments, for further runs.
        """


def distinct(terms: Sequence[Term]) -> list[Term]:
    """The terms, no two of one name, since values are kept and reported by name.

    Raises:
        ValueError: If there are two.
    """
    names = [term.name for term in terms]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"terms: {names.count(name)} of them are named {name!r}, but values are reported by name; give each a "
                "name of its own (constraints take name=, and any term has an attribute of it)."
            )
    return list(terms)


def read_terms(terms: Sequence[Term]) -> dict[str, dict[str, Tensor]]:
    """States of the terms that have one, by name, for checkpoints."""
    return {term.name: state for term in terms if (state := term.state())}


def write_terms(terms: Sequence[Term], states: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Restores what :func:`read_terms` returned.

    Raises:
        ValueError: If there is no such term, or a state does not fit.
    """
    named = {term.name for term in terms}
    if lost := [name for name in states if name not in named]:
        raise ValueError(f"elbo: the run to resume had a term {lost[0]!r}, but now there are {sorted(named)}.")
    for term in terms:
        term.load_state(states.get(term.name, {}))


@explained
class LogLikelihoodTerm(Term):
    """The expected log likelihood, which is maximized."""

    name = "log_likelihood"
    vectorizes = True

    def __init__(self, weight: schedules.Schedule = -1.0) -> None:
        super().__init__(weight)

    def __call__(self, runs: Sequence[Run], evaluation: Evaluation) -> Tensor | float:
        """That of the draw."""
        return runs[0].log_likelihood


@explained
class DivergenceTerm(Term):
    """The divergence from the prior.

    Args:
        weight: The temperature λ, or its schedule; None for that of the model's prior
            (:class:`~pyrobnn.objectives.tempering.DefaultTemperature`).
    """

    name = "divergence"
    vectorizes = True

    def __init__(self, weight: schedules.Schedule | None = None) -> None:
        super().__init__(1.0 if weight is None else weight)
        self.default = DefaultTemperature() if weight is None else None

    def current_weight(self, step: int, model: Any = None, guide: Any = None) -> float:
        """The temperature λ at a training step, at least 0."""
        if self.default is not None:
            return self.default(model, guide)
        return schedules.value_at("temperature", self.weight, step, allow_zero=True)

    def __call__(self, runs: Sequence[Run], evaluation: Evaluation) -> Tensor | float:
        """That of the draw."""
        assert runs[0].divergence is not None
        return runs[0].divergence.total
