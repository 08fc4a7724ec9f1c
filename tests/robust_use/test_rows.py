"""Predictions are those of the network that was trained: one call for a batch, whatever its rows are."""

from __future__ import annotations

import functools
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader, TensorDataset

from pyrobnn import fit, likelihoods
from pyrobnn.guides import MAP, MeanField
from pyrobnn.model.bayesianize import bayesianize
from pyrobnn.model.draws import Draws
from pyrobnn.model.supervised import SupervisedModel, run_network
from pyrobnn.prediction import predict, predict_batches

NORMAL = dist.Normal(0.0, 1.0)


class Net(nn.Module):
    """A layer, and any function of its outputs and further inputs."""

    def __init__(self, function: Any, inputs: int = 3) -> None:
        super().__init__()
        self.layer, self.function = nn.Linear(inputs, 4), function

    def forward(self, x: Tensor, *others: Any) -> Tensor:
        return self.function(self.layer(x), *others)


class Attention(nn.Module):
    """A transformer's layer with time first, whose mask ``[T, T]`` is a second input."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.layer(x, src_mask=mask).mean(0)


class Bags(nn.Module):
    """Bags of words in one long vector, and where each begins."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(20, 4, mode="sum")

    def forward(self, ids: Tensor, offsets: Tensor) -> Tensor:
        return self.bag(ids, offsets)


def graph(h: Tensor, edges: Tensor) -> Tensor:
    source, target = edges
    return h + torch.zeros_like(h).index_add(0, target, h[source])


CASES: dict[str, tuple[nn.Module, Any]] = {
    "mean of the batch": (Net(lambda h: h - h.mean(0)), torch.randn(600, 3)),
    "batch statistics": (Net(nn.BatchNorm1d(4, track_running_stats=False)), torch.randn(600, 3)),
    "attention over the batch": (Net(lambda h: (h @ h.T).softmax(-1) @ h), torch.randn(300, 3)),
    "edges": (Net(graph), (torch.randn(60, 3), torch.randint(0, 60, (2, 300)))),
    "as many edges as nodes": (Net(lambda h, e: graph(h, e.T)), (torch.randn(300, 3), torch.randint(0, 300, (300, 2)))),
    "long table": (Net(lambda h, table: h + table.mean(0)), (torch.randn(300, 3), torch.randn(1000, 4))),
    "table as long as the batch": (Net(lambda h, table: h + table.mean(0)), (torch.randn(300, 3), torch.randn(300, 4))),
    "table for short batches": (Net(lambda h, table: h + table.mean(0)), (torch.randn(5, 3), torch.randn(5, 4))),
    "time first": (Net(lambda h: h.cumsum(0)[-1]), torch.randn(300, 5, 3)),
    "time first, all of it": (Net(lambda h: h.cumsum(0)), torch.randn(300, 5, 3)),
    "mask of times": (Attention(), (torch.randn(260, 2, 4), torch.randn(260, 260))),
    "offsets": (Bags(), (torch.randint(0, 20, (900,)), torch.arange(0, 900, 3))),
    "as many offsets as words": (Bags(), (torch.randint(0, 20, (300,)), torch.arange(300))),
    "squeezed, one row more than a part": (Net(lambda h: h.unsqueeze(1).squeeze()), torch.randn(257, 3)),
    "optional entry": (Net(lambda h, _, b: h + b), (torch.randn(300, 3), None, torch.randn(300, 4))),
    "independent rows": (Net(torch.tanh), torch.randn(600, 3)),
}


def expected(model: SupervisedModel, draws: Draws, x: Any) -> Tensor:
    """Mean probabilities from one call of the network for each draw."""
    network = model.net.network.eval()  # type: ignore[union-attr]
    found = []
    for index in range(2):
        weights = {name.removeprefix("net."): value[index] for name, value in draws.items()}
        with torch.no_grad():
            outputs = run_network(_Called(network, weights), x)
        found.append(outputs.softmax(-1))
    return torch.stack(found).mean(0)


