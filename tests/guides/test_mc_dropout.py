"""MC dropout: the conformance suite, ordinary dropout, moments, the penalty, and the rules of what is masked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn import likelihoods, priors
from pyrobnn.guides import MAP, Composite, MCDropout
from pyrobnn.guides.components.dropout_rates import maskable_sites
from pyrobnn.model.divergence import PriorTerm
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.objectives import ELBO
from tests.conformance.guide_models import CASES, Case
from tests.conformance.guide_suite import GuideConformance
from tests.conformance.monte_carlo import Z, z_of_mean, z_of_means

each_case = pytest.mark.parametrize("case", CASES, ids=str)


class TestMCDropoutConformance(GuideConformance):
    """What every guide must do; biases and scales are points."""

    has_density = False

    def make_guide(self, model: nn.Module, **options: Any) -> MCDropout:
        return MCDropout(model, 0.5, **options)

    @each_case
    def test_draws_differ_unless_the_guide_is_a_point(self, case: Case) -> None:
        """64 draws, in each of which every column is dropped with probability one half."""
        _, guide, _ = self.build(case)
        for name, value in guide.sample(64).items():
            varies = (value != value[0]).reshape(64, -1).any(0)
            assert bool(varies.all()) == bool(varies.any()) == (name in guide.rates), name


def make(net: nn.Module, prior: Any = None, num_data: int = 8, **options: Any) -> tuple[SupervisedModel, MCDropout]:
    prior = dist.Normal(0.0, 1.0) if prior is None else prior
    model = SupervisedModel(net, likelihoods.Normal(0.5), prior, num_data=num_data)
    return model, MCDropout(model, **options)


# ------------------------------------------------------------------------------------------------------ draws


LAYERS = {
    "linear": (nn.Linear(4, 3, bias=False), lambda z: z.view(1, 4)),
    "conv": (nn.Conv2d(4, 3, 2, bias=False), lambda z: z.view(1, 4, 1, 1)),
    "transposed": (nn.ConvTranspose1d(4, 3, 2, bias=False), lambda z: z.view(4, 1, 1)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_whole_input_units_are_dropped(kind: str) -> None:
    layer, shaped = LAYERS[kind]
    _, guide = make(layer, p=0.5)
    weight = layer.weight.detach()
    seen = set()
    for draw in guide.sample(50)["net.weight"]:
        z = (draw / weight).movedim(0 if kind == "transposed" else 1, 0).flatten(1)[:, 0]
        assert torch.equal(draw, weight * shaped(z.round()))
        seen |= set(z.round().tolist())
    assert seen == {0.0, 2.0}


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_dropped_channel_is_a_zeroed_input(groups: int) -> None:
    """Through the layer itself: a draw's output is that of inputs with channels zeroed or doubled."""
    layer = nn.Conv1d(4, 8, 3, groups=groups, bias=False)
    _, guide = make(layer, p=0.5)
    (masked,) = maskable_sites(make(layer, p=0.5)[0], guide.layout).values()
    x = torch.randn(2, 4, 9)
    for draw in guide.sample(10)["net.weight"]:
        by_weight = torch.where(layer.weight == 0, 0.0, draw / layer.weight).round()
        z = torch.zeros(4).index_put((masked.columns.flatten(),), by_weight.flatten())
        expected = F.conv1d(x * z.view(1, 4, 1), layer.weight, groups=groups)
        torch.testing.assert_close(F.conv1d(x, draw, groups=groups), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.statistical
def test_moments() -> None:
    """Mean M, variance M² p / (1 - p), columns independent of each other; 20 000 draws, z-scores below 5."""
    net = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2)).double()
    _, guide = make(net, p=[("0.*", 0.2), ("2.weight", 0.6)])
    guide.double()
    pyro.set_rng_seed(1)
    draws = guide.sample(20_000)
    for name, rate in (("net.0.weight", 0.2), ("net.2.weight", 0.6)):
        factor = guide.marginal(name)
        weight = net.get_parameter(name.removeprefix("net.")).detach()
        torch.testing.assert_close(factor.variance, weight.square() * rate / (1 - rate), rtol=1e-6, atol=0.0)
        assert z_of_mean(draws[name], weight) < Z
        assert z_of_mean((draws[name] - weight).square(), factor.variance.detach()) < Z
        centered = draws[name] - weight
        assert z_of_mean(centered[:, 0, 0] * centered[:, 0, 1], 0.0) < Z
        assert z_of_means(factor.rsample((20_000,)).detach().square(), draws[name].square()) < Z
    assert bool((draws["net.2.bias"] == net[2].bias).all())


