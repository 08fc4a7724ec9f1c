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

    def make(self, **options: Any) -> Likelihood:
        return MixtureDensity(2, 0.05, **options)

    def log_density(self, outputs: Tensor, y: Tensor) -> Tensor:
        return by_hand(outputs, y, 2, 0.05)


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
    for likelihood, given in ((MixtureDensity(2), outputs), (HeteroscedasticNormal(), outputs[:, 4:].repeat(1, 2))):
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


@pytest.mark.parametrize("dim", [0, 1, -1.0, True, None])
def test_a_dimension_that_is_not_counted_from_the_end_is_refused(dim: Any) -> None:
    with pytest.raises(ValueError, match=r"^dim: expected a dimension of the outputs counted from the end"):
        MixtureDensity(2, dim=dim)


@pytest.mark.parametrize("shape", [(4, 7), (4, 2), (4, 0), (4,), ()])
def test_outputs_that_hold_no_mixture_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^net: MixtureDensity\(2\) expects 2 \* \(1 \+ 2 D\) outputs .*such as 6"):
        MixtureDensity(2)(torch.zeros(shape))


def test_components_move_with_location_and_scale() -> None:
    likelihood = MixtureDensity(2)
    parameters = likelihood.parameters_of(torch.randn(3, 10).double())
    loc, scale, y = torch.tensor([1.0, -2.0]).double(), torch.tensor([3.0, 0.5]).double(), torch.randn(3, 2).double()
    moved = likelihood.distribution(likelihood.rescaled(parameters, loc, scale))
    expected = likelihood.distribution(parameters).log_prob(y) - scale.log().sum()
    torch.testing.assert_close(moved.log_prob(loc + scale * y), expected)
