"""Acquisition by features of the inputs."""

from __future__ import annotations

import torch

from pyrobnn.decisions import BADGE, CoreSet, Pool
from tests.conformance.predictions import class_prediction
from tests.decisions.test_acquisition import logits, pool


def test_core_set_by_hand() -> None:
    """On a line with a label at 0: first 10, then 4 (distance 4, from 0), then 7 of the rest."""
    inputs = torch.tensor([[1.0], [4.0], [7.0], [10.0], [9.5]])
    given = Pool(class_prediction(logits(5)), inputs, torch.tensor([[0.0]]))
    assert CoreSet().select(given, 3).tolist() == [3, 1, 2]
    assert CoreSet(lambda x: -x).select(given, 3).tolist() == [3, 1, 2]
    assert CoreSet().select(Pool(given.prediction, inputs, inputs[:0]), 2).tolist() == [0, 3]


def test_badge_starts_with_the_longest_gradient_and_draws_by_the_squared_distance() -> None:
    """3,000 second choices against the probabilities of k-means++ on the explicit gradients, z of 4."""
    given = pool(6)
    probs = given.prediction.mean
    scale = probs - torch.nn.functional.one_hot(probs.argmax(-1), 3)
    gradients = torch.einsum("nc,nf->ncf", scale, given.inputs.double()).flatten(1)
    first = int(gradients.norm(dim=1).argmax())
    distance = (gradients - gradients[first]).square().sum(1)
    torch.manual_seed(0)
    counts = torch.zeros(6)
    for _ in range(3000):
        chosen = BADGE().select(given, 2).tolist()
        assert chosen[0] == first
        counts[chosen[1]] += 1
    expected = distance / distance.sum()
    error = (expected * (1 - expected) / 3000).sqrt()
    assert bool(((counts / 3000 - expected).abs() <= 4 * error + 1e-12).all())
    equal = Pool(given.prediction, torch.zeros(6, 2), given.labeled)
    assert sorted(BADGE().select(equal, 6).tolist()) == list(range(6))
