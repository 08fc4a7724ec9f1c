"""Deep ensembles: the conformance suite, MAP as the ensemble of one, independence, statistics, strategies."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pyrobnn import likelihoods
from pyrobnn.checkpoint import load, save
from pyrobnn.diagnostics import to_arviz
from pyrobnn.guides import MAP, Composite, DeltaMixture, MeanField
from pyrobnn.model.draws import Draws
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.objectives import ELBO
from pyrobnn.prediction import PinnedDraws, predict
from pyrobnn.reporting.description import describe
from pyrobnn.training import fit
from pyrobnn.training.running_statistics import recalibrate_batch_norm
from tests.conformance.comparisons import assert_same
from tests.conformance.conjugate import ConjugateRegression
from tests.conformance.guide_suite import EnsembleConformance


class TestDeltaMixtureConformance(EnsembleConformance):
    """What every guide must do."""

    def make_guide(self, model: nn.Module, **options: Any) -> DeltaMixture:
        return DeltaMixture(model, 3, **options)


def classifier(net: nn.Module | None = None, num_data: int = 24) -> SupervisedModel:
    """A small classifier of three inputs and three classes."""
    net = net or nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    return SupervisedModel(net, likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=num_data)


def with_norm() -> nn.Sequential:
    """A network with running statistics."""
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, affine=False), nn.Tanh(), nn.Linear(4, 3))


def data(rows: int = 24) -> DataLoader:
    """Two batches in a fixed order."""
    generator = torch.Generator().manual_seed(5)
    x, y = torch.randn(rows, 3, generator=generator), torch.randint(3, (rows,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=rows // 2)


# --------------------------------------------------------------------------------------- what it reduces to


@pytest.mark.parametrize("optimizer", [None, torch.optim.SGD])
def test_one_member_is_map_to_the_last_bit(optimizer: Any) -> None:
    model = classifier()
    guides = [MAP(model), DeltaMixture(model, 1)]
    histories = [fit(model, g, data(), epochs=3, lr=0.05, optimizer=optimizer, progress=False) for g in guides]
    assert histories[0].loss == histories[1].loss
    assert histories[0].kl == histories[1].kl
    assert torch.equal(guides[0].flat_loc, guides[1].flat_loc[0])


@pytest.mark.parametrize("optimizer", [None, functools.partial(torch.optim.SGD, momentum=0.9)])
@pytest.mark.parametrize("make", [with_norm, lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))])
def test_members_are_trained_as_if_alone(make: Callable[[], nn.Module], optimizer: Any) -> None:
    """Each member is the MAP run from its start, statistics included, whatever M: one learning rate suits all."""
    networks = [make() for _ in range(3)]
    model = classifier(make())
    ensemble = DeltaMixture.from_networks(model, networks)
    fit(model, ensemble, data(), epochs=4, lr=0.05, optimizer=optimizer, progress=False)
    for index, network in enumerate(networks):
        alone = classifier(network)
        point = MAP(alone)
        fit(alone, point, data(), epochs=4, lr=0.05, optimizer=optimizer, progress=False)
        torch.testing.assert_close(ensemble.flat_loc[index], point.flat_loc, rtol=1e-5, atol=1e-6)
        for name, buffer in alone.net.network.named_buffers():
            own = ensemble.own_buffers.stacked(torch.tensor([index]))[f"net.net.{name}"][0]
            torch.testing.assert_close(own, buffer)


def test_gradient_of_a_subset_is_unbiased() -> None:
    """Over all pairs of three members the mean gradient is that of the whole; each counts 3 / 2 times."""
    model, (batch, *_) = classifier(), data()
    whole = DeltaMixture(model, 3)
    ELBO().backward(model, whole, tuple(batch))
    subset = DeltaMixture(model, 3, members_per_step=2)
    subset.load_state_dict(whole.state_dict())
    seen: dict[tuple[int, ...], Tensor] = {}
    for _ in range(40):
        subset.flat_loc.grad = None
        ELBO().backward(model, subset, tuple(batch))
        chosen = subset.flat_loc.grad.abs().sum(1).nonzero().flatten()
        assert len(chosen) == 2
        torch.testing.assert_close(subset.flat_loc.grad[chosen], 1.5 * whole.flat_loc.grad[chosen])
        seen[tuple(chosen.tolist())] = subset.flat_loc.grad.clone()
    assert len(seen) == 3
    torch.testing.assert_close(torch.stack(list(seen.values())).mean(0), whole.flat_loc.grad)


def test_gradients_add_up_over_calls() -> None:
    model, batches = classifier(), [tuple(batch) for batch in data()]
    guide = DeltaMixture(model, 2)
    found = []
    for batch in batches:
        guide.flat_loc.grad = None
        ELBO().backward(model, guide, batch)
        found.append(guide.flat_loc.grad.clone())
    for batch in batches:  # on top of the second
        ELBO().backward(model, guide, batch)
    torch.testing.assert_close(guide.flat_loc.grad, found[0] + 2.0 * found[1])


def test_shared_parameters_get_the_mean_gradient() -> None:
    """The trunk, a point for all members, is pulled by the average member; heads each by their own loss."""
    model, (batch, *_) = classifier(), data()
    head = functools.partial(DeltaMixture, num_members=3, init="prior")
    guide = Composite(model, [("2.*", head), ("*", MAP)])
    ELBO().backward(model, guide, tuple(batch))
    ensemble, trunk = guide.part("net.2.weight"), guide.part("net.0.weight")
    by_member = []
    for index in range(3):
        point = MAP(model, {name: value[index] for name, value in ensemble.stacked(torch.arange(3)).items()})
        ELBO().backward(model, point, tuple(batch))
        gradient = point.layout.split(point.flat_loc.grad)
        own = ensemble.layout.split(ensemble.flat_loc.grad[index])
        torch.testing.assert_close(own["net.2.weight"], gradient["net.2.weight"])
        by_member.append(gradient["net.0.weight"])
    torch.testing.assert_close(trunk.layout.split(trunk.flat_loc.grad)["net.0.weight"], torch.stack(by_member).mean(0))


# ------------------------------------------------------------------------------------------ starting points


def test_default_start_is_the_network_and_fresh_copies_of_it() -> None:
    net = nn.Sequential(nn.Linear(3, 400), nn.Tanh(), nn.Linear(400, 3))
    model = classifier(net)
    rows = DeltaMixture(model, 4).stacked(torch.arange(4))
    for name, parameter in net.named_parameters():
        assert torch.equal(rows[f"net.{name}"][0], parameter)
        assert len(rows[f"net.{name}"].flatten(1).unique(dim=0)) == 4
    bounds = rows["net.0.weight"].abs().amax((1, 2))
    assert bool(((bounds > 0.95 * 3**-0.5) & (bounds <= 3**-0.5)).all())  # U(-1/√3, 1/√3), 1200 numbers each
    torch.testing.assert_close(dict(net.named_parameters())["0.weight"], model.net.network[0].weight)


def test_start_spread_around_a_network() -> None:
    """Noise is a tenth of each site's root mean square: 3 × 1200 numbers, within five standard errors."""
    net = nn.Linear(400, 3)
    rows = DeltaMixture(classifier(net), 3, net, spread=0.1).stacked(torch.arange(3))["net.weight"]
    weight = net.weight.detach()
    noise = (rows - weight) / weight.square().mean().sqrt()
    assert abs(float(noise.std()) - 0.1) < 5 * 0.1 / (2 * noise.numel()) ** 0.5


