"""Losses on hand-made batches, whose values are known."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.domain_adaptation import (
    CentroidAlignment,
    ClusterAlignment,
    ClusterRamp,
    Domain,
    DomainAdversarial,
    DomainBatch,
    DomainRamp,
    MeanDiscrepancy,
    domain_discriminator,
    reverse_gradient,
)
from models.domain_adaptation.class_means import class_means
from models.domain_adaptation.classifier_discrepancy import discrepancy
from models.domain_adaptation.cluster_alignment import clustering_loss
from models.domain_adaptation.mean_discrepancy import maximum_mean_discrepancy
from models.domain_adaptation.virtual_adversarial import conditional_entropy, virtual_adversarial_loss


def batch_of(
    source: Tensor, target: Tensor, labels: Tensor, taught: Tensor, classes: int = 2, confidence: float = 1.0
) -> DomainBatch:
    """A batch whose teacher has a confidence in given classes."""
    wrong = (1.0 - confidence) / max(classes - 1, 1)
    teacher = torch.full((len(taught), classes), wrong).scatter(1, taught.unsqueeze(1), confidence)
    logits = [torch.zeros(len(side), classes) for side in (source, target)]
    sides = [Domain(side, side, own) for side, own in zip((source, target), logits, strict=True)]
    return DomainBatch(sides[0], sides[1], labels, teacher)


# ------------------------------------------------------------------------------------------- gradient reversal


def test_gradient_reversal_equals_two_steps_by_hand() -> None:
    """One backward pass gives the discriminator its gradient, and features minus the weight times theirs."""
    torch.manual_seed(0)
    features, discriminator = nn.Linear(3, 4).double(), nn.Linear(4, 1).double()
    x, is_source = torch.randn(8, 3, dtype=torch.double), (torch.arange(8) < 4).double().unsqueeze(1)
    F.binary_cross_entropy_with_logits(discriminator(reverse_gradient(features(x), 0.3)), is_source).backward()
    loss = F.binary_cross_entropy_with_logits(discriminator(features(x)), is_source)
    expected = torch.autograd.grad(loss, [*features.parameters(), *discriminator.parameters()])
    own = [parameter.grad for parameter in [*features.parameters(), *discriminator.parameters()]]
    for found, gradient, factor in zip(own, expected, [-0.3, -0.3, 1.0, 1.0], strict=True):
        torch.testing.assert_close(found, factor * gradient, rtol=1e-12, atol=1e-14)
    with pytest.raises(ValueError, match="weight"):
        reverse_gradient(x, -1.0)


def test_gates_leave_out_targets_the_teacher_is_unsure_of() -> None:
    """Of two targets one is sure; without any the targets' half is zero, and the mean is over those that count."""
    discriminator = nn.Linear(1, 1)
    nn.init.constant_(discriminator.weight, 1.0)
    nn.init.zeros_(discriminator.bias)
    source, target = torch.tensor([[2.0], [0.0]]), torch.tensor([[1.0], [-3.0]])
    base = batch_of(source, target, torch.tensor([0, 1]), torch.tensor([0, 1]))
    unsure = DomainBatch(base.source, base.target, base.labels, torch.tensor([[0.95, 0.05], [0.5, 0.5]]))
    of_source = F.softplus(-source).mean() / 2
    plain = DomainAdversarial(discriminator)(base, 1.0)
    torch.testing.assert_close(plain, of_source + F.softplus(target).mean() / 2)
    gated = DomainAdversarial(discriminator, gate=0.9)
    torch.testing.assert_close(gated(unsure, 1.0), of_source + F.softplus(target[0, 0]) / 2)
    torch.testing.assert_close(DomainAdversarial(discriminator, gate=0.99)(unsure, 1.0), of_source)


def test_ramps_of_the_published_codes() -> None:
    ramp = DomainRamp(100, 0.1)
    assert ramp(0) == 0.0
    assert ramp(50) == pytest.approx(0.1 * (2 / (1 + math.exp(-5)) - 1))
    assert ramp(100) == ramp(1000) == pytest.approx(0.1 * (2 / (1 + math.exp(-10)) - 1))
    late = ClusterRamp(5000, 10000, 2.0)
    assert late(4999) == 0.0
    assert late(5000) == pytest.approx(2.0 * math.exp(-10.0))
    assert late(15000) == late(90000) == pytest.approx(2.0)


