"""Consistency terms: suite, values and gradients by hand, targets, what is left alone, resuming, training, refusals."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, ClassVar

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrobnn as pb
from pyrobnn.guides import MAP, MCDropout, MeanField
from pyrobnn.objectives import ELBO, MeanTeacher, Objective, PiModel, TemporalEnsembling, UnlabeledLoader
from tests.conformance.objective_suite import ObjectiveConformance
from tests.objectives.semi_supervised import CASES, linear, shifted, shifts, turned, two_rings

X = torch.linspace(-1.0, 1.0, 15, dtype=torch.float64).reshape(5, 3)


class ConsistencyConformance(ObjectiveConformance):
    kind: ClassVar[Any]
    further_terms: ClassVar[frozenset[str]]

    def make(self) -> Objective:
        unlabeled = UnlabeledLoader(X, 3)
        return ELBO(terms=[self.kind(unlabeled, 0.5, augment=lambda x: x + 0.1 * torch.randn_like(x))])


class TestPiModelConformance(ConsistencyConformance):
    kind, further_terms = PiModel, frozenset({"pi_model"})


class TestTemporalEnsemblingConformance(ConsistencyConformance):
    kind, further_terms = TemporalEnsembling, frozenset({"temporal_ensembling"})


class TestMeanTeacherConformance(ConsistencyConformance):
    kind, further_terms = MeanTeacher, frozenset({"mean_teacher"})


def term_alone(objective: Objective, model: Any, guide: Any, batch: Any) -> tuple[float, Tensor]:
    """Value of the further term, and its weighted gradient: that of the whole minus that of the ELBO."""
    guide.zero_grad()
    ELBO().loss_and_grads(model, guide, *batch)
    own = guide.flat_loc.grad.clone()
    guide.zero_grad()
    objective.loss_and_grads(model, guide, *batch)
    (name,) = set(objective.parts.values) - {"log_likelihood", "divergence"}
    return float(objective.parts.values[name]), guide.flat_loc.grad - own


def probabilities(guide: Any, flat: Tensor, x: Tensor) -> Tensor:
    values = guide.layout.split(flat)
    return torch.softmax(x @ values["net.weight"].T + values["net.bias"], -1)


@pytest.mark.parametrize("same_draw", [True, False])
def test_the_pi_models_value_and_gradient_by_hand(same_draw: bool) -> None:
    """A linear network, shifts of 0.3 and -0.5: with one draw through both predictions, else twice the first."""
    model, guide, batch = linear()
    term = PiModel([X], 0.5, augment=shifted([0.3, -0.5]), same_draw=same_draw)
    value, gradient = term_alone(ELBO(terms=[term]), model, guide, batch)
    flat = guide.flat_loc.detach().clone().requires_grad_()
    target, first = probabilities(guide, flat, X + 0.3), probabilities(guide, flat, X - 0.5)
    expected = 20 * (first - (target if same_draw else target.detach())).square().sum(1).mean()
    (0.5 * (1 if same_draw else 2) * expected).backward()
    assert value == pytest.approx(float(expected.detach()), rel=1e-9)
    torch.testing.assert_close(gradient, flat.grad, rtol=1e-8, atol=1e-10)


def test_the_gradient_with_independent_draws_is_that_through_both_on_average() -> None:
    """1,000 pairs of shifts; each coordinate within 4.5 standard errors of the mean through both."""
    _, guide, _ = linear()
    noise = shifts(2000, seed=3)
    halved, full = [], []
    flat = guide.flat_loc.detach().clone().requires_grad_()
    for first, second in noise.reshape(-1, 2).tolist():
        a, b = (probabilities(guide, flat, X + s) for s in (second, first))
        halved.append(torch.autograd.grad(2 * (a - b.detach()).square().sum(1).mean(), flat, retain_graph=True)[0])
        full.append(torch.autograd.grad((a - b).square().sum(1).mean(), flat)[0])
    difference = torch.stack(halved) - torch.stack(full)
    assert bool((difference.mean(0).abs() < 4.5 * difference.std(0) / 1000**0.5 + 1e-12).all())


def test_temporal_targets_are_the_closed_form() -> None:
    r"""After t visits :math:`(1 - a) \sum_k a^{t - 1 - k} p_k / (1 - a^t)`; the first visit counts nothing."""
    model, guide, batch = linear()
    steps = [0.3, -0.5, 0.1, 0.7]
    term = TemporalEnsembling(
        UnlabeledLoader(X, 2, shuffle=False), 0.5, augment=shifted([s for s in steps for _ in range(3)])
    )
    seen: list[Tensor] = []
    for t, shift in enumerate(steps):
        objective = ELBO(terms=[term])
        total = 0.0
        for _ in range(3):  # a pass
            value, gradient = term_alone(objective, model, guide, batch)
            total += value
            assert bool((gradient == 0).all()) == (t == 0)
        found = probabilities(guide, guide.flat_loc.detach(), X + shift)
        weights = torch.tensor([0.4 * 0.6 ** (t - 1 - k) for k in range(t)], dtype=torch.float64)
        assert (total == 0.0) == (t == 0)
        if t:
            target = (weights.reshape(-1, 1, 1) * torch.stack(seen)).sum(0) / (1 - 0.6**t)
            by_row = (found - target).square().sum(1)
            batches = by_row[:2].mean() + by_row[2:4].mean() + by_row[4]
            assert total == pytest.approx(20 * float(batches), rel=1e-9)
        seen.append(found)
    weights = torch.tensor([0.4 * 0.6 ** (3 - k) for k in range(4)], dtype=torch.float64)
    expected = (weights.reshape(-1, 1, 1) * torch.stack(seen)).sum(0) / (1 - 0.6**4)
    torch.testing.assert_close(term.targets, expected, rtol=1e-9, atol=1e-12)
    assert term.visits.tolist() == [4] * 5


def test_the_temporal_gradient_does_not_go_through_the_target() -> None:
    model, guide, batch = linear()
    term = TemporalEnsembling(UnlabeledLoader(X, 5, shuffle=False), 0.5, augment=shifted([0.3, -0.5]))
    objective = ELBO(terms=[term])
    term_alone(objective, model, guide, batch)
    value, gradient = term_alone(objective, model, guide, batch)
    flat = guide.flat_loc.detach().clone().requires_grad_()
    target, found = probabilities(guide, flat, X + 0.3), probabilities(guide, flat, X - 0.5)
    expected = 20 * (found - target.detach()).square().sum(1).mean()
    (0.5 * expected).backward()
    assert value == pytest.approx(float(expected.detach()), rel=1e-9)
    torch.testing.assert_close(gradient, flat.grad, rtol=1e-8, atol=1e-10)


def test_the_teacher_is_the_exponential_average() -> None:
    """Its parameters before the third step, and value and gradient there by hand."""
    model, guide, batch = linear()
    term = MeanTeacher([X], 0.5, augment=shifted([0.3, -0.5] * 3), decay=0.8)
    objective = ELBO(terms=[term])
    student = [guide.flat_loc.detach().clone()]
    for _ in range(2):
        objective.loss_and_grads(model, guide, *batch)
        with torch.no_grad():
            guide.flat_loc.add_(0.3 * torch.randn_like(guide.flat_loc))
        student.append(guide.flat_loc.detach().clone())
    value, gradient = term_alone(objective, model, guide, batch)
    average = 0.8 * (0.8 * student[0] + 0.2 * student[1]) + 0.2 * student[2]
    torch.testing.assert_close(term.teacher[1].flat_loc.detach(), average, rtol=1e-12, atol=1e-12)
    flat = student[2].clone().requires_grad_()
    target = probabilities(guide, average, X + 0.3)
    expected = 20 * (probabilities(guide, flat, X - 0.5) - target).square().sum(1).mean()
    (0.5 * expected).backward()
    assert value == pytest.approx(float(expected.detach()), rel=1e-9)
    torch.testing.assert_close(gradient, flat.grad, rtol=1e-8, atol=1e-10)


def test_a_teacher_averages_every_parameter_and_takes_the_statistics() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    model = pb.SupervisedModel(net, pb.likelihoods.Categorical(), dist.Normal(0.0, 1.0), num_data=6).double()
    guide = MeanField(model)
    term = MeanTeacher([X], decay=0.5)
    before = {name: p.detach().clone() for name, p in nn.ModuleList([model, guide]).named_parameters()}
    objective = ELBO(terms=[term])
    batch = torch.randn(6, 3, dtype=torch.float64), torch.tensor([0, 1, 2] * 2)
    pb.fit(model, guide, [batch], epochs=2, lr=0.1, elbo=objective, progress=False)
    norm, copied = model.net.network[1], term.teacher[0].net.network[1]
    assert float((norm.weight - copied.weight).abs().max().detach()) > 0.01  # trained, and averaged
    objective.loss_and_grads(model, guide, *batch)
    assert torch.equal(norm.running_mean, copied.running_mean) and int(norm.num_batches_tracked) == 3
    averaged = nn.ModuleList(term.teacher).named_parameters()
    assert all(not torch.equal(p, before[name]) for name, p in averaged if p.requires_grad)
    pb.predict(*term.teacher, batch[0], 3)


@pytest.mark.parametrize("case", CASES)
def test_no_weight_is_the_plain_objective_bit_for_bit(case: str) -> None:
    x, y, unlabeled, _ = two_rings()
    found = []
    for weight in (None, 0.0, lambda step: 0.0):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))
        model = pb.SupervisedModel(net, pb.likelihoods.Categorical(), num_data=len(x))
        guide = MeanField(model)
        terms = [] if weight is None else [CASES[case](UnlabeledLoader(unlabeled, 50), weight)]
        pb.fit(model, guide, [(x, y)], epochs=5, elbo=ELBO(terms=terms), seed=0, progress=False)
        found.append(guide.flat_loc.detach())
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("case", CASES)
def test_the_value_alone_leaves_no_trace_in_the_term(case: str) -> None:
    model, guide, batch = linear()
    term = CASES[case](UnlabeledLoader(X, 5, shuffle=False))
    objective = ELBO(terms=[term])
    objective.loss(model, guide, *batch)
    assert not {name for name in term.state() if not name.startswith("unlabeled.")}
    objective.loss_and_grads(model, guide, *batch)
    before = copy.deepcopy(term.state())
    with torch.no_grad():
        guide.flat_loc.add_(1.0)
    objective.loss(model, guide, *batch)
    after = term.state()
    assert all(torch.equal(after[name], before[name]) for name in before if not name.startswith("unlabeled."))


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_is_the_same_run(case: str, tmp_path: Path) -> None:
    """Targets, teacher and position among the rows come back: bit for bit, also of the state that is kept then."""
    x, y, unlabeled, _ = two_rings()

    def run(epochs: int, **options: Any) -> tuple[Tensor, dict[str, Tensor], list[float]]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))
        model = pb.SupervisedModel(net, pb.likelihoods.Categorical(), num_data=len(x))
        guide = MCDropout(model, p=0.2)
        term = CASES[case](UnlabeledLoader(unlabeled, 60), augment=lambda x: x + 0.1 * torch.randn_like(x))
        history = pb.fit(
            model, guide, [(x, y)], epochs=epochs, lr=0.05, elbo=ELBO(terms=[term]), progress=False, **options
        )
        return guide.flat_loc.detach(), term.state(), history.terms[term.name]

    whole = run(9, seed=1)
    run(5, seed=1, checkpoint=tmp_path)
    resumed = run(9, checkpoint=tmp_path, resume=True)
    assert torch.equal(whole[0], resumed[0]) and whole[2] == resumed[2]
    assert whole[1].keys() == resumed[1].keys()
    assert all(torch.equal(value, resumed[1][name]) for name, value in whole[1].items())
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))
    model = pb.SupervisedModel(net, pb.likelihoods.Categorical(), num_data=len(x))
    with pytest.raises(ValueError, match=rf"^checkpoint: .* had a term '{CASES[case].name}'"):
        pb.fit(model, MCDropout(model, p=0.2), [(x, y)], epochs=9, checkpoint=tmp_path, resume=True, progress=False)
    other = ELBO(terms=[CASES[case](UnlabeledLoader(unlabeled[:-1], 60))])
    with pytest.raises(
        ValueError, match=r"^checkpoint: .* unlabeled: .* had 200 unlabeled rows, but now there are 199"
    ):
        pb.fit(
            model, MCDropout(model, p=0.2), [(x, y)], epochs=9, elbo=other, checkpoint=tmp_path, resume=True,
            progress=False,
        )  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_copy_continues_by_itself(case: str) -> None:
    model, guide, batch = linear()
    objective = ELBO(terms=[CASES[case](UnlabeledLoader(X, 5, shuffle=False), 0.5)])
    for _ in range(2):
        objective.loss_and_grads(model, guide, *batch)
        with torch.no_grad():
            guide.flat_loc.add_(0.1)
    other = copy.deepcopy(objective)
    found = [term_alone(each, model, guide, batch) for each in (objective, other)]
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-12)
    torch.testing.assert_close(found[0][1], found[1][1])


@pytest.mark.parametrize("case", CASES)
def test_unlabeled_rows_lower_the_error(case: str) -> None:
    """Two rings with four labels each, 200 rows unlabeled, augmented by turns: errors of the same network."""
    x, y, unlabeled, truth = two_rings()
    errors = []
    options = {"decay": 0.9} if case == "MeanTeacher" else {}
    for weight in (0.0, pb.schedules.GaussianRampUp(1.0, 150)):
        torch.manual_seed(2)
        net = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
        model = pb.SupervisedModel(net, pb.likelihoods.Categorical(), num_data=len(x))
        guide = MAP(model)
        term = CASES[case](UnlabeledLoader(unlabeled, 200), weight, augment=turned, **options)
        elbo = ELBO(temperature=0.01, terms=[term])
        pb.fit(model, guide, [(x, y)], epochs=300, lr=0.01, elbo=elbo, seed=0, progress=False)
        prediction = pb.predict(model, guide, unlabeled, 1)
        errors.append(float((prediction.predicted != truth).double().mean()))
    assert errors[1] < 0.5 * errors[0]


def test_wrong_arguments_and_models() -> None:
    for kind in (PiModel, MeanTeacher):
        for wrong in (3, "a", X, nn.Linear):
            with pytest.raises(TypeError, match=r"^unlabeled: expected a function of the inputs or an iterable"):
                kind(wrong)
    with pytest.raises(TypeError, match=r"^unlabeled: temporal ensembling must know which row is which"):
        TemporalEnsembling([X])  # type: ignore[arg-type]
    rows = UnlabeledLoader(X)
    for kind in (PiModel, TemporalEnsembling, MeanTeacher):
        for wrong in (-1.0, float("nan"), "a", None, True):
            with pytest.raises(ValueError, match=r"^weight: "):
                kind(rows, wrong)
        for wrong in (3, "a", nn.ReLU):
            with pytest.raises(TypeError, match=r"^augment: expected a function"):
                kind(rows, augment=wrong)
        model, guide, batch = linear()
        with pytest.raises(ValueError, match=r"^augment: it made 2 rows of 5"):
            ELBO(terms=[kind(rows, augment=lambda x: x[:2])]).loss_and_grads(model, guide, *batch)
        regression = pb.SupervisedModel(nn.Linear(3, 1), pb.likelihoods.Normal(), dist.Normal(0.0, 1.0), num_data=6)
        with pytest.raises(TypeError, match=rf"^model: {kind.__name__} compares class probabilities"):
            ELBO(terms=[kind(rows)]).loss_and_grads(regression, MAP(regression), torch.randn(6, 3), torch.randn(6, 1))
    for wrong in (-0.1, 1.0, "a", None):
        with pytest.raises(ValueError, match=r"^momentum: "):
            TemporalEnsembling(rows, momentum=wrong)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"^decay: "):
            MeanTeacher(rows, decay=wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^same_draw: "):
        PiModel(rows, same_draw=1)  # type: ignore[arg-type]
    objective = ELBO(terms=[MeanTeacher(rows)])
    model, guide, batch = linear()
    with pytest.raises(TypeError, match=r"^guide: the mean teacher averages"):
        objective.backward(model, guide.step(model), batch)
