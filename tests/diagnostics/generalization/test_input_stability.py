"""Jacobian norms and curvatures against exact matrices, and product bound ≥ local constant ≥ finite differences."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn import guides
from pyrobnn.diagnostics.generalization import input_curvature, input_stability, lipschitz_bound, local_lipschitz
from pyrobnn.diagnostics.generalization.power_iteration import top_eigenvalues, top_singular_values


def convolutional() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.Tanh(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 8),
        nn.ReLU(),
        nn.Linear(8, 3),
    )


X = torch.randn(5, 1, 6, 6, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 1, 2, 0, 1])


def jacobian(net: nn.Module, row: Tensor) -> Tensor:
    return torch.autograd.functional.jacobian(lambda one: net(one[None])[0], row).reshape(-1, row.numel())


def test_power_iteration_against_singular_and_eigenvalues() -> None:
    generator = torch.Generator().manual_seed(3)
    a = torch.randn(6, 20, 30, generator=generator, dtype=torch.float64)
    like = torch.zeros(6, 30, dtype=torch.float64)
    found = top_singular_values(
        lambda v: torch.einsum("nij,nj->ni", a, v), lambda u: torch.einsum("nij,ni->nj", a, u), like
    )
    torch.testing.assert_close(found, torch.linalg.matrix_norm(a, ord=2), rtol=1e-4, atol=0.0)
    h = torch.randn(6, 30, 30, generator=generator, dtype=torch.float64)
    h = h + h.mT
    h[0] -= 30.0 * torch.eye(30)  # all negative: the top one is the least in modulus
    h[1] = 0.0
    values = torch.linalg.eigvalsh(h)
    found = top_eigenvalues(lambda v: torch.einsum("nij,nj->ni", h, v), like, steps=20_000, tolerance=1e-10)
    assert float((found - values[:, -1]).abs().max()) < 1e-4 * float(values.abs().max())


def test_local_constants_are_norms_of_jacobians() -> None:
    net = convolutional()
    expected = torch.stack([torch.linalg.matrix_norm(jacobian(net, row), ord=2) for row in X])
    torch.testing.assert_close(local_lipschitz(net, X), expected, rtol=1e-4, atol=0.0)


def test_the_product_is_above_the_local_constant_and_that_above_differences() -> None:
    net = convolutional().double()
    x = X.double()
    local, product = local_lipschitz(net, x), lipschitz_bound(net, x).product
    assert bool((local <= product * (1 + 1e-6)).all())
    generator = torch.Generator().manual_seed(4)
    for _ in range(20):
        step = 1e-6 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
        stretched = (net(x + step) - net(x)).norm(dim=1) / step.flatten(1).norm(dim=1)
        assert bool((stretched.detach() <= local * (1 + 1e-4)).all())
    far = x[1:] - x[:1]
    assert bool(((net(x[1:]) - net(x[:1])).norm(dim=1) <= product * far.flatten(1).norm(dim=1)).all())


def test_curvatures_are_top_eigenvalues_of_hessians() -> None:
    net = convolutional()

    def loss(row: Tensor, label: Tensor) -> Tensor:
        return nn.functional.cross_entropy(net(row.reshape(1, 1, 6, 6)), label[None])

    pairs = zip(X, LABELS, strict=True)
    hessians = [torch.autograd.functional.hessian(lambda r, y=y: loss(r, y), row.reshape(-1)) for row, y in pairs]
    expected = torch.stack([torch.linalg.eigvalsh(h)[-1] for h in hessians])
    found = input_curvature(net, X, LABELS, pb.likelihoods.Categorical())
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_the_curvature_of_logistic_regression_is_p_times_1_minus_p_times_the_squared_norm() -> None:
    net = nn.Linear(4, 1)
    x, y = torch.randn(6, 4, generator=torch.Generator().manual_seed(5)), torch.ones(6, 1)
    p = net(x).sigmoid().squeeze(1).detach()
    expected = p * (1 - p) * net.weight.detach().square().sum()
    found = input_curvature(net, x, y, pb.likelihoods.Bernoulli())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0.0)
    torch.testing.assert_close(local_lipschitz(net, x), net.weight.detach().norm().expand(6), rtol=1e-4, atol=0.0)


def test_draws_of_a_posterior_are_networks() -> None:
    model = pb.SupervisedModel(convolutional(), pb.likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=5)
    guide = guides.MeanField(model, init_scale=0.1)
    torch.manual_seed(6)
    draws = guide.sample(3)
    found = input_stability(model, draws, X, LABELS, num_samples=3)
    assert found.local.shape == found.curvature.shape == (3, 5)
    for index in range(3):
        net = convolutional()
        net.load_state_dict({name.removeprefix("net."): value[index] for name, value in draws.items()})
        torch.testing.assert_close(found.local[index], local_lipschitz(net, X))
        likelihood = pb.likelihoods.Categorical()
        torch.testing.assert_close(found.curvature[index], input_curvature(net, X, LABELS, likelihood))
        assert float(found.product[index]) == pytest.approx(lipschitz_bound(net, X).product)
    mean, spread = found.summary()["Jacobian norm"]
    assert mean == pytest.approx(float(found.local.mean()), rel=1e-5)
    assert spread == pytest.approx(float(found.local.mean(1).std()), rel=1e-4)
    assert "over 3 draws" in str(found)
    alone = input_stability(model, guides.MAP(model), X, num_samples=1)
    assert alone.curvature is None
    assert alone.summary()["Jacobian norm"][1] == 0.0
    assert "curvature" not in str(alone)


def test_other_networks_have_local_values_only() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.linear(x)

    model = pb.SupervisedModel(Residual(), pb.likelihoods.Normal(0.1), dist.Normal(0.0, 1.0), num_data=5)
    found = input_stability(model, guides.MeanField(model), torch.randn(5, 3), torch.randn(5, 3), num_samples=2)
    assert found.product is None
    exact = torch.linalg.matrix_norm(torch.eye(3) + model.net.network.linear.weight.detach(), ord=2)
    assert float(found.local.mean()) == pytest.approx(float(exact), rel=0.05)  # draws differ by 0.01


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"x": X[:0]}, "^x: expected inputs"),
        ({"num_samples": 0}, "^num_samples: "),
        ({"y": LABELS[:2]}, "y|targets"),
        ({"y": LABELS + 3}, "y: |targets"),
    ],
)
def test_bad_arguments_are_refused_by_name(options: dict[str, Any], says: str) -> None:
    model = pb.SupervisedModel(convolutional(), pb.likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=5)
    given = {"x": X, "y": LABELS, "num_samples": 2} | options
    with pytest.raises(ValueError, match=says):
        input_stability(model, guides.MeanField(model), **given)
