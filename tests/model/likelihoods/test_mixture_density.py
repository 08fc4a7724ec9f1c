"""Mixture densities: the suite, one component, several targets, images, missing targets, modes, the floor."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from pyrobnn.model.likelihoods import HeteroscedasticNormal, Likelihood, MixtureDensity
from pyrobnn.model.likelihoods.mixture_density import MixtureDensityPrediction
from pyrobnn.prediction import MomentPrediction
from tests.conformance.likelihood_suite import LikelihoodConformance
from tests.conformance.monte_carlo import Z, z_of_mean


def by_hand(outputs: Tensor, y: Tensor, components: int, floor: float) -> Tensor:
    """``log sum_k pi_k prod_d N``, by scipy and loops."""
    targets = y.shape[1]
    logits, loc, raw = outputs.split([components, components * targets, components * targets], -1)
    density = torch.zeros(len(y)).double()
    for k in range(components):
        columns = slice(k * targets, (k + 1) * targets)
        scale = (1 + raw[:, columns].exp()).log() + floor
        each = stats.norm(loc[:, columns].numpy(), scale.numpy()).pdf(y.numpy())
        density += logits.softmax(-1)[:, k] * torch.as_tensor(each).prod(-1)
    return density.log()


class TestMixtureDensityConformance(LikelihoodConformance):
    num_outputs = 9

    def make(self, **options: Any) -> Likelihood:
        return MixtureDensity(3, 0.05, **options)

    def log_density(self, outputs: Tensor, y: Tensor) -> Tensor:
        return by_hand(outputs, y, 3, 0.05)


class TestMixtureDensityOfTwoTargetsConformance(LikelihoodConformance):
    num_outputs = 10
    targets_are_independent = False

    def make(self, **options: Any) -> Likelihood:
        return MixtureDensity(2, 0.05, **options)

    def log_density(self, outputs: Tensor, y: Tensor) -> Tensor:
        return by_hand(outputs, y, 2, 0.05)


def full_by_hand(outputs: Tensor, y: Tensor, components: int, floor: float) -> Tensor:
    """``log sum_k pi_k N(y; mu_k, L_k L_k^T)``, by scipy and loops."""
    targets = y.shape[1]
    between = targets * (targets - 1) // 2
    sizes = [components, components * targets, components * targets, components * between]
    logits, loc, raw, below = outputs.split(sizes, -1)
    density = torch.zeros(len(y)).double()
    for row in range(len(y)):
        for k in range(components):
            columns = slice(k * targets, (k + 1) * targets)
            factor = torch.zeros(targets, targets).double()
            rows, cols = torch.tril_indices(targets, targets, -1)
            factor[rows, cols] = below[row, k * between : (k + 1) * between]
            factor += ((1 + raw[row, columns].exp()).log() + floor).diag()
            normal = stats.multivariate_normal(loc[row, columns].numpy(), (factor @ factor.T).numpy())
            density[row] += logits[row].softmax(-1)[k] * normal.pdf(y[row].numpy())
    return density.log()


class TestFullCovarianceConformance(LikelihoodConformance):
    num_outputs = 20
    targets_are_independent = False

    def make(self, **options: Any) -> Likelihood:
        return MixtureDensity(2, 0.1, covariance="full", **options)

    def log_density(self, outputs: Tensor, y: Tensor) -> Tensor:
        return full_by_hand(outputs, y, 2, 0.1)


def test_one_component_is_the_heteroscedastic_normal_bit_for_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    for targets in (1, 2, 5):
        outputs, y = torch.randn(7, 2 * targets, generator=generator), torch.randn(7, targets, generator=generator)
        one = torch.cat([torch.randn(7, 1, generator=generator), outputs], 1)
        found = MixtureDensity(1, 0.02)(one).log_prob(y)
        assert torch.equal(found, HeteroscedasticNormal(0.02)(outputs).log_prob(y))


def test_targets_of_a_row_share_the_component() -> None:
    """Two components at (-5, -5) and (5, 5): signs agree always; 4000 rows, their share within z = 5."""
    row = torch.tensor([0.0, math.log(3.0), -5.0, -5.0, 5.0, 5.0, 0.0, 0.0, 0.0, 0.0])
    torch.manual_seed(0)
    y = MixtureDensity(2)(row.expand(4000, 10)).sample()
    assert torch.equal(y[:, 0] > 0, y[:, 1] > 0)
    assert z_of_mean((y[:, 0] > 0).double(), 0.75) < Z


def test_pixels_have_mixtures_of_their_own() -> None:
    """Images are the sum over pixels of what each pixel has as a row."""
    outputs, y = torch.randn(2, 10, 3, 4).double(), torch.randn(2, 2, 3, 4).double()
    likelihood = MixtureDensity(2, dim=-3)
    likelihood.check_targets(outputs, y)
    rows = MixtureDensity(2)(outputs.movedim(1, -1).reshape(-1, 10)).log_prob(y.movedim(1, -1).reshape(-1, 2))
    torch.testing.assert_close(likelihood(outputs).log_prob(y), rows.reshape(2, -1).sum(1))
    found = likelihood.distribution(likelihood.parameters_of(outputs))
    assert found.sample((5,)).shape == (5, 2, 2, 3, 4)
    assert found.mean.shape == found.variance.shape == y.shape
    marginal = likelihood.marginal(likelihood.parameters_of(outputs))
    assert marginal.batch_shape == y.shape
    torch.testing.assert_close(marginal.variance, found.variance)


def test_pixels_have_correlated_mixtures_of_their_own() -> None:
    """Images are what each pixel has as a row, also moved and where targets are missing."""
    outputs, y = torch.randn(2, 12, 3, 4).double(), torch.randn(2, 2, 3, 4).double()
    y[0, 0, 1, :3] = y[1, :, 2, 2] = math.nan
    images, rows = (MixtureDensity(2, covariance="full", dim=dim, missing=True) for dim in (-3, -1))

    def flat(values: Tensor) -> Tensor:
        return values.movedim(1, -1).reshape(-1, values.shape[1])

    by_row = rows(flat(outputs)).log_prob(flat(y))
    torch.testing.assert_close(images(outputs).log_prob(y), by_row.reshape(2, -1).sum(1))
    loc, scale = torch.randn(2, 1, 1).double(), torch.rand(2, 1, 1).double() + 0.1
    moved = images.rescaled(images.parameters_of(outputs), loc, scale)
    change = (flat(scale.expand(2, 3, 4).unsqueeze(0)).log() * (~flat(y)[:12].isnan())).sum()
    found = images.distribution(moved).log_prob(loc + scale * y)
    assert found[0].item() == pytest.approx(by_row[:12].sum().item() - change.item())
    drawn = images.distribution(images.parameters_of(outputs)).sample((5,))
    assert drawn.shape == (5, 2, 2, 3, 4)


def test_targets_of_a_component_are_correlated() -> None:
    """One component with factor [[1, 0], [1.5, 0.5]]: 20,000 rows, second moments within z = 5."""
    raw = [math.log(math.expm1(1.0 - 1e-3)), math.log(math.expm1(0.5 - 1e-3))]
    row = torch.tensor([0.0, 1.0, -2.0, *raw, 1.5]).double()
    torch.manual_seed(0)
    found = MixtureDensity(1, covariance="full")
    y = found(row.expand(20_000, 6)).sample() - torch.tensor([1.0, -2.0]).double()
    products = torch.stack([y[:, 0].square(), y[:, 0] * y[:, 1], y[:, 1].square()], 1)
    assert z_of_mean(products, torch.tensor([1.0, 1.5, 1.5**2 + 0.25]).double()) < Z


def test_the_joint_density_integrates_to_one() -> None:
    """By the trapezoidal rule on a grid, exact to rounding for smooth densities that vanish at its ends."""
    outputs = torch.randn(3, 12, generator=torch.Generator().manual_seed(3)).double()
    found = MixtureDensity(2, 0.2, covariance="full")(outputs)
    axis = torch.linspace(-20.0, 20.0, 801, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis).unsqueeze(1).expand(-1, 3, 2)
    total = found.log_prob(points).exp().sum(0) * (axis[1] - axis[0]) ** 2
    torch.testing.assert_close(total, torch.ones(3).double(), rtol=0, atol=1e-6)


def test_a_missing_target_of_a_full_covariance_is_integrated_out() -> None:
    outputs, y = torch.randn(4, 20).double(), torch.randn(4, 3).double()
    likelihood = MixtureDensity(2, covariance="full", missing=True)
    parameters = likelihood.parameters_of(outputs)
    factor, loc = parameters["scale_tril"], parameters["loc"]
    covariance = factor @ factor.mT
    density = torch.zeros(4).double()
    kept = [0, 2]
    for k in range(2):
        block = covariance[:, k][:, kept][:, :, kept]
        normal = torch.distributions.MultivariateNormal(loc[:, k, kept], block)
        density += parameters["logits"].softmax(1)[:, k, 0] * normal.log_prob(y[:, kept]).exp()
    y[:, 1] = math.nan
    torch.testing.assert_close(likelihood(outputs).log_prob(y), density.log())


def test_a_full_covariance_of_zeros_below_the_diagonal_is_diagonal() -> None:
    outputs, y = torch.randn(5, 14).double(), torch.randn(5, 3).double()
    full = torch.cat([outputs, torch.zeros(5, 6).double()], 1)
    expected = MixtureDensity(2, covariance="diagonal")(outputs).log_prob(y)
    torch.testing.assert_close(MixtureDensity(2, covariance="full")(full).log_prob(y), expected)
    one = torch.randn(5, 6).double()
    found = MixtureDensity(2, covariance="full")(one).log_prob(y[:, :1])
    torch.testing.assert_close(found, MixtureDensity(2)(one).log_prob(y[:, :1]))


def test_a_missing_target_is_integrated_out() -> None:
    outputs, y = torch.randn(4, 10).double(), torch.randn(4, 2).double()
    likelihood = MixtureDensity(2, missing=True)
    both = MixtureDensity(2)(outputs).log_prob(y)
    y[1:, 0] = math.nan
    y[2] = math.nan
    expected = likelihood.marginal(likelihood.parameters_of(outputs)).log_prob(y.nan_to_num(0.0))[:, 1]
    found = likelihood(outputs).log_prob(y)
    torch.testing.assert_close(found[[0, 1, 3]], torch.stack([both[0], expected[1], expected[3]]))
    assert found[2] == 0


def predicted(loc: list[list[float]], scale: list[list[float]], floor: float = 1e-3) -> MixtureDensityPrediction:
    """A draw for each row of equally probable components, at one input with one target."""
    reduction = MixtureDensity(len(loc[0]), floor).reduction(len(loc), keep=True, max_bytes=1)
    means, scales = (torch.tensor(part, dtype=torch.float64).view(len(loc), 1, -1, 1) for part in (loc, scale))
    reduction.add({"logits": torch.zeros_like(means), "loc": means, "scale": scales})
    found = reduction.finish(None)
    assert isinstance(found, MixtureDensityPrediction)
    return found


def test_modes_of_separate_components() -> None:
    """Three bumps, two of which two draws share; the highest first."""
    found = predicted([[-4.0, 3.0], [-4.0, 9.0]], [[0.5, 1.0], [0.5, 0.4]])
    values, log_density = found.modes(5)
    assert values.flatten().tolist()[:3] == pytest.approx([-4.0, 9.0, 3.0], abs=1e-6)
    assert bool(values[3:].isnan().all())
    expected = math.log(0.5) + stats.norm(-4, 0.5).logpdf(-4)
    assert log_density[0].item() == pytest.approx(expected, abs=1e-6)
    assert bool(log_density[3:].isinf().all())
    torch.testing.assert_close(found.log_prob(values[0]), log_density[0, :, 0])


def test_components_that_overlap_have_one_mode() -> None:
    """Two of scale 1 at -0.5 and 0.5 have one at 0; at -1.5 and 1.5 there are two, where the derivative is zero."""
    one = predicted([[-0.5, 0.5]], [[1.0, 1.0]]).modes(3).values.flatten()
    assert one[0].item() == pytest.approx(0.0, abs=1e-4)
    assert bool(one[1:].isnan().all())
    found = predicted([[-1.5, 1.5]], [[1.0, 1.0]])
    two = found.modes(2).values.flatten().clone().requires_grad_()
    assert two.tolist()[0] == pytest.approx(-two.tolist()[1], abs=1e-6)
    density = dist_of(found).log_prob(two.view(2, 1)).sum()
    assert float(torch.autograd.grad(density, two)[0].abs().max()) < 1e-6


def dist_of(found: MomentPrediction) -> Any:
    assert found.parameters is not None
    return found.likelihood.marginal({name: value[0] for name, value in found.parameters.items()})


def test_scales_at_their_floor_are_reported_once() -> None:
    outputs = torch.zeros(4, 6)
    outputs[0, 4:] = -50.0
    full = torch.cat([outputs[:, :2], torch.zeros(4, 2), outputs[:, 4:]], 1)
    cases: list[tuple[Likelihood, Tensor]] = [(MixtureDensity(2, covariance="full"), full)]
    for likelihood, given in (
        *cases,
        (MixtureDensity(2), outputs),
        (HeteroscedasticNormal(), outputs[:, 4:].repeat(1, 2)),
    ):
        reduction = likelihood.reduction(2, keep=False, max_bytes=1)
        summary = {name: value.unsqueeze(0) for name, value in reduction.summary(given).items()}
        with pytest.warns(UserWarning, match=rf"^likelihood: 25% of the scales of {type(likelihood).__name__} are at"):
            reduction.add(summary)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            reduction.add(summary)


@pytest.mark.parametrize("components", [0, -1, 2.0, True, "3", None])
def test_a_number_of_components_below_one_is_refused(components: Any) -> None:
    with pytest.raises(ValueError, match=r"^num_components: expected a positive int"):
        MixtureDensity(components)


@pytest.mark.parametrize("covariance", ["tied", None, 1])
def test_a_covariance_that_is_neither_is_refused(covariance: Any) -> None:
    with pytest.raises(ValueError, match=r"^covariance: expected 'diagonal' or 'full'"):
        MixtureDensity(2, covariance=covariance)


@pytest.mark.parametrize("dim", [0, 1, -1.0, True, None])
def test_a_dimension_that_is_not_counted_from_the_end_is_refused(dim: Any) -> None:
    with pytest.raises(ValueError, match=r"^dim: expected a dimension of the outputs counted from the end"):
        MixtureDensity(2, dim=dim)


@pytest.mark.parametrize("shape", [(4, 7), (4, 2), (4, 0), (4,), ()])
def test_outputs_that_hold_no_mixture_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^net: MixtureDensity\(2\) expects 2 \* \(1 \+ 2 D\) outputs .*such as 6"):
        MixtureDensity(2)(torch.zeros(shape))


@pytest.mark.parametrize("size", [7, 10, 14, 2, 0])
def test_outputs_that_hold_no_correlated_mixture_are_refused(size: int) -> None:
    expected = r"^net: MixtureDensity\(2, covariance='full'\) expects 2 \* \(1 \+ 2 D \+ D \(D - 1\) / 2\) outputs"
    with pytest.raises(ValueError, match=expected):
        MixtureDensity(2, covariance="full")(torch.zeros(4, size))


@pytest.mark.parametrize(("covariance", "size"), [("diagonal", 10), ("full", 12)])
def test_components_move_with_location_and_scale(covariance: Any, size: int) -> None:
    likelihood = MixtureDensity(2, covariance=covariance)
    parameters = likelihood.parameters_of(torch.randn(3, size).double())
    loc, scale, y = torch.tensor([1.0, -2.0]).double(), torch.tensor([3.0, 0.5]).double(), torch.randn(3, 2).double()
    moved = likelihood.distribution(likelihood.rescaled(parameters, loc, scale))
    expected = likelihood.distribution(parameters).log_prob(y) - scale.log().sum()
    torch.testing.assert_close(moved.log_prob(loc + scale * y), expected)
