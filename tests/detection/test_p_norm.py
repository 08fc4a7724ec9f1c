"""MaxLogit-pNorm."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pyrobnn.detection import Abstention, MaxLogitPNorm
from pyrobnn.metrics import aurc
from tests.conformance.predictions import class_prediction, normal_prediction


def scaled(num_data: int, seed: int) -> tuple[Tensor, Tensor]:
    """Logits of a right scale, times a factor of each datum that says nothing; labels by the right ones."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_data, 5, generator=generator, dtype=torch.float64)
    labels = torch.distributions.Categorical(logits=2 * logits).probs.cumsum(-1)
    labels = (torch.rand(num_data, 1, generator=generator, dtype=torch.float64) > labels).sum(-1).clamp_max(4)
    return logits * (3 * torch.randn(num_data, 1, generator=generator, dtype=torch.float64)).exp(), labels


def test_formula_by_hand_whatever_the_scale_and_offset_of_the_logits() -> None:
    logits = torch.tensor([[3.0, 0.0, 0.0], [1.0, 1.0, -2.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    centered = torch.tensor([[2.0, -1.0, -1.0], [1.0, 1.0, -2.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    score = MaxLogitPNorm([3.0])
    score.store(1, order=torch.tensor(3.0, dtype=torch.float64))
    sums = centered.abs().pow(3).sum(-1)
    expected = -centered.amax(-1) / sums.pow(1 / 3).clamp_min(1e-12)
    for given in (logits, logits + 7.0, logits.log_softmax(-1)):
        torch.testing.assert_close(score(class_prediction(given.log_softmax(-1).unsqueeze(0))), expected)
    found = score(class_prediction((200 * logits).log_softmax(-1).unsqueeze(0)))  # probabilities of e^-600
    torch.testing.assert_close(found, expected)


def test_chooses_the_order_of_least_area_on_held_out_data_and_beats_the_softmax_response() -> None:
    logits, labels = scaled(2000, 0)
    held = class_prediction(logits[:1000].log_softmax(-1).unsqueeze(0))
    score = MaxLogitPNorm([2, 4, 8]).fit(held, labels[:1000])
    wrong = held.predicted != labels[:1000]
    areas = {}
    for order in (2, 4, 8):  # not 1: with one positive logit all scores are 1/2, up to rounding
        centered = logits[:1000] - logits[:1000].mean(-1, keepdim=True)
        areas[order] = float(aurc(-(centered.amax(-1) / centered.norm(order, -1)), wrong))
    assert float(score.order) == min(areas, key=areas.__getitem__)
    test = class_prediction(logits[1000:].log_softmax(-1).unsqueeze(0))
    wrong = test.predicted != labels[1000:]
    assert aurc(score(test), wrong) < aurc(test.least_confidence, wrong)


def test_the_largest_probability_where_no_order_is_better() -> None:
    """Of two classes all normalized logits are equal, which no order can mend."""
    p = torch.linspace(0.5, 0.99, 400, dtype=torch.float64)
    labels = (torch.rand(400, generator=torch.Generator().manual_seed(0)) > p).long()
    prediction = class_prediction(torch.stack([p, 1 - p], -1).log().unsqueeze(0))
    score = MaxLogitPNorm().fit(prediction, labels)
    assert float(score.order) == 0.0
    assert torch.equal(score(prediction), prediction.least_confidence)


def test_state_and_use_as_a_score_of_abstention() -> None:
    logits, labels = scaled(1000, 1)
    prediction = class_prediction(logits.log_softmax(-1).unsqueeze(0))
    score = MaxLogitPNorm().fit(prediction, labels)
    loaded = MaxLogitPNorm()
    loaded.load_state_dict(score.state_dict())
    assert torch.equal(loaded(prediction), score(prediction))
    assert "num_data=1000" in repr(loaded)
    rule = Abstention(0.5, 0.9, score=loaded).fit(prediction, labels)
    assert 0 < int(rule(prediction).sum()) <= 1000


def test_several_labels_of_an_input_and_draws() -> None:
    generator = torch.Generator().manual_seed(0)
    log_probs = torch.randn(3, 20, 4, 5, generator=generator).log_softmax(-1)
    prediction = class_prediction(log_probs)
    labels = torch.randint(0, 5, (20, 4), generator=generator)
    score = MaxLogitPNorm([2]).fit(prediction, labels)
    score.order.fill_(2.0)
    z = (log_probs.double().logsumexp(0) - math.log(3)).double()
    z = z - z.mean(-1, keepdim=True)
    torch.testing.assert_close(score(prediction), -(z.amax(-1) / z.norm(2, -1)), rtol=1e-5, atol=1e-6)


def test_what_cannot_be_chosen_is_refused() -> None:
    logits, _ = scaled(10, 0)
    prediction = class_prediction(logits.log_softmax(-1).unsqueeze(0))
    with pytest.raises(ValueError, match=r"^targets: all 10 answers are right"):
        MaxLogitPNorm().fit(prediction, prediction.predicted)
    with pytest.raises(RuntimeError, match=r"^MaxLogitPNorm: it is not fitted yet"):
        MaxLogitPNorm()(prediction)
    with pytest.raises(TypeError, match=r"^prediction: "):
        MaxLogitPNorm().fit(normal_prediction(torch.zeros(1, 10), torch.ones(1, 10)), torch.zeros(10))
    for orders in ([], 3, "2", [0.0], [-1.0], [math.nan]):
        with pytest.raises(ValueError, match=r"^orders: "):
            MaxLogitPNorm(orders)  # type: ignore[arg-type]
