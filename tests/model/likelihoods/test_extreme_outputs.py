"""Outputs far out in single precision: log densities and gradients are those of double precision, and never NaN."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from pyrobnn import likelihoods
from pyrobnn.model.likelihoods import Likelihood

FAR = (-1e4, -100.0, 0.0, 100.0, 1e4)
PAIRED: dict[str, tuple[Likelihood, tuple[float, ...]]] = {
    "gamma": (likelihoods.Gamma(), (1e-3, 1.0, 1e3)),
    "negative binomial": (likelihoods.NegativeBinomial(), (0.0, 3.0)),
    "zero-inflated": (likelihoods.ZeroInflatedPoisson(), (0.0, 3.0)),
    "log-normal": (likelihoods.LogNormal(), (1e-3, 1.0)),
    "heteroscedastic": (likelihoods.HeteroscedasticNormal(), (1.0,)),
    "heteroscedastic, natural": (likelihoods.HeteroscedasticNormal(parametrization="natural"), (1.0,)),
    "laplace": (likelihoods.Laplace(), (1.0,)),
    "student": (likelihoods.StudentT(), (1.0,)),
    "student, learned": (likelihoods.StudentT(learn_df=True), (1.0,)),
}
WITHOUT_FLOOR = (
    likelihoods.Gamma(0.0),
    likelihoods.NegativeBinomial(0.0),
    likelihoods.LogNormal(0.0),
    likelihoods.HeteroscedasticNormal(0.0),
    likelihoods.Laplace(0.0),
    likelihoods.StudentT(floor=0.0),
)
SINGLE: dict[str, tuple[Likelihood, tuple[float, ...]]] = {
    "poisson": (likelihoods.Poisson(), (0.0, 3.0)),
    "bernoulli": (likelihoods.Bernoulli(), (0.0, 1.0)),
    "normal": (likelihoods.Normal(0.1), (1.0,)),
}
CLASSES: dict[str, Likelihood] = {
    "categorical": likelihoods.Categorical(),
    "dirichlet": likelihoods.Dirichlet(clamp=None),
    "dirichlet, softplus": likelihoods.Dirichlet("softplus", clamp=None),
    "dirichlet, relu": likelihoods.Dirichlet("relu", clamp=None),
}


def scored(likelihood: Likelihood, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Log densities of rows, and their gradients in the outputs."""
    leaf = outputs.clone().requires_grad_()
    found = likelihood(leaf).log_prob(y)
    (slopes,) = torch.autograd.grad(found.sum(), leaf)
    return found.detach(), slopes


def assert_as_in_double(likelihood: Likelihood, outputs: Tensor, y: Tensor) -> None:
    """Finite and near where double precision has a number that single precision can hold; never NaN."""
    value, slopes = scored(likelihood, outputs, y.to(outputs.dtype) if y.is_floating_point() else y)
    expected, wanted = scored(likelihood, outputs.double(), y.double() if y.is_floating_point() else y)
    largest = torch.finfo(torch.float32).max / 2
    for found in (value, slopes):
        assert not bool(found.isnan().any()), (likelihood, outputs[found.reshape(len(outputs), -1).isnan().any(1)])
    held = expected.abs() < largest
    torch.testing.assert_close(value[held].double(), expected[held], rtol=1e-3, atol=1e-2)
    assert bool((value[~held] < -1e37).all())
    slopes, wanted = slopes[held], wanted[held]  # those of other rows do not matter, but for NaN
    held = wanted.abs() < largest
    torch.testing.assert_close(slopes[held].double(), wanted[held], rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("name", PAIRED)
def test_two_outputs_for_each_target(name: str) -> None:
    likelihood, targets = PAIRED[name]
    rows = torch.tensor([*itertools.product(FAR, FAR)])
    for y in targets:
        assert_as_in_double(likelihood, rows, torch.full((len(rows), 1), y))


@pytest.mark.parametrize("likelihood", WITHOUT_FLOOR, ids=lambda likelihood: type(likelihood).__name__)
def test_without_a_floor_the_smallest_number_is_one(likelihood: Likelihood) -> None:
    """Where softplus is 0 in single precision, there still is a distribution, and no gradient is NaN."""
    rows = torch.tensor([*itertools.product(FAR, FAR)])
    for value in scored(likelihood, rows, torch.ones(len(rows), 1)):
        assert not bool(value.isnan().any())


@pytest.mark.parametrize("name", SINGLE)
def test_one_output_for_each_target(name: str) -> None:
    likelihood, targets = SINGLE[name]
    for y in targets:
        assert_as_in_double(likelihood, torch.tensor(FAR).unsqueeze(1), torch.full((len(FAR), 1), y))


@pytest.mark.parametrize("name", CLASSES)
def test_classes(name: str) -> None:
    rows = torch.tensor([*itertools.product(FAR, FAR, FAR)])
    for label in range(3):
        assert_as_in_double(CLASSES[name], rows, torch.full((len(rows),), label))


def test_ordered_classes() -> None:
    for label in range(4):
        rows = torch.tensor(FAR).unsqueeze(1)
        assert_as_in_double(likelihoods.Ordinal(4), rows, torch.full((len(FAR),), label))


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_mixtures(covariance: str) -> None:
    """Two components of two targets; each output in turn, and all of them, far out."""
    likelihood = likelihoods.MixtureDensity(2, covariance=covariance)  # type: ignore[arg-type]
    size = 10 if covariance == "diagonal" else 12
    rows = torch.cat([far * torch.eye(size) for far in FAR] + [torch.full((1, size), far) for far in FAR])
    assert_as_in_double(likelihood, rows, torch.tensor([[1.0, -2.0]]).expand(len(rows), 2))


@pytest.mark.parametrize("name", PAIRED)
def test_moments_are_never_nan(name: str) -> None:
    likelihood, _ = PAIRED[name]
    rows = torch.tensor([*itertools.product(FAR, FAR)])
    found = likelihood.distribution(likelihood.parameters_of(rows))
    assert not bool(found.mean.isnan().any())
    assert not bool(found.variance.isnan().any())
