"""Classes by softmax: the suite, pixels, ignored labels and weights of classes."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pyrobnn.model.likelihoods import Categorical, Likelihood
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.prediction import predict
from pyrobnn.robustness import FGSM
from tests.conformance.likelihood_suite import LikelihoodConformance

OUTPUTS = torch.tensor([[0.3, -1.2, 2.0, 0.1], [0.0, 0.7, -0.4, -2.0], [1.0, 1.5, 0.2, 0.4]])


class TestCategoricalConformance(LikelihoodConformance):
    takes_missing = False  # labels are integers: ignore_index

    def make(self, **options: Any) -> Likelihood:
        return Categorical(**options)

    def log_density(self, outputs: Tensor, y: Tensor) -> Tensor:
        return -F.cross_entropy(outputs, y.long(), reduction="none")

    def refused(self, y: Tensor) -> list[tuple[type[Exception], Tensor]]:
        return [*super().refused(y), (TypeError, y.double()), (ValueError, y + 4), (ValueError, y - 4)]


class TestPixelsConformance(TestCategoricalConformance):
    """The same by ``class_dim`` and with a label to ignore, on inputs of one label each."""

    def make(self, **options: Any) -> Likelihood:
        return Categorical(class_dim=1, ignore_index=9, **options)


class TestWeightedConformance(TestCategoricalConformance):
    """Weights of classes count in the distribution that is trained, and in no prediction."""

    WEIGHT = torch.tensor([0.5, 2.0, 1.0, 0.25], dtype=torch.float64)

    def make(self, **options: Any) -> Likelihood:
        return Categorical(class_weight=self.WEIGHT, **options)

    def test_log_density_per_datum(self) -> None:
        outputs = self.outputs()
        y = self.targets(outputs)
        expected = self.WEIGHT[y] * self.log_density(outputs, y)
        torch.testing.assert_close(self.make()(outputs).log_prob(y), expected)

    def test_single_precision(self) -> None:
        outputs = self.outputs()
        y = self.targets(outputs)
        expected = self.WEIGHT[y] * self.log_density(outputs, y)
        torch.testing.assert_close(self.make()(outputs.float()).log_prob(y), expected.float())


def test_softmax_probabilities() -> None:
    expected = OUTPUTS.exp() / OUTPUTS.exp().sum(-1, keepdim=True)
    torch.testing.assert_close(Categorical().probabilities(OUTPUTS), expected)


def test_pixels_have_their_classes_in_dimension_one() -> None:
    outputs = torch.randn(2, 4, 3, 5)
    likelihood = Categorical(class_dim=1)
    y = torch.randint(4, (2, 3, 5))
    likelihood.check_targets(outputs, y)
    torch.testing.assert_close(likelihood.probabilities(outputs), outputs.softmax(1).permute(0, 2, 3, 1))
    expected = -F.cross_entropy(outputs, y, reduction="none").sum((1, 2))
    distribution = likelihood(outputs)
    assert distribution.batch_shape == (2,)
    torch.testing.assert_close(distribution.log_prob(y), expected)


@pytest.mark.parametrize("void", [11, 255, -1])
def test_ignored_pixels_count_nowhere(void: int) -> None:
    outputs = torch.randn(2, 4, 3, 5, requires_grad=True)
    likelihood = Categorical(class_dim=1, ignore_index=void)
    y = torch.randint(4, (2, 3, 5))
    y[0, 1:], y[1, :, 2] = void, void
    likelihood.check_targets(outputs, y)
    log_density = likelihood(outputs).log_prob(y)
    expected = -F.cross_entropy(outputs, y, reduction="none", ignore_index=void).sum((1, 2))
    torch.testing.assert_close(log_density, expected)
    log_density.sum().backward()
    ignored = (y == void).unsqueeze(1).expand_as(outputs)
    assert outputs.grad is not None
    assert torch.equal(outputs.grad[ignored], torch.zeros(int(ignored.sum())))
    assert bool((outputs.grad[~ignored] != 0).all())
    assert torch.equal(likelihood.probabilities(outputs), Categorical(class_dim=1).probabilities(outputs))
    assert likelihood.config() == {"class_dim": 1, "ignore_index": void, "class_weight": None}


def test_images_that_are_all_void_count_zero() -> None:
    likelihood = Categorical(class_dim=1, ignore_index=11)
    outputs, y = torch.randn(2, 4, 3, 3), torch.full((2, 3, 3), 11)
    likelihood.check_targets(outputs, y)
    assert torch.equal(likelihood(outputs).log_prob(y), torch.zeros(2))


def test_only_the_ignored_label_may_be_outside_the_classes() -> None:
    y = torch.tensor([11, 12, 0])
    with pytest.raises(ValueError, match=r"from 0 to 3 or 11, which is ignored, .*from 0 to 12"):
        Categorical(ignore_index=11).check_targets(OUTPUTS, y)
    with pytest.raises(ValueError, match=r"integer labels from 0 to 3 \("):
        Categorical().check_targets(OUTPUTS, torch.tensor([11, 3, 0]))


@pytest.mark.parametrize("wrong", [True, 1.0, "void"])
def test_the_ignored_label_is_an_int(wrong: object) -> None:
    with pytest.raises(TypeError, match="ignore_index: expected the label to ignore"):
        Categorical(ignore_index=wrong)  # type: ignore[arg-type]


@given(classes=st.integers(2, 6), batch=st.integers(1, 5), wrong=st.sampled_from([-1, "C", 1000]))
def test_labels_outside_the_classes_are_refused(classes: int, batch: int, wrong: int | str) -> None:
    outputs, y = torch.zeros(batch, classes), torch.zeros(batch, dtype=torch.long)
    Categorical().check_targets(outputs, y)
    y[-1] = classes if wrong == "C" else int(wrong)
    with pytest.raises(ValueError, match=rf"y: Categorical expects integer labels from 0 to {classes - 1} .*{y[-1]}"):
        Categorical().check_targets(outputs, y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bool, torch.complex64])
def test_labels_of_another_kind_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=rf"y: Categorical expects integer labels from 0 to 3 .*{dtype}"):
        Categorical().check_targets(OUTPUTS, torch.zeros(3).to(dtype))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.int64])
def test_labels_of_any_integer_dtype_pass(dtype: torch.dtype) -> None:
    Categorical().check_targets(OUTPUTS, torch.tensor([0, 3, 1], dtype=dtype))


def test_classes_need_a_dimension() -> None:
    for call in (Categorical(), lambda outputs: Categorical().check_shape(outputs, torch.zeros(3))):
        with pytest.raises(ValueError, match=r"net: Categorical expects outputs \[B, C\].*\(3,\)"):
            call(torch.zeros(3))


# --------------------------------------------------------------------------------------------------- class weights


@pytest.mark.usefixtures("validated")
def test_weights_and_ignored_labels_together() -> None:
    """Torch's own weighted cross-entropy, and its gradient, on either path."""
    weight = torch.tensor([0.5, 2.0, 0.0, 1.0])
    y = torch.tensor([[0, 9, 2], [1, 3, 9]])
    results = []
    outputs = torch.randn(2, 4, 3)
    likelihood = Categorical(class_dim=1, ignore_index=9, class_weight=weight)
    for score in (
        lambda leaf: likelihood(leaf).log_prob(y),
        lambda leaf: -F.cross_entropy(leaf, y, weight=weight, ignore_index=9, reduction="none").sum(-1),
    ):
        leaf = outputs.clone().requires_grad_()
        score(leaf).sum().backward()
        results.append((score(leaf).detach(), leaf.grad))
    torch.testing.assert_close(*results)


