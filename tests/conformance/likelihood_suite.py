"""What every likelihood must do. A new one's test inherits the suite by supplying what is known of it:

class TestMyLikelihoodConformance(LikelihoodConformance):
    def make(self) -> Likelihood:
        return MyLikelihood()

    def log_density(self, outputs, y):      # by datum, from a formula that is not the likelihood's own
        ...
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from scipy import integrate
from torch import Tensor, nn

from pyrobnn import load, save
from pyrobnn.diagnostics import check
from pyrobnn.guides import MAP, DeltaMixture, Laplace, MeanField
from pyrobnn.guides.base import Guide
from pyrobnn.model.likelihoods import ClassLikelihood, Likelihood
from pyrobnn.model.likelihoods.constant import optimized_constant
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.prediction import MomentPrediction, Prediction, predict, predict_batches
from pyrobnn.sampling import SGLD, sample
from pyrobnn.training import fit
from tests.conformance.monte_carlo import Z, z_of_mean

NUM_DATA = 12


class LikelihoodConformance:
    """The suite; subclasses implement :meth:`make` and :meth:`log_density` and set what is true of theirs."""

    num_outputs = 4
    """Outputs of the network, ``[B, num_outputs]``."""
    is_known_to_checkpoints = True
    """Whether the likelihood is one of the library's, which a checkpoint rebuilds by name."""
    has_cdf = True
    """Whether marginals have a cdf, if targets are no classes."""
    targets_are_independent = True
    """Whether the targets of a datum are independent under one draw of the weights."""
    takes_missing = True
    """Whether targets may be NaN, by ``missing=True``."""

    def make(self, **options: Any) -> Likelihood:
        raise NotImplementedError

    def log_density(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Log density of targets, summed by datum ``[B]``, in double precision."""
        raise NotImplementedError

    def expected_entropy(self, likelihood: ClassLikelihood, outputs: Tensor) -> Tensor:
        """The aleatoric part of classes under each draw ``[K, B, ...]``, given outputs ``[K, B, num_outputs]``."""
        probs = torch.stack([likelihood.probabilities(output) for output in outputs])
        return torch.special.entr(probs).sum(-1)

    def refused(self, y: Tensor) -> list[tuple[type[Exception], Tensor]]:
        """Targets that must be refused, made from right ones."""
        return [(TypeError, y.to(torch.complex64)), (ValueError, y[:-1]), (ValueError, y.unsqueeze(-1))]

    # ------------------------------------------------------------------------------------------- what it is tried on

    def outputs(self) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randn(NUM_DATA, self.num_outputs, generator=generator, dtype=torch.float64)

    def targets(self, outputs: Tensor) -> Tensor:
        torch.manual_seed(2)
        return self.make().double()(outputs).sample()

    def model(self, **options: Any) -> SupervisedModel:
        torch.manual_seed(3)
        net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, self.num_outputs))
        return SupervisedModel(net, self.make(**options), dist.Normal(0.0, 1.0), num_data=NUM_DATA).double()

    def problem(self, **options: Any) -> tuple[SupervisedModel, Guide, Tensor, Tensor]:
        """A model, a guide whose draws differ, inputs and targets."""
        model = self.model(**options)
        guide = MeanField(model, init_scale=0.3).double()
        x = torch.randn(NUM_DATA, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        return model, guide, x, self.targets(self.outputs())

    def network_outputs(self, model: SupervisedModel, draws: dict[str, Tensor], x: Tensor) -> Tensor:
        """By hand, ``[K, B, num_outputs]``."""
        hidden = torch.einsum("kij,nj->kni", draws["net.0.weight"], x) + draws["net.0.bias"].unsqueeze(1)
        return torch.einsum("kij,knj->kni", draws["net.2.weight"], hidden.tanh()) + draws["net.2.bias"].unsqueeze(1)

    # ----------------------------------------------------------------------------------------------- the distribution

    def test_log_density_per_datum(self) -> None:
        outputs = self.outputs()
        y = self.targets(outputs)
        found = self.make().double()(outputs)
        assert found.batch_shape == (NUM_DATA,), "one log density per datum"
        log_prob = found.log_prob(y)
        assert log_prob.dtype == torch.float64
        torch.testing.assert_close(log_prob, self.log_density(outputs, y), rtol=1e-6, atol=1e-6)

    def test_single_precision(self) -> None:
        outputs = self.outputs()
        y = self.targets(outputs)
        log_prob = self.make()(outputs.float()).log_prob(y.float() if y.is_floating_point() else y)
        assert log_prob.dtype == torch.float32
        torch.testing.assert_close(log_prob.double(), self.log_density(outputs, y), rtol=1e-4, atol=1e-4)

    def test_the_best_constant_predictor(self) -> None:
        """No constant that a search finds has a larger log likelihood; no other at all where it is concave."""
        outputs = self.outputs()
        y, likelihood = self.targets(outputs), self.make().double()
        weight = torch.linspace(0.0, 2.0, NUM_DATA, dtype=torch.float64)
        best = likelihood.constant_outputs(outputs, y, weight)
        assert best is not None and best.shape == (1, *outputs.shape[1:]) and best.dtype == outputs.dtype

        def score(constant: Tensor) -> float:
            return (likelihood(constant.expand_as(outputs)).log_prob(y) * weight).sum().item()

        highest = score(best) + 1e-4
        searched = optimized_constant(likelihood, outputs, y, weight)
        assert searched is not None and score(searched) <= highest
        generator = torch.Generator().manual_seed(5)
        for _ in range(20 if likelihood.is_concave else 0):
            assert score(best + 0.3 * torch.randn(best.shape, generator=generator, dtype=torch.float64)) <= highest

    def test_concavity_where_it_is_declared(self) -> None:
        likelihood, outputs = self.make().double(), self.outputs()
        y = self.targets(outputs)
        if likelihood.is_concave:
            other = outputs.flip(0)
            ends = likelihood(outputs).log_prob(y) + likelihood(other).log_prob(y)
            assert bool((likelihood((outputs + other) / 2).log_prob(y) >= ends / 2).all())

    def test_parameters_have_the_inputs_first_and_take_draws_before_them(self) -> None:
        likelihood, outputs = self.make().double(), torch.stack([self.outputs(), self.outputs() + 0.5])
        by_draw = [likelihood.parameters_of(output) for output in outputs]
        assert all(value.shape[0] == NUM_DATA for value in by_draw[0].values())
        stacked = {name: torch.stack([parameters[name] for parameters in by_draw]) for name in by_draw[0]}
        y = self.targets(outputs[0])
        found = likelihood.distribution(stacked)
        assert found.batch_shape + found.event_shape == (2, *y.shape)
        expected = [likelihood.distribution(parameters).log_prob(y) for parameters in by_draw]
        torch.testing.assert_close(found.log_prob(y.expand(2, *y.shape)), torch.stack(expected))

    def test_targets_have_the_shape_of_a_draw_and_pass(self) -> None:
        likelihood, outputs = self.make().double(), self.outputs()
        y = self.targets(outputs)
        assert likelihood.target_shape(outputs) == y.shape
        likelihood.check_targets(outputs, y)

    def test_targets_that_do_not_fit_are_refused(self) -> None:
        likelihood, outputs = self.make().double(), self.outputs()
        for kind, y in self.refused(self.targets(outputs)):
            with pytest.raises(kind, match=r"^y: "):
                likelihood.check_targets(outputs, y)
        with pytest.raises(TypeError, match="y: expected a tensor"):
            likelihood.check_targets(outputs, [0.0])  # type: ignore[arg-type]

    def test_vmap_over_draws(self) -> None:
        likelihood, outputs = self.make().double(), torch.stack([self.outputs(), self.outputs() + 0.5])
        reduction = likelihood.reduction(2, keep=False, max_bytes=1)
        vmapped = torch.func.vmap(reduction.summary)(outputs)
        looped = [reduction.summary(output) for output in outputs]
        torch.testing.assert_close(vmapped, {name: torch.stack([s[name] for s in looped]) for name in looped[0]})

    def test_the_configuration_rebuilds_it(self) -> None:
        likelihood, outputs = self.make().double(), self.outputs()
        rebuilt = type(likelihood)(**likelihood.config()).double().train(likelihood.training)
        rebuilt.load_state_dict(likelihood.state_dict())
        y = self.targets(outputs)
        assert torch.equal(rebuilt(outputs).log_prob(y), likelihood(outputs).log_prob(y))

    def test_it_has_no_device_of_its_own(self) -> None:
        """On torch's ``meta`` device nothing that was made elsewhere can be mixed in."""
        likelihood, outputs = self.make().to("meta"), self.outputs().to("meta").float()
        parameters = likelihood.parameters_of(outputs)
        assert all(value.device.type == "meta" for value in parameters.values())
        reduction = likelihood.reduction(1, keep=False, max_bytes=1)
        assert all(value.device.type == "meta" for value in reduction.summary(outputs).values())

    # -------------------------------------------------------------------------------------------------- prediction

    def brute_force(self, outputs: Tensor) -> tuple[Likelihood, dist.Distribution]:
        """The distributions of all draws ``[K, B, ...]`` at once."""
        likelihood = self.make().double()
        by_draw = [likelihood.parameters_of(output) for output in outputs]
        return likelihood, likelihood.distribution({n: torch.stack([p[n] for p in by_draw]) for n in by_draw[0]})

    def test_prediction_is_the_mixture_over_draws(self) -> None:
        model, guide, x, y = self.problem()
        draws = guide.sample(9)
        found = predict(model, draws, x, 9, return_draws=True)
        outputs = self.network_outputs(model, draws, x)
        likelihood, each = self.brute_force(outputs)
        by_draw = torch.stack([self.log_density(output, y) for output in outputs])
        if isinstance(likelihood, ClassLikelihood):
            probs = torch.stack([likelihood.probabilities(output) for output in outputs])
            torch.testing.assert_close(found.mean, probs.mean(0))
            torch.testing.assert_close(found.total, torch.special.entr(probs.mean(0)).sum(-1))
            torch.testing.assert_close(found.aleatoric, self.expected_entropy(likelihood, outputs).mean(0))
            torch.testing.assert_close(found.mean.sum(-1), torch.ones_like(found.total))
            if y.dim() > 1:  # log_prob is by label
                by_draw = probs.gather(-1, y.long().expand(9, *y.shape).unsqueeze(-1)).squeeze(-1).log()
        else:
            torch.testing.assert_close(found.mean, each.mean.mean(0))
            torch.testing.assert_close(found.aleatoric, each.variance.mean(0))
            torch.testing.assert_close(found.epistemic, each.mean.var(0, correction=0))
            torch.testing.assert_close(found.std, found.total.sqrt())
        torch.testing.assert_close(found.total, found.aleatoric + found.epistemic)
        expected = by_draw.logsumexp(0) - math.log(9)
        torch.testing.assert_close(found.log_prob(y), expected, rtol=1e-6, atol=1e-6)
        assert found.draws is not None
        torch.testing.assert_close(found.draws.mean(0), found.mean)
        assert len(found) == NUM_DATA

    @pytest.mark.statistical
    def test_targets_are_drawn_from_the_mixture(self) -> None:
        """4000 × 5 targets: their mean, within z = 5; and the interval covers what it says."""
        model, guide, x, y = self.problem()
        found = predict(model, guide, x, 5, seed=0, return_draws=True)
        torch.manual_seed(5)
        targets = torch.cat([found.sample() for _ in range(4000)])
        assert targets.shape == (20_000, *y.shape)
        if isinstance(model.likelihood, ClassLikelihood):
            classes = found.mean.shape[-1]
            assert z_of_mean(nn.functional.one_hot(targets.long(), classes).double(), found.mean) < Z
            return
        assert z_of_mean(targets.double(), found.mean) < Z
        many = predict(model, guide, x, 2000, seed=0, return_draws=True)
        low, high = many.interval(0.8)
        inside = ((targets := many.sample()) >= low) & (targets <= high)
        assert low.shape == y.shape
        # Two samples of 2000 each, of which one set the ends: four standard errors of their difference. Of counts more.
        slack, share = 4 * (2 * 0.8 * 0.2 / 2000) ** 0.5, inside.double().mean(0)
        is_count = bool((y == y.round()).all())
        assert float(share.min()) > 0.8 - slack
        assert is_count or float(share.max()) < 0.8 + slack

    def test_batches_are_parts_of_the_whole(self) -> None:
        model, guide, x, y = self.problem()
        whole = predict(model, guide, x, 7, seed=1, return_draws=True)
        parts = [part for part, _ in predict_batches(model, guide, [*x.split(5)], 7, seed=1, return_draws=True)]
        joined = predict(model, guide, [*x.split(5)], 7, seed=1, return_draws=True)
        for part in (joined, Prediction.join(parts)):
            for name in ("mean", "total", "aleatoric", "epistemic", "variation_ratio", "draws"):
                torch.testing.assert_close(getattr(part, name), getattr(whole, name))
            torch.testing.assert_close(part.log_prob(y), whole.log_prob(y))

    def test_loop_and_vmap_are_equal(self) -> None:
        model, guide, x, y = self.problem()
        loop, vmap = (predict(model, guide, x, 7, seed=1, return_draws=True, method=m) for m in ("loop", "vmap"))
        for name in ("mean", "total", "aleatoric", "epistemic"):
            torch.testing.assert_close(getattr(loop, name), getattr(vmap, name))
        torch.testing.assert_close(loop.log_prob(y), vmap.log_prob(y))

    def test_half_precision_is_summed_in_single(self) -> None:
        """300 equal draws of a bfloat16 network: pooling them changes nothing."""
        likelihood, outputs = self.make().to(torch.bfloat16), self.outputs().to(torch.bfloat16)
        few, many = (likelihood.reduction(count, keep=False, max_bytes=1) for count in (1, 300))
        for reduction, count in ((few, 1), (many, 300)):
            summary = reduction.summary(outputs)
            for _ in range(count):
                reduction.add({name: value.unsqueeze(0) for name, value in summary.items()})
        one, all_ = few.finish(None), many.finish(None)
        assert all_.mean.dtype == torch.float32
        for name in ("mean", "total", "aleatoric"):
            torch.testing.assert_close(getattr(all_, name), getattr(one, name), rtol=1e-4, atol=1e-4)

    # ------------------------------------------------------------------------- probabilities, quantiles, entropies

    def mixed(self) -> tuple[MomentPrediction, Likelihood, Tensor] | None:
        """A prediction of real-valued targets or counts by 7 draws whose marginals have a cdf, and targets."""
        model, guide, x, y = self.problem()
        found = predict(model, guide, x, 7, seed=0, return_draws=True)
        if not isinstance(found, MomentPrediction) or not self.has_cdf:
            return None
        return found, model.likelihood, y

    @pytest.mark.statistical
    def test_probabilities_are_shares_of_targets(self) -> None:
        """14,000 targets, within z = 5; at the targets of the suite and at other points in front of them."""
        if (mixed := self.mixed()) is None:
            return
        found, _, y = mixed
        torch.manual_seed(6)
        targets = found.sample(14_000)
        points = torch.stack([y, found.mean, y + found.std])
        cdf = found.cdf(points)
        assert cdf.shape == points.shape
        torch.testing.assert_close(found.cdf(y), cdf[0])
        for point, expected in zip(points, cdf, strict=True):
            error = (expected * (1 - expected) / len(targets) + 1 / len(targets) ** 2).sqrt()
            share = (targets <= point).double().mean(0)
            assert float(((share - expected).abs() / error).max()) < Z
        ends = found.cdf(torch.stack([torch.full_like(y, -1e30), torch.full_like(y, 1e30)]))
        assert float(ends[0].max()) < 1e-12
        assert float(ends[1].min()) > 1 - 1e-12

    def test_what_was_not_observed_has_no_probability(self) -> None:
        """Zero would count as a target in the lowest tail."""
        if (mixed := self.mixed()) is None:
            return
        found, _, y = mixed
        known = found.cdf(y)
        given = y.to(found.mean.dtype).clone()
        given[0] = torch.nan
        assert bool(found.cdf(given)[0].isnan().all())
        assert torch.equal(found.cdf(given)[1:], known[1:])
        assert all(bool(part[0].isnan().all()) for part in found.pit(given))

    def test_quantiles_invert_probabilities(self) -> None:
        if (mixed := self.mixed()) is None:
            return
        found, likelihood, y = mixed
        assert found.parameters is not None
        levels = [1e-4, 0.02, 0.3, 0.5, 0.9, 0.999]
        quantiles = found.quantile(levels)
        assert quantiles.shape == (6, *y.shape)
        torch.testing.assert_close(found.quantile(torch.tensor(0.5).double()), quantiles[3])
        wanted = torch.tensor(levels).double().reshape(-1, *(1,) * y.dim()).expand(quantiles.shape)
        if likelihood.marginal(found.parameters).support.is_discrete:  # type: ignore[attr-defined]
            assert bool((found.cdf(quantiles) >= wanted).all())
            assert bool((found.cdf(quantiles - 1) < wanted).all())
            assert torch.equal(quantiles, quantiles.round())
        else:
            torch.testing.assert_close(found.cdf(quantiles), wanted, rtol=1e-4, atol=1e-9)
            torch.testing.assert_close(found.quantile(found.cdf(y)[0, 0].item())[0, 0], y[0, 0], rtol=1e-4, atol=1e-4)
        low, high = found.interval(0.8)
        torch.testing.assert_close(torch.stack([low, high]), found.quantile([0.1, 0.9]))

    def test_the_density_integrates_to_its_probabilities(self) -> None:
        """By scipy's quadrature, of the first two targets under the first draw."""
        if (mixed := self.mixed()) is None:
            return
        found, likelihood, y = mixed
        assert found.parameters is not None
        each = likelihood.marginal({name: value[:1, :1] for name, value in found.parameters.items()})
        start = each.mean[0, :1]
        others = [slice(0, 1)] * (y.dim() - 1)

        def density(value: float) -> float:
            return float(each.log_prob(torch.full_like(start, value)).exp()[0][(slice(0, 1), *others)])

        def probability(value: float) -> float:
            return float(each.cdf(torch.full_like(start, value))[0][(slice(0, 1), *others)])

        middle, far = float(start.flatten()[0]), 30 * float(each.stddev.flatten()[0])
        if each.support.is_discrete:  # type: ignore[attr-defined]
            masses = [density(float(count)) for count in range(int(middle + far) + 30)]
            assert sum(masses) == pytest.approx(1.0, abs=1e-4)
            for count in (0, int(middle) + 1):
                assert probability(float(count)) == pytest.approx(sum(masses[: count + 1]), abs=1e-8)
            return
        low = -math.inf if bool(each.support.check(torch.tensor(-1.0))) else 0.0  # type: ignore[attr-defined]
        below = integrate.quad(density, low, middle, limit=200)[0]
        total = below + integrate.quad(density, middle, middle + far, limit=200)[0]
        total += integrate.quad(density, middle + far, math.inf, limit=200)[0]
        assert total == pytest.approx(1.0, abs=1e-4)
        assert probability(middle) == pytest.approx(below, abs=1e-6)

    @pytest.mark.statistical
    def test_entropies_are_those_of_targets_that_are_drawn(self) -> None:
        """2000 targets of each draw, within z = 5."""
        if (mixed := self.mixed()) is None:
            return
        found, likelihood, _ = mixed
        split = found.entropy_split()
        assert found.parameters is not None
        torch.testing.assert_close(split.total, split.aleatoric + split.epistemic, rtol=1e-6, atol=1e-6)
        each = likelihood.marginal(found.parameters)
        torch.manual_seed(7)
        targets = each.sample(torch.Size([2000]))
        own = -each.log_prob(targets)
        assert z_of_mean(own.mean(1), split.aleatoric, rounding=1e-3) < Z
        log_probs = torch.stack([each.log_prob(targets.roll(shift, 1)).roll(-shift, 1) for shift in range(7)])
        by_mixture = math.log(7) - log_probs.logsumexp(0)
        assert z_of_mean(by_mixture.mean(1), split.total, rounding=1e-3) < Z

    @pytest.mark.statistical
    def test_joint_entropies_are_those_of_each_target_or_of_quadrature(self) -> None:
        """2000 targets, z below 5: one by one, independent targets have the joint aleatoric part as their sum.

        The total is at most that sum, and the parts add up.
        """
        model, guide, x, y = self.problem()
        found = predict(model, guide, x, 5, seed=0, return_draws=True)
        if not isinstance(found, MomentPrediction):
            return
        torch.manual_seed(8)
        split = found.joint_entropy_split(2000)
        assert split.total.shape == split.epistemic_error.shape == (NUM_DATA,)
        torch.testing.assert_close(split.total, split.aleatoric + split.epistemic)
        assert bool((split.epistemic > -Z * split.epistemic_error - 1e-9).all())
        assert bool((split.epistemic < math.log(5) + Z * split.epistemic_error).all())
        assert 0 < float(split.aleatoric_error.max()) < 0.2
        if self.has_cdf and self.targets_are_independent:
            alone = found.entropy_split()
            aleatoric, total = (part.reshape(NUM_DATA, -1).sum(1) for part in (alone.aleatoric, alone.total))
            assert float(((split.aleatoric - aleatoric).abs() / (split.aleatoric_error + 1e-4)).max()) < Z
            assert bool((split.total < total + Z * split.total_error + 1e-3).all())
            if y.numel() == NUM_DATA:
                assert float(((split.total - total).abs() / (split.total_error + 1e-4)).max()) < Z

    def test_any_number_of_targets_is_drawn(self) -> None:
        """Each draw is used equally often; what is left over are different ones."""
        model, guide, x, y = self.problem()
        found = predict(model, guide, x, 5, seed=0, return_draws=True)
        for count in (1, 5, 13):
            assert found.sample(count).shape == (count, *y.shape)
        for wrong in (0, -1, 2.5, "a"):
            with pytest.raises(ValueError, match=r"^num_samples: "):
                found.sample(wrong)  # type: ignore[arg-type]

    # ---------------------------------------------------------------------------------------------- use by others

    def test_a_fit_and_its_check(self) -> None:
        model, guide, x, y = self.problem()
        fit(model, guide, [(x, y)], epochs=2, lr=0.01, progress=False)
        report = check(model, guide, [(x, y)], num_samples=25)
        assert math.isfinite(report["calibration"].value)

    @pytest.mark.parametrize("family", ["MAP", "DeltaMixture", "Laplace", "chains"])
    def test_other_families(self, family: str) -> None:
        """Trained or sampled, and asked for the density of the targets; MeanField is that of the other tests."""
        model, _, x, y = self.problem()
        guide: Any
        likelihood = model.likelihood
        if family == "Laplace" and likelihood.target_weighting is not None and likelihood.target_scale(y) is None:
            with pytest.raises(ValueError, match=r"^likelihood: .*curvature is computed from the outputs alone"):
                Laplace(model, structure="full").fit(model, [(x, y)])
            return
        if family == "Laplace":
            guide = Laplace(model, structure="full").double().fit(model, [(x, y)])
        elif family == "chains":
            guide = sample(model, (x, y), kernel=SGLD(1e-5), num_samples=4, num_chains=2, progress=False)
        else:
            guide = MAP(model) if family == "MAP" else DeltaMixture(model, 2, init="prior")
            fit(model, guide, [(x, y)], epochs=2, lr=0.01, progress=False)
        found = predict(model, guide, x, 6, seed=0, return_draws=True, predictor="weights")
        assert bool(found.log_prob(y).isfinite().all())
        assert bool(found.mean.isfinite().all())
        torch.testing.assert_close(found.total, found.aleatoric + found.epistemic)

    def test_a_checkpoint_gives_the_same_predictions(self, tmp_path: Path) -> None:
        model, guide, x, _ = self.problem()
        save(tmp_path, model, guide)
        if self.is_known_to_checkpoints:
            loaded = load(tmp_path, self.model().net.network)
        else:
            loaded = load(tmp_path, model=self.model())
        before, after = (predict(*pair, x, 5, seed=0) for pair in ((model, guide), loaded))
        assert torch.equal(before.mean, after.mean)
        assert torch.equal(before.total, after.total)
        assert loaded[0].likelihood.config() == model.likelihood.config()

    # ---------------------------------------------------------------------------------------------- missing targets

    def test_missing_targets_have_no_log_density_and_no_gradient(self) -> None:
        outputs = self.outputs()
        y = self.targets(outputs)
        if not self.takes_missing:
            return
        y[:4] = math.nan
        likelihood = self.make(missing=True).double()
        likelihood.check_targets(outputs, y)
        leaf = outputs.clone().requires_grad_()
        log_prob = likelihood(leaf).log_prob(y)
        assert torch.equal(log_prob[:4], torch.zeros(4).double())
        torch.testing.assert_close(log_prob[4:], self.log_density(outputs[4:], y[4:]), rtol=1e-6, atol=1e-6)
        log_prob.sum().backward()
        assert leaf.grad is not None and bool(leaf.grad.isfinite().all())
        assert torch.equal(leaf.grad[:4], torch.zeros(4, self.num_outputs).double())
        with pytest.raises((TypeError, ValueError), match=r"^y: "):
            self.make().double().check_targets(outputs, y)

    def test_rows_of_missing_targets_count(self) -> None:
        """Half of the rows are missing: the others' log likelihood counts N / B times, B all rows, not N / (B/2)."""
        if not self.takes_missing:
            return
        model, guide, x, y = self.problem(missing=True)
        y[::2] = math.nan
        draws = guide.sample(1)
        with poutine.condition(data={name: value[0] for name, value in draws.items()}):
            trace = poutine.trace(model).get_trace(x[:4], y[:4])
        trace.compute_log_prob()
        expected = self.log_density(self.network_outputs(model, draws, x)[0], y)[1:4:2].sum() * NUM_DATA / 4
        torch.testing.assert_close(trace.nodes["y"]["log_prob_sum"], expected, rtol=1e-6, atol=1e-6)

    def test_predictions_leave_missing_targets_out(self) -> None:
        if not self.takes_missing:
            return
        model, guide, x, y = self.problem(missing=True)
        found = predict(model, guide, x, 5, seed=0, return_draws=True)
        expected = found.log_prob(y)
        y[:4] = math.nan
        log_prob = found.log_prob(y)
        assert torch.equal(log_prob[:4], torch.zeros_like(log_prob[:4]))
        torch.testing.assert_close(log_prob[4:], expected[4:])
        report = check(model, guide, [(x, y)], num_samples=25)
        assert math.isfinite(report["calibration"].value)
