"""The training function: off is off, each phase moves only what it may, teachers, and what it refuses."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pyrobnn as pb
from models.domain_adaptation import (
    AlignmentLoss,
    CentroidAlignment,
    ClassifierDiscrepancy,
    ClusterAlignment,
    DomainAdversarial,
    DomainAlignment,
    MeanDiscrepancy,
    MeanTeacher,
    PosteriorTeacher,
    StudentTeacher,
    TemporalTeacher,
    VirtualAdversarial,
    adapt,
    domain_discriminator,
)
from models.domain_adaptation.batches import Adversaries
from models.domain_adaptation.teachers import TargetTeacher
from pyrobnn.objectives import UnlabeledLoader
from pyrobnn.objectives.terms import Evaluation
from pyrobnn.training import GamePlayer

CLASSES = 3


def blobs(count: int, shift: float, seed: int) -> tuple[Tensor, Tensor]:
    """Three clusters around a circle, shifted."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % CLASSES
    angle = 2 * math.pi * y / CLASSES
    centers = torch.stack([angle.cos(), angle.sin()], 1) * 2
    return centers + shift + 0.3 * torch.randn(count, 2, generator=generator), y


def problem(guide: str = "map") -> tuple[pb.SupervisedModel, pb.guides.Guide, DataLoader[tuple[Tensor, ...]], Tensor]:
    torch.manual_seed(0)
    x, y = blobs(30, 0.0, 1)
    net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    model = pb.SupervisedModel(net, pb.likelihoods.Categorical(), num_data=30)
    makers = {
        "map": pb.guides.MAP,
        "mean_field": pb.guides.MeanField,
        "ensemble": functools.partial(pb.guides.DeltaMixture, num_members=2),
        "heads": functools.partial(
            pb.guides.Composite,
            rules=[("2.*", functools.partial(pb.guides.DeltaMixture, num_members=2)), ("*", pb.guides.MAP)],
        ),
    }
    return model, makers[guide](model), DataLoader(TensorDataset(x, y), 10, shuffle=True), blobs(24, 0.7, 2)[0]


def losses_of(guide: pb.guides.Guide, weight: float) -> dict[str, AlignmentLoss]:
    head = guide.parts[0] if isinstance(guide, pb.guides.Composite) else guide
    return {
        "adversarial": DomainAdversarial(domain_discriminator(8, 8), weight),
        "gated": DomainAdversarial(domain_discriminator(8, 8), weight, gate=0.5),
        "cluster": ClusterAlignment(weight),
        "centroid": CentroidAlignment(weight),
        "discrepancy": MeanDiscrepancy(weight),
        "virtual": VirtualAdversarial(weight),
        "classifiers": ClassifierDiscrepancy(head, weight),
    }


def parameters_after(guide: str, make: str | None, weight: float, **options: object) -> list[Tensor]:
    model, made, loader, target = problem(guide)
    losses = [] if make is None else [losses_of(made, weight)[make]]
    targets = UnlabeledLoader(target, 8)
    adapt(model, made, loader, targets, losses, epochs=2, lr=0.01, seed=3, progress=False, **options)  # type: ignore[arg-type]
    return [parameter.detach().clone() for parameter in made.parameters()]


KINDS = ["adversarial", "gated", "cluster", "centroid", "discrepancy", "virtual", "classifiers"]


