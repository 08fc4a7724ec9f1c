"""Kernels of infinitely wide networks: closed forms, networks of width 4,096, empirical tangent kernels, refusals."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable

import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.function_space import DualActivation, HermiteSeries, kernel, kernel_diagonal
from pyrobnn.function_space.activations import Erf
from pyrobnn.function_space.prior_scales import prior_scales

X = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(3, 2, 6, 6, generator=torch.Generator().manual_seed(1))
WIDE = 4096


def two_layers(width: int, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, width), activation(), nn.Linear(width, 1))


def moments(net: nn.Sequential, x: Tensor, draws: int) -> Tensor:
    """``E[f(x) f(x')]`` over drawn hidden weights, exact over those of the last layer (he's prior)."""
    hidden, last = net[:-1], net[-1]
    assert isinstance(last, nn.Linear)
    model = pb.bayesianize(hidden, pb.priors.he())
    total = torch.zeros(len(x), len(x), dtype=torch.float64)
    for _ in range(draws):
        features = torch.func.functional_call(model.network, model.sample_latents(), (x,)).double()
        total += features @ features.mT / draws
    return 1.0 + 2.0 / last.in_features * total


def test_one_relu_layer_is_the_published_formula() -> None:
    """Lee et al. (2018), equation 11 with the arc-cosine recursion, written out with the model's own scales."""
    width, scale, bias = 50, 0.7, 0.4
    prior = [("*weight", dist.Normal(0.0, scale)), ("*bias", dist.Normal(0.0, bias))]
    first = bias**2 + scale**2 * (X.double() @ X.double().mT)
    norms = first.diagonal().sqrt()
    cosine = (first / norms / norms[:, None]).clamp(-1, 1)
    angle = cosine.acos().where(~torch.eye(5, dtype=torch.bool), 0.0)
    expected = bias**2 + width * scale**2 / (2 * math.pi) * norms * norms[:, None] * (
        angle.sin() + (math.pi - angle) * cosine
    )
    found = kernel(pb.bayesianize(two_layers(width), prior), X)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(found, found.mT)
    torch.testing.assert_close(
        kernel(pb.bayesianize(two_layers(width), prior), X, X + 0.0), expected, rtol=1e-6, atol=1e-6
    )


def test_the_default_prior_of_a_plain_network_is_read() -> None:
    stated = kernel(pb.bayesianize(two_layers(8), dist.Normal(0.0, 1.0)), X)
    model = pb.SupervisedModel(two_layers(8), pb.likelihoods.Normal(0.1), num_data=5)
    assert torch.equal(kernel(two_layers(8), X), stated)
    assert torch.equal(kernel(model, X), stated)


class ErrorFunction(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.erf(x)


NEURAL_TANGENTS: dict[type[nn.Module], tuple[list[float], list[float]]] = {
    nn.ReLU: (
        [1.154817465946088, 0.6571514662708229, 0.4928059332667049, 0.6465060289980672],
        [3.0092523978382637, 1.2764753446170007, 0.6545668842705263, 0.7773472742925636],
    ),
    ErrorFunction: (
        [0.9464370797449395, 0.7099016915379999, 0.27590034062205826, 0.136162361649624],
        [2.943143167487894, 1.7893091396521013, 0.37140757315716844, -0.027500635229389614],
    ),
    nn.GELU: (
        [0.9176826333943144, 0.4584776274697032, 0.31046548632529847, 0.40425278120414704],
        [2.4654603279016403, 0.938977355454415, 0.40895741293808535, 0.4605898695167299],
    ),
}
"""First rows of the NNGP and tangent kernels by neural-tangents 0.6.5: W_std 1.3, b_std 0.4, two hidden layers."""


@pytest.mark.parametrize("activation", NEURAL_TANGENTS)
def test_neural_tangents_has_the_same_numbers(activation: type[nn.Module]) -> None:
    """To 1e-6: priors keep their scales in single precision."""
    x = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3)
    x[:, 1] **= 2
    net = nn.Sequential(nn.Linear(3, 64), activation(), nn.Linear(64, 64), activation(), nn.Linear(64, 1))
    prior = [
        ("0.weight", dist.Normal(0.0, 1.3 / 3**0.5)), ("*weight", dist.Normal(0.0, 1.3 / 8)),
        ("*bias", dist.Normal(0.0, 0.4)),
    ]  # fmt: skip
    model = pb.bayesianize(net, prior)
    for kind, expected in zip(("nngp", "ntk"), NEURAL_TANGENTS[activation], strict=True):
        found = kernel(model, x, kind=kind, activations={ErrorFunction: Erf()})  # type: ignore[arg-type]
        torch.testing.assert_close(found[0], torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-6)


@pytest.mark.statistical
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.GELU])
def test_wide_networks_have_this_covariance(activation: Callable[[], nn.Module]) -> None:
    """Two hidden layers of 4,096 units, 10 draws: 41,000 units of the last layer, a standard error below 0.8 %."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, WIDE), activation(), nn.Linear(WIDE, WIDE), activation(), nn.Linear(WIDE, 1))
    found = kernel(pb.bayesianize(net, pb.priors.he()), X)
    torch.testing.assert_close(found, moments(net, X, 10), rtol=0.03, atol=0.03 * float(found.max()))


@pytest.mark.statistical
@pytest.mark.parametrize("pool", [None, nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1)], ids=str)
def test_wide_convolutions_have_this_covariance(pool: nn.Module | None) -> None:
    """512 channels, 60 draws."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [
        nn.Conv2d(2, 512, 3, padding=1), nn.ReLU(), nn.Conv2d(512, 512, 3, stride=2, padding=1), nn.ReLU(),
    ]  # fmt: skip
    layers += [] if pool is None else [pool]
    layers.append(nn.Flatten())
    width = nn.Sequential(*layers)(IMAGES).shape[1]
    net = nn.Sequential(*layers, nn.Linear(width, 1))
    found = kernel(pb.bayesianize(net, pb.priors.he()), IMAGES)
    torch.testing.assert_close(found, moments(net, IMAGES, 60), rtol=0.03, atol=0.03 * float(found.max()))


