"""Adding a family: one class, and one constructor in the tests. A diagonal Student-t shows what has to be written."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyrobnn.guides.base import Guide
from pyrobnn.model.draws import Draws
from pyrobnn.model.facts import Facts
from pyrobnn.model.initialization import initial_values
from tests.conformance.guide_suite import GuideConformance


class DiagonalStudentT(Guide):
    """Independent Student-t distributions over unconstrained values."""

    def __init__(self, model: Callable[..., Any], df: float = 8.0, **options: Any) -> None:
        super().__init__(model, **options)
        start = self.layout.join(initial_values(model, self.layout, None))
        self.df = df
        self.loc = nn.Parameter(start)
        self.log_scale = nn.Parameter(torch.full_like(start, math.log(1e-2)))

    @property
    def facts(self) -> Facts:
        """Independent sites with densities."""
        names = frozenset(self.layout)
        return Facts(sites=names, density=names, independent=tuple(frozenset({name}) for name in names))

    def marginal(self, name: str) -> dist.Distribution:
        """The site's Student-t, pushed to its support."""
        site = self.layout[name]
        loc, log_scale = (
            self._parameters[key][site.window].view(site.unconstrained_shape) for key in ("loc", "log_scale")
        )
        base = dist.StudentT(self.df, loc, log_scale.exp())
        if site.is_real:
            return base.to_event(site.event_dim)
        return dist.TransformedDistribution(base, [site.transform]).to_event(
            site.event_dim - site.transform.codomain.event_dim
        )

    def rsample(self, noise: Tensor | None = None) -> Draws:
        """``μ + σ t``."""
        return Draws({name: self.marginal(name).rsample() for name in self.layout})

    @torch.no_grad()
    def sample(self, num_samples: int) -> Draws:
        """Draws without gradients."""
        return Draws({name: self.marginal(name).sample((num_samples,)) for name in self.layout})


class TestDiagonalStudentT(GuideConformance):
    """All that every family must do, for users, too."""

    exact = False

    def make_guide(self, model: nn.Module, **options: Any) -> Guide:
        return DiagonalStudentT(model, **options)


def test_a_family_that_lacks_something_is_refused_when_it_is_built() -> None:
    class Incomplete(Guide):
        pass

    with pytest.raises(TypeError, match=r"facts.*marginal.*rsample.*sample"):
        Incomplete(nn.Linear(2, 1))  # type: ignore[abstract]
