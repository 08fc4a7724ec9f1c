"""The terms of an objective's value, and errors that name the one that is not finite."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.model.substitution import SubstituteMessenger

__all__ = [
    "NonFiniteLossError",
    "Parts",
    "check_finite",
    "explaining_non_finite_draws",
    "failure_of_backward",
    "gradients_restored",
    "mean_parts",
]


_NAMED = 3  # sites that a message names


class NonFiniteLossError(ArithmeticError):
    """The objective became NaN or infinite; the message names the part that did."""


@dataclass
class Parts:
    """The terms of one evaluation of an objective by name, in sum units (nats for the whole data set).

    Attributes:
        values: Values by term: ``"log_likelihood"``, the expected log likelihood, scaled to the data set;
            ``"divergence"``, the KL of the guide to the prior (``-log p(w)`` for a point estimate), not tempered; and
            those of further terms.
        weights: Their factors in the loss; that of the log likelihood is negative.
        num_data: Size N of the data set, by which :meth:`per_datum` divides.
        share: Weight of this evaluation in the mean over the draws of a training step.
        divergence_name: What the divergence is: ``"KL"``, or ``"-log prior"`` for points.
    """

    values: dict[str, Tensor]
    weights: Mapping[str, float]
    num_data: int
    share: float = 1.0
    divergence_name: str = "KL"
    _loss: Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def loss(self) -> Tensor:
        """The objective that is minimized: the weighted sum of the terms."""
        if self._loss is None:
            self._loss = self._sum()
        return self._loss

    def _sum(self) -> Tensor:
        weights = self.weights
        total: Any = None
        for name in sorted(self.values, key=lambda name: weights[name] < 0.0):  # so that the first term is positive
            weight, value = weights[name], self.values[name]
            size = abs(weight)
            weighted = value if size == 1.0 else size * value
            if total is None:
                total = weighted if weight >= 0.0 else -weighted
            else:
                total = total + weighted if weight >= 0.0 else total - weighted
        return torch.as_tensor(total)

    @property
    def log_likelihood(self) -> Tensor:
        """Expected log likelihood."""
        return self.values["log_likelihood"]

    @property
    def divergence(self) -> Tensor:
        """Divergence from the prior."""
        return self.values["divergence"]

    @property
    def temperature(self) -> float:
        """Weight λ of the divergence in the loss."""
        return self.weights["divergence"]

    @property
    def elbo(self) -> Tensor:
        """Log likelihood minus divergence, untempered and without further terms."""
        return self.log_likelihood - self.divergence

    def per_datum(self) -> dict[str, float]:
        """``elbo``, ``log_likelihood``, ``kl``, further terms and ``loss`` in nats per datum."""
        found = {name: float(value) / self.num_data for name, value in self.values.items()}
        loss = sum(self.weights[name] * value for name, value in found.items())
        likelihood, kl = found.pop("log_likelihood"), found.pop("divergence")
        return {"elbo": likelihood - kl, "log_likelihood": likelihood, "kl": kl, **found, "loss": loss}

    def detached(self) -> Parts:
        """The same numbers without their graphs."""
        values = {name: value.detach() for name, value in self.values.items()}
        return Parts(values, self.weights, self.num_data, self.share, self.divergence_name)


def mean_parts(parts: Sequence[Parts]) -> Parts:
    """The average over evaluations by their shares, which sum to one for each term."""
    if len(parts) == 1:
        return parts[0]
    values: dict[str, Any] = {}
    weights: dict[str, float] = {}
    for part in parts:
        weights |= part.weights
        for name, value in part.values.items():
            values[name] = values.get(name, 0.0) + part.share * value
    return Parts(values, weights, parts[0].num_data, divergence_name=parts[0].divergence_name)


def check_finite(parts: Parts, run: SubstituteMessenger | None = None) -> None:
    """Refuses an evaluation that is not finite.

    Raises:
        NonFiniteLossError: If it is NaN or infinite; the message names the part that is.
    """
    if math.isfinite(float(parts.loss.detach())):
        return
    named = [
        f"{_DESCRIPTIONS.get(name, name)} ({float(value.detach()):.4g})"
        for name, value in parts.values.items()
        if not (name == "log_likelihood" and run is not None) and not bool(value.isfinite())
    ]
    if run is not None:
        if draws := [m["name"] for m in run.latent if not bool(m["value"].isfinite().all())]:
            named.append(_of_draws(draws))
        named += [
            f"the log likelihood of the site {m['name']!r}"
            for m in run.observed
            if not bool(m["fn"].log_prob(m["value"]).isfinite().all())
        ]
    raise NonFiniteLossError(
        f"the objective became non-finite: {', '.join(named)}; lower the learning rate or init_scale, or check the "
        "data."
    )


_DESCRIPTIONS = {"divergence": "the divergence of the latent sites", "log_likelihood": "the log likelihood"}


@contextmanager
def gradients_restored(*modules: Any) -> Iterator[None]:
    """Restores the parameters' gradients if the block raises, so that no part of a failed step remains."""
    parameters = [p for module in modules if isinstance(module, nn.Module) for p in module.parameters()]
    before = [(p, None if p.grad is None else p.grad.clone()) for p in parameters]
    try:
        yield
    except Exception:
        for parameter, gradient in before:
            parameter.grad = gradient
        raise


@contextmanager
def explaining_non_finite_draws(values: Mapping[str, Tensor], term: str | None = None) -> Iterator[None]:
    """Turns the errors of Pyro's validation about NaN parameters into the name of the draw that caused them.

    Args:
        values: The draw of the block.
        term: The objective's term that the block computes, if it is not the ELBO's.
    """
    try:
        yield
    except ValueError as error:
        named = [name for name, value in values.items() if not bool(value.isfinite().all())]
        if not named:
            raise
        raise NonFiniteLossError(
            f"the objective became non-finite: {'' if term is None else f'{term} at '}{_of_draws(named)}; lower the "
            "learning rate or init_scale."
        ) from error


def _of_draws(sites: list[str]) -> str:
    """Names the draws of a few sites and counts the rest."""
    named = ", ".join(f"the draw of the site {name!r}" for name in sites[:_NAMED])
    return named if len(sites) <= _NAMED else f"{named} and of {len(sites) - _NAMED} more"


def failure_of_backward(loss: Tensor, *modules: Any) -> Exception | None:
    """Differentiates; returns the error if torch cannot, and then leaves the gradients as they were."""
    try:
        with gradients_restored(*modules):
            if loss.requires_grad:
                loss.backward()
    except Exception as error:  # torch raises all kinds
        return error
    return None
