"""The Laplace guide: the conformance suite, conjugate regression, quadrature, invariances, digits."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pyrobnn as pb
from pyrobnn import likelihoods, priors
from pyrobnn.demo.digits import load_digits, network
from pyrobnn.guides import MAP, Composite, Laplace
from pyrobnn.metrics import auroc
from pyrobnn.model.supervised import SupervisedModel
from tests.conformance.conjugate import ConjugateRegression
from tests.conformance.guide_models import CASES, Case
from tests.conformance.guide_suite import GuideConformance

STRUCTURES = ["last_layer", "diagonal", "kronecker", "full"]
each_structure = pytest.mark.parametrize("structure", STRUCTURES)
each_case = pytest.mark.parametrize("case", CASES, ids=str)


def filled(guide: Laplace) -> Laplace:
    """A guide as if it had been fitted: random curvature, unit prior precision."""
    (block,) = guide.flat_blocks
    root = torch.randn(block.size, block.size)
    block.set(root @ root.T, torch.ones(block.size))
    with torch.no_grad():
        guide.mean.copy_(guide.flat_loc)
    guide.fitted.fill_(True)
    return guide


class TestLaplaceConformance(GuideConformance):
    """What every guide must do; sites that the structure does not cover are points."""

    is_joint = True
    trains_as_point = True

    def make_guide(self, model: nn.Module, **options: Any) -> Laplace:
        return filled(Laplace(model, structure="full", **options))

    @each_case
    def test_draws_differ_unless_the_guide_is_a_point(self, case: Case) -> None:
        _, guide, _ = self.build(case)
        for name, value in guide.sample(2).items():
            assert bool((value[0] != value[1]).all()) == (name in guide.covered), name

    @each_case
    def test_log_prob(self, case: Case) -> None:
        guide = self.build(case)[1]
        self.has_density = set(guide.covered) == set(guide.layout)
        super().test_log_prob(case)


def loader(*tensors: Tensor, batch_size: int = 16) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(*tensors), batch_size=batch_size)


# --------------------------------------------------------------------------------------------- known answers


def conjugate(structure: Any, **options: Any) -> tuple[ConjugateRegression, SupervisedModel, Laplace]:
    data = ConjugateRegression()
    model = data.model()
    mode = {"net.weight": data.mean[:-1].unsqueeze(0), "net.bias": data.mean[-1:]}
    guide = Laplace(model, mode, structure=structure).double()
    return data, model, guide.fit(model, loader(data.x, data.y, **options))


@pytest.mark.parametrize("structure", ["full", "last_layer", "kronecker"])
def test_linear_regression_is_exact(structure: str) -> None:
    """Posterior and evidence (1e-6: the noise is a single-precision number). One output: Kronecker is exact too."""
    data, _, guide = conjugate(structure)
    jacobians = torch.eye(data.dim + 1).double()
    covariance = torch.linalg.inv(data.precision)
    torch.testing.assert_close(guide.output_covariance(jacobians), covariance, rtol=1e-6, atol=1e-9)
    assert guide.log_evidence() == pytest.approx(data.log_evidence, rel=1e-6)
    draws = {"net.weight": torch.randn(3, 1, data.dim).double(), "net.bias": torch.randn(3, 1).double()}
    exact = torch.distributions.MultivariateNormal(data.mean, covariance)
    flat = torch.cat([draws["net.weight"].squeeze(1), draws["net.bias"]], 1)
    torch.testing.assert_close(guide.log_prob(draws), exact.log_prob(flat), rtol=1e-6, atol=1e-6)


def test_diagonal_linear_regression_keeps_the_diagonal() -> None:
    data, _, guide = conjugate("diagonal")
    torch.testing.assert_close(
        guide.marginal("net.weight").variance.flatten(), data.mean_field_variance[:-1], rtol=1e-6, atol=0.0
    )
    assert guide.log_evidence() == pytest.approx(data.log_evidence - data.gap, rel=1e-6)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_curvature_does_not_depend_on_the_batches(structure: str) -> None:
    torch.manual_seed(1)
    x, y = torch.randn(20, 1, 4, 4), torch.randint(3, (20,))
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    model = SupervisedModel(net, likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=20)
    found = [
        Laplace(model, structure=structure).fit(model, loader(x, y, batch_size=size)).double() for size in (20, 7, 1)
    ]
    for other in found[1:]:
        for name, site in other.layout.items():
            expected = found[0].marginal(name)
            torch.testing.assert_close(other.marginal(site.name).variance, expected.variance, rtol=1e-3, atol=1e-7)
        assert other.log_evidence() == pytest.approx(found[0].log_evidence(), rel=1e-5)


@pytest.mark.statistical
def test_logistic_regression_against_the_grid() -> None:
    """Two weights, 400 data: means and standard deviations within 5 % of quadrature."""
    torch.manual_seed(2)
    x = torch.randn(400, 2).double()
    y = torch.bernoulli(torch.sigmoid(x @ torch.tensor([1.0, -0.7]).double())).unsqueeze(1)
    model = SupervisedModel(nn.Linear(2, 1, bias=False), likelihoods.Bernoulli(), dist.Normal(0.0, 2.0), num_data=400)
    model.double()
    axis = torch.linspace(-1.5, 1.8, 200).double()
    grid = torch.cartesian_prod(axis, axis)
    log_joint = dist.Bernoulli(logits=grid @ x.T).log_prob(y.T).sum(1) + dist.Normal(0.0, 2.0).log_prob(grid).sum(1)
    weights = log_joint.softmax(0).unsqueeze(1)
    mean = (weights * grid).sum(0)
    std = (weights * (grid - mean).square()).sum(0).sqrt()

    point = MAP(model).double()
    optimizer = torch.optim.LBFGS(point.parameters(), max_iter=50)
    elbo = pb.objectives.ELBO()

    def closure() -> float:
        optimizer.zero_grad()
        return elbo.loss_and_grads(model, point, x, y)

    optimizer.step(closure)
    guide = Laplace(model, point, structure="full").double().fit(model, loader(x, y))
    factor = guide.marginal("net.weight")
    torch.testing.assert_close(factor.mean.flatten(), mean, rtol=0.05, atol=0.0)
    torch.testing.assert_close(factor.variance.sqrt().flatten(), std, rtol=0.05, atol=0.0)
    # The evidence, by the same grid; Laplace's own error is of the order 1 / N.
    log_evidence = float(log_joint.logsumexp(0)) + 2 * math.log(float(axis[1] - axis[0]))
    assert guide.log_evidence() == pytest.approx(log_evidence, abs=0.02)


def mlp_problem() -> tuple[SupervisedModel, Tensor, Tensor]:
    torch.manual_seed(4)
    x, y = torch.randn(24, 3), torch.randint(3, (24,))
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    return SupervisedModel(net, likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=24), x, y


def test_the_last_layer_is_the_block_of_the_full_curvature() -> None:
    model, x, y = mlp_problem()
    full, last = (Laplace(model, structure=s).fit(model, loader(x, y)).double() for s in ("full", "last_layer"))

    def precision(guide: Laplace) -> Tensor:
        (block,) = guide.flat_blocks
        return torch.linalg.inv(guide.output_covariance(torch.eye(block.size).double()))

    torch.testing.assert_close(precision(last), precision(full)[-15:, -15:], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("structure", ["diagonal", "kronecker"])
def test_prior_precision_by_layer(structure: str) -> None:
    model, x, y = mlp_problem()
    guide = Laplace(model, structure=structure).fit(model, loader(x, y))
    start = guide.log_evidence()
    together = guide.optimize_prior_precision()
    one = guide.log_evidence()
    by_layer = guide.optimize_prior_precision(per_layer=True)
    assert isinstance(together, float)
    assert list(by_layer) == ["0", "2"]
    assert start < one < guide.log_evidence()
    assert [float(block.multiplier) for block in guide.flat_blocks] == pytest.approx(list(by_layer.values()))


@each_structure
def test_a_fit_tunes_the_prior_in_one_word(structure: str) -> None:
    model, x, y = mlp_problem()
    guide, known = (Laplace(model, structure=structure) for _ in range(2))
    found = known.fit(model, loader(x, y)).optimize_prior_precision()
    guide.fit(model, loader(x, y), prior_precision="evidence")
    assert [float(block.multiplier) for block in guide.flat_blocks] == pytest.approx([found] * len(guide.flat_blocks))
    evidence = guide.log_evidence()
    assert evidence == pytest.approx(known.log_evidence(), rel=1e-6)
    assert guide.fit(model, loader(x, y)).log_evidence() < evidence
    with pytest.raises(ValueError, match=r"prior_precision: expected 'model', 'evidence' or 'held_out', got 'marglik'"):
        guide.fit(model, loader(x, y), prior_precision="marglik")


@each_structure
def test_held_out_data_tune_the_prior_as_a_scan_of_predictions_does(structure: Any) -> None:
    torch.manual_seed(4)
    x, net = torch.randn(40, 3), nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    truth = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    with torch.no_grad():
        for own, other in zip(net.parameters(), truth.parameters(), strict=True):
            other.copy_(own + 0.1 * torch.randn_like(own))
        y = truth(x) + 0.5 * torch.randn(40, 1)
    model = SupervisedModel(net, likelihoods.Normal(0.5), dist.Normal(0.0, 3.0), num_data=20)
    guide = Laplace(model, structure=structure)
    guide.fit(model, loader(x[:20], y[:20]), prior_precision="held_out", held_out=loader(x[20:], y[20:], batch_size=7))
    (found,) = {float(block.multiplier) for block in guide.flat_blocks}
    scores = []
    grid = [found * 10.0**step for step in torch.linspace(-1.0, 1.0, 41).tolist()]
    for multiplier in grid:
        for block in guide.flat_blocks:
            block.multiplier.fill_(multiplier)
        scores.append(float(pb.predict(model, guide, x[20:], 2, predictor="linearized").log_prob(y[20:]).sum()))
    best = max(range(len(scores)), key=scores.__getitem__)
    assert 0 < best < len(grid) - 1
    assert abs(best - 20) <= 1  # steps of a factor 1.12; the grid that is searched has 1.26
    assert scores[20] == pytest.approx(max(scores), abs=1e-3)


def test_held_out_classes_tune_the_prior_as_draws_of_the_weights_do() -> None:
    model, x, y = mlp_problem()
    held = torch.randn(60, 3), torch.randint(3, (60,))
    guide = Laplace(model)
    guide.fit(model, loader(x, y), prior_precision="held_out", held_out=loader(*held))
    found = float(guide.flat_blocks[0].multiplier)
    scores = {}
    for factor in (0.05, 1.0, 20.0):
        guide.flat_blocks[0].multiplier.fill_(found * factor)
        torch.manual_seed(0)
        scores[factor] = float(pb.predict(model, guide, held[0], 4000).log_prob(held[1]).mean())
    # Standard errors of 4,000 draws are about 0.002 nats for each datum, and common to the three.
    assert scores[1.0] >= max(scores.values()) - 0.005


def test_rows_of_weight_zero_do_not_tune_the_prior() -> None:
    model, x, y = mlp_problem()
    held, labels, weight = torch.randn(20, 3), torch.randint(3, (20,)), torch.ones(20)
    found = []
    for batches in ([(held[:12], labels[:12])], [(held[:12], labels[:12], weight[:12])]):
        torch.manual_seed(0)
        guide = Laplace(model).fit(model, loader(x, y), prior_precision="held_out", held_out=batches)
        found.append(float(guide.flat_blocks[0].multiplier))
    assert found[0] == pytest.approx(found[1])
    zero = [(held, labels, 0.0 * weight)]
    with pytest.raises(ValueError, match=r"^held_out: it yielded no rows of a positive weight"):
        Laplace(model).fit(model, loader(x, y), prior_precision="held_out", held_out=zero)


def test_held_out_data_go_with_their_word() -> None:
    model, x, y = mlp_problem()
    for options in ({"prior_precision": "held_out"}, {"held_out": loader(x, y)}):
        with pytest.raises(ValueError, match=r"^held_out: it is the data that prior_precision='held_out' is tuned on"):
            Laplace(model).fit(model, loader(x, y), **options)  # type: ignore[arg-type]
    wide = SupervisedModel(nn.Linear(3, 3), likelihoods.Categorical(), dist.StudentT(5.0, 0.0, 1.0), num_data=24)
    with pytest.raises(ValueError, match=r"^prior_precision: some covered sites have priors that are not Normal"):
        Laplace(wide, init="prior_mean").fit(wide, loader(x, y), prior_precision="held_out", held_out=loader(x + 0, y))


# ------------------------------------------------------------------------------------------------- behavior


def test_it_starts_from_a_fitted_point_and_keeps_the_mode() -> None:
    model, x, y = mlp_problem()
    point = MAP(model, init="prior")
    guide = Laplace(model, point).fit(model, loader(x, y))
    for name, value in guide.sample(2).items():
        assert (name in guide.covered) == (not torch.equal(value[0], point.sample(1)[name][0])), name
    before = guide.mode()
    pb.fit(model, guide, loader(x, y), epochs=1, progress=False)
    assert not torch.equal(guide.flat_loc, guide.mean)
    assert all(torch.equal(value, before[name]) for name, value in guide.mode().items())


def test_training_it_is_training_a_point() -> None:
    model, x, y = mlp_problem()
    guides = [MAP(model), Laplace(model)]
    for guide in guides:
        pb.fit(model, guide, loader(x, y), epochs=2, seed=0, progress=False)
    assert torch.equal(*(guide.flat_loc for guide in guides))


def test_a_fit_changes_neither_modes_nor_buffers() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model = SupervisedModel(net, likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=8).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for structure in STRUCTURES:
        Laplace(model, structure=structure).fit(model, loader(torch.randn(8, 3), torch.randint(2, (8,))))
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@each_structure
def test_checkpoint_round_trip(structure: str, tmp_path: Path) -> None:
    model, x, y = mlp_problem()
    guide = Laplace(model, structure=structure).fit(model, loader(x, y))
    guide.optimize_prior_precision()
    pb.save(tmp_path / "saved", model, guide)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    loaded_model, loaded = pb.load(tmp_path / "saved", net)
    assert loaded.log_evidence() == guide.log_evidence()
    expected = pb.predict(model, guide, x, 5, seed=1).mean
    assert torch.equal(pb.predict(loaded_model, loaded, x, 5, seed=1).mean, expected)


def test_describe_shows_points() -> None:
    model, x, y = mlp_problem()
    guide = Laplace(model).fit(model, loader(x, y))
    rows = {row["parameter"]: row["posterior"] for row in pb.describe(model, guide).rows}
    assert rows == {"0.weight": "Delta", "0.bias": "Delta", "2.weight": "Normal", "2.bias": "Normal"}


def test_part_of_a_guide_map() -> None:
    model, x, y = mlp_problem()
    guide = Composite(model, [("2.*", partial(Laplace, structure="full")), ("*", MAP)])
    laplace, rest = guide.parts
    with pytest.raises(ValueError, match=r"given: the site 'net\.0\.weight' belongs to another guide"):
        laplace.fit(model, loader(x, y))
    laplace.fit(model, loader(x, y), given={name: value[0] for name, value in rest.sample(1).items()})
    alone = Laplace(model).fit(model, loader(x, y))
    expected = alone.marginal("net.2.weight").variance
    torch.testing.assert_close(laplace.marginal("net.2.weight").variance, expected)
    draws = guide.sample(2)
    assert not torch.equal(draws["net.2.weight"][0], draws["net.2.weight"][1])


def test_conditional_priors_are_read_at_the_mode() -> None:
    """A latent scale of 2: the prior precision of the weights is 1/4, whatever the scale's own prior."""
    prior = priors.latent_scale(dist.LogNormal(0.0, 1.0))
    model = SupervisedModel(nn.Linear(2, 1), likelihoods.Normal(1e4), prior, num_data=4)
    guide = Laplace(model, {"net.weight.scale": torch.tensor(2.0)})
    guide.fit(model, loader(torch.randn(4, 2), torch.randn(4, 1)))
    torch.testing.assert_close(guide.marginal("net.weight").variance, torch.full((1, 2), 4.0))
    assert "net.weight.scale" not in guide.covered