@pytest.mark.parametrize("kind", KINDS)
def test_weight_zero_is_training_on_the_source_bit_for_bit(kind: str) -> None:
    guide = "heads" if kind == "classifiers" else "mean_field"
    alone, off, on = (parameters_after(guide, make, weight) for make, weight in ((None, 0.0), (kind, 0.0), (kind, 1.0)))
    assert all(torch.equal(a, b) for a, b in zip(alone, off, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(alone, on, strict=True))


@pytest.mark.parametrize("guide", ["map", "mean_field", "ensemble"])
def test_every_loss_goes_with_every_posterior(guide: str) -> None:
    for kind in KINDS[:-1]:
        assert all(bool(parameter.isfinite().all()) for parameter in parameters_after(guide, kind, 0.5))


def test_phases_of_the_classifier_discrepancy_move_only_what_they_may() -> None:
    """Each phase in turn: B moves the heads alone and raises the discrepancy, C the features alone and lowers it."""
    model, guide, loader, target = problem("heads")
    head, rest = guide.parts  # type: ignore[attr-defined]
    loss = ClassifierDiscrepancy(head, 1.0)
    term = DomainAlignment([target], [loss])
    batch = next(iter(loader))

    def observe(raw: Sequence[Tensor], needed: Sequence[AlignmentLoss]):  # type: ignore[no-untyped-def]
        return term.observe(Evaluation(model, guide, guide.step(model, sequential=False), tuple(raw), {}), needed)

    def player(name: str, module: nn.Module) -> GamePlayer:
        return GamePlayer(name, module, torch.optim.SGD, 0.05)

    classifier = player("classifier", nn.ModuleList([guide, model]))
    game = Adversaries(
        classifier, lambda raw: 0.0 * next(head.parameters()).sum(), observe, lambda: None, player, player, lambda: 0
    )
    apart, together = loss.further_phases(game)
    assert together.steps == 4

    def value() -> float:
        with torch.no_grad():
            return float(loss(observe(batch, [loss]), 1.0))

    def tensors(module: nn.Module) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in module.parameters()]

    def is_moved(before: list[Tensor], module: nn.Module) -> bool:
        return any(not torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))

    for phase, mover, other, sign in ((apart, head, rest, 1.0), (together, rest, head, -1.0)):
        before, others, start = tensors(mover), tensors(other), value()
        found, _ = phase.evaluate(batch)
        for parameter in phase.trained:
            parameter.grad = None
        found.backward(inputs=phase.trained)
        phase.movers[0].step()
        assert is_moved(before, mover)
        assert not is_moved(others, other)
        assert sign * (value() - start) > 0


@pytest.mark.parametrize("teacher", [MeanTeacher(0.9), StudentTeacher(), TemporalTeacher(), PosteriorTeacher(3)])
def test_teachers_take_part(teacher: TargetTeacher) -> None:
    found = parameters_after("mean_field", "cluster", 1.0, teacher=teacher)
    assert all(bool(parameter.isfinite().all()) for parameter in found)


def test_temporal_teacher_averages_a_rows_predictions_and_remembers_them() -> None:
    """Predictions 1 then 0 of a class with momentum 0.5: 1, then 0.5·0.5 / 0.75 = 1/3."""
    teacher = TemporalTeacher(0.5)
    rows = torch.tensor([4])

    def give(p: float) -> Tensor:
        student = torch.tensor([[p, 1 - p]])
        return teacher.probabilities(None, None, rows, student, None)  # type: ignore[arg-type]

    torch.testing.assert_close(give(1.0), torch.tensor([[1.0, 0.0]]))
    restored = TemporalTeacher(0.5)
    restored.load_state(teacher.state())
    torch.testing.assert_close(give(0.0), torch.tensor([[1 / 3, 2 / 3]]))
    teacher = restored
    torch.testing.assert_close(give(0.0), torch.tensor([[1 / 3, 2 / 3]]))


def test_posterior_teacher_is_the_posterior_predictive() -> None:
    """The average over draws of an ensemble of two is the mean of its members' probabilities, whatever the order."""
    model, guide, loader, target = problem("ensemble")
    adapt(model, guide, loader, [target], epochs=1, seed=0, progress=False)
    term = DomainAlignment([target], [ClusterAlignment()], teacher=PosteriorTeacher(64))
    evaluation = Evaluation(model, guide, guide.step(model), tuple(next(iter(loader))), {})
    found = term.observe(evaluation, [ClusterAlignment()]).teacher
    assert found is not None
    members = [term.run(model, guide.sample(64).at(k), target).probabilities.detach() for k in range(64)]
    distinct = torch.stack(members).unique(dim=0)
    assert len(distinct) == 2
    share = (found - distinct[1]).norm() / (distinct[0] - distinct[1]).norm()
    torch.testing.assert_close(found, share * distinct[0] + (1 - share) * distinct[1], atol=1e-5, rtol=1e-4)
    assert abs(float(share) - 0.5) < 4 * 0.5 / math.sqrt(64)


def test_losses_see_unnormalized_logits() -> None:
    """Clusters of log probabilities are another thing: they are bounded above, and one class takes all targets."""
    model, guide, loader, target = problem()
    found = DomainAlignment([target], [ClusterAlignment()]).observe(
        Evaluation(model, guide, guide.step(model), tuple(next(iter(loader))), {}), []
    )
    outputs = pb.predict(model, guide, target, num_samples=1).mean.log()
    logits = found.target.logits.detach()
    assert float(logits.logsumexp(1).abs().max()) > 0.01
    torch.testing.assert_close(logits.log_softmax(1), outputs, rtol=1e-4, atol=1e-5)