class _Called(nn.Module):
    def __init__(self, network: nn.Module, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.call = functools.partial(functional_call, network, weights)

    def forward(self, *args: Any) -> Tensor:
        return self.call(args)


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's, of EmbeddingBag under vmap
@pytest.mark.parametrize("method", ["loop", "vmap"])
@pytest.mark.parametrize("name", CASES)
def test_predictions_are_those_of_one_call(name: str, method: Any) -> None:
    """Two draws; as one input, and as a batch of a loader."""
    net, x = CASES[name]
    torch.manual_seed(0)
    model = SupervisedModel(net, likelihoods.Categorical(), NORMAL, num_data=10)
    draws = MeanField(model, init_scale=0.3).sample(2)
    wanted = expected(model, draws, x)
    for data in (x, [(x, None)] if isinstance(x, tuple) else [x]):
        found = predict(model, draws, data, 2, method=method).mean
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_long_inputs_of_interacting_rows_are_one_call() -> None:
    """More rows than any block: the only call that is whole is that of all."""
    seen = []

    def centered(h: Tensor) -> Tensor:
        seen.append(len(h))
        return h - h.mean(0)

    model = SupervisedModel(Net(centered), likelihoods.Categorical(), NORMAL, num_data=10)
    draws = MAP(model).sample(2)
    seen.clear()
    predict(model, draws, torch.randn(9000, 3), 2)
    assert seen.count(9000) == 2


def test_batches_keep_their_length() -> None:
    """A loader's batches are one call each, as in training; declared parts are smaller."""
    seen = []

    def noted(h: Tensor) -> Tensor:
        seen.append(len(h))
        return h

    model = SupervisedModel(Net(noted), likelihoods.Categorical(), NORMAL, num_data=10)
    draws = MAP(model).sample(1)
    data = DataLoader(TensorDataset(torch.randn(130, 3)), batch_size=60)
    seen.clear()
    whole = predict(model, draws, data, 1).mean
    assert seen == [60, 60, 10]
    seen.clear()
    parts = predict(model, draws, data, 1, batch_size=25).mean
    assert seen == [20, 20, 20, 20, 20, 20, 10]
    torch.testing.assert_close(parts, whole)


def test_a_batch_of_one_row_under_squeeze_is_refused() -> None:
    """Four classes of one row would be four rows."""
    model = SupervisedModel(Net(torch.squeeze), likelihoods.Normal(0.3), NORMAL, num_data=10)
    draws = MAP(model).sample(2)
    assert predict(model, draws, torch.randn(2, 3), 2).mean.shape == (2, 4)
    for method in ("loop", "vmap"):
        with pytest.raises(ValueError, match=r"^net: it returned outputs of shape \[4\] for one row"):
            predict(model, draws, torch.randn(1, 3), 2, method=method)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------- models of one's own


class Own(PyroModule):
    """A Pyro model whose input is a pair or a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.net = bayesianize(nn.Linear(3, 1), NORMAL)
        self.num_data = 20

    def forward(self, x: Any, y: Tensor | None = None) -> Tensor:
        a, b = (x["a"], x["b"]) if isinstance(x, dict) else x
        outputs = (self.net(a) + b).squeeze(-1)
        with pyro.plate("data", 20):
            pyro.sample("y", dist.Normal(outputs, 0.3), obs=y)
        return outputs


@pytest.mark.parametrize("kind", ["tuple", "dict"])
def test_own_models_are_called_as_in_training(kind: str) -> None:
    torch.manual_seed(0)
    a, b, y = torch.randn(20, 3), torch.randn(20, 1), torch.randn(20)
    x: Any = (a, b) if kind == "tuple" else {"a": a, "b": b}
    model = Own()
    guide = MAP(model, example=(x, y))
    fit(model, guide, [(x, y)], epochs=2, progress=False)
    weights = guide.sample(1)
    wanted = (a @ weights["net.weight"][0].T + weights["net.bias"][0] + b).squeeze(-1)
    for data in (x, [(x, y)]):
        found = predict(model, guide, data, 3, likelihood=likelihoods.Normal(0.3)).mean
        torch.testing.assert_close(found, wanted)


# --------------------------------------------------------------------------------------- batches and what is in them


def classifier(net: nn.Module | None = None) -> tuple[SupervisedModel, MAP]:
    torch.manual_seed(0)
    model = SupervisedModel(net or nn.Linear(3, 2), likelihoods.Categorical(), NORMAL, num_data=8)
    return model, MAP(model)


def test_batches_of_several_lengths_are_predicted_one_by_one() -> None:
    model, guide = classifier()
    data = [(torch.randn(4, length, 3), torch.zeros(4, length).long()) for length in (5, 7)]
    fit(model, guide, data, epochs=1, progress=False)
    shapes = [tuple(prediction.mean.shape) for prediction, _ in predict_batches(model, guide, data, 2)]
    assert shapes == [(4, 5, 2), (4, 7, 2)]
    with pytest.raises(ValueError, match=r"^data: .*\[4, 5, 2\] and \[4, 7, 2\].*predict_batches"):
        predict(model, guide, data, 2)


def test_inputs_that_are_not_finite_are_refused() -> None:
    model, guide = classifier()
    x = torch.randn(6, 3)
    x[4, 1] = float("nan")
    for data in (x, {"input": x}, [x], [(torch.ones(2, 3), torch.zeros(2)), (x, torch.zeros(6))]):
        with pytest.raises(ValueError, match=r"^x: batch [01] holds NaN .*row 4"):
            predict(model, guide, data, 2)


def test_arrays_are_refused_in_one_sentence() -> None:
    model, guide = classifier()
    array = torch.randn(6, 3).numpy()
    for data in (array, (array,), {"input": array}, [(array, torch.zeros(6))]):
        with pytest.raises(TypeError, match=r"^data: .*ndarray.*torch.as_tensor"):
            predict(model, guide, data, 2)


class Masked(nn.Module):
    """The mean of embeddings where a mask, if there is one, is true."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(20, 4), nn.Linear(4, 2)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        embedded = self.embedding(ids)
        if mask is None:
            return self.head(embedded.mean(1))
        weight = mask.to(embedded).unsqueeze(-1)
        return self.head((weight * embedded).sum(1) / weight.sum(1))


@pytest.mark.parametrize("kind", [torch.bool, torch.long, torch.float])
def test_a_mask_is_not_taken_for_targets(kind: torch.dtype) -> None:
    model, guide = classifier(Masked())
    ids, mask = torch.randint(0, 20, (12, 5)), torch.arange(5) < torch.randint(1, 6, (12, 1))
    loader = DataLoader(TensorDataset(ids, mask.to(kind)), batch_size=4)
    with pytest.raises(ValueError, match=r"^data: a batch of two entries is read as \(x, y\).*\[4, 5\].*batch=lambda"):
        predict(model, guide, loader, 2)
    found = predict(model, guide, loader, 2, batch=lambda raw: (tuple(raw), None))
    torch.testing.assert_close(found.mean, predict(model, guide, (ids, mask), 2).mean)
    assert found.targets is None
    assert not torch.allclose(found.mean, predict(model, guide, ids, 2).mean)


def test_labels_are_still_targets_where_a_network_takes_more() -> None:
    model, guide = classifier(Masked())
    ids, labels = torch.randint(0, 20, (12, 5)), torch.randint(0, 40, (12,))  # labels of other data may be any
    found = predict(model, guide, DataLoader(TensorDataset(ids, labels), batch_size=4), 2)
    assert torch.equal(found.targets, labels)


def test_targets_have_as_many_rows_as_outputs() -> None:
    model, guide = classifier()
    with pytest.raises(ValueError, match=r"^data: a batch has 5 targets, but .* 6 rows"):
        predict(model, guide, [(torch.randn(6, 3), torch.zeros(5))], 2)
