"""Laplace of all kinds of networks: curvature against Jacobians that plain torch computes for the whole batch."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import jacobian
from torch.func import functional_call

import pyrobnn as pb
from pyrobnn import likelihoods
from pyrobnn.guides import Laplace
from pyrobnn.model.supervised import SupervisedModel

N = 7


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn, self.head = kind(2, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class Scaled(nn.Module):
    """A scalar parameter after the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.gain = nn.Linear(3, 2), nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * self.gain.exp()


class Masked(nn.Module):
    """Token numbers and a padding mask."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
        self.embed, self.encoder, self.head = nn.Embedding(9, 4), nn.TransformerEncoder(layer, 1), nn.Linear(4, 2)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(ids), src_key_padding_mask=~mask)[:, 0])


class Branching(nn.Module):
    """Control flow that depends on values, which vmap cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        return self.head(torch.tanh(h) if float(x.square().sum()) > 0 else h)


class Centered(nn.Module):
    """Rows that interact: no row has outputs of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.body(x))
        return self.head(h - h.mean(0))


class TimeFirst(nn.Module):
    """Inputs ``[T, B, 2]``, of which no row is a datum."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(2, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x)).sum(0))


class Squeezed(nn.Module):
    """Outputs ``[B]``, of one row none at all."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.PReLU(4), nn.Linear(4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze()


IDS = (torch.randint(0, 9, (N, 5)), torch.arange(5) < torch.arange(1, N + 1).unsqueeze(1))
X = torch.randn(N, 3)
NETWORKS: dict[str, tuple[Any, Any, tuple[int, ...]]] = {
    "rnn": (lambda: Recurrent(nn.RNN), torch.randn(N, 4, 2), (2,)),
    "lstm": (lambda: Recurrent(nn.LSTM), torch.randn(N, 4, 2), (2,)),
    "gru": (lambda: Recurrent(nn.GRU), torch.randn(N, 4, 2), (2,)),
    "scalar": (Scaled, X, (2,)),
    "padded": (Masked, IDS, (2,)),
    "branching": (Branching, X, (2,)),
    "centered": (Centered, X, (2,)),
    "time first": (TimeFirst, torch.randn(4, N, 2), (2,)),
    "as many times as data": (TimeFirst, torch.randn(N, N, 2), (2,)),
    "squeezed": (Squeezed, X, ()),
    "one output": (lambda: nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)), X, ()),
    "group norm": (lambda: nn.Sequential(nn.Linear(3, 4), nn.GroupNorm(2, 4), nn.PReLU(), nn.Linear(4, 2)), X, (2,)),
    "convolution": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Tanh(), nn.Conv2d(2, 2, 3)),
        torch.randn(N, 1, 4, 4),
        (2, 2, 2),
    ),
    "sequence": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(N, 3, 3), (3, 2)),
    "sigmoid at the end": (lambda: nn.Sequential(nn.Linear(3, 2), nn.Sigmoid()), X, (2,)),
}
SCALE = 0.3


def setting(name: str, dtype: torch.dtype) -> tuple[SupervisedModel, Any, Tensor]:
    torch.manual_seed(5)
    build, x, shape = NETWORKS[name]
    net = build().to(dtype)
    x = tuple(x) if isinstance(x, tuple) else x.to(dtype)
    model = SupervisedModel(net, likelihoods.Normal(SCALE), dist.Normal(0.0, 1.0), num_data=N)
    return model, x, torch.randn(N, *shape, dtype=dtype)


def by_torch(model: SupervisedModel, guide: Laplace, x: Any) -> Tensor:
    """Jacobians of the whole batch by the covered sites ``[N, O, n]``."""
    values, args = guide.mode(), x if isinstance(x, tuple) else (x,)

    def run(*weights: Tensor) -> Tensor:
        given = values | dict(zip(guide.covered, weights, strict=True))
        own = {name.removeprefix("net."): value for name, value in given.items()}
        return functional_call(model.net.network, own, args)

    model.eval()
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        found = jacobian(run, tuple(values[name] for name in guide.covered))
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
    sizes = [values[name].numel() for name in guide.covered]
    return torch.cat([part.reshape(N, -1, size) for part, size in zip(found, sizes, strict=True)], -1)


@pytest.mark.filterwarnings("ignore:Laplace. torch cannot vmap")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("structure", ["last_layer", "full", "diagonal"])
@pytest.mark.parametrize("name", NETWORKS)
def test_variances_are_those_of_the_closed_form(name: str, structure: Any) -> None:
    """``(Jᵀ J / σ² + I)⁻¹`` (its diagonal alone for the diagonal structure), float64 networks; also of the outputs."""
    model, x, y = setting(name, torch.float64)
    guide = Laplace(model, structure=structure).fit(model, [(x, y)])
    jacobians = by_torch(model, guide, x)
    flat = jacobians.flatten(0, 1)
    precision = flat.T @ flat / SCALE**2 + torch.eye(flat.shape[1], dtype=flat.dtype)
    if structure == "diagonal":
        precision = torch.diag(precision.diagonal())
    covariance = torch.linalg.inv(precision)
    found = torch.cat([guide.marginal(site).variance.flatten() for site in guide.covered])
    close = {"rtol": 1e-5, "atol": 1e-8}  # the noise is a single-precision number
    torch.testing.assert_close(found, covariance.diagonal(), **close)
    linear = pb.predict(model, guide, x, predictor="linearized")
    expected = torch.einsum("bon,nm,bom->bo", jacobians, covariance, jacobians)
    torch.testing.assert_close(linear.epistemic.reshape(N, -1), expected, **close)


@pytest.mark.filterwarnings("ignore:Laplace. torch cannot vmap")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("name", NETWORKS)
def test_single_precision_and_factors(name: str) -> None:
    """Single precision agrees with double; Kronecker factors cover the layers that have them."""
    guides = {}
    for dtype in (torch.float32, torch.float64):
        model, x, y = setting(name, dtype)
        guides[dtype] = Laplace(model).fit(model, [(x, y)])
        Laplace(model, structure="kronecker").fit(model, [(x, y)])
    single, double = guides.values()
    assert single.last_layer == double.last_layer
    for site in single.covered:
        variance = single.marginal(site).variance.double()
        torch.testing.assert_close(variance, double.marginal(site).variance, rtol=1e-2, atol=1e-5)


def test_a_network_that_cannot_be_vmapped_says_so_once() -> None:
    model, x, y = setting("branching", torch.float32)
    with pytest.warns(UserWarning, match="torch cannot vmap this network") as caught:
        Laplace(model, structure="full").fit(model, [(x[:3], y[:3]), (x[3:], y[3:])])
    assert len(caught) == 1


def test_a_network_that_detaches_is_refused() -> None:
    class Detached(Branching):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).detach()

    model = SupervisedModel(Detached(), likelihoods.Normal(1.0), dist.Normal(0.0, 1.0), num_data=N)
    with pytest.raises(ValueError, match=r"net: its outputs do not depend on the site 'net\.body\.weight'"):
        Laplace(model, structure="full").fit(model, [(X, torch.randn(N, 2))])


def test_a_row_of_weight_two_is_two_rows() -> None:
    """And one of weight 0 is none: the same Gaussian as of the data set that the weights describe."""
    torch.manual_seed(0)
    x, y = torch.randn(5, 3).double(), torch.randint(3, (5,))
    weight = torch.tensor([1.0, 2.0, 0.0, 1.0, 2.0]).double()
    again = torch.tensor([0, 1, 1, 3, 4, 4])
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    for structure in ("last_layer", "full", "diagonal", "kronecker"):
        found = []
        for batches, count in (([(x, y, weight)], 5), ([(x[again], y[again])], 6)):
            model = SupervisedModel(net, likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=count)
            found.append(Laplace(model, structure=structure).fit(model, batches))
        assert found[0].log_evidence() == pytest.approx(found[1].log_evidence(), rel=1e-9)
        for site in found[0].covered:
            torch.testing.assert_close(found[0].marginal(site).variance, found[1].marginal(site).variance)


def test_batches_of_another_form() -> None:
    model, x, y = setting("one output", torch.float64)
    guides = [
        Laplace(model).fit(model, [{"data": x, "answer": y}], batch=lambda raw: (raw["data"], raw["answer"])),
        Laplace(model).fit(model, [(x, y)]),
    ]
    assert guides[0].log_evidence() == guides[1].log_evidence()


def test_thousands_of_labels() -> None:
    """The diagonal of 2,000 classes, in closed form: their blocks would be 2,000 x 2,000."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2000))
    model = SupervisedModel(net, likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=1).double()
    x, y = torch.randn(1, 3).double(), torch.tensor([3])
    diagonal = Laplace(model, structure="diagonal", last_layer=True).double().fit(model, [(x, y)])
    h = torch.cat([torch.tanh(net[0].double()(x)), torch.ones(1, 1).double()], 1).detach()
    p = net[2].double()(h[:, :-1]).softmax(-1).detach()
    expected = 1.0 / (1.0 + (p * (1 - p)).T * h.square())
    torch.testing.assert_close(diagonal.marginal("net.2.weight").variance, expected[:, :-1])
    torch.testing.assert_close(diagonal.marginal("net.2.bias").variance, expected[:, -1])
