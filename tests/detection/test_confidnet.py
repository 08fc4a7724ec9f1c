"""ConfidNet: known probabilities of the true class, features, state and errors."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn import guides
from pyrobnn.detection import ConfidNet, failure_table

NORMAL = dist.Normal(0.0, 1.0)


def model_of(net: nn.Module, likelihood: Any = None, num_data: int = 100) -> pb.SupervisedModel:
    return pb.SupervisedModel(net, likelihood or pb.likelihoods.Categorical(), NORMAL, num_data=num_data)


def loader_of(x: Tensor, y: Tensor, size: int = 500) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(size), y.split(size), strict=True))


def linear(weight: list[list[float]]) -> nn.Linear:
    net = nn.Linear(2, len(weight))
    with torch.no_grad():
        net.weight.copy_(torch.tensor(weight))
        net.bias.zero_()
    return net


def toy(num_data: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs in the square, p(y | x) of three classes, and labels."""
    generator = torch.Generator().manual_seed(seed)
    x = 4 * torch.rand(num_data, 2, generator=generator) - 2
    p = torch.stack([x[:, 0], 1.5 * x[:, 1], x[:, 0] * x[:, 1]], -1).softmax(-1)
    return x, p, torch.multinomial(p, 1, generator=generator).squeeze(1)


NET = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 3))
X, _, Y = toy(600, 0)
LOADER = loader_of(X, Y)
FAST: dict[str, Any] = {"epochs": 2, "seed": 0}


@pytest.fixture(scope="module")
def model() -> pb.SupervisedModel:
    torch.manual_seed(0)
    return model_of(NET)


@pytest.mark.parametrize("kind", ["point", "posterior"])
def test_learns_the_expected_probability_of_the_true_class(kind: str) -> None:
    """20,000 data at 16 inputs, of a predictive that has nothing to do with the truth: z-scores below 4 at each input.

    The squared error is least at E[p̄_y | x] = Σ_c p(c | x) p̄_c(x). The unit is the standard error of an input's mean
    TCP. A head without hidden layers on the inputs as indicators can take any value at each.
    """
    generator = torch.Generator().manual_seed(1)
    where = torch.randint(16, (20_000,), generator=generator)
    p = torch.randn(16, 3, generator=generator).softmax(-1)
    y = torch.multinomial(p[where], 1, generator=generator).squeeze(1)
    weights = 2 * torch.randn(2, 3, 16, generator=generator)
    net = nn.Linear(16, 3, bias=False)
    with torch.no_grad():
        net.weight.copy_(weights[0])
    built, draws = model_of(net), 1 if kind == "point" else 2
    posterior = guides.MAP(built) if kind == "point" else {"net.weight": weights}
    x = torch.eye(16)
    learned = ConfidNet(built, posterior, hidden=(), num_samples=draws)
    learned.fit(loader_of(x[where], y, 5000), epochs=60, lr=0.1, batch_size=4000, criterion="mse", seed=0)
    predictive = weights[:draws].mT.softmax(-1).mean(0)
    truth = (p * predictive).sum(-1)
    variance = (p * predictive.square()).sum(-1) - truth.square()
    z = (learned.confidence(x) - truth) / (variance / where.bincount()).sqrt()
    assert float(z.abs().max()) < 4
    assert float(truth.std()) > 0.1  # what a constant would miss


def test_finds_confident_errors_that_the_softmax_response_does_not() -> None:
    """A network that is sure and wrong in one quadrant, on new data: average precision near that of the quadrant."""
    x, _, _ = toy(4000, 2)
    y = (x[:, 0] + x[:, 1] > 0).long()
    corner = (x[:, 0] > 0) & (x[:, 1] > 0) & (x.sum(1) > 1.0)
    y = torch.where(corner & (torch.rand(4000, generator=torch.Generator().manual_seed(0)) < 0.8), 1 - y, y)
    built = model_of(linear([[0.0, 0.0], [5.0, 5.0]]))
    guide = guides.MAP(built)
    net = ConfidNet(built, guide, hidden=(50, 50), num_samples=1)
    net.fit(loader_of(x[:3000], y[:3000]), epochs=30, lr=3e-3, seed=0)
    test = pb.predict(built, guide, loader_of(x[3000:], y[3000:]), 1)
    table = failure_table(test, scores={"ConfidNet": 1 - net.confidence(x[3000:])})
    assert table["ConfidNet"]["ap_errors"] > table["MCP"]["ap_errors"] + 0.4
    assert table["TCP oracle"]["ap_errors"] > 0.98


