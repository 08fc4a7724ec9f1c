import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss

from pyrobnn.metrics import accuracy, brier, nll

PROBS = torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.3, 0.4], [0.5, 0.5, 0.0]], dtype=torch.float64)
Y = torch.tensor([0, 1, 2])


def test_classification_scores_known_answers():
    assert nll(PROBS[:2], Y[:2]).item() == pytest.approx(-(math.log(0.7) + math.log(0.3)) / 2)
    assert nll(PROBS, Y, reduction="none")[2] == torch.inf
    assert brier(PROBS, Y, reduction="none").tolist() == pytest.approx([0.14, 0.74, 1.5])
    assert brier(PROBS, Y).item() == pytest.approx((0.14 + 0.74 + 1.5) / 3)
    assert accuracy(PROBS, Y, reduction="none").tolist() == [1.0, 0.0, 0.0]
    assert accuracy(PROBS, Y).item() == pytest.approx(1 / 3)


def test_brier_extremes_are_zero_and_two():
    certain = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert brier(certain, torch.tensor([0, 1]), reduction="none").tolist() == [0.0, 2.0]


def test_accuracy_tie_goes_to_the_lowest_class():
    tied = torch.tensor([[0.5, 0.5]])
    assert accuracy(tied, torch.tensor([0])) == 1
    assert accuracy(tied, torch.tensor([1])) == 0


def test_nll_and_brier_agree_with_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    probs = torch.softmax(torch.randn(200, 4, generator=generator, dtype=torch.float64), -1)
    y = torch.randint(4, (200,), generator=generator)
    assert nll(probs, y).item() == pytest.approx(log_loss(y, probs))
    assert brier(probs, y).item() == pytest.approx(brier_score_loss(y, probs, scale_by_half=False, labels=range(4)))


@pytest.mark.parametrize("score", [nll, brier])
def test_classification_scores_are_proper(score):
    # The exact expected score under true probabilities q is least at p = q.
    q = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    others = torch.softmax(torch.randn(500, 3, generator=torch.Generator().manual_seed(1)), -1).double()
    others = others / others.sum(-1, keepdim=True)

    def expected(p):
        return sum(q[c] * score(p, torch.full(p.shape[:-1], c), reduction="none") for c in range(3))

    assert (expected(others) > expected(q[None])).all()


@settings(max_examples=30, deadline=None)
@given(shape=st.lists(st.integers(1, 4), min_size=1, max_size=3), seed=st.integers(0, 2**16))
def test_reductions_and_shapes(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    probs = torch.softmax(torch.randn(*shape, 3, generator=generator, dtype=torch.float64), -1)
    labels = torch.randint(3, shape, generator=generator)
    for score in (nll, brier, accuracy):
        each = score(probs, labels, reduction="none")
        assert each.shape == torch.Size(shape)
        torch.testing.assert_close(score(probs, labels), each.mean())


@pytest.mark.parametrize("score", [nll, brier, accuracy])
@pytest.mark.parametrize(
    ("probs", "y", "error", "message"),
    [
        (PROBS, torch.tensor([0, 1, 3]), ValueError, r"y: expected labels in 0 \.\. 2, got 3"),
        (PROBS, torch.tensor([0, -100, 1]), ValueError, r"got -100.*ignore"),
        (PROBS, torch.eye(3, dtype=torch.long), ValueError, r"y: .*shape \[3\], got \[3, 3\].*argmax"),
        (PROBS, Y.float(), TypeError, r"y: .*integer class labels.*float32.*y\.long"),
        (PROBS.log(), Y, ValueError, r"probs: expected finite"),
        (PROBS * 2, Y, ValueError, r"probs: .*sum to 1"),
        (torch.rand(3), Y, ValueError, r"probs: .*sum to 1|probs: .*one label"),
    ],
)
def test_classification_scores_refuse(score, probs, y, error, message):
    with pytest.raises(error, match=message):
        score(probs, y)