def test_other_starts() -> None:
    model = classifier()
    nets = [classifier().net.network for _ in range(2)]
    expected = torch.stack([dict(net.named_parameters())["0.weight"] for net in nets])
    values = [{"net.0.weight": weight} for weight in expected]
    for init in (nets, [net.state_dict() for net in nets], values):
        assert torch.equal(DeltaMixture(model, 2, init).stacked(torch.arange(2))["net.0.weight"], expected)
    ones = DeltaMixture(model, 2, lambda name, prior: prior.sample() + 9.0).stacked(torch.arange(2))
    assert float(ones["net.0.weight"].mean()) > 8.0
    spread = DeltaMixture(model, 400, "prior").stacked(torch.arange(400))["net.0.weight"]
    assert abs(float(spread.std()) - 1.0) < 5 / (2 * spread.numel()) ** 0.5


class Scale(nn.Module):
    """A layer with a parameter and no way to start it anew."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        """Scales."""
        return self.factor * x


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_members": 0}, ValueError, r"num_members: expected a positive int"),
        ({"members_per_step": 9}, ValueError, r"members_per_step: expected an int from 1 to 5"),
        ({"strategy": "bold"}, ValueError, r"strategy: expected one of 'regularized'"),
        ({"init": []}, ValueError, r"init: 0 starting points for num_members=5"),
        ({"init": [3] * 5}, TypeError, r"init: expected networks, state dicts or site values"),
        ({"init": [{"0.weight": torch.zeros(4, 3)}] * 5}, ValueError, r"init: the state dict does not fit"),
        ({"init": "prior_mean"}, ValueError, r"init: all 5 members would start at the same point"),
        ({"init": nn.Linear(3, 3)}, ValueError, r"init: the network does not fit the model's"),
        (
            {"init": [{"net.0.weight": torch.zeros(4, 3)}, {"nett.0.weight": torch.zeros(4, 3)}] * 2, "num_members": 4},
            ValueError,
            r"init: there is no latent site 'nett.0.weight'",
        ),
        ({"init": {}, "spread": 0.0}, ValueError, r"spread: expected a positive number"),
    ],
)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        DeltaMixture(classifier(), **options)


def test_a_layer_that_cannot_be_started_anew() -> None:
    model = classifier(nn.Sequential(nn.Linear(3, 3), Scale()))
    with pytest.raises(ValueError, match=r"init: the Scale '1' has a parameter of its own, 'factor'"):
        DeltaMixture(model)
    DeltaMixture(model, sites=["net.0.weight"])
    DeltaMixture(model, init="prior")


# --------------------------------------------------------------------------------------------------- draws


@pytest.mark.parametrize("chunk_draws", [1, 2, 100])
def test_draws_are_stratified(chunk_draws: int) -> None:
    """K = 2M + 1 pinned draws: each member twice, one of them once more, however they are cut into chunks."""
    model = classifier()
    guide = DeltaMixture(model, 4, "prior")
    rows = guide.stacked(torch.arange(4))["net.0.bias"]
    extra = set()
    for seed in range(20):
        pinned = PinnedDraws(guide, 9, chunk_draws * guide.layout.size * 4, replayed=False, seed=seed)
        draws = torch.cat([chunk["net.0.bias"] for chunk in pinned])
        counts = [int((draws == row).all(1).sum()) for row in rows]
        assert sorted(counts) == [2, 2, 2, 3]
        extra.add(counts.index(3))
    assert extra == {0, 1, 2, 3}


def test_forward_and_draw_take_all_sites_from_one_member() -> None:
    model = classifier()
    guide = DeltaMixture(model, 3, "prior")
    rows = guide.stacked(torch.arange(3))
    seen = set()
    for draw in [*(guide() for _ in range(20)), *(guide.rsample() for _ in range(20))]:
        members = {tuple(i for i in range(3) if torch.equal(value, rows[name][i])) for name, value in draw.items()}
        assert len(members) == 1
        seen |= members
    assert seen == {(0,), (1,), (2,)}


def test_factor_and_description() -> None:
    model = classifier()
    guide = DeltaMixture(model, 4, "prior")
    site = guide.layout["net.0.weight"]
    factor, rows = guide.marginal(site.name), guide.stacked(torch.arange(4))[site.name]
    torch.testing.assert_close(factor.mean, rows.mean(0))
    torch.testing.assert_close(factor.variance, rows.var(0, correction=0))
    assert factor.sample((2,)).shape == (2, 4, 3)
    with pytest.raises(NotImplementedError, match="no density"):
        factor.log_prob(rows[0])
    assert "mixture of 4 deltas" in str(describe(model, guide))


# ------------------------------------------------------------------------------- networks from elsewhere, statistics


def trained_networks() -> list[nn.Module]:
    """Networks whose running statistics have moved apart."""
    networks = [with_norm() for _ in range(3)]
    for network in networks:
        for _ in range(3):
            network(2.0 + 3.0 * torch.randn(16, 3))
    return networks


@pytest.mark.parametrize("method", ["loop", "vmap"])
def test_predictions_are_those_of_the_networks(method: Any) -> None:
    networks = trained_networks()
    x = torch.randn(7, 3)
    expected = torch.stack([network.eval()(x).softmax(-1) for network in networks]).mean(0)
    model = classifier(with_norm())
    for start in (networks, [network.state_dict() for network in networks]):
        guide = DeltaMixture.from_networks(model, start)
        before = {name: buffer.clone() for name, buffer in [*model.named_buffers(), *guide.named_buffers()]}
        found = predict(model, guide, x, num_samples=6, method=method)
        torch.testing.assert_close(found.mean, expected.detach())
        assert_same(dict([*model.named_buffers(), *guide.named_buffers()]), before)
        draws = guide.sample(3)
        torch.testing.assert_close(predict(model, draws, x, 3, method=method).mean, expected.detach())


def test_from_draws_keeps_values_and_buffers() -> None:
    model = classifier(with_norm())
    draws = DeltaMixture.from_networks(model, trained_networks()).sample(3)
    again = DeltaMixture.from_draws(model, draws)
    assert_same(again.stacked(torch.arange(3)), draws)
    assert_same(again.own_buffers.stacked(torch.arange(3)), draws.buffers)
    gaussian = MeanField(model).sample(5)
    assert_same(DeltaMixture.from_draws(model, gaussian).stacked(torch.arange(5)), gaussian)
    with pytest.raises(ValueError, match=r"draws: they lack the site"):
        DeltaMixture.from_draws(model, {"net.0.weight": draws["net.0.weight"]})
    with pytest.raises(ValueError, match=r"draws: expected as many draws of each site"):
        DeltaMixture.from_draws(model, {"a": torch.zeros(2), "b": torch.zeros(3)})


def test_networks_that_differ_where_the_model_has_one_value() -> None:
    networks = [nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)) for _ in range(2)]
    model = classifier(networks[0])
    with torch.no_grad():
        networks[1][1].weight.add_(1.0)
    with pytest.raises(
        ValueError, match=r"networks: the network differs from the model's network in '1.weight', which"
    ):
        DeltaMixture.from_networks(model, networks)
    with pytest.raises(ValueError, match="networks: expected at least one"):
        DeltaMixture.from_networks(model, [])


def test_recalibration_goes_member_by_member() -> None:
    networks = trained_networks()
    model = classifier(with_norm())
    guide = DeltaMixture.from_networks(model, networks)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    recalibrate_batch_norm(model, guide, data(), num_samples=2)
    assert_same(dict(model.named_buffers()), before)
    for index, network in enumerate(networks):
        hidden = [network[0](x).detach() for x, _ in data()]
        own = {name: value[0] for name, value in guide.own_buffers.stacked(torch.tensor([index])).items()}
        torch.testing.assert_close(own["net.net.1.running_mean"], torch.stack([h.mean(0) for h in hidden]).mean(0))
        torch.testing.assert_close(own["net.net.1.running_var"], torch.stack([h.var(0) for h in hidden]).mean(0))
    kept = {name: buffer.clone() for name, buffer in guide.named_buffers()}
    with pytest.raises(ValueError, match="loader: it yielded no batch"):
        recalibrate_batch_norm(model, guide, [])
    assert_same(dict(guide.named_buffers()), kept)
    composed = Composite(model, [("3.*", functools.partial(DeltaMixture, num_members=2)), ("*", MAP)])
    heads = composed.parts[0]
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    recalibrate_batch_norm(model, composed, data())
    assert_same(dict(model.named_buffers()), before)
    trunk = composed.sample(1).at(0)
    hidden = [x @ trunk["net.0.weight"].T + trunk["net.0.bias"] for x, _ in data()]
    for value in heads.own_buffers.stacked(torch.arange(2))["net.net.1.running_mean"]:
        torch.testing.assert_close(value, torch.stack([h.mean(0) for h in hidden]).mean(0))


def test_validation_runs_members_with_their_own_statistics() -> None:
    """The log predictive of eight stratified draws of two members is that of the two networks."""
    networks = trained_networks()[:2]
    model = classifier(with_norm())
    guide = DeltaMixture.from_networks(model, networks)
    history = fit(model, guide, data(), epochs=1, lr=1e-12, validation=data(), progress=False)
    rows = guide.stacked(torch.arange(2))
    x, y = data().dataset.tensors
    probs = []
    for index in range(2):
        draw = Draws(rows, guide.own_buffers.stacked(torch.arange(2))).at(slice(index, index + 1))
        probs.append(predict(model, draw, x, 1).mean)
    expected = torch.stack(probs).mean(0)[torch.arange(len(y)), y].log().mean()
    assert history.validation[0] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("strategy", ["regularized", "anchored"])
def test_checkpoint(tmp_path: Any, strategy: Any) -> None:
    model = classifier(with_norm())
    guide = DeltaMixture(model, 3, strategy=strategy, members_per_step=2, jacobian=True)
    fit(model, guide, data(), epochs=2, lr=0.05, progress=False)
    save(tmp_path, model, guide)
    again_model, again = load(tmp_path, with_norm())
    assert again.config() == guide.config()
    assert_same(again.state_dict(), guide.state_dict())
    x = torch.randn(4, 3)
    assert torch.equal(predict(again_model, again, x, 3, seed=1).mean, predict(model, guide, x, 3, seed=1).mean)


# ---------------------------------------------------------------------------------------------- strategies


def solved(strategy: Any, num_members: int) -> tuple[ConjugateRegression, DeltaMixture]:
    """Members at the optimum of the quadratic objective: one Newton step with the known curvature."""
    problem = ConjugateRegression()
    model = problem.model()
    guide = DeltaMixture(model, num_members, "prior", strategy=strategy).double()
    ELBO().backward(model, guide, (problem.x, problem.y))
    curvature = problem.precision
    if strategy == "free":
        curvature = curvature - torch.eye(len(curvature), dtype=torch.float64) / problem.prior_scale**2
    with torch.no_grad():
        guide.flat_loc.sub_(torch.linalg.solve(curvature, guide.flat_loc.grad.T).T)
    guide.flat_loc.grad = None
    ELBO().backward(model, guide, (problem.x, problem.y))
    assert float(guide.flat_loc.grad.abs().max()) < 1e-4 * float(curvature.max())
    return problem, guide


def test_free_and_regularized_members_meet_at_their_optima() -> None:
    problem, guide = solved("free", 3)
    least_squares = torch.linalg.lstsq(problem.features, problem.y).solution.squeeze(-1)
    torch.testing.assert_close(guide.flat_loc.detach(), least_squares.expand(3, -1), rtol=1e-5, atol=1e-6)
    assert ELBO().backward(problem.model(), guide, (problem.x, problem.y)).divergence == 0.0
    problem, guide = solved("regularized", 3)
    torch.testing.assert_close(guide.flat_loc.detach(), problem.mean.expand(3, -1), rtol=1e-5, atol=1e-6)


@pytest.mark.statistical
def test_anchored_members_have_the_covariance_of_theory() -> None:
    """Posterior mean, and covariance Λ⁻¹ S⁻¹ Λ⁻¹ (Pearce et al. 2020, targets without noise): 400 members, z = 5."""
    problem, guide = solved("anchored", 400)
    inverse = torch.linalg.inv(problem.precision)
    covariance = inverse @ inverse / problem.prior_scale**2
    members = guide.flat_loc.detach()
    error = (covariance.diagonal() / 400).sqrt()
    assert float(((members.mean(0) - problem.mean) / error).abs().max()) < 5.0
    found = torch.cov(members.T, correction=0)
    spread = covariance.diagonal()
    error = ((spread.unsqueeze(0) * spread.unsqueeze(1) + covariance.square()) / 400).sqrt()
    assert float(((found - covariance) / error).abs().max()) < 5.0
    assert bool((found.diagonal() < inverse.diagonal()).all())  # less than the posterior's


def test_anchored_objective_by_hand() -> None:
    """The score of each member is ``-log N(w; anchor, s)``, in place and by autograd, under Pyro's objectives too."""
    model, (batch, *_) = classifier(), data()
    guide = DeltaMixture(model, 1, strategy="anchored")
    score = -dist.Normal(guide.anchors, 1.0).log_prob(guide.flat_loc.detach()).sum()
    for elbo in (ELBO(), TraceMeanField_ELBO(), Trace_ELBO()):
        guide.flat_loc.grad = None
        loss = elbo.loss_and_grads(model, guide, *batch)
        if isinstance(elbo, ELBO):
            torch.testing.assert_close(elbo.parts.divergence, score)
            expected, gradient = loss, guide.flat_loc.grad.clone()
            assert elbo.differentiable_loss(model, guide, *batch).item() == pytest.approx(loss, rel=1e-6)
        assert loss == pytest.approx(expected, rel=1e-5)
        torch.testing.assert_close(guide.flat_loc.grad, gradient, rtol=1e-4, atol=1e-4)