def test_windows_of_pairs_agree_with_windows_of_positions() -> None:
    """A pooling of single positions changes nothing, but makes the recursion keep all pairs."""
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding="same", dilation=2), nn.Tanh(), nn.Conv2d(4, 4, (2, 3), stride=(2, 1), padding=1),
        nn.ReLU(), nn.AvgPool2d(1), nn.Flatten(), nn.Linear(4 * 4 * 6, 1),
    )  # fmt: skip
    plain = nn.Sequential(*[layer for layer in net if not isinstance(layer, nn.AvgPool2d)])
    for kind in ("nngp", "ntk"):
        whole, small = (kernel(pb.bayesianize(n, pb.priors.he()), IMAGES, kind=kind) for n in (net, plain))  # type: ignore[arg-type]
        torch.testing.assert_close(whole, small, rtol=1e-10, atol=1e-12)


@pytest.mark.statistical
def test_the_tangent_kernel_is_that_of_wide_networks() -> None:
    """The empirical kernel of networks of width 1,024, its mean over 30 draws."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.Tanh(), nn.Linear(1024, 1))
    model = pb.bayesianize(net, pb.priors.he())
    scales, total = prior_scales(model), torch.zeros(5, 5)
    for _ in range(30):
        weights = model.sample_latents()
        slopes = torch.func.jacrev(lambda w: torch.func.functional_call(model.network, w, (X,))[:, 0])(weights)
        for name, slope in slopes.items():
            total += float(scales[name]) ** 2 * slope.flatten(1) @ slope.flatten(1).mT / 30
    found = kernel(model, X, kind="ntk")
    torch.testing.assert_close(found, total.double(), rtol=0.03, atol=0.03 * float(found.max()))


def test_a_linear_network_has_the_tangent_kernel_of_its_features() -> None:
    """Depth one: both kernels are the prior covariance of linear regression."""
    model = pb.bayesianize(nn.Linear(3, 2), dist.Normal(0.0, 0.5))
    expected = 0.25 * (1 + X.double() @ X.double().mT)
    for kind in ("nngp", "ntk"):
        torch.testing.assert_close(kernel(model, X, kind=kind), expected, rtol=1e-12, atol=1e-12)  # type: ignore[arg-type]


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.branch, self.last = nn.Linear(3, width), nn.Linear(width, width), nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        hidden = hidden + self.branch(F.gelu(hidden))
        return self.last(torch.relu(hidden))


@pytest.mark.statistical
def test_residual_networks_have_this_covariance() -> None:
    """Width 2,048, 30 draws of all but the last layer."""
    torch.manual_seed(0)
    net, total = Residual(2048), torch.zeros(5, 5, dtype=torch.float64)
    model = pb.bayesianize(net, pb.priors.he())
    for _ in range(30):
        drawn = model.sample_latents()
        drawn["last.weight"], drawn["last.bias"] = torch.eye(2048)[:1].expand(1, -1), torch.zeros(1)
        hidden = F.linear(X, drawn["first.weight"], drawn["first.bias"])
        hidden = hidden + F.linear(F.gelu(hidden), drawn["branch.weight"], drawn["branch.bias"])
        total += torch.relu(hidden).double() @ torch.relu(hidden).double().mT / 30
    found = kernel(model, X)
    torch.testing.assert_close(found, 1 + 2 / 2048 * total, rtol=0.03, atol=0.03 * float(found.max()))


def test_blocks_and_diagonals_agree() -> None:
    for net, x in (
        (two_layers(8, nn.Tanh), X),
        (nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 1)), IMAGES),
    ):
        whole = kernel(net, x, x[:2])
        torch.testing.assert_close(kernel(net, x, x[:2], max_bytes=1), whole, rtol=1e-12, atol=0.0)
        torch.testing.assert_close(kernel_diagonal(net, x), kernel(net, x).diagonal(), rtol=1e-10, atol=0.0)
        own = kernel(net, x, max_bytes=1)  # row by row, the upper triangle alone
        assert torch.equal(own, own.mT)
        torch.testing.assert_close(own, kernel(net, x, x), rtol=1e-7, atol=0.0)


def test_inputs_are_prepared_before_the_first_weights() -> None:
    """Flattening, reshaping and activations of inputs are not random."""
    net = nn.Sequential(nn.Flatten(), nn.Tanh(), nn.Dropout(0.5), nn.Linear(72, 8), nn.ReLU(), nn.Linear(8, 1))
    plain = nn.Sequential(nn.Linear(72, 8), nn.ReLU(), nn.Linear(8, 1))
    torch.testing.assert_close(kernel(net, IMAGES), kernel(plain, IMAGES.flatten(1).double().tanh()))


def test_gradients_by_the_scales_are_those_of_differences() -> None:
    net = pb.bayesianize(two_layers(8), pb.priors.he())
    scale = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def total(value: Tensor) -> Tensor:
        return (kernel(net, X, scales={"0.weight": value}) * weights).sum()

    (gradient,) = torch.autograd.grad(total(scale), scale)
    step = 1e-5
    expected = (total(scale.detach() + step) - total(scale.detach() - step)) / (2 * step)
    assert float(gradient) == pytest.approx(float(expected), rel=1e-6)


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.abs().max() > 1e30:  # what a trace cannot follow
            return x
        return torch.sin(x)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.sin(self.first(x)))


def test_functions_and_activations_of_ones_own() -> None:
    net = nn.Sequential(nn.Linear(3, 8), Sine(), nn.Linear(8, 1))
    own = kernel(net, X, activations={Sine: HermiteSeries(torch.sin)})
    torch.testing.assert_close(own, kernel(Functional(), X))
    with pytest.raises(TypeError, match="activations: expected a DualActivation"):
        kernel(net, X, activations={Sine: torch.sin})  # type: ignore[dict-item]
    assert issubclass(HermiteSeries, DualActivation)


class Applied(nn.Module):
    """A function of the inputs, then two layers with a function between them."""

    def __init__(self, function: Callable[[Tensor], Tensor], first: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 1)
        self.function, self.on_inputs = function, first

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(self.on_inputs(x))))


@pytest.mark.parametrize(
    ("function", "module"),
    [
        (lambda x: F.softplus(x, beta=3.0), nn.Softplus(3.0)),
        (lambda x: F.softplus(x, 3.0), nn.Softplus(3.0)),
        (lambda x: F.elu(x, alpha=0.3), nn.ELU(0.3)),
        (lambda x: F.elu(x, 0.3, True), nn.ELU(0.3)),
        (lambda x: F.relu(input=x, inplace=True), nn.ReLU()),
    ],
    ids=["softplus", "softplus by place", "elu", "elu by place", "relu"],
)
def test_functions_have_the_options_of_their_call(function: Callable[[Tensor], Tensor], module: nn.Module) -> None:
    expected = kernel(nn.Sequential(nn.Linear(3, 8), module, nn.Linear(8, 1)), X)
    assert torch.equal(kernel(Applied(function), X), expected)


def test_dropout_as_a_function_is_off_in_either_mode() -> None:
    net = Applied(lambda x: F.dropout(torch.relu(x), 0.5, True), lambda x: F.dropout(x, 0.5, True))
    expected = kernel(two_layers(8), X)
    for mode in (True, False):
        assert torch.equal(kernel(net.train(mode), X), expected)


class Joined(nn.Module):
    def __init__(self, join: Callable[[Tensor, Tensor], Tensor], tied: bool = False) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 1)
        self.join, self.tied = join, tied

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        branch = self.second(torch.relu(hidden))
        joined = self.second(torch.relu(branch)) if self.tied else self.join(hidden, branch)
        found: Tensor = self.last(torch.relu(joined))
        return found


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 1)), r"'1' \(LayerNorm\)"),
        (nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1)), r"'1' \(BatchNorm1d\)"),
        (nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Tanh(), nn.Linear(8, 1)), "'2' follows another activation"),
        (nn.Sequential(nn.Linear(3, 8), nn.Softmax(-1)), r"'1' \(Softmax\)"),
        (nn.Sequential(nn.Linear(3, 8), nn.ReLU()), "last layer is one of weights"),
        (nn.Sequential(nn.Linear(3, 8), nn.PReLU(), nn.Linear(8, 1)), r"'1' \(PReLU\)"),
        (Joined(operator.mul), "'mul' joins two branches"),
        (Joined(lambda a, b: a + torch.relu(b)), "each branch ends in a layer of weights"),
        (Joined(operator.add, tied=True), "'second' is used twice"),
        (Joined(lambda a, b: torch.add(a, b, alpha=0.5)), "'add' is a sum with alpha=; .* scale the prior"),
        (Joined(lambda a, b: a.add(b, alpha=0.5)), "'add' is a sum with alpha=; .* scale the prior"),
    ],
    ids=[
        "layer norm", "batch norm", "two activations", "softmax", "no last layer", "prelu", "product", "sum", "tied",
        "factor", "factor by method",
    ],
)  # fmt: skip
def test_what_has_no_limit_is_refused_by_name(net: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernel(net, X)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 1)), "MaxPool2d"),
        (nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(64, 1)), "groups=2"),
        (nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Linear(4, 1)), "'2' acts at each position"),
        (nn.Sequential(nn.Conv2d(2, 4, 3)), "returns vectors"),
        (nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 1)), "flatten the inputs"),
    ],
    ids=["max pool", "groups", "linear on positions", "image", "positions"],
)
def test_images_without_a_limit_are_refused(net: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernel(net, IMAGES)


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (dist.Laplace(0.0, 1.0), "is Laplace"),
        (pb.priors.horseshoe(), "depends on other sites"),
        (dist.Normal(0.1, 1.0), "mean 0 and one scale"),
        ([("0.*", dist.Normal(0.0, 1.0)), ("*", None)], "'2.weight' has no prior"),
    ],
    ids=["laplace", "horseshoe", "mean", "deterministic"],
)
def test_priors_without_a_gaussian_limit_are_refused_by_site(prior: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernel(pb.bayesianize(two_layers(8), prior), X)  # type: ignore[arg-type]


def test_wrong_arguments_are_refused() -> None:
    net = two_layers(8)
    with pytest.raises(ValueError, match="kind: expected 'nngp' or 'ntk'"):
        kernel(net, X, kind="relu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="x2: expected inputs of the same shape"):
        kernel(net, X, X[:, :2])
    with pytest.raises(TypeError, match="x1, x2: expected tensors"):
        kernel(net, X.numpy())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="scales: the network has no parameter 'weight'"):
        kernel(net, X, scales={"weight": torch.ones(())})
    with pytest.raises(TypeError, match="model: expected"):
        kernel("net", X)  # type: ignore[arg-type]
    model = pb.SupervisedModel(net, pb.likelihoods.Normal(0.1), num_data=5, output=lambda out: out[:, :1])
    with pytest.raises(ValueError, match="output= selects"):
        kernel(model, X)