@pytest.mark.parametrize("family", [guides.MAP, guides.MeanField, guides.MCDropout, guides.DeltaMixture])
def test_features_are_those_of_the_guides_point_without_dropout(family: Any, model: pb.SupervisedModel) -> None:
    guide = family(model, **{"num_members": 2} if family is guides.DeltaMixture else {})
    net = ConfidNet(model, guide, hidden=(5,), num_samples=4).fit(LOADER, **FAST)
    point = guide.starting_point()
    features = (X @ point["net.0.weight"].mT + point["net.0.bias"]).tanh()
    torch.testing.assert_close(net.encoder(X)[0], features)
    assert net.encoder.last_layer == "3"
    torch.testing.assert_close(net.confidence(X), net.head(features).sigmoid().squeeze(-1))
    torch.testing.assert_close(net.confidence(LOADER), net.confidence(X))
    net.train()
    torch.testing.assert_close(net.encoder(X)[0], features)  # dropout stays off


def test_the_posterior_and_the_random_state_are_left_alone(model: pb.SupervisedModel) -> None:
    guide = guides.MeanField(model)
    before = copy.deepcopy([model.state_dict(), guide.state_dict()])
    torch.manual_seed(3)
    state = torch.get_rng_state()
    with torch.inference_mode():
        net = ConfidNet(model, guide, hidden=(5,), num_samples=3)
    with torch.no_grad():
        net = ConfidNet(model, guide, hidden=(5,), num_samples=3).fit(LOADER, finetune_epochs=1, **FAST)
    again = ConfidNet(model, guide, hidden=(5,), num_samples=3).fit(LOADER, finetune_epochs=1, **FAST)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(net.confidence(X), again.confidence(X))
    for old, new in zip(before, [model.state_dict(), guide.state_dict()], strict=True):
        assert all(torch.equal(old[name], new[name]) for name in old)


def test_fine_tuning_trains_a_copy_of_the_encoder_and_can_be_done_again(model: pb.SupervisedModel) -> None:
    guide = guides.MAP(model)
    net = ConfidNet(model, guide, hidden=(20,), num_samples=1)
    net.fit(LOADER, epochs=5, lr=1e-3, seed=0, validation=LOADER)
    before = net.history[net.best_epoch].validation_mse
    features = net.encoder(X)[0]
    net.fit(LOADER, epochs=5, lr=1e-3, finetune_epochs=40, finetune_lr=1e-2, seed=0, validation=LOADER)
    assert len(net.history) == 45
    assert min(epoch.validation_mse for epoch in net.history[5:]) < before
    if net.best_epoch >= 5:
        assert not torch.equal(net.encoder(X)[0], features)
    assert not any(weight.requires_grad for weight in net.parameters())
    net.fit(LOADER, epochs=1, seed=0)
    torch.testing.assert_close(net.encoder(X)[0], features)


def test_the_best_epoch_is_the_one_that_stays(model: pb.SupervisedModel) -> None:
    guide = guides.MAP(model)
    net = ConfidNet(model, guide, hidden=(20,), num_samples=1).fit(
        LOADER, epochs=20, lr=3e-3, validation=LOADER, seed=0
    )
    table = failure_table(pb.predict(model, guide, LOADER, 1), scores={"c": -net.confidence(X)})
    precisions = [epoch.validation_ap_errors for epoch in net.history]
    assert all(precision is not None for precision in precisions)
    assert precisions[net.best_epoch] == max(p for p in precisions if p is not None)
    assert table["c"]["ap_errors"] == pytest.approx(precisions[net.best_epoch], abs=1e-6)


def test_state_is_loaded_into_one_that_was_not_fitted(model: pb.SupervisedModel, tmp_path: Any) -> None:
    guide = guides.MAP(model)
    net = ConfidNet(model, guide, hidden=(6, 5), num_samples=1).fit(LOADER, finetune_epochs=1, **FAST)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    loaded = ConfidNet(model, guide, hidden=(6, 5), num_samples=1)
    loaded.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    assert torch.equal(loaded.confidence(X), net.confidence(X))
    assert all(isinstance(value, Tensor) for value in net.state_dict().values())
    assert "last_layer='3'" in repr(loaded)


class Pixels(nn.Module):
    def __init__(self, pool: bool) -> None:
        super().__init__()
        self.first, self.last, self.pool = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 3, 1), pool

    def forward(self, x: Tensor) -> Tensor:
        out = self.last(self.first(x).relu())
        return out.mean((2, 3)) if self.pool else out


