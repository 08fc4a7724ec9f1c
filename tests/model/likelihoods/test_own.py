"""Likelihoods of a user's own, each whole in one place: mixture densities, zero-inflated counts, ordered classes.

None of them is known to the library: what they need is written here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from scipy import stats
from torch import Tensor, nn

from pyrobnn.guides import Laplace, MeanField
from pyrobnn.model.likelihoods import ClassLikelihood, Likelihood
from pyrobnn.model.likelihoods.moment_prediction import MomentPrediction
from pyrobnn.model.likelihoods.reductions import MomentReduction, Reduction
from pyrobnn.model.supervised import SupervisedModel
from pyrobnn.prediction import predict, predict_batches
from tests.conformance.likelihood_suite import LikelihoodConformance

# --------------------------------------------------------------------------------------------------- mixture density


@dataclass
class MixtureDensityPrediction(MomentPrediction):
    """Beside mean and variance, the share of each component."""

    @property
    def shares(self) -> Tensor:
        """Mean weight of the components ``[N, 2]``."""
        assert self.parameters is not None
        return self.parameters["logits"].softmax(-1).mean(0).squeeze(1)


class MixtureDensityReduction(MomentReduction):
    """The default one, with a prediction of its own."""

    def finish(self, targets: Tensor | None) -> MixtureDensityPrediction:
        return MixtureDensityPrediction(**vars(super().finish(targets)))


class MixtureDensity(Likelihood):
    """Two Gaussians for one target: outputs ``[B, 6]`` are logits, means and raw scales of the two."""

    def parameters_of(self, outputs: Tensor) -> dict[str, Tensor]:
        logits, loc, raw = outputs.unsqueeze(1).chunk(3, -1)  # [B, 1, 2] each
        return {"logits": logits, "loc": loc, "scale": nn.functional.softplus(raw) + 0.1}

    def distribution(self, parameters: Mapping[str, Tensor]) -> dist.TorchDistribution:
        components = dist.Normal(parameters["loc"], parameters["scale"])
        return dist.MixtureSameFamily(dist.Categorical(logits=parameters["logits"]), components)

    def reduction(self, num_samples: int, *, keep: bool, max_bytes: int) -> Reduction:
        return MixtureDensityReduction(self, num_samples, keep=keep, max_bytes=max_bytes)


class TestMixtureDensityConformance(LikelihoodConformance):
    num_outputs = 6
    is_known_to_checkpoints = False

    def make(self, **options: Any) -> Likelihood:
        return MixtureDensity(**options)

    def log_density(self, outputs: Tensor, y: Tensor) -> Tensor:
        logits, loc, raw = (part.numpy() for part in outputs.chunk(3, -1))
        scale = (1 + torch.as_tensor(raw).exp()).log().numpy() + 0.1
        share = torch.as_tensor(logits).softmax(-1).numpy()
        return torch.as_tensor((share * stats.norm(loc, scale).pdf(y.numpy())).sum(-1)).log()

    def test_it_brings_its_own_prediction(self) -> None:
        """Also through batches, of which the whole is joined."""
        model, guide, x, _ = self.problem()
        draws = guide.sample(5)
        expected = self.network_outputs(model, draws, x)[..., :2].softmax(-1).mean(0)
        for data in (x, [*x.split(5)]):
            found = predict(model, draws, data, 5, return_draws=True)
            assert isinstance(found, MixtureDensityPrediction)
            torch.testing.assert_close(found.shares, expected)

    def test_laplace_over_hidden_layers(self) -> None:
        """Curvature samples the Fisher information of what it does not know; the prediction is of the same kind."""
        model, _, x, y = self.problem()
        laplace = Laplace(model, structure="full").double().fit(model, [(x, y)])
        found = predict(model, laplace, x, 20, seed=0)
        assert isinstance(found, MixtureDensityPrediction)
        assert bool((found.epistemic > 0).all())
        assert bool(found.log_prob(y).isfinite().all())


# ------------------------------------------------------------------------------------------------ zero-inflated counts


class ZeroInflatedPoisson(Likelihood):
    """Counts of rate ``exp(o_1)`` that are zero besides with probability ``sigmoid(o_2)``; outputs ``[B, 2]``."""

    def parameters_of(self, outputs: Tensor) -> dict[str, Tensor]:
        rate, gate = outputs.chunk(2, -1)
        return {"rate": rate.exp(), "gate_logits": gate}

    def distribution(self, parameters: Mapping[str, Tensor]) -> dist.TorchDistribution:
        return dist.ZeroInflatedPoisson(parameters["rate"], gate_logits=parameters["gate_logits"])

    def check_targets(self, outputs: Tensor, y: Tensor) -> None:
        super().check_targets(outputs, y)
        if not bool(constraints.nonnegative_integer.check(self.observed_values(y)).all()):
            self.refuse_targets(y, "floating-point counts", floating=True)


class TestZeroInflatedPoissonConformance(LikelihoodConformance):
    num_outputs = 2
    has_cdf = False  # Pyro's has none
    is_known_to_checkpoints = False

    def make(self, **options: Any) -> Likelihood:
        return ZeroInflatedPoisson(**options)

    def log_density(self, outputs: Tensor, y: Tensor) -> Tensor:
        rate, gate = outputs[:, :1].exp().numpy(), outputs[:, 1:].sigmoid()
        counts = torch.as_tensor(stats.poisson(rate).pmf(y.numpy()))
        return ((1 - gate) * counts + gate * (y == 0)).log().sum(-1)

    def test_intervals_are_those_of_targets_and_what_needs_a_cdf_is_refused(self) -> None:
        model, guide, x, y = self.problem()
        found = predict(model, guide, x, 200, return_draws=True)
        low, high = found.interval(0.8)
        assert low.shape == high.shape == y.shape
        assert bool((low <= high).all())
        for name, ask in (
            ("cdf", lambda: found.cdf(y)),
            ("quantile", lambda: found.quantile(0.5)),
            ("entropy_split", lambda: found.entropy_split()),  # type: ignore[attr-defined]
        ):
            with pytest.raises(ValueError, match=rf"^{name}: the distribution of ZeroInflatedPoisson has no cdf"):
                ask()

    def refused(self, y: Tensor) -> list[tuple[type[Exception], Tensor]]:
        return [*super().refused(y), (ValueError, y + 0.5), (ValueError, y - 100), (TypeError, y.long())]


# ----------------------------------------------------------------------------------------------------- ordered classes


class Ordinal(ClassLikelihood):
    """Four ordered classes by cutpoints at -1, 0 and 1 of a logistic variable at the output ``[B, 1]``."""

    def log_probabilities(self, outputs: Tensor) -> Tensor:
        above = (outputs - torch.arange(-1.0, 2.0).to(outputs)).sigmoid()
        ends = torch.cat([torch.ones_like(outputs), above, torch.zeros_like(outputs)], -1)
        return (ends[..., :-1] - ends[..., 1:]).log()

    def check_targets(self, outputs: Tensor, y: Tensor) -> None:
        self.check_shape(outputs, y)
        if y.is_floating_point() or y.is_complex() or bool(((y < 0) | (y > 3)).any()):
            self.refuse_targets(y, "integer labels from 0 to 3", floating=False)


class TestOrdinalConformance(LikelihoodConformance):
    num_outputs = 1
    is_known_to_checkpoints = False
    takes_missing = False

    def make(self, **options: Any) -> Likelihood:
        return Ordinal(**options)

    def log_density(self, outputs: Tensor, y: Tensor) -> Tensor:
        cutpoints = torch.tensor([-math.inf, -1.0, 0.0, 1.0, math.inf]).double()
        cdf = torch.as_tensor(stats.logistic(outputs.numpy()).cdf(cutpoints.numpy()))
        return cdf.diff(dim=-1).gather(-1, y.unsqueeze(-1)).squeeze(-1).log()


# ---------------------------------------------------------------------------------------------------------- by hand


def test_a_mixture_over_draws_by_hand() -> None:
    """Two draws of a network without inputs' influence: densities of four Gaussians, a quarter or so each."""
    net = nn.Linear(1, 6)
    model = SupervisedModel(net, MixtureDensity(), dist.Normal(0.0, 1.0), num_data=3)
    raw = math.log(math.expm1(0.4))  # softplus and the floor give 0.5
    bias = torch.tensor([[0.0, math.log(3.0), -1.0, 1.0, raw, raw], [0.0, 0.0, 2.0, 4.0, raw, raw]])
    draws = {"net.weight": torch.zeros(2, 6, 1), "net.bias": bias}
    found = predict(model, draws, torch.zeros(3, 1), 2)
    y = torch.tensor([[0.0], [1.5], [3.0]])
    shares, means = (0.125, 0.375, 0.25, 0.25), (-1.0, 1.0, 2.0, 4.0)
    density = sum(share * stats.norm(mean, 0.5).pdf(y.numpy()) for share, mean in zip(shares, means, strict=True))
    torch.testing.assert_close(found.log_prob(y), torch.as_tensor(density).squeeze(1).log().float())
    assert found.mean.squeeze(1).tolist() == pytest.approx([1.75] * 3)
    second = sum(share * (mean**2 + 0.25) for share, mean in zip(shares, means, strict=True))
    assert found.total.squeeze(1).tolist() == pytest.approx([second - 1.75**2] * 3)
    low, high = predict(model, draws, torch.zeros(3, 1), 2, return_draws=True).interval(0.5)
    assert bool((low <= high).all())


def test_streaming_of_zero_inflated_counts_by_hand() -> None:
    """``P(0) = g + (1 - g) e^{-r}``, averaged over draws, batch by batch."""
    model = SupervisedModel(nn.Linear(1, 2), ZeroInflatedPoisson(), dist.Normal(0.0, 1.0), num_data=4)
    guide = MeanField(model, init_scale=0.5)
    draws = guide.sample(6)
    x = torch.randn(4, 1)
    outputs = torch.einsum("koi,ni->kno", draws["net.weight"], x) + draws["net.bias"].unsqueeze(1)
    rate, gate = outputs[..., 0].exp(), outputs[..., 1].sigmoid()
    expected = (gate + (1 - gate) * (-rate).exp()).mean(0).log()
    batches = [(part, torch.zeros(2, 1)) for part in x.split(2)]
    found = [prediction.log_prob(y) for prediction, y in predict_batches(model, draws, batches, 6) if y is not None]
    torch.testing.assert_close(torch.cat(found), expected)
