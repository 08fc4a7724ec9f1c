"""Conjugate gradients and LiSSA against the exact solution."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyrobnn as pb
from pyrobnn import influence
from pyrobnn.curvature.products import Matrix
from pyrobnn.guides import MAP
from tests.influence.problems import classifier, logistic, regression


@pytest.mark.parametrize("matrix", ["hessian", "gauss_newton"])
def test_conjugate_gradients_are_exact(matrix: Matrix) -> None:
    """To 1e-6 of the largest entry: logistic regression on digits, and a network."""
    for own in (logistic(60), classifier()):
        exact = influence.Exact(own.model, own.guide, own.loader, matrix=matrix)
        method = influence.ConjugateGradient(own.model, own.guide, own.loader, matrix=matrix, tolerance=1e-9)
        expected = exact.upweighting(own.test_x, own.test_y)
        found = method.upweighting(own.test_x, own.test_y)
        assert float((found - expected).abs().max()) < 1e-6 * float(expected.abs().max())
        found = method.perturbation(own.test_x, own.test_y, [0])
        expected = exact.perturbation(own.test_x, own.test_y, [0])
        assert float((found - expected).abs().max()) < 1e-6 * float(expected.abs().max())


def test_gradients_of_zero_have_solutions_of_zero() -> None:
    own = logistic(60)
    method = influence.ConjugateGradient(own.model, own.guide, own.loader)
    rows = torch.zeros(2, 65, dtype=torch.float64)
    rows[1, 3] = 1.0
    with method._ready():
        found = method.solve(rows)
    assert bool((found[0] == 0).all()) and float(found[1, 3]) > 0


def test_too_few_iterations_say_what_is_left() -> None:
    own = logistic(60)
    method = influence.ConjugateGradient(own.model, own.guide, own.loader, max_iterations=3)
    with pytest.warns(UserWarning, match=r"^max_iterations: after 3 the residual is"):
        method.upweighting(own.test_x, own.test_y)


def test_lissa_with_one_batch_is_the_neumann_series() -> None:
    """It converges to the exact solution, at the rate of the smallest eigenvalue."""
    _, own = regression()
    loader = [(own.x, own.y)]
    expected = influence.Exact(own.model, own.guide, loader).upweighting(own.test_x, own.test_y)
    method = influence.LiSSA(own.model, own.guide, loader, depth=200, tolerance=1e-5)
    found = method.upweighting(own.test_x, own.test_y)
    assert float((found - expected).abs().max()) < 1e-5 * float(expected.abs().max())


def test_lissa_with_batches_comes_near_on_average() -> None:
    """Ten series with damping, half of the rows a batch: the order of influences, r > 0.95."""
    own = logistic(60)
    exact = influence.Exact(own.model, own.guide, own.loader, damping=5.0)
    method = influence.LiSSA(own.model, own.guide, own.loader, damping=5.0, depth=30, repeats=10, tolerance=1.0, seed=1)
    found = method.upweighting(own.test_x, own.test_y).flatten()
    expected = exact.upweighting(own.test_x, own.test_y).flatten()
    assert float(torch.corrcoef(torch.stack([found, expected]))[0, 1]) > 0.95
    other = influence.LiSSA(own.model, own.guide, own.loader, damping=5.0, depth=30, tolerance=1.0, seed=2)
    assert not torch.equal(other.upweighting(own.test_x, own.test_y).flatten(), found)


def test_lissa_says_where_it_fails() -> None:
    _, own = regression()
    with pytest.raises(ValueError, match=r"^scale: the series diverges with 0.1"):
        influence.LiSSA(own.model, own.guide, own.loader, scale=0.1).upweighting(own.test_x, own.test_y)
    short = influence.LiSSA(own.model, own.guide, own.loader, depth=2)
    with pytest.warns(UserWarning, match=r"^depth: after 2 terms the residual is"):
        short.upweighting(own.test_x, own.test_y)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (influence.ConjugateGradient, {"tolerance": 0.0}),
        (influence.ConjugateGradient, {"max_iterations": 0}),
        (influence.ConjugateGradient, {"damping": -1.0}),
        (influence.LiSSA, {"depth": 0}),
        (influence.LiSSA, {"repeats": 1.5}),
        (influence.LiSSA, {"scale": 0.0}),
        (influence.LiSSA, {"tolerance": -1.0}),
        (influence.LiSSA, {"seed": -1}),
        (influence.LiSSA, {"damping": float("inf")}),
        (influence.RandomProjection, {"dim": 0}),
        (influence.RandomProjection, {"kernel": "fisher"}),
        (influence.RandomProjection, {"seed": 0.5}),
        (influence.PosteriorCovariance, {"num_samples": 1}),
        (influence.PosteriorCovariance, {"seed": -2}),
    ],
)
def test_numbers_out_of_range_are_refused(kind: type, options: dict) -> None:  # type: ignore[type-arg]
    _, own = regression()
    with pytest.raises((TypeError, ValueError), match=rf"^{next(iter(options))}: "):
        kind(own.model, own.guide, own.loader, **options)


def test_losses_that_are_infinite_have_no_influence() -> None:
    """Conjugate gradients took a gradient of NaN for one that is solved, and said that the influence was 0."""
    x = torch.linspace(-1.0, 1.0, 8, dtype=torch.float64).unsqueeze(1)
    y = (0.5 + x).exp().round()
    model = pb.SupervisedModel(nn.Linear(1, 1).double(), pb.likelihoods.Poisson(), dist.Normal(0.0, 1.0), num_data=8)
    guide = influence.refit(model.double(), MAP(model), [(x, y)], tolerance=1e-6)
    far = torch.tensor([[0.5], [1e5]], dtype=torch.float64)
    for method in (influence.Exact, influence.ConjugateGradient):
        made = method(model, guide, [(x, y)])
        with pytest.raises(ValueError, match=r"^x: the loss of row 1 of a batch has a gradient that is NaN or inf"):
            made.upweighting(far, torch.ones(2, 1, dtype=torch.float64))
