"""Layer by layer: what each estimator computes from given noise, and how its outputs are distributed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyrobnn.estimators import Estimator, Flipout, GaussianWeight, LocalReparameterization, PerExample, PerGroup
from pyrobnn.estimators.local_reparameterization import balanced_noise
from pyrobnn.estimators.weight import WeightMemory
from tests.conformance.monte_carlo import Z, z_of_mean

BATCH = 4

# name -> (layer, input shape of one example)
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 4), (6,)),
    "linear without bias": (lambda: nn.Linear(6, 4, bias=False), (6,)),
    "linear on sequences": (lambda: nn.Linear(6, 4), (5, 6)),
    "linear on grids without bias": (lambda: nn.Linear(6, 4, bias=False), (2, 3, 6)),
    "conv1d": (lambda: nn.Conv1d(2, 4, 3, stride=2, padding=1), (2, 7)),
    "conv2d, groups": (lambda: nn.Conv2d(4, 6, 3, groups=2, dilation=2, padding="same"), (4, 6, 5)),
    "conv2d without bias": (lambda: nn.Conv2d(2, 3, 2, bias=False), (2, 4, 4)),
    "conv3d": (lambda: nn.Conv3d(1, 2, 2), (1, 3, 3, 3)),
    "conv_transpose1d": (lambda: nn.ConvTranspose1d(2, 3, 3, stride=2), (2, 4)),
    "conv_transpose2d, groups": (
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
        (4, 3, 3),
    ),
    "conv_transpose3d": (lambda: nn.ConvTranspose3d(1, 2, 2), (1, 2, 2, 2)),
}
each_layer = pytest.mark.parametrize("name", LAYERS)


def gaussian(layer: nn.Module, estimator: Estimator) -> dict[str, Any]:
    """The layer's parameters as distributions."""
    return {
        name: GaussianWeight.of(p.detach(), torch.rand_like(p) * 0.5 + 0.1, estimator)
        for name, p in layer.named_parameters()
    }


def run(layer: nn.Module, weights: dict[str, Any], x: Tensor) -> Tensor:
    return torch.func.functional_call(layer, weights, (x,))


