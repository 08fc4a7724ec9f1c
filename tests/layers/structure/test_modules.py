"""Choices, gates and depths: what they compute, their gradients, what they refuse, BatchNorm under them."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn import likelihoods
from pyrobnn.estimators import PerGroup
from pyrobnn.guides import MAP, Composite, ConcreteStructure
from pyrobnn.layers.structure.mixture import mixture
from pyrobnn.layers.structure.operations import WeightedBatchNorm2d
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.objectives import ELBO
from pyrobnn.structure import Choice, Depth, Edges, Gate, Gates, Zero
from tests.conformance.monte_carlo import Z, z_of_mean
from tests.layers.structure.networks import Scaled


def setting(module: nn.Module, *value: float) -> None:
    with torch.no_grad():
        module.structure.copy_(torch.tensor(value).view_as(module.structure))  # type: ignore[operator,union-attr]


# -------------------------------------------------------------------------------------------------- values


def test_a_choice_is_the_weighted_sum() -> None:
    choice = Choice({"none": Zero(), "same": nn.Identity(), "double": Scaled(2.0)})
    setting(choice.edges, 0.5, 0.2, 0.3)
    x = torch.randn(4, 3)
    torch.testing.assert_close(choice(x), 0.8 * x)
    assert choice.edges.operations == ("none", "same", "double")


def test_zero_is_not_computed() -> None:
    class Never(Zero):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("it was run")

    Choice([Never(), nn.Identity()])(torch.randn(2, 3))


def test_gates_multiply_along_their_dimension() -> None:
    x = torch.randn(2, 3, 4, 5)
    gate = Gate(3)
    setting(gate.gates, 0.0, 0.5, 1.0)
    torch.testing.assert_close(gate(x), x * torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1))
    last = Gate(5, nn.Linear(5, 5), dim=-1)
    setting(last.gates, 0.0, 0.25, 0.5, 0.75, 1.0)
    torch.testing.assert_close(last(x), last.layer(x) * last.gates.structure)  # type: ignore[misc]
    whole = Gate()
    setting(whole.gates, 0.25)
    torch.testing.assert_close(whole(x), 0.25 * x)


def test_depths_mix_the_outputs_after_each_block() -> None:
    x = torch.randn(4, 3)
    depth = Depth([Scaled(2.0), Scaled(3.0)], min_depth=0)
    setting(depth.depths, 0.5, 0.3, 0.2)
    torch.testing.assert_close(depth(x), (0.5 + 0.3 * 2.0 + 0.2 * 6.0) * x)
    deeper = Depth([Scaled(2.0), Scaled(3.0), Scaled(5.0)], min_depth=2)
    setting(deeper.depths, 0.5, 0.5)
    torch.testing.assert_close(deeper(x), 18.0 * x)


def test_zero_has_the_shape_it_stands_for() -> None:
    x = torch.randn(2, 3, 5, 4)
    conv = nn.Conv2d(3, 6, 3, stride=2, padding=1)
    for zero, like in ((Zero(), x), (Zero(stride=2), x[:, :, ::2, ::2]), (Zero(6, 2), conv(x)), (Zero(7), None)):
        expected = (2, 7, 5, 4) if like is None else like.shape
        assert zero(x).shape == zero.output_shape(x.shape) == expected
        assert bool((zero(x) == 0).all())


def test_operations_in_a_list_are_named_by_their_classes() -> None:
    choice = Choice([nn.Identity(), nn.Tanh(), nn.Identity(), nn.Identity()])
    assert choice.edges.operations == ("identity", "tanh", "identity_2", "identity_3")


def test_no_operation_of_a_list_is_lost_to_another_of_its_name() -> None:
    class Conv_Norm(Scaled):
        pass

    class Tanh_2(nn.Tanh):
        pass

    choice = Choice([Conv_Norm(1.0), Conv_Norm(2.0), Tanh_2(), nn.Tanh(), nn.Tanh()])
    assert choice.edges.operations == ("conv_norm", "conv_norm_2", "tanh_2", "tanh", "tanh_3")
    x = torch.randn(4, 3)
    torch.testing.assert_close(choice(x), 0.2 * (3.0 * x + 3.0 * x.tanh()))


# ------------------------------------------------------------------------------------------------ gradients


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 5), st.integers(1, 4), st.booleans())
def test_gradients_of_the_mixture(num_choices: int, columns: int, contiguous: bool) -> None:
    torch.manual_seed(num_choices * 10 + columns)
    weights = torch.randn(num_choices, dtype=torch.float64, requires_grad=True)
    indices = tuple(range(1, num_choices)) if num_choices > 2 else (0, 1)
    outputs = [torch.randn(3, columns, dtype=torch.float64) for _ in indices]
    outputs = [(o if contiguous else o.t().contiguous().t()).requires_grad_() for o in outputs]
    assert torch.autograd.gradcheck(lambda w, *o: mixture(w, o, indices), (weights, *outputs))
    direction = torch.randn(3, columns, dtype=torch.float64)
    plain = sum(weights[i] * o for i, o in zip(indices, outputs, strict=True))
    expected = torch.autograd.grad((plain * direction).sum(), [weights, *outputs])  # type: ignore[union-attr]
    found = torch.autograd.grad((mixture(weights, outputs, indices) * direction).sum(), [weights, *outputs])
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_mixture_under_transforms() -> None:
    weights, outputs = torch.randn(4, 3).double(), torch.randn(3, 5).double()

    def loss(w: Tensor) -> Tensor:
        return mixture(w, outputs.unbind(), (0, 1, 2)).square().sum()

    slopes = torch.func.vmap(torch.func.grad(loss))(weights)
    expected = torch.stack([2.0 * (w @ outputs) @ outputs.T for w in weights])
    torch.testing.assert_close(slopes, expected)


@pytest.mark.parametrize(
    "operations", [(nn.Identity, "linear"), ("linear", nn.Identity), ("linear", "linear")], ids=str
)
def test_a_choice_trains_under_autocasting(operations: Any) -> None:
    """Layers return half precision there and other operations do not."""
    torch.manual_seed(0)
    made = [nn.Linear(6, 6) if kind == "linear" else kind() for kind in operations]
    model = pb.bayesianize(nn.Sequential(Choice(made), nn.Linear(6, 1)))
    x, found = torch.randn(8, 6), []
    logits = torch.tensor([[0.3, -0.2]], requires_grad=True)
    for enabled in (False, True):
        draw = {"0.edges.structure": logits.softmax(-1)}
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            output = torch.func.functional_call(model.network, draw, (x,))
        (slope,) = torch.autograd.grad(output.float().square().sum(), logits)
        found.append(slope)
    torch.testing.assert_close(found[1], found[0], rtol=0.05, atol=0.05 * float(found[0].abs().max()))


def test_rows_of_a_draw_are_taken_apart_once() -> None:
    edges = Edges(["a", "b"], ["x", "y"])
    logits = torch.randn(2, 2, requires_grad=True)
    draw = logits.softmax(-1)
    with torch.no_grad():
        assert torch.equal(edges.row(0), edges.structure[0])
    rows = torch.func.functional_call(_Reader(edges), {"edges.structure": draw}, ())
    assert rows[0] is rows[1]
    (slope,) = torch.autograd.grad(rows[0][0], logits)
    expected = torch.autograd.grad(logits.softmax(-1)[1, 0], logits)[0]
    torch.testing.assert_close(slope, expected)


class _Reader(nn.Module):
    def __init__(self, edges: Edges) -> None:
        super().__init__()
        self.edges = edges

    def forward(self) -> list[Tensor]:
        return [self.edges.row(1), self.edges.row(1)]


# ------------------------------------------------------------------------------------------------ BatchNorm


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_normalized_operations_are_weighed_by_the_structure(layout: torch.memory_format) -> None:
    """Values, gradients and running statistics of BatchNorm without scale behind each operation, times α."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 3, 3, padding=1)
    choice = Choice({"none": Zero(), "same": nn.Identity(), "conv": conv}, batch_norm=3).double()
    plain = [nn.BatchNorm2d(3, affine=False).double() for _ in range(2)]
    alpha = torch.tensor([[0.3, 0.6, 0.1]], dtype=torch.float64, requires_grad=True)
    weights = [alpha, *conv.parameters()]

    def of_choice(x: Tensor) -> Tensor:
        return torch.func.functional_call(choice, {"edges.structure": alpha}, x)

    def by_hand(x: Tensor) -> Tensor:
        return alpha[0, 1] * plain[0](x) + alpha[0, 2] * plain[1](conv(x))

    for training in (True, True, False):
        for module in (choice, *plain):
            module.train(training)
        x, direction = (t.to(memory_format=layout) for t in torch.randn(2, 4, 3, 5, 5, dtype=torch.float64))
        x.requires_grad_()
        found, expected = of_choice(x), by_hand(x)
        torch.testing.assert_close(found, expected)
        slopes = [torch.autograd.grad(output, [x, *weights], direction) for output in (found, expected)]
        torch.testing.assert_close(*slopes)
    for norm, other in zip(choice.norms, plain, strict=True):
        torch.testing.assert_close(dict(norm.named_buffers()), dict(other.named_buffers()))


