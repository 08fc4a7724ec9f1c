"""Conversion: with drawn weights a network computes exactly what a plain network holding them computes."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyrobnn.guides.mean_field import MeanField
from pyrobnn.model.bayesianize import BayesianModule, bayesian_modules, bayesianize, buffers, evaluating, frozen_buffers
from pyrobnn.model.priors import horseshoe, latent_scale, learned_scale, lecun, scale_mixture
from pyrobnn.model.substitution import SubstituteMessenger

NORMAL = dist.Normal(0.0, 1.0)
EVERYTHING = [(nn.Module, NORMAL)]  # a class names its parameters: norm layers and frozen parameters too


class First(nn.Module):
    """The first output of a module that returns several."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Tensor) -> Tensor:
        return self.module(*args)[0]


class Tied(nn.Module):
    """A language model whose embedding is its output layer too."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Embedding(5, 3)
        self.decoder = nn.Linear(3, 5)
        self.decoder.weight = self.encoder.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.decoder(self.encoder(tokens))


class Shared(nn.Module):
    """One layer used twice, under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = self.first

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


class Own(nn.Module):
    """Parameters of the network itself, one of them a scalar, and a layer in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(2.0))
        self.matrix = nn.Parameter(torch.randn(3, 2))
        self.layers = nn.ModuleDict({"output": nn.Linear(2, 2)})

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * self.layers["output"](x @ self.matrix)


def tokens(*shape: int) -> Tensor:
    return torch.randint(5, shape)


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, dropout=0.2, batch_first=True)
    return nn.TransformerEncoder(layer, 2)


def small_vit() -> nn.Module:
    return torchvision.models.VisionTransformer(32, 16, 2, 2, hidden_dim=16, mlp_dim=32, num_classes=3)


# name -> (network, inputs); double precision, so that a known answer has many digits
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, ...]]]] = {
    "linear": (lambda: nn.Linear(3, 2), lambda: (torch.randn(4, 3),)),
    "mlp with dropout": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Dropout(0.3), nn.Linear(4, 2)),
        lambda: (torch.randn(4, 3),),
    ),
    "bilinear": (lambda: nn.Bilinear(3, 4, 2), lambda: (torch.randn(5, 3), torch.randn(5, 4))),
    "conv1d": (lambda: nn.Conv1d(2, 3, 3), lambda: (torch.randn(4, 2, 7),)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=2, groups=2), lambda: (torch.randn(2, 4, 7, 7),)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), lambda: (torch.randn(2, 2, 4, 4, 4),)),
    "transposed conv1d": (lambda: nn.ConvTranspose1d(2, 3, 3), lambda: (torch.randn(2, 2, 5),)),
    "transposed conv2d": (
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2),
        lambda: (torch.randn(2, 4, 5, 5),),
    ),
    "transposed conv3d": (lambda: nn.ConvTranspose3d(2, 3, 2), lambda: (torch.randn(2, 2, 3, 3, 3),)),
    "embedding": (lambda: nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2)), lambda: (tokens(4, 6),)),
    "embedding bag": (lambda: nn.EmbeddingBag(5, 3), lambda: (tokens(4, 6),)),
    "rnn": (lambda: First(nn.RNN(3, 4, batch_first=True)), lambda: (torch.randn(2, 5, 3),)),
    "lstm": (lambda: First(nn.LSTM(3, 4, 2, bidirectional=True)), lambda: (torch.randn(5, 2, 3),)),
    "lstm with projection": (lambda: First(nn.LSTM(3, 4, proj_size=2)), lambda: (torch.randn(5, 2, 3),)),
    "gru": (lambda: First(nn.GRU(3, 4, 2, bidirectional=True)), lambda: (torch.randn(5, 2, 3),)),
    "gru cell": (lambda: nn.GRUCell(3, 4), lambda: (torch.randn(2, 3),)),
    "attention": (
        lambda: First(nn.MultiheadAttention(8, 2, batch_first=True)),
        lambda: (torch.randn(2, 5, 8),) * 3,
    ),
    "attention across widths": (
        lambda: First(nn.MultiheadAttention(8, 2, kdim=5, vdim=3, add_bias_kv=True)),
        lambda: (torch.randn(4, 2, 8), torch.randn(6, 2, 5), torch.randn(6, 2, 3)),
    ),
    "transformer encoder": (encoder, lambda: (torch.randn(2, 5, 8),)),
    "batch norm": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)),
        lambda: (torch.randn(4, 2, 4, 4),),
    ),
    "batch norm 1d": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)),
        lambda: (torch.randn(6, 3),),
    ),
    "batch norm 3d": (lambda: nn.BatchNorm3d(2), lambda: (torch.randn(3, 2, 2, 2, 2),)),
    "layer norm": (lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)), lambda: (torch.randn(6, 3),)),
    "group norm": (
        lambda: nn.Sequential(nn.Conv1d(2, 4, 2), nn.GroupNorm(2, 4)),
        lambda: (torch.randn(3, 2, 6),),
    ),
    "weight norm": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)),
        lambda: (torch.randn(4, 3),),
    ),
    "tied": (Tied, lambda: (tokens(4, 6),)),
    "shared layer": (Shared, lambda: (torch.randn(4, 3),)),
    "own parameters": (Own, lambda: (torch.randn(4, 3),)),
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=3), lambda: (torch.randn(2, 3, 32, 32),)),
    "vision transformer": (small_vit, lambda: (torch.randn(2, 3, 32, 32),)),
}


class Case:
    """A network, its conversion with every parameter random, inputs, and weights to put in."""

    def __init__(self, name: str, prior: Any = None) -> None:
        make, inputs = NETWORKS[name]
        self.net = make().double()
        self.inputs = tuple(x.double() if x.is_floating_point() else x for x in inputs())
        self.model = bayesianize(self.net, EVERYTHING if prior is None else prior)
        self.values = {
            site: self.net.get_parameter(site).detach() + 0.1 * torch.randn(self.net.get_parameter(site).shape).double()
            for site in self.model.site_priors
        }

    def plain(self) -> nn.Module:
        """A copy of the network that holds the values."""
        plain = copy.deepcopy(self.net)
        with torch.no_grad():
            for site, value in self.values.items():
                plain.get_parameter(site).copy_(value)
        return plain

    def run(self, net: Callable[..., Tensor]) -> Tensor:
        torch.manual_seed(1)  # dropout
        return net(*self.inputs)


# -------------------------------------------------------------------------------------------- known answers


@pytest.mark.parametrize("name", NETWORKS)
def test_forward_equals_the_plain_network_holding_the_drawn_weights(name: str) -> None:
    case = Case(name)
    plain = case.plain()
    assert set(case.values) == {n for n, _ in case.net.named_parameters()}
    for training in (True, False):
        plain.train(training)
        case.model.train(training)
        with SubstituteMessenger(case.values) as handler:
            outputs = case.run(case.model)
        torch.testing.assert_close(outputs, case.run(plain))
        drawn = [message["name"] for message in handler.latent]
        assert sorted(drawn) == sorted(case.values), "each site is drawn once"
        with torch.no_grad(), SubstituteMessenger(case.values):
            torch.testing.assert_close(case.run(case.model), case.run(plain), msg="without gradients")
    for (buffer, value), (_, expected) in zip(case.model.network.named_buffers(), plain.named_buffers(), strict=True):
        torch.testing.assert_close(value, expected, msg=f"running statistic {buffer}")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_of_the_drawn_weights_are_those_of_the_plain_network(name: str, training: bool) -> None:
    case = Case(name)
    plain = case.plain().train(training)
    case.model.train(training)
    for value in case.values.values():
        value.requires_grad_()
    with SubstituteMessenger(case.values):
        outputs = case.run(case.model)
    direction = torch.randn_like(outputs)
    (outputs * direction).sum().backward()
    (case.run(plain) * direction).sum().backward()
    for site, value in case.values.items():
        expected = plain.get_parameter(site).grad
        torch.testing.assert_close(value.grad, expected, rtol=1e-7, atol=1e-10, msg=lambda m, s=site: f"{s}: {m}")
    assert all(parameter.grad is None for parameter in case.model.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_of_the_caller_is_left_bit_for_bit(name: str) -> None:
    make, _ = NETWORKS[name]
    net = make().double()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    objects = [(n, id(p), p.requires_grad) for n, p in net.named_parameters(remove_duplicate=False)]
    case = Case(name)
    case.net, case.model = net, bayesianize(net, EVERYTHING)
    poutine.trace(case.model).get_trace(*case.inputs)
    for value in case.values.values():
        value.requires_grad_()
    with SubstituteMessenger(case.values):
        case.run(case.model).sum().backward()
    assert [(n, id(p), p.requires_grad) for n, p in net.named_parameters(remove_duplicate=False)] == objects
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(module.training for module in net.modules())
    after = net.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], value) for key, value in before.items())


@pytest.mark.parametrize("name", NETWORKS)
def test_building_a_guide_and_drawing_latents_leave_buffers_and_modes(name: str) -> None:
    case = Case(name)
    kept = [buffer.clone() for buffer in case.model.network.buffers()]
    modes = [module.training for module in case.model.modules()]
    state = torch.get_rng_state()
    MeanField(case.model)
    assert torch.equal(torch.get_rng_state(), state), "nor does it use up random numbers"
    case.model.sample_latents()
    assert all(torch.equal(a, b) for a, b in zip(case.model.network.buffers(), kept, strict=True))
    assert [module.training for module in case.model.modules()] == modes
    assert len(pyro.get_param_store()) == 0


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_written_into_the_network_give_the_same_outputs(name: str) -> None:
    case = Case(name)
    case.model.eval()
    before = {key: value.clone() for key, value in case.model.state_dict().items()}
    with torch.no_grad(), SubstituteMessenger(case.values):
        expected = case.run(case.model)
    with torch.no_grad(), case.model.written(case.values) as network:
        torch.testing.assert_close(case.run(network), expected)
    assert all(torch.equal(value, before[key]) for key, value in case.model.state_dict().items())


def test_where_a_draw_holds_the_weights() -> None:
    """None where they are computed from several sites, or one is missing."""
    plain, computed = bayesianize(nn.Linear(2, 1)), bayesianize(nn.Linear(2, 1), horseshoe())
    names = {"weight": "weight", "bias": "bias"}
    assert plain.names_in(plain.sample_latents()) == names
    assert plain.names_in({"weight": torch.zeros(1, 2)}) is None
    assert computed.names_in({**computed.sample_latents(), "weight": torch.zeros(1, 2)}) is None


def test_draws_are_written_one_after_another() -> None:
    model = bayesianize(nn.Linear(2, 1, bias=False))
    before, x = model.network.weight.detach().clone(), torch.ones(1, 2)
    with torch.no_grad(), model.writing() as write:
        for value in (1.0, 2.0):
            assert write({"weight": torch.full((1, 2), value)})(x).item() == 2 * value
    assert torch.equal(model.network.weight, before)
    with pytest.raises(RuntimeError, match="shapes"), torch.no_grad(), model.writing() as write:
        write({"weight": torch.zeros(1, 3)})(x)
    assert torch.equal(model.network.weight, before)


@pytest.mark.parametrize("name", NETWORKS)
def test_copies_and_pickles_draw_and_compute_the_same(name: str) -> None:
    case = Case(name)
    poutine.trace(case.model).get_trace(*case.inputs)
    with SubstituteMessenger(case.values):
        expected = case.run(case.model.eval())
    twins = [copy.deepcopy(case.model)]
    if name != "weight norm":  # torch refuses to pickle parametrized modules, ours or not
        twins.append(pickle.loads(pickle.dumps(case.model)))
    for twin in twins:
        with SubstituteMessenger(case.values):
            assert torch.equal(case.run(twin), expected)
        assert all(not buffer.is_floating_point() or buffer.dtype == torch.float64 for buffer in twin.buffers())
        mine = {tensor.data_ptr() for tensor in case.model.state_dict().values()}
        assert mine.isdisjoint(tensor.data_ptr() for tensor in twin.state_dict().values())


@pytest.mark.statistical
def test_vit_b_16_and_its_86_million_weights() -> None:
    net = torchvision.models.vit_b_16(image_size=32, num_classes=3).eval()
    model = bayesianize(net, lecun()).eval()
    values = {name: parameter.detach() for name, parameter in net.named_parameters() if name in model.site_priors}
    norm = {name for name, _ in net.named_parameters() if ".ln" in name}
    assert set(values) == {name for name, _ in net.named_parameters()} - norm
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad(), SubstituteMessenger(values) as handler:
        outputs = model(images)
    torch.testing.assert_close(outputs, net(images))
    assert len(handler.latent) == len(values)


# ------------------------------------------------------------------------------------------------- sampling


def test_weights_are_drawn_anew_at_each_call_and_once_within_it() -> None:
    class TwoTowers(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = bayesianize(nn.Linear(3, 2), NORMAL)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.net(x), self.net(x)

    towers, x = TwoTowers(), torch.randn(4, 3)
    first, second = towers(x)
    third, _ = towers(x)
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    nodes = poutine.trace(towers).get_trace(x).nodes
    assert [name for name, node in nodes.items() if node["type"] == "sample"] == ["net.weight", "net.bias"]


def test_draws_come_from_the_prior() -> None:
    """The mean square of 30,000 drawn weights is the prior's second moment; z = 4."""
    model = bayesianize(nn.Linear(300, 100), dist.Normal(0.5, 2.0))
    squares = model.sample_weights()["weight"].square().flatten()
    assert abs(squares.mean() - (0.25 + 4.0)) < 4 * squares.std() / len(squares) ** 0.5


