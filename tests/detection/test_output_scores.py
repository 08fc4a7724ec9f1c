"""Scores of outputs and of disagreement: by hand, by a loop over draws, and against pytorch-ood."""

from __future__ import annotations

import math

import pytest
import torch

from pyrobnn import detection, metrics
from pyrobnn.detection import NetworkOutputs
from tests.detection.networks import made_up

LOGITS = torch.tensor([[0.0, 0.0, 0.0], [2.0, 1.0, 0.0]], dtype=torch.float64)
SCORES = {
    detection.MaxSoftmax(): detection.max_softmax,
    detection.MaxLogit(): detection.max_logit,
    detection.Energy(2.0): lambda s: detection.energy(s, 2.0),
    detection.Entropy(): detection.softmax_entropy,
    detection.GEN(0.2, 2): lambda s: detection.generalized_entropy(s, 0.2, 2),
}


def test_by_hand() -> None:
    z = math.exp(2) + math.e + 1
    p = [math.exp(2) / z, math.e / z, 1 / z]
    expected = {
        detection.max_softmax: [-1 / 3, -p[0]],
        detection.max_logit: [0.0, -2.0],
        detection.energy: [-math.log(3), -math.log(z)],
        detection.softmax_entropy: [math.log(3), -sum(q * math.log(q) for q in p)],
        detection.generalized_entropy: [3 * (2 / 9) ** 0.1, sum((q * (1 - q)) ** 0.1 for q in p)],
    }
    for score, values in expected.items():
        assert score(LOGITS).tolist() == pytest.approx(values, abs=1e-12), score
        assert score(LOGITS[1]).shape == ()
    assert float(detection.energy(LOGITS[1], 4.0)) == pytest.approx(
        -4 * math.log(sum(math.exp(s / 4) for s in (2, 1, 0)))
    )
    two = (p[0] * (1 - p[0])) ** 0.5 + (p[1] * (1 - p[1])) ** 0.5
    assert float(detection.generalized_entropy(LOGITS[1], 0.5, 2)) == pytest.approx(two)
    assert float(detection.generalized_entropy(torch.tensor([1000.0, 0.0]))) < 1e-30  # no NaN at p = 1


@pytest.mark.parametrize("detector", SCORES, ids=lambda d: d.name)
def test_forms_are_those_of_a_loop_over_draws(detector: detection.Detector) -> None:
    outputs, score = made_up(), SCORES[detector]
    rows = [torch.stack([score(outputs.logits[k, n]) for k in range(4)]) for n in range(50)]
    mean = torch.stack([row.mean() for row in rows])
    variance = torch.stack([((row - row.mean()) ** 2).mean() for row in rows])
    assert torch.allclose(detector(outputs, "mean"), mean, atol=1e-12)
    assert torch.allclose(detector(outputs, "variance"), variance, atol=1e-12)
    if detector.name in ("max_logit", "energy"):
        averaged = score(sum(outputs.logits) / 4)
    else:
        averaged = score((sum(s.softmax(-1) for s in outputs.logits) / 4).log())
    assert torch.allclose(detector(outputs), averaged, atol=1e-10)


def test_disagreement_is_that_of_the_metrics() -> None:
    outputs = made_up()
    probs = outputs.logits.softmax(-1)
    for detector, expected in (
        (detection.MutualInformation(), metrics.mutual_information(probs)),
        (detection.VoteShare(), metrics.variation_ratio(probs)),
        (detection.ModelVariance(), metrics.probability_variance(probs)),
    ):
        assert torch.allclose(detector(outputs), expected, atol=1e-10), detector.name
        with pytest.raises(ValueError, match=rf"form: {detector.name} has 'averaged' only"):
            detector(outputs, "mean")
    opposite = NetworkOutputs(torch.tensor([[[60.0, 0.0]], [[0.0, 60.0]]]))
    found = [
        float(d(opposite)) for d in (detection.MutualInformation(), detection.VoteShare(), detection.ModelVariance())
    ]
    assert found == pytest.approx([math.log(2), 0.5, 0.5], abs=1e-6)


def test_numbers_of_pytorch_ood() -> None:
    peer = pytest.importorskip("pytorch_ood.detector", reason="pytorch-ood is not installed")
    s = made_up(rows=200).logits[0].float()
    for ours, theirs in (
        (detection.max_softmax(s), peer.MaxSoftmax.score(s)),
        (detection.max_logit(s), peer.MaxLogit.score(s)),
        (detection.energy(s, 3.0), peer.EnergyBased.score(s, 3.0)),
        (detection.softmax_entropy(s), peer.Entropy.score(s)),
        # Theirs is the mean over classes, of probabilities of at least 1e-7.
        (detection.generalized_entropy(s / 4) / s.shape[-1], peer.GEN.score(s / 4)),
    ):
        assert torch.allclose(ours, theirs, atol=1e-4)


def test_numbers_that_pytorch_ood_gave() -> None:
    """Version 0.4.0 on six rows of five logits; its GEN is the mean over classes."""
    row = torch.arange(6).double()[:, None]
    s = 4 * torch.sin(1.7 * row + 2.3 * torch.arange(5).double().square())
    for ours, theirs in (
        (detection.max_softmax(s), [-0.668041, -0.746407, -0.869028, -0.517146, -0.591088, -0.662638]),
        (detection.max_logit(s), [-3.844611, -3.966659, -2.391042, -3.947088, -2.796960, -3.872570]),
        (detection.energy(s, 3.0), [-6.592723, -6.074449, -4.689630, -6.885937, -5.960552, -6.023390]),
        (detection.softmax_entropy(s), [0.808832, 0.588813, 0.498726, 0.966357, 1.015530, 0.648463]),
        (detection.generalized_entropy(s / 4), [4.095183, 4.034276, 4.108065, 4.042837, 4.127002, 4.006684]),
    ):
        torch.testing.assert_close(ours, torch.tensor(theirs).double(), rtol=0, atol=1e-5)


def test_batches_and_one_batch_are_the_same() -> None:
    outputs = made_up()
    parts = [NetworkOutputs(outputs.logits[:, :20]), NetworkOutputs(outputs.logits[:, 20:])]
    assert torch.equal(detection.Energy()(iter(parts)), detection.Energy()(outputs))


def test_bad_use_is_refused() -> None:
    with pytest.raises(ValueError, match="forms: expected some of 'averaged', 'mean', 'variance', got"):
        detection.Energy()(made_up(), "median")
    with pytest.raises(TypeError, match="outputs: expected NetworkOutputs"):
        detection.Energy()(LOGITS)
    with pytest.raises(ValueError, match="outputs: there are none"):
        detection.Energy()([])
    normalized = NetworkOutputs(made_up().logits.log_softmax(-1))
    with pytest.raises(ValueError, match="outputs: they are normalized log probabilities, of which energy is no score"):
        detection.Energy()(normalized)
    with pytest.raises(TypeError, match="logits: expected a floating-point tensor"):
        detection.max_softmax(torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="logits: they hold NaN"):
        detection.max_logit(torch.tensor([float("nan"), 1.0]))
    with pytest.raises(ValueError, match="gamma: expected a positive number"):
        detection.GEN(0.0)
