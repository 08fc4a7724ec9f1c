"""Isotonic calibration and histogram binning."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pyrobnn.calibration import ClassCalibrator, HistogramBinning, IsotonicCalibration
from tests.conformance.calibrator_suite import CalibratorConformance
from tests.conformance.predictions import class_prediction, overconfident


class TestIsotonic(CalibratorConformance):
    never_raises_nll = False

    def make(self) -> ClassCalibrator:
        return IsotonicCalibration()


class TestHistogram(CalibratorConformance):
    never_raises_nll = False

    def make(self) -> ClassCalibrator:
        return HistogramBinning()


class TestHistogramOfEqualMass(CalibratorConformance):
    never_raises_nll = False

    def make(self) -> ClassCalibrator:
        return HistogramBinning(10, adaptive=True)


@pytest.mark.parametrize("classes", [2, 4])
def test_isotonic_is_scikit_learns(classes: int) -> None:
    """One class against the rest, normalized, as ``CalibratedClassifierCV(method="isotonic")`` does."""
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator

    class Inputs(ClassifierMixin, BaseEstimator):
        def fit(self, x: object, y: object) -> Inputs:
            self.classes_ = np.arange(classes)
            return self

        def predict(self, x: np.ndarray) -> np.ndarray:
            return x.argmax(-1)

        def predict_proba(self, x: np.ndarray) -> np.ndarray:
            return x

    held_out, labels = overconfident(0, 700, num_classes=classes)
    test, _ = overconfident(1, 300, num_classes=classes)
    probs = held_out.mean.numpy()
    inputs = Inputs().fit(probs, labels)
    reference = CalibratedClassifierCV(FrozenEstimator(inputs), method="isotonic").fit(probs, labels.numpy())
    expected = torch.as_tensor(reference.predict_proba(test.mean.numpy()))
    found = IsotonicCalibration().fit(held_out, labels)(test)
    torch.testing.assert_close(found.mean, expected, rtol=0, atol=1e-6)


def binary(probs: list[float]) -> Tensor:
    p = torch.tensor(probs, dtype=torch.float64)
    return torch.stack([1 - p, p], -1).log()[None]


def test_bins_by_hand() -> None:
    """Two bins; 0.5 lies in the lower one, which holds one hit of three; the upper one has two of two."""
    given = class_prediction(binary([0.1, 0.3, 0.5, 0.6, 0.9]))
    labels = torch.tensor([0, 1, 0, 1, 1])
    found = HistogramBinning(2).fit(given, labels)(class_prediction(binary([0.0, 0.5, 0.51, 1.0])))
    torch.testing.assert_close(found.mean[:, 1], torch.tensor([1 / 3, 1 / 3, 1.0, 1.0]).double())


def test_a_bin_without_data_has_the_share_of_its_middle() -> None:
    given = class_prediction(binary([0.1, 0.15, 0.9, 0.95]))
    found = HistogramBinning(5).fit(given, torch.tensor([0, 1, 1, 1]))(class_prediction(binary([0.5, 0.1])))
    torch.testing.assert_close(found.mean[:, 1], torch.tensor([0.5, 0.5]).double())
    with pytest.raises(ValueError, match=r"^num_bins: "):
        HistogramBinning(0)
