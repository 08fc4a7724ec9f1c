"""Running reductions equal what the uncertainty measures make of all draws at once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pyrobnn.metrics import measures
from pyrobnn.model.likelihoods import Categorical, Normal
from pyrobnn.model.likelihoods.moment_prediction import MomentPrediction
from pyrobnn.model.likelihoods.predictions import ClassPrediction
from pyrobnn.model.likelihoods.reductions import ClassReduction, KeptDraws, MomentReduction

chunks = st.lists(st.integers(1, 5), min_size=1, max_size=5)


def reduce_probabilities(probs: Tensor, sizes: list[int], *, keep: bool = False, max_bytes: int = 1) -> ClassPrediction:
    """The draws ``probs [K, ...]`` in chunks of these sizes."""
    reduction = ClassReduction(Categorical(), len(probs), keep=keep, max_bytes=max_bytes)
    for chunk in probs.log().split(sizes):
        reduction.add({"log_probs": chunk})
    return reduction.finish(None)


def reduce_moments(
    means: Tensor, variances: Tensor, sizes: list[int], keep: bool = False, max_bytes: int = 1
) -> MomentPrediction:
    """The draws in chunks of these sizes."""
    reduction = MomentReduction(Normal(1.0), len(means), keep=keep, max_bytes=max_bytes)
    for mean, variance in zip(means.split(sizes), variances.split(sizes), strict=True):
        reduction.add({"loc": mean, "scale": variance.sqrt()})
    return reduction.finish(None)


@given(sizes=chunks, shape=st.sampled_from([(4, 3), (2, 5, 2), (1, 2, 2, 4)]), seed=st.integers(0, 99))
def test_class_measures_equal_those_of_all_draws(sizes: list[int], shape: tuple[int, ...], seed: int) -> None:
    torch.manual_seed(seed)
    probs = (3 * torch.randn(sum(sizes), *shape, dtype=torch.float64)).softmax(-1)
    found = reduce_probabilities(probs, sizes, keep=True)
    close = {"rtol": 1e-10, "atol": 1e-12}
    torch.testing.assert_close(found.mean, probs.mean(0), **close)
    torch.testing.assert_close(found.total, measures.predictive_entropy(probs), **close)
    torch.testing.assert_close(found.aleatoric, measures.expected_entropy(probs), **close)
    torch.testing.assert_close(found.epistemic, measures.mutual_information(probs), **close)
    torch.testing.assert_close(found.variation_ratio, measures.variation_ratio(probs), **close)
    torch.testing.assert_close(found.least_confidence, measures.least_confidence(probs), **close)
    torch.testing.assert_close(found.draws, probs, **close)
    torch.testing.assert_close(found.log_mean, probs.mean(0).log(), **close)


@given(sizes=chunks, shape=st.sampled_from([(4,), (4, 1), (2, 3, 2)]), seed=st.integers(0, 99))
def test_moments_equal_those_of_all_draws(sizes: list[int], shape: tuple[int, ...], seed: int) -> None:
    torch.manual_seed(seed)
    means = torch.randn(sum(sizes), *shape, dtype=torch.float64)
    variances = torch.rand(sum(sizes), *shape, dtype=torch.float64)
    found = reduce_moments(means, variances, sizes)
    expected = measures.variance_decomposition(means, variances)
    torch.testing.assert_close(found.mean, means.mean(0))
    torch.testing.assert_close((found.total, found.aleatoric, found.epistemic), tuple(expected))
    assert found.num_samples == sum(sizes)


def test_variances_far_from_zero_do_not_cancel() -> None:
    """Means around 1e6 with spread 1: sums of squares would lose all digits of a float."""
    means = 1e6 + torch.randn(400, 3)
    expected = means.double().var(0, correction=0)
    found = reduce_moments(means, torch.full((400, 3), 1e-12), [1] * 400).epistemic.double()
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.0)


def test_unanimous_draws_have_no_epistemic_part() -> None:
    """Certain and uniform draws alike; rounding never makes it negative."""
    probs = torch.tensor([[1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3]]).expand(7, 2, 3)
    found = reduce_probabilities(probs, [3, 4])
    assert float(found.epistemic.abs().max()) < 1e-6
    assert float(found.epistemic.min()) >= 0.0
    assert found.total.tolist() == pytest.approx([0.0, 1.0986123], abs=1e-6)
    assert found.variation_ratio.tolist() == [0.0, 0.0]


def test_opposite_draws_are_all_epistemic() -> None:
    """Two certain draws for different classes: log 2 in all, of which nothing is aleatoric."""
    found = reduce_probabilities(torch.eye(2).unsqueeze(1), [1, 1])
    assert found.total.item() == pytest.approx(0.6931472)
    assert found.epistemic.item() == pytest.approx(0.6931472)
    assert found.aleatoric.item() == 0.0
    assert found.variation_ratio.item() == 0.5


def test_votes_are_counted_by_draw() -> None:
    """Votes 0, 0, 1, 2, 0 of five draws: two of five are not for the winner."""
    probs = torch.nn.functional.one_hot(torch.tensor([0, 0, 1, 2, 0]), 3).float().unsqueeze(1)
    assert reduce_probabilities(probs, [2, 3]).variation_ratio.item() == pytest.approx(0.4)


def test_moments_of_draws_are_kept_within_a_quarter_of_the_budget() -> None:
    """Four draws of 2 × 3 numbers of 4 bytes are 96 bytes."""
    means, variances = torch.randn(4, 3), torch.rand(4, 3)
    kept = reduce_moments(means, variances, [1, 3], max_bytes=384)
    assert torch.equal(kept.draws, means)
    torch.testing.assert_close(kept.noise, variances)
    assert reduce_moments(means, variances, [1, 3], max_bytes=383).draws is None
    assert torch.equal(reduce_moments(means, variances, [1, 3], keep=True).draws, means)


def test_draws_of_several_labels_are_kept_within_a_quarter_of_the_budget() -> None:
    """Four draws of 2 × 3 labels of 5 classes of 4 bytes are 480 bytes; of a single label they are not needed."""
    probs = torch.randn(4, 2, 3, 5).softmax(-1)
    kept = reduce_probabilities(probs, [1, 3], max_bytes=4 * 480)
    torch.testing.assert_close(kept.draws, probs)
    assert kept.kept_bytes == 480
    assert kept.without_draws().draws is None
    assert reduce_probabilities(probs, [1, 3], max_bytes=4 * 480 - 1).draws is None
    assert reduce_probabilities(probs[:, :, 0], [1, 3], max_bytes=2**20).draws is None


def test_kept_draws() -> None:
    kept = KeptDraws(3, max_bytes=24)
    assert kept.joined() is None
    kept.add({"a": torch.zeros(2, 2)})
    kept.add({"a": torch.ones(1, 2)})
    found = kept.joined()
    assert found is not None and found["a"].tolist() == [[0.0, 0.0], [0.0, 0.0], [1.0, 1.0]]
    kept.add({"a": torch.zeros(1, 3)})
    assert kept.joined() is None


def test_what_is_given_is_not_changed() -> None:
    probs = torch.randn(4, 2, 3).softmax(-1)
    means = torch.randn(4, 2)
    before = probs.clone(), means.clone()
    reduce_probabilities(probs, [1, 3])
    reduce_moments(means, means.square(), [1, 3])
    assert torch.equal(probs, before[0])
    assert torch.equal(means, before[1])