def test_other_priors_by_their_second_derivative() -> None:
    """Student t at zero: ``-∂² log p = (ν + 1) / (ν σ²)``; far out it is negative, and refused."""
    data = loader(torch.randn(4, 2), torch.randn(4, 1))
    model = SupervisedModel(nn.Linear(2, 1), likelihoods.Normal(1e4), dist.StudentT(3.0, 0.0, 0.5), num_data=4)
    zeros = {"net.weight": torch.zeros(1, 2), "net.bias": torch.zeros(1)}
    guide = Laplace(model, zeros).fit(model, data)
    torch.testing.assert_close(guide.marginal("net.weight").variance, torch.full((1, 2), 0.25 * 3 / 4))
    with pytest.raises(ValueError, match="some covered sites have priors that are not Normal"):
        guide.optimize_prior_precision()
    far = Laplace(model, zeros | {"net.bias": torch.full((1,), 5.0)})
    with pytest.raises(ValueError, match=r"site 'net.bias': its prior StudentT has no positive second derivative"):
        far.fit(model, data)
    kinked = SupervisedModel(nn.Linear(2, 1), likelihoods.Normal(1.0), dist.Laplace(0.0, 1.0), num_data=4)
    with pytest.raises(ValueError, match="its prior Laplace has no positive second derivative"):
        Laplace(kinked).fit(kinked, data)