@pytest.mark.parametrize(
    "prior", [scale_mixture(), horseshoe(), latent_scale(), learned_scale(), lecun(family="student_t")]
)
def test_any_prior_draws_weights_of_the_right_shape(prior: Any) -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Flatten(), nn.Linear(12, 2))
    model = bayesianize(net, prior)
    weights = model.sample_weights()
    assert {name: w.shape for name, w in weights.items()} == {n: p.shape for n, p in net.named_parameters()}
    assert model(torch.randn(5, 2, 3, 3)).shape == (5, 2)


def test_condition_and_replay_of_pyro_work() -> None:
    net = nn.Linear(3, 2)
    model, x = bayesianize(net, NORMAL), torch.randn(4, 3)
    data = {name: parameter.detach() for name, parameter in net.named_parameters()}
    assert torch.equal(poutine.condition(model, data=data)(x), net(x))
    trace = poutine.trace(model).get_trace(x)
    assert torch.equal(poutine.replay(model, trace=trace)(x), trace.nodes["_RETURN"]["value"])


@settings(max_examples=20)
@given(widths=st.lists(st.integers(1, 6), min_size=2, max_size=5), batch=st.integers(0, 4), bias=st.booleans())
def test_any_mlp_equals_itself(widths: list[int], batch: int, bias: bool) -> None:
    net = nn.Sequential(*(nn.Linear(a, b, bias=bias) for a, b in pairwise(widths)))
    x = torch.randn(batch, widths[0])
    with SubstituteMessenger({name: parameter.detach() for name, parameter in net.named_parameters()}):
        assert torch.equal(bayesianize(net, NORMAL)(x), net(x))


