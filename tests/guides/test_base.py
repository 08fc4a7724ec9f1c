"""What guides share: what a family must implement, and what all of them refuse."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch import Tensor

from pyrobnn.guides import Guide
from pyrobnn.model.divergence import PriorTerm
from pyrobnn.model.draws import Draws
from pyrobnn.model.facts import Facts


class Sites(PyroModule):
    """A model that is a dictionary of priors."""

    def __init__(self, **priors: dist.Distribution) -> None:
        super().__init__()
        self.priors = priors

    def forward(self) -> dict[str, Tensor]:
        return {name: pyro.sample(name, prior) for name, prior in self.priors.items()}


class Unit(Guide):
    """Standard normals, with no more than what a family must implement."""

    @property
    def facts(self) -> Facts:
        names = frozenset(self.layout)
        return Facts(sites=names, density=names, independent=tuple(frozenset({name}) for name in names))

    def rsample(self, noise: Tensor | None = None) -> Draws:
        return self.sample(1).at(0)

    def sample(self, num_samples: int) -> Draws:
        return Draws({name: torch.randn(num_samples, *site.shape) for name, site in self.layout.items()})

    def marginal(self, name: str) -> dist.Distribution:
        site = self.layout[name]
        return dist.Normal(torch.zeros(site.shape), 1.0).to_event(site.event_dim)


PRIORS = {"a": dist.Normal(1.0, 2.0), "b": dist.Normal(torch.zeros(2), 0.5).to_event(1)}


@pytest.mark.parametrize("member", ["facts", "rsample", "sample", "marginal"])
def test_a_family_that_lacks_a_member_cannot_be_built(member: str) -> None:
    missing = {name: value for name, value in vars(Unit).items() if name in Guide.__abstractmethods__ - {member}}
    family = type(Guide)("Incomplete", (Guide,), missing)
    with pytest.raises(TypeError, match=f"abstract.*{member}"):
        family(Sites(**PRIORS), example=())


def test_what_follows_from_what_a_family_implements() -> None:
    guide = Unit(Sites(**PRIORS), example=())
    draws = guide.sample(4)
    expected = dist.Normal(0.0, 1.0).log_prob(torch.cat([draws["a"].unsqueeze(-1), draws["b"]], -1)).sum(-1)
    torch.testing.assert_close(guide.log_prob(draws), expected)
    assert {name: tuple(value.shape) for name, value in guide().items()} == {"a": (), "b": (2,)}
    assert [tuple(block["b"].shape) for block in guide.sample_blocks([2, 3])] == [(2, 2), (3, 2)]
    assert guide.elementwise_marginal("b").event_shape == (2,)
    priors = {name: PriorTerm(prior) for name, prior in PRIORS.items()}
    found = guide.divergence(guide.rsample(), priors)
    by_site = {n: torch.distributions.kl_divergence(guide.marginal(n), prior) for n, prior in PRIORS.items()}
    assert found.exact and float(found.joint) == 0.0
    assert {name: float(value) for name, value in found.by_site.items()} == {n: float(v) for n, v in by_site.items()}
    torch.testing.assert_close(found.total, by_site["a"] + by_site["b"])
    step = guide.step(None)
    assert step.num_samples(3) == 3
    torch.testing.assert_close(step.divergence(step.draw(0), priors).total, found.total)


def test_parts_of_a_guide_that_is_one() -> None:
    guide = Unit(Sites(**PRIORS), example=())
    assert guide.parts_of(Unit) == [guide] and guide.part("a") is guide
    with pytest.raises(ValueError, match="site: there is no latent site 'c'; the model has a, b"):
        guide.part("c")


def test_what_a_family_does_not_have() -> None:
    guide = Unit(Sites(**PRIORS), example=())
    with pytest.raises(NotImplementedError, match="Unit is no mixture of finitely many points"):
        guide.atoms(torch.zeros(1, dtype=torch.long))
    with pytest.raises(NotImplementedError, match="Unit has no buffers of its own"):
        guide.write_buffers(None, {})
