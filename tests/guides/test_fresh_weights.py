"""Members start at weights that are drawn as the constructors of their layers draw them."""

from __future__ import annotations

from collections.abc import Callable

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm

from pyrobnn import likelihoods
from pyrobnn.guides import DeltaMixture
from pyrobnn.guides.ensembles.fresh_weights import draw_fresh_weights
from pyrobnn.model.supervised import SupervisedModel

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "Linear": lambda: nn.Linear(4, 3),
    "Bilinear": lambda: nn.Bilinear(4, 3, 2),
    "Conv2d": lambda: nn.Conv2d(2, 3, 3),
    "ConvTranspose1d": lambda: nn.ConvTranspose1d(2, 3, 3),
    "Embedding": lambda: nn.Embedding(5, 3),
    "EmbeddingBag": lambda: nn.EmbeddingBag(5, 3),
    "LSTM": lambda: nn.LSTM(4, 3),
    "GRUCell": lambda: nn.GRUCell(4, 3),
    "PReLU": lambda: nn.PReLU(),
    "BatchNorm1d": lambda: nn.BatchNorm1d(3),
    "LayerNorm": lambda: nn.LayerNorm(3),
    "GroupNorm": lambda: nn.GroupNorm(1, 3),
    "AdaptiveLogSoftmax": lambda: nn.AdaptiveLogSoftmaxWithLoss(4, 6, [2]),
    "MultiheadAttention": lambda: nn.MultiheadAttention(4, 2),
    "attention without biases": lambda: nn.MultiheadAttention(4, 2, bias=False),
    "attention of several widths": lambda: nn.MultiheadAttention(4, 2, kdim=3, vdim=5, add_bias_kv=True),
    "TransformerEncoderLayer": lambda: nn.TransformerEncoderLayer(4, 2, 8),
    "TransformerDecoderLayer": lambda: nn.TransformerDecoderLayer(4, 2, 8),
    "Transformer": lambda: nn.Transformer(4, 2, 1, 1, 8, batch_first=True),
    "weight_norm": lambda: weight_norm(nn.Linear(4, 3)),
    "spectral_norm": lambda: spectral_norm(nn.Linear(4, 3)),
    "orthogonal": lambda: orthogonal(nn.Linear(4, 4)),
}


@pytest.mark.parametrize("name", list(LAYERS))
def test_weights_are_drawn_as_by_the_constructor(name: str) -> None:
    """Over 100 draws each: mean and mean square of every parameter agree, with z-scores below 4.5."""
    torch.manual_seed(0)
    built, drawn = [], []
    layer = LAYERS[name]()
    used = [local for local, _ in layer.named_parameters()]
    for _ in range(100):
        built.append(_statistics(LAYERS[name]()))
        draw_fresh_weights(layer, used)
        drawn.append(_statistics(layer))
    first, second = torch.stack(built), torch.stack(drawn)
    noise = ((first.var(0) + second.var(0)) / len(first)).sqrt()
    assert bool(((first.mean(0) - second.mean(0)).abs() <= 4.5 * noise + 1e-6).all())


def _statistics(layer: nn.Module) -> Tensor:
    return torch.stack(
        [s for p in layer.parameters() for s in (p.detach().mean(), p.detach().square().mean())]
    ).double()


class Encoder(nn.Module):
    """A transformer with a head."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2)
        self.head = weight_norm(nn.Linear(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


def test_members_of_attention_and_parametrized_networks_part() -> None:
    model = SupervisedModel(Encoder(), likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=4)
    guide = DeltaMixture(model, 3)
    for name, values in guide.layout.split(guide.flat_loc.detach()).items():
        if not name.endswith(("bias", "original0")):  # zeros, and norms of rows
            assert not torch.equal(values[1], values[0]), name
            assert not torch.equal(values[2], values[1]), name


class Listed(nn.Module):
    """Parameters in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList([torch.ones(3, 2)])

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weights[0]


class Resetting(Listed):
    """The same with a function that draws them."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weights[0])


class Forgetting(Listed):
    """One that does not."""

    def reset_parameters(self) -> None:
        pass


class Doubled(nn.Module):
    """A parametrization without an inverse."""

    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * x


def test_lists_of_parameters_are_drawn_by_the_module_around_them() -> None:
    layer = Resetting()
    draw_fresh_weights(layer, ["weights.0"])
    assert not torch.equal(layer.weights[0], torch.ones(3, 2))
    parametrized = nn.Sequential(nn.Linear(2, 2))
    nn.utils.parametrize.register_parametrization(parametrized[0], "weight", Doubled())
    used = [name for name, _ in parametrized.named_parameters()]
    for network, names in ((Listed(), ["weights.0"]), (Forgetting(), ["weights.0"]), (parametrized, used)):
        with pytest.raises(
            ValueError, match=r"^init: the \w+ '\w+' has a parameter of its own, .* freshly built networks"
        ):
            draw_fresh_weights(network, names)
