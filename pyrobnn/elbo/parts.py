"""The parts of an objective's value, and who is to blame when it is not finite."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.substitution import Substitution

__all__ = [
    "ELBOParts",
    "NonFiniteLossError",
    "Particle",
    "blaming_draws",
    "check_finite",
    "culprit",
    "detach",
    "gradients_restored",
    "mean_parts",
]


_NAMED = 3  # sites that a message names


class NonFiniteLossError(ArithmeticError):
    """The objective became NaN or infinite; the message names the part that did."""


@dataclass
class ELBOParts:
    """The parts of one evaluation of the objective, in sum units (nats for the whole data set).

    Attributes:
        log_likelihood: Expected log likelihood, scaled to the data set.
        divergence: KL of the guide to the prior (``-log p(w)`` for a point estimate), not tempered.
        temperature: The weight λ that the objective gave the divergence.
        num_data: Size N of the data set, by which :meth:`per_datum` divides.
    """

    log_likelihood: Tensor
    divergence: Tensor
    temperature: float
    num_data: int

    @property
    def elbo(self) -> Tensor:
        """Log likelihood minus divergence, untempered."""
        return self.log_likelihood - self.divergence

    @property
    def loss(self) -> Tensor:
        """The (tempered) objective that is minimised."""
        return self.temperature * self.divergence - self.log_likelihood

    def per_datum(self) -> dict[str, float]:
        """``elbo``, ``log_likelihood``, ``kl`` and ``loss`` in nats per datum."""
        likelihood, kl = (float(part) / self.num_data for part in (self.log_likelihood, self.divergence))
        loss = self.temperature * kl - likelihood
        return {"elbo": likelihood - kl, "log_likelihood": likelihood, "kl": kl, "loss": loss}


@dataclass
class Particle:
    """Parts of one particle: the divergence in the graph, and the part taken on flat vectors beside it."""

    log_likelihood: Tensor | float
    in_graph: Tensor | float
    covered: Tensor | float
    temperature: float
    num_data: int
    run: Substitution

    @cached_property
    def graph_loss(self) -> Tensor:
        """The part of the objective that is differentiated through the model."""
        return torch.as_tensor(self.temperature * self.in_graph - self.log_likelihood)

    @property
    def is_finite(self) -> bool:
        """Whether the objective is."""
        return math.isfinite(float(self.graph_loss.detach() + self.covered))


def check_finite(particle: Particle) -> None:
    """Refuses a particle whose objective is not finite.

    Raises:
        NonFiniteLossError: If it is NaN or infinite; the message names the part to blame.
    """
    if not particle.is_finite:
        raise NonFiniteLossError(culprit(particle))


def mean_parts(particles: list[Particle], shares: list[float]) -> ELBOParts:
    """The average over particles, whose weights ``shares`` sum to one."""
    first = particles[0]
    log_likelihood, divergence = first.log_likelihood, first.in_graph + first.covered
    if len(particles) > 1:
        weighted = list(zip(particles, shares, strict=True))
        log_likelihood = sum((share * p.log_likelihood for p, share in weighted), start=0.0)
        divergence = sum((share * (p.in_graph + p.covered) for p, share in weighted), start=0.0)
    return ELBOParts(torch.as_tensor(log_likelihood), torch.as_tensor(divergence), first.temperature, first.num_data)


def detach(parts: ELBOParts) -> ELBOParts:
    """The same numbers without their graphs."""
    return ELBOParts(parts.log_likelihood.detach(), parts.divergence.detach(), parts.temperature, parts.num_data)


@contextmanager
def gradients_restored(*modules: Any) -> Iterator[None]:
    """Puts the gradients of before back if the block fails, so that no half of a step is left in them."""
    parameters = [p for module in modules if isinstance(module, nn.Module) for p in module.parameters()]
    before = [(p, None if p.grad is None else p.grad.clone()) for p in parameters]
    try:
        yield
    except Exception:
        for parameter, gradient in before:
            parameter.grad = gradient
        raise


@contextmanager
def blaming_draws(values: dict[str, Tensor]) -> Iterator[None]:
    """Turns what Pyro's validation says of parameters that are NaN into the name of the draw that brought them."""
    try:
        yield
    except ValueError as error:
        blamed = [name for name, value in values.items() if not bool(value.isfinite().all())]
        if not blamed:
            raise
        raise NonFiniteLossError(
            f"the objective became non-finite: {_of_draws(blamed)}; lower the learning rate or init_scale."
        ) from error


def _of_draws(sites: list[str]) -> str:
    """Names the draws of a few sites and counts the rest."""
    named = ", ".join(f"the draw of the site {name!r}" for name in sites[:_NAMED])
    return named if len(sites) <= _NAMED else f"{named} and of {len(sites) - _NAMED} more"


def culprit(parts: Particle) -> str:
    """Which part of a non-finite objective is to blame, and what to try."""
    blamed = [
        f"{name} ({float(torch.as_tensor(value).detach()):.4g})"
        for name, value in (
            ("the divergence of the latent sites", parts.in_graph),
            ("the KL on flat vectors", parts.covered),
        )
        if not bool(torch.as_tensor(value).isfinite())
    ]
    if draws := [m["name"] for m in parts.run.latent if not bool(m["value"].isfinite().all())]:
        blamed.append(_of_draws(draws))
    blamed += [
        f"the log likelihood of the site {m['name']!r}"
        for m in parts.run.observed
        if not bool(m["fn"].log_prob(m["value"]).isfinite().all())
    ]
    return (
        f"the objective became non-finite: {', '.join(blamed)}; lower the learning rate or init_scale, or look at the "
        "data."
    )
