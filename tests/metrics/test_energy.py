import math

import pytest
import torch

from pyrobnn.metrics import crps, energy_score

GENERATOR = torch.Generator().manual_seed(0)
DRAWS = torch.randn(7, 5, 2, 3, generator=GENERATOR, dtype=torch.float64)
Y = torch.randn(5, 2, 3, generator=GENERATOR, dtype=torch.float64)


def test_energy_score_against_all_pairs():
    flat, y = DRAWS.flatten(2), Y.flatten(1)
    error = (flat - y).norm(dim=-1).mean(0)
    pairs = (flat[:, None] - flat[None]).norm(dim=-1).sum((0, 1))
    torch.testing.assert_close(energy_score(DRAWS, Y, reduction="none"), error - pairs / (2 * 7 * 6))
    torch.testing.assert_close(energy_score(DRAWS, Y, fair=False), (error - pairs / (2 * 49)).mean())


def test_energy_score_of_one_target_is_the_crps():
    draws, y = DRAWS[:, :, 0, 0], Y[:, 0, 0]
    for fair in (True, False):
        torch.testing.assert_close(
            energy_score(draws, y, fair=fair, reduction="none"), crps(draws, y, fair=fair, reduction="none")
        )


def test_energy_score_prefers_the_true_dependence():
    """20,000 examples of correlation 0.9, two draws each; z = 4.5."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(5, 20_000, 2, generator=generator)
    joint = torch.stack([noise[..., 0], 0.9 * noise[..., 0] + math.sqrt(0.19) * noise[..., 1]], -1)
    difference = energy_score(noise[1:3], joint[0], reduction="none") - energy_score(
        joint[3:], joint[0], reduction="none"
    )
    assert difference.mean() > 4.5 * difference.std() / math.sqrt(20_000)


def test_energy_score_is_that_of_scoringrules():
    rules = pytest.importorskip("scoringrules")
    flat = DRAWS.flatten(2)
    for fair, estimator in ((True, "fair"), (False, "nrg")):
        expected = rules.es_ensemble(Y.flatten(1).numpy(), flat.numpy(), m_axis=0, v_axis=-1, estimator=estimator)
        torch.testing.assert_close(energy_score(DRAWS, Y, fair=fair, reduction="none"), torch.from_numpy(expected))


@pytest.mark.parametrize(
    ("draws", "y", "message"),
    [
        (torch.zeros(3), torch.zeros(3), r"draws: expected shape \[S, N"),
        (torch.zeros(1, 4, 2), torch.zeros(4, 2), "draws: .*at least 2 draws"),
        (torch.zeros(2, 4, 2), torch.zeros(4), r"y: expected shape \[4, 2\]"),
        (torch.zeros(2, 4, 2), torch.full((4, 2), torch.nan), "y: expected finite"),
    ],
)
def test_energy_score_refuses(draws, y, message):
    with pytest.raises(ValueError, match=message):
        energy_score(draws, y)
