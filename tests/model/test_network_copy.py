"""Which networks can become Bayesian, and copies of those that left tensors of a run in their attributes."""

from __future__ import annotations

import copy
import functools
import weakref
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn import guides, likelihoods
from pyrobnn.model.bayesianize import bayesianize
from pyrobnn.model.network_copy import copied

PRIOR = dist.Normal(0.0, 1.0)
X = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))


class Recording(nn.Module):
    """Leaves what it computed in attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.hidden, self.all = nn.Linear(3, 1), None, []

    def forward(self, x: Tensor) -> Tensor:
        self.hidden = self.layer(x)
        self.all.append(self.hidden)
        return self.hidden


class Referring(nn.Module):
    """A child that knows its parent, and is told how."""

    def __init__(self, refer: Callable[[nn.Module], Any]) -> None:
        super().__init__()
        self.layer, self.child = nn.Linear(3, 3), nn.Linear(3, 1)
        self.child.parent = refer(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.child(self.child.parent[0].layer(x))


class Holding(nn.Module):
    """Has a function of its own modules."""

    def __init__(self, hold: Callable[[nn.Module], Any]) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.function = hold(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)

    def plain(self, x: Tensor) -> Tensor:
        """The layer."""
        return self.layer(x)


def fitted_mean(net: nn.Module) -> Tensor:
    """Predictions of a model with the network's weights."""
    model = pb.SupervisedModel(net, likelihoods.Normal(0.3), prior=PRIOR, num_data=10)
    return pb.predict(model, guides.MAP(model), X, 1).mean


def test_a_network_that_was_run_can_be_copied() -> None:
    net = Recording()
    expected = net(X).detach()
    with pytest.raises(RuntimeError, match="graph leaves"):
        copy.deepcopy(net)
    twin = copied(net)
    assert isinstance(twin, Recording)
    assert twin.layer.weight is not net.layer.weight
    assert torch.equal(twin.hidden, expected)  # type: ignore[arg-type]
    assert twin.all[0] is twin.hidden
    torch.testing.assert_close(fitted_mean(net), expected)


def test_members_of_a_network_that_was_run() -> None:
    model = pb.SupervisedModel(Recording(), likelihoods.Normal(0.3), prior=PRIOR, num_data=10)
    pb.fit(model, guides.MAP(model), [(X, X[:, :1])], epochs=1, progress=False)
    assert guides.DeltaMixture(model, 3).num_members == 3


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_weight_normalization_by_hooks() -> None:
    torch.manual_seed(1)
    net = nn.utils.weight_norm(nn.Linear(3, 1))
    model = pb.SupervisedModel(net, likelihoods.Normal(0.3), prior=PRIOR, num_data=10)
    guide = guides.MeanField(model)
    pb.fit(model, guide, [(X, X[:, :1])], epochs=3, progress=False)
    draws = guide.sample(2)
    v, g, b = (draws[f"net.{name}"] for name in ("weight_v", "weight_g", "bias"))
    expected = torch.stack([X @ (g[i] * v[i] / v[i].norm(dim=1, keepdim=True)).T + b[i] for i in range(2)]).mean(0)
    torch.testing.assert_close(pb.predict(model, draws, X, 2).mean, expected)


@pytest.mark.parametrize("name", ["weight_norm", "spectral_norm", "orthogonal"])
def test_parametrizations(name: str) -> None:
    torch.manual_seed(1)
    net = nn.Sequential(getattr(nn.utils.parametrizations, name)(nn.Linear(3, 3)), nn.Linear(3, 1)).eval()
    expected = net(X).detach()
    torch.testing.assert_close(fitted_mean(net), expected)


def test_sparse_embeddings_have_dense_gradients() -> None:
    class Net(nn.Module):
        def __init__(self, sparse: bool) -> None:
            super().__init__()
            self.table, self.bag = nn.Embedding(5, 2, sparse=sparse), nn.EmbeddingBag(5, 2, sparse=sparse)
            self.last = nn.Linear(4, 1)

        def forward(self, ids: Tensor) -> Tensor:
            return self.last(torch.cat([self.table(ids).mean(1), self.bag(ids)], 1))

    ids = torch.arange(20).reshape(10, 2) % 5
    for make in (guides.MAP, guides.MeanField, guides.LowRankNormal, lambda m: guides.DeltaMixture(m, 3)):
        found = []
        for sparse in (False, True):
            torch.manual_seed(2)
            net = Net(sparse)
            rules = [("bag.*", None), ("*", PRIOR)]
            model = pb.SupervisedModel(net, likelihoods.Normal(0.3), prior=rules, num_data=10)
            guide = make(model)
            pb.fit(model, guide, [(ids, X[:, :1])], epochs=3, progress=False, seed=0)
            assert net.table.sparse is sparse
            found.append(torch.cat([p.detach().flatten() for module in (guide, model) for p in module.parameters()]))
        torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("refer", [lambda net: [net], lambda net: (net, None)], ids=["list", "tuple"])