def test_free_under_pyros_objectives() -> None:
    model, (batch, *_) = classifier(), data()
    guide = DeltaMixture(model, 1, strategy="free")
    losses = [elbo().loss_and_grads(model, guide, *batch) for elbo in (ELBO, TraceMeanField_ELBO, Trace_ELBO)]
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-5)


def test_anchors_need_normal_priors() -> None:
    model = classifier()
    model.likelihood = likelihoods.Normal(dist.LogNormal(0.0, 1.0))
    with pytest.raises(ValueError, match=r"strategy: anchors need fixed Normal priors, but site 'likelihood.scale'"):
        DeltaMixture(model, strategy="anchored")


def test_diagnostics_run_members_with_their_own_statistics() -> None:
    """The log likelihood of each draw is that of a network."""
    networks = trained_networks()
    model = classifier(with_norm())
    guide = DeltaMixture.from_networks(model, networks)
    (x, y), *_ = data()
    found = (
        to_arviz(model, guide, x, y, num_samples=6, groups=["posterior", "log_likelihood"]).log_likelihood["y"].values
    )
    expected = torch.stack([network.eval()(x).log_softmax(-1)[torch.arange(len(y)), y] for network in networks])
    order = [int((row - expected).abs().sum(1).argmin()) for row in torch.from_numpy(found[0])]
    assert len(set(order)) > 1
    torch.testing.assert_close(torch.from_numpy(found[0]), expected[order].detach())


