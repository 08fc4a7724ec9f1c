"""Weights that one run of the network uses several times: one weight for each row, or an error that names them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pyrobnn as pb
from models.sde_hnn import sde_hnn
from pyrobnn import estimators, guides
from pyrobnn.estimators import Estimator, Flipout, GaussianWeight, LocalReparameterization, PerExample, PerGroup
from pyrobnn.estimators.uses import in_one_run
from pyrobnn.objectives import ELBO
from tests.conformance.monte_carlo import Z, z_of_mean, z_of_means
from tests.estimators.test_estimators import gradients, mlp, problem
from tests.estimators.test_layers import BATCH, built, each_layer, gaussian, run


class Loop(nn.Module):
    """A recurrent network by hand: one layer in three time steps, and one on top."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for _ in range(3):
            h = self.cell(h).tanh() + x
        return self.out(h)


class Square(nn.Module):
    """The product of two calls, whose mean has the outputs' variance: 0 instead if each call had its own weight."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x) * self.cell(x)


# ---------------------------------------------------------------------------------------- one weight in all calls


@each_layer
@pytest.mark.parametrize("estimator", [Flipout(), PerExample(), PerGroup(2)], ids=repr)
def test_three_calls_are_one_affine_map(name: str, estimator: Estimator) -> None:
    """``f((x + 3 z) / 4) = (f(x) + 3 f(z)) / 4`` row by row: true of any weights, if they are the same in each call."""
    layer, x = built(name)
    if isinstance(estimator, PerExample) and x.dim() == 2:
        pytest.skip("it draws outputs there, see the refusals")
    z, weights = torch.randn_like(x), gaussian(layer, estimator)
    with in_one_run(weights)(None):
        first, second, between = (run(layer, weights, value) for value in (x, z, (x + 3.0 * z) / 4.0))
    torch.testing.assert_close(between, (first + 3.0 * second) / 4.0)
    assert not torch.equal(run(layer, weights, x), layer(x))


@pytest.mark.parametrize("estimator", [Flipout(), PerExample()], ids=repr)
@pytest.mark.parametrize("name", ["linear", "conv1d"])
@pytest.mark.statistical
def test_two_calls_have_the_covariance_of_one_weight(name: str, estimator: Estimator) -> None:
    """Of pre-activations at two inputs: ``Σ σ² x z + σ_b²`` for one output of a row, 0 for two outputs or rows.

    4000 draws; all z below 5. A convolution is a linear layer on its one window.
    """
    torch.manual_seed(0)
    layer = (nn.Linear(3, 2) if name == "linear" else nn.Conv1d(1, 2, 3)).double()
    shape = (2, 3) if name == "linear" else (2, 1, 3)
    if name == "linear" and isinstance(estimator, PerExample):
        shape = (2, 1, 3)  # a sequence, for which it makes weights
    x, z = (torch.rand(*shape, dtype=torch.float64) + 0.5 for _ in range(2))
    weights = gaussian(layer, estimator)
    means = [run(layer, {n: w.loc for n, w in weights.items()}, value) for value in (x, z)]
    draws = []
    for _ in range(4000):
        for weight in weights.values():
            weight._deviations = {}
        with in_one_run(weights)(None):
            noise = [run(layer, weights, value) - mean for value, mean in zip((x, z), means, strict=True)]
        draws.append(noise[0].reshape(4, 1) * noise[1].reshape(1, 4))  # two rows with two outputs each
    variance, bias_variance = (weights[n].scale.square() for n in ("weight", "bias"))
    by_row = (x * z).reshape(2, 3) @ variance.reshape(2, 3).T + bias_variance
    assert z_of_mean(torch.stack(draws), torch.diag(by_row.flatten())) < Z


@pytest.mark.statistical
@pytest.mark.parametrize("name", ["flipout", "per_group"])
def test_mean_gradient_of_two_calls_is_that_of_the_shared_draw(name: str) -> None:
    """700 gradients each; z below 5."""
    model, guide, batch = problem(Square(), (3,), scale=0.5)
    ours = gradients(model, guide, batch, name, 700, seed=2)
    plain = gradients(model, guide, batch, None, 700, seed=3)
    assert z_of_means(ours, plain) < Z


def test_every_time_step_of_an_sde_network_has_the_same_weights() -> None:
    """Pre-activations of drift and diffusion, of all steps and inputs, are one affine map of the states of a path.

    For each of 4 paths, 4 steps of 40 inputs determine 9 numbers an output with no residual.
    """
    torch.manual_seed(0)
    model = sde_hnn(40, inputs=1, hidden=8, steps=4, paths=4, prediction_paths=4).double()
    guide = guides.MeanField(model, init_scale=0.3).double()
    fields = [model.net.network.drift.end, model.net.network.diffusion.end]
    seen: list[list[Any]] = [[], []]
    for field, calls in zip(fields, seen, strict=True):
        field.register_forward_hook(lambda _, inputs, output, calls=calls: calls.append((inputs[0], output)))
    x = torch.randn(40, 1, dtype=torch.float64)
    ELBO(estimator="flipout").backward(model, guide, (x, x))
    drawn = []
    for calls in seen:
        assert len(calls) == 4
        states, outputs = (torch.cat([call[i].detach() for call in calls], 1) for i in (0, 1))  # [paths, 160, 8]
        design = torch.cat([states, torch.ones_like(states[..., :1])], -1)
        solution = torch.linalg.lstsq(design, outputs).solution
        assert float((design @ solution - outputs).abs().max()) < 1e-8
        drawn.append(solution)
    assert all(float((weights[0] - weights[1]).abs().max()) > 0.01 for weights in drawn), "each path has its own"


class Tied(nn.Module):
    """Two layers with one weight, or one bias."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        setattr(self.second, what, getattr(self.first, what))

    def forward(self, x: Tensor) -> Tensor:
        zero = torch.zeros_like(x)
        self.seen = self.first(x), self.second(x), self.first(zero), self.second(zero)
        return self.seen[1][:, :2]


