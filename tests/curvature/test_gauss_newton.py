"""The dense and diagonal Gauss–Newton matrix, against Hessians and Jacobians by other ways."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian, jacobian
from torch.func import functional_call

from pyrobnn import likelihoods
from pyrobnn.curvature import fisher_roots, gauss_newton, outputs_and_jacobians
from pyrobnn.model.likelihoods import Likelihood
from pyrobnn.model.supervised import SupervisedModel

X = torch.linspace(-1.0, 1.0, 15).double().reshape(5, 3).sin()


class Joined(nn.Module):
    """A network of two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(2, 2), nn.Linear(1, 2)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.tanh(self.left(a)) * self.right(b)


class LastState(nn.Module):
    """A recurrent network, which torch cannot vmap."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(1, 2, batch_first=True), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x.unsqueeze(-1))[0][:, -1])


def mlp(outputs: int = 2) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.BatchNorm1d(4), nn.Linear(4, outputs))


def setting(net: nn.Module, likelihood: Likelihood) -> tuple[SupervisedModel, dict[str, Tensor]]:
    torch.manual_seed(3)
    model = SupervisedModel(net, likelihood, dist.Normal(0.0, 1.0), num_data=5).double().eval()
    return model, {
        f"net.{n}": torch.randn(p.shape).double() for n, p in net.named_parameters() if f"{n}" in sites(model)
    }


def sites(model: SupervisedModel) -> set[str]:
    return set(model.net.parameter_names)


def flat(values: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten() for value in values.values()])


def unflat(vector: Tensor, values: dict[str, Tensor]) -> dict[str, Tensor]:
    pieces = vector.split([value.numel() for value in values.values()])
    return {name.removeprefix("net."): p.view(v.shape) for p, (name, v) in zip(pieces, values.items(), strict=True)}


NETWORKS = {
    "mlp": (mlp, X),
    "tuple": (Joined, (X[:, :2], X[:, 2:])),
    "dict": (Joined, {"a": X[:, :2], "b": X[:, 2:]}),
    "recurrent": (LastState, X),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_jacobians_are_torchs(name: str) -> None:
    build, x = NETWORKS[name]
    model, values = setting(build(), likelihoods.Normal())
    args, kwargs = ((), x) if isinstance(x, dict) else (x if isinstance(x, tuple) else (x,), {})

    def run(vector: Tensor) -> Tensor:
        return functional_call(model.net.network, unflat(vector, values), args, kwargs)

    ((outputs, found),) = outputs_and_jacobians(model, values, list(values), x)
    torch.testing.assert_close(outputs, run(flat(values)))
    torch.testing.assert_close(found, jacobian(run, flat(values)))


LINEAR = {
    "classes": (likelihoods.Categorical(), torch.tensor([0, 1, 1, 0, 1])),
    "binary": (likelihoods.Bernoulli(), torch.tensor([[0.0, 1.0]] * 5).double()),
    "Gaussian": (likelihoods.Normal(0.4), torch.randn(5, 2).double()),
    "counts": (likelihoods.Poisson(), torch.ones(5, 2).double()),
}


@pytest.mark.parametrize("name", LINEAR)
def test_it_is_the_hessian_where_outputs_are_linear_in_the_weights(name: str) -> None:
    likelihood, y = LINEAR[name]
    model, values = setting(nn.Linear(3, 2), likelihood)

    def negative_log_likelihood(vector: Tensor) -> Tensor:
        return -model.likelihood(functional_call(model.net.network, unflat(vector, values), (X,))).log_prob(y).sum()

    expected = hessian(negative_log_likelihood, flat(values))
    torch.testing.assert_close(gauss_newton(model, values, list(values), X), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("likelihood", [likelihoods.Categorical(), likelihoods.HeteroscedasticNormal()], ids=repr)
def test_it_is_the_information_between_jacobians(likelihood: Likelihood) -> None:
    model, values = setting(mlp(), likelihood)
    ((outputs, jacobians),) = outputs_and_jacobians(model, values, list(values), X)
    roots = fisher_roots(model.likelihood, outputs)
    rows = torch.einsum("cbo,bon->cbn", roots, jacobians).reshape(-1, jacobians.shape[-1])
    torch.testing.assert_close(gauss_newton(model, values, list(values), X), rows.T @ rows)


@pytest.mark.parametrize("diagonal", [False, True])
def test_batches_and_chunks_add_up(diagonal: bool) -> None:
    model, values = setting(mlp(), likelihoods.Categorical())

    def part(x: Tensor, **options: Any) -> Tensor:
        return gauss_newton(model, values, list(values), x, diagonal=diagonal, **options)

    whole = part(X)
    torch.testing.assert_close(part(X[:2]) + part(X[2:]), whole)
    torch.testing.assert_close(part(X, max_bytes=1), whole)
    if diagonal:
        torch.testing.assert_close(whole, gauss_newton(model, values, list(values), X).diagonal())


def test_chosen_sites_are_a_block_in_the_order_asked_for() -> None:
    model, values = setting(mlp(), likelihoods.Categorical())
    names = ["net.3.bias", "net.0.weight"]
    positions = dict(
        zip(values, torch.arange(len(flat(values))).split([v.numel() for v in values.values()]), strict=True)
    )
    index = torch.cat([positions[name] for name in names])
    whole = gauss_newton(model, values, list(values), X)
    torch.testing.assert_close(gauss_newton(model, values, names, X), whole[index][:, index])
