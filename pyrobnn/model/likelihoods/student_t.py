"""Noise with heavy tails."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.core.explanations import explained
from pyrobnn.distributions import with_cdf
from pyrobnn.model.likelihoods.information import FisherInformation
from pyrobnn.model.likelihoods.paired import PairedOutputs

__all__ = ["StudentT"]


@explained
class StudentT(PairedOutputs):
    r"""Student's t, for targets with outliers: outputs ``[B, 2 D]`` are locations, then raw scales.

    :math:`y = \mu(x) + \sigma(x)\, t_\nu`, of variance :math:`\sigma^2 \nu / (\nu - 2)` (Lange et al. 1989).

    Args:
        df: Degrees of freedom ν, above 2, so that predictions have a variance; where learning starts if ``learn_df``.
        floor: Smallest scale, which keeps the likelihood bounded.
        learn_df: Fit one ν for all targets by maximizing the ELBO; samplers hold it fixed.
        dim: Dimension of the outputs that holds locations, then raw scales; 1 for images ``[B, 2 C, H, W]``.
        missing: Whether targets may be NaN (not observed), as in :class:`~pyrobnn.likelihoods.Likelihood`.

    Raises:
        TypeError: If ``learn_df`` is no bool.
        ValueError: If ``df`` is not above 2, or as for the other arguments.
    """

    first = "locations"

    def __init__(
        self,
        df: float = 4.0,
        floor: float = 1e-3,
        *,
        learn_df: bool = False,
        dim: int = -1,
        missing: bool = False,
    ) -> None:
        super().__init__(floor, dim=dim, missing=missing)
        if isinstance(df, bool) or not isinstance(df, int | float) or not 2 < df < math.inf:
            raise ValueError(f"df: expected a number above 2, below which there is no variance, got {df!r}.")
        if not isinstance(learn_df, bool):
            raise TypeError(f"learn_df: expected True or False, got {learn_df!r}.")
        self.df, self.learn_df = float(df), learn_df
        if learn_df:
            self.add_plain("freedom", _Freedom(self.df))

    def degrees_of_freedom(self, like: Tensor) -> Tensor:
        """The present ν, a number of the dtype and device of ``like``."""
        return self._plain["freedom"]().to(like.dtype) if self.learn_df else like.new_full((), self.df)

    def parameters_of(self, outputs: Tensor) -> dict[str, Tensor]:
        """``loc``, ``scale`` and ``df``."""
        loc, raw = self.halves(outputs)
        return {"loc": loc, "scale": self.positive(raw), "df": self.degrees_of_freedom(loc).expand_as(loc)}

    def distribution(self, parameters: Mapping[str, Tensor]) -> with_cdf.StudentT:
        """Student's t."""
        return with_cdf.StudentT(parameters["df"], parameters["loc"], parameters["scale"])

    def rescaled(self, parameters: Mapping[str, Tensor], loc: Tensor, scale: Tensor) -> dict[str, Tensor]:
        """The parameters of ``loc + scale · y``."""
        moved = super().rescaled({name: parameters[name] for name in ("loc", "scale")}, loc, scale)
        return {**moved, "df": parameters["df"]}

    @torch.no_grad()
    def fisher_information(self, outputs: Tensor) -> FisherInformation:
        """Of the location, ``(ν + 1) / (ν + 3) / σ²``; of the raw scale, ``2 ν / (ν + 3) σ'² / σ²``."""
        if type(self) is not StudentT:  # a subclass may have another density
            return super().fisher_information(outputs)
        _, raw = self.halves(outputs)
        df, variance = self.degrees_of_freedom(raw), self.positive(raw).square()
        second = 2.0 * df / (df + 3.0) * raw.sigmoid().square() / variance
        return self.joined((df + 1.0) / (df + 3.0) / variance, second)

    def config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {"df": self.df, "learn_df": self.learn_df, **super().config()}


class _Freedom(nn.Module):
    """ν above 2, trained as ``log (ν - 2)``."""

    def __init__(self, df: float) -> None:
        super().__init__()
        self.log_excess = nn.Parameter(torch.tensor(math.log(df - 2.0)))

    def forward(self) -> Tensor:
        return 2.0 + self.log_excess.exp()
