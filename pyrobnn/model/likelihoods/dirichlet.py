r"""Dirichlet networks: outputs are the concentrations of a Dirichlet distribution over class probabilities.

.. math::  z \sim \mathrm{Dir}(\alpha(f_w(x))), \quad y \mid z \sim \mathrm{Cat}(z), \qquad
           p(y = c \mid x, w) = \alpha_c / \alpha_0, \quad \alpha_0 = \sum_c \alpha_c.

Over K draws of the weights the entropy of the label has three parts, which add up exactly,

.. math::  \underbrace{H[\bar p]}_{\text{total}} = \underbrace{\tfrac1K \sum_k E\, H[z_k]}_{\text{aleatoric}}
           + \underbrace{\tfrac1K \sum_k I_k[y; z_k]}_{\text{distributional}}
           + \underbrace{H[\bar p] - \tfrac1K \sum_k H[p_k]}_{\text{between draws}}, \quad p_k = \alpha_k / \alpha_{k0};

the epistemic part is the sum of the last two: what the network says it does not know, and what the posterior does not.
A point estimate has no third part.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor

from pyrobnn.core.arguments import check_positive
from pyrobnn.core.explanations import explained
from pyrobnn.metrics.dirichlet import DirichletMeasures, measures_of_log
from pyrobnn.model.likelihoods.categorical import Categorical
from pyrobnn.model.likelihoods.information import FisherInformation
from pyrobnn.model.likelihoods.predictions import ClassPrediction
from pyrobnn.model.likelihoods.reductions import ClassReduction, Reduction, widened

__all__ = ["Dirichlet", "DirichletPrediction", "Link"]

Link = Literal["exp", "softplus", "relu"]
"""How outputs f become concentrations."""

_AT_CLAMP = 1e-4


@explained
class Dirichlet(Categorical):
    r"""Classes ``0 … C - 1`` whose probabilities have a Dirichlet distribution with concentrations from the outputs.

    The log density of a label is :math:`\log \alpha_y / \alpha_0`; it says little of :math:`\alpha_0`, and with
    ``link="exp"`` nothing, since it is the log softmax. Train with :class:`~pyrobnn.objectives.DirichletELBO`, which
    also takes outliers. Samplers and curvature see the plain density, so that their :math:`\alpha_0` is the prior's.

    Args:
        link: ``"exp"``: :math:`\alpha = e^f` (prior networks, Malinin & Gales 2018). ``"softplus"`` and ``"relu"``:
            :math:`\alpha = \mathrm{softplus}(f) + 1` or :math:`\max(f, 0) + 1` (evidential, Sensoy et al. 2018).
        clamp: Log concentrations are cut to ``-clamp … clamp``, where they have no gradient; None cuts nothing. A
            warning says once which share of them was cut.
        class_dim: Dimension of the output that holds the classes, as in :class:`~pyrobnn.likelihoods.Categorical`.
        ignore_index: A label that means "not observed", likewise.
        class_weight: Weights ``[C]`` of the classes in the objective, likewise.

    Raises:
        TypeError: If ``ignore_index`` is no int.
        ValueError: If ``link`` is none of these, ``clamp`` is not positive, or ``class_weight`` is no vector of
            non-negative numbers.
    """

    def __init__(
        self,
        link: Link = "exp",
        *,
        clamp: float | None = 10.0,
        class_dim: int = -1,
        ignore_index: int | None = None,
        class_weight: Tensor | list[float] | None = None,
    ) -> None:
        super().__init__(class_dim, ignore_index=ignore_index, class_weight=class_weight)
        if link not in get_args(Link):
            raise ValueError(f"link: expected 'exp', 'softplus' or 'relu', got {link!r}.")
        if clamp is not None:
            check_positive("clamp", clamp)
        self.link, self.clamp = link, clamp
        self._has_warned = False

    def logits(self, outputs: Tensor) -> Tensor:
        """Log concentrations ``[B, ..., C]``, classes last."""
        found = self._classes_last(outputs)
        if self.link != "exp":
            found = (F.softplus(found) if self.link == "softplus" else found.relu()).log1p()
        return found if self.clamp is None else found.clamp(-self.clamp, self.clamp)

    def concentrations(self, outputs: Tensor) -> Tensor:
        """Concentrations ``[B, ..., C]``, classes last, in single precision at least."""
        return self.logits(widened(outputs)).exp()

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        """The label's distribution; under Pyro's validation, as in the first epoch of ``fit``, clamping is noticed."""
        if dist.is_validation_enabled() and not self._has_warned and outputs.device.type != "meta":
            with torch.no_grad():
                self.notice({"logits": self.logits(outputs)})
        return super().forward(outputs)

    def notice(self, parameters: Mapping[str, Tensor]) -> None:
        """Warns once if concentrations are clamped."""
        if self.clamp is None or self._has_warned:
            return
        share = float((parameters["logits"].abs() >= self.clamp - _AT_CLAMP).double().mean())
        if not share:
            return
        self._has_warned = True
        warnings.warn(
            f"likelihood: {share:.2g} of the concentrations of Dirichlet are clamped, to {math.exp(-self.clamp):.3g} "
            f"or {math.exp(self.clamp):.3g}, where they have no gradient; train with DirichletELBO, lower the learning "
            "rate, or raise clamp.",
            stacklevel=2,
        )

    @torch.no_grad()
    def fisher_information(self, outputs: Tensor) -> FisherInformation:
        r""":math:`D (\mathrm{diag}(p) - p p^\top) D` with D the derivatives of the log concentrations."""
        if type(self) is not Dirichlet:  # a subclass may have another density
            return super().fisher_information(outputs)
        leaf = outputs.detach().clone().requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(self.logits(leaf).sum(), leaf)
        probs = self.logits(outputs).softmax(-1)
        probs = probs.reshape(len(outputs), -1, probs.shape[-1])
        slope = self._classes_last(slope).reshape(probs.shape)
        return FisherInformation(self._positions(outputs), slope.square() * probs, lowered=slope * probs)

    def reduction(self, num_samples: int, *, keep: bool, max_bytes: int) -> Reduction:
        """Mean probabilities, votes, total concentrations and the three parts of the entropy."""
        return _Reduction(self, num_samples, keep=keep, max_bytes=max_bytes)

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {"link": self.link, "clamp": self.clamp, **super().config()}


@dataclass
class DirichletPrediction(ClassPrediction):
    """Class probabilities with the uncertainty of a mixture of Dirichlet distributions, one for each draw.

    ``total`` is the sum of ``aleatoric``, ``distributional`` and ``between_draws``; ``epistemic`` of the last two.

    Attributes:
        distributional: Mean over draws of the mutual information of the label and its probabilities, in nats.
        alpha0: Mean over draws of the total concentration; low where the network does not know.
        differential_entropy: Mean over draws of the entropy of the density on the simplex. That of their mixture has
            no closed form; it is between this and this plus ``log K``.
    """

    distributional: Tensor = field(kw_only=True)
    alpha0: Tensor = field(kw_only=True)
    differential_entropy: Tensor = field(kw_only=True)

    @property
    def between_draws(self) -> Tensor:
        """Mutual information of the label and the weights ``[N, …]``, in nats: what draws disagree about."""
        return (self.epistemic - self.distributional).clamp_min(0.0)

    @property
    def concentrations(self) -> Tensor | None:
        """Concentrations under each draw ``[K, N, …, C]``, or None if they were not kept."""
        return None if self.parameters is None else self._log_concentrations("concentrations").exp()

    def by_draw(self) -> DirichletMeasures:
        """The measures of each draw's Dirichlet distribution, each ``[K, N, …]``.

        Raises:
            ValueError: If the draws were not kept.
        """
        return measures_of_log(self._log_concentrations("by_draw"))

    def _log_concentrations(self, name: str) -> Tensor:
        kept = self._kept(name)
        return kept["log_probs"] + kept["log_alpha0"].unsqueeze(-1)


class _Reduction(ClassReduction):
    """Beside what classes have: sums over draws of what their Dirichlet distributions say."""

    def __init__(self, likelihood: Dirichlet, num_samples: int, *, keep: bool, max_bytes: int) -> None:
        super().__init__(likelihood, num_samples, keep=keep, max_bytes=max_bytes)
        self.sums: list[Tensor] = []

    def summary(self, outputs: Tensor) -> dict[str, Tensor]:
        """Log probabilities ``[B, …, C]`` and log total concentrations ``[B, …]``."""
        log_alpha = self.likelihood.parameters_of(widened(outputs))["logits"]
        return {"log_probs": log_alpha.log_softmax(-1), "log_alpha0": log_alpha.logsumexp(-1)}

    def add(self, summary: Mapping[str, Tensor]) -> None:
        """Adds draws of both, ``[k, N, …]`` each."""
        super().add(summary)
        log_alpha = summary["log_probs"] + summary["log_alpha0"].unsqueeze(-1)
        self.likelihood.notice({"logits": log_alpha})
        found = measures_of_log(log_alpha)
        chosen = (found.aleatoric, found.distributional, found.alpha0, found.differential_entropy)
        sums = [value.sum(0) for value in chosen]
        self.sums = [old + new for old, new in zip(self.sums, sums, strict=True)] if self.sums else sums

    def finish(self, targets: Tensor | None) -> DirichletPrediction:
        """The prediction."""
        plain = super().finish(targets)
        aleatoric, distributional, alpha0, density = (value / self.count for value in self.sums)
        parts = {"aleatoric": aleatoric, "epistemic": plain.epistemic + distributional}
        own = {"distributional": distributional, "alpha0": alpha0, "differential_entropy": density}
        return DirichletPrediction(**{**vars(plain), **parts, **own})
