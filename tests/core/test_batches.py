"""Reading what loaders yield: forms, refusals, parts, and that each of them trains the same model."""

from __future__ import annotations

import functools
import itertools
from collections import UserDict
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import DataLoader, TensorDataset

from pyrobnn import fit, likelihoods
from pyrobnn.core.batches import TARGET_NAMES, Batch
from pyrobnn.guides import MAP, MeanField
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.objectives import ELBO
from tests.training.networks import same, tensors

quiet = functools.partial(fit, progress=False)
X, Y = torch.randn(6, 3, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 0, 1, 2])
WEIGHT = torch.tensor([0.5, 2.0, 0.0, 1.0, 1.5, 3.0])


class Labeled(NamedTuple):
    x: Tensor
    length: Tensor
    label: Tensor


class Weighted(NamedTuple):
    x: Tensor
    weight: Tensor
    y: Tensor


class Inputs(NamedTuple):
    ids: Tensor
    mask: Tensor


# -------------------------------------------------------------------------------------------------------- forms


@pytest.mark.parametrize("raw", [(X, Y), [X, Y], Batch.of(X, Y)], ids=["tuple", "list", "Batch"])
def test_a_pair(raw: Any) -> None:
    batch = Batch.read(raw)
    assert batch.args == (X, Y)
    assert (batch.inputs, batch.targets, batch.rows, batch.weight, batch.kwargs) == (X, Y, 6, None, {})


def test_a_triple_has_weights() -> None:
    batch = Batch.read((X, Y, WEIGHT))
    assert batch.args == (X, Y, WEIGHT)
    assert batch.weight is WEIGHT


@pytest.mark.parametrize("name", TARGET_NAMES)
@pytest.mark.parametrize("kind", [dict, UserDict])
def test_a_mapping_has_the_targets_under_a_known_name(name: str, kind: Any) -> None:
    batch = Batch.read(kind({"input_ids": X, name: Y, "attention_mask": None}))
    assert batch.inputs == {"input_ids": X, "attention_mask": None}
    assert batch.targets is Y


def test_a_namedtuple_is_read_by_the_names_of_its_fields() -> None:
    batch = Batch.read(Labeled(X, Y + 1, Y))
    assert batch.inputs == (X, batch.inputs[1])
    assert batch.targets is Y
    batch = Batch.read(Weighted(X, WEIGHT, Y))
    assert (batch.inputs, batch.targets, batch.weight) == (X, Y, WEIGHT)
    batch = Batch.read((Inputs(X, X), Y))
    assert type(batch.inputs) is Inputs


@pytest.mark.parametrize(
    "reader",
    [
        lambda raw: (raw.nodes, raw.labels),
        lambda raw: [raw.nodes, raw.labels],
        lambda raw: Batch.of(raw.nodes, raw.labels),
    ],
)
def test_a_reader_reads_anything_else(reader: Any) -> None:
    batch = Batch.read(SimpleNamespace(nodes=X, labels=Y), reader=reader)
    assert (batch.inputs, batch.targets, batch.rows) == (X, Y, 6)


def test_a_batch_moves_with_all_its_tensors() -> None:
    read = Batch.read(({"a": X}, Y, WEIGHT), "meta")
    for batch in (read, Batch.of({"a": X}, Y, WEIGHT).to("meta"), Batch.read(Batch.of({"a": X}, Y, WEIGHT), "meta")):
        assert batch.args[0]["a"] is batch.inputs["a"], "moved once"
        assert {batch.inputs["a"].device.type, batch.device.type, batch.weight.device.type} == {"meta"}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        (X, r"^loader: expected batches \(x, y\), .* got a Tensor; pass batch="),
        ({"x": X}, r"got a dict with 'x'; pass batch="),
        ({"labels": Y, "y": Y}, r"which of 'labels', 'y' in a batch are the targets\? Pass batch="),
        ((X, Y, Y), r"the third entry .* floating-point tensor \[6\], but got a tensor of torch.int64"),
        ((X, Y, [1.0]), r"the third entry .* but got a list"),
        ((X, "labels"), r"the targets y of a batch are a str, expected a tensor"),
        ((X.numpy(), Y), r"the inputs of a batch hold a numpy.ndarray of float32; convert it by torch.as_tensor"),
        (({"a": [np.zeros(2)]}, Y), r"the inputs of a batch hold a numpy.ndarray"),
        ((X, Y.numpy()), r"the targets of a batch hold a numpy.ndarray of int64"),
        (pack_sequence([X]), r"got a PackedSequence"),
    ],
)
def test_what_cannot_be_read_is_refused(raw: Any, match: str) -> None:
    with pytest.raises(TypeError, match=match):
        Batch.read(raw)


