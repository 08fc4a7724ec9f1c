r"""The evidence lower bound with exact KL terms wherever one is registered.

.. math::  \mathrm{ELBO} = \frac{N}{B} \sum_{i \in \mathrm{batch}} \log p(y_i \mid x_i, w)
           - \lambda \sum_{\mathrm{sites}} \mathrm{KL}(q(w_s) \,\|\, p(w_s \mid w_{<s})), \qquad w \sim q.

The model runs once per particle with the guide's draw substituted; only observed sites are scored, and latent sites
contribute their divergence: on flat vectors where the prior is a fixed Normal, through
:func:`torch.distributions.kl_divergence` where a closed form is registered for the pair, else as
``log q - log p`` of the draw. For guides from elsewhere the class behaves as Pyro's ``TraceMeanField_ELBO``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor, nn

from pyrobnn import schedules
from pyrobnn.arguments import check_positive_int
from pyrobnn.bayesianize import frozen_buffers
from pyrobnn.elbo.draw_plan import DrawPlan
from pyrobnn.elbo.parts import (
    ELBOParts,
    Particle,
    blaming_draws,
    check_finite,
    detach,
    gradients_restored,
    mean_parts,
)
from pyrobnn.elbo.tempering import Tempered
from pyrobnn.estimators import EstimatorSpec, active_estimators, resolve
from pyrobnn.estimators.per_group import split_batch
from pyrobnn.guides.base import Guide
from pyrobnn.guides.flat import flat_normal_prior
from pyrobnn.substitution import Substitution, plain_priors, summed_score

__all__ = ["MeanFieldELBO"]


class MeanFieldELBO(TraceMeanField_ELBO):
    """The ELBO for factorised guides; use it with :func:`pyrobnn.fit`, Pyro's ``SVI``, or as a module.

    Args:
        num_particles: Draws per evaluation. Running statistics of the network are updated by the first only.
        temperature: Weight λ of the divergence, or a schedule ``step -> λ`` counted over calls of
            :meth:`loss_and_grads`.
        estimator: How draws enter the layers (:mod:`pyrobnn.estimators`): an estimator, its name, or ordered
            ``(pattern of site names, estimator)`` rules; None for that of the surrounding
            :func:`pyrobnn.estimators.use` block, else one shared draw.

    Attributes:
        parts: :class:`ELBOParts` of the last evaluation, None for guides from elsewhere.
        num_steps: Gradient steps taken so far, which a schedule is asked with.
    """

    def __init__(
        self, num_particles: int = 1, temperature: schedules.Schedule = 1.0, *, estimator: EstimatorSpec = None
    ) -> None:
        check_positive_int("num_particles", num_particles)
        super().__init__(num_particles=num_particles)
        self.temperature = schedules.resolve("temperature", temperature, allow_zero=True)
        self.estimators = resolve(estimator)
        self.num_steps = 0
        self.parts: ELBOParts | None = None

    def current_temperature(self) -> float:
        """The weight λ of the next step."""
        return schedules.value_at("temperature", self.temperature, self.num_steps, allow_zero=True)

    # --------------------------------------------------------------------------------- Pyro's interface

    def loss(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
        """The negative ELBO, without gradients."""
        with torch.no_grad(), frozen_buffers(model if isinstance(model, nn.Module) else nn.Module()):
            return float(self.differentiable_loss(model, guide, *args, **kwargs))

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The negative ELBO as a tensor to call ``backward()`` on."""
        temperature = self.current_temperature()
        if not isinstance(guide, Guide):
            self.parts = None
            return super().differentiable_loss(*self._tempered(model, guide, temperature), *args, **kwargs)
        if torch.is_grad_enabled():
            guide.begin_step()
        plan = self._plan(guide)
        particles, shares = [], []
        for index, (slice_, share) in enumerate(self._slices(guide, plan, args)):
            with guide.particle(model, index):
                values = plan.draw(guide)
                particles.append(self._evaluate(model, guide, values, None, temperature, slice_, kwargs, plan))
                shares.append(share)
        guide.announce_parameters()
        self.parts = mean_parts(particles, shares)
        loss = self.parts.loss
        self.parts = detach(self.parts)
        return loss

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The negative ELBO; adds its gradients to the parameters, ready for an optimizer step.

        Raises:
            NonFiniteLossError: If the objective is NaN or infinite.
        """
        if not isinstance(guide, Guide):
            self.parts = None
            temperature = self.current_temperature()
            self.num_steps += 1
            return super().loss_and_grads(*self._tempered(model, guide, temperature), *args, **kwargs)
        parts = self.backward(model, guide, args, kwargs, scale=1.0)
        guide.announce_parameters()
        return float(parts.loss)

    # ----------------------------------------------------------------------------------------- our own

    def backward(
        self,
        model: Any,
        guide: Guide,
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None = None,
        scale: float = 1.0,
    ) -> ELBOParts:
        """Adds the gradients of ``scale`` times the negative ELBO to the parameters.

        Args:
            model: The Pyro model.
            guide: A guide of this library.
            args: Arguments of the model.
            kwargs: Keyword arguments of the model.
            scale: Factor of the objective; :func:`pyrobnn.fit` passes 1/N, so that optimizers see a mean loss.

        Returns:
            The parts, detached.

        Raises:
            NonFiniteLossError: If the objective is NaN or infinite; no gradient has been added then.
        """
        temperature, kwargs = self.current_temperature(), kwargs or {}
        guide.begin_step()
        plan = self._plan(guide)
        if plan.groups == 1 and (together := getattr(guide, "backward_together", None)) is not None:

            def evaluate(values: dict[str, Tensor]) -> Particle:
                return self._evaluate(model, guide, values, 0.0, temperature, args, kwargs, plan)

            if (found := together(model, evaluate, scale, temperature)) is not None:  # all draws in one run
                self.num_steps += 1
                self.parts = detach(mean_parts([found], [1.0]))
                return self.parts
        slices = self._slices(guide, plan, args)
        particles, shares = [], [share for _, share in slices]
        with gradients_restored(model, guide) if len(slices) > 1 else contextlib.nullcontext():
            for index, (slice_, share) in enumerate(slices):
                with guide.particle(model, index):
                    values, covered = plan.write(guide)
                    by_hand = covered is not None
                    with blaming_draws(values):
                        parts = self._evaluate(model, guide, values, covered, temperature, slice_, kwargs, plan)
                        check_finite(parts)
                if (loss := parts.graph_loss).requires_grad:
                    (loss * (scale * share)).backward()
                if by_hand:
                    guide.pull_back(scale * share * temperature)
                particles.append(parts)
        self.num_steps += 1
        self.parts = detach(mean_parts(particles, shares))
        return self.parts

    def _plan(self, guide: Guide) -> DrawPlan:
        """How this step draws, by the objective's own estimators or those of a ``with`` block."""
        return DrawPlan.of(self.estimators or active_estimators(), guide)

    def _slices(self, guide: Guide, plan: DrawPlan, args: tuple[Any, ...]) -> list[tuple[tuple[Any, ...], float]]:
        """The batch of each particle and its weight in the mean.

        Several members of a mixture and as many groups are paired: each member sees its own share of the batch, or all
        of one that has too few rows, such as the last of an epoch.
        """
        count = guide.num_particles(self.num_particles)
        is_paired = count == plan.groups > 1
        parts = split_batch(args, plan.groups, whole_if_few=is_paired)
        if is_paired:
            return parts
        if count > 1 and plan.groups > 1:
            raise ValueError(
                f"groups: a step has {count} draws and {plan.groups} groups; let them be equal for one draw in each "
                "group, or either of them 1."
            )
        return [(slice_, share / count) for _ in range(count) for slice_, share in parts]

    def _tempered(self, model: Any, guide: Any, temperature: float) -> tuple[Any, Any]:
        if temperature == 1.0:
            return model, guide
        return Tempered(temperature)(model), Tempered(temperature)(guide)

    def _evaluate(
        self,
        model: Any,
        guide: Guide,
        values: dict[str, Tensor],
        covered: Tensor | float | None,
        temperature: float,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        plan: DrawPlan,
    ) -> Particle:
        """One run of the model; ``covered`` is the divergence already taken on flat vectors, if it was."""
        with Substitution(values, direct=not dist.is_validation_enabled()) as run:  # fit validates in its first epoch
            model(*args, **kwargs)
        log_likelihood: Tensor | float = 0.0
        for message in run.observed:
            log_likelihood = log_likelihood + summed_score(message["fn"].log_prob(message["value"]), message)
        priors = plain_priors(run.latent)
        flat = getattr(guide, "flat_prior", None) if covered is not None else None
        if flat is not None and not flat.matches(priors):
            guide.discard_counted()
            flat, covered = None, 0.0
        in_graph: Tensor | float = 0.0
        for message in run.latent:
            site = guide.sites.get(message["name"])
            if site is None:
                raise ValueError(
                    f"site {message['name']!r}: the model sampled it but the guide does not know it; build the guide "
                    "from this model, with an example batch if the site depends on data."
                )
            if flat is not None and site.name in flat.names:
                continue
            divergence, _ = plan.divergence(guide, site, message["value"], message["fn"])
            in_graph = in_graph + summed_score(divergence, message)
        in_graph = in_graph + (0.0 if plan.path_derivative else guide.shared_divergence())
        _follow_priors(guide, priors)
        return Particle(log_likelihood, in_graph, covered or 0.0, temperature, _num_data(model, run.observed), run)


def _num_data(model: Any, observed: list[Any]) -> int:
    """N as the model states it, else the size of the largest plate around the observations, else 1."""
    stated = getattr(model, "num_data", None)
    if isinstance(stated, int):
        return stated
    frames = [frame for message in observed for frame in message["cond_indep_stack"] if frame.vectorized]
    sizes = [frame.full_size or frame.size for frame in frames]
    return max(sizes, default=1)


def _follow_priors(guide: Guide, priors: dict[str, dist.Distribution]) -> None:
    """Keeps the flat priors of the guide's simple parts those of the model, after a move, a cast or a loaded state."""
    for part in guide.simple_parts():
        if hasattr(part, "flat_prior") and (part.flat_prior is None or not part.flat_prior.matches(priors)):
            part.adopt_priors(priors)
            part.flat_prior = flat_normal_prior(part.flat_order, part.flat_loc.detach())
