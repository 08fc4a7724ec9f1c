"""Accuracy under attack where distances from the boundary are known, and of a network with masked gradients."""

from __future__ import annotations

import json
import warnings
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from sklearn.datasets import make_moons
from torch import Tensor, nn

from pyrobnn import likelihoods
from pyrobnn.guides import MAP
from pyrobnn.metrics import wilson_interval
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.robustness import FGSM, LBFGS, PGD, SPSA, GradientMaskingWarning, Robustness, evaluate
from pyrobnn.training import fit

X = torch.linspace(-1.0, 1.0, 40).reshape(40, 1)
Y = (X[:, 0] > 0).long()


def signs(net: nn.Module | None = None) -> tuple[SupervisedModel, dict[str, Tensor]]:
    """Class 1 where x > 0, with log odds 2 x."""
    layers = nn.Linear(1, 2) if net is None else nn.Sequential(net, nn.Linear(1, 2))
    model = SupervisedModel(layers, likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=40)
    prefix = "net" if net is None else "net.1"
    return model, {f"{prefix}.weight": torch.tensor([[[-1.0], [1.0]]]), f"{prefix}.bias": torch.zeros(1, 2)}


def test_shares_of_a_known_boundary() -> None:
    """Right at radius r is what is further than r from 0; half of the labels are wrong where they are flipped."""
    model, draws = signs()
    y = Y.clone()
    y[:2] = 1  # wrong whatever happens
    data = [(X[:15], y[:15]), (X[15:], y[15:])]
    found = evaluate(model, draws, data, [FGSM(0.3), PGD(0.5, steps=4)], num_samples=1, seed=0, check_masking=False)
    far = {
        name: (X[:, 0].abs() > radius) & (y == Y) for name, radius in (("clean", 0.0), ("FGSM", 0.3), ("PGD-4", 0.5))
    }
    assert list(found.survives) == ["clean", "FGSM", "PGD-4"]
    for name, expected in far.items():
        assert torch.equal(found.survives[name], expected)
    assert torch.equal(found.robust, far["PGD-4"])
    share, low, high = found.accuracy["A_rob"]
    assert share == pytest.approx(float(far["PGD-4"].double().mean()))
    ends = wilson_interval(torch.tensor(share), torch.tensor(40))
    assert (low, high) == (pytest.approx(float(ends[0])), pytest.approx(float(ends[1])))
    assert found.epsilon == {"FGSM": 0.3, "PGD-4": 0.5}
    assert json.loads(json.dumps(found.to_dict()))["accuracy"]["A_nat"][0] == pytest.approx(38 / 40)
    assert "A_rob" in str(found)


def test_the_worst_case_is_by_example() -> None:
    """Two attacks that break different examples leave fewer than each of them."""
    survives = {
        "clean": torch.ones(4).bool(),
        "a": torch.tensor([1, 1, 0, 1]).bool(),
        "b": torch.tensor([0, 1, 1, 1]).bool(),
    }
    found = Robustness(survives, {"a": 0.1, "b": 0.1}, {}, (), 0.95)
    assert found.accuracy["A_rob"][0] == 0.5


def test_a_radius_for_all() -> None:
    model, draws = signs()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is masked
        found = evaluate(
            model, draws, [(X, Y)], {"one": FGSM(0.1), "many": PGD(0.1, steps=4)}, 0.5, num_samples=1, seed=0
        )
    assert torch.equal(found.survives["one"], X[:, 0].abs() > 0.5)
    losses = [loss for loss, _ in found.curve.values()]
    assert losses == sorted(losses)
    assert found.findings == ()


class Staircase(nn.Module):
    """x in steps of 0.05, with the gradient of something else: masked."""

    def forward(self, x: Tensor) -> Tensor:
        return (20 * x).round() / 20 - 1e-3 * (x - x.detach())


def test_masked_gradients_are_noticed() -> None:
    """Gradients lead the wrong way; differences of the loss do not."""
    model, draws = signs(Staircase())
    attacks = [PGD(0.3, steps=5, random_start=False), SPSA(0.3, steps=20, directions=4, perturbation=0.1)]
    with pytest.warns(GradientMaskingWarning) as caught:
        found = evaluate(model, draws, [(X, Y)], attacks, num_samples=1, seed=0)
    assert found.accuracy["SPSA"][0] < found.accuracy["PGD-5"][0]
    assert any("SPSA, which uses no gradients, is stronger" in str(warning.message) for warning in caught)
    assert any("times the radius" in finding for finding in found.findings)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"attacks": []}, ValueError, "attacks: there are none"),
        ({"attacks": PGD(0.1)}, TypeError, "attacks: expected a list"),
        ({"attacks": [3]}, TypeError, "attacks: '3' is no attack"),
        ({"attacks": [LBFGS()]}, ValueError, "attacks: 'LBFGS' is targeted"),
        ({"attacks": {"A_rob": PGD(0.1)}}, ValueError, "attacks: the name 'A_rob' is taken"),
        ({"data": []}, ValueError, "data: it holds no examples"),
        ({"data": [X]}, TypeError, "data: expected batches"),
        ({"epsilon": -1.0}, ValueError, "epsilon: expected a radius"),
    ],
)
def test_bad_arguments(options: dict[str, Any], kind: type, message: str) -> None:
    model, draws = signs()
    with pytest.raises(kind, match=message):
        evaluate(model, **{"guide": draws, "data": [(X, Y)], "attacks": [FGSM(0.1)], "num_samples": 1} | options)


def test_regression_has_no_accuracy() -> None:
    model = SupervisedModel(nn.Linear(1, 1), likelihoods.Normal(0.5), dist.Normal(0.0, 1.0), num_data=8)
    with pytest.raises(TypeError, match="model: accuracy under attack needs a likelihood of classes"):
        evaluate(model, MAP(model), [(X, X)], [FGSM(0.1)])


def test_more_steps_leave_less_accuracy() -> None:
    """PGD-100 <= PGD-20 <= FGSM < clean, of a small network on two noisy moons."""
    x, y = make_moons(400, noise=0.1, random_state=0)
    inputs, labels = torch.as_tensor(x).float(), torch.as_tensor(y)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2))
    model = SupervisedModel(net, likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=400)
    guide = MAP(model)
    fit(model, guide, [(inputs, labels)], epochs=300, lr=0.05, seed=0, progress=False)
    attacks = [FGSM(0.4), PGD(0.4, steps=20), PGD(0.4, steps=100)]
    found = evaluate(model, guide, [(inputs, labels)], attacks, num_samples=1, seed=0, check_masking=False)
    clean, one, twenty, hundred = (found.accuracy[name][0] for name in ("A_nat", "FGSM", "PGD-20", "PGD-100"))
    assert clean > 0.97
    assert hundred <= twenty <= one < clean - 0.1
