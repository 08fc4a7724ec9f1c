"""Fan-in scaling against closed forms and simulated networks; which rule decides for which parameter."""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pyrobnn.model.bayesianize import bayesianize
from pyrobnn.model.priors import (
    FixedPrior,
    HorseshoePrior,
    LatentScalePrior,
    LearnedScalePrior,
    assign,
    centered,
    fan_in_and_out,
    glorot,
    he,
    horseshoe,
    last_layer,
    latent_scale,
    learned_scale,
    lecun,
    scale_mixture,
)

NORMAL = dist.Normal(0.0, 1.0)

# (module, parameter, fan-in, fan-out)
FANS = {
    "linear": (lambda: nn.Linear(6, 10), "weight", 6, 10),
    "bilinear": (lambda: nn.Bilinear(3, 4, 5), "weight", 12, 5),
    "conv1d": (lambda: nn.Conv1d(4, 8, 5), "weight", 4 * 5, 8 * 5),
    "conv2d": (lambda: nn.Conv2d(4, 8, (3, 2)), "weight", 4 * 6, 8 * 6),
    "conv3d": (lambda: nn.Conv3d(2, 3, 3), "weight", 2 * 27, 3 * 27),
    "grouped conv2d": (lambda: nn.Conv2d(4, 8, 3, groups=2), "weight", 2 * 9, 4 * 9),
    "depthwise conv2d": (lambda: nn.Conv2d(4, 4, 3, groups=4), "weight", 9, 9),
    "transposed conv1d": (lambda: nn.ConvTranspose1d(4, 8, 5), "weight", 4 * 5, 8 * 5),
    "transposed conv2d": (lambda: nn.ConvTranspose2d(4, 8, 3), "weight", 4 * 9, 8 * 9),
    "strided transposed conv2d": (lambda: nn.ConvTranspose2d(4, 8, 4, stride=2), "weight", 4 * 4, 8 * 16),
    "grouped transposed conv2d": (lambda: nn.ConvTranspose2d(4, 8, 3, groups=2), "weight", 2 * 9, 4 * 9),
    "transposed conv3d": (lambda: nn.ConvTranspose3d(2, 3, 2), "weight", 2 * 8, 3 * 8),
    "embedding": (lambda: nn.Embedding(50, 7), "weight", 1, 7),
    "embedding bag": (lambda: nn.EmbeddingBag(50, 7), "weight", 1, 7),
    "attention, stacked projections": (lambda: nn.MultiheadAttention(8, 2), "in_proj_weight", 8, 8),
    "attention, keys of another width": (lambda: nn.MultiheadAttention(8, 2, kdim=5), "k_proj_weight", 5, 8),
    "lstm, from the input": (lambda: nn.LSTM(3, 5), "weight_ih_l0", 3, 5),
    "lstm, recurrent": (lambda: nn.LSTM(3, 5), "weight_hh_l0", 5, 5),
    "lstm, second bidirectional layer": (lambda: nn.LSTM(3, 5, 2, bidirectional=True), "weight_ih_l1", 10, 5),
    "gru, from the input": (lambda: nn.GRU(3, 5), "weight_ih_l0", 3, 5),
}


@pytest.mark.parametrize("layer", FANS)
def test_fans_of_each_layer(layer: str) -> None:
    make, name, fan_in, fan_out = FANS[layer]
    module = make()
    assert fan_in_and_out(module.get_parameter(name), module) == (fan_in, fan_out)


@pytest.mark.parametrize("layer", FANS)
@pytest.mark.parametrize("family", ["normal", "laplace", "student_t"])
def test_variances_of_he_lecun_and_glorot(layer: str, family: str) -> None:
    make, name, fan_in, fan_out = FANS[layer]
    module = make()
    parameter = module.get_parameter(name)
    for rule, variance in (
        (he(family=family), 2 / fan_in),
        (lecun(family=family), 1 / fan_in),
        (glorot(family=family), 2 / (fan_in + fan_out)),
    ):
        prior = rule(name, parameter, module)
        assert prior.mean.item() == 0.0
        assert prior.variance.item() == pytest.approx(variance, rel=1e-5)


@pytest.mark.parametrize(
    ("family", "kind", "kurtosis"),
    [("normal", dist.Normal, 3.0), ("laplace", dist.Laplace, 6.0), ("student_t", dist.StudentT, 9.0)],
)
def test_families(family: str, kind: type[dist.Distribution], kurtosis: float) -> None:
    """A Student-t of ν degrees of freedom has kurtosis 3 (ν - 2) / (ν - 4): nine for ν = 5."""
    prior = he(family=family)("weight", torch.empty(10, 6), nn.Linear(6, 10))
    assert isinstance(prior, kind)
    if isinstance(prior, dist.StudentT):
        assert 3 * (prior.df - 2) / (prior.df - 4) == kurtosis