# -------------------------------------------------------------------------------------------------------- CAT


def test_clustering_loss_of_three_points() -> None:
    """Points 0, 1 and 3 on a line, of classes a, a, b, and a margin of 6: the pairs' losses are 1, 0 (9 > 6) and 2."""
    features, labels = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([0, 0, 1])
    assert float(clustering_loss(features, labels, 6.0)) == pytest.approx(2 * (1.0 + 0.0 + 2.0) / 9)
    doubled = features.repeat(1, 2)
    mean, total = (float(clustering_loss(doubled, labels, 6.0, kind)) for kind in ("mean", "sum"))  # type: ignore[arg-type]
    assert mean == pytest.approx(6 / 9)
    assert total == pytest.approx(2 * 2.0 / 9)  # 2, 18 and 8: both pairs of two classes are far enough


def test_cluster_alignment_adds_both_domains_and_the_distance_of_means() -> None:
    """Class means of the source are 0 and 4, of the target 1 and 4; a class that the target lacks has no distance."""
    source, labels = torch.tensor([[0.0], [4.0]]), torch.tensor([0, 1])
    loss = ClusterAlignment(margin=20.0, distance="sum")
    both = loss(batch_of(source, torch.tensor([[1.0], [4.0]]), labels, torch.tensor([0, 1])), 1.0)
    assert float(both) == pytest.approx(2 * (20 - 16) / 4 + 2 * (20 - 9) / 4 + (1.0 + 0.0) / 2)
    lacking = loss(batch_of(source, torch.tensor([[1.0], [1.0]]), labels, torch.tensor([0, 0])), 0.5)
    assert float(lacking) == pytest.approx(0.5 * (2 * 4 / 4 + 0.0 + 1.0))


def test_class_means_leave_missing_classes_at_zero() -> None:
    means, there = class_means(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 9.0]]), torch.tensor([2, 2, 0]), 4)
    assert means.tolist() == [[5.0, 9.0], [0.0, 0.0], [2.0, 3.0], [0.0, 0.0]]
    assert there.tolist() == [True, False, True, False]


# -------------------------------------------------------------------------------------------------------- MSTN


def test_centroids_move_and_only_the_batch_has_a_gradient() -> None:
    """Decay 0.7: source centroid 2 then 0.7·2 + 0.3·4 = 2.6; target 1 then 0.7·1 + 0.3·3 = 1.6; distance 1 and 1."""
    loss = CentroidAlignment(decay=0.7)
    none, first, second = torch.tensor([0]), torch.tensor([[2.0]]), torch.tensor([[4.0]])
    assert float(loss(batch_of(first, torch.tensor([[1.0]]), none, none), 1.0)) == pytest.approx(1.0)
    target = torch.tensor([[3.0]], requires_grad=True)
    value = loss(batch_of(second, target, none, none), 1.0)
    assert float(value.detach()) == pytest.approx(1.0)
    (gradient,) = torch.autograd.grad(value, target)
    assert float(gradient) == pytest.approx(-2.0 * 1.0 * 0.3)  # not through the old centroid
    again = CentroidAlignment(decay=0.7)
    again.load_state(loss.state())
    later = batch_of(second, torch.tensor([[3.0]]), none, none)
    with torch.no_grad():
        values = [float(each(later, 1.0)) for each in (loss, again, again)]
    assert values[0] == values[1] == values[2] == pytest.approx((0.7 * 2.6 + 1.2 - 0.7 * 1.6 - 0.9) ** 2)


def test_a_class_without_a_centroid_in_both_domains_counts_nothing() -> None:
    loss = CentroidAlignment()
    batch = batch_of(torch.tensor([[9.0]]), torch.tensor([[1.0]]), torch.tensor([0]), torch.tensor([1]))
    assert float(loss(batch, 1.0)) == 0.0


# ----------------------------------------------------------------------------------------------- DDC, MCD, VADA