@pytest.mark.parametrize("name", ["flipout", "per_group"])
def test_tied_layers_share_what_is_tied(name: str) -> None:
    """Their weights give the same products, their biases the same outputs at 0; what is not tied differs."""
    for what in ("weight", "bias"):
        model, guide, batch = problem(Tied(what), (3,))
        ELBO(estimator=name).backward(model, guide, batch)
        first, second, first_bias, second_bias = (value.detach() for value in model.net.network.seen)
        products, other = first - first_bias, second - second_bias
        if what == "weight":
            torch.testing.assert_close(products, other)
            assert float((first_bias - second_bias).abs().min()) > 0
        else:
            torch.testing.assert_close(first_bias, second_bias)
            assert float((products - other).abs().min()) > 0


def test_a_convolution_tied_to_its_transpose() -> None:
    """One matrix ``A`` and ``Aᵀ`` for each row: ``⟨A x, z⟩ = ⟨x, Aᵀ z⟩``."""
    torch.manual_seed(0)
    weight = GaussianWeight.of(torch.randn(4, 2, 3).double(), torch.rand(4, 2, 3).double(), Flipout())
    x, z = torch.randn(5, 4, 7).double(), torch.randn(5, 8, 5).double()
    with in_one_run({"w": weight})(None):
        forth, back = F.conv1d(x, weight, groups=2), F.conv_transpose1d(z[:, :4], weight, groups=2)
    torch.testing.assert_close((forth * z[:, :4]).sum((1, 2)), (x * back).sum((1, 2)))


class TiedEmbedding(nn.Module):
    """Embedding and output layer with one weight, as language models have."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.out = nn.Embedding(4, 3), nn.Linear(3, 4, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        table, product = self.embedding(torch.arange(4)), self.out(torch.eye(3, dtype=x.dtype))
        self.seen = table, product.T
        return self.out(x)


@pytest.mark.parametrize("name", ["flipout", "local_reparameterization", "per_example", "per_group"])
def test_a_weight_tied_to_a_layer_that_is_not_handled_has_the_shared_draw(name: str) -> None:
    """As `coverage` says."""
    model, guide, batch = problem(TiedEmbedding(), (3,))
    assert estimators.coverage(model, name) == {"net.embedding.weight": "shared"}
    ELBO(estimator=name).backward(model, guide, batch)
    torch.testing.assert_close(*model.net.network.seen)


# --------------------------------------------------------------------------------------------------- refusals


class Rows(nn.Module):
    """A layer on a batch, and on twice as many rows."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x) + self.cell(torch.cat([x, x]))[: len(x)]


