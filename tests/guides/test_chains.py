"""Chains: the conformance suite, axes, evenly spread draws, blocks, checkpoints, ArviZ."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pyrobnn import fit, likelihoods, recalibrate_batch_norm
from pyrobnn.checkpoint import load, save
from pyrobnn.diagnostics import to_arviz
from pyrobnn.guides import MAP, Chains, Composite, MeanField
from pyrobnn.model.layout import Layout
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.prediction import PinnedDraws, predict
from pyrobnn.reporting.description import describe
from pyrobnn.sampling import SGLD, sample
from tests.conformance.comparisons import assert_same
from tests.conformance.guide_suite import EnsembleConformance
from tests.guides.test_base import Sites


class TestChainsConformance(EnsembleConformance):
    """What every guide must do; training is refused, Pyro's objectives move the draws."""

    trains = False
    refusal = "guide: Chains are draws of a finished run"

    def make_guide(self, model: nn.Module, **options: Any) -> Chains:
        size = Layout.of(model, example=options.get("example"), sites=options.get("sites")).size
        return Chains(model, 2, 2, [0.1 * torch.randn(2, 2, size)], **options)


def numbered(num_chains: int, draws: int, blocks: list[int] | None = None) -> Chains:
    """Chains of one real site, whose value is its member's number."""
    values = torch.arange(float(num_chains * draws)).view(num_chains, draws).T.unsqueeze(-1).contiguous()
    return Chains(Sites(w=dist.Normal(0.0, 1.0)), num_chains, draws, list(values.split(blocks or [draws])), example=())


def regression() -> SupervisedModel:
    noise = likelihoods.Normal(dist.LogNormal(0.0, 0.5))
    return SupervisedModel(nn.Linear(2, 1), noise, dist.Normal(0.0, 1.0), num_data=6)


def drawn(num_chains: int = 2, draws: int = 3) -> dict[str, Tensor]:
    return {
        "net.weight": torch.randn(num_chains, draws, 1, 2),
        "net.bias": torch.randn(num_chains, draws, 1),
        "likelihood.scale": torch.rand(num_chains, draws) + 0.5,
    }


# -------------------------------------------------------------------------------------------------------- axes


@pytest.mark.parametrize("blocks", [[4], [1, 3], [1, 1, 2]])
def test_members_are_numbered_chain_by_chain(blocks: list[int]) -> None:
    guide = numbered(3, 4, blocks)
    assert (guide.num_chains, guide.num_samples, guide.num_members) == (3, 4, 12)
    assert torch.equal(guide.by_chain()["w"], torch.arange(12.0).view(3, 4))
    assert torch.equal(guide.stacked(torch.tensor([7, 0, 11, 7]))["w"], torch.tensor([7.0, 0.0, 11.0, 7.0]))
    assert [float(guide.member(index)["w"].detach()) for index in range(12)] == list(range(12))
    assert guide.chain_draws(1)["w"].tolist() == [4.0, 5.0, 6.0, 7.0]
    assert guide.chain_draws(2, torch.tensor([3, 1]))["w"].tolist() == [11.0, 9.0]


def test_from_draws_and_by_chain_are_inverse() -> None:
    draws = drawn()
    guide = Chains.from_draws(regression(), draws, stats={"energy": torch.arange(6).view(2, 3)})
    assert_same(guide.by_chain(), draws, rtol=1e-6, atol=1e-6)
    assert list(guide.by_chain(["net.bias"])) == ["net.bias"]
    assert torch.equal(guide.stats["energy"], torch.arange(6.0).view(2, 3))


# ----------------------------------------------------------------------------------------------------- sampling