@pytest.mark.statistical
def test_predictions_are_those_of_ordinary_dropout() -> None:
    """Distribution at one input: means and mean squares over 2000 draws against torch's dropout; z-scores below 5."""
    net = nn.Sequential(nn.Dropout(0.3), nn.Linear(4, 6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 2))
    model, guide = make(net, p="network")
    x = torch.randn(1, 4)
    ours = pb.predict(model, guide, x, 2000, return_draws=True, seed=2).draws
    pyro.set_rng_seed(3)
    with torch.no_grad():
        theirs = torch.stack([net.train()(x) for _ in range(2000)])
    assert z_of_means(ours, theirs) < Z
    assert z_of_means(ours.square(), theirs.square()) < Z


def test_a_draw_is_one_function() -> None:
    """Equal inputs in one batch get equal outputs, and batches do not matter."""
    model, guide = make(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1)), p=0.5)
    x = torch.randn(6, 3)
    together = pb.predict(model, guide, torch.cat([x, x]), 10, return_draws=True, seed=4).draws
    assert torch.equal(together[:, :6], together[:, 6:])
    apart = pb.predict(model, guide, x, 10, return_draws=True, seed=4).draws
    torch.testing.assert_close(apart, together[:, :6])
    assert bool((together.std(0) > 0).all())


def test_recurrent_weights_drop_units_at_all_steps() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x)[0][-1]

    net = Recurrent()
    _, guide = make(net, p=0.5, where="rnn.weight_*")
    assert sorted(guide.rates) == ["net.rnn.weight_hh_l0", "net.rnn.weight_ih_l0"]
    for name in guide.rates:
        for draw in guide.sample(5)[name]:
            columns = (draw / guide.layout.split(guide.flat_loc.detach())[name]).round()
            assert torch.equal(columns, columns[:1].expand_as(columns))
    with pytest.raises(ValueError, match="no weight is masked"):
        make(net)  # recurrent weights are masked only if named


def test_embeddings_drop_word_types() -> None:
    _, guide = make(nn.Embedding(7, 3), p=0.5, where="weight")
    for draw in guide.sample(5)["net.weight"]:
        dropped = (draw == 0).float()
        assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))


# ------------------------------------------------------------------------------------------------ the objective


@pytest.mark.statistical
@pytest.mark.parametrize("prior", [dist.Normal(0.3, 0.7), priors.he(), dist.StudentT(4.0, 0.0, 1.0)], ids=str)
def test_penalty_is_the_expected_negative_log_prior(prior: Any) -> None:
    """4000 draws; z-score below 5."""
    _, guide = make(nn.Linear(5, 4), prior, p=0.4)
    site = guide.layout["net.weight"]
    terms = {site.name: PriorTerm(site.prior)}
    pyro.set_rng_seed(5)
    sampled = -site.prior.log_prob(guide.sample(4000)["net.weight"])
    penalties = [guide.divergence(guide.rsample(), terms) for _ in range(200)]
    if isinstance(prior, dist.StudentT):
        assert not any(penalty.exact for penalty in penalties)
        assert z_of_means(torch.stack([penalty.total for penalty in penalties]).detach(), sampled) < Z
    else:
        assert all(penalty.exact for penalty in penalties)
        assert z_of_mean(sampled, penalties[0].total.detach()) < Z