def test_rows_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the weights of a batch must have shape \[6\].* got \[5\]"):
        Batch.read((X, Y, WEIGHT[:5]))
    with pytest.raises(ValueError, match=r"the targets of a batch have different numbers of rows, \[4, 6\]"):
        Batch.read((X, (Y, Y[:4])))
    with pytest.raises(ValueError, match=r"^validation: the targets y of a batch are a single number"):
        Batch.read((X[0], Y[0]), argument="validation")


@pytest.mark.parametrize("result", [X, (X,), (X, Y, WEIGHT, 1), None])
def test_a_reader_that_returns_something_else_is_refused(result: Any) -> None:
    with pytest.raises(TypeError, match=r"^batch: expected the function to return a Batch, \(inputs, targets\)"):
        Batch.read(X, reader=lambda raw: result)


# -------------------------------------------------------------------------------------------------------- parts


@pytest.mark.parametrize("index", [slice(2, 5), torch.tensor([2, 3, 4])])
def test_a_part_has_the_rows_of_everything(index: Any) -> None:
    part = Batch.of(Inputs(X, X), Y, WEIGHT).part(index)
    assert part.rows == 3
    assert type(part.inputs) is Inputs
    for found, expected in ((part.inputs.mask, X), (part.targets, Y), (part.weight, WEIGHT), (part.args[1], Y)):
        assert torch.equal(found, expected[2:5])


def test_parts_join_to_the_whole() -> None:
    batch = Batch.of({"a": X, "b": None}, Y, WEIGHT)
    joined = Batch.join([batch.part(slice(2)), batch.part(slice(2, None))])
    assert joined.rows == 6
    assert joined.inputs["b"] is None
    assert torch.equal(joined.inputs["a"], X)
    assert torch.equal(joined.args[2], WEIGHT)
    with pytest.raises(TypeError, match="not made alike"):
        Batch.join([Batch.of(X, Y, WEIGHT), Batch.of(X, Y)])


def test_a_batch_that_is_not_made_of_rows_is_not_cut() -> None:
    with pytest.raises(ValueError, match="a PackedSequence in it does not have one entry for each of the 6 rows"):
        Batch.of(pack_sequence([X] * 6), Y).part(slice(2))


# ------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: (x,), lambda x: {"a": [X, x]}, lambda x: Inputs(X, x)])
def test_inputs_that_are_not_finite_are_found_in_any_tree(wrap: Any) -> None:
    bad = X.clone()
    bad[4, 1] = float("nan")
    with pytest.raises(ValueError, match=r"^x: batch 7 holds NaN .* in 1 rows \(the first is row 4\)"):
        Batch.of(wrap(bad), Y).check(7)
    Batch.of(wrap(X), Y).check(7)


def test_an_additive_attention_mask_may_be_minus_infinity() -> None:
    Batch.of((X, nn.Transformer.generate_square_subsequent_mask(6)), Y).check(0)
    with pytest.raises(ValueError, match=r"^x: batch 0"):
        Batch.of((X, torch.tensor([0.5, -float("inf")])), Y).check(0)


@pytest.mark.parametrize("wrong", [-0.5, float("nan"), float("inf")])
def test_weights_must_be_finite_and_at_least_zero(wrong: float) -> None:
    weight = WEIGHT.clone()
    weight[3] = wrong
    with pytest.raises(ValueError, match=r"^weight: expected finite weights of at least 0, but that of row 3 is"):
        Batch.of(X, Y, weight).check(0)


# ----------------------------------------------------------------------------------------------------- training


