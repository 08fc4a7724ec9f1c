import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Categorical, Dirichlet

from pyrobnn.metrics import (
    entropy,
    expected_entropy,
    least_confidence,
    mutual_information,
    predictive_entropy,
    probability_variance,
    variance_decomposition,
    variation_ratio,
)

MEASURES = [
    predictive_entropy,
    expected_entropy,
    mutual_information,
    probability_variance,
    variation_ratio,
    least_confidence,
]


def binary_entropy(p: float) -> float:
    return -p * math.log(p) - (1 - p) * math.log(1 - p)


@pytest.mark.parametrize(
    ("draws", "ratio", "total", "epistemic"),
    [
        ([[1.0, 0.0]] * 10, 0.0, 0.0, 0.0),
        ([[1.0, 0.0]] * 5 + [[0.0, 1.0]] * 5, 0.5, math.log(2), math.log(2)),
        ([[0.51, 0.49]] * 10, 0.0, binary_entropy(0.51), 0.0),
    ],
    ids=["certain", "disagreeing", "ambiguous"],
)
def test_worked_examples(draws, ratio, total, epistemic):
    probs = torch.tensor(draws, dtype=torch.float64)
    assert variation_ratio(probs).item() == pytest.approx(ratio, abs=1e-12)
    assert predictive_entropy(probs).item() == pytest.approx(total, abs=1e-12)
    assert mutual_information(probs).item() == pytest.approx(epistemic, abs=1e-12)


def test_ambiguous_example_is_0_6929_nats():
    assert entropy(torch.tensor([0.51, 0.49])).item() == pytest.approx(0.6929, abs=5e-5)


def test_least_confidence_and_variation_ratio_differ():
    # Two of three draws vote for class 0, but the mean probability favors class 1.
    probs = torch.tensor([[0.6, 0.4, 0.0], [0.6, 0.4, 0.0], [0.0, 1.0, 0.0]])
    assert variation_ratio(probs).item() == pytest.approx(1 / 3)
    assert least_confidence(probs).item() == pytest.approx(0.4)


def test_variation_ratio_ties_go_to_the_lowest_class():
    probs = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.0, 0.5, 0.5]])
    assert variation_ratio(probs).item() == pytest.approx(1 / 3)  # votes 0, 0, 1


def test_probability_variance_is_expected_norm_minus_norm_of_mean():
    probs = torch.tensor([[0.9, 0.1], [0.5, 0.5]], dtype=torch.float64)
    expected = ((0.81 + 0.01) + (0.25 + 0.25)) / 2 - (0.49 + 0.09)
    assert probability_variance(probs).item() == pytest.approx(expected, abs=1e-12)


def test_mutual_information_of_identical_draws_is_never_negative():
    torch.manual_seed(0)
    one = torch.softmax(4 * torch.randn(10_000, 7), -1)
    probs = one.expand(3, -1, -1)
    raw = predictive_entropy(probs) - expected_entropy(probs)
    assert (raw < 0).any()  # the rounding that the clamp is for
    information = mutual_information(probs)
    assert (information >= 0).all()
    assert (information < 1e-5).all()


def test_expected_entropy_of_dirichlet_draws():
    # E H(p) for p ~ Dir(a) is psi(A + 1) - sum_c a_c / A psi(a_c + 1). 40 000 draws, z = 4.5.
    torch.manual_seed(1)
    a = torch.tensor([0.5, 2.0, 3.5], dtype=torch.float64)
    probs = Dirichlet(a).sample((40_000,))
    exact = torch.digamma(a.sum() + 1) - (a / a.sum() * torch.digamma(a + 1)).sum()
    standard_error = entropy(probs).std() / 200
    assert abs(expected_entropy(probs) - exact) < 4.5 * standard_error


def test_entropy_gradient_matches_the_score():
    logits = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert torch.autograd.gradcheck(lambda x: entropy(torch.softmax(x, -1)), logits.requires_grad_())


