"""Random configurations: networks, priors, likelihoods, families and estimators, each from a table."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.guides import (
    MAP,
    SWAG,
    Composite,
    DeltaMixture,
    Guide,
    Laplace,
    LowRankEnsemble,
    LowRankNormal,
    MCDropout,
    MeanField,
    NormalizingFlow,
)
from pyrobnn.model import likelihoods
from pyrobnn.model.likelihoods import (
    Bernoulli,
    Categorical,
    Gamma,
    HeteroscedasticNormal,
    Likelihood,
    LogNormal,
    MixtureDensity,
    NegativeBinomial,
    Normal,
    Ordinal,
    Poisson,
    StudentT,
    ZeroInflatedPoisson,
)

FEATURES = 3  # of an input
ROWS = 7
STEPS = 4  # of a sequence


# ---------------------------------------------------------------------------------------------------- networks


class Residual(nn.Module):
    """A block with a skip connection and layer normalization."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.inner, self.norm, self.out = nn.Linear(FEATURES, FEATURES), nn.LayerNorm(FEATURES), nn.Linear(3, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x + torch.relu(self.inner(self.norm(x))))


class Tied(nn.Module):
    """One weight that two layers use, one of them transposed."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, FEATURES)
        self.second.weight = self.first.weight
        self.out = nn.Linear(FEATURES, outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.second(torch.tanh(self.first(x))))
        return self.out(h + nn.functional.linear(x, self.first.weight.T))


class Gain(nn.Module):
    """A parameter without dimensions, and one that belongs to no layer."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, outputs)
        self.gain, self.offset = nn.Parameter(torch.tensor(0.7)), nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * self.layer(x) + self.offset


class Recurrent(nn.Module):
    """A recurrent layer, of which the last state is read."""

    def __init__(self, kind: type[nn.RNNBase], outputs: int) -> None:
        super().__init__()
        self.body, self.out = kind(FEATURES, 4, batch_first=True), nn.Linear(4, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(x)[0][:, -1])


class Attention(nn.Module):
    """A transformer layer with a padding mask as second input."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 4, padding_idx=0)
        self.body = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
        self.out = nn.Linear(4, outputs)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.out(self.body(self.embedding(ids), src_key_padding_mask=~mask)[:, 0])


class Two(nn.Module):
    """Two named inputs, of which one is optional."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(FEATURES, outputs), nn.Linear(2, outputs, bias=False)

    def forward(self, left: Tensor, right: Tensor | None = None) -> Tensor:
        return self.left(left) if right is None else self.left(left) + self.right(right)


def _mlp(activation: Callable[[], nn.Module], depth: int = 1) -> Callable[[int], nn.Module]:
    def build(outputs: int) -> nn.Module:
        layers: list[nn.Module] = [nn.Linear(FEATURES, 5), activation()]
        for _ in range(depth - 1):
            layers += [nn.Linear(5, 5), activation()]
        return nn.Sequential(*layers, nn.Linear(5, outputs))

    return build


def _frozen(outputs: int) -> nn.Module:
    net = _mlp(nn.ReLU)(outputs)
    net[0].requires_grad_(False)
    return net


def _convolutional(*norm: nn.Module) -> Callable[[int], nn.Module]:
    return lambda outputs: nn.Sequential(
        nn.Conv2d(1, 2, 3), *copy.deepcopy(norm), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 4, outputs)
    )


