import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_calibration_error

from pyrobnn.metrics import (
    AdaptiveCalibrationError,
    ExpectedCalibrationError,
    adaptive_calibration_error,
    expected_calibration_error,
    reliability_curve,
)


def two_class(confidence: list[float], correct: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Binary examples predicted as class 0 with the given confidence."""
    p = torch.tensor(confidence, dtype=torch.float64)
    return torch.stack([p, 1 - p], -1), 1 - torch.tensor(correct)


def random_examples(num: int, seed: int, num_classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    probs = torch.softmax(2 * torch.randn(num, num_classes, generator=generator, dtype=torch.float64), -1)
    return probs, torch.randint(num_classes, (num,), generator=generator)


def test_curve_known_answer():
    curve = reliability_curve(*two_class([0.55, 0.65, 0.95, 0.85], [1, 0, 1, 1]), num_bins=5)
    assert curve.bin_edges.tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert curve.count.tolist() == [0, 0, 1, 1, 2]
    assert curve.confidence[:2].isnan().all()
    assert curve.accuracy[:2].isnan().all()
    assert curve.confidence[2:].tolist() == pytest.approx([0.55, 0.65, 0.9])
    assert curve.accuracy[2:].tolist() == [1.0, 0.0, 1.0]
    assert curve.ece.item() == pytest.approx((0.45 + 0.65 + 2 * 0.1) / 4)
    assert curve.mce.item() == pytest.approx(0.65)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bins_are_closed_on_the_right(dtype):
    probs, y = two_class([0.6, 0.8, 1.0, 2 / 3], [1, 1, 1, 1])
    count = reliability_curve(probs.to(dtype), y, num_bins=15).count
    assert count[8] == 1  # (8/15, 9/15]
    assert count[9] == 1  # (9/15, 10/15]
    assert count[11] == 1  # (11/15, 12/15]
    assert count[14] == 1  # (14/15, 1]


def test_ece_agrees_with_torchmetrics_away_from_the_edges():
    probs, y = random_examples(5000, seed=0)
    ours = expected_calibration_error(probs, y, num_bins=12)
    theirs = multiclass_calibration_error(probs, y, num_classes=5, n_bins=12)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    worst = multiclass_calibration_error(probs, y, num_classes=5, n_bins=12, norm="max")
    assert reliability_curve(probs, y, 12).mce.item() == pytest.approx(worst.item(), abs=1e-5)


def test_confidence_of_one_shares_the_last_bin():
    # Confidences 0.95 (right) and 1 (wrong) share the bin (14/15, 1], so the gap is |0.5 - 0.975|; a bin of
    # its own for confidence 1, as in torchmetrics, would give (0.05 + 1) / 2.
    error = expected_calibration_error(*two_class([0.95, 1.0], [1, 0]))
    assert error.item() == pytest.approx(0.475)


def test_adaptive_known_answer():
    curve = reliability_curve(*two_class([0.9, 0.6, 0.8, 0.7, 1.0], [0, 1, 1, 0, 1]), num_bins=2, adaptive=True)
    assert curve.count.tolist() == [3, 2]
    assert curve.bin_edges.tolist() == [0.6, 0.8, 1.0]
    assert curve.confidence.tolist() == pytest.approx([0.7, 0.95])
    assert curve.accuracy.tolist() == pytest.approx([2 / 3, 0.5])
    assert curve.ece.item() == pytest.approx((3 * abs(2 / 3 - 0.7) + 2 * 0.45) / 5)


@settings(max_examples=40, deadline=None)
@given(num=st.integers(1, 60), num_bins=st.integers(1, 20), seed=st.integers(0, 2**16))
def test_adaptive_bins_have_equal_mass(num, num_bins, seed):
    probs, y = random_examples(num, seed)
    count = reliability_curve(probs, y, num_bins, adaptive=True).count
    assert count.sum() == num
    assert count.max() - count.min() <= 1


@settings(max_examples=40, deadline=None)
@given(
    levels=st.lists(st.sampled_from([0.5, 0.6, 0.6, 0.8, 1.0]), min_size=1, max_size=30),
    num_bins=st.integers(1, 8),
    seed=st.integers(0, 2**16),
)
def test_ties_do_not_depend_on_the_order_of_the_data(levels, num_bins, seed):
    generator = torch.Generator().manual_seed(seed)
    probs, y = two_class(levels, torch.randint(2, (len(levels),), generator=generator).tolist())
    order = torch.randperm(len(levels), generator=generator)
    for error in (expected_calibration_error, adaptive_calibration_error):
        assert error(probs, y, num_bins).item() == pytest.approx(error(probs[order], y[order], num_bins).item())


@pytest.mark.parametrize("adaptive", [False, True])
def test_calibrated_labels_have_only_the_error_of_counting(adaptive):
    # Labels drawn from the probabilities, 50 000 examples. A bin's gap has standard error <= 1 / (2 √n_m), so
    # ECE is at most sum_m √n_m / (2 n) <= √(M / n) / 2 in expectation; its standard deviation is at most
    # 1 / (2 √n), since one label moves it by 1 / n (Efron-Stein). z = 4.5.
    num, num_bins = 50_000, 15
    generator = torch.Generator().manual_seed(1)
    probs = torch.softmax(2 * torch.randn(num, 4, generator=generator), -1)
    y = torch.multinomial(probs, 1, generator=generator).squeeze(-1)
    error = reliability_curve(probs, y, num_bins, adaptive=adaptive).ece
    assert error < (num_bins**0.5 + 4.5) / (2 * num**0.5)
    overconfident = torch.softmax(2 * probs.log(), -1)
    assert reliability_curve(overconfident, y, num_bins, adaptive=adaptive).ece > 0.1


def test_binary_probabilities_equal_two_classes():
    generator = torch.Generator().manual_seed(2)
    p, y = torch.rand(300, generator=generator), torch.randint(2, (300,), generator=generator)
    for adaptive in (False, True):
        binary = reliability_curve(p, y, adaptive=adaptive)
        stacked = reliability_curve(torch.stack([1 - p, p], -1), y, adaptive=adaptive)
        assert binary.count.equal(stacked.count)
        assert binary.ece == stacked.ece


def test_binary_convention_is_the_predicted_class():
    # p = 0.1 predicts class 0 with confidence 0.9; both examples are right.
    error = expected_calibration_error(torch.tensor([0.1, 0.9]), torch.tensor([False, True]))
    assert error.item() == pytest.approx(0.1)


def test_leading_shapes_are_flattened():
    probs, y = random_examples(24, seed=3)
    for adaptive in (False, True):
        flat = reliability_curve(probs, y, adaptive=adaptive)
        image = reliability_curve(probs.view(2, 3, 4, 5), y.view(2, 3, 4), adaptive=adaptive)
        assert flat.ece == image.ece


def test_one_example_may_come_without_a_dimension():
    probs, y = torch.tensor([0.2, 0.7, 0.1]), torch.tensor(1)
    for function in (expected_calibration_error, adaptive_calibration_error):
        assert function(probs, y).item() == pytest.approx(0.3)
        assert function(torch.tensor(0.7), y).item() == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("metric", "function"),
    [
        (ExpectedCalibrationError(10), expected_calibration_error),
        (AdaptiveCalibrationError(10), adaptive_calibration_error),
    ],
)
def test_streaming_agrees_with_one_pass_and_resets(metric, function):
    for seed in (4, 5):
        probs, y = random_examples(1000, seed)
        for start in range(0, 1000, 300):
            metric.update(probs[start : start + 300], y[start : start + 300])
        assert metric.compute().item() == pytest.approx(function(probs, y, 10).item(), abs=1e-12)
        metric.reset()


def test_streaming_curve_and_forward():
    probs, y = random_examples(400, seed=6)
    metric = ExpectedCalibrationError(10)
    of_batch = metric(probs[:200], y[:200])
    metric(probs[200:], y[200:])
    assert of_batch.item() == pytest.approx(expected_calibration_error(probs[:200], y[:200], 10).item())
    assert metric.compute().item() == pytest.approx(expected_calibration_error(probs, y, 10).item())
    assert metric.curve().count.equal(reliability_curve(probs, y, 10).count)


@pytest.mark.parametrize(
    ("probs", "y", "error", "message"),
    [
        (torch.rand(4, 3), torch.zeros(4, dtype=torch.long), ValueError, "probs: .*sum to 1"),
        (torch.tensor([0.5, 1.2]), torch.tensor([0, 1]), ValueError, r"binary probabilities.*1\.2.*sigmoid"),
        (
            torch.tensor([0.5, 0.2]),
            torch.tensor([0, 2]),
            ValueError,
            r"y: expected labels in 0 \.\. 1, got 2",
        ),
        (torch.tensor([0.5, 0.2]), torch.tensor([0.0, 1.0]), TypeError, "y: .*integer class labels"),
        (torch.full((4, 2), 0.5), torch.zeros(3, dtype=torch.long), ValueError, r"y: .*\[4\], got \[3\]"),
    ],
)
def test_bad_input_is_refused(probs, y, error, message):
    for function in (reliability_curve, expected_calibration_error, adaptive_calibration_error):
        with pytest.raises(error, match=message):
            function(probs, y)
    for metric in (ExpectedCalibrationError(), AdaptiveCalibrationError()):
        with pytest.raises(error, match=message):
            metric.update(probs, y)


@pytest.mark.parametrize("num_bins", [0, 15.0])
def test_bad_number_of_bins_is_refused(num_bins):
    probs, y = random_examples(3, seed=7)
    for call in (
        lambda: reliability_curve(probs, y, num_bins),
        lambda: ExpectedCalibrationError(num_bins),
        lambda: AdaptiveCalibrationError(num_bins),
    ):
        with pytest.raises(ValueError, match=f"num_bins: expected a positive int, got {num_bins}"):
            call()