def built(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    return make().double(), torch.randn(BATCH, *shape, dtype=torch.float64)


def one_by_one(layer: nn.Module, weights: list[dict[str, Tensor]], x: Tensor) -> Tensor:
    """Each example under the weights of its own."""
    return torch.cat([run(layer, own, example.unsqueeze(0)) for own, example in zip(weights, x, strict=True)])


@pytest.mark.parametrize("name", [name for name in LAYERS if "linear" not in name])
def test_per_example_convolution_is_a_loop_over_examples(name: str) -> None:
    layer, x = built(name)
    weights = gaussian(layer, PerExample())
    output = run(layer, weights, x)
    drawn = [{n: w.loc + w.deviations(BATCH)[i] for n, w in weights.items()} for i in range(BATCH)]
    torch.testing.assert_close(output, one_by_one(layer, drawn, x))


def test_per_example_linear_on_sequences_is_a_loop_over_examples() -> None:
    layer, _ = built("linear")
    x = torch.randn(BATCH, 5, 6, dtype=torch.float64)
    weights = gaussian(layer, PerExample())
    output = run(layer, weights, x)
    drawn = [{n: w.loc + w.deviations(BATCH)[i] for n, w in weights.items()} for i in range(BATCH)]
    torch.testing.assert_close(output, one_by_one(layer, drawn, x))


@each_layer
@pytest.mark.parametrize("groups", [2, 3])
def test_per_group_is_a_loop_over_parts(name: str, groups: int) -> None:
    layer, x = built(name)
    weights = gaussian(layer, PerGroup(groups))
    output = run(layer, weights, x)
    parts = [
        run(layer, {n: w.loc + w.deviations(groups)[i] for n, w in weights.items()}, part)
        for i, part in enumerate(x.tensor_split(groups))
    ]
    torch.testing.assert_close(output, torch.cat(parts))
    deviations = next(iter(weights.values())).deviations(groups)
    assert torch.equal(deviations[0], -deviations[groups - groups // 2]), "mirrored pairs"


@pytest.mark.parametrize("name", ["linear", "conv1d", "conv_transpose1d", "conv3d"])
def test_flipout_is_a_loop_over_signed_deviations(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = built(name)
    weights, signs = gaussian(layer, Flipout()), []

    def remembered(shape: list[int], like: Tensor) -> Tensor:
        signs.append(torch.randn(*shape).sign().to(like))
        return signs[-1]

    monkeypatch.setattr("pyrobnn.estimators.flipout.random_signs", remembered)
    output = run(layer, weights, x)
    signs_in, signs_out = (s.reshape(BATCH, -1) for s in signs)
    channels = (1, 0) if "transpose" in name else (0, 1)  # dimensions of output and input channels in the weight
    drawn = []
    for r, s in zip(signs_out, signs_in, strict=True):
        own = {n: w.deviations().clone() for n, w in weights.items()}
        for vector, channel in ((r, channels[0]), (s, channels[1])):
            own["weight"] *= vector.view([-1 if d == channel else 1 for d in range(own["weight"].dim())])
        own["bias"] *= r
        drawn.append({n: weights[n].loc + d for n, d in own.items()})
    torch.testing.assert_close(output, one_by_one(layer, drawn, x))


@each_layer
@pytest.mark.parametrize("estimator", [Flipout(), LocalReparameterization(), PerExample(), PerGroup(2)], ids=repr)
@pytest.mark.statistical
def test_each_output_has_the_distribution_of_a_plain_draw(name: str, estimator: Estimator) -> None:
    """Mean and variance of every output of every example, 1500 draws against the closed form; z below 5."""
    layer, x = built(name)
    weights = gaussian(layer, estimator)
    draws = []
    for _ in range(1500):
        for weight in weights.values():
            weight._deviations = {}
        draws.append(run(layer, weights, x))
    outputs = torch.stack(draws)
    mean = run(layer, {n: w.loc for n, w in weights.items()}, x)
    variance = run(layer, {n: w.scale.square() for n, w in weights.items()}, x.square())
    assert z_of_mean(outputs, mean) < Z
    assert z_of_mean((outputs - mean).square(), variance) < Z


@pytest.mark.parametrize("estimator", [Flipout(), PerExample(), PerGroup(2)], ids=repr)
@pytest.mark.statistical
def test_outputs_of_one_example_are_correlated_as_under_a_plain_draw(estimator: Estimator) -> None:
    """Two positions of a convolution share its weights; 4000 draws, z below 5. Across examples there is no covariance,
    except that of mirrored parts."""
    torch.manual_seed(0)
    layer, x = nn.Conv1d(1, 1, 2, bias=False).double(), torch.rand(2, 1, 3, dtype=torch.float64) + 0.5
    weights = gaussian(layer, estimator)
    draws = []
    for _ in range(4000):
        weights["weight"]._deviations = {}
        draws.append(run(layer, weights, x).flatten() - run(layer, {"weight": weights["weight"].loc}, x).flatten())
    noise = torch.stack(draws)
    variance = weights["weight"].scale.square().flatten()
    expected = (x[:, 0, :2] * x[:, 0, 1:] * variance).sum(-1)  # covariance of the two outputs of each example
    products = torch.stack([noise[:, 0] * noise[:, 1], noise[:, 2] * noise[:, 3]], -1)
    assert z_of_mean(products, expected) < Z
    across = (noise[:, 0] * noise[:, 2]).unsqueeze(-1)
    apart = -(x[0, 0, :2] * x[1, 0, :2] * variance).sum() if isinstance(estimator, PerGroup) else torch.tensor(0.0)
    assert z_of_mean(across, apart.double().reshape(1)) < Z


@pytest.mark.parametrize("estimator", [Flipout(), LocalReparameterization(), PerExample()], ids=repr)
def test_an_example_without_a_batch_dimension(estimator: Estimator) -> None:
    layer, x = built("conv2d, groups")
    assert run(layer, gaussian(layer, estimator), x[0]).shape == layer(x[0]).shape
    linear, x = built("linear")
    assert run(linear, gaussian(linear, estimator), x[0]).shape == linear(x[0]).shape


def test_a_bias_alone_may_be_random() -> None:
    layer, x = built("linear")
    bias = gaussian(layer, Flipout())["bias"]
    output = run(layer, {"bias": bias}, x)
    torch.testing.assert_close(output, F.linear(x, layer.weight, bias.shared))


@pytest.mark.parametrize("estimator", [Flipout(), LocalReparameterization(), PerExample(), PerGroup(2)], ids=repr)
def test_a_weight_alone_may_be_random(estimator: Estimator) -> None:
    """With no spread left the layer is the plain one, its own bias included."""
    layer, x = built("conv2d, groups")
    weight = GaussianWeight.of(layer.weight.detach(), torch.zeros_like(layer.weight), estimator)
    torch.testing.assert_close(run(layer, {"weight": weight}, x), layer(x), atol=1e-6, rtol=0.0)


def test_other_operations_see_one_draw() -> None:
    torch.manual_seed(0)
    weight = gaussian(nn.Linear(3, 2), Flipout())["weight"]
    assert torch.equal(weight * 2.0, weight.shared * 2.0)
    assert torch.equal(weight.norm(), weight.shared.norm())
    assert torch.equal(torch.stack([weight, weight])[1], weight.shared)
    assert torch.equal(F.embedding(torch.tensor([1]), weight), weight.shared[1:])
    assert type(weight * 2.0) is Tensor


def test_asking_for_shape_and_dtype_draws_nothing() -> None:
    weight = gaussian(nn.Linear(3, 2), Flipout())["weight"]
    assert (weight.shape, weight.dim(), weight.dtype, weight.device.type) == ((2, 3), 2, torch.float32, "cpu")
    assert weight.numel() == 6 and len(weight) == 2 and weight.is_floating_point()
    assert not weight._deviations


def test_too_few_rows_for_the_groups() -> None:
    layer, x = built("linear")
    with pytest.raises(ValueError, match=r"groups: 4 draws need at least as many rows in a batch, got 2"):
        run(layer, gaussian(layer, PerGroup(4)), x[:2])


@pytest.mark.parametrize("shape", [(1,), (3, 7), (2, 1, 65), (128, 400)])
def test_random_signs(shape: tuple[int, ...]) -> None:
    from pyrobnn.estimators.flipout import random_signs

    torch.manual_seed(0)
    signs = random_signs(shape, torch.empty(0))
    assert signs.shape == shape and bool((signs.abs() == 1).all())


def test_random_signs_are_fair_and_independent() -> None:
    """640,000 signs: their mean and the products of neighbors, in and across words, within 5 standard errors."""
    from pyrobnn.estimators.flipout import random_signs

    torch.manual_seed(0)
    signs = random_signs((10_000, 64), torch.empty(0, dtype=torch.float64))
    assert float(signs.mean(0).abs().max()) < 5 / 10_000**0.5
    for shift in (1, 8, 63):
        assert float((signs * signs.roll(shift, -1)).mean(0).abs().max()) < 5 / 10_000**0.5


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_drawn_outputs_are_their_formula(rows: int) -> None:
    """``m + sqrt(v) ε`` with autograd's gradients, where ε is balanced over the batch."""
    torch.manual_seed(0)
    x, loc, scale = torch.randn(rows, 3), torch.randn(4, 3), torch.rand(4, 3) + 0.1
    weight = GaussianWeight.of(loc.requires_grad_(), scale.requires_grad_(), LocalReparameterization())
    drawn = F.linear(x, weight)
    with torch.no_grad():
        noise = (drawn - F.linear(x, loc)) / F.linear(x.square(), scale.square()).sqrt()
    torch.testing.assert_close(noise[1:2], -noise[:1][: rows - 1])
    formula = F.linear(x, loc) + F.linear(x.square(), scale.square()).sqrt() * noise
    torch.testing.assert_close(drawn, formula)
    upstream = torch.randn_like(drawn)
    found = torch.autograd.grad(drawn, (loc, scale), upstream)
    torch.testing.assert_close(found, torch.autograd.grad(formula, (loc, scale), upstream))


def _memory(scale: torch.Tensor) -> WeightMemory:
    """Memory of a step in which the variances have taken that of the standard deviations."""
    deviation, by_loc, by_variance = torch.full((3, *scale.shape), torch.nan, dtype=scale.dtype)
    leaf = scale.square().requires_grad_()

    def attach(value: Tensor, receive: Callable[[Tensor], None]) -> Tensor:
        leaf = value.requires_grad_()
        leaf.register_hook(receive)
        return leaf

    return WeightMemory(deviation, by_loc, by_variance, lambda: leaf, lambda: True, attach)


@pytest.mark.parametrize("uses", [1, 2])
@pytest.mark.parametrize("bias", ["distribution", "point", "none"])
def test_a_linear_layer_by_hand_has_the_gradients_of_the_formula(bias: str, uses: int) -> None:
    """Those of a weight that is used once lie in its memory, not copied."""
    torch.manual_seed(0)
    x, loc, bias_loc = (torch.randn(*shape).double().requires_grad_() for shape in ((5, 3), (4, 3), (4,)))
    scale, bias_scale = torch.rand(4, 3).double(), torch.rand(4).double()
    variance, bias_variance = scale.square().requires_grad_(), bias_scale.square().requires_grad_()
    memory, bias_memory = (_memory(value) for value in (scale, bias_scale))
    weight = GaussianWeight.of(loc, scale, LocalReparameterization(), memory)
    drawn_bias = GaussianWeight.of(bias_loc, bias_scale, LocalReparameterization(), bias_memory)
    mean = F.linear(x, loc, None if bias == "none" else bias_loc)
    deviation = F.linear(x.square(), variance, bias_variance if bias == "distribution" else None).sqrt()
    layer = {"distribution": drawn_bias, "point": bias_loc, "none": None}[bias]

    found, formula = torch.zeros(()), torch.zeros(())
    for upstream in torch.randn(uses, 5, 4).double():
        drawn = F.linear(x, weight, layer)
        noise = ((drawn - mean) / deviation).detach()
        torch.testing.assert_close(noise[1], -noise[0])
        found, formula = found + (drawn * upstream).sum(), formula + ((mean + deviation * noise) * upstream).sum()
    expected = torch.autograd.grad(formula, [x, loc, variance, bias_loc, bias_variance], materialize_grads=True)
    found.backward()
    leaves = [x, loc, weight.variance, bias_loc, drawn_bias.variance]
    for leaf, slope in zip(leaves, expected, strict=True):
        torch.testing.assert_close(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad, slope)
    if uses == 1:
        assert loc.grad.data_ptr() == memory.by_loc.data_ptr()  # type: ignore[union-attr]
        assert weight.variance.grad.data_ptr() == memory.by_variance.data_ptr()  # type: ignore[union-attr]


@pytest.mark.parametrize("shape", [(24, 8), (24, 8, 3, 2), (19, 7), (5, 4), (1, 9)])
def test_eight_examples_share_a_block_of_random_numbers(shape: tuple[int, ...]) -> None:
    """Mirrored in pairs, and four pairs orthogonal where channels come in fours; blocks are independent."""
    torch.manual_seed(0)
    noise = balanced_noise(torch.empty(shape), channel=1)
    size = -(-shape[0] // 8)
    assert noise.shape == shape and noise.abs().unique().numel() == size * noise[0].numel()
    groups = noise.split(size)
    for even, odd in zip(groups[::2], groups[1::2], strict=False):
        assert torch.equal(even[: len(odd)], -odd)
    by_channel = noise.reshape(*shape[:2], -1)[::size, :, 0]
    signs = (by_channel * by_channel[0]).sign()
    if shape[1] % 4 == 0:
        assert torch.equal(signs[::2] @ signs[::2].T, shape[1] * torch.eye(len(signs[::2])))


def test_noise_has_the_memory_format_of_the_outputs() -> None:
    """Else it costs a layer that is channels last a pass across memory."""
    like = torch.empty(16, 8, 5, 5)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        noise = balanced_noise(like.contiguous(memory_format=memory_format), 1)
        assert noise.is_contiguous(memory_format=memory_format)


def test_two_examples_share_a_block_where_channels_are_few() -> None:
    torch.manual_seed(0)
    noise = balanced_noise(torch.empty(6, 3))
    assert torch.equal(noise[:3], -noise[3:]) and noise.abs().unique().numel() == 9


def test_outputs_of_one_example_without_a_batch_are_independent() -> None:
    """None of them mirrors another."""
    torch.manual_seed(0)
    weight = GaussianWeight.of(torch.zeros(4, 3), torch.ones(4, 3), LocalReparameterization())
    drawn = F.linear(torch.ones(3), weight)
    assert drawn.abs().unique().numel() == 4


@pytest.mark.parametrize("bias", [True, False])
def test_positions_of_a_sequence_are_drawn_independently(bias: bool) -> None:
    """Their moments are those of a plain draw: z-scores of 40 outputs from 10,000 draws are below 4.5.

    Eight examples share the squares of their noise.
    """
    torch.manual_seed(0)
    layer, x = nn.Linear(3, 4, bias=bias).double(), torch.randn(2, 5, 3, dtype=torch.float64)
    weights = gaussian(layer, LocalReparameterization())
    outputs = run(layer, weights, x.repeat(10_000, 1, 1)).view(10_000, 2, 5, 4)
    mean = layer(x)
    variance = x.square() @ weights["weight"].scale.square().T + (weights["bias"].scale.square() if bias else 0.0)
    deviations = ((outputs - mean) / variance.sqrt()).detach()
    blocks = (20_000 / 8) ** 0.5
    assert float(deviations.mean(0).abs().max()) * 100 < 4.5
    assert float((deviations.square().mean(0) - 1.0).abs().max()) * blocks / 2**0.5 < 4.5
    assert float((deviations[:, :, 0] * deviations[:, :, 1]).mean(0).abs().max()) * blocks < 4.5


def test_a_transformer_has_the_gradients_of_its_draw() -> None:
    """Means and variances of a layer on sequences: the gradients of ``m + sqrt(v) ε`` at the noise that was drawn."""
    torch.manual_seed(0)
    x = torch.randn(3, 5, 4, dtype=torch.float64)
    loc, scale = torch.randn(2, 4, dtype=torch.float64), torch.rand(2, 4, dtype=torch.float64) + 0.1
    bias = nn.Parameter(torch.randn(2, dtype=torch.float64))
    leaves = loc.requires_grad_(), scale.requires_grad_(), bias
    torch.manual_seed(1)
    found = torch.autograd.grad(
        F.linear(x, GaussianWeight.of(loc, scale, LocalReparameterization()), bias).square().sum(), leaves
    )
    torch.manual_seed(1)
    noise = balanced_noise(torch.empty(3, 5, 2, dtype=torch.float64))
    expected = torch.autograd.grad(
        (F.linear(x, loc, bias) + (F.linear(x.square(), scale.square()) + 1e-14).sqrt() * noise).square().sum(), leaves
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