# ------------------------------------------------------------------------------- tied and frozen parameters


def test_a_tied_parameter_is_one_site_that_reaches_all_its_uses() -> None:
    case = Case("tied")
    assert list(case.model.site_priors) == ["encoder.weight", "decoder.bias"]
    assert case.model.parameter_names["encoder.weight"] == ["encoder.weight", "decoder.weight"]
    weights = case.model.sample_weights()
    assert weights["encoder.weight"] is weights["decoder.weight"]
    weight, bias = case.values["encoder.weight"], case.values["decoder.bias"]
    with SubstituteMessenger(case.values):
        outputs = case.run(case.model)
    torch.testing.assert_close(outputs, weight[case.inputs[0]] @ weight.T + bias)
    with case.model.written(case.values) as network:
        assert network.decoder.weight is network.encoder.weight


def test_tied_deterministic_parameters_stay_tied() -> None:
    model = bayesianize(Tied(), [("decoder.bias", NORMAL), ("*", None)])
    assert model.network.decoder.weight is model.network.encoder.weight
    model(tokens(4, 6)).sum().backward()
    assert len([p for p in model.parameters() if p.grad is not None]) == 1


def test_a_layer_used_twice_keeps_its_placeholder_after_a_forward() -> None:
    model = bayesianize(Shared(), NORMAL)
    before = {name: id(parameter) for name, parameter in model.network.named_parameters()}
    model(torch.randn(4, 3))
    assert {name: id(parameter) for name, parameter in model.network.named_parameters()} == before