def test_mean_discrepancy_of_two_normals_is_known() -> None:
    r"""For N(0, 1) and N(m, 1) and a Gaussian kernel of bandwidth b, :math:`MMD^2 = 2 \sqrt{b^2/(b^2+2)}
    (1 - e^{-m^2/(2(b^2+2))})`; 30 pairs of samples of 200, z at most 4, and no bias at m = 0."""
    generator = torch.Generator().manual_seed(0)
    for shift in (0.0, 1.0):
        b = 1.5
        exact = 2 * math.sqrt(b**2 / (b**2 + 2)) * (1 - math.exp(-(shift**2) / (2 * (b**2 + 2))))
        found = torch.stack(
            [
                maximum_mean_discrepancy(
                    torch.randn(200, 1, generator=generator), shift + torch.randn(200, 1, generator=generator), [b]
                )
                for _ in range(30)
            ]
        )
        assert abs(float(found.mean()) - exact) < 4 * float(found.std()) / math.sqrt(30)
    with pytest.raises(ValueError, match="at least two rows"):
        maximum_mean_discrepancy(torch.zeros(1, 1), torch.zeros(5, 1), [1.0])


def test_mean_discrepancy_finds_its_bandwidth_in_the_batch() -> None:
    """Scaling all features changes nothing; equal batches have a negative estimate, as without bias."""
    torch.manual_seed(0)
    source, target = torch.randn(20, 3), torch.randn(20, 3) + 1.0
    labels = torch.zeros(20, dtype=torch.long)
    loss = MeanDiscrepancy()
    values = [loss(batch_of(k * source, k * target, labels, labels), 1.0) for k in (1.0, 100.0)]
    torch.testing.assert_close(values[0], values[1])
    assert float(values[0]) > 0.1
    assert float(loss(batch_of(source, source, labels, labels), 1.0)) < 0.0


def test_discrepancy_is_the_mean_over_rows_and_classes() -> None:
    assert float(discrepancy(torch.tensor([[1.0, 0.0], [0.5, 0.5]]), torch.tensor([[0.0, 1.0], [0.5, 0.5]]))) == 0.5


def test_virtual_adversarial_direction_of_a_linear_model() -> None:
    """Two classes with logit gap ``a·x``: the worst direction is a itself, and the divergence there is known."""
    torch.manual_seed(0)
    a = torch.tensor([3.0, -4.0])

    def network(x: Tensor) -> Tensor:
        return torch.stack([x @ a, torch.zeros(len(x))], 1)

    x = torch.tensor([[0.1, 0.2], [0.05, 0.0]])
    found = virtual_adversarial_loss(network, x, network(x), 0.1)
    candidates = []
    for sign in (1.0, -1.0):
        moved = network(x + sign * 0.1 * a / a.norm())
        clean = network(x).log_softmax(-1)
        candidates.append((clean.exp() * (clean - moved.log_softmax(-1))).sum(-1))
    low, high = torch.stack(candidates).amin(0), torch.stack(candidates).amax(0)
    assert float(low.mean()) * 0.999 <= float(found) <= float(high.mean()) * 1.001
    with pytest.raises(TypeError, match="floats"):
        virtual_adversarial_loss(network, torch.tensor([[1, 2]]), network(x), 0.1)


def test_conditional_entropy_of_even_odds() -> None:
    assert float(conditional_entropy(torch.tensor([[0.0, 0.0], [100.0, 0.0]]))) == pytest.approx(math.log(2) / 2)


# ------------------------------------------------------------------------------------------------- bad arguments


def test_bad_arguments_are_named() -> None:
    with pytest.raises(TypeError, match="discriminator"):
        DomainAdversarial("D")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="gate"):
        DomainAdversarial(domain_discriminator(2), gate=1.0)
    with pytest.raises(ValueError, match="weight"):
        ClusterAlignment(-1.0)
    with pytest.raises(ValueError, match="margin"):
        ClusterAlignment(margin=0.0)
    with pytest.raises(ValueError, match="distance"):
        ClusterAlignment(distance="max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="on: expected"):
        ClusterAlignment(on="inputs")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="decay"):
        CentroidAlignment(decay=1.0)
    with pytest.raises(ValueError, match="scales"):
        MeanDiscrepancy(scales=(0.0,))
    with pytest.raises(ValueError, match="features"):
        domain_discriminator(0)
    batch = batch_of(torch.ones(2, 2), torch.ones(2, 2), torch.tensor([0, 1]), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="discriminator: expected one logit"):
        DomainAdversarial(nn.Linear(2, 3))(batch, 1.0)
    with pytest.raises(ValueError, match="teacher"):
        ClusterAlignment()(DomainBatch(batch.source, batch.target, batch.labels), 1.0)
