"""The kernel in GPyTorch: exact and variational Gaussian processes, gradients by the scales, batches, refusals."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.function_space import gpytorch_kernel, infinite_width, kernel, kernel_diagonal, log_evidence

GENERATOR = torch.Generator().manual_seed(0)
X, NEW = (torch.randn(n, 3, dtype=torch.float64, generator=GENERATOR) for n in (20, 7))
Y = (X[:, :1].sin() + X[:, 1:2] * X[:, 2:]).double()
needs_gpytorch = pytest.mark.skipif(importlib.util.find_spec("gpytorch") is None, reason="needs the extra gp")


def regression() -> pb.SupervisedModel:
    net = nn.Sequential(nn.Linear(3, 50), nn.Tanh(), nn.Linear(50, 50), nn.ReLU(), nn.Linear(50, 1))
    return pb.SupervisedModel(net, pb.likelihoods.Normal(0.3), pb.priors.lecun(), num_data=20).double()


def exact(model: pb.SupervisedModel) -> Any:
    """An exact Gaussian process of GPyTorch with the model's kernel and noise."""
    import gpytorch

    class GP(gpytorch.models.ExactGP):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            likelihood = gpytorch.likelihoods.GaussianLikelihood()
            super().__init__(X, Y[:, 0], likelihood)
            self.mean, self.kernel = gpytorch.means.ZeroMean(), gpytorch_kernel(model)

        def forward(self, x: Tensor) -> Any:
            return gpytorch.distributions.MultivariateNormal(self.mean(x), self.kernel(x))

    made = GP().double()
    made.likelihood.noise = torch.tensor(0.09, dtype=torch.float64)
    return made


