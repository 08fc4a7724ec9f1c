"""Objectives: weighted sums of named terms, averaged over draws of a guide, differentiated one draw at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor, nn

from pyrobnn.core.arguments import check_positive_int
from pyrobnn.core.gradient_modes import gradients_are_off, gradients_enabled
from pyrobnn.core.trees import leaves
from pyrobnn.estimators import EstimatorSpec, active_estimators, resolve
from pyrobnn.guides.base import Guide
from pyrobnn.model.bayesianize import frozen_buffers
from pyrobnn.model.draws import Draws
from pyrobnn.objectives.module import ObjectiveModule
from pyrobnn.objectives.parts import (
    Parts,
    check_finite,
    explaining_non_finite_draws,
    failure_of_backward,
    gradients_restored,
    mean_parts,
)
from pyrobnn.objectives.tempering import tempered
from pyrobnn.objectives.terms import Evaluation, Run, Term, distinct, num_data, run_model
from pyrobnn.objectives.training_draws import make_step, shares
from pyrobnn.objectives.vectorized import evaluate_members, fall_back, looped
from pyrobnn.steps import Step

__all__ = ["Objective"]


class Objective(TraceMeanField_ELBO):
    """A weighted sum of terms; use it with :func:`pyrobnn.fit`, Pyro's ``SVI``, or as a module.

    For guides that are not of this library it behaves as Pyro's ``TraceMeanField_ELBO``, with a weighted KL; further
    terms are refused there.

    Args:
        terms: The terms, the log likelihood and the divergence among them.
        num_particles: Draws per evaluation. Running statistics of the network are updated by the first only.
        estimator: How draws enter the layers (:mod:`pyrobnn.estimators`): an estimator, its name, or ordered
            ``(pattern of site names, estimator)`` rules; None for that of the surrounding
            :func:`pyrobnn.estimators.use` block, else one shared draw.

    Raises:
        ValueError: If two terms have one name.

    Attributes:
        parts: :class:`Parts` of the last evaluation, None for guides that are not of this library.
        num_steps: Gradient steps taken so far, the argument of schedules of weights.
        further_terms: Names of the terms beside the log likelihood and the divergence.
        vectorizes: Whether one pass over all members of an ensemble computes what the terms need of the draws.
    """

    def __init__(self, terms: Sequence[Term], num_particles: int = 1, *, estimator: EstimatorSpec = None) -> None:
        check_positive_int("num_particles", num_particles)
        super().__init__(num_particles=num_particles)
        self.terms = distinct(terms)
        self.further_terms = [term.name for term in self.terms if not term.vectorizes]
        self._draw_terms = [term for term in self.terms if term.when == "draw"]
        self._after_terms = [term for term in self.terms if term.when == "after"]
        self._has_across_terms = any(term.when == "across" for term in self.terms)
        self.vectorizes = all(term.vectorizes for term in self._draw_terms) and not self._has_across_terms
        self.estimators = resolve(estimator)
        self.num_steps = 0
        self.parts: Parts | None = None
        self._steps: tuple[Any, ...] | None = None

    @property
    def compiles(self) -> bool:
        """Whether a training step is a function of tensors and of the terms' weights alone."""
        return self.vectorizes and not self.further_terms

    def __call__(self, model: nn.Module, guide: nn.Module) -> ObjectiveModule:
        """A module that returns the loss when it is called with the model's arguments."""
        return ObjectiveModule(model, guide, self)

    def __getstate__(self) -> dict[str, Any]:
        """The state without the step, which holds memory; copies make a new one."""
        return self.__dict__ | {"_steps": None}

    def weights(self, model: Any = None, guide: Any = None) -> dict[str, float]:
        """The terms' weights in the next training step, for a model and its guide."""
        return {term.name: term.current_weight(self.num_steps, model, guide) for term in self.terms}

    def check_guide(self, guide: Guide) -> None:
        """Raises an error for a guide that a term cannot be computed for; called when the step is made."""

    def arguments(self, draws: Draws, evaluation: Evaluation, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The positional arguments that the model is run with under a draw of a training step; by default the batch's.

        An objective that replaces them, by inputs that are worst for this draw say, sets ``vectorizes`` to False.

        Args:
            draws: The draw.
            evaluation: The model, guide and step.
            args: The batch, or the share of it that is this draw's.
        """
        return args

    # --------------------------------------------------------------------------------- Pyro's interface

    def loss(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
        """The objective, without gradients."""
        with torch.no_grad(), frozen_buffers(model if isinstance(model, nn.Module) else nn.Module()):
            return float(self.differentiable_loss(model, guide, *args, **kwargs))

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The objective as a tensor to call ``backward()`` on, in one graph of ordinary operations."""
        if not isinstance(guide, Guide):
            self.parts = None
            pair = tempered(model, guide, self.weights, self.further_terms)
            return super().differentiable_loss(*pair, *args, **kwargs)
        step, groups = self.plain_step(model, guide)
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
            pair = tempered(model, guide, self.weights, self.further_terms)
            self.num_steps += 1
            return super().loss_and_grads(*pair, *args, **kwargs)
        parts = self.backward(model, guide, args, kwargs)
        guide.announce_parameters()
        return float(parts.loss)

    # ------------------------------------------------------------------------ guides and steps of this library

    def backward(
        self,
        model: Any,
        guide: Guide | Step,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any] | None = None,
        scale: float | None = 1.0,
    ) -> Parts:
        """Adds the gradients of ``scale`` times the objective to the parameters, also under ``torch.no_grad()``.

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
        if gradients_are_off():
            with gradients_enabled():
                return self.backward(model, guide, args, kwargs, scale)
        step, groups = (guide, 1) if isinstance(guide, Step) else self.step(model, guide)
        losses = self.losses(model, step, args, kwargs or {}, groups=groups, guide=guide)
        several = bool(self._after_terms) or groups > 1 or step.num_samples(self.num_particles) > 1
        untried = step.vectorized and not step.differentiated
        found: list[Parts] = []
        with gradients_restored(model, guide) if several else contextlib.nullcontext():
            for parts in losses:
                factor = (1.0 / parts.num_data if scale is None else scale) * parts.share
                loss = parts.loss if factor == 1.0 else parts.loss * factor
                if untried and step.vectorized and not found:
                    if failure := failure_of_backward(loss, model, guide):
                        fall_back(step, failure)
                        del loss, parts
                        return self.backward(model, guide, args, kwargs, scale)
                    step.differentiated = True
                elif loss.requires_grad:
                    loss.backward()
                found.append(parts.detached())
            step.finish()
        self.num_steps += 1
        self.parts = mean_parts(found)
        return self.parts

    def step(self, model: Any, guide: Guide) -> tuple[Step, int]:
        """The training step of the guide, cached, and the number of parts that each batch is cut into."""
        rules = self.estimators or active_estimators()
        if self._steps is not None:
            cached_guide, cached_model, cached_rules, made = self._steps
            if cached_guide is guide and cached_model is model and cached_rules == rules:
                return made
        made = self._make_step(model, guide, sequential=not self._has_across_terms)
        self._steps = guide, model, list(rules), made
        return made

    def plain_step(self, model: Any, guide: Guide) -> tuple[Step, int]:
        """A step in ordinary operations, whose draws may all be in one graph, and the number of parts of a batch."""
        return self._make_step(model, guide, sequential=False)

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
        """The objective in pieces: one for each draw, then one for each term ``"after"`` the draws.

        The loss is the sum of the pieces' losses times their shares. Differentiate each piece before the next one is
        requested, unless the step was made with ``sequential=False``. ``step.finish()`` ends the training step.

        Raises:
            NonFiniteLossError: If a piece is NaN or infinite.
        """
        evaluation = Evaluation(model, guide, step, args, kwargs)
        return self.pieces(evaluation, self.weights(model, guide), groups)

    def pieces(self, evaluation: Evaluation, weights: Mapping[str, float], groups: int = 1) -> Iterator[Parts]:
        """What :meth:`losses` returns, under given weights of the terms."""
        model, step, args, kwargs = evaluation.model, evaluation.step, evaluation.args, evaluation.kwargs
        if step.vectorized and groups == 1:
            parts = evaluate_members(model, step, args, kwargs, weights) if self.vectorizes else None
            if parts is not None:
                yield parts
                yield from self._after(evaluation, weights, parts.num_data)
                return
        with looped(step) if step.vectorized else contextlib.nullcontext():
            if groups > 1 and any(isinstance(leaf, Tensor) and leaf.dim() for leaf in leaves(kwargs)):
                raise ValueError(
                    "estimator: per_group cuts the model's positional arguments, but this batch has keyword arguments; "
                    "put them in args."
                )
            slices = shares(args, step.num_samples(self.num_particles), groups)
            if self._has_across_terms:
                runs = [self._run(evaluation, index, part) for index, (part, _) in enumerate(slices)]
                yield self._parts_across(runs, [share for _, share in slices], evaluation, weights)
                return
            data_size = 1
            for index, (part, share) in enumerate(slices):
                run = self._run(evaluation, index, part)
                parts = self._parts(run, share, evaluation, weights)
                data_size = parts.num_data
                del run  # the next draw may use its memory
                yield parts
                del parts
            if self._after_terms:
                yield from self._after(evaluation, weights, data_size)

    def _run(self, evaluation: Evaluation, index: int, args: tuple[Any, ...]) -> Run:
        """The run of one draw of a training step."""
        model, step = evaluation.model, evaluation.step
        draws = step.draw(index)
        with explaining_non_finite_draws(draws):
            given = self.arguments(draws, evaluation, args)
            run = run_model(model, step, draws, given, evaluation.kwargs, update=index == 0, scored=True)
        run.args = args
        return run

    def _parts(self, run: Run, share: float, evaluation: Evaluation, weights: Mapping[str, float]) -> Parts:
        values = {term.name: torch.as_tensor(term([run], evaluation)) for term in self._draw_terms}
        assert run.divergence is not None
        found = Parts(values, weights, num_data(evaluation.model, run.messages), share, run.divergence.name)
        if evaluation.checked:
            check_finite(found, run.messages)
        return found

    def _parts_across(
        self, runs: list[Run], shares: list[float], evaluation: Evaluation, weights: Mapping[str, float]
    ) -> Parts:
        """The mean over all draws in one graph, plus the terms ``"across"`` draws."""
        pairs = zip(runs, shares, strict=True)
        found = mean_parts([self._parts(run, share, evaluation, weights) for run, share in pairs])
        further = {term.name: torch.as_tensor(term(runs, evaluation)) for term in self.terms if term.when != "draw"}
        total = Parts(found.values | further, weights, found.num_data, divergence_name=found.divergence_name)
        check_finite(total)
        return total

    def _after(self, evaluation: Evaluation, weights: Mapping[str, float], num_data: int) -> Iterator[Parts]:
        for term in self._after_terms:
            if weights[term.name]:
                parts = Parts({term.name: torch.as_tensor(term([], evaluation))}, weights, num_data)
                check_finite(parts)
                yield parts
                del parts