def test_penalty_is_gals() -> None:
    """For N(0, s²) the gradient by the unscaled M' = M / (1 - p) is that of ``(1 - p) / (2 s²) ‖M'‖²``."""
    p, s = 0.3, 0.5
    _, guide = make(nn.Linear(5, 4), dist.Normal(0.0, s), p=p)
    site = guide.layout["net.weight"]
    penalty = guide.divergence(guide.rsample(), {site.name: PriorTerm(site.prior)})
    assert penalty.name == "-log prior"
    (gradient,) = torch.autograd.grad(penalty.total, guide.flat_loc)
    unscaled = guide.layout.split(guide.flat_loc.detach())["net.weight"] / (1 - p)
    torch.testing.assert_close(guide.layout.split(gradient)["net.weight"] * (1 - p), (1 - p) / s**2 * unscaled)


def step_gradients(model: SupervisedModel, guide: MCDropout, data: tuple[Tensor, Tensor], count: int) -> Tensor:
    """Gradients of ``count`` training steps at fixed parameters."""
    rows = []
    for _ in range(count):
        guide.zero_grad()
        ELBO().loss_and_grads(model, guide, *data)
        rows.append(guide.flat_loc.grad.clone())
    return torch.stack(rows)


@pytest.mark.statistical
def test_masks_for_each_example_are_the_same_objective() -> None:
    """600 gradients each of one datum, eight times: means agree (z below 5), variances are an eighth."""
    net = nn.Sequential(nn.Conv1d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(9, 2)).double()
    model, shared = make(net, p=0.3)
    model.double()
    shared.double()
    apart = MCDropout(model, p=0.3, per_example=True).double()
    data = (torch.randn(1, 2, 4).double().expand(8, 2, 4), torch.randn(1, 2).double().expand(8, 2))
    pyro.set_rng_seed(6)
    found = [step_gradients(model, guide, data, 600) for guide in (shared, apart)]
    assert z_of_means(*found) < Z
    assert 1 / 12 < found[1].var(0).sum() / found[0].var(0).sum() < 1 / 6


@pytest.mark.statistical
def test_at_one_input_both_kinds_of_masks_are_one_distribution() -> None:
    """What the network computes in a training step: 1500 runs each, means and mean squares; z-scores below 5."""
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    model, shared = make(net, p=0.4)
    apart = MCDropout(model, p=0.4, per_example=True)
    x = torch.randn(1, 3)
    pyro.set_rng_seed(7)
    found = []
    for guide in (shared, apart):
        runs = []
        for _ in range(1500):
            with torch.no_grad(), guide.step(model).draw(0).running(model, update=True):
                runs.append(model(x))
        found.append(torch.stack(runs))
    assert z_of_means(*found) < Z
    assert z_of_means(found[0].square(), found[1].square()) < Z


def test_examples_have_their_own_masks_only_in_training() -> None:
    model, guide = make(nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 1)), p=0.5, per_example=True)
    x = torch.randn(1, 3).expand(8, 3)
    with torch.no_grad(), guide.step(model).draw(0).running(model, update=True):
        outputs = model(x)
    assert len(outputs.unique()) > 1
    draws = pb.predict(model, guide, x, 5, return_draws=True, seed=8).draws
    assert bool((draws == draws[:, :1]).all())
    pb.fit(model, guide, [(x, torch.randn(8, 1))], epochs=2, progress=False)


def test_a_layer_that_is_not_called_cannot_be_masked_by_example() -> None:
    class ByHand(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.layer.weight, self.layer.bias)

    model, guide = make(ByHand(), per_example=True)
    with pytest.raises(ValueError, match=r"the layer of 'net\.layer\.weight' was not called as a module"):
        ELBO().loss_and_grads(model, guide, torch.randn(4, 3), torch.randn(4, 1))
    with pytest.raises(ValueError, match=r"per_example: the inputs of 'weight' \(Embedding\) cannot be masked"):
        make(nn.Embedding(3, 2), where="weight", per_example=True)