class Mixed(nn.Module):
    """A layer, and another operation with its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x) * self.cell.weight.norm()


NEW_OUTPUTS = r"draws the outputs of each call anew, .*'flipout' gives each row one weight in all calls; or let"
REFUSED: list[tuple[Callable[[], nn.Module], str, str]] = [
    (Loop, "local_reparameterization", r"'net.cell.weight', 'net.cell.bias'. 'local_.*' " + NEW_OUTPUTS),
    (Loop, "per_example", r"'net.cell.weight', 'net.cell.bias'. 'per_example' " + NEW_OUTPUTS),
    (Rows, "flipout", r"first for one weight for each row \(8, 3, 2\), then for one weight for each row \(16, 3, 2\)"),
    (Rows, "per_group", r"first for one weight for each group of rows \(8\), then .* \(16\)"),
    (Mixed, "flipout", r"several times: 'net.cell.weight'. .* for one weight for each row .*, then for one weight for"),
    (Mixed, "local_reparameterization", r"first for the outputs of a layer, then for one weight for all rows"),
]


@pytest.mark.parametrize(("net", "name", "message"), REFUSED)
def test_uses_that_share_no_draw_are_refused(net: Callable[[], nn.Module], name: str, message: str) -> None:
    """On both paths, by one error that names all sites; the mend that it names works."""
    model, guide, batch = problem(net(), (3,))
    elbo = ELBO(estimator=name)
    with pytest.raises(TypeError, match=r"^estimator: one run of the network uses .*" + message):
        elbo.backward(model, guide, batch)
    with pytest.raises(TypeError, match=r"estimator=\[\('net.cell.weight', 'shared'\), ..., \('\*', '"):
        elbo.differentiable_loss(model, guide, *batch)
    if name != "per_group":
        mended = ELBO(estimator=[("net.cell.*", "shared"), ("*", name)])
        assert bool(mended.backward(model, guide, batch).divergence > 0)
    if net is Loop:
        assert bool(ELBO(estimator="flipout").backward(model, guide, batch).divergence > 0)


def test_an_sde_network_refuses_outputs_drawn_by_step() -> None:
    model = sde_hnn(8, inputs=1, hidden=4, steps=2, paths=2, prediction_paths=2)
    x = torch.randn(8, 1)
    with pytest.raises(TypeError, match=r"'net.drift.state.weight', 'net.drift.state.bias', .* and 2 more\. 'local"):
        ELBO(estimator="local_reparameterization").backward(model, guides.MeanField(model), (x, x))
    fields = [("net.drift.*", "shared"), ("net.diffusion.*", "shared"), ("*", "local_reparameterization")]
    ELBO(estimator=fields).backward(model, guides.MeanField(model), (x, x))


def test_several_runs_under_one_draw_are_not_several_uses() -> None:
    """As terms make them; each run has new noise."""
    torch.manual_seed(0)
    layer, x = built("linear")
    for estimator in (LocalReparameterization(), Flipout()):
        weights, seen = gaussian(layer, estimator), []
        for _ in range(2):
            with in_one_run(weights)(None):
                seen.append(run(layer, weights, x))
        assert seen[0].shape[0] == BATCH and not torch.equal(*seen)


def test_models_that_are_functions() -> None:
    """A model in plain Pyro, which calls a layer twice."""

    def model(x: Tensor) -> None:
        weight = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3, 3]).to_event(2))
        mean = F.linear(F.linear(x, weight), weight)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=x)

    x = torch.randn(5, 3)
    guide = guides.MeanField(model, example=(x,))
    assert bool(ELBO(estimator="flipout").backward(model, guide, (x,)).divergence > 0)
    with pytest.raises(TypeError, match=r"several times: 'w'\. 'local_reparameterization' draws"):
        ELBO(estimator="local_reparameterization").backward(model, guide, (x,))


def test_the_report_leaves_out_what_the_network_cannot_take() -> None:
    model, guide, batch = problem(Loop(), (3,))
    table = pb.diagnostics.estimator_report(model, guide, batch, num_samples=2)
    assert [row["name"] for row in table.rows] == ["shared", "per_group", "flipout", "path_derivative"]
    model, guide, batch = problem(mlp(), (3,))
    table = pb.diagnostics.estimator_report(model, guide, batch, num_samples=2)
    assert len(table.rows) == 6
