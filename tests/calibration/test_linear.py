"""Vector, matrix and Dirichlet scaling."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyrobnn.calibration import ClassCalibrator, DirichletScaling, MatrixScaling, VectorScaling
from tests.conformance.calibrator_suite import CalibratorConformance
from tests.conformance.predictions import class_prediction


class TestVectorOfTheMean(CalibratorConformance):
    def make(self) -> ClassCalibrator:
        return VectorScaling()


class TestVectorOfDraws(CalibratorConformance):
    def make(self) -> ClassCalibrator:
        return VectorScaling(on="draws")


class TestMatrixOfTheMean(CalibratorConformance):
    def make(self) -> ClassCalibrator:
        return MatrixScaling()


class TestMatrixOfDraws(CalibratorConformance):
    def make(self) -> ClassCalibrator:
        return MatrixScaling(on="draws")


class TestDirichletOfTheMean(CalibratorConformance):
    def make(self) -> ClassCalibrator:
        return DirichletScaling()


class TestDirichletOfDraws(CalibratorConformance):
    def make(self) -> ClassCalibrator:
        return DirichletScaling(on="draws")


def problem(weight: Tensor, bias: Tensor, num_data: int, is_centered: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels drawn from the map of their log probabilities, and the probabilities of these."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(num_data, 3, generator=generator, dtype=torch.float64)
    log_probs = logits.log_softmax(-1)
    given = logits - logits.mean(-1, keepdim=True) if is_centered else log_probs
    probs = (given @ weight.T + bias).softmax(-1)
    return logits, torch.multinomial(probs, 1, generator=generator).squeeze(-1), probs


@pytest.mark.parametrize("kind", [VectorScaling, MatrixScaling, DirichletScaling])
def test_a_known_map_is_recovered(kind: type[ClassCalibrator]) -> None:
    """100,000 labels: the probabilities are found within 0.01, some standard errors."""
    weight = torch.tensor([[0.5, 0.2, 0.0], [0.0, 0.8, -0.3], [0.1, 0.0, 0.4]], dtype=torch.float64)
    weight = torch.diag(weight.diagonal()) if kind is VectorScaling else weight
    bias = torch.tensor([0.4, 0.0, -0.4], dtype=torch.float64)
    logits, labels, probs = problem(weight, bias, 100_000, kind is not DirichletScaling)
    calibrated = kind().fit(class_prediction(logits[None]), labels)(class_prediction(logits[None]))
    assert float((calibrated.mean - probs).abs().max()) < 0.03
    assert float((calibrated.mean - probs).abs().mean()) < 0.005


def test_a_wide_prior_gives_the_maximum_likelihood_of_logistic_regression() -> None:
    from sklearn.linear_model import LogisticRegression

    logits, labels, _ = problem(torch.eye(3).double() * 0.5, torch.zeros(3).double(), 500, False)
    log_probs = logits.log_softmax(-1)
    reference = LogisticRegression(C=1e9, max_iter=10_000, tol=1e-10).fit(log_probs.numpy(), labels.numpy())
    expected = torch.as_tensor(reference.predict_proba(log_probs.numpy()))
    prediction = class_prediction(logits[None])
    found = DirichletScaling(prior_scale=1e4).fit(prediction, labels)(prediction)
    torch.testing.assert_close(found.mean, expected, rtol=0, atol=1e-4)


def test_the_prior_keeps_the_weights_of_data_that_can_be_separated() -> None:
    logits = torch.eye(3).double().repeat(20, 1)[None]
    labels = torch.arange(3).repeat(20)
    found = MatrixScaling().fit(class_prediction(logits), labels)
    assert float(found.weight.abs().max()) < 5
    with pytest.raises(ValueError, match=r"^prior_scale: "):
        VectorScaling(prior_scale=0.0)