@pytest.mark.parametrize("rule", [he, lecun, glorot])
def test_biases_and_norm_layers(rule: Callable[..., object]) -> None:
    bias = rule(bias_scale=0.3)("0.bias", torch.empty(4), nn.Linear(2, 4))
    assert (bias.loc.item(), bias.scale.item()) == pytest.approx((0.0, 0.3))
    weight = rule(bias_scale=0.3)("1.weight", torch.empty(4), nn.BatchNorm1d(4))
    assert (weight.loc.item(), weight.scale.item()) == pytest.approx((1.0, 0.3)), "a norm layer's gain is one by nature"
    shift = rule(bias_scale=0.3)("1.bias", torch.empty(4), nn.LayerNorm(4))
    assert (shift.loc.item(), shift.scale.item()) == pytest.approx((0.0, 0.3))


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(ValueError, match=r"family: expected 'normal', 'laplace' or 'student_t', got 'cauchy'"):
        bayesianize(nn.Linear(2, 3), he(family="cauchy"))


# -------------------------------------------------------------------------- what fan-in scaling is good for


def interior(outputs: Tensor, margin: int) -> Tensor:
    """Outputs that the padding at the border did not reach."""
    for dim in range(2, outputs.dim()):
        outputs = outputs.narrow(dim, margin, outputs.shape[dim] - 2 * margin)
    return outputs


# One layer and unit-variance inputs, of which each output is a sum; margin: border outputs left out.
UNIT_VARIANCE = {
    "linear": (lambda: nn.Linear(30, 8, bias=False), (30,), 0),
    "conv1d": (lambda: nn.Conv1d(5, 6, 4, bias=False), (5, 12), 0),
    "grouped conv2d": (lambda: nn.Conv2d(4, 6, 3, groups=2, bias=False), (4, 8, 8), 0),
    "strided conv3d": (lambda: nn.Conv3d(2, 3, 3, stride=2, bias=False), (2, 7, 7, 7), 0),
    "transposed conv1d": (lambda: nn.ConvTranspose1d(5, 6, 4, bias=False), (5, 12), 3),
    "strided transposed conv2d": (lambda: nn.ConvTranspose2d(4, 6, 4, stride=2, bias=False), (4, 8, 8), 3),
    "grouped transposed conv2d": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False), (4, 8, 8), 2),
    "transposed conv3d": (lambda: nn.ConvTranspose3d(3, 2, 2, stride=2, bias=False), (3, 4, 4, 4), 1),
}


@pytest.mark.parametrize("layer", UNIT_VARIANCE)
def test_lecun_keeps_unit_variance_through_a_layer(layer: str) -> None:
    """Mean square of the outputs over 400 draws of weights and inputs; z = 4."""
    make, shape, margin = UNIT_VARIANCE[layer]
    model = bayesianize(make(), lecun())
    squares = torch.stack([interior(model(torch.randn(1, *shape)), margin).square().mean() for _ in range(400)])
    assert abs(squares.mean() - 1) < 4 * squares.std() / math.sqrt(len(squares))


def test_lecun_keeps_unit_variance_in_embeddings_attention_and_gates() -> None:
    """Embedding rows, projected queries and keys, and an LSTM's gate inputs; 400 draws, z = 4."""
    embedding = bayesianize(nn.Embedding(20, 30), lecun())
    attention = bayesianize(nn.MultiheadAttention(16, 2, bias=False), lecun())
    lstm = bayesianize(nn.LSTM(12, 10, bias=False), lecun())
    cases = {
        "embedding": lambda: embedding(torch.randint(20, (8,))),
        "attention": lambda: F.linear(torch.randn(4, 16), attention.sample_weights()["in_proj_weight"]),
        "attention output": lambda: F.linear(torch.randn(4, 16), attention.sample_weights()["out_proj.weight"]),
        "gates": lambda: F.linear(torch.randn(4, 12), lstm.sample_weights()["weight_ih_l0"]),
        "recurrent gates": lambda: F.linear(torch.randn(4, 10), lstm.sample_weights()["weight_hh_l0"]),
    }
    for case, outputs in cases.items():
        squares = torch.stack([outputs().square().mean() for _ in range(400)])
        assert abs(squares.mean() - 1) < 4 * squares.std() / math.sqrt(len(squares)), case