@given(num_chains=st.integers(1, 4), draws=st.integers(1, 9), data=st.data())
def test_draws_are_spread_evenly(num_chains: int, draws: int, data: Any) -> None:
    """None twice where there are enough; the shares of chains differ by one at most; all of them if requested for
    all.
    """
    guide = numbered(num_chains, draws)
    count = data.draw(st.integers(1, 2 * num_chains * draws))
    chosen = guide.sample(count)["w"].long()
    times = torch.bincount(chosen, minlength=num_chains * draws)
    least = count // (num_chains * draws)
    assert set(times.tolist()) <= {least, least + 1}
    shares = times.view(num_chains, draws).sum(1)
    assert int(shares.max() - shares.min()) <= 1
    assert torch.equal(chosen, chosen.sort().values)


@pytest.mark.statistical
def test_each_draw_by_itself_is_uniform() -> None:
    """2,000 pairs out of ten: each member 400 times, standard error 18."""
    guide = numbered(2, 5)
    times = torch.bincount(torch.cat([guide.sample(2)["w"].long() for _ in range(2000)]), minlength=10)
    assert float((times - 400).abs().max()) < 5 * 18


def test_blocks_of_draws_are_together_as_one_call() -> None:
    guide = numbered(3, 4)
    pieces = [block["w"] for block in guide.sample_blocks([5, 4, 3])]
    assert [len(piece) for piece in pieces] == [5, 4, 3]
    assert torch.equal(torch.cat(pieces), torch.arange(12.0))
    pinned = PinnedDraws(guide, 12, max_bytes=16)
    assert torch.equal(torch.cat([chunk["w"] for chunk in pinned]), torch.arange(12.0))


def test_prediction_averages_all_draws() -> None:
    model, draws, x = regression(), drawn(), torch.randn(5, 2)
    guide = Chains.from_draws(model, draws)
    outputs = torch.einsum("csoi,ni->csno", draws["net.weight"], x) + draws["net.bias"].unsqueeze(2)
    torch.testing.assert_close(predict(model, guide, x, 6).mean, outputs.mean((0, 1)))


# ---------------------------------------------------------------------------------------- what takes a posterior


@pytest.mark.parametrize("blocks", [[3], [1, 2]])
def test_checkpoint_round_trip(blocks: list[int], tmp_path: Path) -> None:
    model = regression()
    flat = torch.randn(3, 2, 4)
    stats = {"energy": torch.randn(2, 3), "diverging": torch.zeros(2, 3, dtype=torch.bool)}
    guide = Chains(model, 2, 3, list(flat.split(blocks)), stats=stats)
    save(tmp_path / "saved", model, guide)
    _, loaded = load(tmp_path / "saved", nn.Linear(2, 1))
    assert isinstance(loaded, Chains)
    assert_same(loaded.state_dict(), guide.state_dict())
    assert_same(loaded.by_chain(), guide.by_chain())
    assert list(loaded.stats) == ["energy", "diverging"]


def test_arviz_has_the_chains() -> None:
    model, draws = regression(), drawn(num_chains=3, draws=8)
    guide = Chains.from_draws(model, draws)
    data = to_arviz(model, guide, torch.randn(6, 2), torch.randn(6, 1))
    posterior = data["posterior"]
    assert dict(posterior.sizes)["chain"] == 3
    assert dict(posterior.sizes)["draw"] == 8
    np.testing.assert_allclose(posterior["likelihood.scale"].to_numpy(), draws["likelihood.scale"].numpy(), rtol=1e-6)
    assert data["log_likelihood"]["y"].shape[:2] == (3, 8)
    thinned = to_arviz(model, guide, torch.randn(6, 2), num_samples=2, groups="posterior")["posterior"]
    np.testing.assert_allclose(thinned["net.bias"].to_numpy(), draws["net.bias"][:, [0, 7]].numpy(), rtol=1e-6)
    with pytest.raises(ValueError, match="there are 8 draws per chain, got 9"):
        to_arviz(model, guide, torch.randn(6, 2), num_samples=9)


