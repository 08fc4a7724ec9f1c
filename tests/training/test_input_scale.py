"""Inputs far from unit scale are noticed where they reach a layer with weights, once, and only there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from pyrobnn import Standardizer, likelihoods
from pyrobnn.guides import MAP, DeltaMixture, MeanField
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.training import fit

N = 40
FAR = "inputs are far from unit scale"


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator())


def trained(net: nn.Module, x: Any, family: Any = MAP, epochs: int = 2, size: int = 20) -> None:
    model = SupervisedModel(net, likelihoods.Normal(0.5), dist.Normal(0.0, 1.0), num_data=N)
    y = normal(N, 1)
    loader = [(rows_of(x, slice(i, i + size)), y[i : i + size]) for i in range(0, N, size)]
    fit(model, family(model), loader, epochs=epochs, progress=False, lr=1e-6)


def rows_of(x: Any, rows: slice) -> Any:
    if isinstance(x, dict):
        return {name: value[rows] for name, value in x.items()}
    return tuple(value[rows] for value in x) if isinstance(x, tuple) else x[rows]


def dense(width: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(width, 4), nn.Tanh(), nn.Linear(4, 1))


def pixels(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=generator()).float()


def one_hot() -> Tensor:
    return nn.functional.one_hot(torch.arange(N) % 10, 10).float()


def digits() -> Tensor:
    return torch.as_tensor(load_digits(return_X_y=True)[0][:N], dtype=torch.float32)


class Scaled(nn.Module):
    """A network that divides its inputs itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x / 255.0)


class Tokens(nn.Module):
    """Integer inputs up to a thousand, and a mask that is added to scores."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(1001, 4), nn.Linear(4, 1)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.head((self.table(ids) * torch.softmax(mask, -1).unsqueeze(-1)).sum(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(2, 4, batch_first=True), nn.Linear(4, 1)

    def forward(self, x: Tensor | PackedSequence) -> Tensor:
        return self.head(self.rnn(x)[1][0][-1])


def tokens() -> tuple[Tensor, Tensor]:
    mask = torch.zeros(N, 5)
    mask[:, 3:] = -1e9
    return torch.arange(N * 5).reshape(N, 5) * 5, mask


UNIT: dict[str, tuple[nn.Module, Callable[[], Any]]] = {
    "standard": (dense(3), lambda: normal(N, 3)),
    "plus minus three": (dense(1), lambda: torch.linspace(-3.0, 3.0, N).unsqueeze(-1)),
    "tens": (dense(2), lambda: 10.0 * normal(N, 2)),
    "digits to 16": (dense(64), digits),
    "images to 1": (nn.Sequential(nn.Conv2d(3, 2, 3), dense(8)), lambda: pixels(N, 3, 4, 4) / 255),
    "one gray of 255 in a column": (dense(3), lambda: torch.cat([normal(N, 2), torch.ones(N, 1) / 255], 1)),
    "one-hot": (dense(10), one_hot),
    "constant columns": (dense(3), lambda: torch.cat([normal(N, 1), torch.zeros(N, 1), torch.ones(N, 1)], 1)),
    "all zero": (dense(2), lambda: torch.zeros(N, 2)),
    "standardized prices": (dense(2), lambda: Standardizer(1e5 + 1e4 * normal(N, 2)).inputs(1e5 + 1e4 * normal(N, 2))),
    "divided by the network": (Scaled(), lambda: pixels(N, 3)),
    "normalized by the network": (nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1)), lambda: 1e4 * normal(N, 3)),
    "tokens and a mask": (Tokens(), tokens),
}


@pytest.mark.parametrize("name", UNIT)
def test_nothing_is_said_of_ordinary_inputs(name: str) -> None:
    net, make = UNIT[name]
    trained(net, make())


FAR_INPUTS: dict[str, tuple[nn.Module, Callable[[], Any], str]] = {
    "pixels": (nn.Sequential(nn.Conv2d(1, 2, 3), dense(8)), lambda: pixels(N, 1, 4, 4), r": 1[45]\d \(root"),
    "rows of pixels": (dense(16), lambda: pixels(N, 16), r" in column 0, .* in column 2 and others, 16 in all \("),
    "a price": (dense(3), lambda: normal(N, 3) * torch.tensor([1.0, 1e5, 1.0]), r": [\d.e+]+ in column 1 \("),
    "tiny": (dense(2), lambda: 1e-4 * normal(N, 2), r": \S+e-0[45]|0\.000\d+ in column 0, "),
    "divided twice": (nn.Sequential(nn.Conv2d(1, 2, 3), dense(8)), lambda: pixels(N, 1, 4, 4) / 255**2, r": 0\.002"),
    "sequences": (Recurrent(), lambda: 300.0 * normal(N, 5, 2), r": [23]\d\d \("),
}


@pytest.mark.parametrize("name", FAR_INPUTS)
@pytest.mark.parametrize("family", [MAP, lambda model: DeltaMixture(model, 2)], ids=["point", "ensemble"])
def test_inputs_far_from_unit_scale_are_named_once(name: str, family: Any) -> None:
    net, make, said = FAR_INPUTS[name]
    with pytest.warns(UserWarning, match=rf"^loader: {FAR}.*{said}.*Standardizer.* 255") as caught:
        trained(net, make(), family, epochs=4)
    assert [warning.filename for warning in caught] == [__file__]


def test_packed_sequences_are_looked_at() -> None:
    lengths = torch.tensor([5, 4, 2])
    x = pack_padded_sequence(300.0 * normal(3, 5, 2), lengths, batch_first=True)
    model = SupervisedModel(Recurrent(), likelihoods.Normal(0.5), dist.Normal(0.0, 1.0), num_data=3)
    with pytest.warns(UserWarning, match=FAR):
        fit(model, MAP(model), [(x, normal(3, 1))], epochs=1, progress=False)


def test_inputs_with_names_are_named() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(2, 1), nn.Linear(3, 1)

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return self.left(left) + self.right(right)

    with pytest.warns(UserWarning, match=rf"{FAR}.*made: input 'right': \S+ in column 1 \("):
        trained(Two(), {"left": normal(N, 2), "right": normal(N, 3) * torch.tensor([1.0, 1e3, 1.0])})
    with pytest.warns(UserWarning, match=rf"{FAR}.*made: input 0: "):
        trained(Two(), (1e3 * normal(N, 2), normal(N, 3)))


def test_training_is_as_without_it() -> None:
    """The run of the network that looks at its layers leaves draws, modes and running statistics alone."""

    def state(scale: float) -> tuple[dict[str, Tensor], Tensor]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 1))
        nn.init.zeros_(net[1].weight)
        model = SupervisedModel(net, likelihoods.Normal(0.5), [("1.*", None), ("*", dist.Normal(0.0, 1.0))], num_data=N)
        model.net.network[1].requires_grad_(False)
        guide = MeanField(model)
        fit(model, guide, [(scale * normal(N, 2), normal(N, 1))], epochs=3, progress=False)
        assert model.training
        return {**model.state_dict(), **guide.state_dict()}, torch.rand(3)

    plain, drawn = state(1.0)
    with pytest.warns(UserWarning, match=FAR):
        looked, also_drawn = state(1e3)  # a first layer of zeros makes the same of all inputs
    assert torch.equal(drawn, also_drawn)
    assert all(torch.equal(value, looked[name]) for name, value in plain.items())
