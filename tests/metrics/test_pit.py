import pytest
import torch

from pyrobnn.metrics import pit_histogram, quantile_calibration


def test_histogram_known_answer():
    found = pit_histogram(torch.tensor([0.05, 0.15, 0.16, 0.55, 1.0]), 4)
    assert found.bin_edges.tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert found.share.tolist() == pytest.approx([0.6, 0.0, 0.2, 0.2])
    assert found.count == 5


def test_a_pit_of_zero_is_counted():
    assert pit_histogram(torch.tensor([0.0, 1.0]), 2).share.tolist() == [0.5, 0.5]


def test_counts_are_spread_evenly():
    """One target from 0.1 to 0.6 and one at 0.3: half of the first is below 0.35."""
    pit, below = torch.tensor([0.6, 0.3]), torch.tensor([0.1, 0.3])
    found = quantile_calibration(pit, [0.2, 0.35, 0.8], below=below)
    assert found.observed.tolist() == pytest.approx([0.1, 0.75, 1.0])
    assert found.error.item() == pytest.approx((0.1 + 0.4 + 0.2) / 3)


def test_poisson_counts_from_their_own_distribution_are_uniform():
    """50,000 counts of rate 0.7; a share has a standard error of at most 0.0022; z = 4.5."""
    rate = torch.full((50_000,), 0.7, dtype=torch.float64)
    y = torch.poisson(rate, generator=torch.Generator().manual_seed(0))
    at, below = (
        torch.special.gammaincc(y + 1, rate),
        torch.where(y > 0, torch.special.gammaincc(y.clamp_min(1), rate), 0),
    )
    found = quantile_calibration(at, below=below)
    assert len(found.levels) == 19
    assert (found.observed - found.levels).abs().max() < 4.5 * 0.0022
    wrong = quantile_calibration(at)  # without the jump, a third of targets would be below 0.5
    assert wrong.error > 0.1


def test_weights_count_examples():
    pit = torch.tensor([[0.1, 0.2], [0.9, 0.95]])
    found = pit_histogram(pit, 2, weight=torch.tensor([3.0, 1.0]))
    assert found.share.tolist() == pytest.approx([0.75, 0.25])
    assert found.count == pytest.approx(64 / 20)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pit": torch.tensor([0.5, 1.2])}, "pit: expected probabilities, got values from 0.5 to 1.2"),
        ({"pit": torch.tensor([0.5, torch.nan])}, "pit: expected finite"),
        ({"pit": torch.tensor([0.5]), "below": torch.tensor([0.6])}, "below: expected P"),
        ({"pit": torch.tensor([0.5]), "below": torch.tensor([0.1, 0.2])}, r"below: expected shape \[1\]"),
        ({"pit": torch.tensor([0.5]), "weight": torch.ones(2)}, r"weight: .*shape \[1\]"),
        ({"pit": torch.tensor(0.5), "weight": torch.ones(1)}, r"pit: expected shape \[N"),
        ({"pit": torch.tensor([])}, "pit: expected at least one"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        pit_histogram(**arguments)
    with pytest.raises(ValueError, match=message):
        quantile_calibration(**arguments)