def test_normalized_operations_under_transforms() -> None:
    choice = Choice([nn.Identity(), nn.Tanh()], batch_norm=2).eval()
    alphas, x = torch.rand(5, 1, 2), torch.randn(3, 2, 4, 4)

    def outputs(alpha: Tensor) -> Tensor:
        return torch.func.functional_call(choice, {"edges.structure": alpha}, x)

    torch.testing.assert_close(torch.vmap(outputs)(alphas), torch.stack([outputs(alpha) for alpha in alphas]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_operation_comes_with_its_own_statistics(dtype: torch.dtype) -> None:
    choice = Choice({"none": Zero(), "same": nn.Identity(), "bound": nn.Tanh()}, batch_norm=2).to(dtype)
    x = 3.0 + torch.randn(8, 2, 4, 4, dtype=dtype)
    choice(x)
    choice.eval()
    assert choice.operation(0) is choice.operations[0]
    for index in (1, 2):
        setting(choice.edges, *torch.eye(3)[index])
        operation = choice.operation(index)
        assert type(operation[1]) is nn.BatchNorm2d and not operation[1].affine  # type: ignore[index]
        assert not operation.training
        torch.testing.assert_close(operation(x), choice(x))


def test_a_normalization_without_weights_is_that_of_torch() -> None:
    norm, x = WeightedBatchNorm2d(3), torch.randn(4, 3, 2, 2)
    torch.testing.assert_close(norm(x), nn.BatchNorm2d(3, affine=False)(x))
    assert (
        norm.weight is None
        and not list(norm.parameters())
        and set(norm.state_dict()) == set(nn.BatchNorm2d(3, affine=False).state_dict())
    )


class Normalized(nn.Module):
    """A random multiple of the input, then statistics of it."""

    def __init__(self) -> None:
        super().__init__()
        self.choice = Choice([Scaled(1.0), Scaled(3.0)])
        self.norm = nn.BatchNorm1d(1, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.choice(x))


@pytest.mark.statistical
def test_statistics_are_recalibrated_under_random_structure() -> None:
    """4,000 draws of the structure: the running mean is ``E[α_1 + 3 α_2]`` times the inputs'; z-score below 5."""
    torch.manual_seed(1)
    x = torch.tensor([[0.5], [1.5], [1.0], [1.0]])
    model = SupervisedModel(Normalized(), likelihoods.Normal(1.0), dist.Normal(0.0, 1.0), num_data=4)
    guide = ConcreteStructure(model, {"net.choice.edges.structure": torch.tensor([[0.7, 0.0]])}, temperature=0.6)
    norm = model.net.network.norm  # type: ignore[union-attr]
    pb.recalibrate_batch_norm(model, guide, [x] * 40, num_samples=100)
    draws = guide.sample(20_000)["net.choice.edges.structure"][:, 0]
    scale = draws @ torch.tensor([1.0, 3.0])
    error = float(scale.std()) * (1 / 4000 + 1 / 20_000) ** 0.5
    assert abs(float(norm.running_mean) - float(scale.mean())) < Z * error
    # The inputs' variance under each structure, averaged over structures.
    spread = scale.square() * float(x.var())
    error = float(spread.std()) * (1 / 4000 + 1 / 20_000) ** 0.5
    assert abs(float(norm.running_var) - float(spread.mean())) < Z * error
    before = norm.running_mean.clone()
    pb.predict(model, guide, x, num_samples=5)
    assert torch.equal(norm.running_mean, before)


def test_statistics_move_once_per_step_whatever_the_groups() -> None:
    model = SupervisedModel(Normalized(), likelihoods.Normal(1.0), dist.Normal(0.0, 1.0), num_data=4)
    guide, x = ConcreteStructure(model), torch.randn(4, 1)
    norm = model.net.network.norm  # type: ignore[union-attr]
    for elbo in (ELBO(3), ELBO(estimator=PerGroup(2))):
        before = int(norm.num_batches_tracked)
        elbo.loss_and_grads(model, guide, x, torch.randn(4, 1))
        assert int(norm.num_batches_tracked) == before + 1


# ------------------------------------------------------------------------------------------------ refusals


def test_operations_of_different_shapes_are_refused_by_name() -> None:
    edges = Edges([(0, 1), (0, 2)], ["same", "fewer"])
    choice = Choice({"same": nn.Identity(), "fewer": nn.Linear(4, 2)}, edges=edges, edge=(0, 2))
    with pytest.raises(
        ValueError, match=r"edge '0->2': its operation 'fewer' returns the shape \(3, 2\).*'same' .*\(3, 4\)"
    ):
        choice(torch.randn(3, 4))
    strided = Choice({"zero": Zero(), "conv": nn.Conv2d(2, 2, 1, stride=2)})
    with pytest.raises(ValueError, match=r"edge 'edge': its operation 'zero' returns the shape \(1, 2, 4, 4\)"):
        strided(torch.randn(1, 2, 4, 4))
    with pytest.raises(
        ValueError, match=r"blocks: .*after 2 blocks has the shape \(3, 2\), but after 1 it has \(3, 4\)"
    ):
        Depth([nn.Identity(), nn.Linear(4, 2)])(torch.randn(3, 4))
    with pytest.raises(ValueError, match=r"Zero: .* its inputs are \[B, C, H, W\], got the shape \(2, 3\)"):
        Choice([Zero(stride=2), nn.Identity()])(torch.randn(2, 3))
    with pytest.raises(
        ValueError, match=r"batch_norm: on edge 'edge' expected outputs of shape \[B, 5, H, W\], got \(2, 3\)"
    ):
        Choice([nn.Identity(), nn.Tanh()], batch_norm=5)(torch.randn(2, 3))
    with pytest.raises(ValueError, match=r"batch_norm: .* \[B, 5, H, W\], got \(2, 3, 4, 4\)"):
        Choice([nn.Identity(), nn.Tanh()], batch_norm=5)(torch.randn(2, 3, 4, 4))
    with pytest.raises(ValueError, match=r"features: 3 gates along dimension 1, but the output has the shape \(2, 4\)"):
        Gate(3)(torch.randn(2, 4))
    for dim in (2, -3):
        with pytest.raises(ValueError, match=rf"features: 3 gates along dimension {dim}, .* has the shape \(2, 3\)"):
            Gate(3, dim=dim)(torch.randn(2, 3))


def _choice(**options: Any) -> Choice:
    return Choice({"x": nn.Identity(), "y": nn.Tanh()}, **options)


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: Choice([nn.Identity(), torch.tanh]), TypeError, "operations: .* expected a torch.nn.Module"),  # type: ignore[list-item]
        (lambda: Choice([Zero(), Zero()]), ValueError, "all are Zero"),
        (lambda: _choice(batch_norm=0), ValueError, "batch_norm: expected a positive int"),
        (
            lambda: _choice(edges=Edges(["a"], ["y", "x"]), edge="a"),
            ValueError,
            "operations: edge 'a' has x, y, but its",
        ),
        (lambda: _choice(edges=Edges(["a"], ["x", "y"]), edge="b"), ValueError, "edge: there is no edge 'b'"),
        (
            lambda: _choice(edges=Edges(["a"], ["x", "y"]), edge="a", temperature=1.0),
            ValueError,
            "a shared site has its own prior",
        ),
        (lambda: Gate(3, gates=Gates(2)), ValueError, "gates: the site has 2 gates, but there are 3 features"),
        (lambda: Gate(0), ValueError, "features: expected a positive int"),
        (lambda: Depth([nn.Identity()]), ValueError, "operations: expected at least 2|min_depth"),
        (lambda: Depth([]), ValueError, "blocks: there are none to choose a depth of"),
        (lambda: Depth([nn.Identity()] * 2, min_depth=2), ValueError, "min_depth: expected an int from 0 to 1, got 2"),
        (
            lambda: Depth([nn.Identity()] * 2, depths=Edges(["blocks"], ["0", "1"])),
            ValueError,
            "depths: the site has 0, 1",
        ),
        (lambda: Zero(0), ValueError, "channels: expected a positive int"),
    ],
)
def test_refusals(make: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        make()


def test_draws_of_the_structure_train_the_weights_of_all_operations() -> None:
    torch.manual_seed(2)
    net = Choice([nn.Linear(2, 1), nn.Linear(2, 1)])
    model = SupervisedModel(net, likelihoods.Normal(0.5), dist.Normal(0.0, 1.0), num_data=6)
    guide = Composite(model, [("*structure*", ConcreteStructure), ("*", MAP)])
    ELBO().loss_and_grads(model, guide, torch.randn(6, 2), torch.randn(6, 1))
    assert all(bool((p.grad != 0).all()) for p in guide.parameters())  # type: ignore[union-attr]


def test_many_draws_average_to_the_mean_weights() -> None:
    """10,000 draws from a uniform prior: each of three operations weighs a third; z-score below 5."""
    torch.manual_seed(3)
    prior = Choice([Scaled(1.0), Scaled(2.0), Scaled(6.0)]).edges.own_prior("structure").conditional()
    assert z_of_mean(prior.sample((10_000,)) @ torch.tensor([[1.0], [2.0], [6.0]]), 3.0) < Z
