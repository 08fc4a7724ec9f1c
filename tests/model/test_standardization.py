"""Standardized data, and predictions in the targets' own units."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyrobnn as pb
from pyrobnn.model.likelihoods import HeteroscedasticNormal, Likelihood, Normal


def data(targets: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, generator=generator) * torch.tensor([1e-3, 1.0, 50.0]) + torch.tensor([0.0, 7.0, -900.0])
    return x, 20.0 * torch.randn(40, targets, generator=generator) + torch.tensor([1000.0, -3.0])[:targets]


def test_columns_have_mean_zero_and_standard_deviation_one() -> None:
    x, y = data()
    scaler = pb.Standardizer(x, y)
    for values in (scaler.inputs(x), scaler.targets(y)):
        torch.testing.assert_close(values.mean(0), torch.zeros(values.shape[1]), atol=1e-4, rtol=0.0)
        torch.testing.assert_close(values.std(0, correction=0), torch.ones(values.shape[1]), atol=1e-4, rtol=0.0)


def test_images_and_vectors_share_one_scale() -> None:
    images = 5.0 + 3.0 * torch.randn(6, 1, 4, 4)
    scaler = pb.Standardizer(images, torch.arange(6.0))
    assert scaler.x_loc.shape == scaler.y_loc.shape == ()
    torch.testing.assert_close(scaler.inputs(images).std(correction=0), torch.tensor(1.0))


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6, -3.7])
def test_constant_columns_are_only_shifted(value: float) -> None:
    x = torch.stack([torch.full((50,), value), torch.randn(50)], 1)
    scaler = pb.Standardizer(x)
    assert float(scaler.x_scale[0]) == 1.0 and float(scaler.inputs(x)[:, 0].abs().max()) <= 1e-6 * abs(value)


def test_missing_targets_are_left_out() -> None:
    x, y = data()
    y[::3, 0] = float("nan")
    scaler = pb.Standardizer(x, y)
    torch.testing.assert_close(scaler.y_loc[0], y[:, 0].nanmean())
    assert torch.equal(scaler.targets(y).isnan(), y.isnan())


def model_of(likelihood: Likelihood, scaler: pb.Standardizer, x: torch.Tensor, y: torch.Tensor) -> Any:
    """A model of the standardized data, and draws of its weights."""
    torch.manual_seed(1)
    outputs = 2 * y.shape[1] if isinstance(likelihood, HeteroscedasticNormal) else y.shape[1]
    model = pb.SupervisedModel(nn.Linear(3, outputs), likelihood, dist.Normal(0.0, 1.0), num_data=len(x))
    return model, pb.guides.MeanField(model, init_scale=0.3).sample(50)


@pytest.mark.parametrize("likelihood", [Normal(0.4), HeteroscedasticNormal()], ids=["Normal", "HeteroscedasticNormal"])
def test_predictions_are_undone_in_every_part(likelihood: Likelihood) -> None:
    """Change of variables: moments by the affine map, the log density less the log scale of each target."""
    x, y = data()
    scaler = pb.Standardizer(x, y)
    model, draws = model_of(likelihood, scaler, x, y)
    standard = pb.predict(model, draws, scaler.inputs(x), 50, return_draws=True)
    found = scaler.undo(standard)
    torch.testing.assert_close(found.mean, scaler.y_loc + scaler.y_scale * standard.mean)
    torch.testing.assert_close(found.std, scaler.y_scale * standard.std)
    torch.testing.assert_close(found.aleatoric + found.epistemic, found.total)
    expected = standard.log_prob(scaler.targets(y)) - scaler.y_scale.log().sum()
    torch.testing.assert_close(found.log_prob(y), expected, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found.draws.mean(0), found.mean, rtol=1e-4, atol=1e-2)
    torch.manual_seed(5)
    low, high = found.interval()
    torch.manual_seed(5)
    expected_low, expected_high = (scaler.y_loc + scaler.y_scale * bound for bound in standard.interval())
    torch.testing.assert_close((low, high), (expected_low, expected_high))


def test_closed_form_predictions_are_undone() -> None:
    """A Gaussian's covariance: of one target, the exact normal interval."""
    x, y = data(1)
    scaler = pb.Standardizer(x, y)
    model, _ = model_of(Normal(0.4), scaler, x, y)
    laplace = pb.guides.Laplace(model, structure="full").fit(model, [(scaler.inputs(x), scaler.targets(y))])
    standard = pb.predict(model, laplace, scaler.inputs(x), predictor="linearized")
    found = scaler.undo(standard)
    torch.testing.assert_close(found.covariance.flatten(), found.total.flatten())
    normal = torch.distributions.Normal(found.mean, found.std)
    torch.testing.assert_close(found.log_prob(y), normal.log_prob(y).squeeze(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.interval(0.9)[1], normal.icdf(torch.tensor(0.95)), rtol=1e-4, atol=1e-2)


def test_it_moves_and_is_stored_like_a_module() -> None:
    x, y = data()
    scaler, other = pb.Standardizer(x, y), pb.Standardizer(2 * x + 1, 3 * y)
    other.load_state_dict(scaler.state_dict())
    assert torch.equal(other.inputs(x), scaler.inputs(x))
    assert scaler.double().inputs(x.double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.randn(4, 2), torch.tensor([0, 1, 1, 0]), r"y: expected .*torch\.int64; classes are not standardized"),
        (torch.ones(4, 2).long(), None, r"x: expected a floating-point tensor"),
        ([[1.0]], None, r"x: expected a floating-point tensor \[N, \.\.\.\], got list"),
        (torch.randn(1, 2), None, r"x: expected at least two rows, got shape \(1, 2\)"),
        (torch.tensor([[1.0], [math.inf]]), None, r"x: it holds NaN or infinite"),
        (torch.tensor([[1.0], [math.nan]]), None, r"x: it holds NaN or infinite"),
        (torch.randn(2, 1), torch.full((2, 1), math.nan), r"y: a column has no number"),
    ],
)
def test_what_cannot_be_standardized_is_refused(x: Any, y: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        pb.Standardizer(x, y)


def test_what_has_no_units_is_not_undone() -> None:
    x, y = data()
    classes = pb.SupervisedModel(nn.Linear(3, 2), pb.likelihoods.Categorical(), num_data=40)
    counts = pb.SupervisedModel(nn.Linear(3, 1), pb.likelihoods.Poisson(), num_data=40)
    scaler = pb.Standardizer(x, y[:, :1])
    for model, message in ((classes, "rescaled: .*classes have no units"), (counts, "likelihood: .*Poisson have no")):
        prediction = pb.predict(model, pb.guides.MeanField(model), scaler.inputs(x), 3)
        with pytest.raises(ValueError, match=f"^{message}"):
            scaler.undo(prediction)
    with pytest.raises(ValueError, match=r"^y: the standardizer was made without targets"):
        pb.Standardizer(x).undo(prediction)