def deep(width: int, depth: int, activation: type[nn.Module]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(width, width, bias=False), activation()]
    return nn.Sequential(*layers)


@pytest.mark.statistical
@pytest.mark.parametrize(("rule", "activation"), [(he, nn.ReLU), (lecun, nn.Identity), (glorot, nn.Identity)])
@settings(max_examples=5)
@given(width=st.integers(20, 60), depth=st.integers(2, 10))
def test_the_activations_keep_their_variance_through_depth(
    rule: Callable[[], object], activation: type[nn.Module], width: int, depth: int
) -> None:
    """Mean square of the last pre-activations for inputs of mean square one; 300 draws, z = 4.5 (15 cases).

    He's gain makes up for the half that ReLU removes: E[relu(a)²] = E[a²] / 2 for symmetric a.
    """
    net = deep(width, depth, activation)[:-1]
    model = bayesianize(net, rule())
    gain = 2.0 if rule is he else 1.0  # the inputs are no rectified variables, so the first layer's gain shows
    squares = torch.stack([model(torch.randn(1, width)).square().mean() for _ in range(300)])
    assert abs(squares.mean() - gain) < 4.5 * squares.std() / math.sqrt(len(squares))


# --------------------------------------------------------------------------------------------- other priors


def test_density_and_moments_of_the_scale_mixture() -> None:
    prior = scale_mixture(0.25, 1.5, 0.2)
    x = torch.tensor([-3.0, -0.1, 0.0, 0.4, 2.0], dtype=torch.float64)

    def normal(scale: float) -> Tensor:
        return torch.exp(-0.5 * (x / scale) ** 2) / (scale * math.sqrt(2 * math.pi))

    expected = (0.25 * normal(1.5) + 0.75 * normal(0.2)).log()
    torch.testing.assert_close(prior.log_prob(x.float()).double(), expected, rtol=1e-5, atol=1e-5)
    assert prior.mean.item() == 0.0
    assert prior.variance.item() == pytest.approx(0.25 * 1.5**2 + 0.75 * 0.2**2, rel=1e-5)


def test_draws_of_the_scale_mixture_in_a_network() -> None:
    """Variance of 200,000 weights drawn through the model; z = 4."""
    model = bayesianize(nn.Linear(500, 400, bias=False), scale_mixture(0.25, 1.5, 0.2))
    squares = model.sample_latents()["weight"].double().square().flatten()
    expected = 0.25 * 1.5**2 + 0.75 * 0.2**2
    assert abs(squares.mean() - expected) < 4 * squares.std() / math.sqrt(len(squares))


@pytest.mark.parametrize("pi", [0.0, 1.0, -0.1, math.nan])
def test_the_weight_of_the_scale_mixture_is_strictly_between_zero_and_one(pi: float) -> None:
    with pytest.raises(ValueError, match=r"pi: expected a probability between 0 and 1"):
        scale_mixture(pi)


@pytest.mark.parametrize("sigmas", [(0.0, 1.0), (1.0, -1.0)])
def test_the_scales_of_the_scale_mixture_are_positive(sigmas: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"scale|sigma"):
        scale_mixture(0.5, *sigmas)


def test_centered_priors_sit_at_the_weights_of_the_moment() -> None:
    net = nn.Linear(3, 2).double()
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    priors = assign(net, centered(0.2))
    with torch.no_grad():
        net.weight.fill_(9.0)
    for name, prior in priors.items():
        assert isinstance(prior, FixedPrior)
        assert torch.equal(prior.distribution.mean, before[name])
        torch.testing.assert_close(prior.distribution.variance, torch.full_like(before[name], 0.04))


@pytest.mark.parametrize(
    ("rule", "kind"),
    [
        (horseshoe(), HorseshoePrior),
        (latent_scale(), LatentScalePrior),
        (learned_scale(), LearnedScalePrior),
        (NORMAL, FixedPrior),
    ],
)
def test_each_parameter_gets_a_prior_of_its_own_shape_and_dtype(rule: object, kind: type[nn.Module]) -> None:
    net = nn.Linear(3, 2).double()
    priors = assign(net, rule)  # type: ignore[arg-type]
    assert {name: prior.shape for name, prior in priors.items() if prior is not None} == {
        "weight": (2, 3),
        "bias": (2,),
    }
    for prior in priors.values():
        assert isinstance(prior, kind)
        assert all(t.dtype == torch.float64 for t in (*prior.parameters(), *prior.buffers()))
    first, second = priors.values()
    assert first is not second


