"""Objectives: sums of named terms over draws of a guide, whose losses come one draw at a time."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyro
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor, nn

from pyrobnn.arguments import check_positive_int
from pyrobnn.bayesianize import frozen_buffers
from pyrobnn.divergence import prior_terms
from pyrobnn.draws import Draws
from pyrobnn.elbo.parts import (
    Parts,
    check_finite,
    explaining_non_finite_draws,
    gradients_restored,
    mean_parts,
)
from pyrobnn.elbo.tempering import Tempered
from pyrobnn.elbo.terms import Evaluation, Run, Term, observed_score, run_model
from pyrobnn.elbo.training_draws import make_step
from pyrobnn.estimators import EstimatorSpec, active_estimators, resolve
from pyrobnn.estimators.per_group import split_batch
from pyrobnn.guides.base import Guide
from pyrobnn.steps import Step
from pyrobnn.steps.normal_prior import is_fixed_normal
from pyrobnn.substitution import Substitution

__all__ = ["Objective"]

Arguments = tuple[tuple[Any, ...], Mapping[str, Any]]


class Objective(TraceMeanField_ELBO):
    """A weighted sum of terms; use it with :func:`pyrobnn.fit`, Pyro's ``SVI``, or as a module.

    For guides from elsewhere it behaves as Pyro's ``TraceMeanField_ELBO``, with a weighted KL.

    Args:
        terms: The terms, the log likelihood and the divergence among them.
        num_particles: Draws per evaluation. Running statistics of the network are updated by the first only.
        estimator: How draws enter the layers (:mod:`pyrobnn.estimators`): an estimator, its name, or ordered
            ``(pattern of site names, estimator)`` rules; None for that of the surrounding
            :func:`pyrobnn.estimators.use` block, else one shared draw.

    Attributes:
        parts: :class:`Parts` of the last evaluation, None for guides from elsewhere.
        num_steps: Gradient steps taken so far, which schedules of weights are asked with.
    """

    def __init__(self, terms: Sequence[Term], num_particles: int = 1, *, estimator: EstimatorSpec = None) -> None:
        check_positive_int("num_particles", num_particles)
        super().__init__(num_particles=num_particles)
        self.terms = list(terms)
        self.estimators = resolve(estimator)
        self.num_steps = 0
        self.parts: Parts | None = None
        self._steps: tuple[Any, ...] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles make steps of their own."""
        return self.__dict__ | {"_steps": None}

    def weights(self) -> dict[str, float]:
        """The terms' weights in the next training step."""
        return {term.name: term.current_weight(self.num_steps) for term in self.terms}

    def check_guide(self, guide: Guide) -> None:
        """Refuses a guide that a term cannot be computed for; done when its step is made."""

    # --------------------------------------------------------------------------------- Pyro's interface

    def loss(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
        """The objective, without gradients."""
        with torch.no_grad(), frozen_buffers(model if isinstance(model, nn.Module) else nn.Module()):
            return float(self.differentiable_loss(model, guide, *args, **kwargs))

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The objective as a tensor to call ``backward()`` on, in one graph of ordinary operations."""
        if not isinstance(guide, Guide):
            self.parts = None
            return super().differentiable_loss(*self._tempered(model, guide), *args, **kwargs)
        step, groups = self._make_step(model, guide, sequential=False)
        found = list(self.losses(model, step, args, kwargs, groups=groups, guide=guide))
        guide.announce_parameters()
        self.parts = mean_parts([parts.detached() for parts in found])
        return torch.stack([parts.share * parts.loss for parts in found]).sum() if len(found) > 1 else found[0].loss

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The objective; adds its gradients to the parameters, ready for an optimizer step.

        Raises:
            NonFiniteLossError: If the objective is NaN or infinite.
        """
        if not isinstance(guide, Guide):
            self.parts = None
            tempered = self._tempered(model, guide)
            self.num_steps += 1
            return super().loss_and_grads(*tempered, *args, **kwargs)
        parts = self.backward(model, guide, args, kwargs)
        guide.announce_parameters()
        return float(parts.loss)

    def _tempered(self, model: Any, guide: Any) -> tuple[Any, Any]:
        temperature = self.weights()["divergence"]
        if temperature == 1.0:
            return model, guide
        return Tempered(temperature)(model), Tempered(temperature)(guide)

    # ----------------------------------------------------------------------------------------- our own

    def backward(
        self,
        model: Any,
        guide: Guide | Step,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any] | None = None,
        scale: float | None = 1.0,
    ) -> Parts:
        """Adds the gradients of ``scale`` times the objective to the parameters.

        Args:
            model: The Pyro model.
            guide: A guide of this library, or a step by itself.
            args: Arguments of the model.
            kwargs: Keyword arguments of the model.
            scale: Factor of the objective; None for 1/N, so that optimizers see a mean loss.

        Returns:
            The parts, detached.

        Raises:
            NonFiniteLossError: If the objective is NaN or infinite; no gradient has been added then.
        """
        step, groups = (guide, 1) if isinstance(guide, Step) else self.step(model, guide)
        losses = self.losses(model, step, args, kwargs or {}, groups=groups, guide=guide)
        several = step.num_draws(self.num_particles) * groups > 1 or any(term.when == "after" for term in self.terms)
        found = []
        with gradients_restored(model, guide) if several else contextlib.nullcontext():
            for parts in losses:
                factor = (1.0 / parts.num_data if scale is None else scale) * parts.share
                loss = parts.loss
                if loss.requires_grad:
                    (loss if factor == 1.0 else loss * factor).backward()
                found.append(parts.detached())
            step.finish()
        self.num_steps += 1
        self.parts = mean_parts(found)
        return self.parts

    def step(self, model: Any, guide: Guide) -> tuple[Step, int]:
        """The guide's step, the same one at each call, and into how many parts it cuts each batch."""
        rules = self.estimators or active_estimators()
        if self._steps is not None:
            known_guide, known_model, known_rules, made = self._steps
            if known_guide is guide and known_model is model and known_rules == rules:
                return made
        made = self._make_step(model, guide, sequential=not self._is_across)
        self._steps = guide, model, list(rules), made
        return made

    @property
    def _is_across(self) -> bool:
        return any(term.when == "across" for term in self.terms)

    def _make_step(self, model: Any, guide: Guide, *, sequential: bool) -> tuple[Step, int]:
        self.check_guide(guide)
        return make_step(guide, model, self.estimators or active_estimators(), sequential=sequential)

    def losses(
        self,
        model: Any,
        step: Step,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        groups: int = 1,
        guide: Any = None,
    ) -> Iterator[Parts]:
        """The objective in pieces: one for each draw, then one for each term that comes after them.

        The loss is the sum of the pieces' losses times their shares. Each is to be differentiated before the next one
        is asked for, unless the step's draws may live together. ``step.finish()`` ends the training step.

        Raises:
            NonFiniteLossError: If a piece is NaN or infinite.
        """
        weights = self.weights()
        evaluation = Evaluation(model, guide, step, args, kwargs)
        if step.vectorized and groups == 1:
            parts = None
            if all(term.vectorizes for term in self.terms if term.when == "draw"):
                parts = self._vectorized(model, step, args, kwargs, weights)
            if parts is not None:
                yield parts
                yield from self._after(evaluation, weights, parts.num_data)
                return
        with _looped(step):
            runs = self._runs(evaluation, groups)
            if self._is_across:
                yield self._together(list(runs), evaluation, weights)
            else:
                num_data = 1
                for run, share, own in runs:
                    parts = self._parts(run, share, own, weights)
                    num_data = parts.num_data
                    del run
                    yield parts
                    del parts
                yield from self._after(evaluation, weights, num_data)

    def _runs(self, evaluation: Evaluation, groups: int) -> Iterator[tuple[Run, float, Evaluation]]:
        """The runs of a training step with their weights in the mean."""
        model, step = evaluation.model, evaluation.step
        for index, (args, share) in enumerate(self._slices(step, groups, evaluation.args)):
            draws = step.draw(index)
            with explaining_non_finite_draws(draws):
                run = run_model(model, step, draws, args, evaluation.kwargs, update=index == 0, scored=True)
            own = (
                evaluation
                if args is evaluation.args
                else Evaluation(model, evaluation.guide, step, args, evaluation.kwargs)
            )
            del draws
            yield run, share, own
            del run

    def _parts(self, run: Run, share: float, evaluation: Evaluation, weights: Mapping[str, float]) -> Parts:
        values = {t.name: torch.as_tensor(t([run], evaluation)) for t in self.terms if t.when == "draw"}
        assert run.divergence is not None
        found = Parts(values, weights, num_data(evaluation.model, run.messages), share, run.divergence.name)
        check_finite(found, run.messages)
        return found

    def _together(
        self, runs: list[tuple[Run, float, Evaluation]], evaluation: Evaluation, weights: Mapping[str, float]
    ) -> Parts:
        """All draws in one graph, with the terms across them."""
        found = mean_parts([self._parts(run, share, own, weights) for run, share, own in runs])
        for term in self.terms:
            if term.when != "draw":
                found.values[term.name] = torch.as_tensor(term([run for run, _, _ in runs], evaluation))
        check_finite(found)
        return found

    def _after(self, evaluation: Evaluation, weights: Mapping[str, float], num_data: int) -> Iterator[Parts]:
        for term in self.terms:
            if term.when == "after" and weights[term.name]:
                parts = Parts({term.name: torch.as_tensor(term([], evaluation))}, weights, num_data)
                check_finite(parts)
                yield parts
                del parts

    def _slices(self, step: Step, groups: int, args: tuple[Any, ...]) -> list[tuple[tuple[Any, ...], float]]:
        """The batch of each draw and its weight in the mean.

        Several members of a mixture and as many groups are paired: each member sees its own share of the batch, or all
        of one that has too few rows, such as the last of an epoch.
        """
        count = step.num_draws(self.num_particles)
        if groups == 1:
            return [(args, 1.0 / count)] * count
        is_paired = count == groups
        parts = split_batch(args, groups, whole_if_few=is_paired)
        if is_paired:
            return parts
        if count > 1:
            raise ValueError(
                f"groups: a step has {count} draws and {groups} groups; let them be equal for one draw in each "
                "group, or either of them 1."
            )
        return parts

    def _vectorized(
        self, model: Any, step: Step, args: tuple[Any, ...], kwargs: Mapping[str, Any], weights: Mapping[str, float]
    ) -> Parts | None:
        """All members in one run; None if they are to run one after another, as where the loss is not finite.

        Raises:
            ValueError: If vectorized runs were demanded, but are not possible.
        """
        draws = step.draw(0)
        seen: list[Any] = []

        def one(values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            own = Draws(values)
            with own.running(model, update=True) as messages:
                model(*args, **kwargs)
            priors = prior_terms(messages.latent)
            inside = {name: term for name, term in priors.items() if not is_fixed_normal(step.layout[name], term)}
            seen[:] = messages, {name: term for name, term in priors.items() if name not in inside}
            divergence = step.divergence(own, inside).total if inside else torch.zeros(())
            return torch.as_tensor(observed_score(messages)), divergence

        try:
            # Validation asks for the values of tensors, which vmap does not tell; non-finite losses are noticed anyway.
            with pyro.validation_enabled(False):
                log_likelihood, inside = torch.func.vmap(one, randomness="different")(dict(draws))
        except ValueError:  # the loop can say of which member and what
            return None
        except RuntimeError as error:
            step.stop_vectorizing(error)
            return None
        messages, fixed = seen
        divergence = step.divergence(draws, fixed)
        values = {"log_likelihood": log_likelihood.mean(), "divergence": divergence.total + inside.mean()}
        parts = Parts(values, weights, num_data(model, messages), divergence_name=divergence.name)
        return parts if math.isfinite(float(parts.loss.detach())) else None


@contextlib.contextmanager
def _looped(step: Step) -> Iterator[None]:
    """Members run one after another for the block."""
    before = step.vectorized
    if not before:
        yield
        return
    step.vectorized = False
    try:
        yield
    finally:
        step.vectorized = before


def num_data(model: Any, messages: Substitution) -> int:
    """N as the model states it, else the size of the largest plate around the observations, else 1."""
    stated = getattr(model, "num_data", None)
    if isinstance(stated, int):
        return stated
    frames = [frame for message in messages.observed for frame in message["cond_indep_stack"] if frame.vectorized]
    sizes = [frame.full_size or frame.size for frame in frames]
    return max(sizes, default=1)