def test_the_networks_own_dropout_is_silent() -> None:
    """With it or without, training takes the same path; the modules' probabilities come back."""
    found = []
    for between in (nn.Dropout(0.5), nn.Identity()):
        torch.manual_seed(9)
        net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), between, nn.Linear(4, 1))
        model, guide = make(net, p=0.2)
        loader = [(torch.linspace(-1, 1, 24).view(8, 3), torch.ones(8, 1))]
        pb.fit(model, guide, loader, epochs=5, seed=9, progress=False)
        found.append(guide.flat_loc.detach())
        with guide.step(model).draw(0).running(model.train(), update=True):
            assert all(m.p == 0.0 for m in model.net.network.modules() if isinstance(m, nn.Dropout))
        assert all(m.p == 0.5 for m in model.net.network.modules() if isinstance(m, nn.Dropout))
    assert torch.equal(*found)


# ----------------------------------------------------------------------------------------------------- the rules


def lenet() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Dropout2d(0.1), nn.Conv2d(4, 2, 3), nn.Dropout(0.3), nn.Flatten(), nn.ReLU(),
        nn.Linear(32, 8), nn.BatchNorm1d(8), nn.Sequential(nn.ReLU(), nn.Dropout(0.5)), nn.Linear(8, 3),
    )  # fmt: skip


def test_rates() -> None:
    weights = [f"net.{layer}.weight" for layer in (0, 3, 7, 10)]
    assert make(lenet(), p=0.2)[1].rates == dict.fromkeys(weights[1:], 0.2)  # not the only channel of the images
    assert make(lenet(), p=0.2, where="*")[1].rates == dict.fromkeys(weights, 0.2)
    assert make(lenet(), p=0.2, where="10.*")[1].rates == {weights[3]: 0.2}
    assert make(lenet(), p=0.2, where=["net.0.weight", "7.*"])[1].rates == {weights[0]: 0.2, weights[2]: 0.2}
    rules = [("0.*", 0.05), ("10.weight", 0.0), ("*", 0.4)]
    assert make(lenet(), p=rules)[1].rates == {weights[0]: 0.05, weights[1]: 0.4, weights[2]: 0.4}
    network = make(lenet(), p="network")[1].rates
    assert network == {weights[1]: 0.1, weights[2]: 0.3, weights[3]: 0.5}


UNREADABLE = {
    "two dropout modules, '0' and '1', in a row": [nn.Dropout(), nn.Dropout(), nn.Linear(4, 2)],
    "after the dropout module '1' comes no layer": [nn.Linear(4, 2), nn.Dropout()],
    r"'0' \(Dropout\) is no mask of the columns of '2' \(Linear\): MaxPool1d lies between them": [
        nn.Dropout(), nn.MaxPool1d(2), nn.Linear(2, 2)],
    r"'0' \(Dropout\) is no mask of the columns of '1' \(Conv1d\): it does not drop whole": [
        nn.Dropout(), nn.Conv1d(4, 2, 1)],
    r"'0' \(Dropout2d\) is no mask of the columns of '2' \(Linear\): it does not drop whole": [
        nn.Dropout2d(), nn.Flatten(), nn.Linear(4, 2)],
    r"'0' \(AlphaDropout\) is no mask": [nn.AlphaDropout(), nn.Linear(4, 2)],
    "BatchNorm1d lies between": [nn.Dropout(), nn.BatchNorm1d(4), nn.Linear(4, 2)],
    "the dropout module '0.1' inside ParallelBranch is not in a plain Sequential": [
        type("ParallelBranch", (nn.ModuleList,), {})([nn.Linear(4, 4), nn.Dropout()]), nn.Linear(4, 2)],
    r"the layer '0.self_attn' \(MultiheadAttention\) has dropout=0.1 of its own.* with dropout=0.0": [
        nn.TransformerEncoderLayer(4, 2), nn.Linear(4, 2)],
    r"the layer '0.self_attn' \(MultiheadAttention\) has dropout=0.2 of its own": [
        nn.TransformerDecoderLayer(4, 2, dropout=0.2), nn.Linear(4, 2)],
    r"the layer '1' \(MultiheadAttention\) has dropout=0.3 of its own": [
        nn.Linear(4, 4), nn.MultiheadAttention(4, 2, dropout=0.3), nn.Linear(4, 2)],
    r"the layer '2' \(LSTM\) has dropout=0.3 of its own.* give \(pattern, probability\) pairs, which replace": [
        nn.Dropout(), nn.Linear(4, 4), nn.LSTM(4, 4, 2, dropout=0.3), nn.Linear(4, 2)],
    r"the layer '0' \(GRU\) has dropout=0.3 of its own": [nn.GRU(4, 4, 2, dropout=0.3), nn.Linear(4, 2)],
    r"the layer '0.1' \(RNN\) has dropout=0.3 of its own": [
        nn.ModuleList([nn.Linear(4, 4), nn.RNN(4, 4, 2, dropout=0.3)]), nn.Linear(4, 2)],
    "no dropout modules to read": [nn.Linear(4, 2)],
}  # fmt: skip