def test_children_may_keep_their_parent_where_it_is_not_registered(refer: Callable[[nn.Module], Any]) -> None:
    net = Referring(refer)
    torch.testing.assert_close(fitted_mean(net), net(X).detach())


def test_partial_methods_follow_the_copy() -> None:
    net = Holding(lambda net: functools.partial(net.plain))
    torch.testing.assert_close(fitted_mean(net), net(X).detach())


def _with_default(net: nn.Module) -> Callable[[Tensor], Tensor]:
    def function(x: Tensor, layer: nn.Module = net.layer) -> Tensor:
        return layer(x)

    return function


def _with_weight(net: nn.Module) -> Callable[[Tensor], Tensor]:
    weight = net.layer.weight
    return lambda x: x @ weight.T


REFUSED: list[tuple[str, Callable[[], nn.Module], str]] = [
    ("registered parent", lambda: Referring(lambda net: net), "net: the module 'child.parent' contains itself"),
    ("weak parent", lambda: Referring(weakref.ref), "net: the module 'child' has an attribute 'parent'"),
    ("lambda", lambda: Holding(lambda net: lambda x: net.layer(x)), "net: it has an attribute 'function'"),
    ("bound method", lambda: Holding(lambda net: (lambda f: lambda x: f(x))(net.plain)), "attribute 'function'"),
    ("default", lambda: Holding(_with_default), "net: it has an attribute 'function'"),
    ("weight", lambda: Holding(_with_weight), "net: it has an attribute 'function'"),
    ("wrapped", lambda: nn.DataParallel(nn.Linear(3, 1)), r"net: it is a DataParallel; pass .* \(its .module\)"),
    ("lazy", lambda: nn.Sequential(nn.LazyLinear(1)), "net: the parameter '0.weight' is lazy"),
    ("lazy buffer", lambda: nn.Sequential(nn.LazyBatchNorm1d(affine=False)), "net: the buffer '0.running_mean' is"),
    ("no values", lambda: nn.Linear(3, 1, device="meta"), "net: the parameter 'weight' is on the device 'meta'"),
    ("max_norm", lambda: nn.Embedding(3, 1, max_norm=1.0), r"net: the embedding '' has max_norm=1.0.*\('weight', None"),
]


@pytest.mark.parametrize(("make", "message"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_networks_that_cannot_be_bayesian_are_refused(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        bayesianize(make(), PRIOR)


@pytest.mark.filterwarnings("ignore:`torch.jit.* is deprecated:FutureWarning")
@pytest.mark.parametrize("compile_", [torch.jit.script, lambda net: torch.jit.trace(net, X)], ids=["script", "trace"])
def test_compiled_networks_are_refused(compile_: Callable[[nn.Module], nn.Module]) -> None:
    net = compile_(nn.Linear(3, 3))
    with pytest.raises(TypeError, match=r"net: it is compiled by torch.jit"):
        bayesianize(net, PRIOR)
    with pytest.raises(TypeError, match=r"net: the module '0' is compiled by torch.jit"):
        bayesianize(nn.Sequential(net, nn.Linear(3, 1)), PRIOR)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64])
def test_priors_are_over_real_floating_point_numbers(dtype: torch.dtype) -> None:
    net = nn.Linear(3, 1)
    net.code = nn.Parameter(torch.ones(2, dtype=dtype), requires_grad=False)
    with pytest.raises(ValueError, match=r"prior of 'code': the parameter is of torch"):
        bayesianize(net, [("code", PRIOR), ("*", PRIOR)])
    assert "code" not in bayesianize(net, PRIOR).parameter_names


def test_max_norm_may_stay_where_the_weight_is_not_drawn() -> None:
    net = nn.Sequential(nn.Embedding(3, 2, max_norm=1.0), nn.Linear(2, 1))
    assert list(bayesianize(net, [("0.weight", None), ("*", PRIOR)]).parameter_names) == ["1.weight", "1.bias"]


def test_weights_without_elements() -> None:
    net = nn.Linear(3, 1)
    net.none = nn.Parameter(torch.empty(0, 4))
    torch.testing.assert_close(fitted_mean(net), net(X).detach())