# -------------------------------------------------------------------------------------------------- refusals


def test_before_the_fit_there_is_nothing_to_draw() -> None:
    model, x, _ = mlp_problem()
    guide = Laplace(model, structure="full")
    for act in (lambda: guide.sample(2), guide.log_evidence, guide.optimize_prior_precision, guide.eval().__call__):
        with pytest.raises(RuntimeError, match=r"call laplace.fit\(model, loader\) first"):
            act()
    with pytest.raises(RuntimeError, match="it has no curvature yet"):
        pb.predict(model, guide, x, 2)


def test_refusals() -> None:
    model, x, y = mlp_problem()
    guide = Laplace(model)
    with pytest.raises(ValueError, match=r"num_data: .* 24 data, but the loader's data set has 20 rows"):
        guide.fit(model, loader(x[:20], y[:20]))
    with pytest.raises(TypeError, match=r"loader: expected batches \(x, y\), .* got a Tensor"):
        guide.fit(model, [x])
    with pytest.raises(
        ValueError, match=r"y: Categorical expects integer labels from 0 to 2 .* with values from 0 to 3"
    ):
        guide.fit(model, loader(x, y + (y == 2)))
    with pytest.raises(ValueError, match="x: batch 1 holds NaN or infinite inputs"):
        guide.fit(model, [(x[:12], y[:12]), (x[12:] * math.nan, y[12:])])
    with pytest.raises(ValueError, match="loader: it yielded 0 rows"):
        guide.fit(model, [])
    with pytest.raises(
        TypeError, match=r"model: structure='last_layer' needs a SupervisedModel, .* got Linear; make one"
    ):
        guide.fit(nn.Linear(3, 3), loader(x, y))
    with pytest.raises(ValueError, match="per_layer: structure='full' correlates the layers"):
        Laplace(model, structure="full").fit(model, loader(x, y)).optimize_prior_precision(per_layer=True)
    by_output = lambda name, parameter, module: dist.Normal(0.0, torch.rand(parameter.shape) + 0.1)  # noqa: E731
    uneven = SupervisedModel(nn.Linear(3, 3), likelihoods.Categorical(), by_output, num_data=24)
    with pytest.raises(ValueError, match="'kronecker' cannot take the layer '': its prior has different scales"):
        Laplace(uneven, structure="kronecker").fit(uneven, loader(x, y))
    small = SupervisedModel(nn.Linear(3, 3), likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=24)
    with pytest.raises(ValueError, match=r"init: the MAP guide has no site 'net\.weight'"):
        Laplace(small, MAP(model))


