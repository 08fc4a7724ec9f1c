"""What every calibrator of class probabilities must do. A test class inherits it and supplies :meth:`make`."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from pyrobnn.calibration import ClassCalibrator
from pyrobnn.model.likelihoods.predictions import Prediction
from tests.conformance.predictions import class_prediction, normal_prediction, overconfident


class CalibratorConformance:
    """The suite."""

    never_raises_nll = True
    """Whether the negative log likelihood of the calibration data can only fall."""

    def make(self) -> ClassCalibrator:
        raise NotImplementedError

    def test_it_calibrates_what_is_overconfident(self) -> None:
        held_out, labels = overconfident(0)
        calibrator = self.make().fit(held_out, labels)
        test, test_labels = overconfident(1, 4000)
        before, after = test.log_prob(test_labels), calibrator(test).log_prob(test_labels)
        finite = after.isfinite()
        assert float(finite.double().mean()) > 0.99
        assert float(after[finite].mean()) > float(before[finite].mean()) + 0.1
        if self.never_raises_nll:
            assert float(calibrator(held_out).log_prob(labels).mean()) >= float(held_out.log_prob(labels).mean())

    def test_the_decomposition_is_that_of_the_result(self) -> None:
        held_out, labels = overconfident(0)
        found = self.make().fit(held_out, labels)(held_out)
        torch.testing.assert_close(found.mean.sum(-1), torch.ones(len(labels)).double())
        torch.testing.assert_close(found.total, torch.special.entr(found.mean).sum(-1))
        torch.testing.assert_close(found.total, found.aleatoric + found.epistemic)
        assert float(found.epistemic.min()) >= 0 and float(found.aleatoric.min()) >= -1e-12
        if found.draws is not None:
            torch.testing.assert_close(found.draws.mean(0), found.mean)
            torch.testing.assert_close(found.aleatoric, torch.special.entr(found.draws).sum(-1).mean(0))
        torch.testing.assert_close(found.log_prob(labels).exp(), found.mean.gather(-1, labels[:, None])[:, 0])

    def test_it_is_a_pure_function_that_works_row_by_row(self) -> None:
        held_out, labels = overconfident(0)
        calibrator = self.make().fit(held_out, labels)
        before = copy.deepcopy(held_out)
        whole = calibrator(held_out)
        assert torch.equal(held_out.mean, before.mean) and torch.equal(held_out.total, before.total)
        part, _ = overconfident(0)
        rows = part.rows(slice(10))
        joined = Prediction.join([calibrator(rows), calibrator(rows)])
        torch.testing.assert_close(joined.mean, torch.cat([whole.mean[:10]] * 2))

    def test_what_was_trained_on_stays_known(self) -> None:
        """Else a second calibrator or a conformal predictor would take the rows that training saw for held-out ones."""
        held_out, labels = overconfident(0)
        calibrator = self.make().fit(held_out, labels)
        assert not calibrator(held_out).is_of_training_data
        assert calibrator(replace(held_out, is_of_training_data=True)).is_of_training_data

    def test_a_state_dict_restores_it_also_in_a_larger_module(self) -> None:
        held_out, labels = overconfident(0)
        calibrator = self.make().fit(held_out, labels)
        expected = calibrator(held_out).mean
        fresh = self.make()
        fresh.load_state_dict(calibrator.state_dict())
        assert torch.equal(fresh(held_out).mean, expected)
        outer, other = nn.ModuleDict({"c": calibrator}), nn.ModuleDict({"c": copy.deepcopy(self.make())})
        other.load_state_dict(outer.state_dict())
        assert torch.equal(other["c"](held_out).mean, expected)
        assert torch.equal(copy.deepcopy(calibrator)(held_out).mean, expected)

    def test_several_labels_of_an_input(self) -> None:
        held_out, labels = overconfident(0, 600)
        logits = held_out.parameters["log_probs"]  # type: ignore[index]
        images = class_prediction(logits.reshape(3, 6, 10, 10, 4))
        flat = self.make().fit(held_out, labels)(held_out).mean
        found = self.make().fit(images, labels.reshape(6, 10, 10))(images)
        torch.testing.assert_close(found.mean.reshape(600, 4), flat, rtol=0, atol=1e-5)  # sums in another order

    def test_bad_input_is_refused(self) -> None:
        held_out, labels = overconfident(0, 50)
        calibrator = self.make()
        with pytest.raises(RuntimeError, match="not fitted"):
            calibrator(held_out)
        for targets, kind in (
            (None, ValueError),
            (labels[:-1], ValueError),
            (labels[:, None], ValueError),
            (labels + 3, ValueError),
            (labels - 1, ValueError),
            (torch.full((50,), math.nan), ValueError),
            (labels.tolist(), TypeError),
        ):
            with pytest.raises(kind, match=r"^targets: "):
                calibrator.fit(held_out, targets)
        real = normal_prediction(torch.zeros(2, 5), torch.ones(2, 5))
        with pytest.raises(TypeError, match=r"^prediction: expected class prob"):
            calibrator.fit(real, torch.zeros(5))
        nan = held_out.mean.clone()
        nan[3, 0] = math.nan
        with pytest.raises(ValueError, match=r"^prediction: its mean at input 3"):
            calibrator.fit(replace(held_out, mean=nan), labels)
        if calibrator.needs_all_classes:
            with pytest.raises(ValueError, match=r"^targets: .* none of class 2"):
                calibrator.fit(held_out, labels.where(labels != 2, 1))
            with pytest.raises(ValueError, match=r"^prediction: .* classes"):
                self.make().fit(held_out, labels)(overconfident(0, 5, num_classes=3)[0])