def test_last_layer() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Sequential(nn.Linear(4, 2), nn.LayerNorm(2)))
    priors = assign(net, last_layer(net, NORMAL))
    assert [name for name, prior in priors.items() if prior is not None] == ["2.0.weight", "2.0.bias"]
    model = bayesianize(net, last_layer(net, NORMAL))
    model(torch.randn(5, 3)).sum().backward()
    assert model.network[0].weight.requires_grad, "the rest is still trained"
    assert model.network[0].weight.grad is not None


def test_last_layer_of_a_single_layer_and_of_a_network_without_one() -> None:
    net = nn.Linear(3, 2)
    assert all(assign(net, last_layer(net, NORMAL)).values())
    with pytest.raises(ValueError, match=r"net: no layer with a weight matrix"):
        last_layer(nn.LayerNorm(3), NORMAL)


def test_last_layer_by_name_and_of_tied_weights() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    assert [n for n, prior in assign(net, last_layer(net, NORMAL, "0")).items() if prior is not None] == [
        "0.weight",
        "0.bias",
    ]
    with pytest.raises(ValueError, match="name: the network has no module 'head'"):
        last_layer(net, NORMAL, "head")
    net[1].weight = net[0].weight
    with pytest.raises(ValueError, match=r"the last layer '1' shares its weights with '0' \(tied\)"):
        last_layer(net, NORMAL)


def test_last_layer_of_a_frozen_backbone_that_is_frozen_whole() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).requires_grad_(False)
    priors = assign(net, last_layer(net, NORMAL))
    assert [name for name, prior in priors.items() if prior is not None] == ["1.weight", "1.bias"]


# ---------------------------------------------------------------------------------------------- who decides


def network() -> nn.Sequential:
    """Ordinary weights, a norm layer and a frozen layer."""
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Linear(4, 2))
    net[2].requires_grad_(False)
    return net


def random_names(net: nn.Module, prior: object) -> list[str]:
    return [name for name, assigned in assign(net, prior).items() if assigned is not None]  # type: ignore[arg-type]


@pytest.mark.parametrize("prior", [NORMAL, [("*", NORMAL)], lambda name, parameter, module: NORMAL])
def test_a_rule_for_everything_means_the_ordinary_weights(prior: object) -> None:
    assert random_names(network(), prior) == ["0.weight", "0.bias", "3.weight", "3.bias"]


@pytest.mark.parametrize(
    "layer",
    [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.RMSNorm, lambda n: nn.GroupNorm(2, n),
     lambda n: nn.InstanceNorm2d(n, affine=True)],
)  # fmt: skip
def test_every_norm_layer_is_deterministic_by_default(layer: Callable[[int], nn.Module]) -> None:
    assert random_names(nn.Sequential(nn.Linear(3, 4), layer(4)), NORMAL) == ["0.weight", "0.bias"]


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([("1.*", NORMAL), ("*", None)], ["1.weight", "1.bias"]),
        ([("2.weight", NORMAL), ("*", None)], ["2.weight"]),
        ([(nn.BatchNorm1d, NORMAL), ("*", None)], ["1.weight", "1.bias"]),
        ([("*.weight", NORMAL), ("*", None)], ["0.weight", "1.weight", "2.weight", "3.weight"]),
        ([("[03].bias", NORMAL), ("*", None)], ["0.bias", "3.bias"]),
        ([("?.bias", NORMAL), ("*", None)], ["0.bias", "1.bias", "2.bias", "3.bias"]),
        ([(nn.Linear, NORMAL)], ["0.weight", "0.bias", "2.weight", "2.bias", "3.weight", "3.bias"]),
        ([((nn.Linear, nn.BatchNorm1d), NORMAL)], [f"{i}.{p}" for i in range(4) for p in ("weight", "bias")]),
        ([("3.*", None), ("*", NORMAL)], ["0.weight", "0.bias"]),
        ([("*", NORMAL), ("1.weight", NORMAL)], ["0.weight", "0.bias", "1.weight", "3.weight", "3.bias"]),
        (
            [("*", lambda name, parameter, module: NORMAL if parameter.dim() > 1 else None)],
            ["0.weight", "3.weight"],
        ),
    ],
)
def test_patterns(rules: list[tuple[object, object]], expected: list[str]) -> None:
    assert random_names(network(), rules) == expected


def test_the_first_matching_pattern_decides() -> None:
    scales = [
        ("0.weight", dist.Normal(0.0, 1.0)),
        ("0.*", dist.Normal(0.0, 2.0)),
        ("*", dist.Normal(0.0, 3.0)),
    ]
    priors = assign(network(), scales)
    found = {name: p.distribution.stddev.flatten()[0].item() for name, p in priors.items() if isinstance(p, FixedPrior)}
    assert found == {"0.weight": 1.0, "0.bias": 2.0, "3.weight": 3.0, "3.bias": 3.0}