@settings(max_examples=40, deadline=None)
@given(
    num_samples=st.integers(1, 6),
    shape=st.lists(st.integers(1, 4), max_size=2),
    num_classes=st.integers(2, 5),
    scale=st.floats(0, 20),
    seed=st.integers(0, 2**16),
)
def test_shapes_ranges_and_decomposition(num_samples, shape, num_classes, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(num_samples, *shape, num_classes, generator=generator, dtype=torch.float64)
    probs = torch.softmax(logits, -1)
    values = {measure: measure(probs) for measure in MEASURES}
    for value in values.values():
        assert value.shape == torch.Size(shape)
        assert (value >= -1e-12).all()
    total = values[predictive_entropy]
    parts = values[expected_entropy] + values[mutual_information]
    torch.testing.assert_close(total, parts, atol=1e-12, rtol=0)
    torch.testing.assert_close(total, Categorical(probs.mean(0)).entropy(), atol=1e-6, rtol=0)
    assert (total <= math.log(num_classes) + 1e-12).all()
    assert (values[mutual_information] <= math.log(min(num_samples, num_classes)) + 1e-12).all()
    assert (values[variation_ratio] <= 1 - 1 / min(num_samples, num_classes) + 1e-12).all()
    assert (values[least_confidence] <= 1 - 1 / num_classes + 1e-12).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_accepted_and_computed_in_single(dtype):
    probs = torch.softmax(torch.randn(3, 50, 10, generator=torch.Generator().manual_seed(3)), -1).to(dtype)
    value = predictive_entropy(probs)
    assert value.dtype == torch.float32
    torch.testing.assert_close(
        value, predictive_entropy(probs.double() / probs.double().sum(-1, True)).float(), atol=2e-2, rtol=0
    )


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(
    ("probs", "error", "message"),
    [
        (torch.tensor([0.5, 0.5]), ValueError, r"posterior draws first"),
        (torch.rand(3, 4, 1), ValueError, r"at least 2 classes.*torch\.stack"),
        (torch.tensor([[0.5, 0.6]]), ValueError, r"sum to 1 within 0\.001, off by 0\.1"),
        (torch.tensor([[1.5, -0.5]]), ValueError, r"negative value -0\.5.*softmax"),
        (torch.tensor([[float("nan"), 0.5]]), ValueError, r"expected finite values, got 1 bad of 2"),
        (torch.zeros(0, 4, 2), ValueError, r"at least one element"),
        (torch.tensor([[1, 0]]), TypeError, r"torch\.int64.*probs\.float"),
        ([[0.5, 0.5]], TypeError, r"got list"),
    ],
)
def test_bad_probabilities_are_refused(measure, probs, error, message):
    with pytest.raises(error, match=message):
        measure(probs)


def test_variance_decomposition_known_answer():
    means = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    variances = torch.tensor([[0.5, 2.0], [1.5, 4.0]])
    result = variance_decomposition(means, variances)
    assert result.aleatoric.tolist() == [1.0, 3.0]
    assert result.epistemic.tolist() == [1.0, 0.0]  # divided by S, not S - 1
    assert result.total.tolist() == [2.0, 3.0]


def test_variance_decomposition_is_the_variance_of_the_mixture():
    # 200 000 draws from the mixture; z = 4.5 on the variance, whose standard error uses the fourth moment.
    generator = torch.Generator().manual_seed(4)
    means = torch.tensor([-1.0, 0.5, 3.0], dtype=torch.float64)
    variances = torch.tensor([0.2, 1.0, 0.5], dtype=torch.float64)
    component = torch.randint(3, (200_000,), generator=generator)
    noise = torch.randn(200_000, generator=generator, dtype=torch.float64)
    y = means[component] + variances[component].sqrt() * noise
    squared = (y - y.mean()).square()
    standard_error = squared.std() / math.sqrt(len(y))
    assert abs(squared.mean() - variance_decomposition(means, variances).total) < 4.5 * standard_error


@pytest.mark.parametrize(
    ("means", "variances", "error", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(3, 1), ValueError, r"variances: expected shape \[3, 2\]"),
        (torch.zeros(3), torch.full((3,), -1.0), ValueError, r"variances: expected values >= 0.*log"),
        (torch.zeros(3), torch.full((3,), torch.inf), ValueError, r"variances: expected finite"),
        (torch.tensor(0.0), torch.tensor(1.0), ValueError, r"means: expected shape \[S"),
        (torch.zeros(3, dtype=torch.long), torch.zeros(3), TypeError, r"means: .*int64"),
    ],
)
def test_variance_decomposition_refuses(means, variances, error, message):
    with pytest.raises(error, match=message):
        variance_decomposition(means, variances)