class Encoder(nn.Module):
    """A network of Hugging Face's manners: keyword arguments, an object that holds logits."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.embed, self.head = nn.Embedding(5, 4), nn.Linear(4, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        mask = torch.ones(input_ids.shape) if attention_mask is None else attention_mask
        mean = (self.embed(input_ids) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return SimpleNamespace(logits=self.head(mean), hidden=mean)


IDS = torch.randint(5, (6, 7), generator=torch.Generator().manual_seed(2))
MASK = (torch.arange(7) < torch.tensor([7, 3, 5, 2, 4, 6])[:, None]).float()


class EncoderInputs(NamedTuple):
    input_ids: Tensor
    attention_mask: Tensor


def trained(batches: Any, **options: Any) -> list[Tensor]:
    """The guide's state and the ELBO after three epochs."""
    model = SupervisedModel(Encoder(), likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=6, output="logits")
    guide = MeanField(model)
    history = quiet(model, guide, batches, epochs=3, seed=0, validation=batches, **options)
    return [*tensors(guide), torch.tensor([*history.elbo, *history.validation])]


@pytest.mark.parametrize(
    ("wrap", "options"),
    [
        (lambda rows: {"input_ids": IDS[rows], "attention_mask": MASK[rows], "labels": Y[rows]}, {}),
        (lambda rows: UserDict(input_ids=IDS[rows], attention_mask=MASK[rows], labels=Y[rows]), {"device": "cpu"}),
        (lambda rows: ({"attention_mask": MASK[rows], "input_ids": IDS[rows]}, Y[rows]), {}),
        (lambda rows: (EncoderInputs(IDS[rows], MASK[rows]), Y[rows]), {"device": "cpu"}),
        (lambda rows: [[IDS[rows], MASK[rows]], Y[rows]], {}),
        (lambda rows: SimpleNamespace(x=(IDS[rows], MASK[rows]), y=Y[rows]), {"batch": lambda raw: (raw.x, raw.y)}),
        (
            lambda rows: (IDS[rows], MASK[rows], Y[rows]),
            {"batch": lambda raw: Batch((), {"x": raw[:2], "y": raw[2]}, raw[:2], raw[2], len(raw[2]))},
        ),
        (lambda rows: ((IDS[rows], MASK[rows]), Y[rows], torch.ones(len(Y[rows]))), {}),
    ],
    ids=["mapping", "UserDict", "dict", "namedtuple", "lists", "object", "kwargs", "weights of 1"],
)
def test_all_forms_of_a_batch_train_the_same_model_to_the_last_bit(wrap: Any, options: Any) -> None:
    parts = [slice(0, 4), slice(4, 6)]
    expected = trained([((IDS[rows], MASK[rows]), Y[rows]) for rows in parts])
    assert same(trained([wrap(rows) for rows in parts], **options), expected)


def test_an_optional_input_may_be_none() -> None:
    expected = trained([((IDS, torch.ones(6, 7)), Y)])
    assert same(trained([{"input_ids": IDS, "attention_mask": None, "labels": Y}]), expected)
    assert same(trained([((IDS, None), Y)]), expected)


class Recurrent(nn.Module):
    """Reads a packed sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(3, 4), nn.Linear(4, 3)

    def forward(self, x: PackedSequence) -> Tensor:
        return self.head(self.gru(x)[1][0])


def test_a_packed_sequence_is_one_argument() -> None:
    """One packed batch trains as its two halves do: the ELBO of the epoch at a fixed point is the same."""
    sequences = [X[: 6 - i] for i in range(6)]
    model = SupervisedModel(Recurrent(), likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=6)
    values = []
    for parts in ([slice(6)], [slice(4), slice(4, 6)]):
        batches = [(pack_sequence(sequences[part]), Y[part]) for part in parts]
        values.append(quiet(model, MAP(model), batches, epochs=1, lr=1e-12).elbo[0])
    assert values[0] == pytest.approx(values[1], rel=1e-5)


class Graph:
    """Nodes and the neighbor of each; it moves itself, and has as many targets as nodes."""

    def __init__(self, nodes: Tensor, neighbors: Tensor, y: Tensor) -> None:
        self.nodes, self.neighbors, self.y = nodes, neighbors, y

    def to(self, device: Any) -> Graph:
        return Graph(self.nodes.to(device), self.neighbors.to(device), self.y.to(device))


class GraphNetwork(nn.Module):
    """Averages each node with its neighbor."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.layer = nn.Linear(3, 3)

    def forward(self, graph: Any, neighbors: Tensor | None = None) -> Tensor:
        nodes, others = (graph.nodes, graph.neighbors) if neighbors is None else (graph, neighbors)
        return self.layer(0.5 * (nodes + nodes[others]))


