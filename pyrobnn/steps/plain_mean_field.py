r"""A mean-field training step in ordinary operations on the flat vectors: one graph of several draws.

The same draws and divergences as :class:`~pyrobnn.steps.mean_field.MeanFieldStep`, whose backward pass is written by
hand, works in memory of its own and runs once. This one can be differentiated twice, and a compiler makes a few loops
of it. With :math:`\sigma = e^\psi` and fixed priors :math:`N(m, s^2)`

.. math::  \mathrm{KL} = \sum_i \frac{\sigma_i^2 + (\mu_i - m_i)^2}{2 s_i^2} - \psi_i + \log s_i - \frac12.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pyrobnn.model.divergence import Divergence, PriorTerm
from pyrobnn.model.draws import Draws
from pyrobnn.model.layout import Layout
from pyrobnn.steps.base import Step
from pyrobnn.steps.normal_prior import FlatNormalPrior

__all__ = ["PlainMeanFieldStep"]


class PlainMeanFieldStep(Step):
    """Draws of independent Gaussians over a flat vector.

    Args:
        layout: The sites.
        parameters: The means and log standard deviations ``[d]``, read anew for each draw.
        marginal: The distribution of a site on its support, for priors that are no fixed Normals.
    """

    def __init__(
        self, layout: Layout, parameters: Callable[[], tuple[Tensor, Tensor]], marginal: Callable[[str], Any]
    ) -> None:
        self.layout, self._parameters, self._marginal = layout, parameters, marginal
        self._prior: FlatNormalPrior | None = None

    def draw(self, index: int | None, noise: Tensor | None = None, *, avoid: Tensor | None = None) -> Draws:
        """``μ + σε`` by site."""
        loc, log_scale = self._parameters()
        scale = log_scale.exp()
        noise = torch.randn_like(loc) if noise is None else noise
        values = self.layout.split(loc + scale * noise)
        return Draws(self.layout.constrain(values), record=(loc, log_scale, scale))

    def divergence(self, draws: Draws, priors: Mapping[str, PriorTerm]) -> Divergence:
        """The KL: of fixed Normal priors on flat vectors, of others site by site."""
        loc, log_scale, scale = draws.record
        prior = self._prior = FlatNormalPrior.of(self._prior, self.layout, priors, loc)
        total: Tensor | float = 0.0
        for normal in prior.windows:
            # A slice of everything would cost a compiled backward pass another pass over memory.
            is_whole = normal.size == len(loc)
            means, logs, scales = (t if is_whole else t[normal.window] for t in (loc, log_scale, scale))
            quadratic = scales.square() + (means - normal.loc).square()
            elements = quadratic * (0.5 * normal.precision) - logs
            # Compilers add numbers one by one, which loses four digits of a sum of half a million.
            precise = torch.float64 if loc.device.type in ("cpu", "cuda") else None
            total = total + (elements.sum(dtype=precise) + (normal.log_scale_sum - 0.5 * normal.size)).to(loc.dtype)

        return Divergence.beside(total, prior.names, self._marginal, priors, draws)