def test_labels_of_pixels_with_some_not_observed_and_pooled_features() -> None:
    torch.manual_seed(0)
    x = torch.randn(40, 1, 5, 4)
    y = torch.randint(0, 3, (40, 5, 4))
    y[:, 0] = -1
    net = Pixels(pool=False)
    built = model_of(net, pb.likelihoods.Categorical(class_dim=1, ignore_index=-1))
    guide = guides.MAP(built)
    found = ConfidNet(built, guide, hidden=(7,), num_samples=1).fit(loader_of(x, y, 20), validation=0.5, **FAST)
    assert found.confidence(x).shape == (40, 5, 4)
    assert int(found.num_data) == 40 * 4 * 4 // 2
    with torch.no_grad():
        expected = found.head(net.first(x).relu().movedim(1, -1)).sigmoid().squeeze(-1)
    torch.testing.assert_close(found.confidence(x), expected)
    pooled = model_of(Pixels(pool=True))
    one = ConfidNet(pooled, guides.MAP(pooled), hidden=(7,), num_samples=1).fit(loader_of(x, y[:, 1, 0], 20), **FAST)
    assert one.confidence(x).shape == (40,)


class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x.transpose(0, 1)).transpose(0, 1)


def test_features_whose_labels_are_not_known_are_refused() -> None:
    built = model_of(Transposed())
    with pytest.raises(ValueError, match=r"^last_layer: labels have shape \[5, 4\], and the outputs of 'last'"):
        ConfidNet(built, guides.MAP(built), num_samples=1).fit([(torch.randn(5, 4, 2), torch.zeros(5, 4).long())])


def test_weights_of_rows_count_in_the_squared_error(model: pb.SupervisedModel) -> None:
    """Rows of weight 0 may as well not be there: the same head, whatever their labels."""
    guide = guides.MAP(model)
    weight = (torch.arange(len(X)) % 2).float()
    nets = []
    for shift in (0, 1):
        y = torch.where(weight > 0, Y, (Y + shift) % 3)
        net = ConfidNet(model, guide, hidden=(5,), num_samples=1)
        nets.append(net.fit([(X, y, weight)], epochs=4, lr=1e-2, validation=LOADER, seed=0).confidence(X))
    assert torch.equal(*nets)


def test_few_errors_are_said(model: pb.SupervisedModel) -> None:
    guide = guides.MAP(model)
    right = pb.predict(model, guide, X, 1).predicted
    with pytest.warns(UserWarning, match=r"^ConfidNet: only 0 of the 540 answers it learns from are wrong"):
        net = ConfidNet(model, guide, hidden=(5,), num_samples=1).fit([(X, right)], **FAST)
    assert net.history[0].validation_ap_errors is None
    held = [(X[:50], right[:50])]
    with pytest.warns(UserWarning, match=r"^ConfidNet: no answer of the validation data is wrong"):
        ConfidNet(model, guide, hidden=(5,), num_samples=1).fit(LOADER, validation=held, **FAST)


def test_a_loader_that_augments_is_read_in_several_passes(model: pb.SupervisedModel) -> None:
    class Augmented:
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            yield X + 0.1 * torch.randn_like(X), Y

    net = ConfidNet(model, guides.MAP(model), hidden=(5,), num_samples=1)
    net.fit(Augmented(), passes=3, validation=LOADER, **FAST)
    assert int(net.num_data) == 3 * len(X)
    with pytest.raises(ValueError, match=r"^validation: the loader is read several times"):
        net.fit(Augmented(), passes=3, **FAST)
    with pytest.raises(ValueError, match=r"^passes: the loader is an iterator"):
        net.fit(iter(LOADER), passes=3, validation=LOADER, **FAST)


def test_what_it_cannot_use_is_refused_by_name(model: pb.SupervisedModel) -> None:
    guide = guides.MAP(model)
    with pytest.raises(RuntimeError, match=r"^ConfidNet: it is not fitted yet; call fit\(loader\)"):
        ConfidNet(model, guide).confidence(X)
    with pytest.raises(ValueError, match=r"^last_layer: the network has no such layer 'nine'; it has '0', '3'"):
        ConfidNet(model, guide, last_layer="nine")
    with pytest.raises(ValueError, match=r"^guide: "):
        ConfidNet(model, guides.MAP(model_of(nn.Linear(2, 3))))
    real = pb.SupervisedModel(nn.Linear(2, 2), pb.likelihoods.HeteroscedasticNormal(), NORMAL, num_data=10)
    with pytest.raises(TypeError, match=r"^prediction: expected class probabilities"):
        ConfidNet(real, guides.MAP(real), num_samples=1).fit([(X, X[:, :1])])
    net = ConfidNet(model, guide, hidden=(5,), num_samples=1)
    with pytest.raises(ValueError, match=r"^loader: 1 data are too few"):
        net.fit([(X[:1], Y[:1])])
    with pytest.raises(ValueError, match=r"^loader: it yielded no batch"):
        net.fit([])
    with pytest.raises(ValueError, match=r"^validation: it yielded no batch"):
        net.fit(LOADER, validation=[])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net.fit(LOADER, **FAST)
    with pytest.raises(ValueError, match=r"^data: "):
        net.confidence([])
