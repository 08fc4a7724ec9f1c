import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from pyrobnn.metrics import failure_report


def test_hand_computed():
    # In order of uncertainty: right, wrong, right, wrong.
    report = failure_report(torch.tensor([0.3, 0.1, 0.4, 0.2]), torch.tensor([0, 0, 1, 1]))
    assert report == pytest.approx(
        {
            "error_rate": 1 / 2,
            "ap_errors": 1 / 2 * 1 + 1 / 2 * 2 / 3,  # the two errors are found first and third
            "ap_success": 1 / 2 * 1 + 1 / 2 * 2 / 3,
            "auroc": 3 / 4,  # of four pairs one is the wrong way around
            "fpr95": 1 / 2,  # both right answers are accepted together with one of the errors
            "aurc": (0 + 1 / 2 + 1 / 3 + 1 / 2) / 4,
            "excess_aurc": (0 + 1 / 2 + 1 / 3 + 1 / 2) / 4 - (0 + 0 + 1 / 3 + 1 / 2) / 4,
            "augrc": ((0 + 0) / 2 + (0 + 1 / 4) / 2 + (1 / 4 + 1 / 4) / 2 + (1 / 4 + 1 / 2) / 2) / 4,
        }
    )


@pytest.mark.parametrize("ties", [False, True])
def test_the_measures_of_scikit_learn(ties):
    generator = torch.Generator().manual_seed(0)
    error = torch.rand(500, generator=generator) < 0.2
    uncertainty = torch.randn(500, generator=generator) + error.float()
    uncertainty = (3 * uncertainty).round() / 3 if ties else uncertainty
    report, y, score = failure_report(uncertainty, error), error.numpy(), uncertainty.numpy()
    assert report["ap_errors"] == pytest.approx(average_precision_score(y, score), abs=1e-12)
    assert report["ap_success"] == pytest.approx(average_precision_score(~y, -score), abs=1e-12)
    assert report["auroc"] == pytest.approx(roc_auc_score(y, score), abs=1e-12)
    accepted_errors, accepted, _ = roc_curve(~y, -score, drop_intermediate=False)
    assert report["fpr95"] == pytest.approx(accepted_errors[np.argmax(accepted >= 0.95)], abs=1e-12)
    assert report["error_rate"] == pytest.approx(y.mean())


def test_a_perfect_uncertainty_and_one_without_information():
    error = torch.arange(100) < 20
    perfect = failure_report(error.float(), error)
    assert [perfect[key] for key in ("ap_errors", "auroc", "fpr95", "excess_aurc")] == pytest.approx([1, 1, 0, 0])
    assert perfect["augrc"] == pytest.approx(0.2**2 / 2)
    none = failure_report(torch.zeros(100), error)
    assert [none[key] for key in ("ap_errors", "auroc", "fpr95", "aurc")] == pytest.approx([0.2, 0.5, 1, 0.2])
    assert none["augrc"] == pytest.approx(0.2 / 2)


@pytest.mark.parametrize("kind", [torch.bool, torch.int64, torch.float32])
def test_errors_of_any_kind_and_infinite_uncertainty(kind):
    error = torch.tensor([1, 0, 0]).to(kind)
    assert failure_report(torch.tensor([torch.inf, 0.0, -torch.inf]), error)["auroc"] == 1.0


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.tensor([0.0, 0.5, 1.0]), "^error: expected zeros and ones.* got 0.5"),
        (torch.tensor([False, False, False]), "^error: all 3 answers are right"),
        (torch.tensor([1, 1, 1]), "^error: all 3 answers are wrong"),
        (torch.tensor([1, 0]), r"^error: expected shape \[3\]"),
    ],
)
def test_errors_that_cannot_be_predicted_are_refused(error, message):
    with pytest.raises(ValueError, match=message):
        failure_report(torch.rand(3), error)
