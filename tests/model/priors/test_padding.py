"""Padding rows of embeddings: constants without a prior, whatever the guide, prior or sampler."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn import guides, objectives, priors
from pyrobnn.guides import Guide
from pyrobnn.model.supervised import SupervisedModel

_NOISE = torch.Generator().manual_seed(0)
IDS = torch.randint(0, 7, (30, 5), generator=_NOISE)
Y = torch.randn(30, 1, generator=_NOISE)
PAD = 6
NORMAL = dist.Normal(0.0, 1.0)


class Padded(nn.Module):
    """Sums embeddings of which the last is padding."""

    def __init__(self, kind: type[nn.Module] = nn.Embedding, padding: int = PAD) -> None:
        super().__init__()
        options = {"mode": "sum"} if kind is nn.EmbeddingBag else {}
        self.table, self.last = kind(7, 3, padding_idx=padding, **options), nn.Linear(3, 1)

    def forward(self, ids: Tensor) -> Tensor:
        found = self.table(ids)
        return self.last(found if found.dim() == 2 else found.sum(1))


class Masked(nn.Module):
    """The same function of a table without that row."""

    def __init__(self, row: Tensor) -> None:
        super().__init__()
        self.table, self.last = nn.Embedding(6, 3), nn.Linear(3, 1)
        self.row = row

    def forward(self, ids: Tensor) -> Tensor:
        table = torch.cat([self.table.weight, self.row.unsqueeze(0)])
        return self.last(nn.functional.embedding(ids, table).sum(1))


def built(net: nn.Module, prior: Any = NORMAL) -> SupervisedModel:
    return SupervisedModel(net, pb.likelihoods.Normal(0.3), prior=prior, num_data=30)


def twins(prior: Any) -> tuple[SupervisedModel, SupervisedModel]:
    """A model with a padding row, and one of the same function without."""
    torch.manual_seed(1)
    padded = Padded()
    with torch.no_grad():
        padded.table.weight[PAD] = torch.tensor([0.5, 0.0, -1.0])  # a pretrained row need not be zero
    masked = Masked(padded.table.weight[PAD].detach().clone())
    with torch.no_grad():
        masked.table.weight.copy_(padded.table.weight[:PAD])
        masked.last.load_state_dict(padded.last.state_dict())
    return built(padded, prior), built(masked, prior)


def swag(model: SupervisedModel) -> Guide:
    guide = guides.SWAG(model)
    pb.fit(model, guide, [(IDS, Y)], epochs=4, progress=False, callbacks=[guide.collector(start=1)], seed=0)
    return guide


def laplace(structure: Any) -> Callable[[SupervisedModel], Guide]:
    def make(model: SupervisedModel) -> Guide:
        return guides.Laplace(model.eval(), structure=structure).fit(model, [(IDS, Y)])

    return make


FITTED = {"swag": swag, "laplace, full": laplace("full"), "laplace, diagonal": laplace("diagonal")}
TRAINED: dict[str, Callable[..., Guide]] = {
    "point": guides.MAP,
    "mean field": guides.MeanField,
    "low rank": guides.LowRankNormal,
    "vectorized members": lambda m: guides.DeltaMixture(m, 3, init="prior", vmap=True),
    "members": lambda m: guides.DeltaMixture(m, 3, init="prior", vmap=False),
    "composite": lambda m: guides.Composite(m, [("net.table.*", guides.MeanField), ("*", guides.MAP)]),
}
PRIORS: dict[str, Any] = {
    "normal": NORMAL,
    "laplace": dist.Laplace(0.0, 1.0),
    "mixture": priors.scale_mixture(),
    "positive": [("table.*", dist.LogNormal(0.0, 0.5)), ("*", NORMAL)],
    "horseshoe": priors.horseshoe(),
    "latent scale": priors.latent_scale(),
    "learned scale": priors.learned_scale(),
    "centered": priors.centered(0.5),
    "by fan-in": priors.he(),
}


def check_twins(first: tuple[SupervisedModel, Guide], second: tuple[SupervisedModel, Guide]) -> None:
    """The same objective, draws and predictions; draws have the row."""
    values = []
    for model, guide in (first, second):
        torch.manual_seed(5)
        values.append(objectives.ELBO(2).loss(model, guide, IDS, Y))
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    draws = []
    for _, guide in (first, second):
        torch.manual_seed(6)
        draws.append(guide.sample(4))
    for name in draws[1]:
        value = draws[0][name]
        if name == "net.table.weight":
            assert torch.equal(value[:, PAD], torch.tensor([0.5, 0.0, -1.0]).expand(4, -1))
            value = value[:, :PAD]
        torch.testing.assert_close(value, draws[1][name])
    found = [pb.predict(model, guide, IDS, 5, seed=0) for model, guide in (first, second)]
    torch.testing.assert_close(found[0].mean, found[1].mean)
    torch.testing.assert_close(found[0].std, found[1].std)


@pytest.mark.parametrize("make", TRAINED.values(), ids=TRAINED)
def test_training_is_that_of_a_table_without_the_row(make: Callable[..., Guide]) -> None:
    pairs = []
    for model in twins(NORMAL):
        torch.manual_seed(2)
        guide = make(model)
        pb.fit(model, guide, [(IDS, Y)], epochs=4, lr=0.05, progress=False, seed=3)
        pairs.append((model, guide))
    check_twins(*pairs)


@pytest.mark.parametrize("make", FITTED.values(), ids=FITTED)
def test_fitted_guides_are_those_of_a_table_without_the_row(make: Callable[..., Guide]) -> None:
    pairs = [(model, make(model)) for model in twins(NORMAL)]
    check_twins(*pairs)
    one, other = (guide for _, guide in pairs)
    if one.facts.has_density:
        torch.manual_seed(7)
        draws = one.sample(3)
        same = {n: v[:, :PAD] if n == "net.table.weight" else v for n, v in draws.items()}
        torch.testing.assert_close(one.log_prob(draws), other.log_prob(same))


@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
def test_every_prior_is_that_of_the_other_rows(prior: Any) -> None:
    pairs = []
    for model in twins(prior):
        guide = guides.MeanField(model)
        pb.fit(model, guide, [(IDS, Y)], epochs=3, lr=0.05, progress=False, seed=3)
        pairs.append((model, guide))
    first, second = (objectives.ELBO(50).loss(*pair, IDS, Y) for pair in pairs)
    assert first == pytest.approx(second, rel=0.2)
    names = [name for name in pairs[0][1].layout if "table" in name]
    assert all(pairs[0][1].layout[n].numel == pairs[1][1].layout[n].numel for n in names)


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
@pytest.mark.parametrize("padding", [0, 3, -1])
def test_more_padding_changes_nothing(kind: type[nn.Module], padding: int) -> None:
    torch.manual_seed(1)
    model = built(Padded(kind, padding))
    guide = guides.MeanField(model)
    pb.fit(model, guide, [(IDS, Y)], epochs=5, lr=0.05, progress=False, seed=0)
    longer = nn.functional.pad(IDS, (0, 8), value=padding % 7)
    first, second = (pb.predict(model, guide, ids, 20, seed=0) for ids in (IDS, longer))
    torch.testing.assert_close(first.mean, second.mean)
    torch.testing.assert_close(first.std, second.std)
    draws = guide.sample(3)
    weights = [{name.removeprefix("net."): value[i] for name, value in draws.items()} for i in range(3)]
    own = torch.stack([torch.func.functional_call(model.net.network.eval(), w, (IDS,)) for w in weights])
    torch.testing.assert_close(pb.predict(model, draws, IDS, 3).mean, own.mean(0))


@pytest.mark.parametrize("kernel", [pb.sampling.SGLD(1e-4), pb.sampling.SGHMC(1e-4)], ids=["sgld", "sghmc"])
def test_samplers_leave_the_row_alone(kernel: Any) -> None:
    model, _ = twins(NORMAL)
    chains = pb.sample(model, (IDS, Y), kernel=kernel, num_samples=3, warmup_steps=3, seed=0, progress=False)
    draws = chains.sample(3)["net.table.weight"]
    assert torch.equal(draws[:, PAD], torch.tensor([0.5, 0.0, -1.0]).expand(3, -1))
    assert float(draws[:, :PAD].std(0).min()) > 0.0


def test_saved_and_loaded(tmp_path: Path) -> None:
    model, _ = twins(priors.latent_scale())
    guide = guides.MeanField(model)
    pb.save(tmp_path, model, guide)
    again, loaded = pb.load(tmp_path, net=Padded())
    first, second = (pb.predict(m, g, IDS, 5, seed=0).mean for m, g in ((model, guide), (again, loaded)))
    torch.testing.assert_close(first, second)


def test_another_network_starts_its_other_rows() -> None:
    model, _ = twins(NORMAL)
    start = Padded()
    nn.init.ones_(start.table.weight)
    drawn = guides.MAP(model, init=start).sample(1)["net.table.weight"][0]
    assert torch.equal(drawn[:PAD], torch.ones(6, 3))
    assert torch.equal(drawn[PAD], torch.tensor([0.5, 0.0, -1.0]))


def test_a_weight_that_is_tied_to_an_output_layer_is_drawn_whole() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.out = nn.Embedding(7, 3, padding_idx=0), nn.Linear(3, 7)
            self.out.weight = self.table.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.out(self.table(ids).sum(1))

    assert guides.MAP(built(Tied())).layout["net.table.weight"].numel == 21


def test_a_prior_of_the_wrong_rows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"prior of 'table.weight': .*\(6, 3\).* Row 6 is that of padding"):
        built(Padded(), [("table.*", dist.Normal(torch.zeros(7, 3), 1.0)), ("*", NORMAL)])


def test_the_distribution_by_hand() -> None:
    (site,) = (s for s in guides.MAP(twins(NORMAL)[0]).layout.values() if s.name == "net.table.weight")
    value = site.prior.sample()
    assert value.shape == (7, 3)
    assert float(site.prior.log_prob(value)) == pytest.approx(float(NORMAL.log_prob(value[:PAD]).sum()))
    assert torch.equal(site.constrain(site.unconstrain(value)), value)
    assert torch.equal(site.prior.mean[PAD], value[PAD])
    assert float(site.prior.variance.sum()) == pytest.approx(18.0)
    assert bool(site.prior.support.check(value))
    assert not bool(site.prior.support.check(value + 1.0))
    assert site.prior.expand((2,)).sample().shape == (2, 7, 3)