@pytest.mark.parametrize("method", ["loop", "vmap"])
def test_heads_on_a_shared_trunk(method: Any) -> None:
    """Members that cover the last layer only, statistics of the trunk included: training, prediction."""
    model = classifier(with_norm())
    head = functools.partial(DeltaMixture, num_members=3, strategy="anchored")
    guide = Composite(model, [("3.*", head), ("*", MAP)])
    fit(model, guide, data(), epochs=2, lr=0.05, progress=False)
    ensemble = guide.part("net.3.weight")
    rows, trunk = ensemble.stacked(torch.arange(3)), guide.part("net.0.weight").sample(1)
    assert len(rows["net.3.weight"].flatten(1).unique(dim=0)) == 3
    x = torch.randn(5, 3)
    expected = []
    for index in range(3):
        net = with_norm().eval()
        own = {name: value[index] for name, value in ensemble.own_buffers.stacked(torch.arange(3)).items()}
        values = {n: v[index] for n, v in rows.items()} | {n: v[0] for n, v in trunk.items()}
        state = {n.removeprefix("net."): v for n, v in values.items()}
        net.load_state_dict(state | {n.removeprefix("net.net."): v for n, v in own.items()})
        assert int(net[1].num_batches_tracked) == 4
        expected.append(net(x).softmax(-1).detach())
    torch.testing.assert_close(predict(model, guide, x, 3, method=method).mean, torch.stack(expected).mean(0))