# ------------------------------------------------------------------------------------------------ real data


@pytest.mark.statistical
def test_it_tells_noise_from_digits_better_than_the_point() -> None:
    """Entropy's AUROC of noise images against held-out digits rises by at least 2 points over MAP."""
    data = load_digits(seed=0)
    pyro.set_rng_seed(0)
    model = pb.SupervisedModel(
        network(), pb.likelihoods.Categorical(), dist.Normal(0.0, 0.5), num_data=len(data.train[1])
    )
    point = MAP(model)
    pb.fit(model, point, data.loader(), epochs=15, lr=1e-2, seed=0, progress=False)
    guide = Laplace(model, point).fit(model, data.loader())
    noise = torch.randn(400, 8, 8)
    scores = []
    for posterior, draws in ((point, 1), (guide, 100)):
        known, unknown = (pb.predict(model, posterior, x, draws, seed=0).total for x in (data.test[0], noise))
        scores.append(auroc(known, unknown))
    assert scores[1] >= scores[0] + 0.02


@pytest.mark.parametrize("structure", ["full", "diagonal", "last_layer", "kronecker"])
def test_ignored_labels_are_rows_that_are_not_there(structure: Any) -> None:
    """A linear layer on positions, with ignored labels, has the covariance of the observed positions alone."""
    torch.manual_seed(0)
    net = nn.Linear(3, 4).double()
    x = torch.randn(6, 5, 3, dtype=torch.float64)
    y = torch.randint(0, 4, (6, 5))
    if structure == "kronecker":  # whose factors are exact for constant inputs
        x = torch.ones_like(x)
    hidden = torch.rand(6, 5) < 0.4
    fitted = []
    for inputs, labels, likelihood in (
        (x, y.masked_fill(hidden, -100), likelihoods.Categorical(ignore_index=-100)),
        (x[~hidden], y[~hidden], likelihoods.Categorical()),
    ):
        model = SupervisedModel(net, likelihood, num_data=len(inputs)).double()
        guide = Laplace(model, structure=structure).double().fit(model, [(inputs, labels)])
        fitted.append((guide.joint().variance, guide.log_evidence()))
    torch.testing.assert_close(fitted[0], fitted[1])