@pytest.mark.parametrize("message", UNREADABLE)
def test_dropout_that_is_no_mask_of_columns_is_refused(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(nn.Sequential(*UNREADABLE[message]), p="network")


def test_layers_whose_own_dropout_is_off_are_read_past() -> None:
    layers = [nn.LSTM(4, 4, 2), nn.TransformerEncoderLayer(4, 2, dropout=0.0), nn.Dropout(0.3), nn.Linear(4, 2)]
    assert make(nn.Sequential(*layers), p="network")[1].rates == {"net.3.weight": 0.3}
    with pytest.raises(ValueError, match=r"the layer 'network' \(LSTM\) has dropout=0.3"):
        make(nn.LSTM(4, 4, 2, dropout=0.3), p="network")


def test_refusals() -> None:
    net = nn.Linear(3, 2)
    for p in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="p: expected a number from 0 to below 1"):
            make(net, p=p)
    with pytest.raises(ValueError, match=r"the pattern 'bias' matches none of .* mask: net\.weight"):
        make(net, where="bias")
    with pytest.raises(TypeError, match="p: expected a probability"):
        make(net, p="0.5")
    with pytest.raises(ValueError, match="where: p names its own patterns"):
        make(net, p=[("*", 0.1)], where="*")
    with pytest.raises(ValueError, match="where: with p='network'"):
        make(net, p="network", where="*")
    with pytest.raises(ValueError, match="no weight is masked, which leaves a point"):
        make(net, p=0.0)
    guide = make(net)[1]
    with pytest.raises(NotImplementedError, match=r"MCDropout has no density of the site 'net\.weight'"):
        guide.log_prob(guide.sample(1))


def test_tied_weights_that_disagree_about_columns_are_not_masked() -> None:
    net = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5), nn.Linear(5, 2))
    net[1].weight = net[0].weight
    assert list(make(net)[1].rates) == ["net.2.weight"]


# -------------------------------------------------------------------------------------------- with the others


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    model, guide = make(lenet(), p=[("0.*", 0.05), ("*", 0.4)], per_example=True)
    pb.save(tmp_path / "saved", model, guide)
    loaded_model, loaded = pb.load(tmp_path / "saved", lenet())
    assert (loaded.rates, loaded.per_example) == (guide.rates, True)
    x = torch.randn(3, 1, 8, 8)
    expected = pb.predict(model, guide, x, 4, seed=1).mean
    assert torch.equal(pb.predict(loaded_model, loaded, x, 4, seed=1).mean, expected)


def test_describe_and_guide_map() -> None:
    model, guide = make(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    posterior = [row["posterior"] for row in pb.describe(model, guide).rows]
    assert posterior == ["DroppedColumns", "Delta", "DroppedColumns", "Delta"]
    mixed = Composite(model, [("2.*", MCDropout), ("*", MAP)])
    draws = mixed.sample(64)
    assert bool((draws["net.0.weight"] == draws["net.0.weight"][0]).all())
    assert not bool((draws["net.2.weight"] == draws["net.2.weight"][0]).all())
