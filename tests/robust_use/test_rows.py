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

from pyrobnn import fit, likelihoods, recalibrate_batch_norm
from pyrobnn.core.batches import Batch
from pyrobnn.diagnostics import check, to_arviz
from pyrobnn.diagnostics._evaluation import Rows, evaluate
from pyrobnn.diagnostics.function_space import function_values
from pyrobnn.estimators import PerGroup
from pyrobnn.guides import MAP, MeanField
from pyrobnn.model.bayesianize import bayesianize
from pyrobnn.model.draws import Draws
from pyrobnn.model.supervised import SupervisedModel, run_network
from pyrobnn.objectives import ELBO
from pyrobnn.objectives.regularized import perturbed
from pyrobnn.prediction import Predictive, predict, predict_batches
from pyrobnn.robustness import FGSM

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
        with pytest.raises(TypeError, match=r"^data: the inputs .*ndarray.*torch.as_tensor"):
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


# ------------------------------------------------------------------------------------------ others that run networks


def centered(num_data: int = 40) -> tuple[SupervisedModel, Draws, Tensor, Tensor, Tensor]:
    """A network whose rows interact, four draws, 40 data, and the outputs ``[4, 40]`` of one call for each draw."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 1), nn.BatchNorm1d(1, affine=False, track_running_stats=False), nn.Flatten(0))
    model = SupervisedModel(net, likelihoods.Normal(0.5), NORMAL, num_data=num_data)
    draws = MeanField(model, init_scale=0.5).sample(4)
    x, y = torch.randn(40, 3), torch.randn(40)
    h = (x @ draws["net.0.weight"].mT + draws["net.0.bias"].unsqueeze(1)).squeeze(-1)
    outputs = (h - h.mean(1, keepdim=True)) / (h.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    return model, draws, x, y, outputs


@pytest.mark.parametrize("num_data", [40, 13], ids=["as many data", "fewer data"])
def test_arviz_holds_the_log_likelihood_of_one_call(num_data: int) -> None:
    """Also where the model was built for fewer data than it is shown now."""
    model, draws, x, y, outputs = centered(num_data)
    found = to_arviz(model, draws, x, y, groups=["log_likelihood", "posterior_predictive"])
    wanted = dist.Normal(outputs, 0.5).log_prob(y)
    values = torch.as_tensor(found["log_likelihood"]["y"].to_numpy())[0]
    torch.testing.assert_close(values.float(), wanted, rtol=1e-4, atol=1e-4)
    assert found["posterior_predictive"]["y"].shape == (1, 4, 40)
    assert model.num_data == num_data
    assert to_arviz(model, draws, x, groups=["posterior_predictive"])["posterior_predictive"]["y"].shape == (1, 4, 40)
    parts = to_arviz(model, draws, x, y, groups=["log_likelihood"], batch_size=10)
    assert not torch.allclose(torch.as_tensor(parts["log_likelihood"]["y"].to_numpy())[0].float(), wanted, atol=0.1)


def test_function_space_compares_outputs_of_one_call() -> None:
    model, draws, x, _, outputs = centered()
    found = function_values(model, draws, (x,), {})
    torch.testing.assert_close(torch.as_tensor(found)[0].float(), outputs, rtol=1e-4, atol=1e-4)


def test_check_runs_the_batches_of_the_loader() -> None:
    """The mean log likelihood of batches of 20 rows, by hand; the network standardizes each by itself."""
    model, _, x, y, _ = centered()
    guide = MAP(model)
    weights = guide.sample(1)
    h = (x @ weights["net.0.weight"][0].T + weights["net.0.bias"][0]).reshape(2, 20)
    outputs = ((h - h.mean(1, keepdim=True)) / (h.var(1, correction=0, keepdim=True) + 1e-5).sqrt()).flatten()
    loader = [(x[:20], y[:20]), (x[20:], y[20:])]
    run = evaluate(model, guide, Rows(model, guide, loader, 100, "loader"), 25)
    torch.testing.assert_close(run.by_datum.float(), dist.Normal(outputs, 0.5).log_prob(y), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["classes", "numbers"])
def test_check_takes_batches_of_several_lengths(kind: str) -> None:
    torch.manual_seed(0)
    is_class = kind == "classes"
    likelihood = likelihoods.Categorical() if is_class else likelihoods.Normal(0.5)
    model = SupervisedModel(nn.Linear(3, 2), likelihood, NORMAL, num_data=8)
    guide = MeanField(model)
    data = [(torch.randn(4, n, 3), torch.randint(0, 2, (4, n)) if is_class else torch.randn(4, n, 2)) for n in (3, 5)]
    fit(model, guide, data, epochs=1, progress=False)
    report = check(model, guide, data, num_samples=30)
    assert report["calibration"].value is not None
    run = evaluate(model, guide, Rows(model, guide, data, 100, "loader"), 25)
    labels = 4 * 3 + 4 * 5
    assert run.targets is not None and run.targets.shape == ((labels,) if is_class else (2 * labels,))
    assert run.by_datum.shape == (8,)


def test_attacks_follow_the_whole_batch() -> None:
    """The gradient of the sum of log densities through one call, by autograd."""
    model, draws, x, y, _ = centered()
    x, y = x.repeat(8, 1) + 0.1 * torch.randn(320, 3), y.repeat(8)
    moved = FGSM(0.1)(model, draws.at(slice(0, 1)), x, y, num_samples=1)
    leaf = x.clone().requires_grad_()
    h = (leaf @ draws["net.0.weight"][0].T + draws["net.0.bias"][0]).squeeze(-1)
    outputs = (h - h.mean()) / (h.var(correction=0) + 1e-5).sqrt()
    (slope,) = torch.autograd.grad(dist.Normal(outputs, 0.5).log_prob(y).sum(), leaf)
    taken = (moved != x).any(1)  # not where one step lowers the loss of a row
    assert float(taken.float().mean()) > 0.5
    assert float((torch.sign(x - moved) == slope.sign())[taken].float().mean()) > 0.99


def test_arrays_are_refused_by_every_call_of_a_network() -> None:
    model, _, x, y, _ = centered()
    guide = MeanField(model)
    calls: list[Any] = [
        lambda: to_arviz(model, guide, x.numpy(), y, num_samples=2),
        lambda: fit(model, guide, [(x.numpy(), y)], epochs=1, progress=False),
        lambda: check(model, guide, [(x.numpy(), y)], num_samples=30),
        lambda: Predictive(model, guide=guide, num_samples=2)(x.numpy()),
        lambda: predict(model, guide, x.numpy(), 2),
    ]
    for call in calls:
        with pytest.raises(TypeError, match=r"^(x|loader|data): the inputs.* hold a numpy.ndarray of float32; convert"):
            call()


def test_batches_that_share_a_table_are_not_joined() -> None:
    table, x, y = torch.randn(4, 3), torch.randn(8, 3), torch.randn(8)
    shared = [Batch.of((x[:4], table), y[:4]), Batch.of((x[4:], table), y[4:])]
    with pytest.raises(ValueError, match=r"^batch: batches whose inputs share one tensor, such as a table"):
        Batch.join(shared)
    assert Batch.join([Batch.of(x, y)] * 2).rows == 16


def test_groups_do_not_cut_keyword_arguments() -> None:
    model, _, x, y, _ = centered()
    with pytest.raises(ValueError, match=r"^estimator: per_group cuts the model's positional arguments"):
        ELBO(estimator=PerGroup(2)).loss(model, MAP(model), x, y=y)


def test_noise_is_added_to_one_tensor_of_numbers() -> None:
    with pytest.raises(TypeError, match=r"^auxiliary: perturbed\(\) adds noise to one tensor .* got a tuple"):
        perturbed(0.1)((torch.ones(2), torch.ones(2)))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"got a tensor of torch.int64"):
        perturbed(0.1)(torch.ones(2).long())


@pytest.mark.parametrize(
    ("data", "kind", "match"),
    [
        ([torch.randn(4, 3).numpy()], TypeError, r"^data: the inputs hold a numpy.ndarray of float32"),
        ([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], TypeError, r"^data: expected a loader of inputs .* got a batch of list"),
        ([[1.0, 2.0], [3.0, 4.0]], TypeError, r"^data: expected a loader of inputs .* got a batch of list"),
        (torch.randn(3), ValueError, r"^net: Categorical expects outputs \[B, C\]"),
        (None, TypeError, r"^data: expected inputs .* got NoneType"),
        (torch.randn(0, 3), ValueError, r"^data: it holds no inputs"),
    ],
    ids=["array", "numbers", "pairs of numbers", "one row without a batch", "nothing", "no rows"],
)
def test_what_is_no_data_is_refused(data: Any, kind: type[Exception], match: str) -> None:
    model, guide = classifier()
    with pytest.raises(kind, match=match):
        predict(model, guide, data, 2)


def test_a_reader_is_a_function() -> None:
    model, guide = classifier()
    with pytest.raises(TypeError, match=r"^batch: expected a function from a batch .*, got 'x'"):
        predict(model, guide, [torch.randn(4, 3)], 2, batch="x")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^batch: expected the function to return"):
        predict(model, guide, [torch.randn(4, 3)], 2, batch=lambda raw: raw)


def test_recalibration_reads_batches_as_prediction_does() -> None:
    """The mask is not left out, and the function that reads it gives the statistics of masked inputs."""

    class Normed(Masked):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2))  # type: ignore[assignment]

    model, guide = classifier(Normed())
    ids, mask = torch.randint(0, 20, (12, 5)), torch.arange(5) < torch.randint(1, 6, (12, 1))
    with pytest.raises(ValueError, match=r"^loader: a batch of two entries is read as \(x, y\)"):
        recalibrate_batch_norm(model, guide, [(ids, mask)])
    recalibrate_batch_norm(model, guide, [(ids, mask)], batch=lambda raw: (raw, None))
    embedded = guide.sample(1)["net.embedding.weight"][0][ids] * mask.unsqueeze(-1)
    wanted = (embedded.sum(1) / mask.sum(1, keepdim=True)).mean(0)
    torch.testing.assert_close(model.net.network.head[0].running_mean, wanted)  # type: ignore[union-attr]


def test_several_inputs_with_weights_are_read() -> None:
    """What a DataLoader's collate function makes of ``((a, b), y, weight)``: lists."""
    a, b = torch.randn(4, 3), torch.randn(4, 4)
    model, guide = classifier(Net(lambda h, b: h + b))
    found = predict(model, guide, [[[a, b], torch.zeros(4).long(), torch.ones(4)]], 2)
    torch.testing.assert_close(found.mean, predict(model, guide, (a, b), 2).mean)
