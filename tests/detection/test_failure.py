"""The table of failure prediction, and the oracle in it."""

from __future__ import annotations

import pytest
import torch

from pyrobnn.detection import failure_table, true_class_uncertainty
from pyrobnn.metrics import failure_report
from pyrobnn.model.likelihoods import Categorical
from tests.conformance.predictions import class_prediction, normal_prediction


def given(draws: int = 4):  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(0)
    log_probs = (2 * torch.randn(draws, 300, 3, generator=generator)).log_softmax(-1)
    prediction = class_prediction(log_probs)
    return prediction, torch.distributions.Categorical(log_probs[0].exp()).sample()


def test_each_row_is_the_report_of_its_uncertainty() -> None:
    torch.manual_seed(0)
    prediction, labels = given()
    mine = torch.rand(300)
    table = failure_table(prediction, labels, scores={"mine": mine})
    wrong = prediction.predicted != labels
    probs = prediction.mean
    expected = {
        "MCP": 1 - probs.amax(-1),
        "entropy": -(probs * probs.log()).sum(-1),
        "mutual information": prediction.epistemic,
        "mine": mine,
        "TCP oracle": 1 - probs[torch.arange(300), labels],
    }
    assert list(table) == list(expected)
    for name, uncertainty in expected.items():
        assert table[name] == pytest.approx(failure_report(uncertainty, wrong), abs=1e-6), name
    assert table["TCP oracle"]["ap_errors"] > 0.9


def test_one_draw_has_no_mutual_information() -> None:
    torch.manual_seed(0)
    prediction, labels = given(draws=1)
    assert list(failure_table(prediction, labels)) == ["MCP", "entropy", "TCP oracle"]


def test_the_true_class_above_one_half_is_right_and_below_one_of_c_wrong() -> None:
    torch.manual_seed(0)
    prediction, labels = given()
    tcp, wrong = 1 - true_class_uncertainty(prediction, labels), prediction.predicted != labels
    assert not bool(wrong[tcp > 0.5].any())
    assert bool(wrong[tcp < 1 / 3].all())


def test_labels_that_were_not_observed_are_left_out() -> None:
    torch.manual_seed(0)
    prediction, labels = given()
    prediction.likelihood = Categorical(ignore_index=-1)
    ignored = torch.arange(300) % 3 == 0
    table = failure_table(prediction, labels.masked_fill(ignored, -1), scores={"mine": prediction.total})
    assert table["mine"] == failure_table(prediction.rows(~ignored), labels[~ignored])["entropy"]
    assert true_class_uncertainty(prediction, labels.masked_fill(ignored, -1)).shape == (200,)


def test_what_does_not_fit_is_refused_by_name() -> None:
    torch.manual_seed(0)
    prediction, labels = given()
    with pytest.raises(ValueError, match=r"^scores: the table already has a row 'MCP'"):
        failure_table(prediction, labels, scores={"MCP": prediction.total})
    with pytest.raises(ValueError, match=r"^scores: .*shape \[300\].* for 'mine'"):
        failure_table(prediction, labels, scores={"mine": torch.rand(299)})
    with pytest.raises(TypeError, match=r"^scores: expected floating-point tensors, got list for 'mine'"):
        failure_table(prediction, labels, scores={"mine": [1.0]})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=r"^error: all 300 answers are right"):
        failure_table(prediction, prediction.predicted)
    with pytest.raises(TypeError, match=r"^prediction: "):
        true_class_uncertainty(normal_prediction(torch.zeros(1, 10), torch.ones(1, 10)), torch.zeros(10))
    with pytest.raises(ValueError, match=r"^targets: "):
        failure_table(prediction, labels[:-1])