def test_it_may_have_some_of_the_sites(tmp_path: Path) -> None:
    model = regression()
    rules = [("net.*", functools.partial(Chains, num_chains=2, num_samples=3)), ("*", MeanField)]
    guide = Composite(model, rules)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(torch.randn_like(parameter))
    draws = guide.sample(6)
    assert set(draws) == set(guide.layout)
    assert len({float(value) for value in draws["net.bias"]}) == 6
    save(tmp_path / "saved", model, guide)
    _, loaded = load(tmp_path / "saved", nn.Linear(2, 1))
    assert_same(loaded.state_dict(), guide.state_dict())


def test_describe_names_the_mixture() -> None:
    assert "mixture of 6 deltas" in str(describe(regression(), Chains.from_draws(regression(), drawn())))


# ------------------------------------------------------------------------------------------------------ refusals


def test_what_does_not_fit() -> None:
    model = regression()
    with pytest.raises(ValueError, match=r"draws: block 0 has shape \(3, 2, 5\), expected \(k, 2, 4\)"):
        Chains(model, 2, 3, [torch.zeros(3, 2, 5)])
    with pytest.raises(ValueError, match="blocks hold 4 draws, expected num_samples=3"):
        Chains(model, 2, 3, [torch.zeros(4, 2, 4)])
    with pytest.raises(ValueError, match=r"stats: 'energy' has shape \(3, 2\), expected \(2, 3\)"):
        Chains(model, 2, 3, stats={"energy": torch.zeros(3, 2)})
    with pytest.raises(ValueError, match="num_chains: expected a positive int"):
        Chains(model, 0, 3)
    draws = drawn()
    with pytest.raises(ValueError, match=r"draws: they lack the site 'net\.bias'"):
        Chains.from_draws(model, {n: v for n, v in draws.items() if n != "net.bias"})
    with pytest.raises(ValueError, match="draws: there is no latent site 'other'"):
        Chains.from_draws(model, draws | {"other": torch.zeros(2, 3)})
    with pytest.raises(ValueError, match="expected as many chains and draws of each site"):
        Chains.from_draws(model, draws | {"net.bias": torch.zeros(2, 4, 1)})
    with pytest.raises(ValueError, match=r"those of the site 'net.bias' have shape \(2,\), expected \(1,\)"):
        Chains.from_draws(model, draws | {"net.bias": torch.zeros(2, 3, 2)})


def test_there_is_no_density() -> None:
    guide = numbered(2, 2)
    with pytest.raises(NotImplementedError, match="Chains has no density of the site 'w'"):
        guide.log_prob(guide.sample(1))


def test_the_draws_given_stay_as_they_are() -> None:
    """Blocks are kept without a copy; nothing writes into them, and training is refused."""
    model = SupervisedModel(nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1)), likelihoods.Normal(0.5), num_data=6)
    torch.manual_seed(0)
    x, y = torch.randn(6, 2), torch.randn(6, 1)
    blocks = [torch.randn(k, 2, Layout.of(model).size) for k in (1, 2)]
    before = [block.clone() for block in blocks]
    guide = Chains(model, 2, 3, blocks)
    with pytest.raises(TypeError, match="guide: Chains are draws of a finished run"):
        fit(model, guide, [(x, y)], epochs=1, progress=False)
    recalibrate_batch_norm(model, guide, [(x, y)])
    for num_samples in (4, 6, 9):
        for value in guide.sample(num_samples).values():
            value.zero_()
    predict(model, guide, x)
    for values in (guide.chain_draws(1), guide.stacked(torch.arange(6)), guide.by_chain(), guide.starting_point()):
        for value in values.values():
            value.zero_()
    start = dict(guide.starting_point())
    further = sample(
        model, (x, y), kernel=SGLD(1e-3), num_samples=2, num_chains=2, init=start, batch_norm="freeze", progress=False
    )
    assert not torch.equal(further.blocks[0][0], further.blocks[0][1])
    fit(model, MAP(model, init=start), [(x, y)], epochs=1, progress=False)
    assert all(torch.equal(block, old) for block, old in zip(blocks, before, strict=True))
