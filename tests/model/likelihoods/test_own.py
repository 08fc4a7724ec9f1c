"""A likelihood of a user's own, whole in one place, with a reduction and a prediction of its own.

The library has mixture densities too; this one knows nothing of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from pyrobnn.guides import Laplace, MeanField
from pyrobnn.model.likelihoods import Likelihood
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


class WithoutCdf(MixtureDensity):
    """The same density, of which no distribution function is declared."""

    def marginal(self, parameters: Mapping[str, Tensor]) -> dist.TorchDistribution:
        raise NotImplementedError


def test_without_a_cdf_intervals_are_those_of_targets_and_the_rest_is_refused() -> None:
    model = SupervisedModel(nn.Linear(2, 6), WithoutCdf(), dist.Normal(0.0, 1.0), num_data=5)
    found = predict(model, MeanField(model), torch.randn(5, 2), 200, return_draws=True)
    y = torch.randn(5, 1)
    low, high = found.interval(0.8)
    assert low.shape == high.shape == y.shape
    assert bool((low <= high).all())
    for name, ask in (
        ("cdf", lambda: found.cdf(y)),
        ("quantile", lambda: found.quantile(0.5)),
        ("crps", lambda: found.crps(y)),
        ("entropy_split", lambda: found.entropy_split()),  # type: ignore[attr-defined]
    ):
        with pytest.raises(ValueError, match=rf"^{name}: the distribution of WithoutCdf has no cdf"):
            ask()


def test_batches_of_an_own_likelihood_are_scored_by_the_same_draws() -> None:
    """The mixture over draws of the densities under each, batch by batch."""
    model = SupervisedModel(nn.Linear(1, 6), MixtureDensity(), dist.Normal(0.0, 1.0), num_data=4)
    draws = MeanField(model, init_scale=0.5).sample(6)
    x, y = torch.randn(4, 1), torch.randn(4, 1)
    outputs = torch.einsum("koi,ni->kno", draws["net.weight"], x) + draws["net.bias"].unsqueeze(1)
    logits, loc, raw = outputs.chunk(3, -1)
    density = stats.norm(loc.numpy(), nn.functional.softplus(raw).numpy() + 0.1).pdf(y.numpy())
    expected = (logits.softmax(-1) * torch.as_tensor(density)).sum(-1).mean(0).log().float()
    batches = list(zip(x.split(2), y.split(2), strict=True))
    found = [prediction.log_prob(y) for prediction, y in predict_batches(model, draws, batches, 6) if y is not None]
    torch.testing.assert_close(torch.cat(found), expected)