def weighted(weight: Any) -> tuple[SupervisedModel, Tensor, Tensor]:
    torch.manual_seed(0)
    net, x = nn.Linear(2, 3), torch.randn(4, 2)
    model = SupervisedModel(net, Categorical(class_weight=weight), dist.Normal(0.0, 1.0), num_data=12)
    return model, x, torch.tensor([0, 2, 2, 1])


def test_weights_do_not_change_how_many_data_there_are() -> None:
    """``N / B Σ c_y log p``: not divided by the batch's sum of weights, as torch's mean reduction is."""
    weight = torch.tensor([0.5, 2.0, 3.0])
    model, x, y = weighted(weight)
    values = {"net.weight": torch.randn(3, 2), "net.bias": torch.randn(3)}
    with poutine.condition(data=values):
        trace = poutine.trace(model).get_trace(x, y)
    trace.compute_log_prob()
    log_probs = (x @ values["net.weight"].T + values["net.bias"]).log_softmax(-1)[torch.arange(4), y]
    torch.testing.assert_close(trace.nodes["y"]["log_prob_sum"], 12 / 4 * (weight[y] * log_probs).sum())


def test_weights_leave_predictions_and_attacks_alone() -> None:
    model, x, y = weighted([0.5, 2.0, 3.0])
    plain, *_ = weighted(None)
    draws = {"net.weight": torch.randn(6, 3, 2), "net.bias": torch.randn(6, 3)}
    ours, theirs = (predict(m, draws, x, 6) for m in (model, plain))
    assert torch.equal(ours.mean, theirs.mean)
    assert torch.equal(ours.log_prob(y), theirs.log_prob(y))
    assert torch.equal(*(FGSM(0.1)(m, draws, x, y, num_samples=6) for m in (model, plain)))


@pytest.mark.parametrize("wrong", [[-1.0, 1.0], [float("nan")], [float("inf")], [], 1.0, [[1.0, 2.0]]])
def test_weights_are_a_vector_of_non_negative_numbers(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"class_weight: expected a vector \[C\]"):
        Categorical(class_weight=wrong)


def test_there_is_a_weight_for_each_class() -> None:
    with pytest.raises(ValueError, match="class_weight: expected a weight for each of the network's 4 classes, got 3"):
        Categorical(class_weight=[1.0, 1.0, 1.0])(OUTPUTS)


def test_a_confident_mistake_keeps_its_digits() -> None:
    """``log mean_k p_k`` of draws with log probabilities of -120, -2000 and minus infinity."""
    likelihood = Categorical()
    outputs = torch.tensor(
        [[[120.0, 0.0], [2000.0, 0.0], [0.0, -torch.inf]], [[121.0, 0.0], [2001.0, 0.0], [0.0, -torch.inf]]]
    )
    reduction = likelihood.reduction(2, keep=False, max_bytes=1)
    for output in outputs:
        reduction.add({name: value.unsqueeze(0) for name, value in reduction.summary(output).items()})
    prediction = reduction.finish(None)
    exact = outputs.double().log_softmax(-1).logsumexp(0) - torch.tensor(2.0).double().log()
    torch.testing.assert_close(prediction.log_prob(torch.ones(3).long()), exact[:, 1].float())
    torch.testing.assert_close(prediction.log_prob(torch.zeros(3).long()), exact[:, 0].float())
    assert bool(prediction.total.isfinite().all())
