"""The denoiser: what it is trained to, what stays as it is, and both attacks in one report."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.guides import MAP, DeltaMixture, Guide, MeanField
from pyrobnn.robustness.denoiser import DenoisedModel, Denoiser, denoiser_report, fit_denoiser
from pyrobnn.robustness.training import AmortizedDistribution, FastGradient
from tests.conformance.comparisons import assert_same, assert_same_state, network_state

FAMILIES = {"MAP": MAP, "MeanField": MeanField, "DeltaMixture": lambda model: DeltaMixture(model, 2)}


def problem(family: str = "MAP") -> tuple[pb.SupervisedModel, Guide, tuple[Tensor, Tensor]]:
    """Images of 6 x 6 whose brighter half is the class; the classifier has been trained."""
    torch.manual_seed(0)
    y = torch.arange(64) % 2
    x = 0.4 * torch.rand(64, 1, 6, 6) + 0.2
    x[y == 0, :, :3] += 0.3
    x[y == 1, :, 3:] += 0.3
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    model = pb.SupervisedModel(net, pb.likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=64)
    guide = FAMILIES[family](model)
    pb.fit(model, guide, [(x[:32], y[:32]), (x[32:], y[32:])], epochs=30, lr=0.02, seed=0, progress=False)
    return model, guide, (x, y)


def unet() -> Denoiser:
    torch.manual_seed(1)
    return Denoiser.unet(1, width=4, levels=1)


def attack(model: Any, guide: Any, x: Tensor, y: Tensor, **options: Any) -> Tensor:
    return pb.robustness.PGD(0.3, clip=(0.0, 1.0), steps=10)(model, guide, x, y, **options)


@pytest.mark.parametrize("loss", ["features", "pixels"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_falls_and_the_classifier_stays(family: str, loss: Any) -> None:
    model, guide, (x, y) = problem(family)
    both = nn.ModuleList([model, guide])
    both.zero_grad()
    before, parameters = network_state(model), {name: v.clone() for name, v in guide.state_dict().items()}
    player = FastGradient(0.3, clip=(0.0, 1.0))
    history = fit_denoiser(unet(), model, guide, [(x, y)], player, loss=loss, epochs=40, lr=0.01, seed=0)
    assert len(history) == 40 and sum(history[-5:]) < 0.8 * sum(history[:5])
    assert_same_state(network_state(model), before)
    assert_same(guide.state_dict(), parameters)
    assert all(p.grad is None for p in both.parameters())


def test_a_denoiser_that_changes_nothing_changes_nothing() -> None:
    """Predictions, and attacks through it; also of members with statistics of their own."""
    for family in FAMILIES:
        model, guide, (x, y) = problem(family)
        behind = DenoisedModel(model, Denoiser(_Zero()))
        expected = pb.predict(model, guide, x, 4, seed=0)
        found = pb.predict(behind, guide, x, 4, seed=0)
        torch.testing.assert_close(found.mean, expected.mean)
        options = {"num_samples": 2, "seed": 0}
        torch.testing.assert_close(attack(behind, guide, x, y, **options), attack(model, guide, x, y, **options))


class _Zero(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def test_the_report_has_both_attacks_and_says_which_counts() -> None:
    model, guide, (x, y) = problem()
    denoiser = unet()
    fit_denoiser(denoiser, model, guide, [(x, y)], FastGradient(0.3, clip=(0.0, 1.0)), epochs=60, lr=0.01, seed=0)
    report = denoiser_report(model, guide, denoiser, x, y, attack, num_samples=1)
    found = report.accuracies
    assert list(found) == ["clean", "clean, denoised", "attacked", "grey box", "white box"]
    assert found["clean"] == 1.0 and found["grey box"] >= found["attacked"] + 0.2, found
    assert found["white box"] < found["grey box"]
    assert all(low <= found[name] <= high for name, (low, high) in report.intervals.items())
    assert "white-box row is what the defence is worth" in str(report) and "64 inputs" in str(report)


def test_pixels_are_denoised() -> None:
    """Closer to the clean images than what came in."""
    model, guide, (x, y) = problem()
    denoiser, player = unet(), FastGradient(0.3, clip=(0.0, 1.0))
    fit_denoiser(denoiser, model, guide, [(x, y)], player, loss="pixels", epochs=100, lr=0.01, seed=0)
    moved = pb.robustness.FGSM(0.3, clip=(0.0, 1.0))(model, guide, x, y, num_samples=1, seed=0)
    with torch.no_grad():
        cleaned = denoiser(moved)
    assert float((cleaned - x).abs().mean()) < 0.8 * float((moved - x).abs().mean())


def test_mistakes_are_named() -> None:
    model, guide, (x, y) = problem()
    options: dict[str, Any] = {
        "denoiser": unet(),
        "model": model,
        "guide": guide,
        "loader": [(x, y)],
        "perturbation": FastGradient(0.1),
    }
    for change, error, named in (
        ({"loss": "labels"}, ValueError, "loss"),
        ({"epochs": 0}, ValueError, "epochs"),
        ({"lr": -1.0}, ValueError, "lr"),
        ({"loader": []}, ValueError, "loader"),
        ({"layer": "body"}, ValueError, "layer"),
        ({"perturbation": 0.1}, TypeError, "perturbation"),
        ({"perturbation": AmortizedDistribution(nn.Linear(1, 1), 0.1)}, TypeError, "perturbation"),
        ({"denoiser": nn.Conv2d(1, 2, 3, padding=1)}, ValueError, "denoiser"),
    ):
        with pytest.raises(error, match=f"^{named}: "):
            fit_denoiser(**options | change)
    with pytest.raises(TypeError, match=r"^network: "):
        Denoiser(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^model: expected a SupervisedModel"):
        DenoisedModel(nn.Linear(1, 1), _Zero())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^y: expected as many labels as inputs, got 3 and 64"):
        denoiser_report(model, guide, _Zero(), x, y[:3], attack)