def test_one_parameter_under_two_attributes_of_one_module() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.ones(3))
            self.b = self.a

        def forward(self, x: Tensor) -> Tensor:
            return self.a * x + self.b

    for pattern in ("a", "b"):
        model = bayesianize(Twice(), [(pattern, NORMAL)])
        with SubstituteMessenger({"a": torch.full((3,), 2.0)}):
            assert torch.equal(model(torch.ones(3)), torch.full((3,), 4.0))


def test_frozen_parameters_stay_frozen_and_deterministic() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    net[0].requires_grad_(False)
    model = bayesianize(net, NORMAL)
    assert list(model.site_priors) == ["1.weight", "1.bias"]
    assert not any(parameter.requires_grad for parameter in model.parameters())
    x = torch.randn(5, 3)
    values = {"1.weight": torch.randn(2, 4), "1.bias": torch.randn(2)}
    with SubstituteMessenger(values):
        outputs = model(x)
    torch.testing.assert_close(outputs, net[0](x) @ values["1.weight"].T + values["1.bias"])


def test_deterministic_parameters_are_trained_and_random_ones_are_placeholders() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model = bayesianize(net, NORMAL)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained == ["net.1.weight", "net.1.bias"]
    model(torch.randn(5, 3)).square().sum().backward()
    assert all(model.get_parameter(name).grad is not None for name in trained)


