"""What every guide must be for those who use it: read, checked, predicted with, composed, saved, recalibrated."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pyro
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pyrobnn as pb
from pyrobnn.diagnostics._batches import Piece
from pyrobnn.diagnostics.estimator_report import NAMES
from pyrobnn.diagnostics.importance import default_sites
from pyrobnn.guides import MAP, Composite, Guide
from pyrobnn.model.divergence import prior_terms
from pyrobnn.objectives import ELBO
from tests.conformance.comparisons import assert_same, gradients, seeded
from tests.conformance.guide_models import BATCH_NORM, CASES, Case
from tests.conformance.monte_carlo import z_of_means

CONSUMED = [CASES[0]]
each_consumed_case = pytest.mark.parametrize("case", CONSUMED, ids=str)

NUM_DRAWS = 64


def of_training(test: Callable[..., None]) -> Callable[..., None]:
    """Decorates a test of training: of a family that is not trained, it must end with the refusal."""

    @functools.wraps(test)
    def held(self: ConsumerConformance, *args: Any, **options: Any) -> None:
        with self.unless_refused(options.get("objective", ELBO)):
            test(self, *args, **options)

    return held


class ConsumerConformance:
    """Inherited by the suite of guides, whose ``build`` and flags it uses.

    Attributes:
        trains: Whether the guide is trained by :class:`~pyrobnn.objectives.ELBO`.
        has_divergence: Whether the divergence of a draw can be computed; Pyro's objectives need it, too.
        refusal: How the error begins that says why it is not trained or has no divergence.
    """

    trains: ClassVar[bool] = True
    has_divergence: ClassVar[bool] = True
    refusal: ClassVar[str] = ""

    @contextmanager
    def unless_refused(self, objective: type = ELBO) -> Iterator[None]:
        """Runs a block that trains; where the family refuses the objective, the block must raise the reason."""
        if self.has_divergence and (self.trains or objective is not ELBO):
            yield
            return
        assert self.refusal
        with pytest.raises((TypeError, NotImplementedError), match=f"^{self.refusal}"):
            yield

    def build(self, case: Case, scattered: bool = True) -> tuple[nn.Module, Guide, tuple[Tensor, Tensor]]:
        """A model, its guide and a batch."""
        raise NotImplementedError

    def make_guide(self, model: nn.Module, **options: Any) -> Guide:
        """Builds the guide."""
        raise NotImplementedError

    def refuses(self, guide: Guide, estimator: str) -> bool:
        """Whether an estimator cannot be used with the guide, as its facts have it."""
        facts = guide.facts
        if estimator == "path_derivative":
            return facts.density != facts.sites or any(len(group) > 1 for group in facts.independent)
        if estimator == "per_group":  # of four groups
            return (facts.num_training_draws or 1) not in (1, 4)
        return estimator != "shared" and not facts.gaussian

    def whole(self, case: Case) -> tuple[nn.Module, Guide, DataLoader[Any], tuple[Tensor, Tensor]]:
        """A model of all data there are, its guide, a loader of them and the data."""
        model, guide, (x, y) = self.build(case)
        x, y = torch.cat([x, 0.9 * x]), torch.cat([y, y])
        return model, guide, DataLoader(TensorDataset(x, y), batch_size=8), (x, y)

    @each_consumed_case
    def test_describe_tells_family_and_kl_of_each_site(self, case: Case) -> None:
        model, guide, _ = self.build(case)
        before = torch.random.get_rng_state()
        rows = {row["site"]: row for row in pb.describe(model, guide).rows if row["site"] is not None}
        assert torch.equal(torch.random.get_rng_state(), before)
        assert set(rows) == set(guide.layout)
        for name, row in rows.items():
            assert isinstance(row["posterior"], str)
            assert (row["kl"] is not None) == (name in guide.facts.density), name

    @each_consumed_case
    def test_facts_are_consistent(self, case: Case) -> None:
        _, guide, _ = self.build(case)
        facts = guide.facts
        assert facts.sites == frozenset(guide.layout)
        assert facts.density <= facts.sites and facts.gaussian <= facts.density
        grouped = [name for group in facts.independent for name in group]
        assert sorted(grouped) == sorted(facts.sites)  # each site is in one group
        assert facts.is_ready
        if facts.num_points is not None:
            draws = guide.sample(4 * facts.num_points)
            for value in draws.values():
                assert len(torch.unique(value.reshape(len(value), -1), dim=0)) <= facts.num_points
        if facts.noise_size is not None:
            noise = torch.randn(facts.noise_size)
            assert_same(guide.rsample(noise), guide.rsample(noise))

    @pytest.mark.statistical
    @each_consumed_case
    def test_checked_elbo_is_the_posteriors(self, case: Case) -> None:
        """``check`` against the log likelihood and divergence of 64 draws taken here; z-score below 5."""
        model, guide, loader, (x, y) = self.whole(case)
        pyro.set_rng_seed(4)
        report = pb.check(model, guide, loader, num_samples=NUM_DRAWS)
        found = report["ELBO noise floor"]
        assert (found.value is None) == (not guide.facts.density)
        if found.value is None:
            return
        reported = float(found.reason.split("gives ")[1].split(" ±")[0])
        model.eval()
        values = []
        with torch.no_grad():
            for _ in range(NUM_DRAWS):
                draw = guide.sample(1).at(0)
                with draw.running(model, update=False) as run:
                    model(x, y)
                score = sum(float(m["fn"].log_prob(m["value"]).sum()) for m in run.observed)
                divergence = guide.divergence(draw, prior_terms(run.latent))
                values.append((score - float(divergence.total)) / model.num_data)
        mean, std = torch.tensor(values).mean(), torch.tensor(values).std()
        error = float(std) * (2.0 / NUM_DRAWS) ** 0.5 + 5e-4 * abs(float(mean))  # the report has four digits
        assert abs(reported - float(mean)) < 5.0 * error

    @each_consumed_case
    def test_objective_is_what_is_checked_where_both_are_of_one_distribution(self, case: Case) -> None:
        model, guide, batch = self.build(case)
        if not (self.trains and guide.facts.density) or not _is_exact(guide, model, batch):
            return
        step = guide.step(model, sequential=False)
        draw = step.draw(None)
        with draw.running(model, update=False) as run:
            model(*batch)
        priors = prior_terms(run.latent)
        trained, sampled = step.divergence(draw, priors), guide.divergence(draw, priors)
        if trained.name == sampled.name:  # a Laplace approximation is trained as a point
            torch.testing.assert_close(trained.total, sampled.total, rtol=1e-4, atol=1e-4)

    @each_consumed_case
    def test_to_arviz(self, case: Case) -> None:
        model, guide, batch = self.build(case)
        found = pb.to_arviz(model, guide, *batch, num_samples=2)
        posterior = found["posterior"]
        for name, site in guide.layout.items():
            assert tuple(posterior[name].shape[-len(site.shape) :] if site.shape else ()) == tuple(site.shape)

    @each_consumed_case
    def test_weight_statistics(self, case: Case) -> None:
        model, guide, _ = self.build(case)
        found = pb.diagnostics.weight_statistics(model, guide, num_samples=20)
        assert list(found) == list(guide.layout)
        for name, statistics in found.items():
            assert statistics.size == guide.layout[name].shape.numel()
            assert name in guide.facts.density or statistics.at_prior is None

    @each_consumed_case
    def test_importance_ratios_or_the_reason_why_not(self, case: Case) -> None:
        model, guide, _, data = self.whole(case)
        model.eval()
        chosen = default_sites(model, guide, Piece(..., data, {}))
        if guide.facts.can_marginalize(chosen):
            value = pb.diagnostics.importance_k_hat(model, guide, *data, num_samples=100)
            assert isinstance(value, float) and not math.isnan(value)
            return
        with pytest.raises(ValueError, match=r"^(guide|sites):"):
            pb.diagnostics.importance_k_hat(model, guide, *data, num_samples=100)

    @each_consumed_case
    @pytest.mark.parametrize("estimator", NAMES)
    def test_estimators_work_or_are_refused_with_the_reason(self, case: Case, estimator: str) -> None:
        model, guide, batch = self.build(case)
        elbo = ELBO(estimator=estimator)
        if not self.trains:
            with pytest.raises(
                (TypeError, ValueError, NotImplementedError), match=f"^({self.refusal}|estimator|groups:)"
            ):
                gradients(model, guide, batch, elbo)
            return
        if self.refuses(guide, estimator):
            with pytest.raises((TypeError, ValueError), match=r"^(estimator|groups):"):
                gradients(model, guide, batch, elbo)
            return
        found = gradients(model, guide, batch, elbo)
        assert all(bool(value.isfinite().all()) for value in found.values())
        assert any(name.startswith("guide") for name in found)

    @each_consumed_case
    def test_predictions_by_loop_and_vmap_agree(self, case: Case) -> None:
        model, guide, (x, _) = self.build(case)
        found = [pb.predict(model, guide, x, num_samples=4, method=method, seed=5) for method in ("loop", "vmap")]
        assert found[0].mean.shape[0] == len(x)
        torch.testing.assert_close(found[0].mean, found[1].mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[0].total, found[1].total, rtol=1e-4, atol=1e-5)

    @each_consumed_case
    def test_functions_at_a_set_have_the_marginals_of_predict(self, case: Case) -> None:
        """The same draws have the same mean; 400 others agree with it within 4 Monte Carlo errors."""
        model, guide, (x, _) = self.build(case)
        predicted = pb.predict(model, guide, x, num_samples=6, seed=5)
        same = pb.predict_joint(model, guide, x, num_samples=6, seed=5)
        assert same.draws.shape[:2] == (6, len(x)) and same.covariance.shape == (same.mean.numel(),) * 2
        torch.testing.assert_close(same.expectations.mean(0), predicted.mean, rtol=1e-4, atol=1e-5)
        found = [pb.predict_joint(model, guide, x, num_samples=400, seed=seed).expectations for seed in (6, 7)]
        mean = pb.predict(model, guide, x, num_samples=400, seed=7).mean
        torch.testing.assert_close(found[1].mean(0), mean, rtol=1e-4, atol=1e-5)
        assert z_of_means(*found) < 4.0

    def test_recalibrated_statistics_are_those_of_the_draws(self) -> None:
        """Of point masses: the batch mean before the normalization, under each of them, with one batch."""
        model, guide, (x, _) = self.build(BATCH_NORM)
        convolution = next(name for name in guide.layout if name.endswith("0.weight"))
        pb.recalibrate_batch_norm(model, guide, [x])
        if guide.facts.num_points is None:
            return
        draws = guide.atoms(torch.arange(guide.facts.num_points)) if guide.facts.num_points > 1 else guide.sample(1)
        bias = convolution.replace("weight", "bias")
        for index in range(guide.facts.num_points):
            draw = draws.at(index)
            expected = nn.functional.conv2d(x, draw[convolution], draw[bias]).mean((0, 2, 3))
            stored = dict(model.named_buffers()) | draw.buffers
            running = next(value for name, value in stored.items() if name.endswith("running_mean"))
            torch.testing.assert_close(running, expected, rtol=1e-4, atol=1e-5)

    @each_consumed_case
    def test_saved_and_loaded_it_is_the_same(self, case: Case, tmp_path: Path) -> None:
        model, guide, (x, _) = self.build(case)
        pb.save(tmp_path / "run", model, guide)
        other_model = case.model()
        other = self.make_guide(other_model, **({"example": case.batch()} if case.needs_example else {}))
        pb.load(tmp_path / "run", model=other_model, guide=other)
        assert_same(seeded(lambda: other.sample(3)), seeded(lambda: guide.sample(3)))
        predictions = [
            pb.predict(m, g, x, num_samples=3, seed=1).mean for m, g in ((model, guide), (other_model, other))
        ]
        assert torch.equal(*predictions)

    @each_consumed_case
    @of_training
    def test_composite_around_it_is_itself(self, case: Case) -> None:
        model, guide, batch = self.build(case)
        copied = copy.deepcopy(guide)
        around = Composite(model, [("*", lambda model, sites: copied)])
        assert around.facts.sites == guide.facts.sites and around.facts.density == guide.facts.density
        ours, theirs = (seeded(lambda g=g: gradients(model, g, batch)) for g in (around, guide))
        renamed = {name.replace("guide.0.", "guide."): value for name, value in ours.items()}
        assert_same(renamed, theirs, rtol=1e-5, atol=1e-5)
        assert_same(seeded(lambda: around.sample(3)), seeded(lambda: guide.sample(3)))

    @each_consumed_case
    @of_training
    def test_beside_a_point_in_a_composite(self, case: Case) -> None:
        if case not in CASES:  # other models have other sites
            return
        model, batch = case.model(), case.batch()
        guide = Composite(model, [("net.2.*", functools.partial(self.make_guide)), ("*", MAP)])
        found = gradients(model, guide, batch)
        assert any(name.startswith("guide.0") for name in found) and any(name.startswith("guide.1") for name in found)
        assert guide.facts.density == guide.parts[0].facts.density
        assert pb.predict(model, guide, batch[0], num_samples=2).mean.shape[0] == len(batch[0])


def _is_exact(guide: Guide, model: nn.Module, batch: tuple[Tensor, Tensor]) -> bool:
    draw = guide.sample(1).at(0)
    with torch.no_grad(), draw.running(model, update=False) as run:
        model(*batch)
    return guide.divergence(draw, prior_terms(run.latent)).exact
