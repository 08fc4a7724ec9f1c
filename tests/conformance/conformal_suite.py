"""What every conformal predictor must do. A test class inherits it and supplies the members that raise."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pyrobnn.conformal.base import ConformalPredictor
from pyrobnn.model.likelihoods.predictions import Prediction

RESAMPLES, NUM_CALIBRATION, NUM_NEW = 500, 37, 60


class ConformalConformance:
    """The suite."""

    has_ties = False
    """Whether scores may be equal, so that more than the level is covered."""

    def make(self, confidence_level: float = 0.8) -> ConformalPredictor:
        raise NotImplementedError

    def problem(self, generator: torch.Generator, num_data: int) -> tuple[Prediction, Tensor]:
        """Predictions, and targets that are exchangeable."""
        raise NotImplementedError

    def covered(self, predictor: Any, prediction: Prediction, targets: Tensor, **given: Tensor) -> Tensor:
        """Whether each target is in its set, ``[N]``."""
        raise NotImplementedError

    def coverage(self) -> tuple[float, float]:
        """Mean coverage over the resamples and its standard error; each resample is a group with its own threshold."""
        generator = torch.Generator().manual_seed(0)
        groups = [torch.arange(RESAMPLES).repeat_interleave(count) for count in (NUM_CALIBRATION, NUM_NEW)]
        held_out = self.problem(generator, len(groups[0]))
        predictor = self.make().conformalize(*held_out, groups=groups[0])  # type: ignore[operator]
        covered = self.covered(predictor, *self.problem(generator, len(groups[1])), groups=groups[1])
        shares = covered.double().reshape(RESAMPLES, NUM_NEW).mean(1)
        return float(shares.mean()), float(shares.std()) / RESAMPLES**0.5

    def test_coverage_is_the_level_corrected_for_finite_samples(self) -> None:
        """Within three standard errors of k / (n + 1), here 31 / 38 for the level 0.8."""
        mean, error = self.coverage()
        expected = math.ceil((NUM_CALIBRATION + 1) * 0.8) / (NUM_CALIBRATION + 1)
        assert mean > expected - 3 * error
        assert self.has_ties or mean < expected + 3 * error

    def test_too_few_data_for_the_level_cover_everything_and_the_least_number_is_said(self) -> None:
        generator = torch.Generator().manual_seed(1)
        new = self.problem(generator, 50)
        eighth = self.make(0.9).conformalize(*self.problem(generator, 8))  # type: ignore[operator]
        with pytest.warns(UserWarning, match="at least 9"):
            assert bool(self.covered(eighth, *new).all())
        self.covered(self.make(0.9).conformalize(*self.problem(generator, 9)), *new)  # type: ignore[operator]

    def test_a_state_dict_restores_it(self) -> None:
        generator = torch.Generator().manual_seed(2)
        new = self.problem(generator, 50)
        predictor = self.make().conformalize(*self.problem(generator, 30))  # type: ignore[operator]
        other = self.make()
        other.load_state_dict(predictor.state_dict())
        for restored in (other, copy.deepcopy(predictor)):
            assert torch.equal(self.covered(restored, *new), self.covered(predictor, *new))

    def test_bad_input_is_refused(self) -> None:
        generator = torch.Generator().manual_seed(3)
        prediction, targets = self.problem(generator, 30)
        with pytest.raises(RuntimeError, match="not fitted"):
            self.covered(self.make(), prediction, targets)
        for level in (0.0, 1.0, -0.1, 90, math.nan, "0.9", True):
            with pytest.raises(ValueError, match=r"^confidence_level: "):
                self.make(level)  # type: ignore[arg-type]
        conformalize: Any = self.make().conformalize  # type: ignore[assignment]
        for wrong in (None, targets[:-1], targets.unsqueeze(-1), torch.full((30,), math.nan)):
            with pytest.raises(ValueError, match=r"^targets: "):
                conformalize(prediction, wrong)
        with pytest.raises(TypeError, match=r"^prediction: "):
            conformalize(prediction.mean, targets)