# ---------------------------------------------------------------------------------- moving, saving, sharing


def test_double_and_back() -> None:
    model = bayesianize(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)), lecun()).double()
    outputs = model(torch.randn(5, 3, dtype=torch.float64))
    assert outputs.dtype == torch.float64
    assert {value.dtype for value in model.sample_latents().values()} == {torch.float64}
    assert model.float()(torch.randn(5, 3)).dtype == torch.float32


@pytest.mark.parametrize("prior", [NORMAL, horseshoe(), latent_scale(), learned_scale(), scale_mixture()])
def test_everything_moves_to_another_device(prior: Any) -> None:
    model = bayesianize(nn.Linear(3, 2), prior).to("meta")
    tensors = [*model.parameters(), *model.buffers(), *model.initial_values().values()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("prior", [NORMAL, horseshoe(), latent_scale(), learned_scale(), scale_mixture()])
def test_a_model_runs_on_a_gpu(prior: Any) -> None:
    model = bayesianize(nn.Linear(3, 2), prior).cuda()
    assert model(torch.randn(4, 3, device="cuda")).device.type == "cuda"


@pytest.mark.parametrize("prior", [NORMAL, horseshoe(0.3), latent_scale(), learned_scale(0.7), scale_mixture()])
def test_the_state_dict_carries_network_priors_and_buffers(prior: Any) -> None:
    def make() -> BayesianModule:
        return bayesianize(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)), prior)

    source, target = make(), make()
    source(torch.randn(5, 3))
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    target.load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(5, 3)
    outputs = []
    for model in (source, target):
        torch.manual_seed(3)
        outputs.append(model.eval()(x))
    assert torch.equal(*outputs)


