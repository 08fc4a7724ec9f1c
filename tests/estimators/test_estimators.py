"""Estimators in the objective: mean gradients, variances, the KL, rules, blocks, refusals."""

from __future__ import annotations

from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn import estimators
from pyrobnn.estimators import EstimatorSpec, Flipout, GaussianWeight, LocalReparameterization, PerExample, PerGroup
from pyrobnn.estimators.weight import Layer
from pyrobnn.guides import MAP, Composite, ConcreteStructure, DeltaMixture, MeanField
from pyrobnn.objectives import ELBO
from pyrobnn.structure import Gate
from tests.conformance.conjugate import ConjugateRegression
from tests.conformance.monte_carlo import Z, z_of_mean, z_of_means

NAMES = ["flipout", "local_reparameterization", "per_example", "per_group", "path_derivative"]
each_name = pytest.mark.parametrize("name", NAMES)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2))


def convolutional() -> nn.Module:
    return nn.Sequential(nn.Conv1d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(9, 2))


def problem(net: nn.Module, shape: tuple[int, ...], scale: float = 0.3) -> tuple[Any, Any, tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    model = pb.SupervisedModel(net, pb.likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=40).double()
    guide = MeanField(model, init_scale=scale, antithetic=False).double()
    x = torch.randn(8, *shape, dtype=torch.float64)
    return model, guide, (x, (x.flatten(1).sum(-1) > 0).long())


def gradients(model: Any, guide: Any, batch: Any, spec: EstimatorSpec, count: int, seed: int) -> Tensor:
    """``count`` gradients of the objective ``[count, 2 d]``."""
    pyro.set_rng_seed(seed)
    elbo, rows = ELBO(estimator=spec), []
    for _ in range(count):
        guide.zero_grad()
        elbo.loss_and_grads(model, guide, *batch)
        rows.append(torch.cat([p.grad.reshape(-1) for p in guide.parameters()]))
    guide.zero_grad()
    return torch.stack(rows)


# ----------------------------------------------------------------------------------------------------- gradients


@pytest.mark.statistical
@each_name
@pytest.mark.parametrize(("net", "shape"), [(mlp, (3,)), (convolutional, (1, 5))], ids=["mlp", "convolutional"])
def test_mean_gradient_is_that_of_the_shared_draw(name: str, net: Any, shape: tuple[int, ...]) -> None:
    """700 gradients each; z below 5. (Local reparameterization is exact for linear layers only.)"""
    if name == "local_reparameterization" and net is convolutional:
        pytest.skip("it drops the correlation of a convolution's outputs, and says so")
    model, guide, batch = problem(net(), shape)
    ours = gradients(model, guide, batch, name, 700, seed=2)
    plain = gradients(model, guide, batch, None, 700, seed=3)
    assert z_of_means(ours, plain) < Z


@pytest.mark.statistical
@pytest.mark.parametrize("name", ["local_reparameterization", "per_example"])
def test_independent_examples_halve_the_variance(name: str) -> None:
    """Trace of the gradient's covariance on a regression, 400 gradients each, against the shared draw's."""
    data = ConjugateRegression()
    model = data.model()
    guide = data.optimal_guide(model, antithetic=False)
    batch = (data.x, data.y)
    ours = gradients(model, guide, batch, name, 400, seed=2).var(0).sum()
    plain = gradients(model, guide, batch, None, 400, seed=3).var(0).sum()
    assert float(ours) < 0.5 * float(plain)


@pytest.mark.statistical
def test_the_path_derivative_is_silent_at_the_exact_posterior() -> None:
    """One weight: its posterior is Gaussian, and at it the gradient is zero for every draw; the plain one is not."""
    torch.manual_seed(0)
    x, y = torch.randn(20, 1, dtype=torch.float64), torch.randn(20, 1, dtype=torch.float64)
    net = nn.Linear(1, 1, bias=False)
    model = pb.SupervisedModel(net, pb.likelihoods.Normal(0.5), dist.Normal(0.0, 1.0), num_data=20).double()
    guide = MeanField(model, antithetic=False).double()
    precision = 1.0 + float((x * x).sum()) / 0.25
    with torch.no_grad():
        guide.flat_loc.fill_(float((x * y).sum()) / 0.25 / precision)
        guide.flat_log_scale.fill_(-0.5 * torch.tensor(precision).log())
    assert float(gradients(model, guide, (x, y), "path_derivative", 50, seed=0).abs().max()) < 1e-5
    assert float(gradients(model, guide, (x, y), None, 50, seed=0).std()) > 0.1


@each_name
def test_steps_under_autocast(name: str) -> None:
    """Layers that compute in half precision; noise of that precision is another stream, so values are not compared."""
    model, guide, batch = problem(mlp(), (3,))
    model, guide, batch = model.float(), guide.float(), (batch[0].float(), batch[1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        slope = gradients(model, guide, batch, name, 1, seed=4)
    assert slope.dtype == torch.float32 and bool(slope.isfinite().all()) and bool((slope != 0).any())


@pytest.mark.parametrize("name", ["local_reparameterization", "per_example"])
@pytest.mark.parametrize("spatial", [False, True], ids=["linear", "convolution"])
@pytest.mark.parametrize("inputs", ["zero", "large"])
def test_variances_are_not_computed_in_float16(name: str, spatial: bool, inputs: str) -> None:
    """Inputs of zero, and inputs whose squares exceed float16; standard deviations of 1e-4, whose squares are 0 in it.

    The outputs' standard deviations are ``1e-4 |x|``: 4000 draws, 1.1% of error each, z = 5.
    """
    torch.manual_seed(0)
    layer = Layer(F.conv1d, 1) if spatial else Layer(F.linear, 0)
    loc = torch.zeros(2, 3, 1, requires_grad=True) if spatial else torch.zeros(2, 3, requires_grad=True)
    scale = torch.full_like(loc, 1e-4).detach().requires_grad_()
    value = 0.0 if inputs == "zero" else 400.0
    x = torch.full((4000, 3, 1) if spatial else (4000, 3), value)
    estimator: Any = {"local_reparameterization": LocalReparameterization(), "per_example": PerExample()}[name]
    with torch.autocast("cpu", dtype=torch.float16):
        outputs = estimator.layer(layer, x, GaussianWeight.of(loc, scale, estimator), None)
        outputs.float().mean().backward()
    torch.testing.assert_close(
        outputs.float().std(0).flatten(), torch.full((2,), 1e-4 * 3**0.5 * value), rtol=0.06, atol=1e-6
    )
    assert loc.grad is not None and scale.grad is not None
    assert bool(loc.grad.isfinite().all()) and bool(scale.grad.isfinite().all())


MIXED: list[Any] = [
    [("net.0.*", "flipout"), ("*", "local_reparameterization")],
    [("net.0.*", "local_reparameterization"), ("*", "flipout")],
]


@pytest.mark.parametrize("spec", [*NAMES, *MIXED], ids=str)
@pytest.mark.parametrize("priors", ["one", "several", "without a closed form"])
def test_by_hand_is_by_autograd(spec: EstimatorSpec, priors: str) -> None:
    """The same noise gives the same loss and gradients on both paths."""
    model, guide, batch = problem(mlp(), (3,))
    if priors != "one":
        first = dist.Laplace(0.0, 1.0) if priors == "without a closed form" else dist.Normal(0.5, 0.5)
        rules = [("0.weight", first), ("2.*", dist.Normal(0.0, 2.0)), ("*", dist.Normal(0.0, 1.0))]
        model = pb.SupervisedModel(mlp(), pb.likelihoods.Categorical(), rules, num_data=40).double()
        guide = MeanField(model, init_scale=0.3, antithetic=False).double()
    pyro.set_rng_seed(5)
    loss = ELBO(estimator=spec).loss_and_grads(model, guide, *batch)
    by_hand = [p.grad.clone() for p in guide.parameters()]
    guide.zero_grad()
    pyro.set_rng_seed(5)
    differentiable = ELBO(estimator=spec).differentiable_loss(model, guide, *batch)
    differentiable.backward()
    assert loss == pytest.approx(float(differentiable.detach()), rel=1e-9)
    torch.testing.assert_close([p.grad for p in guide.parameters()], by_hand)


class Shifted(nn.Module):
    """A linear layer and a vector that is added to its outputs, whose draw it shows."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.shift = nn.Linear(3, 2), nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        before = self.linear(x)
        outputs = before + self.shift
        self.seen = (outputs - before).detach()[0]
        return outputs


@pytest.mark.parametrize("spec", ["local_reparameterization", [("*linear*", "local_reparameterization")], "flipout"])
def test_what_no_layer_takes_has_the_gradients_of_its_draw(spec: EstimatorSpec) -> None:
    """``dL/dμ - μ = dL/dw`` and ``dL/dψ - σ² + 1 = (w - μ) dL/dw`` under a standard normal prior."""
    model, guide, batch = problem(Shifted(), (3,))
    ELBO(estimator=spec).loss_and_grads(model, guide, *batch)
    drawn, site = model.net.network.seen, guide.layout["net.shift"]
    of_site = slice(site.offset, site.offset + site.numel)
    loc, scale = guide.flat_loc.detach()[of_site], guide.flat_log_scale.detach()[of_site].exp()
    slope = guide.flat_loc.grad[of_site] - loc
    assert bool((drawn != loc).all()) and bool((slope != 0).all())
    torch.testing.assert_close(guide.flat_log_scale.grad[of_site] - scale.square() + 1.0, (drawn - loc) * slope)


@pytest.mark.statistical
def test_flipout_with_noise_that_eight_steps_share() -> None:
    """Means of 90 groups of eight gradients against 700 of fresh draws; z below 5."""
    model, guide, batch = problem(mlp(), (3,))
    fresh = gradients(model, guide, batch, None, 700, seed=1)
    guide.antithetic = True
    shared = gradients(model, guide, batch, "flipout", 720, seed=2).view(90, 8, -1).mean(1)
    assert z_of_means(shared, fresh) < Z


def test_flipouts_deviations_are_antithetic() -> None:
    """Steps in pairs have opposite deviations, eight share their absolute values; the ninth's are new."""
    model, guide, batch = problem(mlp(), (3,))
    guide.antithetic = True
    seen: list[Tensor] = []

    class Spy(Flipout):
        def layer(self, layer: Layer, x: Tensor, weight: GaussianWeight, bias: Any) -> Any:
            if not layer.spatial and weight.shape[-1] == 3:
                seen.append(weight.deviations().detach().clone())
            return super().layer(layer, x, weight, bias)

    elbo = ELBO(estimator=Spy())
    for _ in range(9):
        elbo.backward(model, guide, batch)
    for even, odd in zip(seen[:8:2], seen[1:8:2], strict=True):
        assert torch.equal(even, -odd)
        assert torch.equal(even.abs(), seen[0].abs())
    assert not torch.equal(seen[8].abs(), seen[0].abs())
    guide.antithetic = False
    elbo = ELBO(estimator=Spy())
    seen.clear()
    for _ in range(2):
        elbo.backward(model, guide, batch)
    assert not torch.equal(seen[0].abs(), seen[1].abs())


@pytest.mark.parametrize("name", [name for name in NAMES if name != "path_derivative"])
def test_the_kl_is_counted_once(name: str) -> None:
    model, guide, batch = problem(mlp(), (3,))
    divergences = []
    for spec in (None, name):
        elbo = ELBO(estimator=spec)
        elbo.loss_and_grads(model, guide, *batch)
        assert elbo.parts is not None
        divergences.append(float(elbo.parts.divergence))
    assert divergences[0] == pytest.approx(divergences[1], rel=1e-9)


@pytest.mark.statistical
def test_the_path_derivative_reports_the_kl_in_expectation() -> None:
    """1500 values of the Monte Carlo KL against the closed form; z below 5."""
    model, guide, batch = problem(mlp(), (3,))
    exact, sampled = ELBO(), ELBO(estimator="path_derivative")
    exact.loss(model, guide, *batch)
    values = []
    for _ in range(1500):
        sampled.loss(model, guide, *batch)
        assert sampled.parts is not None
        values.append(sampled.parts.divergence)
    assert exact.parts is not None
    assert z_of_mean(torch.stack(values).unsqueeze(-1), exact.parts.divergence) < Z


# ------------------------------------------------------------------------------------------- other sites and guides


class Recurrent(nn.Module):
    """A recurrent layer, which estimators do not handle, under a linear one."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(2, 3, batch_first=True)
        self.out = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0][:, -1])


@each_name
def test_networks_with_layers_and_sites_of_all_kinds(name: str) -> None:
    """An LSTM, a latent noise scale and a prior without a closed-form KL train along."""
    rules = [("out.weight", dist.Laplace(0.0, 1.0)), ("*", dist.Normal(0.0, 1.0))]
    model = pb.SupervisedModel(Recurrent(), pb.likelihoods.Normal(dist.LogNormal(0.0, 1.0)), rules, num_data=12)
    guide = MeanField(model)
    elbo = ELBO(estimator=name)
    elbo.loss_and_grads(model, guide, torch.randn(12, 4, 2), torch.randn(12, 1))
    for parameter in guide.parameters():
        assert parameter.grad is not None and bool((parameter.grad != 0).all())


def test_coverage_says_what_is_shared() -> None:
    model = pb.SupervisedModel(Recurrent(), pb.likelihoods.Normal(1.0), dist.Normal(0.0, 1.0), num_data=12)
    kinds = estimators.coverage(model, "flipout")
    assert {site for site, kind in kinds.items() if kind == "flipout"} == {"net.out.weight", "net.out.bias"}
    assert kinds["net.rnn.weight_hh_l0"] == "shared"
    assert set(estimators.coverage(model, [("net.out.bias", "flipout")]).values()) == {"flipout", "shared"}
    assert set(estimators.coverage(model, "path_derivative").values()) == {"path_derivative"}


def test_per_group_with_any_guide_runs_the_model_on_parts() -> None:
    """A point estimate: the same loss and gradient, whatever the number of parts (of 8 rows into 3)."""
    torch.manual_seed(0)
    model = pb.SupervisedModel(mlp(), pb.likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=40).double()
    guide = MAP(model).double()
    x, y = torch.randn(8, 3, dtype=torch.float64), torch.tensor([0, 1] * 4)
    results = []
    for spec in (None, PerGroup(3)):
        guide.zero_grad()
        loss = ELBO(estimator=spec).loss_and_grads(model, guide, x, y)
        results.append((loss, guide.flat_loc.grad.clone()))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-12)
    torch.testing.assert_close(results[0][1], results[1][1])


def test_batch_statistics_are_updated_once() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    for make, spec in ((MAP, "per_group"), (MeanField, "per_group"), (MeanField, "flipout")):
        model = pb.SupervisedModel(net, pb.likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=40)
        guide = make(model)
        ELBO(estimator=spec).loss_and_grads(model, guide, torch.randn(8, 3), torch.tensor([0, 1] * 4))
        counts = [b for n, b in model.named_buffers() if n.endswith("num_batches_tracked")]
        assert [int(count) for count in counts] == [1]


# ------------------------------------------------------------------------------------------------ choosing one


def test_rules_by_site() -> None:
    rules = estimators.resolve([("net.0.*", "flipout"), ("*.weight", PerExample())])
    chosen = estimators.by_site(rules, ["net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias"])
    assert {name: e.name for name, e in chosen.items()} == {
        "net.0.weight": "flipout",
        "net.0.bias": "flipout",
        "net.2.weight": "per_example",
    }
    model, guide, batch = problem(mlp(), (3,))
    assert ELBO(estimator=[("net.0.*", "flipout")]).loss_and_grads(model, guide, *batch) > 0


def test_a_block_chooses_for_objectives_without_an_estimator() -> None:
    model, guide, batch = problem(mlp(), (3,))

    def loss(spec: EstimatorSpec = None) -> float:
        pyro.set_rng_seed(0)
        return ELBO(estimator=spec).loss_and_grads(model, guide, *batch)

    plain, flipout, local = loss(), loss("flipout"), loss("local_reparameterization")
    assert len({plain, flipout, local}) == 3
    with estimators.use("flipout"):
        assert loss() == flipout
        with estimators.use(LocalReparameterization()):
            assert loss() == local
        assert loss() == flipout and loss("local_reparameterization") == local
    assert loss() == plain


def test_fit_takes_it_through_the_objective() -> None:
    model, guide, batch = problem(mlp(), (3,))
    model.num_data = 8
    loader = [(batch[0], batch[1])]
    history = pb.fit(model, guide, loader, epochs=30, lr=0.05, elbo=ELBO(estimator="flipout"), seed=0, progress=False)
    assert history.elbo[-1] > history.elbo[0]


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("flip", ValueError, r"estimator: there is none called 'flip'; there are .*flipout.*per_group"),
        (3, TypeError, r"estimator: expected an estimator, its name, or a list"),
        ([("*",)], TypeError, r"estimator: expected an estimator"),
        ([("net.0*", "per_group")], ValueError, r"'per_group' changes the whole step .*'net.0\*'"),
    ],
)
def test_wrong_choices(spec: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ELBO(estimator=spec)


def test_a_pattern_that_matches_nothing() -> None:
    model, guide, batch = problem(mlp(), (3,))
    with pytest.raises(
        ValueError, match=r"estimator: the pattern 'conv\*' matches no site; the guide has net.0.weight"
    ):
        ELBO(estimator=[("conv*", Flipout())]).loss_and_grads(model, guide, *batch)


@pytest.mark.parametrize("name", ["flipout", "path_derivative"])
def test_a_point_estimate_has_nothing_to_draw(name: str) -> None:
    model, _, batch = problem(mlp(), (3,))
    with pytest.raises(TypeError, match=rf"estimator: '{name}' .*MAP has none"):
        ELBO(estimator=name).loss_and_grads(model, MAP(model), *batch)


@pytest.mark.parametrize("groups", [0, -1, 2.0, True])
def test_groups_are_a_positive_int(groups: Any) -> None:
    with pytest.raises(ValueError, match=r"groups: expected a positive int"):
        PerGroup(groups)


def test_too_few_rows_to_split() -> None:
    model, _, batch = problem(mlp(), (3,))
    with pytest.raises(ValueError, match=r"groups: 9 draws need at least as many rows in a batch, got 8"):
        ELBO(estimator=PerGroup(9)).loss_and_grads(model, MAP(model).double(), *batch)


# ---------------------------------------------------------------------------------------------------- the report


def test_report_compares_and_leaves_no_trace() -> None:
    model, guide, batch = problem(mlp(), (3,))
    ELBO().loss_and_grads(model, guide, *batch)
    before = [p.grad.clone() for p in guide.parameters()]
    state = torch.get_rng_state()
    table = pb.diagnostics.estimator_report(model, guide, batch, num_samples=20)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p.grad, b) for p, b in zip(guide.parameters(), before, strict=True))
    assert [row["name"] for row in table.rows] == ["shared", "per_group", *NAMES[:3], "path_derivative"]
    assert table.rows[0]["variance"] == 1.0 and all(row["reached"] == 1.0 for row in table.rows)
    assert "local_reparameterization" in str(table) and "20 gradients each" in str(table)


def test_report_takes_no_step_of_a_guides_schedule() -> None:
    net = nn.Sequential(nn.Linear(3, 6), Gate(6), nn.Linear(6, 2))
    model, _, batch = problem(net, (3,))
    part = partial(ConcreteStructure, temperature=pb.schedules.Linear(2.0, 1.0, 5))
    guide = Composite(model, [("*structure*", part), ("*", MAP)]).double()
    (structure,) = guide.parts_of(ConcreteStructure)
    assert pb.diagnostics.estimator_report(model, guide, batch, ["shared"], num_samples=20).num_samples == 20
    assert not structure.is_fitted
    assert structure.temperature == 2.0


def test_report_leaves_out_what_the_guide_cannot_take() -> None:
    model, _, batch = problem(mlp(), (3,))
    table = pb.diagnostics.estimator_report(model, MAP(model).double(), batch, num_samples=2)
    assert [row["name"] for row in table.rows] == ["shared", "per_group"]
    with pytest.raises(ValueError, match=r"estimators: none of them suits MAP"):
        pb.diagnostics.estimator_report(model, MAP(model).double(), batch, ["flipout"])
    with pytest.raises(ValueError, match=r"num_samples: a variance needs at least 2, got 1"):
        pb.diagnostics.estimator_report(model, MAP(model).double(), batch, num_samples=1)


def test_one_member_of_a_mixture_for_each_group() -> None:
    """Full members, a batch of 8 in 4 groups: each member's gradient is that of its own rows, scaled to the data."""
    torch.manual_seed(0)
    model = pb.SupervisedModel(mlp(), pb.likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=40).double()
    guide = DeltaMixture(model, 4).double()
    x, y = torch.randn(8, 3, dtype=torch.float64), torch.tensor([0, 1] * 4)
    ELBO(estimator=PerGroup(4)).loss_and_grads(model, guide, x, y)
    (members,) = guide.parameters()
    for index in range(4):
        alone = MAP(model).double()
        with torch.no_grad():
            alone.flat_loc.copy_(members[index])
        rows = slice(2 * index, 2 * index + 2)
        ELBO().loss_and_grads(model, alone, x[rows], y[rows])
        torch.testing.assert_close(members.grad[index], alone.flat_loc.grad)
    with pytest.raises(ValueError, match=r"groups: a step has 4 draws and 2 groups; make them equal"):
        ELBO(estimator=PerGroup(2)).loss_and_grads(model, guide, x, y)


def test_a_batch_with_fewer_rows_than_members_is_shown_whole_to_each() -> None:
    """Such as the last one of an epoch."""
    torch.manual_seed(0)
    model = pb.SupervisedModel(mlp(), pb.likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=40).double()
    guide = DeltaMixture(model, 4, vmap=False).double()
    x, y = torch.randn(3, 3, dtype=torch.float64), torch.tensor([0, 1, 1])
    losses, gradients = [], []
    for spec in (PerGroup(4), None):
        losses.append(ELBO(estimator=spec).loss_and_grads(model, guide, x, y))
        gradients.append(guide.flat_loc.grad)
        guide.flat_loc.grad = None
    assert losses[0] == pytest.approx(losses[1])
    torch.testing.assert_close(gradients[0], gradients[1])