@needs_gpytorch
def test_its_exact_posterior_is_that_of_infinite_width() -> None:
    """To 1e-6, mean and covariance over a set."""
    model = regression()
    gp = exact(model).eval()
    with torch.no_grad():
        found = gp(NEW)
    mean, covariance = infinite_width(model, X, Y, jitter=0.0).moments(NEW, joint=True)
    torch.testing.assert_close(found.mean, mean[:, 0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.covariance_matrix, covariance[0], rtol=1e-6, atol=1e-6)


@needs_gpytorch
def test_its_marginal_likelihood_and_gradients_are_those_of_log_evidence() -> None:
    import gpytorch

    model = regression()
    gp = exact(model).train()
    found = gpytorch.mlls.ExactMarginalLogLikelihood(gp.likelihood, gp)(gp(X), Y[:, 0]) * len(X)
    scales = gp.kernel.scales.detach().requires_grad_()
    expected = log_evidence(model, X, Y, scales=dict(zip(gp.kernel.sites, scales, strict=True)), noise=0.3, jitter=0.0)
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    (gradient,) = torch.autograd.grad(expected, scales)
    (own,) = torch.autograd.grad(found, gp.kernel.raw_scales)
    torch.testing.assert_close(own, gradient * torch.sigmoid(gp.kernel.raw_scales.detach()), rtol=1e-5, atol=1e-6)
    assert bool((own != 0).all())


@needs_gpytorch
@pytest.mark.parametrize("kind", ["nngp", "ntk"])
def test_it_is_the_kernel(kind: Any) -> None:
    """Whole, between two sets, the diagonal, rows with rows, and chosen columns."""
    model = regression()
    made = gpytorch_kernel(model, kind)
    with torch.no_grad():
        torch.testing.assert_close(made(X).to_dense(), kernel(model, X, kind=kind))
        torch.testing.assert_close(made(NEW, X).to_dense(), kernel(model, NEW, X, kind=kind))
        torch.testing.assert_close(made(X, diag=True), kernel_diagonal(model, X, kind=kind))
        rows = made(X[:7], NEW, diag=True)
        torch.testing.assert_close(rows, kernel(model, X[:7], NEW, kind=kind).diagonal())
        wide = torch.cat([NEW, X[:7]], 1)
        torch.testing.assert_close(
            gpytorch_kernel(model, kind, active_dims=(3, 4, 5))(wide).to_dense(), kernel(model, X[:7], kind=kind)
        )


@needs_gpytorch
def test_batches_of_inputs_and_of_scales() -> None:
    model = regression()
    made = gpytorch_kernel(model, batch_shape=(2,))
    made.scales = torch.stack([made.scales[0], 0.5 * made.scales[1]]).detach()
    halved = {site: 0.5 * scale for site, scale in zip(made.sites, made.scales[0].detach(), strict=True)}
    with torch.no_grad():
        of_scales = made(X).to_dense()
        of_both = made(torch.stack([X[:7], NEW]), NEW).to_dense()
        of_inputs = gpytorch_kernel(model)(torch.stack([X[:7], NEW]), NEW).to_dense()
        second = made[1](NEW).to_dense()
    torch.testing.assert_close(of_scales, torch.stack([kernel(model, X), kernel(model, X, scales=halved)]))
    torch.testing.assert_close(of_inputs, torch.stack([kernel(model, X[:7], NEW), kernel(model, NEW)]))
    torch.testing.assert_close(of_both[0], of_inputs[0])
    torch.testing.assert_close(of_both[1], kernel(model, NEW, scales=halved))
    torch.testing.assert_close(second, of_both[1])


@needs_gpytorch
def test_images_are_rows_of_numbers() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    images = torch.randn(5, 1, 4, 4, dtype=torch.float64, generator=GENERATOR)
    made = gpytorch_kernel(net, input_shape=(1, 4, 4))
    with torch.no_grad():
        torch.testing.assert_close(made(images.flatten(1)).to_dense(), kernel(net, images))
    with pytest.raises(ValueError, match="one input has 16 numbers, but a row has 3"):
        made(X).to_dense()


@needs_gpytorch
def test_a_sparse_variational_process_classifies() -> None:
    """Two classes by ten inducing points, Bernoulli: every training label but two, and the scales are trained, too."""
    import gpytorch

    labels = (X[:, 0] > 0).double()

    class GP(gpytorch.models.ApproximateGP):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            q = gpytorch.variational.CholeskyVariationalDistribution(10)
            super().__init__(gpytorch.variational.VariationalStrategy(self, X[:10], q))
            net = nn.Sequential(nn.Linear(3, 50), nn.ReLU(), nn.Linear(50, 1))
            self.mean, self.kernel = gpytorch.means.ZeroMean(), gpytorch_kernel(net)

        def forward(self, x: Tensor) -> Any:
            return gpytorch.distributions.MultivariateNormal(self.mean(x), self.kernel(x))

    torch.manual_seed(0)
    gp, likelihood = GP().double(), gpytorch.likelihoods.BernoulliLikelihood()
    objective = gpytorch.mlls.VariationalELBO(likelihood, gp, num_data=20)
    start = gp.kernel.scales.detach().clone()
    optimizer = torch.optim.Adam(gp.parameters(), lr=0.05)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = -objective(gp(X), labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    with torch.no_grad():
        predicted = likelihood(gp.eval()(X)).probs > 0.5
    assert losses[-1] < 0.8 * losses[0]
    assert int((predicted == labels.bool()).sum()) >= 18
    assert bool((gp.kernel.scales.detach() != start).all())


@needs_gpytorch
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1))}, ValueError, "LayerNorm"),
        ({"kind": "relu"}, ValueError, "kind"),
        ({"input_shape": 3}, TypeError, "input_shape: expected integers"),
        ({"batch_shape": (0,)}, ValueError, "batch_shape: expected positive integers"),
        ({"max_bytes": 0}, ValueError, "max_bytes"),
    ],
)
def test_what_does_not_fit_is_refused(change: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gpytorch_kernel(**{"model": regression(), **change})(X).to_dense()


@needs_gpytorch
def test_other_precisions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected inputs of the kernel's precision, torch\.float64"):
        gpytorch_kernel(regression())(X.float()).to_dense()


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Missing:
        def find_spec(self, name: str, *_: Any) -> None:
            if name.partition(".")[0] == "gpytorch":
                raise ModuleNotFoundError("No module named 'gpytorch'", name="gpytorch")

    for name in [name for name in sys.modules if name.partition(".")[0] == "gpytorch"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    with pytest.raises(ImportError, match=r"needs the package gpytorch.*pip install 'pyrobnn\[gp\]'"):
        gpytorch_kernel(regression())


def test_other_likelihoods_point_to_it() -> None:
    model = pb.SupervisedModel(nn.Linear(3, 1), pb.likelihoods.Poisson(), num_data=20)
    with pytest.raises(TypeError, match=r"pyrobnn\.function_space\.gpytorch_kernel"):
        infinite_width(model, X.float(), Y.abs().round().float())