def test_two_networks_share_nothing() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    first, second = bayesianize(net, learned_scale()), bayesianize(net, learned_scale())
    storages = [{t.data_ptr() for t in m.state_dict().values()} for m in (first, second, net)]
    assert storages[0].isdisjoint(storages[1] | storages[2])
    before = {key: value.clone() for key, value in second.state_dict().items()}
    optimizer = torch.optim.SGD(first.parameters(), lr=0.1)
    with poutine.trace() as handler:
        loss = first(torch.randn(5, 3)).square().sum()
    (loss - handler.trace.log_prob_sum()).backward()
    optimizer.step()
    assert all(torch.equal(value, before[key]) for key, value in second.state_dict().items())
    assert any(not torch.equal(value, before[key]) for key, value in first.state_dict().items())
    assert len(pyro.get_param_store()) == 0


# -------------------------------------------------------------------------------------------- network state


def norm_net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_one_forward_in_training_mode_updates_the_running_statistics_once() -> None:
    model = bayesianize(norm_net(), NORMAL)
    model(torch.randn(5, 3))
    assert model.network[1].num_batches_tracked == 1
    model.eval()(torch.randn(5, 3))
    assert model.network[1].num_batches_tracked == 1


def test_frozen_buffers_come_back_in_place_also_after_an_error() -> None:
    model = bayesianize(norm_net(), NORMAL)
    running = model.network[1].running_mean
    before = running.clone()

    def interrupted() -> None:
        with frozen_buffers(model):
            model(torch.randn(5, 3))
            assert not torch.equal(model.network[1].running_mean, before), "inside the block they are updated as usual"
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert torch.equal(running, before)
    assert model.network[1].running_mean is running
    assert model.network[1].num_batches_tracked == 0


def test_buffers_are_those_of_networks_and_not_of_priors() -> None:
    model = bayesianize(norm_net(), NORMAL)
    assert [id(b) for _, _, b in buffers(model)] == [id(b) for b in model.network.buffers()]


def test_evaluating_restores_each_mode() -> None:
    model = bayesianize(norm_net(), NORMAL)
    model.network[1].eval()  # a user's frozen norm layer
    modes = [module.training for module in model.modules()]

    def interrupted() -> None:
        with evaluating(model):
            assert not any(module.training for module in model.modules())
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert [module.training for module in model.modules()] == modes


def test_written_weights_are_taken_out_after_an_error() -> None:
    case = Case("linear")
    weight = case.model.network.weight.clone()

    def interrupted() -> None:
        with case.model.written(case.values) as network:
            assert torch.equal(network.weight, case.values["weight"])
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert torch.equal(case.model.network.weight, weight)


def test_bayesian_modules_are_found() -> None:
    outer = PyroModule()
    outer.a, outer.b = bayesianize(nn.Linear(1, 1), NORMAL), nn.Linear(1, 1)
    assert bayesian_modules(outer) == [outer.a]
    assert bayesian_modules(outer.a) == [outer.a]


# --------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("net", [3, nn.Linear, lambda x: x])
def test_something_else_than_a_network_is_refused(net: Any) -> None:
    with pytest.raises(TypeError, match=r"net: expected a torch\.nn\.Module, got"):
        bayesianize(net, NORMAL)


def test_a_second_conversion_is_refused() -> None:
    with pytest.raises(TypeError, match=r"net: it already is a Bayesian network"):
        bayesianize(bayesianize(nn.Linear(1, 1), NORMAL), NORMAL)


def test_lazy_parameters_are_refused_until_they_have_a_shape() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.LazyLinear(2))
    with pytest.raises(ValueError, match=r"net: the parameter '1\.weight' is lazy; run one batch"):
        bayesianize(net, NORMAL)
    net(torch.randn(5, 3))
    assert bayesianize(net, NORMAL)(torch.randn(5, 3)).shape == (5, 2)


@pytest.mark.parametrize("name", ["net", "network", "site_priors"])
def test_a_parameter_that_would_hide_a_part_of_the_model_is_refused(name: str) -> None:
    net = nn.Module()
    net.register_parameter(name, nn.Parameter(torch.ones(3)))
    with pytest.raises(ValueError, match=rf"net: .*'{name}'.*rename"):
        bayesianize(net, NORMAL)
