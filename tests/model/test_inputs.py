"""Networks that change their inputs in place: each draw sees the caller's inputs, and they stay as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import pyrobnn as pb
from pyrobnn import guides, likelihoods
from pyrobnn.model.inputs import with_inputs_kept
from pyrobnn.model.supervised import SupervisedModel

X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
Y = X @ torch.tensor([[1.0], [-2.0], [0.5]])


def _subtract(x: Tensor) -> Tensor:
    x -= 0.5
    return x


def _by_column(x: Tensor) -> Tensor:
    x[:, 0] = x[:, 0].clamp(min=0.0)
    return x


def _past_the_counter(x: Tensor) -> Tensor:
    x.data.mul_(2.0)
    return x


class Net(nn.Module):
    """A linear layer behind an operation that works in place."""

    def __init__(self, change: Callable[[Tensor], Tensor] = _subtract) -> None:
        super().__init__()
        self.layer, self.change = nn.Linear(3, 1), change

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.change(x))


class InEvaluation(Net):
    """Works in place in evaluation mode only."""

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x if self.training else self.change(x))


def model_of(net: nn.Module) -> SupervisedModel:
    return SupervisedModel(net, likelihoods.Normal(0.3), prior=dist.Normal(0.0, 1.0), num_data=20)


@pytest.mark.parametrize("change", [_subtract, _by_column, _past_the_counter])
@pytest.mark.parametrize("kind", [Net, InEvaluation])
@pytest.mark.parametrize("method", ["loop", "vmap"])
def test_predictions_of_every_draw_are_those_of_the_inputs(
    change: Callable[[Tensor], Tensor], kind: type[Net], method: Any
) -> None:
    net = kind(change)
    expected = net.eval()(X.clone()).detach()
    model, x = model_of(net), X.clone()
    found = pb.predict(model, guides.MAP(model), x, 10, method=method)
    torch.testing.assert_close(found.mean, expected)
    assert float(found.epistemic.max()) < 1e-6
    assert torch.equal(x, X)


@pytest.mark.parametrize("change", [nn.ReLU(inplace=True), _subtract])
@pytest.mark.parametrize("make", [guides.MAP, guides.MeanField, lambda m: guides.DeltaMixture(m, 3)])
def test_every_use_leaves_the_inputs_alone(change: Any, make: Any) -> None:
    net, x, y = Net(change), X.clone(), Y.clone()
    model = model_of(net)
    guide = make(model)
    pb.fit(model, guide, [(x, y)], epochs=3, progress=False, validation=[(x, y)])
    pb.check(model, guide, [(x, y)], num_samples=25)
    pb.to_arviz(model, guide, x, y, num_samples=5)
    pb.robustness.FGSM(epsilon=0.1)(model, guide, x, y)
    pb.sample(model, (x, y), kernel=pb.sampling.SGLD(1e-4), num_samples=3, warmup_steps=3, progress=False)
    assert torch.equal(x, X)
    assert torch.equal(y, Y)


def test_training_is_that_of_a_network_with_a_copy() -> None:
    found = []
    for change in (_subtract, lambda x: x - 0.5):
        torch.manual_seed(1)
        model = model_of(Net(change))
        guide = guides.MAP(model)
        pb.fit(model, guide, [(X.clone(), Y)], epochs=50, lr=0.05, progress=False)
        found.append(guide.sample(1)["net.layer.weight"])
    torch.testing.assert_close(found[0], found[1])


def test_a_later_change_is_refused() -> None:
    later = []

    def change(x: Tensor) -> Tensor:
        return x.add_(1.0) if later else x

    model = model_of(Net(change))
    guide = guides.MAP(model)
    pb.predict(model, guide, X.clone(), 2)
    later.append(True)
    with pytest.raises(RuntimeError, match="net: it changed its input in place"):
        pb.predict(model, guide, X.clone(), 2)


def test_all_kinds_of_inputs_are_kept() -> None:
    def run(pair: tuple[Tensor, Tensor], *, packed: PackedSequence, mask: None, scale: float) -> float:
        pair[1].add_(1.0)
        packed.data.zero_()
        return scale

    pair, packed = (torch.ones(2), torch.ones(2)), pack_sequence([torch.ones(3, 1), torch.ones(2, 1)])
    for _ in range(2):
        net = nn.Identity()
        for _ in range(2):
            assert with_inputs_kept(net, (pair,), {"packed": packed, "mask": None, "scale": 2.0}, run) == 2.0
    assert torch.equal(pair[1], torch.ones(2))
    assert bool((packed.data == 1.0).all())
    with torch.inference_mode():
        inside = torch.ones(2)
    assert with_inputs_kept(nn.Identity(), (inside,), {}, lambda x: x * 2).sum() == 4.0


def test_missing_values_are_no_change() -> None:
    net, seen = nn.Identity(), []
    x = torch.tensor([1.0, float("nan")])
    for _ in range(2):
        with_inputs_kept(net, (x,), {}, seen.append)
    assert seen[0] is not x
    assert seen[1] is x


class Clamping(nn.Module):
    """Changes its weight in place."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.linear = kind, nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.linear.weight
        if self.kind == "data":
            weight.data.clamp_(-0.1, 0.1)
        elif self.kind == "no_grad":
            with torch.no_grad():
                weight.renorm_(2, 0, 100.0)  # changes nothing yet
        elif self.kind == "embedding":
            return nn.functional.embedding((x[:, 0] > 0).long(), weight, max_norm=100.0)
        return self.linear(x)


@pytest.mark.parametrize("kind", ["data", "no_grad", "embedding"])
def test_weights_that_a_network_changes_in_place_are_refused(kind: str) -> None:
    """Their prior and their density would be those of other values than what predicts."""
    x, y = torch.randn(6, 3), torch.randint(3, (6,))
    for use in ("fit", "predict", "members"):
        model = SupervisedModel(Clamping(kind), likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=6)
        guide: Any = guides.DeltaMixture(model, 2, init="prior") if use == "members" else guides.MeanField(model)

        def act(model: Any = model, guide: Any = guide, use: str = use) -> Any:
            if use == "predict":
                return pb.predict(model, guide, x, 3)
            return pb.fit(model, guide, [(x, y)], epochs=1, progress=False)

        for _ in range(2):
            with pytest.raises(ValueError, match=r"^net: its forward changes the weight 'linear.weight' in place"):
                act()
    model = SupervisedModel(Clamping("not"), likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=6)
    assert pb.fit(model, guides.MeanField(model), [(x, y)], epochs=1, progress=False).epochs == 1
