r"""Priors whose scale is itself inferred or learned.

* :class:`HorseshoePrior`: :math:`w_i = z_i \lambda_i \tau`, :math:`z_i \sim N(0, 1)`,
  :math:`\lambda_i \sim C^+(0, 1)`, :math:`\tau \sim C^+(0, s)`; non-centered, because the centered form's funnel
  defeats every factorized posterior (Carvalho, Polson & Scott 2010; Louizos, Ullrich & Welling 2017).
* :class:`LatentScalePrior`: :math:`w \sim N(0, \sigma)`, :math:`\sigma \sim p(\sigma)`, one per parameter tensor.
* :class:`LearnedScalePrior`: :math:`w \sim N(0, \sigma)` with :math:`\sigma` fitted by maximizing the ELBO
  (empirical Bayes, type-II maximum likelihood).
"""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrobnn.core.arguments import check_positive
from pyrobnn.core.explanations import explained
from pyrobnn.model.priors.base import FixedPrior, Prior, is_positive
from pyrobnn.model.priors.padding import PaddedPrior
from pyrobnn.model.priors.structure import BinaryConcretePrior, ConcretePrior

__all__ = ["HorseshoePrior", "LatentScalePrior", "LearnedScalePrior", "from_spec"]


@explained
class HorseshoePrior(Prior):
    """Non-centered horseshoe over the elements of one parameter.

    Adds the sites ``<name>.raw`` and ``<name>.local_scale`` (the parameter's shape) and ``<name>.global_scale``
    (scalar); the parameter itself is deterministic given them.

    Args:
        shape: The parameter's shape.
        scale: Scale :math:`s` of the half-Cauchy prior of the global scale.

    Raises:
        ValueError: If ``scale`` is not positive.
    """

    def __init__(self, shape: torch.Size, scale: float = 1.0) -> None:
        super().__init__(shape)
        check_positive("scale", scale, "scale")
        self.scale = float(scale)
        self.add_auxiliary("raw", dist.Normal(0.0, 1.0), self.shape)
        self.add_auxiliary("local_scale", dist.HalfCauchy(1.0), self.shape)
        self.add_auxiliary("global_scale", dist.HalfCauchy(self.scale), torch.Size())

    def conditional(self, **auxiliary: Tensor) -> Tensor:
        """The parameter's value."""
        return auxiliary["raw"] * auxiliary["local_scale"] * auxiliary["global_scale"]

    def initial(self, value: Tensor) -> dict[str, Tensor]:
        """Unit local scales, the value's spread as the global scale, and ``raw`` to match."""
        spread = value.square().mean().sqrt().clamp_min(1e-3)
        return {"raw": value / spread, "local_scale": torch.ones_like(value), "global_scale": spread}

    def extra_repr(self) -> str:
        """One line for ``describe``."""
        return f"Horseshoe({self.scale:.4g})"

    def _config(self) -> dict[str, Any]:
        return {"scale": self.scale}


@explained
class LatentScalePrior(Prior):
    """``Normal(0, scale)`` with a scale that has its own prior; adds the scalar site ``<name>.scale``."""

    def __init__(self, shape: torch.Size, scale: dist.Distribution) -> None:
        super().__init__(shape)
        if not is_positive(scale):
            raise ValueError(
                f"scale: its prior must have support on the positive reals (HalfNormal, LogNormal, Gamma …), got "
                f"{type(scale).__name__}."
            )
        self.add_auxiliary("scale", scale, torch.Size())

    def conditional(self, **auxiliary: Tensor) -> dist.Distribution:
        """The parameter's distribution given the scale."""
        return dist.Normal(torch.zeros_like(auxiliary["scale"]), auxiliary["scale"]).expand(self.shape).to_event()

    def initial(self, value: Tensor) -> dict[str, Tensor]:
        """The value itself, and its spread as the scale."""
        return {"": value, "scale": value.square().mean().sqrt().clamp_min(1e-3)}

    def extra_repr(self) -> str:
        """One line for ``describe``."""
        return f"Normal(0, scale ~ {self.auxiliary['scale'].extra_repr()})"

    def _config(self) -> dict[str, Any]:
        return {"scale": self.auxiliary["scale"].spec()}


@explained
class LearnedScalePrior(Prior):
    """``Normal(0, exp(log_scale))`` with a trainable ``log_scale``, one per parameter tensor."""

    def __init__(self, shape: torch.Size, initial_scale: float = 1.0) -> None:
        super().__init__(shape)
        check_positive("initial_scale", initial_scale, "standard deviation")
        self.log_scale = nn.Parameter(torch.tensor(float(initial_scale)).log())

    def conditional(self, **auxiliary: Tensor) -> dist.Distribution:
        """The parameter's distribution at the current scale."""
        return dist.Normal(torch.zeros_like(self.log_scale), self.log_scale.exp()).expand(self.shape).to_event()

    def extra_repr(self) -> str:
        """One line for ``describe``."""
        return f"Normal(0, learned {self.log_scale.exp().item():.4g})"


def from_spec(spec: dict[str, Any]) -> Prior:
    """Rebuilds a prior from :meth:`Prior.spec`; its tensors come from the state dict.

    Raises:
        ValueError: If the spec names a prior that this version does not have.
    """
    kind, shape = spec["prior"], torch.Size(spec["shape"])
    if kind == "FixedPrior":
        return FixedPrior.from_spec(spec)
    if kind == "HorseshoePrior":
        return HorseshoePrior(shape, spec["scale"])
    if kind == "LearnedScalePrior":
        return LearnedScalePrior(shape)
    if kind == "LatentScalePrior":
        prior = LatentScalePrior(shape, dist.HalfCauchy(1.0))
        prior.auxiliary["scale"] = FixedPrior.from_spec(spec["scale"])
        prior.add_module("scale", prior.auxiliary["scale"])
        return prior
    if kind == "PaddedPrior":
        return PaddedPrior(from_spec(spec["others"]), spec["index"], torch.zeros(shape[1:]))
    if kind in ("ConcretePrior", "BinaryConcretePrior"):  # temperature and logits are in the state dict
        return ConcretePrior(shape) if kind == "ConcretePrior" else BinaryConcretePrior(shape)
    raise ValueError(f"unknown prior {kind!r}; this checkpoint may come from a newer pyrobnn.")