def test_a_graph_is_one_argument_or_several() -> None:
    neighbors = torch.tensor([3, 0, 5, 1, 2, 4])
    states = []
    for raw, options in (
        (((X, neighbors), Y), {}),
        (Graph(X, neighbors, Y), {"batch": lambda graph: (graph, graph.y), "device": "cpu"}),
        ((0.5 * (X + X[neighbors]), Y), {}),
    ):
        net = nn.Linear(3, 3) if isinstance(raw, tuple) and isinstance(raw[0], Tensor) else GraphNetwork()
        model = SupervisedModel(net, likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=6)
        guide = MAP(model, "prior_mean")
        states.append([torch.tensor(quiet(model, guide, [raw], epochs=3, **options).elbo), *tensors(guide)])
    assert same(states[0], states[1])
    for found, expected in zip(states[0], states[2], strict=True):
        torch.testing.assert_close(found, expected)


# -------------------------------------------------------------------------------------- ragged batches, N and rows


def point() -> tuple[SupervisedModel, MAP]:
    """A linear classifier and its point estimate: a draw that is fixed."""
    torch.manual_seed(3)
    model = SupervisedModel(nn.Linear(3, 3), likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=6)
    return model.double(), MAP(model).double()


def value_and_gradient(model: SupervisedModel, guide: MAP, *args: Any) -> tuple[Tensor, Tensor]:
    guide.zero_grad()
    value = ELBO().loss_and_grads(model, guide, *args)
    (gradient,) = (parameter.grad for parameter in guide.parameters())
    assert gradient is not None
    return torch.tensor(value, dtype=torch.float64), gradient.clone()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("size", [4, 5, 6])
def test_a_ragged_epoch_has_the_elbo_and_the_gradient_of_all_data(size: int, weighted: bool) -> None:
    """Weighed by rows, the batches of any one epoch give them exactly; and each step does on average over orders."""
    model, guide = point()
    data = [X.double(), Y, *([WEIGHT.double()] if weighted else [])]
    value, gradient = value_and_gradient(model, guide, *data)
    loader = DataLoader(TensorDataset(*data), batch_size=size)
    parts = [(len(batch[0]), *value_and_gradient(model, guide, *batch)) for batch in loader]
    torch.testing.assert_close(sum(rows * part for rows, part, _ in parts) / 6, value)
    torch.testing.assert_close(sum(rows * part for rows, _, part in parts) / 6, gradient)
    last = parts[-1][0]
    choices = [torch.tensor(rows) for rows in itertools.combinations(range(6), last)]
    found = [value_and_gradient(model, guide, *(tensor[rows] for tensor in data)) for rows in choices]
    torch.testing.assert_close(torch.stack([v for v, _ in found]).mean(), value)
    torch.testing.assert_close(torch.stack([g for _, g in found]).mean(0), gradient)
    history = quiet(model, guide, loader, epochs=1, lr=1e-14)
    assert history.elbo[0] == pytest.approx(-float(value) / 6, rel=1e-9)


def test_the_guide_is_kept_when_data_are_added() -> None:
    """After N has grown, the objective is that of a model built with the new N, and training goes on."""
    model = SupervisedModel(nn.Linear(3, 3), likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=4)
    guide = MeanField(model)
    quiet(model, guide, [(X[:4], Y[:4])], epochs=2)
    with pytest.raises(ValueError, match=r"num_data: the model was built for 4 data, but .* 6 rows"):
        quiet(model, guide, [(X[:3], Y[:3]), (X[3:], Y[3:])], epochs=1)
    model.num_data = 6
    other = SupervisedModel(nn.Linear(3, 3), likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=6)
    twin = MeanField(other)
    twin.load_state_dict(guide.state_dict())
    found, expected = (
        quiet(m, g, [(X[:4], Y[:4]), (X[4:], Y[4:])], epochs=3, seed=1) for m, g in ((model, guide), (other, twin))
    )
    assert found.elbo == expected.elbo
    assert same(tensors(guide), tensors(twin))
    with pytest.raises(ValueError, match="num_data: expected the number of training data, a positive int, got 0"):
        model.num_data = 0
    assert model.num_data == 6
