"""Acquisition functions."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from pyrobnn.decisions import BADGE, BALD, EPIG, BatchBALD, CoreSet, Entropy, MeanStd, Pool, Random, VariationRatio
from pyrobnn.decisions.acquisition import Acquisition
from pyrobnn.model.likelihoods.predictions import ClassPrediction
from tests.conformance.predictions import class_prediction, normal_prediction


def logits(count: int, draws: int = 5, classes: int = 3, seed: int = 0) -> Tensor:
    return 2 * torch.randn(draws, count, classes, generator=torch.Generator().manual_seed(seed)).double()


def pool(count: int = 4, **options: int) -> Pool:
    prediction = class_prediction(logits(count, **options))
    generator = torch.Generator().manual_seed(1)
    return Pool(prediction, torch.randn(count, 2, generator=generator), torch.randn(3, 2, generator=generator))


def joint_information(probs: Tensor, batch: tuple[int, ...]) -> float:
    """I[y_batch; w] by all joint labels of independent labels given the weights."""
    draws, _, classes = probs.shape
    entropy = 0.0
    for labels in itertools.product(range(classes), repeat=len(batch)):
        joint = torch.ones(draws).double()
        for index, label in zip(batch, labels, strict=True):
            joint = joint * probs[:, index, label]
        entropy += float(torch.special.entr(joint.mean()))
    expected = sum(float(torch.special.entr(probs[:, index]).sum(-1).mean()) for index in batch)
    return entropy - expected


@pytest.mark.parametrize("seed", range(5))
def test_batch_bald_is_the_greedy_search_by_brute_force(seed: int) -> None:
    given = pool(4, seed=seed)
    probs = given.prediction.draws
    assert probs is not None
    chosen: tuple[int, ...] = ()
    for _ in range(4):
        rest = [index for index in range(4) if index not in chosen]
        chosen = (*chosen, max(rest, key=lambda index: joint_information(probs, (*chosen, index))))
    assert BatchBALD().select(given, 4).tolist() == list(chosen)


def test_sampled_joint_labels_estimate_the_same_information() -> None:
    """Entropies of four labels and one more, from 20,000 sampled of the 81 joint labels: within 0.02 (z above 4)."""
    probs = class_prediction(logits(6)).draws
    assert probs is not None
    joint, weight = torch.ones(1, 5).double(), torch.ones(1).double()
    for index in range(4):
        joint, weight = BatchBALD(10**6)._extended(joint, weight, probs[:, index], 3)
    assert joint.shape == (81, 5)
    expected = BatchBALD()._entropies(joint, weight, probs)
    torch.manual_seed(0)
    chance = joint.mean(-1)
    index = torch.multinomial(chance, 20_000, replacement=True)
    found = BatchBALD()._entropies(joint[index], 1 / (20_000 * chance[index]), probs)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)


def test_with_few_configurations_batches_are_nearly_as_informative() -> None:
    """Batches of 3 of 12 inputs with at most 9 joint labels: above 90 % of the information of the exact search."""
    given = pool(12, draws=8)
    probs = given.prediction.draws
    assert probs is not None
    torch.manual_seed(0)
    exact, few = (tuple(BatchBALD(size).select(given, 3).tolist()) for size in (1000, 9))
    assert len(set(few)) == 3
    assert joint_information(probs, few) > 0.9 * joint_information(probs, exact)


def test_a_batch_does_not_ask_the_same_thing_twice() -> None:
    """Of two equal inputs that BALD puts first, BatchBALD takes one, and then another whose draws split otherwise."""
    sure, unsure = torch.tensor([9.0, 0.0]), torch.tensor([0.0, 9.0])
    first = torch.stack([sure, sure, unsure, unsure])  # under four draws
    other = torch.stack([sure * 0.5, unsure * 0.5, sure * 0.5, unsure * 0.5])
    known = sure.expand(4, 2)
    given = Pool(
        class_prediction(torch.stack([first, first, other, known], 1).double()), torch.zeros(4, 1), torch.zeros(0, 1)
    )
    assert sorted(BALD().select(given, 2).tolist()) == [0, 1]
    assert sorted(BatchBALD().select(given, 2).tolist())[1] == 2


def test_scores_by_definition() -> None:
    given = pool(20)
    probs = given.prediction.draws
    assert probs is not None
    mean = probs.mean(0)
    expected = {
        Entropy: torch.special.entr(mean).sum(-1),
        BALD: torch.special.entr(mean).sum(-1) - torch.special.entr(probs).sum(-1).mean(0),
        MeanStd: (probs - mean).square().mean(0).sqrt().mean(-1),
    }
    for kind, scores in expected.items():
        torch.testing.assert_close(kind().score(given), scores)
        assert kind().select(given, 5).tolist() == scores.argsort(descending=True)[:5].tolist()
    votes = torch.nn.functional.one_hot(probs.argmax(-1), 3).sum(0)
    torch.testing.assert_close(VariationRatio().score(given).double(), 1 - votes.max(-1).values.double() / 5)


def test_epig_by_brute_force() -> None:
    here, there = class_prediction(logits(6)), class_prediction(logits(4, seed=3))
    given = Pool(here, torch.zeros(6, 1), torch.zeros(0, 1), targeted=there)
    p, q = here.draws, there.draws
    assert p is not None and q is not None
    joint = torch.einsum("kna,kmb->nmab", p, q) / 5
    apart = torch.einsum("na,mb->nmab", p.mean(0), q.mean(0))
    expected = (joint * (joint / apart).log()).sum((2, 3)).mean(1)
    torch.testing.assert_close(EPIG().score(given), expected)


@pytest.mark.parametrize("method", [Random(), Entropy(), BALD(), BatchBALD(), CoreSet(), BADGE()])
def test_choices_are_different_inputs_and_reproducible(method: Acquisition) -> None:
    given = pool(10)
    for size in (1, 4, 10):
        torch.manual_seed(0)
        first = method.select(given, size)
        torch.manual_seed(0)
        assert torch.equal(method.select(given, size), first)
        assert first.shape == (size,) and len(set(first.tolist())) == size
        assert set(first.tolist()) <= set(range(10))


def test_equal_scores_are_taken_in_random_order() -> None:
    """Each of ten equal inputs is in a batch of three in 300 of 1,000 times, z of 4."""
    torch.manual_seed(0)
    counts = torch.zeros(10)
    for _ in range(1000):
        counts[Random().select(pool(10), 3)] += 1
    assert float((counts / 1000 - 0.3).abs().max()) < 4 * math.sqrt(0.21 / 1000)


def test_bad_input_is_refused() -> None:
    given = pool(4)
    for size in (0, -1, True, 1.0):
        with pytest.raises(ValueError, match=r"^size: "):
            BALD().select(given, size)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^size: expected at most the 4 inputs"):
        BALD().select(given, 5)
    with pytest.raises(ValueError, match=r"^pool: it is empty"):
        Random().select(Pool(given.prediction, given.inputs[:0], given.labeled), 1)
    real = Pool(normal_prediction(torch.zeros(2, 4), torch.ones(2, 4)), given.inputs, given.labeled)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^pool: expected a prediction of classes"):
        Entropy().select(real, 1)
    without = given.prediction.without_draws()
    assert isinstance(without, ClassPrediction)
    for method in (BatchBALD(), MeanStd()):
        with pytest.raises(ValueError, match=r"^pool: the draws were not kept"):
            method.select(Pool(without, given.inputs, given.labeled), 1)
    with pytest.raises(ValueError, match=r"^pool: EPIG needs"):
        EPIG().select(given, 1)
    few = Pool(given.prediction, given.inputs, given.labeled, class_prediction(logits(3, draws=2)))
    with pytest.raises(ValueError, match=r"^pool: both predictions"):
        EPIG().select(few, 1)
    with pytest.raises(ValueError, match=r"^num_configurations: "):
        BatchBALD(0)