def _rows(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(ROWS, *shape)


def _tokens() -> tuple[Tensor, Tensor]:
    length = torch.randint(1, STEPS + 1, (ROWS, 1))
    mask = torch.arange(STEPS) < length
    return torch.randint(1, 11, (ROWS, STEPS)) * mask, mask


NETWORKS: dict[str, tuple[Callable[[int], nn.Module], Callable[[], Any]]] = {
    "linear": (lambda outputs: nn.Linear(FEATURES, outputs), _rows(FEATURES)),
    "relu": (_mlp(nn.ReLU), _rows(FEATURES)),
    "tanh, deep": (_mlp(nn.Tanh, 3), _rows(FEATURES)),
    "prelu": (_mlp(nn.PReLU), _rows(FEATURES)),
    "frozen first layer": (_frozen, _rows(FEATURES)),
    "residual": (Residual, _rows(FEATURES)),
    "tied": (Tied, _rows(FEATURES)),
    "gain": (Gain, _rows(FEATURES)),
    "convolution": (_convolutional(), _rows(1, 4, 4)),
    "batch norm": (_convolutional(nn.BatchNorm2d(2)), _rows(1, 4, 4)),
    "group norm": (_convolutional(nn.GroupNorm(2, 2)), _rows(1, 4, 4)),
    "GRU": (lambda outputs: Recurrent(nn.GRU, outputs), _rows(STEPS, FEATURES)),
    "LSTM": (lambda outputs: Recurrent(nn.LSTM, outputs), _rows(STEPS, FEATURES)),
    "transformer": (Attention, _tokens),
    "two inputs": (Two, lambda: (torch.randn(ROWS, FEATURES), torch.randn(ROWS, 2))),
    "mapping": (Two, lambda: {"left": torch.randn(ROWS, FEATURES), "right": torch.randn(ROWS, 2)}),
    "absent input": (Two, lambda: {"left": torch.randn(ROWS, FEATURES), "right": None}),
}

# ---------------------------------------------------------------------------------------- likelihoods and priors

THRESHOLDS = [-1.0, 0.5, 1.2]  # of ordered classes

LIKELIHOODS: dict[str, tuple[Callable[[], Likelihood], int, Callable[[], Tensor]]] = {
    "Categorical": (Categorical, 3, lambda: torch.randint(0, 3, (ROWS,))),
    "Bernoulli": (Bernoulli, 1, lambda: torch.randint(0, 2, (ROWS, 1)).float()),
    "several labels": (Bernoulli, 2, lambda: torch.randint(0, 2, (ROWS, 2)).float()),
    "Poisson": (Poisson, 1, lambda: torch.randint(0, 4, (ROWS, 1)).float()),
    "Normal": (lambda: Normal(0.5), 2, lambda: torch.randn(ROWS, 2)),
    "Normal, unknown scale": (lambda: Normal(dist.HalfCauchy(1.0)), 1, lambda: torch.randn(ROWS, 1)),
    "Normal, missing": (
        lambda: Normal(0.5, missing=True),
        2,
        lambda: torch.randn(ROWS, 2).masked_fill(torch.rand(ROWS, 2) < 0.3, float("nan")),
    ),
    "HeteroscedasticNormal": (HeteroscedasticNormal, 4, lambda: torch.randn(ROWS, 2)),
    "HeteroscedasticNormal, natural": (
        lambda: HeteroscedasticNormal(parametrization="natural"),
        2,
        lambda: torch.randn(ROWS, 1),
    ),
    "HeteroscedasticNormal, beta": (lambda: HeteroscedasticNormal(beta=0.5), 4, lambda: torch.randn(ROWS, 2)),
    "HeteroscedasticNormal, natural, beta": (
        lambda: HeteroscedasticNormal(beta=1.0, parametrization="natural", missing=True),
        4,
        lambda: torch.randn(ROWS, 2).masked_fill(torch.rand(ROWS, 2) < 0.3, float("nan")),
    ),
    "StudentT": (StudentT, 4, lambda: torch.randn(ROWS, 2)),
    "StudentT, learned df": (lambda: StudentT(learn_df=True), 2, lambda: torch.randn(ROWS, 1)),
    "Laplace": (likelihoods.Laplace, 4, lambda: torch.randn(ROWS, 2)),
    "LogNormal": (LogNormal, 4, lambda: torch.randn(ROWS, 2).exp()),
    "Gamma": (Gamma, 2, lambda: torch.rand(ROWS, 1) + 0.1),
    "NegativeBinomial": (NegativeBinomial, 2, lambda: torch.randint(0, 4, (ROWS, 1)).float()),
    "ZeroInflatedPoisson": (ZeroInflatedPoisson, 2, lambda: torch.randint(0, 4, (ROWS, 1)).float()),
    "Ordinal": (lambda: Ordinal(thresholds=THRESHOLDS), 1, lambda: torch.randint(0, 4, (ROWS,))),
    "MixtureDensity": (lambda: MixtureDensity(2), 10, lambda: torch.randn(ROWS, 2)),
}

PRIORS: dict[str, Callable[[], Any]] = {
    "Normal": lambda: dist.Normal(0.0, 1.0),
    "he": pb.priors.he,
    "Laplace": lambda: dist.Laplace(0.0, 0.5),
    "StudentT": lambda: dist.StudentT(4.0, 0.0, 1.0),
    "mixture": pb.priors.scale_mixture,
    "rules": lambda: [("*bias", dist.Normal(0.1, 0.5)), ("*", pb.priors.lecun())],
    "latent scale": lambda: pb.priors.latent_scale(dist.HalfCauchy(1.0)),
    "learned scale": pb.priors.learned_scale,
}

# -------------------------------------------------------------------------------------------- guides, estimators

FAMILIES: dict[str, Callable[[nn.Module], Guide]] = {
    "MAP": MAP,
    "MeanField": MeanField,
    "LowRankNormal": lambda model: LowRankNormal(model, 2),
    "DeltaMixture": lambda model: DeltaMixture(model, 2, init="prior"),
    "DeltaMixture, looped": lambda model: DeltaMixture(model, 2, init="prior", vmap=False),
    "LowRankEnsemble": lambda model: LowRankEnsemble(model, 2),
    "MCDropout": MCDropout,
    "SWAG": SWAG,
    "Laplace": Laplace,
    "Composite": lambda model: Composite(model, [("*bias", MAP), ("*", MeanField)]),
}

if importlib.util.find_spec("zuko"):  # the extra flows
    FAMILIES["NormalizingFlow"] = lambda model: NormalizingFlow(model, 2, transform="affine", hidden=(4,))

ESTIMATORS = ("shared", "local_reparameterization", "flipout", "per_example", "path_derivative")


@dataclass(frozen=True)
class Configuration:
    """One choice from each table.

    Attributes:
        scale: N as a multiple of the rows of a batch.
        dtype: Of network and data.
        seed: Of weights and data.
    """

    network: str
    likelihood: str
    prior: str
    family: str
    estimator: str
    scale: int = 1
    dtype: torch.dtype = torch.float64
    seed: int = 0

    def build(self) -> Setting:
        """The network, a model of a copy of it, and data, all new."""
        torch.manual_seed(self.seed)
        make_likelihood, outputs, make_targets = LIKELIHOODS[self.likelihood]
        make_net, make_inputs = NETWORKS[self.network]
        net = make_net(outputs).to(self.dtype)
        x = _cast(make_inputs(), self.dtype)
        y = make_targets()
        y = y.to(self.dtype) if y.is_floating_point() else y
        model = pb.SupervisedModel(net, make_likelihood(), PRIORS[self.prior](), num_data=self.scale * ROWS)
        return Setting(self, net, model.to(self.dtype), x, y)


@dataclass
class Setting:
    """What a configuration consists of."""

    configuration: Configuration
    net: nn.Module
    model: pb.SupervisedModel
    x: Any
    y: Tensor

    def guide(self) -> Guide:
        """A new guide of the family."""
        return FAMILIES[self.configuration.family](self.model).to(self.configuration.dtype)

    def run(self, values: dict[str, Tensor], mode: bool) -> Tensor:
        """The network's outputs by ``torch.func.functional_call`` under values of its parameters."""
        self.net.train(mode)
        args, kwargs = (self.x, {}) if isinstance(self.x, tuple) else ((), self.x)
        if isinstance(self.x, Tensor):
            args, kwargs = (self.x,), {}
        buffers = {name: value.clone() for name, value in self.net.named_buffers()}
        own = {name.removeprefix("net."): value for name, value in values.items() if name.startswith("net.")}
        used = {name: own[name] for name, _ in self.net.named_parameters() if name in own}
        with torch.no_grad():
            return torch.func.functional_call(self.net, (used, buffers), args, kwargs)


def _cast(tree: Any, dtype: torch.dtype) -> Any:
    if isinstance(tree, Tensor):
        return tree.to(dtype) if tree.is_floating_point() else tree
    if isinstance(tree, tuple):
        return tuple(_cast(value, dtype) for value in tree)
    return None if tree is None else {name: _cast(value, dtype) for name, value in tree.items()}