def test_augmented_inputs_are_those_of_the_losses_alone() -> None:
    """The teacher and the source's likelihood see inputs as they are."""
    model, guide, loader, target = problem()
    seen: list[int] = []

    def augment(x: Tensor) -> Tensor:
        seen.append(len(x))
        return x + 100.0

    term = DomainAlignment([target], [ClusterAlignment()], teacher=MeanTeacher(), augment=augment)
    source = tuple(next(iter(loader)))
    batch = term.observe(Evaluation(model, guide, guide.step(model), source, {}), [ClusterAlignment()])
    assert seen == [10, 24]
    assert torch.equal(batch.target.inputs, target + 100.0)
    plain = DomainAlignment([target], [ClusterAlignment()], teacher=StudentTeacher())
    clean = plain.observe(Evaluation(model, guide, guide.step(model), source, {}), [ClusterAlignment()])
    torch.testing.assert_close(batch.teacher, clean.teacher)  # the teacher begins as the student
    with pytest.raises(TypeError, match="augment"):
        DomainAlignment([target], [], augment=1.0)  # type: ignore[arg-type]


def test_labels_of_the_target_are_ignored_with_one_warning() -> None:
    model, guide, loader, target = problem()
    labeled = DataLoader(TensorDataset(target, torch.full((24,), 99)), 8)
    with pytest.warns(UserWarning, match="target: its batches have labels") as caught:
        adapt(model, guide, loader, labeled, [ClusterAlignment()], epochs=3, seed=3, progress=False)
    assert len(caught) == 1


def test_a_source_batch_of_one_class_is_warned_of_once() -> None:
    model, guide, _, target = problem()
    x, y = blobs(30, 0.0, 1)
    batches = [(x[y == label], y[y == label]) for label in range(CLASSES)]
    with pytest.warns(UserWarning, match="source: all 10 rows of a batch are of class") as caught:
        adapt(model, guide, batches, [target], [ClusterAlignment()], epochs=2, seed=3, progress=False)
    assert len(caught) == 1


def test_history_reports_each_loss_and_the_discriminator() -> None:
    model, guide, loader, target = problem()
    losses = [DomainAdversarial(domain_discriminator(8, 8)), ClusterAlignment()]
    history = adapt(model, guide, loader, [target], losses, epochs=2, seed=3, progress=False)
    for name in ("domain_adversarial", "cluster_alignment", "log_likelihood", "loss"):
        assert len(history.terms[f"classifier.{name}"]) == 2
    assert {"discriminator.loss", "discriminator.real", "discriminator.fake"} <= set(history.terms)


def test_bad_input_is_refused_by_name() -> None:
    model, guide, loader, target = problem()

    def run(**options: object) -> None:
        given = {"source": loader, "target": [target], "losses": [ClusterAlignment()], "epochs": 1} | options
        adapt(model, guide, progress=False, **given)  # type: ignore[arg-type]

    with pytest.raises(TypeError, match="target: expected an UnlabeledLoader"):
        run(target=target)
    with pytest.raises(TypeError, match="TemporalTeacher must know which row"):
        run(teacher=TemporalTeacher())
    with pytest.raises(TypeError, match="losses"):
        run(losses=["cat"])
    with pytest.raises(ValueError, match="losses: two of them"):
        run(losses=[ClusterAlignment(), ClusterAlignment()])
    with pytest.raises(ValueError, match="layer: the network has no layer 'top'"):
        run(layer="top")
    with pytest.raises(ValueError, match="head: the guide's other parameters"):
        run(losses=[ClassifierDiscrepancy(guide)])
    with pytest.raises(ValueError, match="target: it yields no batch"):
        run(target=[])
    x, y = blobs(30, 0.0, 1)
    with pytest.raises(ValueError, match="y: Categorical expects"):
        run(source=[(x, y + 1)])
    with pytest.raises(TypeError, match="guide"):
        adapt(model, nn.Linear(1, 1), loader, [target], epochs=1)  # type: ignore[arg-type]
    regression = pb.SupervisedModel(nn.Linear(2, 1), pb.likelihoods.Normal(1.0), num_data=30)
    pairs = [(x, y.float().unsqueeze(1))]
    with pytest.raises(TypeError, match="likelihood of classes"):
        adapt(regression, pb.guides.MAP(regression), pairs, [target], [ClusterAlignment()], epochs=1, progress=False)