def test_a_rule_is_told_name_parameter_and_owner() -> None:
    net, seen = network(), []

    def rule(name: str, parameter: Tensor, module: nn.Module) -> dist.Distribution:
        seen.append((name, parameter, module))
        return NORMAL

    assign(net, rule)
    assert [name for name, _, _ in seen] == ["0.weight", "0.bias", "3.weight", "3.bias"]
    for name, parameter, module in seen:
        assert parameter is net.get_parameter(name)
        assert module is net.get_submodule(name.partition(".")[0])


class Tied(nn.Module):
    """An embedding whose matrix is the output layer's too."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Embedding(5, 3)
        self.decoder = nn.Linear(3, 5)
        self.decoder.weight = self.encoder.weight


@pytest.mark.parametrize("pattern", ["encoder.weight", "decoder.weight", nn.Embedding, nn.Linear])
def test_a_tied_parameter_answers_to_all_its_names_and_owners(pattern: object) -> None:
    assert "encoder.weight" in random_names(Tied(), [(pattern, NORMAL), ("*", None)])
    assert "decoder.weight" not in assign(Tied(), [(pattern, NORMAL), ("*", None)]), "one entry per parameter"


# --------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("pattern", ["fc*", nn.Conv2d, "0.Weight", "4.*"])
def test_a_pattern_that_matches_nothing_is_refused(pattern: object) -> None:
    with pytest.raises(ValueError, match=r"prior: the pattern .* matches no parameter; the network has 0\.weight"):
        assign(network(), [(pattern, NORMAL), ("*", None)])  # type: ignore[list-item]


@pytest.mark.parametrize("rules", [[("0.*", NORMAL)], []])
def test_a_parameter_without_a_rule_is_refused(rules: list[tuple[str, dist.Distribution]]) -> None:
    with pytest.raises(ValueError, match=r"prior: no rule matches the parameter '(3|0)\.weight' \(shape .*None"):
        assign(network(), rules)


@pytest.mark.parametrize(
    "prior",
    [1.0, None, "normal", dist.Normal, torch.distributions.Normal(0.0, 1.0), {"*": NORMAL}, ("*", NORMAL)],
)
def test_something_else_than_a_rule_is_refused(prior: object) -> None:
    with pytest.raises(TypeError, match="prior: expected"):
        assign(network(), prior)  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", [1.0, "normal", dist.Normal, torch.distributions.Normal(0.0, 1.0)])
def test_something_else_than_a_rule_in_a_pair_is_refused(rule: object) -> None:
    with pytest.raises(TypeError, match=r"prior: the rule of '\*' is neither a distribution, a function nor None"):
        assign(network(), [("*", rule)])  # type: ignore[list-item]


@pytest.mark.parametrize("pattern", [3, None, nn.Linear(1, 1)])
def test_something_else_than_a_pattern_is_refused(pattern: object) -> None:
    with pytest.raises(TypeError, match=r"prior: .*pattern.*(glob|class)"):
        assign(network(), [(pattern, NORMAL), ("*", None)])  # type: ignore[list-item]


def test_a_function_that_returns_no_prior_is_refused() -> None:
    with pytest.raises(TypeError, match=r"prior of '0\.weight': expected a Pyro distribution"):
        assign(network(), lambda name, parameter, module: 1.0)  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize(
    "prior",
    [dist.Normal(torch.zeros(7), 1.0), lambda name, parameter, module: HorseshoePrior(torch.Size([7]))],
)
def test_a_prior_of_the_wrong_shape_is_refused(prior: object) -> None:
    with pytest.raises(ValueError, match=r"prior of '0\.weight': .*\(7,\).*\(4, 3\)"):
        assign(network(), prior)  # type: ignore[arg-type]


def test_a_discrete_prior_is_refused() -> None:
    with pytest.raises(ValueError, match=r"prior of '0\.weight': Bernoulli has a discrete support"):
        assign(network(), dist.Bernoulli(0.5))


def test_a_network_without_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match=r"net: it has no parameters"):
        assign(nn.ReLU(), NORMAL)


def test_a_rule_that_leaves_nothing_random_is_refused() -> None:
    with pytest.raises(ValueError, match=r"every parameter is frozen or belongs to a norm layer"):
        assign(nn.Linear(2, 2).requires_grad_(False), NORMAL)
